//! Detection: what a decision says of who made it, beyond allowed or denied.
//!
//! It looks at decisions that were just recorded. A read that is repeated on a connection is not looked at,
//! since nothing here depends on it; a honeytoken's reads are never such.

mod honeytoken;
mod notify;
mod quarantine;
mod scan;
mod told;

use std::collections::HashSet;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use arc_swap::ArcSwap;
use keyhatch_protocol::Name;
use serde_json::{Value as Json, json};

use crate::audit::{Entry, Event, Log, Who, extra};
use crate::cache::{Cache, LoadError};
use crate::config::{Config, Notify, Rule, Source};
use crate::exec::Runner;
use crate::policy::Reason;
use honeytoken::Forge;
pub use notify::Notified;
pub use quarantine::Held;
use quarantine::Quarantine;
use scan::Scans;
use told::Told;

/// The rules of the running configuration, and what they have seen.
pub struct Detect {
    cache: Arc<Cache>,
    audit: Arc<Log>,
    rules: ArcSwap<Rules>,
    forge: Forge,
    quarantine: Quarantine,
    scans: Mutex<Scans>,
    told: Mutex<Told>,
    notified: Notified,
}

#[derive(Default)]
struct Rules {
    honeytokens: HashSet<Name>,
    quarantine: Vec<Rule>,
    sources: Vec<Source>,
    notify: Option<Notify>,
}

/// A decision, as it was recorded.
#[derive(Clone, Copy)]
pub struct Seen<'a> {
    /// On which name, or on which prefix of names.
    pub name: &'a str,
    /// How it was decided.
    pub reason: Reason,
    /// Who asked.
    pub who: &'a Who,
    /// Their user.
    pub uid: Option<u32>,
    /// Which way it was asked.
    pub surface: &'static str,
    /// The request.
    pub request_id: &'a str,
    /// The number of its record; a denial in a flood has none.
    pub seq: Option<u64>,
}

impl Detect {
    /// Detection by the rules of `config`, with what its `state_dir` remembers.
    pub fn open(config: &Config, cache: Arc<Cache>, audit: Arc<Log>) -> io::Result<Self> {
        let state_dir = &config.agent.state_dir;
        let detect = Self {
            cache,
            audit,
            rules: ArcSwap::default(),
            forge: Forge::open(state_dir)?,
            quarantine: Quarantine::open(state_dir)?,
            scans: Mutex::default(),
            told: Mutex::default(),
            notified: Notified::default(),
        };
        detect.set_rules(config);
        Ok(detect)
    }

    /// Makes the rules of `config` those that count, and serves its honeytokens.
    pub fn set_rules(&self, config: &Config) {
        self.rules.store(Arc::new(Rules {
            honeytokens: config.honeytokens.iter().cloned().collect(),
            quarantine: config.detect.quarantine.clone(),
            sources: config.sources.clone(),
            notify: config.detect.notify.clone(),
        }));
        self.serve();
    }

    /// Serves the honeytokens. Does nothing while sealed.
    pub fn serve(&self) {
        let rules = self.rules.load();
        let made = rules
            .honeytokens
            .iter()
            .map(|name| self.forge.entry(&self.cache, &rules.sources, name))
            .collect::<Result<Vec<_>, LoadError>>();
        match made {
            Ok(entries) => self.cache.publish_decoys(entries),
            Err(why) => tracing::error!(%why, "honeytokens have no value to give out"),
        }
    }

    /// Whether the name is a honeytoken.
    #[must_use]
    pub fn is_honeytoken(&self, name: &str) -> bool {
        self.rules.load().honeytokens.contains(name)
    }

    /// The bots that are quarantined.
    #[must_use]
    pub fn quarantine(&self) -> &Quarantine {
        &self.quarantine
    }

    /// Tells of every alert of the log, as the configuration says, until the log is closed.
    pub async fn notify(&self, runner: Runner) {
        if let Some(alerts) = self.audit.alerts() {
            let target = || self.rules.load().notify.clone();
            notify::run(alerts, runner, target, &self.notified).await;
        }
    }

    /// What became of alerts.
    #[must_use]
    pub fn notified(&self) -> &Notified {
        &self.notified
    }

    /// Looks at a decision whose record is kept.
    pub fn saw(&self, seen: &Seen<'_>) {
        if self.is_honeytoken(seen.name) {
            self.found(Rule::Honeytoken, seen, seen.seq.as_slice());
        }
        let denied = matches!(
            seen.reason,
            Reason::NoBot | Reason::AmbiguousBot | Reason::NoGrant | Reason::DenyRule
        );
        if denied {
            let uid = seen.uid.unwrap_or(u32::MAX);
            let scanned = held(&self.scans).denied(uid, seen.name, seen.seq, Instant::now());
            if let Some(evidence) = scanned {
                self.found(Rule::NameScan, seen, &evidence);
            }
        }
    }

    /// Tells, and quarantines the bot where the configuration wants it. The same of the same bot is told once a
    /// minute, with how often it was seen meanwhile.
    fn found(&self, rule: Rule, seen: &Seen<'_>, evidence: &[u64]) {
        let wanted = self.rules.load().quarantine.contains(&rule);
        let bot = seen
            .who
            .bot()
            .filter(|bot| wanted && !self.quarantine.holds(bot));
        let subject = match seen.who.bot() {
            Some(bot) => format!("bot {bot}"),
            None => format!("uid {}", seen.uid.unwrap_or(u32::MAX)),
        };
        let secret = (rule == Rule::Honeytoken).then_some(seen.name);
        let repeats = held(&self.told).tell(rule, &subject, secret, Instant::now());
        // A bot that is let out and does it again is told of, however soon.
        let Some(repeats) = repeats.or(bot.map(|_| 0)) else {
            return;
        };
        let members = extra(&[
            ("evidence", json!(evidence)),
            ("repeats", json!(repeats)),
            ("quarantined", bot.is_some().into()),
            ("message", message(rule, seen, &subject, bot.is_some())),
        ]);
        if let Some(bot) = bot {
            self.quarantine.add(bot, rule.as_str(), seen.seq);
            self.cache.wake();
        }
        let entry = Entry {
            secret,
            who: Some(seen.who),
            surface: seen.surface,
            request_id: Some(seen.request_id),
            extra: Some(&members),
            ..Entry::of(event(rule))
        };
        if let Err(why) = self.audit.keep(&entry) {
            tracing::error!(%why, %members, "an alert was not recorded");
        }
    }
}

fn event(rule: Rule) -> Event {
    match rule {
        Rule::Honeytoken => Event::AlertHoneytoken,
        Rule::NameScan => Event::AlertNameScan,
    }
}

fn message(rule: Rule, seen: &Seen<'_>, subject: &str, quarantined: bool) -> Json {
    let what = match rule {
        Rule::Honeytoken => format!("{subject} asked for the honeytoken {}", seen.name),
        Rule::NameScan => format!("{subject} was denied 50 different names within a minute"),
    };
    let end = if quarantined {
        "; the bot is quarantined"
    } else {
        ""
    };
    format!("{what}{end}").into()
}

/// Locks whatever a panicking thread left: the state is changed only by whole steps.
fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
