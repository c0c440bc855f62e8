//! The bots that get nothing until an operator releases them, kept in `state_dir`.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::held;
use crate::files;

/// Why a bot is held, and since when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// RFC 3339.
    pub since: String,
    /// The rule that did it.
    pub rule: String,
    /// The record that it found.
    pub seq: Option<u64>,
}

/// All of them.
pub struct Quarantine {
    path: PathBuf,
    bots: Mutex<BTreeMap<String, Held>>,
    /// How many there are, to be seen without a lock: mostly none.
    count: AtomicUsize,
}

impl Quarantine {
    /// Those that `state_dir` remembers.
    pub(super) fn open(state_dir: &Path) -> io::Result<Self> {
        let path = state_dir.join("quarantine.json");
        let bots: BTreeMap<String, Held> = match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error),
        };
        Ok(Self {
            path,
            count: AtomicUsize::new(bots.len()),
            bots: Mutex::new(bots),
        })
    }

    /// Whether this bot is quarantined.
    #[must_use]
    pub fn holds(&self, bot: &str) -> bool {
        self.count.load(Ordering::Acquire) > 0 && held(&self.bots).contains_key(bot)
    }

    /// All of them by name.
    #[must_use]
    pub fn all(&self) -> BTreeMap<String, Held> {
        held(&self.bots).clone()
    }

    /// Quarantines a bot: at once, whether or not the disk takes it.
    pub(super) fn add(&self, bot: &str, rule: &str, seq: Option<u64>) {
        let since = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        let rule = rule.to_owned();
        let mut bots = held(&self.bots);
        bots.insert(bot.to_owned(), Held { since, rule, seq });
        self.count.store(bots.len(), Ordering::Release);
        if let Err(error) = self.save(&bots) {
            let path = self.path.display();
            tracing::error!(%path, %error, "the quarantine of {bot} does not survive a restart");
        }
    }

    /// Releases a bot once the disk says so, too; whether it was held.
    pub fn release(&self, bot: &str) -> io::Result<bool> {
        let mut bots = held(&self.bots);
        let mut fewer = bots.clone();
        if fewer.remove(bot).is_none() {
            return Ok(false);
        }
        self.save(&fewer)?;
        *bots = fewer;
        self.count.store(bots.len(), Ordering::Release);
        Ok(true)
    }

    fn save(&self, bots: &BTreeMap<String, Held>) -> io::Result<()> {
        files::replace(&self.path, &serde_json::to_vec(bots)?)
    }
}
