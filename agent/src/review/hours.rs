//! Requests over time, and reads by hour of the week.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, UNIX_EPOCH};

use super::{Bucket, DAY};

/// More buckets than this are added up to days.
const BUCKETS: u64 = 24 * 8;
/// No timeline is longer, whatever a clock said that was set wrong.
const MOST_BUCKETS: u64 = 4_000;
const HOURS: usize = 7 * 24;

/// The columns of an hour.
pub(super) const ALLOWED: usize = 0;
pub(super) const DENIED: usize = 1;
pub(super) const ALERTS: usize = 2;

/// What was counted by hour.
#[derive(Default)]
pub(super) struct Hours {
    /// By hour, as `2026-01-31T12`.
    requests: HashMap<String, [u64; 3]>,
    /// By bot, for each hour of the week.
    reads: HashMap<String, Vec<u64>>,
    /// The date of the last read, and its day of the week.
    day: (String, usize),
}

impl Hours {
    /// Counts so many requests at that time.
    pub(super) fn at_hour(&mut self, time: &str, column: usize, count: u64) {
        let Some(hour) = time.get(..13) else {
            return;
        };
        if !self.requests.contains_key(hour) {
            self.requests.insert(hour.to_owned(), [0; 3]);
        }
        if let Some(counts) = self.requests.get_mut(hour) {
            counts[column] = counts[column].saturating_add(count);
        }
    }

    /// Counts a read of that bot.
    pub(super) fn at_hour_of_week(&mut self, bot: &str, time: &str) {
        let (Some(date), Some(hour)) = (time.get(..10), time.get(11..13)) else {
            return;
        };
        if self.day.0 != date {
            self.day = (date.to_owned(), weekday(date));
        }
        let hour = hour.parse::<usize>().unwrap_or(0).min(23);
        if !self.reads.contains_key(bot) {
            self.reads.insert(bot.to_owned(), vec![0; HOURS]);
        }
        if let Some(hours) = self.reads.get_mut(bot) {
            hours[self.day.1 * 24 + hour] += 1;
        }
    }

    /// Adds what another worker counted.
    pub(super) fn merge(&mut self, other: Self) {
        for (bot, hours) in other.reads {
            let own = self.reads.entry(bot).or_insert_with(|| vec![0; HOURS]);
            own.iter_mut()
                .zip(hours)
                .for_each(|(own, more)| *own += more);
        }
        for (hour, counts) in other.requests {
            let own = self.requests.entry(hour).or_default();
            *own = sums(*own, counts);
        }
    }

    /// Reads by hour of the week, of each bot.
    pub(super) fn heat(self) -> BTreeMap<String, Vec<u64>> {
        self.reads.into_iter().collect()
    }

    /// From the first hour to the last, those without a request too.
    pub(super) fn timeline(&self) -> Vec<Bucket> {
        let hours: BTreeMap<u64, [u64; 3]> = self
            .requests
            .iter()
            .filter_map(|(hour, counts)| Some((number_of(hour)?, *counts)))
            .collect();
        let ends = hours.first_key_value().zip(hours.last_key_value());
        let Some((first, last)) = ends.map(|((first, _), (last, _))| (*first, *last)) else {
            return Vec::new();
        };
        let (step, len) = if last - first < BUCKETS {
            (1, 13)
        } else {
            (24, 10)
        };
        let most = first / step + MOST_BUCKETS;
        let bucket = |at: u64| {
            let [allowed, denied, alerts] = hours
                .range(at * step..(at + 1) * step)
                .fold([0; 3], |all, (_, counts)| sums(all, *counts));
            let begins = UNIX_EPOCH + Duration::from_secs(at * step * 3600);
            let mut begins = humantime::format_rfc3339_seconds(begins).to_string();
            begins.truncate(len);
            Bucket {
                begins,
                allowed,
                denied,
                alerts,
            }
        };
        (first / step..=(last / step).min(most))
            .map(bucket)
            .collect()
    }
}

/// A flood's record may say any number.
fn sums(some: [u64; 3], more: [u64; 3]) -> [u64; 3] {
    [0, 1, 2].map(|at| some[at].saturating_add(more[at]))
}

/// The hours since 1970 of `2026-01-31T12`.
fn number_of(hour: &str) -> Option<u64> {
    let at = humantime::parse_rfc3339(&format!("{hour}:00:00Z")).ok()?;
    Some(at.duration_since(UNIX_EPOCH).ok()?.as_secs() / 3600)
}

/// The day of the week of `2026-01-31`, Monday first.
fn weekday(date: &str) -> usize {
    let midnight = humantime::parse_rfc3339(&format!("{date}T00:00:00Z")).ok();
    let since = midnight.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    // 1 January 1970 was a Thursday.
    let days = since.map_or(0, |since| since.as_secs() / DAY);
    usize::try_from((days + 3) % 7).unwrap_or(0)
}
