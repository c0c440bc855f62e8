//! Time that goes on while the host sleeps and that nobody can set: `CLOCK_BOOTTIME`, since Linux 2.6.39.

use std::ops::{Add, Sub};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime};

use crate::store::snapshot::Saved;

/// A moment of this boot, or one before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(i128);

impl Moment {
    /// Now.
    #[must_use]
    pub fn now() -> Self {
        // The clock is there on every kernel that this program runs on.
        let time = clock_gettime(ClockId::CLOCK_BOOTTIME).unwrap_or(TimeSpec::new(0, 0));
        Self(i128::from(time.tv_sec()) * 1_000_000_000 + i128::from(time.tv_nsec()))
    }

    /// How long it is from `earlier` to here; nothing where that is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(u64::try_from(self.0 - earlier.0).unwrap_or(0))
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    fn add(self, span: Duration) -> Self {
        Self(self.0.saturating_add(nanos(span)))
    }
}

impl Sub<Duration> for Moment {
    type Output = Self;

    fn sub(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(nanos(span)))
    }
}

fn nanos(span: Duration) -> i128 {
    i128::try_from(span.as_nanos()).unwrap_or(i128::MAX)
}

/// What both clocks show now.
#[must_use]
pub fn saved_now() -> Saved {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH);
    Saved {
        wall: millis(wall.unwrap_or_default()),
        since_boot: u64::try_from(Moment::now().0 / 1_000_000).unwrap_or(0),
        boot: boot_id(),
    }
}

/// How long ago `then` was: exactly within one boot, by the wall clock over a restart of the host. A wall
/// clock that was set back counts as no time at all, never as less.
#[must_use]
pub fn elapsed(then: &Saved, now: &Saved) -> Duration {
    let passed = if then.boot == now.boot && !now.boot.is_empty() {
        now.since_boot.saturating_sub(then.since_boot)
    } else {
        now.wall.saturating_sub(then.wall)
    };
    Duration::from_millis(passed)
}

pub fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .unwrap_or_default()
        .trim()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved(wall: u64, since_boot: u64, boot: &str) -> Saved {
        Saved {
            wall,
            since_boot,
            boot: boot.into(),
        }
    }

    #[test]
    fn a_clock_that_was_set_back_makes_nothing_younger() {
        let then = saved(1_000_000, 5_000, "a");
        let passed = |now: Saved| elapsed(&then, &now).as_millis();
        assert_eq!(passed(saved(0, 9_000, "a")), 4_000, "the same boot");
        assert_eq!(passed(saved(1_060_000, 100, "b")), 60_000, "another boot");
        assert_eq!(
            passed(saved(5, 100, "b")),
            0,
            "another boot, clock set back"
        );
    }

    #[test]
    fn moments_add_up() {
        let now = Moment::now();
        let hour = Duration::from_secs(3600);
        assert_eq!((now + hour).since(now), hour);
        assert_eq!(now.since(now + hour), Duration::ZERO);
        assert_eq!(now.since(now - hour), hour);
    }
}
