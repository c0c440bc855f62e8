//! How much of the agent one user may take.
//!
//! Connections and watches are bounded for each uid. Requests are bounded too, but only while another user
//! asks as well: one busy bot alone on a host slows nobody down.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::sys::map::monotonic_coarse;

/// Requests are counted in windows of this many milliseconds.
const WINDOW_MS: u64 = 10;

/// How many requests of one uid are answered in a window while others ask: 20,000 a second.
const REQUESTS_A_WINDOW: u32 = 200;

/// Another user counts as asking for this long after a request.
const CONTENDED_MS: u64 = 1_000;

/// The most connections of one uid, where the limit on open files allows it.
const CONNECTIONS: u64 = 4_096;

/// Descriptors that a connection takes: its socket twice, its pidfd, its /proc folder.
const DESCRIPTORS: u64 = 4;

/// The bounds, and what each uid uses of them.
pub struct Limits {
    a_uid: u32,
    in_all: u32,
    total: AtomicU32,
    users: Mutex<HashMap<u32, Arc<User>>>,
    /// The uid that asked last, and until when two uids count as asking side by side.
    last: AtomicU32,
    contended_until: AtomicU64,
}

/// What one uid uses.
pub struct User {
    uid: u32,
    connections: AtomicU32,
    watches: AtomicU32,
    window: AtomicU64,
    requests: AtomicU32,
    /// Held while a program of this user is read.
    reading: tokio::sync::Mutex<()>,
}

/// One connection of a uid, counted until it is dropped.
pub struct Connected {
    limits: Arc<Limits>,
    user: Arc<User>,
    waits: Arc<AtomicU32>,
}

/// One watch or long poll of a uid, counted until it is dropped.
pub struct Watching {
    user: Arc<User>,
    waits: Arc<AtomicU32>,
}

impl Limits {
    /// Bounds for a process that may open `files` descriptors.
    #[must_use]
    pub fn new(files: u64) -> Arc<Self> {
        let in_all = (files.saturating_sub(128) / DESCRIPTORS).max(16);
        // One user takes a quarter at most, so that others always find room.
        let a_uid = (in_all / 4).clamp(4, CONNECTIONS);
        Arc::new(Self {
            a_uid: u32::try_from(a_uid).unwrap_or(u32::MAX),
            in_all: u32::try_from(in_all).unwrap_or(u32::MAX),
            total: AtomicU32::new(0),
            users: Mutex::new(HashMap::new()),
            last: AtomicU32::new(u32::MAX),
            contended_until: AtomicU64::new(0),
        })
    }

    /// Counts a new connection; `None` where its uid or the agent has too many.
    pub fn connect(self: &Arc<Self>, uid: u32) -> Option<Connected> {
        let mut users = self.users();
        let user = users.entry(uid).or_insert_with(|| User::new(uid));
        if user.connections.load(Relaxed) >= self.a_uid || self.total.load(Relaxed) >= self.in_all {
            return None;
        }
        Some(self.count(user))
    }

    /// Counts a new connection of who is never turned away.
    pub fn connect_always(self: &Arc<Self>, uid: u32) -> Connected {
        let mut users = self.users();
        self.count(users.entry(uid).or_insert_with(|| User::new(uid)))
    }

    fn count(self: &Arc<Self>, user: &Arc<User>) -> Connected {
        user.connections.fetch_add(1, Relaxed);
        self.total.fetch_add(1, Relaxed);
        Connected {
            limits: Arc::clone(self),
            user: Arc::clone(user),
            waits: Arc::default(),
        }
    }

    /// How many connections are open.
    pub fn connections(&self) -> u32 {
        self.total.load(Relaxed)
    }

    fn users(&self) -> MutexGuard<'_, HashMap<u32, Arc<User>>> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn admit(&self, user: &User) -> bool {
        let now = coarse_ms();
        // One thread asks; loads and stores are enough, and cheaper than swaps.
        let before = self.last.load(Relaxed);
        if before != user.uid {
            self.last.store(user.uid, Relaxed);
            if before != u32::MAX {
                self.contended_until.store(now + CONTENDED_MS, Relaxed);
            }
        }
        let window = now / WINDOW_MS;
        let requests = if user.window.load(Relaxed) == window {
            user.requests.load(Relaxed)
        } else {
            0
        };
        user.window.store(window, Relaxed);
        user.requests.store(requests + 1, Relaxed);
        requests < REQUESTS_A_WINDOW || now >= self.contended_until.load(Relaxed)
    }
}

impl User {
    fn new(uid: u32) -> Arc<Self> {
        Arc::new(Self {
            uid,
            connections: AtomicU32::new(0),
            watches: AtomicU32::new(0),
            window: AtomicU64::new(0),
            requests: AtomicU32::new(0),
            reading: tokio::sync::Mutex::new(()),
        })
    }
}

/// Milliseconds of the monotonic clock, to within a tick of the kernel: enough for windows, and cheap.
fn coarse_ms() -> u64 {
    u64::try_from(monotonic_coarse().as_millis()).unwrap_or(u64::MAX)
}

impl Connected {
    /// Whether a request of this connection may be answered now.
    #[must_use]
    pub fn admit(&self) -> bool {
        self.limits.admit(&self.user)
    }

    /// Counts a watch; a uid may have as many as connections.
    #[must_use]
    pub fn watch(&self) -> Option<Watching> {
        let before = self.user.watches.fetch_add(1, Relaxed);
        self.waits.fetch_add(1, Relaxed);
        let watching = Watching {
            user: Arc::clone(&self.user),
            waits: Arc::clone(&self.waits),
        };
        (before < self.limits.a_uid).then_some(watching)
    }

    /// Waits for the turn to have a program read: one at a time for each user, so that nobody's large ones
    /// keep others waiting.
    pub async fn turn_to_read(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.user.reading.lock().await
    }

    /// How many watches and long polls wait on this connection.
    #[must_use]
    pub fn waits(&self) -> Arc<AtomicU32> {
        Arc::clone(&self.waits)
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.limits.total.fetch_sub(1, Relaxed);
        let mut users = self.limits.users();
        if self.user.connections.fetch_sub(1, Relaxed) == 1 {
            users.remove(&self.user.uid);
        }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.user.watches.fetch_sub(1, Relaxed);
        self.waits.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn one_uid_takes_a_quarter_and_gives_it_back() {
        let limits = Limits::new(128 + DESCRIPTORS * 40);
        let held: Vec<_> = (0..10).map(|_| limits.connect(1).unwrap()).collect();
        assert!(limits.connect(1).is_none());
        assert!(limits.connect(2).is_some());
        drop(held);
        assert_eq!(limits.connections(), 0);
        assert!(limits.connect(1).is_some());
    }

    #[test]
    fn watches_are_counted_by_uid() {
        let limits = Limits::new(128 + DESCRIPTORS * 16);
        let one = limits.connect(1).unwrap();
        let held: Vec<_> = (0..4).map(|_| one.watch().unwrap()).collect();
        assert!(one.watch().is_none());
        drop(held);
        assert!(one.watch().is_some());
    }

    #[test]
    fn a_flood_is_bounded_only_beside_another_user() {
        let limits = Limits::new(4096);
        let (flood, other) = (limits.connect(1).unwrap(), limits.connect(2).unwrap());
        assert_eq!((0..5_000).filter(|_| flood.admit()).count(), 5_000);
        assert!(other.admit());
        let beside = (0..5_000).filter(|_| flood.admit()).count();
        assert!(beside < 5_000);
    }
}
