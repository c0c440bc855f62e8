//! The embedded source: an encrypted store in a folder of this host.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use keyhatch_protocol::Name;

use super::accepted::{Accepted, Memory};
use super::key::{KeyError, load_key};
use super::names::Names;
use crate::cache::{About, Cache, Entry, LoadError, Version};
use crate::config::{KeySource, STORE_FILE};
use crate::files::{self, FileError, Holds, Trust};
use crate::store::{Change, Key, Opened, Record, StoreError};

/// A store larger than this is refused.
const LARGEST: u64 = 1 << 30;

/// One `kind = "file"` source of the configuration.
pub struct FileSource {
    /// Its name.
    pub name: Arc<str>,
    /// The folder of the store.
    pub folder: PathBuf,
    /// Where the key is.
    pub key: KeySource,
    /// Which names it may serve.
    pub names: Names,
    /// Whose files are trusted.
    pub trust: Trust,
    memory: Memory,
}

/// Why a store is not served.
#[derive(Debug, thiserror::Error)]
pub enum Rejected {
    /// The file is not there, or loose.
    #[error("{0}")]
    File(#[from] FileError),
    /// There is no key.
    #[error("{0}")]
    Key(#[from] KeyError),
    /// It does not verify.
    #[error("the store does not verify: {0}")]
    Store(#[from] StoreError),
    /// An older copy.
    #[error(
        "the store is older than what was served: generation {found}, accepted {accepted}; if you put it \
         back on purpose, run keyhatchd store accept-older"
    )]
    Older {
        /// The generation of the file.
        found: u64,
        /// The highest one that was accepted.
        accepted: u64,
    },
    /// Another store.
    #[error(
        "this is another store than the one that was served; if you put it there on purpose, run \
         keyhatchd store accept-older"
    )]
    Another,
    /// The highest accepted generation is not known or cannot be kept.
    #[error("{path}: {source}")]
    Memory {
        /// The file that remembers it.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// It does not fit into memory.
    #[error("{0}")]
    Load(#[from] LoadError),
}

impl Rejected {
    /// Whether it can pass without a change to the store: a mode, a key, a disk or memory that is full.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::File(_) | Self::Key(_) | Self::Memory { .. } | Self::Load(_) => true,
            Self::Store(error) => matches!(error, StoreError::WrongKey(_)),
            Self::Older { .. } | Self::Another => false,
        }
    }
}

/// A store that verified, in secret memory.
pub struct Loaded {
    /// All that it has.
    pub entries: Vec<Arc<Entry>>,
    /// Its generation.
    pub generation: u64,
    /// What was done to it since the generation that was accepted before.
    pub changes: Vec<Change>,
    /// Names that this source may not serve, and why.
    pub skipped: Vec<String>,
    accepted: Accepted,
}

impl FileSource {
    /// A source whose accepted generation is kept in `state_dir`.
    #[must_use]
    pub fn new(name: &str, folder: &Path, key: KeySource, names: Names, state_dir: &Path) -> Self {
        Self {
            name: name.into(),
            folder: folder.into(),
            key,
            names,
            trust: Trust::own(),
            memory: Memory::new(state_dir),
        }
    }

    /// The store's file.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.folder.join(STORE_FILE)
    }

    /// Reads, verifies and decrypts the store into the cache's memory. `older` accepts what would be
    /// refused as an older copy.
    pub fn load(&self, cache: &Cache, older: bool) -> Result<Loaded, Rejected> {
        let key = self.load_key()?;
        let bytes = files::read(&self.file(), Holds::Secrets, self.trust, LARGEST)?;
        let opened = Opened::verify(&bytes, &key)?;
        let before = self
            .memory
            .get(&self.name)
            .map_err(|error| self.memory_error(error))?;
        let store = hex(&opened.store_id());
        if !older {
            check_age(before.as_ref(), &store, opened.generation())?;
        }
        let since = before
            .filter(|before| before.store == store)
            .map_or(0, |b| b.generation);
        let changes = opened
            .changes()
            .iter()
            .filter(|c| c.generation > since)
            .cloned()
            .collect();
        let (entries, skipped) = self.entries(cache, &opened)?;
        let generation = opened.generation();
        let accepted = Accepted { store, generation };
        Ok(Loaded {
            entries,
            generation,
            changes,
            skipped,
            accepted,
        })
    }

    /// Remembers that a store is now the accepted one.
    pub fn accept(&self, loaded: &Loaded) -> Result<(), Rejected> {
        self.memory
            .set(&self.name, loaded.accepted.clone())
            .map_err(|error| self.memory_error(error))
    }

    /// The key, read anew.
    pub fn load_key(&self) -> Result<Key, KeyError> {
        load_key(&self.key, self.trust)
    }

    fn entries(
        &self,
        cache: &Cache,
        opened: &Opened<'_>,
    ) -> Result<(Vec<Arc<Entry>>, Vec<String>), Rejected> {
        let mut entries: Vec<Arc<Entry>> = Vec::new();
        let mut skipped = Vec::new();
        let snapshot = cache.snapshot();
        let served = |record: &Record<'_>| !record.is_pending();
        let mut records = opened.records().filter(served).peekable();
        while let Some(record) = records.next() {
            let previous = records.next_if(|next| next.name() == record.name());
            let name = match self.names.served(record.name().as_str()) {
                Ok(name) => name,
                Err(why) => {
                    skipped.push(why);
                    continue;
                }
            };
            let old = snapshot.get(name.as_str());
            let (current, previous) = match previous {
                Some(other) if other.is_current() => (other, Some(record)),
                other => (record, other),
            };
            let current = self.version(cache, &name, &current, old)?;
            let previous = match previous {
                Some(previous) => Some(self.version(cache, &name, &previous, old)?),
                None => None,
            };
            let source = Arc::clone(&self.name);
            entries.push(Arc::new(Entry::new(name, source, current, previous)));
        }
        Ok((entries, skipped))
    }

    /// The version in memory already, or a fresh one decrypted from the record.
    fn version(
        &self,
        cache: &Cache,
        name: &Name,
        record: &Record<'_>,
        old: Option<&Arc<Entry>>,
    ) -> Result<Arc<Version>, Rejected> {
        if let Some(old) = old.filter(|old| old.source == self.name) {
            let known = [Some(&old.current), old.previous.as_ref()];
            if let Some(same) = known
                .into_iter()
                .flatten()
                .find(|v| **v.id() == *record.version())
            {
                return Ok(Arc::clone(same));
            }
        }
        let mut draft = cache.arena().draft(record.len()).map_err(LoadError::from)?;
        record.decrypt_into(&mut draft)?;
        let about = About {
            name: name.as_str(),
            version: record.version(),
            updated_at: record.updated_at(),
            source: &self.name,
            stale: false,
        };
        Ok(Arc::new(Version::load(
            cache.arena(),
            &about,
            draft.freeze(),
        )?))
    }

    fn memory_error(&self, source: io::Error) -> Rejected {
        Rejected::Memory {
            path: self.memory.path().to_owned(),
            source,
        }
    }
}

fn check_age(before: Option<&Accepted>, store: &str, generation: u64) -> Result<(), Rejected> {
    match before {
        Some(before) if before.store != store => Err(Rejected::Another),
        Some(before) if generation < before.generation => Err(Rejected::Older {
            found: generation,
            accepted: before.generation,
        }),
        _ => Ok(()),
    }
}

fn hex(id: &[u8]) -> String {
    use std::fmt::Write;
    id.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
