//! What is learnt of bots, kept in `state_dir`: names, times, counts and hashes of programs, never a value.
//!
//! It is written every few minutes, beside the requests. A file that cannot be read, or that somebody else could
//! have written, is told of and learning begins anew: nothing of this may stop the agent.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::habits::{Bot, Habits, Pace, Read, Unusual};
use super::held;
use crate::files::{self, Holds, Trust};
use crate::sources::engine::{elapsed, saved_now};
use crate::store::snapshot::Saved;

/// How often it is written: what a kill costs at most.
const PAUSE: Duration = Duration::from_secs(300);
/// More than all secrets with the longest names take.
const LARGEST: u64 = 32 << 20;
/// A clock that is set by less, in seconds, is as good as one that is not.
const FEW: i64 = 3600;

/// The habits of bots, and the file of them.
pub(super) struct Learnt {
    path: PathBuf,
    habits: Mutex<Habits>,
    /// When it last learnt.
    clock: Mutex<Saved>,
    is_news: AtomicBool,
}

/// What the file holds.
#[derive(Serialize, Deserialize)]
struct Kept {
    clock: Saved,
    bots: BTreeMap<Box<str>, Bot>,
}

impl Learnt {
    /// What `state_dir` remembers.
    pub(super) fn open(state_dir: &Path) -> io::Result<Arc<Self>> {
        let path = state_dir.join("learnt.json");
        let kept = load(&path).unwrap_or_else(|why| {
            tracing::error!(%why, "what was learnt of bots cannot be read: learning begins anew");
            None
        });
        let (clock, bots) = kept.map_or_else(
            || (saved_now(), HashMap::new()),
            |kept| (kept.clock, kept.bots.into_iter().collect()),
        );
        let learnt = Arc::new(Self {
            path,
            habits: Mutex::new(Habits::of(bots, now())),
            clock: Mutex::new(clock),
            is_news: AtomicBool::new(false),
        });
        let writing = Arc::downgrade(&learnt);
        let write = move || {
            loop {
                thread::sleep(PAUSE);
                let Some(learnt) = writing.upgrade() else {
                    return;
                };
                learnt.save();
            }
        };
        thread::Builder::new().name("learnt".into()).spawn(write)?;
        Ok(learnt)
    }

    /// Learns from a read.
    pub(super) fn saw(&self, read: &Read<'_>, learning: Duration) -> (Arc<Pace>, Vec<Unusual>) {
        self.is_news.store(true, Ordering::Relaxed);
        let set = self.clock_set();
        let mut habits = held(&self.habits);
        if set.abs() > FEW {
            habits.clock_was_set(set);
        }
        habits.saw(read, learning.as_secs())
    }

    /// By how many seconds the clock was set since it last learnt. Over a restart of the host nobody knows.
    fn clock_set(&self) -> i64 {
        let now = saved_now();
        let mut clock = held(&self.clock);
        let passed = elapsed(&clock, &now).as_millis();
        let set = i128::from(now.wall) - i128::from(clock.wall) - passed.cast_signed();
        *clock = now;
        i64::try_from(set / 1000).unwrap_or(0)
    }

    /// Whether it is to be told of that a bot asked for a version which it may use until `end`.
    pub(super) fn saw_outdated(&self, bot: &str, secret: &str, end: u64, now: u64) -> bool {
        held(&self.habits).saw_outdated(bot, secret, end, now)
    }

    /// Writes what is news.
    pub(super) fn save(&self) {
        if !self.is_news.swap(false, Ordering::Relaxed) {
            return;
        }
        // A bot at a time, so that no request waits for all of them.
        let names = held(&self.habits).bots();
        let bots: BTreeMap<Box<str>, Bot> = names
            .into_iter()
            .filter_map(|name| {
                let bot = held(&self.habits).bot(&name)?;
                Some((name, bot))
            })
            .collect();
        let clock = held(&self.clock).clone();
        let written = serde_json::to_vec(&Kept { clock, bots })
            .map_err(io::Error::from)
            .and_then(|text| files::replace(&self.path, &text));
        if let Err(error) = written {
            self.is_news.store(true, Ordering::Relaxed);
            let path = self.path.display();
            tracing::error!(%path, %error, "what was learnt of bots does not survive a restart");
        }
    }
}

fn load(path: &Path) -> Result<Option<Kept>, String> {
    let text = match files::read(path, Holds::Access, Trust::own(), LARGEST) {
        Ok(text) => text,
        Err(error) if error.is_absent() => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|error| format!("{}: {error}", path.display()))
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}
