//! The highest store generation that was accepted of each source, kept in `state_dir`.
//!
//! The store itself cannot show that it is an older copy; this file can. It names the store, too: another
//! one in its place, even under the same key, is not what was accepted.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::files;

/// What was accepted last of one source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// The store's id in hexadecimal.
    pub store: String,
    /// Its generation.
    pub generation: u64,
}

/// The file of all sources.
pub struct Memory {
    path: PathBuf,
}

impl Memory {
    /// The file in `state_dir`.
    pub fn new(state_dir: &Path) -> Self {
        Self {
            path: state_dir.join("accepted.json"),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What was accepted last; `None` before the first time.
    pub fn get(&self, source: &str) -> io::Result<Option<Accepted>> {
        Ok(self.read()?.remove(source))
    }

    /// Remembers, synced to disk before it returns.
    pub fn set(&self, source: &str, accepted: Accepted) -> io::Result<()> {
        let mut all = self.read()?;
        if all.get(source) == Some(&accepted) {
            return Ok(());
        }
        all.insert(source.to_owned(), accepted);
        files::replace(&self.path, &serde_json::to_vec(&all)?)
    }

    fn read(&self) -> io::Result<BTreeMap<String, Accepted>> {
        match fs::read(&self.path) {
            Ok(text) => Ok(serde_json::from_slice(&text)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(error) => Err(error),
        }
    }
}
