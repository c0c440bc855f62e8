//! How much of a route each bot takes, and what was done with it in all.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::config::RouteLimits;

const MINUTE: Duration = Duration::from_secs(60);

/// The bounds, and what each bot uses of them.
pub struct Usage {
    limits: RouteLimits,
    counters: Counters,
    bots: Mutex<HashMap<Box<str>, OfBot>>,
}

/// What one bot uses.
struct OfBot {
    streams: u32,
    /// When its requests so far are paid off, at the rate it may ask: at most a minute ahead.
    paid: Instant,
}

/// What was done with a route since it was set up.
#[derive(Default)]
pub struct Counters {
    /// Requests that were allowed.
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

/// A limit that a request is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Its name in the configuration.
    pub name: &'static str,
    /// When to come back.
    pub retry_after: Duration,
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
        let of_bot = bots.entry(bot.into()).or_insert(OfBot {
            streams: 0,
            paid: now,
        });
        if self
            .limits
            .streams
            .is_some_and(|most| of_bot.streams >= most)
        {
            return Err(Limit {
                name: "streams",
                retry_after: Duration::from_secs(1),
            });
        }
        if let Some(requests) = self.limits.requests_per_minute {
            let paid = of_bot.paid.max(now) + MINUTE / requests;
            let ahead = paid.duration_since(now);
            if ahead > MINUTE {
                return Err(Limit {
                    name: "requests_per_minute",
                    retry_after: ahead.saturating_sub(MINUTE),
                });
            }
            of_bot.paid = paid;
        }
        of_bot.streams += 1;
        Ok(())
    }

    fn bots(&self) -> MutexGuard<'_, HashMap<Box<str>, OfBot>> {
        self.bots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.usage.counters.open.fetch_sub(1, Relaxed);
        if let Some(of_bot) = self.usage.bots().get_mut(&self.bot) {
            of_bot.streams -= 1;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn usage(requests_per_minute: Option<u32>, streams: Option<u32>) -> Arc<Usage> {
        Arc::new(Usage::new(RouteLimits {
            requests_per_minute,
            streams,
            body: None,
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
            ("requests_per_minute", Duration::from_secs(2))
        );
        assert!(usage.take("other", now).is_ok());
        let later = now + Duration::from_secs(2);
        assert!(usage.take("b", later).is_ok());
        assert!(usage.take("b", later).is_err());
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
