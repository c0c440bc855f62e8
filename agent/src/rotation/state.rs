//! What is remembered of the rotations over restarts: one small file in `state_dir`, without any value.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use keyhatch_protocol::Name;
use serde::{Deserialize, Serialize};

use crate::exec::STEPS;
use crate::files::{self, Holds};
use crate::sources::engine::elapsed;
use crate::store::snapshot::Saved;

/// A step of a rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// A new value is made, and kept as pending.
    Create,
    /// It is brought to what will accept it.
    Set,
    /// It is tried.
    Test,
    /// It becomes the current one.
    Finish,
}

impl Step {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        STEPS[self as usize]
    }

    /// The step after it.
    #[must_use]
    pub fn next(self) -> Self {
        match self {
            Self::Create => Self::Set,
            Self::Set => Self::Test,
            Self::Test | Self::Finish => Self::Finish,
        }
    }
}

/// How long ago something was, as far as the clocks can tell: exactly within one boot of the host, by the wall clock
/// over its restarts. A wall clock that was set back costs at most what passed since the last [`keep`](Self::keep).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Age {
    /// Milliseconds that had passed by `at`.
    passed: u64,
    at: Saved,
}

impl Age {
    /// Of something that was `ago` now.
    #[must_use]
    pub fn of(ago: Duration, now: &Saved) -> Self {
        Self {
            passed: u64::try_from(ago.as_millis()).unwrap_or(u64::MAX),
            at: now.clone(),
        }
    }

    /// Of something that is now.
    #[must_use]
    pub fn zero(now: &Saved) -> Self {
        Self::of(Duration::ZERO, now)
    }

    /// How long ago it is now.
    #[must_use]
    pub fn read(&self, now: &Saved) -> Duration {
        Duration::from_millis(self.passed).saturating_add(elapsed(&self.at, now))
    }

    /// Notes what has passed, for a time when these clocks no longer tell.
    pub fn keep(&mut self, now: &Saved) {
        *self = Self::of(self.read(now), now);
    }
}

/// What is remembered of one rotation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// How many have ended well.
    pub count: u64,
    /// The version that was current when it was looked at last, and how old it is.
    pub seen: Option<(String, Age)>,
    /// For a calendar: the moment that comes next.
    pub due: Option<Due>,
    /// The rotation that is under way.
    pub running: Option<Running>,
    /// The grace time of the last one.
    pub grace: Option<Grace>,
    /// How the last one ended.
    pub last: Option<Last>,
    /// The version that the unit of `on_rotated` has yet to be told of.
    #[serde(default)]
    pub untold: Option<String>,
    /// Why it could not be told of the one before.
    #[serde(default)]
    pub not_told: Option<String>,
}

/// A moment of a calendar.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Due {
    /// The expression that it is of.
    pub every: String,
    /// Seconds since 1970; `None` where none comes any more.
    pub at: Option<i64>,
    /// Seconds between it and the one before, or the moment when it was looked for.
    pub gap: i64,
}

/// A rotation that is under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// The step that is done, or to be done again.
    pub step: Step,
    /// The version that was current when it began.
    pub base: String,
    /// What ends the new version: drawn at the start, so that it is known before the value is.
    pub unique: u64,
    /// The id of the request that it was asked with, or one of its own.
    pub request_id: String,
    /// When it began, RFC 3339.
    pub since: String,
    /// How often a step has failed.
    #[serde(default)]
    pub failures: u32,
    /// How long ago it failed last; `None` while it goes on.
    #[serde(default)]
    pub failed: Option<Age>,
    /// Why it failed last, and at which step.
    #[serde(default)]
    pub why: Option<(Step, String)>,
}

impl Running {
    /// The step failed: it is tried again after a pause that doubles.
    pub fn failed(&mut self, why: String, now: &Saved) {
        self.failures = self.failures.saturating_add(1);
        self.failed = Some(Age::zero(now));
        self.why = Some((self.step, why));
        // The value that was made stays the one that is tried; what was done with it is done again.
        if self.step != Step::Create {
            self.step = Step::Set;
        }
    }
}

/// A grace time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grace {
    /// How long it has lasted.
    pub age: Age,
    /// The version that goes when it ends.
    pub previous: String,
}

/// How a rotation ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Last {
    /// When, RFC 3339.
    pub at: String,
    /// The new version; `None` where it was given up.
    pub version: Option<String>,
    /// Why it was given up.
    #[serde(default)]
    pub why: Option<String>,
}

impl State {
    /// Takes in which version is current, and how old it is. One that follows another is yet to be told of.
    pub fn see(&mut self, version: &str, age: Age) {
        let before = self.seen.replace((version.to_owned(), age));
        if before.is_some_and(|(before, _)| before != version) {
            self.untold = Some(version.to_owned());
        }
    }

    /// Notes what has passed of every time that is being measured.
    pub fn keep(&mut self, now: &Saved) {
        let seen = self.seen.as_mut().map(|(_, age)| age);
        let grace = self.grace.as_mut().map(|grace| &mut grace.age);
        let failed = self
            .running
            .as_mut()
            .and_then(|running| running.failed.as_mut());
        for age in [seen, grace, failed].into_iter().flatten() {
            age.keep(now);
        }
    }
}

/// The file of all rotations.
pub struct Memory(PathBuf);

impl Memory {
    /// The file in `state_dir`.
    pub fn new(state_dir: &Path) -> Self {
        Self(state_dir.join("rotation.json"))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// What is remembered; nothing before the first time.
    ///
    /// # Errors
    /// What is wrong with the file, and what to do.
    pub fn load(&self) -> Result<BTreeMap<Name, State>, String> {
        let text = files::recall(&self.0, Holds::Access).map_err(|error| error.to_string())?;
        let Some(text) = text else {
            return Ok(BTreeMap::new());
        };
        serde_json::from_slice(&text).map_err(|why| {
            let path = self.0.display();
            format!("{path}: {why}; put a good copy back, or remove it: what is due then counts from the values' ages")
        })
    }

    /// Remembers, synced to disk before it returns.
    pub fn save(&self, all: &BTreeMap<Name, State>) -> io::Result<()> {
        files::replace(&self.0, &serde_json::to_vec(all)?)
    }
}
