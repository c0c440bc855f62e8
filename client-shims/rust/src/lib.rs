//! Client of the Keyhatch secrets agent.
//!
//! ```no_run
//! # fn main() -> Result<(), keyhatch::Error> {
//! let keyhatch = keyhatch::blocking::Client::new();
//! let key = keyhatch.get("openai/api-key")?;
//! let header = format!("Bearer {}", key.reveal_str()?);
//! # Ok(())
//! # }
//! ```
//!
//! `keyhatch::Client` is the same with `async` calls (feature `tokio`, on by default). A [`Secret`] does not print
//! itself and is wiped when dropped. Before anything is sent, the client checks that what listens at the socket is
//! root, this user, or the owner of the socket's folder.
//!
//! A read during a restart of the agent waits up to five seconds for it. A process that was forked from one which
//! has a client may use that client: it connects anew.
//!
//! With the feature `route`, `Client::route` sends HTTP requests by a route, which adds a secret that this process does
//! not see.
//!
//! HTTP and server-sent events are read by parsers without I/O (`wire`, `chunks`, `events`), the API is spelt in
//! `request` and `reply`; the two clients only move bytes.

mod cached;
mod chunks;
mod error;
mod events;
mod exchange;
mod head;
mod json;
mod progress;
mod reply;
mod request;
mod restart;
mod secret;
mod socket;
mod wire;

pub mod blocking;
#[cfg(feature = "tokio")]
mod client;

use std::time::{Duration, Instant};

#[cfg(feature = "route")]
pub use client::{Answer, BoxError, Route};
#[cfg(feature = "tokio")]
pub use client::{Client, Followed, OnRotate, Watch};
pub use error::{Error, Reason};
pub use keyhatch_protocol::{
    BatchError, ChangeKind, Health, Listed, Name, RotateReply, UsableRoute, Whoami,
};
pub use progress::Change;
pub use reply::Batch;
pub use request::Wanted;
pub use secret::Secret;
pub use socket::Address;

/// How long a client waits for an answer unless told otherwise.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// Whether a long poll that was told "no change" is asked again before `deadline`, and after which pause.
///
/// An agent may wait less long than it was asked to; one that does not wait at all is asked once a second.
fn poll_again(asked: Instant, deadline: Instant) -> Option<Duration> {
    let now = Instant::now();
    if now >= deadline {
        return None;
    }
    let next = (asked + Duration::from_secs(1)).min(deadline);
    Some(next.saturating_duration_since(now))
}
