//! How much of a route each bot takes, and what was done with it in all.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::config::RouteLimits;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// No single answer is paid off for longer than a day, whatever it says.
const LONGEST: f64 = 86400.0;

/// The bounds, and what each bot uses of them.
pub struct Usage {
    limits: RouteLimits,
    counters: Counters,
    bots: Mutex<Bots>,
}

#[derive(Default)]
struct Bots {
    each: HashMap<Box<str>, OfBot>,
    /// What the costliest answer cost, whoever's it was.
    most: f64,
}

/// What one bot uses.
struct OfBot {
    streams: u32,
    /// When its requests so far are paid off, at the rate it may ask: at most a minute ahead.
    paid: Instant,
    /// When what its answers cost so far is paid off, at the rate it may spend.
    spent: Instant,
}

/// What was done with a route since it was set up.
#[derive(Default)]
pub struct Counters {
    /// Requests that took a turn.
    pub requests: AtomicU64,
    /// Those of them that the upstream gave no whole answer to.
    pub failed: AtomicU64,
    /// Requests over a limit.
    pub limited: AtomicU64,
    /// Answers in which the secret was found.
    pub masked: AtomicU64,
    /// Requests under way.
    pub open: AtomicU64,
    /// Bytes of bodies to the upstream.
    pub sent: AtomicU64,
    /// Bytes of bodies from it.
    pub received: AtomicU64,
}

/// What of a route's bounds stands against a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Its name in the configuration.
    pub name: &'static str,
    /// When to come back; where that is no use, nothing.
    pub retry_after: Option<Duration>,
    /// What the bot is told.
    pub detail: String,
}

impl Limit {
    /// A limit that gives way with time.
    fn until(name: &'static str, retry_after: Duration) -> Self {
        Self {
            name,
            retry_after: Some(retry_after),
            detail: format!("over the limit {name} of this route"),
        }
    }

    /// One that does not.
    #[must_use]
    pub fn never(name: &'static str, detail: String) -> Self {
        Self {
            name,
            retry_after: None,
            detail,
        }
    }

    /// A reload made another route of it than the one that the request was judged by.
    #[must_use]
    pub fn changed() -> Self {
        Self {
            name: "reload",
            retry_after: Some(Duration::from_secs(1)),
            detail: "a reload changed this route while the call waited, make it again".into(),
        }
    }

    /// Too many requests wait for an operator.
    #[must_use]
    pub fn waits() -> Self {
        Self::until("approve", Duration::from_secs(30))
    }
}

/// One request under way, counted until it is dropped.
pub struct Turn {
    usage: Arc<Usage>,
    bot: Box<str>,
}

impl Usage {
    pub(super) fn new(limits: RouteLimits) -> Self {
        Self {
            limits,
            counters: Counters::default(),
            bots: Mutex::default(),
        }
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.counters
    }

    pub(super) fn turn(usage: &Arc<Self>, bot: &str) -> Result<Turn, Limit> {
        usage.take(bot, Instant::now()).inspect_err(|_| {
            usage.counters.limited.fetch_add(1, Relaxed);
        })?;
        usage.counters.requests.fetch_add(1, Relaxed);
        usage.counters.open.fetch_add(1, Relaxed);
        Ok(Turn {
            usage: Arc::clone(usage),
            bot: bot.into(),
        })
    }

    fn take(&self, bot: &str, now: Instant) -> Result<(), Limit> {
        let mut bots = self.bots();
        let of_bot = bots.each.entry(bot.into()).or_insert(OfBot {
            streams: 0,
            paid: now,
            spent: now,
        });
        let ahead = of_bot.spent.saturating_duration_since(now);
        if self.limits.spend.is_some() && ahead >= HOUR {
            // Until a minute's worth is paid off, so that it is of some use.
            return Err(Limit::until("spend", ahead.saturating_sub(HOUR) + MINUTE));
        }
        if self
            .limits
            .streams
            .is_some_and(|most| of_bot.streams >= most)
        {
            return Err(Limit::until("streams", Duration::from_secs(1)));
        }
        if let Some(requests) = self.limits.requests_per_minute {
            let paid = of_bot.paid.max(now) + MINUTE / requests;
            let ahead = paid.duration_since(now);
            if ahead > MINUTE {
                let wait = ahead.saturating_sub(MINUTE);
                return Err(Limit::until("requests_per_minute", wait));
            }
            of_bot.paid = paid;
        }
        of_bot.streams += 1;
        Ok(())
    }

    /// Counts what an answer cost. One that was cut short before it said so counts as the costliest before it, and
    /// as a minute's worth where there is none: who always cuts them pays, too.
    fn charge(&self, bot: &str, cost: Option<f64>, complete: bool, now: Instant) {
        let Some(spend) = &self.limits.spend else {
            return;
        };
        let per_hour = f64::from(spend.per_hour);
        let mut bots = self.bots();
        let unsaid = match bots.most {
            _ if complete => 0.0,
            0.0 => per_hour / 60.0,
            most => most,
        };
        bots.most = bots.most.max(cost.unwrap_or_default());
        if let Some(of_bot) = bots.each.get_mut(bot) {
            let cost = cost.unwrap_or(unsaid).max(0.0);
            let time = (HOUR.as_secs_f64() * cost / per_hour).min(LONGEST);
            of_bot.spent = of_bot.spent.max(now) + Duration::from_secs_f64(time);
        }
    }

    fn bots(&self) -> MutexGuard<'_, Bots> {
        self.bots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn {
    /// Counts what its answer said that it cost.
    pub fn charge(&self, cost: Option<f64>, complete: bool) {
        self.usage.charge(&self.bot, cost, complete, Instant::now());
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.usage.counters.open.fetch_sub(1, Relaxed);
        if let Some(of_bot) = self.usage.bots().each.get_mut(&self.bot) {
            of_bot.streams -= 1;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::config::{Cost, Spend};

    fn usage(requests_per_minute: Option<u32>, streams: Option<u32>) -> Arc<Usage> {
        Arc::new(Usage::new(RouteLimits {
            requests_per_minute,
            streams,
            ..RouteLimits::default()
        }))
    }

    #[test]
    fn a_minutes_worth_at_once_and_then_at_the_rate() {
        let usage = usage(Some(30), None);
        let now = Instant::now();
        let allowed = (0..40).filter(|_| usage.take("b", now).is_ok()).count();
        assert_eq!(allowed, 30);
        let limit = usage.take("b", now).unwrap_err();
        assert_eq!(
            (limit.name, limit.retry_after),
            ("requests_per_minute", Some(Duration::from_secs(2)))
        );
        assert!(usage.take("other", now).is_ok());
        let later = now + Duration::from_secs(2);
        assert!(usage.take("b", later).is_ok());
        assert!(usage.take("b", later).is_err());
    }

    #[test]
    fn what_is_spent_in_an_hour() {
        let usage = Arc::new(Usage::new(RouteLimits {
            spend: Some(Spend {
                cost: Cost::Pointer(vec!["x".into()]),
                per_hour: 1000,
            }),
            ..RouteLimits::default()
        }));
        let now = Instant::now();
        let is_open = |after: u64| usage.take("b", now + Duration::from_secs(after)).is_ok();
        assert!(is_open(0) && usage.take("first", now).is_ok());
        (0..60).for_each(|_| usage.charge("first", None, false, now));
        assert!(usage.take("first", now).is_err(), "a minute's worth each");
        usage.charge("b", Some(600.0), true, now);
        usage.charge("b", None, true, now);
        assert!(is_open(0));
        // It was cut short: as much as the one before.
        usage.charge("b", None, false, now);
        let limit = usage.take("b", now).unwrap_err();
        assert_eq!(
            (limit.name, limit.retry_after),
            ("spend", Some(Duration::from_secs(780)))
        );
        // So do those of a bot that never lets one say it.
        assert!(usage.take("other", now).is_ok());
        usage.charge("other", None, false, now);
        usage.charge("other", None, false, now);
        assert!(usage.take("other", now).is_err());
        assert!(!is_open(700) && is_open(780));
        usage.charge("b", Some(f64::MAX), true, now);
        usage.charge("b", Some(-1.0e9), true, now);
        assert!(!is_open(80_000) && is_open(100_000));
    }

    #[test]
    fn turns_at_once_are_given_back() {
        let usage = usage(None, Some(2));
        let held: Vec<_> = (0..2).map(|_| Usage::turn(&usage, "b").unwrap()).collect();
        assert!(Usage::turn(&usage, "b").is_err());
        assert!(Usage::turn(&usage, "other").is_ok());
        drop(held);
        assert!(Usage::turn(&usage, "b").is_ok());
    }
}
