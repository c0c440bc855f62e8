//! When a rotation is due. Pure: from what is remembered and what the clocks show to what is to be done.
//!
//! A span counts from when the current value was set, by a clock that nobody can set and that goes on while the host
//! sleeps. A calendar names moments of the wall clock; each is done once, and those that passed while the host was off
//! are done as one.

use std::time::Duration;

use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::state::{Age, Due, Grace, Running, State, Step};
use crate::calendar::Calendar;
use crate::config::{Every, Rotation};
use crate::store::snapshot::Saved;

/// The first pause after a failure, where the rotation is not far more frequent, and the longest.
const PAUSE: Duration = Duration::from_secs(60);
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

/// The times of one rotation.
#[derive(Clone, Debug)]
pub struct Timing {
    every: Every,
    jitter: Duration,
    grace: Duration,
    /// What the jitter is drawn from: the host and the secret.
    seed: [u8; 32],
}

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Todo {
    /// Nothing before this has passed; `MAX` where nothing ever is.
    Wait(Duration),
    /// A rotation begins.
    Begin,
    /// The step of the one that is under way is done.
    Go,
    /// The grace time has ended.
    EndGrace,
}

impl Timing {
    /// Those of `rotation` on the host called `host` (any text that is its own and stays).
    #[must_use]
    pub fn of(rotation: &Rotation, host: &str) -> Self {
        let mut seed = Sha256::new();
        seed.update(host.as_bytes());
        seed.update([0]);
        seed.update(rotation.secret.as_str().as_bytes());
        Self {
            every: rotation.every.clone(),
            jitter: rotation.jitter,
            grace: rotation.grace,
            seed: seed.finalize().into(),
        }
    }

    /// Takes in what the secret's current version is and how old it is, and what the clocks show.
    pub fn look(&self, state: &mut State, version: &str, age: Duration, now: &Saved) {
        if state.seen.as_ref().is_none_or(|(seen, _)| seen != version) {
            state.see(version, Age::of(age, now));
        }
        let Every::Calendar(calendar) = &self.every else {
            state.due = None;
            return;
        };
        match &mut state.due {
            Some(due) if due.every == calendar.as_str() => {
                let Some(at) = due.at else { return };
                // A clock that was set back goes through moments again that were done; but one that was wrong by more
                // than the time between two of them says nothing about what is done.
                let latest = next(calendar, seconds(now).saturating_add(due.gap));
                due.at = Some(latest.map_or(at, |latest| at.min(latest)));
            }
            due => *due = Some(next_due(calendar, seconds(now))),
        }
    }

    /// What is to be done.
    #[must_use]
    pub fn todo(&self, state: &State, now: &Saved) -> Todo {
        if let Some(running) = &state.running {
            let left = self.pause_left(running, now);
            return if left.is_zero() {
                Todo::Go
            } else {
                Todo::Wait(left)
            };
        }
        let left = self.grace_left(state, now);
        if left == Some(Duration::ZERO) {
            return Todo::EndGrace;
        }
        // What comes due in a grace time waits for its end.
        let due = self.due_in(state, now).max(left.unwrap_or_default());
        match due.min(left.unwrap_or(Duration::MAX)) {
            Duration::ZERO => Todo::Begin,
            wait => Todo::Wait(wait),
        }
    }

    /// How long it is until the next rotation is due; `MAX` where none ever is.
    #[must_use]
    pub fn due_in(&self, state: &State, now: &Saved) -> Duration {
        match &self.every {
            Every::Span(span) => match &state.seen {
                Some((_, age)) => {
                    let due = span.saturating_add(self.later(state.count));
                    due.saturating_sub(age.read(now))
                }
                None => Duration::MAX,
            },
            Every::Calendar(_) => match state.due.as_ref().and_then(|due| due.at) {
                Some(at) => {
                    let at = u64::try_from(at).unwrap_or(0);
                    let due = Duration::from_secs(at).saturating_add(self.later(at));
                    due.saturating_sub(Duration::from_millis(now.wall))
                }
                None => Duration::MAX,
            },
        }
    }

    /// How much is left of the grace time, where there is one.
    #[must_use]
    pub fn grace_left(&self, state: &State, now: &Saved) -> Option<Duration> {
        let grace = state.grace.as_ref()?;
        Some(self.grace.saturating_sub(grace.age.read(now)))
    }

    /// Begins a rotation. What is due by now is thereby done.
    pub fn begin(
        &self,
        state: &mut State,
        unique: u64,
        request_id: String,
        since: String,
        now: &Saved,
    ) {
        let base = state.seen.as_ref().map(|(version, _)| version.clone());
        state.running = Some(Running {
            step: Step::Create,
            base: base.unwrap_or_default(),
            unique,
            request_id,
            since,
            failures: 0,
            failed: None,
            why: None,
        });
        self.pass(state, now);
    }

    /// The moment that is due by now, if one is, counts as done.
    pub fn pass(&self, state: &mut State, now: &Saved) {
        if let (Every::Calendar(calendar), Some(due)) = (&self.every, &mut state.due)
            && let Some(at) = due.at.filter(|at| *at <= seconds(now))
        {
            *due = next_due(calendar, at.max(seconds(now)));
        }
    }

    /// Whether the value was set after the moment that is due, so that somebody else has done what it was for.
    #[must_use]
    pub fn is_done(&self, state: &State, now: &Saved) -> bool {
        let since = |at: i64| {
            let at = Duration::from_secs(u64::try_from(at).unwrap_or(0));
            Duration::from_millis(now.wall).saturating_sub(at)
        };
        let due = state.due.as_ref().and_then(|due| due.at);
        matches!((&state.seen, due), (Some((_, age)), Some(at)) if age.read(now) < since(at))
    }

    /// The rotation under way has ended well: `version` is current, and `previous` stays for the grace time.
    pub fn done(&self, state: &mut State, version: &str, previous: Option<String>, now: &Saved) {
        state.running = None;
        state.count += 1;
        state.see(version, Age::zero(now));
        state.grace = previous.map(|previous| Grace {
            age: Age::zero(now),
            previous,
        });
    }

    /// How long it is until a step that failed is tried again.
    #[must_use]
    pub fn pause_left(&self, running: &Running, now: &Saved) -> Duration {
        let Some(failed) = &running.failed else {
            return Duration::ZERO;
        };
        let first = match &self.every {
            Every::Span(span) => (*span / 10).clamp(Duration::from_secs(1), PAUSE),
            Every::Calendar(_) => PAUSE,
        };
        let doubled = 2_u32.saturating_pow(running.failures.saturating_sub(1).min(20));
        let pause = first.saturating_mul(doubled).min(LONGEST_PAUSE);
        pause.saturating_sub(failed.read(now))
    }

    /// How much later than it is due the rotation called `which` begins: the same whenever one asks.
    fn later(&self, which: u64) -> Duration {
        let mut draw = Sha256::new();
        draw.update(self.seed);
        draw.update(which.to_be_bytes());
        let drawn: [u8; 32] = draw.finalize().into();
        let fraction = u32::from_be_bytes([drawn[0], drawn[1], drawn[2], drawn[3]]);
        self.jitter
            .mul_f64(f64::from(fraction) / f64::from(u32::MAX))
    }
}

/// The moment that follows `from`.
fn next_due(calendar: &Calendar, from: i64) -> Due {
    let at = next(calendar, from);
    Due {
        every: calendar.as_str().to_owned(),
        at,
        gap: at.map_or(0, |at| at - from),
    }
}

fn next(calendar: &Calendar, from: i64) -> Option<i64> {
    let from = Timestamp::from_second(from).ok()?;
    Some(calendar.next(from)?.as_second())
}

fn seconds(now: &Saved) -> i64 {
    i64::try_from(now.wall / 1000).unwrap_or(i64::MAX)
}

/// What this host is called in jitter: its machine id, which stays when it is renamed.
#[must_use]
pub fn host_seed() -> String {
    std::fs::read_to_string("/etc/machine-id").unwrap_or_default()
}

/// This host's name.
#[must_use]
pub fn own_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname");
    name.unwrap_or_default().trim().to_owned()
}

/// Whether this host is the one that a rotation names: by its name, or the first part of it.
#[must_use]
pub fn is_here(host: Option<&str>, own: &str) -> bool {
    host.is_none_or(|host| host == own || own.split('.').next() == Some(host))
}

#[cfg(test)]
mod tests;
