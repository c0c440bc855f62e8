//! Connections of a route that wait for its next request.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::connect::Link;
use super::insert::Insertions;

/// How long a connection waits. Servers mostly close after a minute or more.
const PATIENCE: Duration = Duration::from_secs(50);

/// How many of one route wait at most, and as many that are shared.
const MOST: usize = 128;

/// The connections that wait.
#[derive(Default)]
pub struct Pool(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    idle: Vec<(Instant, Link)>,
    /// Those of HTTP/2, each with the bot whose requests share it: no bot waits for what another does not read.
    shared: Vec<(Instant, Box<str>, Link)>,
    swept: bool,
}

/// What a connection has to be like.
pub struct Wanted<'a> {
    /// Of which version the certificate is that it was opened with; those opened otherwise are of an earlier secret.
    pub identity: Option<&'a Arc<str>>,
    /// Whose request it is for.
    pub bot: &'a str,
    /// Whether it must speak HTTP/1.1.
    pub http1: bool,
}

impl Waiting {
    /// Leaves those that do not stay.
    fn leave(&mut self, stays: impl Fn(&Instant, &Link) -> bool) {
        let idle = self
            .idle
            .extract_if(.., |(since, link)| !stays(since, link));
        idle.for_each(|(_, link)| link.leave());
        let shared = &mut self.shared;
        let shared = shared.extract_if(.., |(used, _, link)| !stays(used, link));
        shared.for_each(|(_, _, link)| link.leave());
    }
}

impl Pool {
    /// The bot's own connection of HTTP/2, or the one of HTTP/1.1 that was used last.
    pub fn take(&self, wanted: &Wanted<'_>) -> Option<Link> {
        let fits =
            |link: &Link| !link.sender.is_closed() && link.identity.as_ref() == wanted.identity;
        let mut waiting = self.waiting();
        waiting.leave(|_, link| fits(link));
        let may_share = |(_, bot, link): &&mut (Instant, Box<str>, Link)| {
            !wanted.http1 && **bot == *wanted.bot && link.has_room()
        };
        let shared = waiting.shared.iter_mut().find(may_share);
        if let Some((used, _, link)) = shared {
            *used = Instant::now();
            return link.share();
        }
        let ready = |(_, link): &(Instant, Link)| link.sender.is_ready();
        let last = waiting.idle.iter().rposition(ready)?;
        Some(waiting.idle.remove(last).1)
    }

    /// Lets a connection wait. It may still be about to see that its answer has ended.
    pub fn put(self: &Arc<Self>, link: Link) {
        // What is shared is here already; what was answered before its head was out carries no other.
        if link.sender.is_http2() || link.insertions.has_left() {
            return link.leave();
        }
        let mut waiting = self.waiting();
        if waiting.idle.len() >= MOST {
            let busy = |(_, link): &(Instant, Link)| !link.sender.is_ready();
            let first = waiting.idle.iter().position(busy);
            waiting.idle.remove(first.unwrap_or(0)).1.leave();
        }
        waiting.idle.push((Instant::now(), link));
        self.begin_sweep(&mut waiting);
    }

    /// Has other requests of the bot share a connection, where it can be and they have none with room.
    pub fn share(self: &Arc<Self>, link: &Link, bot: &str) {
        let Some(link) = link.share() else { return };
        let mut waiting = self.waiting();
        let mut shared = waiting.shared.iter();
        let serves = |(_, other, shared): &(Instant, Box<str>, Link)| {
            **other == *bot && shared.identity == link.identity && shared.has_room()
        };
        if shared.any(serves) {
            return;
        }
        if waiting.shared.len() >= MOST {
            // No bot takes the place of another's, where it has its own.
            let mut shared = waiting.shared.iter();
            let own = shared.position(|(_, other, _)| **other == *bot);
            waiting.shared.remove(own.unwrap_or(0)).2.leave();
        }
        waiting.shared.push((Instant::now(), bot.into(), link));
        self.begin_sweep(&mut waiting);
    }

    /// Has nobody begin to use a connection that is shared any more.
    pub fn close(&self, of: &Insertions) {
        let is_other = |(_, _, link): &(Instant, Box<str>, Link)| !link.insertions.is_same(of);
        self.waiting().shared.retain(is_other);
    }

    /// Ends all at once, and what is still being sent on them.
    pub fn clear(&self) {
        let mut waiting = self.waiting();
        waiting.idle.clear();
        waiting.shared.clear();
    }

    fn begin_sweep(self: &Arc<Self>, waiting: &mut Waiting) {
        if !std::mem::replace(&mut waiting.swept, true) {
            tokio::spawn(Arc::clone(self).sweep());
        }
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
        waiting.leave(|since, link| since.elapsed() < PATIENCE && !link.sender.is_closed());
        let idle = waiting.idle.iter().map(|(since, _)| *since);
        let oldest = idle
            .chain(waiting.shared.iter().map(|(used, ..)| *used))
            .min();
        waiting.swept = oldest.is_some();
        oldest
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
