//! When to ask an upstream again: jitter, backoff and the circuit breaker. Pure but for the dice.

use std::time::Duration;

use super::clock::Moment;

/// The shortest pause after a failure.
const SHORTEST: Duration = Duration::from_millis(200);
/// The longest pause after failures, however rarely the source is refreshed.
const LONGEST: Duration = Duration::from_secs(60);
/// The longest time that values of a sealed copy are served before anybody is asked.
const SETTLE: Duration = Duration::from_secs(10);
/// The longest time that an upstream can ask to be left alone.
const PATIENCE: Duration = Duration::from_secs(300);

/// How it stands with asking one upstream.
#[derive(Debug)]
pub struct Pace {
    refresh: Duration,
    failures: u32,
    /// Nothing is asked before.
    next: Moment,
}

/// A number from 0 up to 1.
pub fn dice() -> f64 {
    // Without random bytes the middle does: jitter is not a matter of safety.
    f64::from(getrandom::u32().unwrap_or(1 << 31)) / f64::from(u32::MAX)
}

impl Pace {
    /// To be asked at once; or, where last good values are served already, within a third of `refresh`, so that
    /// hosts that start together do not ask together.
    #[must_use]
    pub fn begin(refresh: Duration, now: Moment, serves: bool, dice: f64) -> Self {
        let pause = (refresh / 3).min(SETTLE).mul_f64(dice);
        Self {
            refresh,
            failures: 0,
            next: if serves { now + pause } else { now },
        }
    }

    /// When to refresh next.
    #[must_use]
    pub fn next(&self) -> Moment {
        self.next
    }

    /// Whether the last thing that was heard of the upstream was an outage.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.failures > 0
    }

    /// All is well: the next refresh is due after `refresh`, a tenth sooner or later.
    pub fn succeeded(&mut self, now: Moment, dice: f64) {
        self.failures = 0;
        self.next = now + self.refresh.mul_f64(0.9 + 0.2 * dice);
    }

    /// The upstream is down: asked again after a random part of a time that doubles (full jitter), and not
    /// before it wants to be.
    pub fn failed(&mut self, now: Moment, wanted: Option<Duration>, dice: f64) {
        let most = (self.refresh * 2).clamp(Duration::from_secs(1), LONGEST);
        let doubled = SHORTEST.saturating_mul(2_u32.saturating_pow(self.failures.min(20) + 1));
        self.failures = self.failures.saturating_add(1);
        let pause = doubled.min(most).mul_f64(dice).max(SHORTEST);
        self.next = now + pause.max(wanted.unwrap_or_default().min(PATIENCE));
    }
}

/// How many absent names may be looked up at once, and how many more each second.
const BURST: f64 = 100.0;
const A_SECOND: f64 = 20.0;

/// Bounds one user's questions about names that an upstream does not have.
#[derive(Debug)]
pub struct Budget {
    left: f64,
    at: Moment,
}

impl Budget {
    /// A full one.
    pub fn new(now: Moment) -> Self {
        Self {
            left: BURST,
            at: now,
        }
    }

    /// Whether another name may be asked for.
    pub fn allows(&mut self, now: Moment) -> bool {
        let refill = now.since(self.at).as_secs_f64() * A_SECOND;
        (self.left, self.at) = ((self.left + refill).min(BURST), now);
        self.left >= 1.0
    }

    /// One is being asked for.
    pub fn spend(&mut self) {
        self.left -= 1.0;
    }

    /// It was there.
    pub fn give_back(&mut self) {
        self.left = (self.left + 1.0).min(BURST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_refresh_jitters_by_a_tenth() {
        let now = Moment::now();
        assert_eq!(Pace::begin(30 * SECOND, now, false, 0.7).next(), now);
        let mut pace = Pace::begin(30 * SECOND, now, true, 0.5);
        assert_eq!(pace.next(), now + 5 * SECOND);
        for (dice, seconds) in [(0.0, 27.0), (0.5, 30.0), (1.0, 33.0)] {
            pace.succeeded(now, dice);
            let pause = pace.next().since(now).as_secs_f64();
            assert!((pause - seconds).abs() < 0.001, "{pause}");
        }
    }

    proptest! {
        #[test]
        fn pauses_grow_to_a_bound_and_never_vanish(refresh in 1u64..3600, throws in prop::collection::vec(0.0f64..=1.0, 1..40)) {
            let now = Moment::now();
            let mut pace = Pace::begin(Duration::from_secs(refresh), now, false, 0.0);
            for dice in throws {
                pace.failed(now, None, dice);
                let pause = pace.next().since(now);
                prop_assert!(pause >= SHORTEST && pause <= LONGEST);
                prop_assert!(pause <= (Duration::from_secs(refresh) * 2).max(SECOND));
            }
            prop_assert!(pace.is_open());
            pace.succeeded(now, 0.5);
            prop_assert!(!pace.is_open());
        }
    }

    #[test]
    fn an_upstream_that_wants_to_be_left_alone_is_within_reason() {
        let now = Moment::now();
        let mut pace = Pace::begin(30 * SECOND, now, false, 0.0);
        pace.failed(now, Some(20 * SECOND), 0.0);
        assert_eq!(pace.next().since(now), 20 * SECOND);
        pace.failed(now, Some(86_400 * SECOND), 0.0);
        assert_eq!(pace.next().since(now), PATIENCE);
    }

    #[test]
    fn absent_names_run_into_a_bound_that_refills() {
        let now = Moment::now();
        let mut budget = Budget::new(now);
        let mut asked = 0;
        while budget.allows(now) {
            budget.spend();
            asked += 1;
        }
        assert_eq!(asked, 100);
        assert!(budget.allows(now + SECOND));
    }
}
