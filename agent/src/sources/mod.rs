//! Where secrets come from, and how they reach the cache.
//!
//! A source is read on one thread of its own, the [`Keeper`]'s; what it has is decrypted into secret
//! memory and published as a whole. What cannot be read or trusted is refused whole, and the last good
//! values serve on.

mod accepted;
#[cfg(feature = "aws")]
pub mod aws;
pub mod engine;
mod file;
mod keeper;
mod key;
mod names;
pub mod platforms;
mod record;
mod state;
pub mod upstream;
pub mod vault;
pub mod watch;

pub use file::{FileSource, Rejected};
pub use keeper::{Asked, ByOperator, Keeper, KeeperError, StoreEdit};
pub use key::{KeyError, credential_offline, load_key};
pub use names::{Names, Owners};
pub use state::{SourceState, States, UpstreamState};
