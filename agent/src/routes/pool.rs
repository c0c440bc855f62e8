//! Connections of a route that wait for its next request.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::connect::Link;

/// How long a connection waits. Servers mostly close after a minute or more.
const PATIENCE: Duration = Duration::from_secs(50);

/// How many of one route wait at most.
const MOST: usize = 128;

/// The connections that wait.
#[derive(Default)]
pub struct Pool(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    idle: Vec<(Instant, Link)>,
    swept: bool,
}

impl Pool {
    /// The connection that was used last, opened as `identity` says; those opened otherwise are of an earlier secret.
    pub fn take(&self, identity: Option<&Arc<str>>) -> Option<Link> {
        let mut waiting = self.waiting();
        waiting
            .idle
            .retain(|(_, link)| !link.sender.is_closed() && link.identity.as_ref() == identity);
        let ready = |(_, link): &(Instant, Link)| link.sender.is_ready();
        let last = waiting.idle.iter().rposition(ready)?;
        Some(waiting.idle.remove(last).1)
    }

    /// Lets a connection wait. It may still be about to see that its answer has ended.
    pub fn put(self: &Arc<Self>, link: Link) {
        let mut waiting = self.waiting();
        if waiting.idle.len() >= MOST {
            waiting.idle.remove(0);
        }
        waiting.idle.push((Instant::now(), link));
        if !waiting.swept {
            waiting.swept = true;
            tokio::spawn(Arc::clone(self).sweep());
        }
    }

    /// Closes all.
    pub fn clear(&self) {
        self.waiting().idle.clear();
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
        waiting
            .idle
            .retain(|(since, link)| since.elapsed() < PATIENCE && !link.sender.is_closed());
        let oldest = waiting.idle.first().map(|(since, _)| *since);
        waiting.swept = oldest.is_some();
        oldest
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
