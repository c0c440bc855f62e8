//! In which hours of the day a bot reads a secret, and whether another is news: pure.
//!
//! A bot that reads at any hour now and then has always some that are new, so it is asked how likely a new one is.
//! That is Good and Turing's estimate (1953): the share of what was seen once only.

use serde::{Deserialize, Serialize};

pub(super) const HOUR: u64 = 60 * 60;
/// A new hour is news where its chance was less than one in this many.
const RARE: u64 = 10;

/// On how many days there were reads in each hour of the day, in UTC.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Hours {
    /// The last hour with a read, counted from 1970.
    last: u64,
    days: [u8; 24],
}

impl Hours {
    /// The last hour with a read, counted from 1970.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// Notes a read in `hour`; whether that is news. The hours beside one that is known are not: no clock strikes
    /// when a job begins, and some are moved twice a year.
    pub(super) fn note(&mut self, hour: u64) -> bool {
        if hour == self.last {
            return false;
        }
        self.last = hour;
        let at = usize::try_from(hour % 24).unwrap_or(0);
        let known = [at + 23, at, at + 1]
            .into_iter()
            .any(|hour| self.days[hour % 24] > 0);
        let news = !known && self.is_new_one_rare();
        self.days[at] = self.days[at].saturating_add(1);
        news
    }

    /// Whether a new hour comes in less than one of ten: one more day is added that would be such.
    fn is_new_one_rare(&self) -> bool {
        let once = self.days.iter().filter(|days| **days == 1).count() as u64;
        let all: u64 = self.days.iter().map(|days| u64::from(*days)).sum();
        (once + 1) * RARE < all + 1
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
    fn an_hour_far_from_a_daily_one_is_news_once_ten_days_tell_and_then_it_is_known() {
        let daily = |days: u64| reading((0..days).map(|day| 24 * day + 3));
        assert!(!daily(9).note(24 * 20 + 14), "too few days");
        let mut all = daily(14);
        assert!(!all.note(24 * 14 + 4), "beside it");
        let mut all = daily(14);
        assert!(all.note(24 * 14 + 14));
        assert!(!all.note(24 * 14 + 14), "the same hour");
        assert!(!all.note(24 * 15 + 14), "known by now");
    }

    #[test]
    fn the_day_is_a_circle() {
        let mut all = reading((1..15).map(|day| 24 * day + 23));
        assert!(!all.note(24 * 15), "an hour after 23");
    }

    #[test]
    fn who_reads_at_any_hour_does_nothing_new_by_another() {
        let mut all = reading((1..15).map(|day| 24 * day + day * 7 % 13));
        assert!(!all.note(24 * 15 + 20));
    }
}
