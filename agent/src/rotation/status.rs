//! How each rotation stands, for operators and for metrics. Never holds a value.

use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::handle::Plan;
use super::schedule::Timing;
use super::state::State;
use crate::store::snapshot::Saved;

/// How one rotation stands.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// Of which secret.
    pub secret: String,
    /// How often, or when.
    pub every: String,
    /// By what.
    pub driver: &'static str,
    /// `waiting`, `running`, `failing`, `in_grace`, `elsewhere` or `absent`.
    pub state: &'static str,
    /// When the last one ended, RFC 3339.
    pub last: Option<String>,
    /// How it ended: `done` or `given up`.
    pub result: Option<&'static str>,
    /// The version that it brought.
    pub version: Option<String>,
    /// When the next one begins, or a failed step is tried again, RFC 3339.
    pub next: Option<String>,
    /// When the grace time ends.
    pub grace_until: Option<String>,
    /// The step of the one under way.
    pub step: Option<&'static str>,
    /// How often it has failed.
    pub failures: u32,
    /// Why it failed last, or was given up.
    pub why: Option<String>,
    /// The host that does it.
    pub host: Option<String>,
    /// The unit that is told of a new version.
    pub unit: Option<String>,
    /// Why it could not be told of the last one.
    pub not_told: Option<String>,
}

/// How the rotation of `plan` stands now.
pub fn of(plan: &Plan, state: &State, now: &Saved) -> Status {
    let timing = &plan.timing;
    let grace = timing.grace_left(state, now).filter(|left| !left.is_zero());
    let (word, next) = how(plan, timing, state, grace, now);
    let running = state.running.as_ref();
    let last = state.last.as_ref();
    let failed = running.and_then(|running| running.why.as_ref());
    Status {
        secret: plan.rotation.secret.to_string(),
        every: plan.rotation.every.text(),
        driver: plan.rotation.driver.word(),
        state: word,
        last: last.map(|last| last.at.clone()),
        result: last.map(|last| {
            if last.version.is_some() {
                "done"
            } else {
                "given up"
            }
        }),
        version: last.and_then(|last| last.version.clone()),
        next: next.and_then(|wait| later(now, wait)),
        grace_until: grace.and_then(|left| later(now, left)),
        step: failed
            .map(|(step, _)| *step)
            .or(running.map(|running| running.step))
            .map(super::Step::as_str),
        failures: running.map_or(0, |running| running.failures),
        why: failed
            .map(|(_, why)| why.clone())
            .or_else(|| last.and_then(|last| last.why.clone())),
        host: plan.rotation.host.clone(),
        unit: plan.rotation.on_rotated.as_ref().map(|on| on.unit.clone()),
        not_told: state.not_told.clone().filter(|_| plan.tells()),
    }
}

fn how(
    plan: &Plan,
    timing: &Timing,
    state: &State,
    grace: Option<Duration>,
    now: &Saved,
) -> (&'static str, Option<Duration>) {
    if !plan.here {
        return ("elsewhere", None);
    }
    if let Some(running) = &state.running {
        let pause = timing.pause_left(running, now);
        let word = if running.failures > 0 {
            "failing"
        } else {
            "running"
        };
        return (word, Some(pause).filter(|pause| !pause.is_zero()));
    }
    if state.seen.is_none() {
        return ("absent", None);
    }
    let due = timing.due_in(state, now).max(grace.unwrap_or_default());
    let word = if grace.is_some() {
        "in_grace"
    } else {
        "waiting"
    };
    (word, Some(due))
}

/// The time on the wall clock after `wait`.
fn later(now: &Saved, wait: Duration) -> Option<String> {
    let then = Duration::from_millis(now.wall).checked_add(wait)?;
    // The last time that can be written so is at the end of the year 9999.
    (then.as_secs() < 253_402_300_800)
        .then(|| humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + then).to_string())
}
