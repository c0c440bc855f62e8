//! How each source is.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::engine::Moment;

/// How all sources are.
#[derive(Default)]
pub struct States {
    /// Some source has not loaded yet: look closer. Spares readers the lock.
    unloaded: AtomicBool,
    all: Mutex<BTreeMap<Arc<str>, SourceState>>,
}

/// How one source is.
#[derive(Clone, Debug, Default)]
pub struct SourceState {
    /// Values were loaded at least once since start or unseal.
    pub loaded: bool,
    /// Why the last good values are served instead of newer ones. For operators; never holds a value.
    pub trouble: Option<String>,
    /// When values were last loaded well, RFC 3339.
    pub last_success: Option<String>,
    /// How many secrets it has.
    pub secrets: usize,
    /// The generation of the store that is served.
    pub generation: u64,
    /// What only upstreams have.
    pub upstream: Option<UpstreamState>,
}

/// How an upstream is.
#[derive(Clone, Copy, Debug, Default)]
pub struct UpstreamState {
    /// When it last stood behind the value that it has not stood behind for longest.
    pub oldest: Option<Moment>,
    /// When it is asked next.
    pub next: Option<Moment>,
    /// How many secrets are not served because it did not stand behind them for too long.
    pub withheld: usize,
}

impl SourceState {
    /// One word: `up`, `degraded`, or where nothing is loaded yet `starting` or `down`.
    #[must_use]
    pub fn word(&self) -> &'static str {
        // Served from a copy, and not heard of since.
        if self.upstream.is_some() && self.last_success.is_none() && self.trouble.is_none() {
            return "starting";
        }
        match (self.loaded, &self.trouble) {
            (true, None) => "up",
            (true, Some(_)) => "degraded",
            (false, None) => "starting",
            (false, Some(_)) => "down",
        }
    }
}

impl UpstreamState {
    /// Seconds since the upstream stood behind the oldest value.
    #[must_use]
    pub fn oldest_age(&self) -> Option<u64> {
        self.oldest
            .map(|oldest| Moment::now().since(oldest).as_secs())
    }

    /// Seconds until it is asked again.
    #[must_use]
    pub fn next_try(&self) -> Option<u64> {
        self.next.map(|next| next.since(Moment::now()).as_secs())
    }
}

impl States {
    /// Changes what is known of one source.
    pub fn change(&self, name: &Arc<str>, change: impl FnOnce(&mut SourceState)) {
        let mut all = self.all();
        change(all.entry(Arc::clone(name)).or_default());
        let unloaded = all.values().any(|source| !source.loaded);
        self.unloaded.store(unloaded, Ordering::Release);
    }

    /// All sources by name.
    #[must_use]
    pub fn all_by_name(&self) -> BTreeMap<Arc<str>, SourceState> {
        self.all().clone()
    }

    /// Whether a source has nothing to serve yet, so that an unknown name may still exist.
    #[must_use]
    pub fn is_unloaded(&self, name: &str) -> bool {
        self.unloaded.load(Ordering::Acquire)
            && self.all().get(name).is_some_and(|source| !source.loaded)
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, SourceState>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
