//! Where plaintext lives: an arena of secret memory and an immutable snapshot of what is served from it.
//!
//! One writer swaps the snapshot; readers never lock. A version that is no longer in the snapshot is
//! wiped when its last lease ends.

mod entry;
mod field;
mod lease;
mod render;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::{ArcSwap, Guard};
use keyhatch_protocol::Name;
use tokio::sync::watch;

pub use entry::{Entry, Form, Freshness, Kind, Shape, Version};
pub use lease::{Lease, Permit};
pub use render::{About, STALE};

use crate::sys::arena::{Arena, Full};

/// Why a value is not loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// There is no room for it.
    #[error(transparent)]
    Full(#[from] Full),
    /// Its version cannot stand in a header.
    #[error("{0}: the version has bytes that a header cannot hold")]
    Version(String),
}

/// Everything that is served, as it stood at one moment.
#[derive(Default)]
pub struct Snapshot {
    entries: HashMap<Name, Arc<Entry>>,
    /// All names in byte order, for listing.
    names: Vec<Name>,
}

impl Snapshot {
    /// The secret of that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Arc<Entry>> {
        self.entries.get(name)
    }

    /// The secrets whose names begin with `prefix` and come after `after`, in byte order.
    pub fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
    ) -> impl Iterator<Item = &'a Arc<Entry>> {
        let start = self.names.partition_point(|name| match after {
            Some(after) => name.as_str() <= after || name.as_str() < prefix,
            None => name.as_str() < prefix,
        });
        self.names[start..]
            .iter()
            .take_while(move |name| name.as_str().starts_with(prefix))
            .filter_map(|name| self.entries.get(name))
    }

    /// How many secrets of one source there are.
    #[must_use]
    pub fn of_source(&self, source: &str) -> usize {
        self.entries
            .values()
            .filter(|entry| &*entry.source == source)
            .count()
    }

    /// How many secrets there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }
}

/// What a new set of entries of one source changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// New names and names with another version: name, version.
    pub rotated: Vec<(Name, Arc<str>)>,
    /// Names that are gone, with their last version.
    pub removed: Vec<(Name, Arc<str>)>,
    /// How many of `rotated` were not served before.
    pub added: usize,
}

/// The values in memory and those who wait for the next ones.
pub struct Cache {
    arena: Arc<Arena>,
    snapshot: ArcSwap<Snapshot>,
    /// Held by the one who is making the next snapshot.
    writing: Mutex<()>,
    sealed: AtomicBool,
    swaps: watch::Sender<u64>,
}

impl Cache {
    /// An empty cache over `arena`.
    #[must_use]
    pub fn new(arena: Arc<Arena>) -> Self {
        Self {
            arena,
            snapshot: ArcSwap::default(),
            writing: Mutex::new(()),
            sealed: AtomicBool::new(false),
            swaps: watch::Sender::new(0),
        }
    }

    /// The memory that values live in.
    #[must_use]
    pub fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }

    /// What is served now.
    pub fn snapshot(&self) -> Guard<Arc<Snapshot>> {
        self.snapshot.load()
    }

    /// Told of every swap of the snapshot, seal and unseal.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.swaps.subscribe()
    }

    /// Serves `entries` as all that `source` has. Does nothing while sealed.
    pub fn publish(&self, source: &str, entries: Vec<Arc<Entry>>) -> Changes {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_sealed() {
            return Changes::default();
        }
        let before = self.snapshot.load_full();
        let mut changes = Changes::default();
        let mut next: HashMap<Name, Arc<Entry>> = before
            .entries
            .iter()
            .filter(|(_, entry)| &*entry.source != source)
            .map(|(name, entry)| (name.clone(), Arc::clone(entry)))
            .collect();
        for entry in entries {
            match before.entries.get(&entry.name) {
                Some(old) if old.current.id() == entry.current.id() => {}
                old => {
                    changes.added += usize::from(old.is_none());
                    changes
                        .rotated
                        .push((entry.name.clone(), Arc::clone(entry.current.id())));
                }
            }
            next.insert(entry.name.clone(), entry);
        }
        for (name, old) in &before.entries {
            if !next.contains_key(name) {
                changes
                    .removed
                    .push((name.clone(), Arc::clone(old.current.id())));
            }
        }
        changes.removed.sort();
        self.swap(next);
        changes
    }

    /// Serves `entries` besides, or instead of those of the same names, and no longer what is `removed`. Does
    /// nothing while sealed.
    pub fn update(&self, entries: Vec<Arc<Entry>>, removed: &[Name]) -> Changes {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changes = Changes::default();
        if self.is_sealed() || entries.is_empty() && removed.is_empty() {
            return changes;
        }
        let mut next = self.snapshot.load().entries.clone();
        for name in removed {
            if let Some(old) = next.remove(name) {
                changes
                    .removed
                    .push((name.clone(), Arc::clone(old.current.id())));
            }
        }
        for entry in entries {
            let (name, version) = (entry.name.clone(), Arc::clone(entry.current.id()));
            match next.insert(name.clone(), entry) {
                Some(old) if *old.current.id() == version => {}
                old => {
                    changes.added += usize::from(old.is_none());
                    changes.rotated.push((name, version));
                }
            }
        }
        self.swap(next);
        changes
    }

    /// Says of each entry of a source how far it still stands behind the value.
    pub fn set_freshness(&self, source: &str, freshness: impl Fn(&Entry) -> Freshness) {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let snapshot = self.snapshot.load();
        for entry in snapshot.entries.values() {
            if &*entry.source == source {
                entry.set_freshness(freshness(entry));
            }
        }
    }

    /// Forgets every value, and serves none until `unseal`.
    pub fn seal(&self) {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.sealed.store(true, Ordering::Release);
        self.swap(HashMap::new());
    }

    /// Lets values be published again.
    pub fn unseal(&self) {
        self.sealed.store(false, Ordering::Release);
        self.wake();
    }

    /// Whether it is sealed.
    #[must_use]
    pub fn is_sealed(&self) -> bool {
        self.sealed.load(Ordering::Acquire)
    }

    /// Wakes all who wait, so that they look again.
    pub fn wake(&self) {
        self.swaps.send_modify(|swaps| *swaps += 1);
    }

    fn swap(&self, entries: HashMap<Name, Arc<Entry>>) {
        let mut names: Vec<Name> = entries.keys().cloned().collect();
        names.sort_unstable();
        self.snapshot.store(Arc::new(Snapshot { entries, names }));
        self.wake();
    }
}
