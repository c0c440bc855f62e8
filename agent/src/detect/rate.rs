//! How many reads in ten minutes are far above a bot's own habit: pure.
//!
//! The highest count of each of the last 28 days is kept. The highest of those, one for each week (so that a job of
//! once a week is among them), are the tail of the habit: its thickness is Hill's estimate (1975), and Weissman's
//! formula (1978) tells the count that such a tail reaches once in ten years. What is above that is no habit.

use serde::{Deserialize, Serialize};

/// Seconds in which reads are counted together.
pub const SLOT: u64 = 10 * 60;
pub(super) const DAY: u64 = 24 * 60 * 60;
/// Days that are remembered, and the fewest that say anything: one of each weekday.
const DAYS: u64 = 28;
const FEWEST: u64 = 7;
/// How rarely the habit itself may reach the level, in days: once in ten years.
const RETURNS: f64 = 3652.5;
/// How much load varies from peak to peak, squared, as far as nothing is known of the bot: by a quarter.
const VARIES: f64 = 1.0 / 16.0;

/// The highest count of each day.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Peaks {
    /// The last day that was noted, counted from 1970.
    day: u64,
    /// Of day `d` at `d % 28`.
    counts: [u32; DAYS as usize],
}

impl Peaks {
    /// Notes a count of `day`. An earlier day than was noted last, as after a clock was set back, tells nothing.
    pub(super) fn note(&mut self, day: u64, count: u64) {
        if day < self.day {
            return;
        }
        for passed in (self.day + 1..=day).rev().take(self.counts.len()) {
            self.counts[at(passed)] = 0;
        }
        self.day = day;
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        self.counts[at(day)] = self.counts[at(day)].max(count);
    }

    /// The count that the habit reaches once in ten years, judged on `today` by the whole days before it since
    /// `began`; `None` before there is a week of them.
    pub(super) fn level(&self, began: u64, today: u64) -> Option<u64> {
        let from = (began + 1).max(today.saturating_sub(DAYS));
        let days = today.checked_sub(from).filter(|days| *days >= FEWEST)?;
        let known = |day: &u64| *day <= self.day && day.saturating_add(DAYS) > self.day;
        let peak = |day| if known(&day) { self.counts[at(day)] } else { 0 };
        let mut peaks: Vec<f64> = (from..today).map(|day| f64::from(peak(day))).collect();
        peaks.sort_by(|one, other| other.total_cmp(one));
        let tail = (days / FEWEST).max(2);
        #[allow(clippy::cast_precision_loss)] // At most 28.
        let (tail_size, days) = (tail as f64, days as f64);
        let tail = &peaks[..usize::try_from(tail).unwrap_or(2)];
        let least = tail[tail.len() - 1].max(1.0);
        let spacings: f64 = tail.iter().map(|peak| (peak.max(1.0) / least).ln()).sum();
        // What few peaks tell of the spread is tempered by one more that knows none of them: counts vary by their
        // square root, load by a quarter.
        let thickness = (spacings + (1.0 / least + VARIES).sqrt()) / tail_size;
        let level = least * (RETURNS * tail_size / days).powf(thickness);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        // It saturates, and no count is as high.
        Some(level.ceil() as u64)
    }
}

fn at(day: u64) -> usize {
    usize::try_from(day % DAYS).unwrap_or(0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const FIRST: u64 = 20_000;

    fn after(peaks: impl IntoIterator<Item = u64>) -> Option<u64> {
        let mut all = Peaks::default();
        let mut today = FIRST;
        for peak in peaks {
            all.note(today, peak);
            today += 1;
        }
        all.level(FIRST - 1, today)
    }

    #[test]
    fn a_week_is_needed_and_the_level_is_some_times_a_steady_habit() {
        assert_eq!(after([100; 6]), None);
        let steady = after([100; 28]).unwrap();
        assert!((120..300).contains(&steady), "{steady}");
        let rare = after([1; 14]).unwrap();
        assert!((5..50).contains(&rare), "{rare}");
        assert_eq!(after([0; 14]), Some(rare), "never is as rare as once");
    }

    #[test]
    fn what_varies_more_has_a_higher_level() {
        let steady = after((0..28).map(|day| 100 + day % 3)).unwrap();
        let varied = after((0..28).map(|day| 20 + day * 37 % 101)).unwrap();
        assert!(varied > steady, "{varied} {steady}");
    }

    #[test]
    fn a_job_of_once_a_week_is_habit_from_its_second_time_on() {
        let weekly = |days: u64| (0..days).map(|day| if day % 7 == 3 { 5000 } else { 10 });
        let before = after(weekly(13)).unwrap();
        assert!(before > 5000, "{before}");
        for days in 14..60 {
            let level = after(weekly(days)).unwrap();
            assert!((6000..20_000).contains(&level), "{days}: {level}");
        }
    }

    #[test]
    fn days_without_reads_count_and_old_ones_are_forgotten() {
        let mut peaks = Peaks::default();
        peaks.note(FIRST, 9000);
        peaks.note(FIRST + 1, 9000);
        assert!(peaks.level(FIRST - 1, FIRST + 20).unwrap() > 9000);
        let later = peaks.level(FIRST - 1, FIRST + 40).unwrap();
        assert!(later < 50, "{later}");
        peaks.note(FIRST + 40, 7);
        assert!(peaks.level(FIRST - 1, FIRST + 41).unwrap() < 200);
        peaks.note(FIRST + 39, 9000);
        assert!(
            peaks.level(FIRST - 1, FIRST + 41).unwrap() < 200,
            "set back"
        );
    }
}
