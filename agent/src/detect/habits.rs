//! What each bot's reads are like, and the read that is not like them: pure, on a clock that is passed in.
//!
//! A bot is only watched until its learning time is over. Memory is constant for each bot and each secret that it
//! reads, and both are bounded: where something has to be forgotten, the bot it was of begins to learn anew, since it
//! could not be told from what is new. What was told of is learnt like anything else, so that it is told of once.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde::{Deserialize, Serialize};

use super::hours::{HOUR, Hours};
use super::rate::{DAY, Peaks, SLOT};

/// Secrets that are remembered, of all bots together.
pub const MOST: usize = 16_384;
/// Programs that are remembered of a bot.
const PROGRAMS: usize = 16;

/// A read that was granted.
#[derive(Clone, Copy, Debug)]
pub struct Read<'a> {
    /// Who read.
    pub bot: &'a str,
    /// What.
    pub secret: &'a str,
    /// SHA-256 of the program behind it, in hex, where the agent sees it.
    pub exe: Option<&'a str>,
    /// Seconds since 1970.
    pub now: u64,
    /// The number of its record.
    pub seq: Option<u64>,
}

/// In which way a read is unlike those before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unusual {
    /// The bot never read this secret.
    FirstRead,
    /// It never read it at such an hour.
    Hour,
    /// It never ran this program.
    Program,
    /// It never read as much within ten minutes.
    Rate {
        /// How much that is so far.
        reads: u64,
        /// What its habit reaches once in ten years.
        level: u64,
        /// The record of the first of these reads.
        since: Option<u64>,
    },
}

/// What is known of all bots.
#[derive(Default)]
pub struct Habits {
    bots: HashMap<Box<str>, Bot>,
    secrets: usize,
    /// The bots and secrets without habits whose outdated versions were told of on a day.
    told: HashSet<(Box<str>, Box<str>)>,
    told_on: u64,
}

/// What is known of one bot.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Bot {
    /// When it began to be watched, and its programs.
    since: u64,
    seen_programs_since: u64,
    /// SHA-256 of its programs, the one seen last at the end.
    programs: Vec<String>,
    peaks: Peaks,
    /// The hour that was told of last.
    odd_hour: u64,
    secrets: HashMap<Box<str>, Secret>,
    #[serde(skip)]
    counting: Counting,
}

/// What is known of one secret as a bot reads it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Secret {
    since: u64,
    hours: Hours,
    /// The day on which an outdated version of it was told of.
    stale_day: u64,
    #[serde(skip)]
    pace: Option<Arc<Pace>>,
}

/// The ten minutes that run.
#[derive(Clone, Debug, Default)]
struct Counting {
    slot: u64,
    level: Option<u64>,
    since: Option<u64>,
    tally: Arc<Tally>,
}

/// The reads of a bot in ten minutes, and how many more there may be before somebody looks.
#[derive(Debug, Default)]
struct Tally {
    reads: AtomicU64,
    limit: AtomicU64,
}

/// All that a repeated read looks at: whether its ten minutes were looked at, and how many reads there were.
#[derive(Debug)]
pub struct Pace {
    slot: AtomicU64,
    tally: Arc<Tally>,
}

impl Pace {
    /// Counts a read that is like the one before; false where it has to be looked at instead.
    #[must_use]
    pub fn keeps(&self, now: u64) -> bool {
        let Tally { reads, limit } = &*self.tally;
        let keeps =
            now / SLOT == self.slot.load(Relaxed) && reads.load(Relaxed) < limit.load(Relaxed);
        if keeps {
            reads.fetch_add(1, Relaxed);
        }
        keeps
    }
}

impl Habits {
    /// With what was known of these bots; what is too much of it is forgotten.
    #[must_use]
    pub fn of(bots: HashMap<Box<str>, Bot>, now: u64) -> Self {
        let secrets = bots.values().map(|bot| bot.secrets.len()).sum();
        let mut all = Self {
            bots,
            secrets,
            ..Self::default()
        };
        while all.secrets > MOST {
            all.forget_some(now);
        }
        all
    }

    /// The names of the bots that are known.
    #[must_use]
    pub fn bots(&self) -> Vec<Box<str>> {
        self.bots.keys().cloned().collect()
    }

    /// What is known of a bot, to be remembered.
    #[must_use]
    pub fn bot(&self, name: &str) -> Option<Bot> {
        let mut bot = self.bots.get(name)?.clone();
        bot.note_peak();
        Some(bot)
    }

    /// How many secrets are remembered, of all bots together.
    #[must_use]
    pub fn secrets(&self) -> usize {
        self.secrets
    }

    /// Learns from a read, of a bot that is watched for `learning` seconds before anything is told of it: what is
    /// unusual about it, and the pace by which it may be repeated.
    pub fn saw(&mut self, read: &Read<'_>, learning: u64) -> (Arc<Pace>, Vec<Unusual>) {
        let mut found = Vec::new();
        let bot = self
            .bots
            .entry(read.bot.into())
            .or_insert_with(|| Bot::begin(read.now));
        let before = bot.secrets.len();
        bot.saw_program(read, learning, &mut found);
        bot.count(read, &mut found);
        let pace = bot.saw_secret(read, learning, &mut found);
        self.secrets += bot.secrets.len() - before;
        if self.secrets > MOST {
            self.forget_some(read.now);
        }
        (pace, found)
    }

    /// Whether it is to be told of that a bot asked for a version which it may use until `end`: once a day.
    pub fn saw_outdated(&mut self, bot: &str, secret: &str, end: u64, now: u64) -> bool {
        if now <= end {
            return false;
        }
        let today = now / DAY;
        let known = self.bots.get_mut(bot);
        if let Some(secret) = known.and_then(|bot| bot.secrets.get_mut(secret)) {
            return std::mem::replace(&mut secret.stale_day, today) != today;
        }
        if std::mem::replace(&mut self.told_on, today) != today {
            self.told.clear();
        }
        self.told.len() < MOST && self.told.insert((bot.into(), secret.into()))
    }

    /// The clock was set by so many seconds: what is counted in time goes with it, so that no learning time is over
    /// at once, or never.
    pub fn clock_was_set(&mut self, by: i64) {
        for bot in self.bots.values_mut() {
            let sinces = [&mut bot.since, &mut bot.seen_programs_since];
            let secrets = bot.secrets.values_mut().map(|secret| &mut secret.since);
            for since in sinces.into_iter().chain(secrets) {
                *since = since.saturating_add_signed(by);
            }
            bot.peaks.shift(by / DAY.cast_signed());
            let slots = by / SLOT.cast_signed();
            bot.counting.slot = bot.counting.slot.saturating_add_signed(slots);
        }
    }

    /// Makes room: the bot with the most secrets loses those that it read longest ago, and learns anew.
    fn forget_some(&mut self, now: u64) {
        let most = self.bots.values_mut().max_by_key(|bot| bot.secrets.len());
        let Some(bot) = most else { return };
        let mut hours: Vec<u64> = bot.secrets.values().map(|s| s.hours.last()).collect();
        let mut surplus = hours.len() / 16 + 1;
        hours.sort_unstable();
        let oldest = hours.get(surplus - 1).copied().unwrap_or(u64::MAX);
        let before = bot.secrets.len();
        bot.secrets.retain(|_, secret| {
            let goes = secret.hours.last() <= oldest && surplus > 0;
            surplus -= usize::from(goes);
            !goes
        });
        bot.since = now;
        self.secrets -= before - bot.secrets.len();
        self.bots.retain(|_, bot| !bot.secrets.is_empty());
    }
}

impl Bot {
    fn begin(now: u64) -> Self {
        Self {
            since: now,
            ..Self::default()
        }
    }

    fn saw_program(&mut self, read: &Read<'_>, learning: u64, found: &mut Vec<Unusual>) {
        let Some(program) = read.exe else { return };
        if self.programs.last().is_some_and(|last| last == program) {
            return;
        }
        if self.programs.is_empty() {
            self.seen_programs_since = read.now;
        }
        if let Some(at) = self.programs.iter().position(|known| known == program) {
            self.programs[at..].rotate_left(1);
            return;
        }
        if is_over(self.seen_programs_since, learning, read.now) {
            found.push(Unusual::Program);
        }
        if self.programs.len() >= PROGRAMS {
            self.programs.remove(0);
            self.seen_programs_since = read.now;
        }
        self.programs.push(program.to_owned());
    }

    /// Counts the read in its ten minutes.
    fn count(&mut self, read: &Read<'_>, found: &mut Vec<Unusual>) {
        let slot = read.now / SLOT;
        if slot != self.counting.slot {
            self.note_peak();
            let level = self
                .peaks
                .level(self.since / DAY, read.now / DAY, self.secrets.len());
            let now = &mut self.counting;
            (now.slot, now.level, now.since) = (slot, level, read.seq);
            now.tally.reads.store(0, Relaxed);
            now.tally.limit.store(level.unwrap_or(u64::MAX), Relaxed);
        }
        let Counting { tally, since, .. } = &self.counting;
        let reads = tally.reads.fetch_add(1, Relaxed) + 1;
        if let Some(level) = self.counting.level
            && reads > tally.limit.load(Relaxed)
        {
            let since = *since;
            found.push(Unusual::Rate {
                reads,
                level,
                since,
            });
            // Told again where it is ten times as much.
            tally.limit.store(reads.saturating_mul(10), Relaxed);
        }
    }

    /// Notes the count of the ten minutes; one that was told of counts as its level, so that nobody makes a habit of
    /// it at once.
    fn note_peak(&mut self) {
        let Counting {
            slot, level, tally, ..
        } = &self.counting;
        let reads = tally.reads.load(Relaxed).min(level.unwrap_or(u64::MAX));
        self.peaks.note(slot * SLOT / DAY, reads);
    }

    fn saw_secret(
        &mut self,
        read: &Read<'_>,
        learning: u64,
        found: &mut Vec<Unusual>,
    ) -> Arc<Pace> {
        let is_settled = is_over(self.since, learning, read.now);
        let secret = self.secrets.entry(read.secret.into()).or_insert_with(|| {
            if is_settled {
                found.push(Unusual::FirstRead);
            }
            Secret {
                since: read.now,
                ..Secret::default()
            }
        });
        let hour = read.now / HOUR;
        let is_odd = secret.hours.note(hour) && is_over(secret.since, learning, read.now);
        if is_odd && std::mem::replace(&mut self.odd_hour, hour) != hour {
            found.push(Unusual::Hour);
        }
        let tally = &self.counting.tally;
        let pace = secret.pace.get_or_insert_with(|| {
            Arc::new(Pace {
                slot: AtomicU64::new(0),
                tally: Arc::clone(tally),
            })
        });
        pace.slot.store(read.now / SLOT, Relaxed);
        Arc::clone(pace)
    }
}

fn is_over(since: u64, learning: u64, now: u64) -> bool {
    now >= since.saturating_add(learning)
}

#[cfg(test)]
mod tests;
