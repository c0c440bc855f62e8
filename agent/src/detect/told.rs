//! The same is told once a minute, so that nobody fills the log with alerts: pure, on a clock that is passed in.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::config::Rule;

const PAUSE: Duration = Duration::from_secs(60);
/// What is remembered at once; past it all else counts as one.
const MOST: usize = 1024;

type Key = (Rule, String, String);

/// What was told when, and how often it was seen since.
#[derive(Default)]
pub(super) struct Told(HashMap<Key, (Instant, u64)>);

impl Told {
    /// How often this was seen since it was told last, where it is to be told now.
    pub(super) fn tell(
        &mut self,
        rule: Rule,
        subject: &str,
        secret: Option<&str>,
        now: Instant,
    ) -> Option<u64> {
        let mut key = (
            rule,
            subject.to_owned(),
            secret.unwrap_or_default().to_owned(),
        );
        let over = |at: Instant| now.saturating_duration_since(at) >= PAUSE;
        if self.0.len() >= MOST && !self.0.contains_key(&key) {
            self.0.retain(|_, (at, _)| !over(*at));
            if self.0.len() >= MOST {
                key = (rule, String::new(), String::new());
            }
        }
        match self.0.get_mut(&key) {
            Some((at, seen)) if !over(*at) => {
                *seen += 1;
                None
            }
            Some((at, seen)) => {
                *at = now;
                Some(std::mem::take(seen))
            }
            None => {
                self.0.insert(key, (now, 0));
                Some(0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_told_once_a_minute_with_how_often_it_was_seen() {
        let (mut told, start) = (Told::default(), Instant::now());
        let mut tell = |subject: &str, after| {
            let now = start + Duration::from_secs(after);
            told.tell(Rule::Honeytoken, subject, Some("x"), now)
        };
        assert_eq!(tell("a", 0), Some(0));
        assert_eq!((tell("a", 1), tell("a", 59)), (None, None));
        assert_eq!(tell("b", 1), Some(0));
        assert_eq!(tell("a", 60), Some(2));
    }
}
