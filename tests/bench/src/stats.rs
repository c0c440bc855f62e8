//! Medians and quantiles of what was measured.

use std::time::Duration;

/// Latencies of one round; sorted when it is made.
pub struct Latencies(Vec<Duration>);

impl Latencies {
    pub fn new(mut all: Vec<Duration>) -> Self {
        all.sort_unstable();
        Self(all)
    }

    /// In microseconds, by the nearest rank; NaN where nothing was measured.
    pub fn quantile(&self, share: f64) -> f64 {
        // Truncation is the point: a rank is a whole number within the list.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let rank = (self.0.len() as f64 * share).ceil() as usize;
        let found = self.0.get(rank.saturating_sub(1));
        found.map_or(f64::NAN, |latency| latency.as_secs_f64() * 1e6)
    }
}

/// The middle value, or the mean of the two in the middle; NaN of nothing.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => sorted[odd / 2],
        even => f64::midpoint(sorted[even / 2 - 1], sorted[even / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_and_even_lists() {
        assert!((median(&[9.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(&[4.0, 1.0, 2.0, 9.0]) - 3.0).abs() < 1e-9);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn quantiles_are_of_the_nearest_rank() {
        let all = (1..=100).rev().map(Duration::from_micros).collect();
        let latencies = Latencies::new(all);
        assert!((latencies.quantile(0.50) - 50.0).abs() < 1e-6);
        assert!((latencies.quantile(0.99) - 99.0).abs() < 1e-6);
        assert!((latencies.quantile(1.0) - 100.0).abs() < 1e-6);
        assert!(Latencies::new(Vec::new()).quantile(0.5).is_nan());
    }
}
