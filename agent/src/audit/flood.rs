//! Denials past a rate are counted instead of recorded: pure, on a clock that is passed in.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

/// Denials a second that are recorded one by one, per bot and for all peers without one together.
const RATE: f64 = 100.0;
/// How many may come at once after a quiet time.
const BURST: f64 = 200.0;
/// More bots than any policy has; past it they share the bucket of peers without one.
const MAX_BOTS: usize = 4096;

/// The buckets and counts of all bots, and of the peers that match none.
#[derive(Debug, Default)]
pub(super) struct Floods {
    bots: BTreeMap<Box<str>, Bucket>,
    nameless: Bucket,
    /// Denials counted since the start, for metrics.
    pub total: u64,
    waiting: bool,
}

#[derive(Debug, Default)]
struct Bucket {
    spent: f64,
    at: Duration,
    counted: BTreeMap<&'static str, u64>,
}

impl Bucket {
    /// Takes one token, if there is one.
    fn spend(&mut self, now: Duration) -> bool {
        let regained = now.saturating_sub(self.at).as_secs_f64() * RATE;
        self.at = now;
        self.spent = (self.spent - regained).max(0.0);
        let some = self.spent + 1.0 <= BURST;
        self.spent += f64::from(u8::from(some));
        some
    }
}

impl Floods {
    /// Whether a denial is to be recorded; otherwise it is counted.
    pub(super) fn admit(&mut self, bot: Option<&str>, reason: &'static str, now: Duration) -> bool {
        if let Some(bot) = bot.filter(|bot| !self.bots.contains_key(*bot))
            && self.bots.len() < MAX_BOTS
        {
            self.bots.insert(bot.into(), Bucket::default());
        }
        let bucket = bot
            .and_then(|bot| self.bots.get_mut(bot))
            .unwrap_or(&mut self.nameless);
        if bucket.spend(now) {
            return true;
        }
        *bucket.counted.entry(reason).or_default() += 1;
        self.total += 1;
        self.waiting = true;
        false
    }

    /// What was counted since the last time, as the `floods` of an `alert.flood`; `None` when nothing was.
    pub(super) fn take(&mut self) -> Option<Value> {
        if !std::mem::take(&mut self.waiting) {
            return None;
        }
        let mut floods = Vec::new();
        let bots = self
            .bots
            .iter_mut()
            .map(|(bot, bucket)| (Some(bot), bucket));
        for (bot, bucket) in bots.chain([(None, &mut self.nameless)]) {
            let reasons = std::mem::take(&mut bucket.counted);
            if !reasons.is_empty() {
                let count: u64 = reasons.values().sum();
                floods.push(json!({ "bot": bot, "count": count, "reasons": reasons }));
            }
        }
        Some(Value::Array(floods))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1000);

    #[test]
    fn a_burst_is_recorded_and_the_rest_counted() {
        let mut floods = Floods::default();
        let recorded = (0..1000)
            .filter(|_| floods.admit(Some("bot"), "no_grant", NOW))
            .count();
        assert_eq!(recorded, 200);
        assert!(
            floods.admit(Some("other"), "no_grant", NOW),
            "each bot has its own rate"
        );
        assert_eq!(
            floods.take(),
            Some(json!([{"bot": "bot", "count": 800, "reasons": {"no_grant": 800}}]))
        );
        assert_eq!(floods.take(), None, "told once");
    }

    #[test]
    fn peers_without_a_bot_share_one_rate_that_refills() {
        let mut floods = Floods::default();
        for _ in 0..300 {
            floods.admit(None, "no_bot", NOW);
        }
        assert!(!floods.admit(None, "ambiguous_bot", NOW));
        let later = NOW + Duration::from_millis(50);
        let recorded = (0..10)
            .filter(|_| floods.admit(None, "no_bot", later))
            .count();
        assert_eq!(recorded, 5);
        let told = floods.take().unwrap();
        assert_eq!(told[0]["bot"], Value::Null);
        assert_eq!(
            told[0]["reasons"],
            json!({"ambiguous_bot": 1, "no_bot": 105})
        );
    }
}
