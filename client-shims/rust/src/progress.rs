//! A watch apart from its connection: what to ask for, what an event means, when to try again.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use keyhatch_protocol::{ChangeKind, Name};

use crate::events::RawEvent;
use crate::request::{Request, parse_name};
use crate::{Error, Secret};

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Before one who follows a secret asks again after a refusal.
const HOPEFUL_PAUSE: Duration = Duration::from_secs(60);
/// A connection that held this long starts the pauses anew.
const STEADY: Duration = Duration::from_secs(30);

/// Something happened to a watched secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What.
    pub kind: ChangeKind,
    /// To which secret.
    pub name: Name,
    /// The version that is served now; `None` once it is removed.
    pub version: Option<String>,
}

impl Change {
    /// Whether another value than `held` is served now.
    pub(crate) fn is_news(&self, held: &Secret) -> bool {
        self.version
            .as_deref()
            .is_some_and(|version| version != held.version())
    }
}

/// When one who follows a secret tries again.
#[derive(Default)]
pub(crate) struct Retry {
    failures: u32,
}

impl Retry {
    pub(crate) fn pause(&mut self, error: &Error) -> Duration {
        let pause = backoff(self.failures, chance());
        self.failures = self.failures.saturating_add(1);
        match error {
            // Not without somebody's help: do not fill the audit log meanwhile.
            error if !error.is_temporary() => HOPEFUL_PAUSE,
            Error::RateLimited {
                retry_after: Some(wait),
                ..
            } => pause.max(*wait),
            _ => pause,
        }
    }
}

/// What outlives the connections of one watch.
pub(crate) struct Progress {
    names: Vec<Name>,
    last_id: Option<String>,
    retry: Retry,
    opened: Option<Instant>,
}

impl Progress {
    pub(crate) fn new(names: &[&str]) -> Result<Self, Error> {
        let names = names
            .iter()
            .map(|name| parse_name(name))
            .collect::<Result<Vec<_>, _>>()?;
        if names.is_empty() {
            return Err(Error::Input("a watch needs at least one secret name"));
        }
        Ok(Self {
            names,
            last_id: None,
            retry: Retry::default(),
            opened: None,
        })
    }

    pub(crate) fn request(&self) -> Request {
        Request::watch(&self.names, self.last_id.as_deref())
    }

    /// The stream is open.
    pub(crate) fn opened(&mut self) {
        self.opened = Some(Instant::now());
    }

    /// The stream has ended or could not be opened: how long to wait before the next try.
    pub(crate) fn pause(&mut self, error: &Error) -> Duration {
        if self
            .opened
            .take()
            .is_some_and(|opened| opened.elapsed() > STEADY)
        {
            self.retry = Retry::default();
        }
        self.retry.pause(error)
    }

    /// What an event tells; `None` for one that this client does not know.
    pub(crate) fn take(&mut self, event: RawEvent) -> Option<Change> {
        if let Some(id) = event.id {
            self.last_id = Some(id).filter(|id| !id.is_empty());
        }
        let kinds = [
            ChangeKind::Current,
            ChangeKind::Rotated,
            ChangeKind::Removed,
        ];
        let kind = kinds.into_iter().find(|kind| kind.as_str() == event.kind)?;
        let change: keyhatch_protocol::Change = serde_json::from_str(&event.data).ok()?;
        Some(Change {
            kind,
            name: change.name,
            version: change.version,
        })
    }
}

/// Twice as long each time, less up to a half by chance: bots that lost an agent do not come back as one.
fn backoff(failures: u32, chance: u64) -> Duration {
    let pause = FIRST_PAUSE
        .saturating_mul(1 << failures.min(10))
        .min(LONGEST_PAUSE);
    let thousandths = u32::try_from(chance % 500).unwrap_or(0);
    pause.saturating_sub(pause / 1000 * thousandths)
}

fn chance() -> u64 {
    RandomState::new().hash_one(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn event(id: &str, kind: &str, data: &str) -> RawEvent {
        RawEvent {
            id: Some(id.into()),
            kind: kind.into(),
            data: data.into(),
        }
    }

    #[test]
    fn events_become_changes_and_the_last_id_is_asked_from() {
        let mut progress = Progress::new(&["a"]).unwrap();
        let change = progress
            .take(event("5", "rotated", r#"{"name":"a","version":"2"}"#))
            .unwrap();
        assert_eq!(
            (change.kind, change.version.as_deref()),
            (ChangeKind::Rotated, Some("2"))
        );
        let gone = progress
            .take(event("6", "removed", r#"{"name":"a","version":null}"#))
            .unwrap();
        assert_eq!(gone.version, None);
        for (kind, data) in [
            ("closed", r#"{"reason":"slow"}"#),
            ("rotated", "{}"),
            ("new", ""),
        ] {
            assert_eq!(progress.take(event("7", kind, data)), None);
        }
        let request = String::from_utf8(progress.request().bytes).unwrap();
        assert!(request.contains("Last-Event-ID: 7\r\n"));
    }

    #[test]
    fn a_watch_needs_good_names() {
        assert!(Progress::new(&[]).is_err());
        assert!(matches!(
            Progress::new(&["a", "b//c"]),
            Err(Error::Name { .. })
        ));
    }

    #[test]
    fn the_agents_own_pause_is_kept() {
        let wait = Duration::from_secs(60);
        let limited = Error::from_answer(429, Some(wait), b"");
        assert_eq!(Progress::new(&["a"]).unwrap().pause(&limited), wait);
    }

    proptest! {
        #[test]
        fn pauses_grow_and_stay_bounded(failures in any::<u32>(), chance in any::<u64>()) {
            let pause = backoff(failures, chance);
            prop_assert!(pause >= FIRST_PAUSE / 2 && pause <= LONGEST_PAUSE);
            prop_assert!(failures < 8 || pause >= LONGEST_PAUSE / 2);
        }
    }
}
