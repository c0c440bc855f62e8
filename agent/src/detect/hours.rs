//! In which hours of the day a bot reads a secret, and whether another is news: pure.
//!
//! A bot that reads at any time of the day comes at a new hour now and then, so it is asked how likely that is for
//! this one, by how often it did so before (Laplace's rule of succession). Only where it is unlikely it is news.

use serde::{Deserialize, Serialize};

pub(super) const HOUR: u64 = 60 * 60;
/// So many hours around a known one are as good as known: clocks are moved twice a year, people stay late, and what
/// failed is run again.
const AROUND: u64 = 3;
/// A new hour is news where its chance is less than one in this many.
const RARE: u32 = 5;

/// The hours of the day, in UTC, in which a secret was ever read.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Hours {
    /// The last hour with a read, counted from 1970.
    last: u64,
    /// A bit for each hour of the day.
    known: u32,
    /// How many hours with a read there were, and how many of these were far from all that were known then.
    seen: u32,
    new: u32,
}

impl Hours {
    /// The last hour with a read, counted from 1970.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// Notes a read in `hour`; whether that is news.
    pub(super) fn note(&mut self, hour: u64) -> bool {
        if hour == self.last {
            return false;
        }
        self.last = hour;
        let around = (24 - AROUND..=24 + AROUND).map(|step| 1_u32 << ((hour + step) % 24));
        let is_new = self.known & around.fold(0, |all, bit| all | bit) == 0;
        let is_rare = (self.new + 1) * RARE < self.seen + 1;
        self.new = self.new.saturating_add((is_new && self.seen > 0).into());
        self.seen = self.seen.saturating_add(1);
        self.known |= 1 << (hour % 24);
        is_new && is_rare
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(hours: impl IntoIterator<Item = u64>) -> Hours {
        let mut all = Hours::default();
        for hour in hours {
            all.note(hour);
        }
        all
    }

    #[test]
    fn an_hour_far_from_a_daily_one_is_news_once_some_days_tell_and_then_it_is_known() {
        let daily = |days: u64| reading((0..days).map(|day| 24 * day + 3));
        assert!(!daily(4).note(24 * 20 + 14), "too few days");
        for near in [0, 6] {
            assert!(!daily(14).note(24 * 14 + near), "{near}");
        }
        let mut all = daily(14);
        assert!(all.note(24 * 14 + 7), "four hours off");
        assert!(!all.note(24 * 14 + 7), "the same hour");
        assert!(!all.note(24 * 15 + 7), "known by now");
        assert!(all.note(24 * 16 + 14), "one odd hour does not excuse all");
    }

    #[test]
    fn the_day_is_a_circle() {
        let mut all = reading((1..15).map(|day| 24 * day + 23));
        assert!(!all.note(24 * 15 + 2), "three hours after 23");
        let mut all = reading((1..15).map(|day| 24 * day));
        assert!(!all.note(24 * 15 + 21), "three hours before 0");
    }

    #[test]
    fn who_reads_at_any_hour_does_nothing_new_by_another() {
        let mut all = reading([0, 5, 10, 15].map(|hour| 24 * hour + hour));
        for day in 20..30 {
            all.note(24 * day + day % 4 * 5);
        }
        assert!(!all.note(24 * 30 + 19));
    }
}
