//! How each source is.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How all sources are.
#[derive(Default)]
pub struct States {
    /// Some source is in trouble, or has not loaded yet: look closer. Spares readers the lock.
    unwell: AtomicBool,
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
}

impl States {
    /// Changes what is known of one source.
    pub fn change(&self, name: &Arc<str>, change: impl FnOnce(&mut SourceState)) {
        let mut all = self.all();
        change(all.entry(Arc::clone(name)).or_default());
        let unwell = all
            .values()
            .any(|source| !source.loaded || source.trouble.is_some());
        self.unwell.store(unwell, Ordering::Release);
    }

    /// All sources by name.
    #[must_use]
    pub fn all_by_name(&self) -> BTreeMap<Arc<str>, SourceState> {
        self.all().clone()
    }

    /// Whether a source serves values that may be old.
    #[must_use]
    pub fn is_stale(&self, name: &str) -> bool {
        self.is_unwell()
            && self
                .all()
                .get(name)
                .is_some_and(|source| source.trouble.is_some())
    }

    /// Whether some source has nothing to serve yet, so that an unknown name may still exist.
    #[must_use]
    pub fn may_have_more(&self) -> bool {
        self.is_unwell() && self.all().values().any(|source| !source.loaded)
    }

    fn is_unwell(&self) -> bool {
        self.unwell.load(Ordering::Acquire)
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, SourceState>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
