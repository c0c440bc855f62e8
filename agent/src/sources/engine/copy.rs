//! The sealed copy of a source's last good values in `state_dir`: when it is written, and how it is read.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use keyhatch_protocol::Name;

use super::clock::{Moment, elapsed, millis, saved_now};
use crate::cache::{About, Cache, Entry, LoadError, Version};
use crate::config::KeySource;
use crate::files::{self, FileError, Holds, Trust};
use crate::sources::key::{KeyError, load_key};
use crate::sources::names::Names;
use crate::store::snapshot::{self, Snapshot, SnapshotError, VersionAbout};

/// Changes within this time are written together.
const TOGETHER: Duration = Duration::from_secs(1);
/// A larger copy is refused.
const LARGEST: u64 = 1 << 30;

/// Where a source's copy is, and under which key.
pub struct CopyPlace {
    path: PathBuf,
    key: KeySource,
    /// The host and the source's configuration.
    binding: String,
    due: Option<Moment>,
}

/// Why a copy is not read or written.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// No key.
    #[error("{0}")]
    Key(#[from] KeyError),
    /// The file cannot be trusted.
    #[error("{0}")]
    File(#[from] FileError),
    /// The file cannot be written.
    #[error("{path}: {why}", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        why: io::Error,
    },
    /// It is not opened.
    #[error("{path}: {why}", path = path.display())]
    Sealed {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: SnapshotError,
    },
    /// It does not fit into memory.
    #[error("{0}")]
    Load(#[from] LoadError),
}

/// A value from a copy.
pub struct Restored {
    pub entry: Entry,
    /// When the upstream last stood behind it.
    pub confirmed: Moment,
}

impl CopyPlace {
    /// The copy of `source` in `state_dir`; `configuration` is what it is bound to besides the host.
    #[must_use]
    pub fn new(state_dir: &Path, source: &str, key: KeySource, configuration: &str) -> Self {
        let host = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
        Self {
            path: state_dir.join(format!("snapshot-{source}.sealed")),
            key,
            binding: format!("{}\0{source}\0{configuration}", host.trim()),
            due: None,
        }
    }

    /// When it is to be written.
    #[must_use]
    pub fn due(&self) -> Option<Moment> {
        self.due
    }

    /// Something changed.
    pub fn soon(&mut self, now: Moment) {
        let soon = now + TOGETHER;
        self.due = Some(self.due.map_or(soon, |due| due.min(soon)));
    }

    /// What the copy holds; `None` where there is none.
    pub fn load(
        &self,
        source: &Arc<str>,
        names: &Names,
        cache: &Cache,
    ) -> Option<Result<Vec<Restored>, CopyError>> {
        match files::read(&self.path, Holds::Secrets, Trust::own(), LARGEST) {
            Err(why) if why.is_absent() => None,
            Err(why) => Some(Err(why.into())),
            Ok(bytes) => Some(self.open(&bytes, source, names, cache)),
        }
    }

    fn open(
        &self,
        bytes: &[u8],
        source: &Arc<str>,
        names: &Names,
        cache: &Cache,
    ) -> Result<Vec<Restored>, CopyError> {
        let sealed = |why| CopyError::Sealed {
            path: self.path.clone(),
            why,
        };
        let key = load_key(&self.key, Trust::own())?;
        let mut copy = Snapshot::open(bytes, &key, &self.binding).map_err(sealed)?;
        let (now, away) = (Moment::now(), elapsed(&copy.saved, &saved_now()));
        let mut all = Vec::new();
        while let Some(about) = copy.next_secret().map_err(sealed)? {
            let mut versions = Vec::new();
            for version in &about.versions {
                let mut draft = cache
                    .arena()
                    .draft(copy.value_len().map_err(sealed)?)
                    .map_err(LoadError::from)?;
                copy.value_into(&mut draft).map_err(sealed)?;
                let about = About {
                    name: &about.name,
                    version: &version.id,
                    updated_at: &version.updated_at,
                    source,
                    stale: false,
                };
                let version = Version::load(cache.arena(), &about, draft.freeze())?;
                versions.push(Arc::new(version));
            }
            let mut versions = versions.into_iter();
            // A name that became another source's since is not served from here.
            let name = Name::parse(&about.name)
                .ok()
                .and_then(|name| names.served(names.own(&name)?.as_str()).ok());
            if let (Some(name), Some(current)) = (name, versions.next()) {
                all.push(Restored {
                    entry: Entry::new(name, Arc::clone(source), current, versions.next()),
                    confirmed: now - (away + Duration::from_millis(about.age)),
                });
            }
        }
        Ok(all)
    }

    /// Writes the copy anew. It is written again after a tenth of `max_stale`, so that ages in it are never
    /// much too high.
    pub fn save<'a>(
        &mut self,
        entries: impl Iterator<Item = (&'a Arc<Entry>, Moment)>,
        max_stale: Duration,
    ) -> Result<(), CopyError> {
        let again = (max_stale / 10).clamp(Duration::from_secs(10), Duration::from_secs(600));
        let now = Moment::now();
        self.due = Some(now + again);
        let key = load_key(&self.key, Trust::own())?;
        let secrets: Vec<_> = entries
            .map(|(entry, confirmed)| {
                let versions: Vec<&Version> = [Some(&entry.current), entry.previous.as_ref()]
                    .into_iter()
                    .flatten()
                    .map(|version| &**version)
                    .collect();
                let about = snapshot::About {
                    name: entry.name.to_string(),
                    age: millis(now.since(confirmed)),
                    versions: versions.iter().map(|version| about(version)).collect(),
                };
                (
                    about,
                    versions.into_iter().map(Version::plaintext).collect(),
                )
            })
            .collect();
        let bytes = snapshot::seal(&key, &self.binding, &saved_now(), &secrets).map_err(|why| {
            CopyError::Sealed {
                path: self.path.clone(),
                why,
            }
        })?;
        files::replace(&self.path, &bytes).map_err(|why| CopyError::Write {
            path: self.path.clone(),
            why,
        })
    }
}

fn about(version: &Version) -> VersionAbout {
    VersionAbout {
        id: version.id().to_string(),
        updated_at: version.updated_at().to_owned(),
    }
}
