//! How many reads in ten minutes are far above a bot's own habit: pure.
//!
//! The highest count of each of the last 28 days is kept. The one that is reached once a week is the habit: a job of
//! once a week is in it. How much habit varies is the median change between a day and the same weekday a week later, so
//! that neither that job nor a single accident counts as variation. Beyond its weekly level a tail of that spread is
//! extrapolated to the count that it reaches once in ten years (Weissman 1978). What is above that, and above what
//! restarts read, is no habit.

use serde::{Deserialize, Serialize};

/// Seconds in which reads are counted together.
pub const SLOT: u64 = 10 * 60;
pub(super) const DAY: u64 = 24 * 60 * 60;
/// Days that are remembered, and the fewest that say anything: two of each weekday.
const DAYS: u64 = 28;
const WEEK: u64 = 7;
const FEWEST: u64 = 2 * WEEK;
/// How rarely the habit itself may reach the level, in weeks: once in ten years.
const RETURNS: f64 = 521.8;
/// Counts vary by a quarter at the least, whatever was seen so far.
const LEAST_SPREAD: f64 = 0.25;
/// The median of what changes between two draws, in standard deviations of one (normal logarithms).
const MEDIAN_CHANGE: f64 = 0.954;
/// How far the normal tail lies beyond the level of once a week on average, in standard deviations.
const MEAN_EXCESS: f64 = 0.51;
/// How often systemd starts a unit that fails (`StartLimitBurst=`), each time with all its secrets to be read.
const RESTARTS: u64 = 5;

/// Those, and today.
const RING: usize = 29;

/// The highest count of each day.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Peaks {
    /// The last day that was noted, counted from 1970.
    day: u64,
    /// Of day `d` at `d % 29`.
    counts: [u32; RING],
}

impl Peaks {
    /// The days are others: the clock was set by so many.
    pub(super) fn shift(&mut self, days: i64) {
        let newest = at(self.day);
        self.day = self.day.saturating_add_signed(days);
        self.counts
            .rotate_right((at(self.day) + RING - newest) % RING);
    }

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

    /// The count that the habit of a bot with so many secrets reaches once in ten years, judged on `today` by the whole
    /// days before it since `began`; `None` before there are two weeks of them.
    pub(super) fn level(&self, began: u64, today: u64, secrets: usize) -> Option<u64> {
        let from = (began + 1).max(today.saturating_sub(DAYS));
        let days = today.checked_sub(from).filter(|days| *days >= FEWEST)?;
        let known = |day: &u64| *day <= self.day && day.saturating_add(RING as u64) > self.day;
        let peak = |day| if known(&day) { self.counts[at(day)] } else { 0 };
        let spread = median((from + WEEK..today).map(|day| {
            let (then, now) = (f64::from(peak(day - WEEK)), f64::from(peak(day)));
            ((now + 1.0) / (then + 1.0)).ln().abs()
        })) / MEDIAN_CHANGE;
        let mut peaks: Vec<u32> = (from..today).map(peak).collect();
        peaks.sort_unstable();
        // A job of once a week may miss one.
        let weeks = usize::try_from(days / WEEK).unwrap_or(2);
        let weekly = f64::from(peaks[peaks.len() - (weeks - 1).max(2)].max(1));
        // Counts vary by their square root, too.
        let spread = (spread.max(LEAST_SPREAD).powi(2) + 1.0 / weekly).sqrt();
        let level = weekly * RETURNS.powf(MEAN_EXCESS * spread);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        // It saturates, and no count is as high.
        Some((level.ceil() as u64).saturating_add(RESTARTS * secrets as u64))
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut all: Vec<f64> = values.collect();
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or_default()
}

fn at(day: u64) -> usize {
    usize::try_from(day % RING as u64).unwrap_or(0)
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
        all.level(FIRST - 1, today, 1)
    }

    #[test]
    fn two_weeks_are_needed_and_the_level_is_some_times_a_steady_habit() {
        assert_eq!(after([100; 13]), None);
        let steady = after([100; 28]).unwrap();
        assert!((150..300).contains(&steady), "{steady}");
        let rare = after([1; 14]).unwrap();
        assert!((10..50).contains(&rare), "{rare}");
        assert_eq!(after([0; 14]), Some(rare), "never is as rare as once");
    }

    #[test]
    fn what_varies_more_has_a_higher_level_and_one_accident_changes_nothing() {
        let steady = after((0..28).map(|day| 100 + day % 3)).unwrap();
        let varied = after((0..28).map(|day| 20 + day * 37 % 101)).unwrap();
        assert!(varied > 2 * steady, "{varied} {steady}");
        let accident = after((0..28).map(|day| if day == 20 { 900 } else { 100 + day % 3 }));
        assert_eq!(accident, Some(steady));
    }

    #[test]
    fn a_job_of_once_a_week_is_habit() {
        let weekly = |day| if day % 7 == 3 { 5000 } else { 10 };
        for days in 14..60 {
            let level = after((0..days).map(weekly)).unwrap();
            assert!((7000..20_000).contains(&level), "{days}: {level}");
        }
        let mut all = Peaks::default();
        (0..36).for_each(|day| all.note(FIRST + day, weekly(day)));
        let level = all.level(FIRST - 1, FIRST + 35, 1);
        assert_eq!(
            level,
            after((0..35).map(weekly)),
            "on a day that was noted already"
        );
    }

    #[test]
    fn restarts_are_no_more_than_habit_allows() {
        let mut all = Peaks::default();
        (0..14).for_each(|day| all.note(FIRST + day, 10));
        let level = |secrets| all.level(FIRST - 1, FIRST + 14, secrets).unwrap();
        assert_eq!(level(10), level(0) + 50);
    }

    #[test]
    fn days_without_reads_count_and_old_ones_are_forgotten() {
        let mut all = Peaks::default();
        (0..3).for_each(|day| all.note(FIRST + day, 9000));
        let level = |all: &Peaks, day| all.level(FIRST - 1, FIRST + day, 0).unwrap();
        assert!(level(&all, 20) > 9000);
        assert!(level(&all, 40) < 50);
        all.note(FIRST + 40, 7);
        assert!(level(&all, 41) < 200);
        all.note(FIRST + 39, 9000);
        assert!(level(&all, 41) < 200, "the clock was set back");
    }
}
