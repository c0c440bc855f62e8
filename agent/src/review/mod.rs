//! What the audit log says of bots, secrets and the policy over some time: `keyhatchd audit report`.
//!
//! `tally` counts lines on every core, and by `hours`; `rows` is what the report has of it; `grants` compares what was
//! used with what is granted; `text` and `html` show it; `ecs` and `ocsf` are single records in the words of a SIEM.
//! Everything that a peer chose is escaped where it is shown.

// A test may fail by a panic.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod ecs;
mod grants;
mod hours;
mod html;
mod ocsf;
mod rows;
mod tally;
#[cfg(test)]
mod tests;
mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, SystemTime};

use keyhatch_protocol::Name;
use serde::Serialize;
use serde_json::{Map, Value};

pub use ecs::ecs;
pub use grants::{Grant, Unused};
pub use html::html;
pub use ocsf::ocsf;
pub use text::text;

use crate::audit::{self, AuditError, Record, Span};
use crate::policy::Policy;
use tally::Tally;

/// In seconds.
const DAY: u64 = 24 * 60 * 60;
/// The most rows of one table; what is left out is counted.
const ROWS: usize = 2_000;
/// The most records that one alert shows as evidence.
const EVIDENCE: usize = 10;

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// Where the log is.
    pub dir: &'a Path,
    /// Not before; all of the log where it is not given.
    pub since: Option<SystemTime>,
    /// When the report is made.
    pub now: SystemTime,
    /// How old a secret may be before it should be rotated.
    pub rotate_within: Duration,
    /// What grants are compared with the log, if they are.
    pub policy: Option<&'a Policy>,
    /// Secrets that nobody has a reason to read: who did has not used a grant.
    pub honeytokens: &'a [Name],
}

/// What the log says.
#[derive(Debug, Default, Serialize)]
pub struct Review {
    /// When it was made.
    pub made: String,
    /// From when on; `None` for all of the log.
    pub since: Option<String>,
    /// The first and last record's time and number.
    pub first: Option<Moment>,
    /// The last one.
    pub last: Option<Moment>,
    /// How many of what.
    pub totals: Totals,
    /// Who read what.
    pub reads: Vec<Access>,
    /// Who was denied what.
    pub denied: Vec<Denied>,
    /// Grants that nobody used, or not all that have them.
    pub unused: Vec<Unused>,
    /// The roles cut down to what was used, to paste into the configuration; `None` where none was given.
    pub smaller_policy: Option<String>,
    /// Secrets that were read and not rotated for too long.
    pub unrotated: Vec<Unrotated>,
    /// How many days are too long.
    pub rotate_within_days: u64,
    /// Alerts, the newest first.
    pub alerts: Vec<Alert>,
    /// Reads by hour of the week (UTC), of each bot: 24 hours of Monday first.
    pub heat: BTreeMap<String, Vec<u64>>,
    /// Requests over time, by hour, or by day where that were too many.
    pub timeline: Vec<Bucket>,
    /// What else happened, the newest first.
    pub happened: Vec<Happened>,
}

/// A record's place in time.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Moment {
    /// Its number.
    pub seq: u64,
    /// Its time.
    pub time: String,
}

/// How many of what.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Totals {
    /// Records.
    pub records: u64,
    /// Those that allowed.
    pub allowed: u64,
    /// Those that denied.
    pub denied: u64,
    /// Denials that were counted in floods and have no record.
    pub flooded: u64,
    /// Alerts.
    pub alerts: u64,
    /// Records of reads and denials that are in no row, since there were too many.
    pub left_out: u64,
}

/// What one bot did with one secret.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Access {
    /// The bot.
    pub bot: String,
    /// The secret.
    pub secret: String,
    /// How often it was read.
    pub reads: u64,
    /// How often it was watched.
    pub watches: u64,
    /// How often it was used through a route.
    pub uses: u64,
    /// How often a rotation was asked for.
    pub rotations: u64,
    /// The first time of any.
    pub first: String,
    /// The last time.
    pub last: String,
}

/// What somebody was denied.
#[derive(Clone, Debug, Serialize)]
pub struct Denied {
    /// The bot, or the peer where it is none.
    pub who: String,
    /// The secret, if one was asked for.
    pub secret: Option<String>,
    /// Why.
    pub reason: String,
    /// How often.
    pub count: u64,
    /// The first time.
    pub first: String,
    /// The last time.
    pub last: String,
    /// The last record's number.
    pub seq: u64,
}

/// A secret that was not rotated for too long.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unrotated {
    /// The secret.
    pub secret: String,
    /// When it was rotated last; `None` where the log does not go back so far.
    pub rotated: Option<String>,
    /// For how many days it was not, at least.
    pub days: u64,
}

/// An alert.
#[derive(Clone, Debug, Serialize)]
pub struct Alert {
    /// Its number.
    pub seq: u64,
    /// Its time.
    pub time: String,
    /// Its event.
    pub event: String,
    /// The bot, if it is about one.
    pub bot: Option<String>,
    /// What it says.
    pub says: String,
    /// The records that it points to.
    pub evidence: Vec<Happened>,
    /// How many there are in all.
    pub evidence_count: usize,
}

/// A record in words.
#[derive(Clone, Debug, Serialize)]
pub struct Happened {
    /// Its number.
    pub seq: u64,
    /// Its time.
    pub time: String,
    /// What it says.
    pub says: String,
}

/// Requests in some time.
#[derive(Clone, Debug, Serialize)]
pub struct Bucket {
    /// When it begins, as `2026-01-31T12` or `2026-01-31`.
    pub begins: String,
    /// Requests that were allowed.
    pub allowed: u64,
    /// Denied, floods included.
    pub denied: u64,
    /// Alerts.
    pub alerts: u64,
}

/// Reads the log and counts.
pub fn review(ask: &Ask<'_>) -> Result<Review, AuditError> {
    let stamp = |at: SystemTime| humantime::format_rfc3339_micros(at).to_string();
    let since = ask.since.map(stamp);
    let from = since.clone().unwrap_or_default();
    // All of it, whatever is asked: a rotation may be long ago.
    let parts = audit::parts(ask.dir, Span::ALL)?;
    let counted = audit::fold(&parts, Tally::default, |tally, line| {
        tally.count(line, &from);
    })?;
    let tally = counted.into_iter().fold(Tally::default(), Tally::merge);
    let evidence = evidence(ask.dir, &tally)?;
    let mut used = tally.used();
    let is_trap = |secret: &str| ask.honeytokens.iter().any(|trap| trap.as_str() == secret);
    for of_bot in used.secrets.values_mut() {
        of_bot.retain(|access| !is_trap(&access.secret));
    }
    let roles = ask.policy.map(Policy::roles);
    let grants = roles.as_deref().map(|roles| grants::compare(roles, &used));
    let (unused, smaller_policy) = grants.unzip();
    let mut review = tally.into_review(&evidence, ask);
    review.made = stamp(ask.now);
    review.since = since;
    review.unused = unused.unwrap_or_default();
    review.smaller_policy = smaller_policy;
    Ok(review)
}

impl Review {
    /// Reads by hour of the week, of all bots together.
    fn week(&self) -> Vec<u64> {
        let mut sums = vec![0; 7 * 24];
        for hours in self.heat.values() {
            sums.iter_mut()
                .zip(hours)
                .for_each(|(sum, more)| *sum += more);
        }
        sums
    }
}

/// Which of `shades` stands for `count`: the first for none alone, the last for `most`.
fn shade(count: u64, most: u64, shades: usize) -> usize {
    if count == 0 || most == 0 {
        return 0;
    }
    let steps = shades as u64 - 1;
    usize::try_from((count * steps).div_ceil(most)).unwrap_or(0)
}

/// The records that alerts point to, in words.
fn evidence(dir: &Path, tally: &Tally) -> Result<BTreeMap<u64, Happened>, AuditError> {
    let wanted: BTreeSet<u64> = tally.evidence().collect();
    let mut found = BTreeMap::new();
    if wanted.is_empty() {
        return Ok(found);
    }
    let mut parts = audit::parts(dir, Span::ALL)?;
    parts.retain(|part| part.has_any(&wanted));
    let is_wanted = |line: &[u8]| audit::seq_of(line).is_some_and(|seq| wanted.contains(&seq));
    audit::stream(&parts, is_wanted, |line| {
        found.extend(Record::parse(line).map(|record| (record.seq, Happened::of(&record))));
        true
    })?;
    Ok(found)
}

/// Adds a member, unless there is nothing to say.
fn put(out: &mut Map<String, Value>, key: &str, value: impl Serialize) {
    match serde_json::to_value(value) {
        Ok(Value::Null) | Err(_) => {}
        Ok(Value::Object(members)) if members.is_empty() => {}
        Ok(value) => drop(out.insert(key.to_owned(), value)),
    }
}

impl Happened {
    fn of(record: &Record) -> Self {
        Self {
            seq: record.seq,
            time: record.time.clone(),
            says: audit::sentence(record),
        }
    }
}
