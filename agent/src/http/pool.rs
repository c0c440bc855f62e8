//! Connections that wait for the next request of a burst, and are closed soon after.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1::SendRequest;
use tokio::time::Instant;

/// How long a connection waits. Its buffers hold what it carried last, so it waits no longer than a burst pauses.
const PATIENCE: Duration = Duration::from_millis(300);

/// What sends requests on a connection.
pub type Sender = SendRequest<Full<Bytes>>;

/// The connections that wait.
#[derive(Default)]
pub struct Pool(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    idle: Vec<Idle>,
    swept: bool,
}

struct Idle {
    to: usize,
    since: Instant,
    sender: Sender,
}

impl Pool {
    /// The connection to server `to` that was used last.
    pub fn take(&self, to: usize) -> Option<Sender> {
        let mut waiting = self.waiting();
        while let Some(at) = waiting.idle.iter().rposition(|idle| idle.to == to) {
            let sender = waiting.idle.remove(at).sender;
            if sender.is_ready() {
                return Some(sender);
            }
        }
        None
    }

    /// Lets a connection wait.
    pub fn put(self: &Arc<Self>, to: usize, sender: Sender) {
        let mut waiting = self.waiting();
        waiting.idle.push(Idle {
            to,
            since: Instant::now(),
            sender,
        });
        if !waiting.swept {
            waiting.swept = true;
            tokio::spawn(Arc::clone(self).sweep());
        }
    }

    /// Closes the oldest until at most `most` wait.
    pub fn keep(&self, most: usize) {
        let mut waiting = self.waiting();
        let surplus = waiting.idle.len().saturating_sub(most);
        waiting.idle.drain(..surplus);
    }

    /// Closes what waited too long, until none is left.
    async fn sweep(self: Arc<Self>) {
        while let Some(oldest) = self.close_old() {
            tokio::time::sleep_until(oldest + PATIENCE).await;
        }
    }

    /// When the oldest that may still wait began to.
    fn close_old(&self) -> Option<Instant> {
        let mut waiting = self.waiting();
        waiting.idle.retain(|idle| idle.since.elapsed() < PATIENCE);
        let oldest = waiting.idle.first().map(|idle| idle.since);
        waiting.swept = oldest.is_some();
        oldest
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
