//! Detection: what a decision says of who made it, beyond allowed or denied.
//!
//! It looks at decisions that were just recorded. A read that is repeated on a connection is only counted, by its
//! [`Pace`]: it is looked at again once in ten minutes, or where there are too many. Each read of a honeytoken or of
//! an outdated version is looked at.

mod finding;
pub mod habits;
mod honeytoken;
mod hours;
mod learnt;
mod notify;
mod quarantine;
pub mod rate;
mod scan;
mod told;

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use keyhatch_protocol::Name;
use serde_json::json;

use crate::audit::{Entry, Event, Log, Who, extra};
use crate::cache::{Cache, LoadError};
use crate::config::{Config, GRACE, Ignore, Notify, Rule, Source};
use crate::exec::Runner;
use crate::policy::Reason;
use finding::Finding;
pub use habits::Pace;
use habits::Read;
use honeytoken::Forge;
use learnt::{Learnt, now};
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
    learnt: Arc<Learnt>,
    told: Mutex<Told>,
    notified: Notified,
}

#[derive(Default)]
struct Rules {
    honeytokens: HashSet<Name>,
    quarantine: Vec<Rule>,
    learning: Duration,
    ignore: Vec<Ignore>,
    /// How long the version before may be used, where it is not the usual time.
    grace: HashMap<Name, Duration>,
    sources: Vec<Source>,
    notify: Option<Notify>,
}

/// A decision, as it was recorded.
#[derive(Clone, Copy)]
pub struct Seen<'a> {
    /// What was asked for.
    pub event: Event,
    /// On which name, or on which prefix of names.
    pub name: &'a str,
    /// The version that was given out.
    pub version: Option<&'a str>,
    /// Where that is another one than the current: when the current was set, since 1970.
    pub outdated: Option<Duration>,
    /// How it was decided.
    pub reason: Reason,
    /// Who asked.
    pub who: &'a Who,
    /// Their user.
    pub uid: Option<u32>,
    /// SHA-256 of their program in hex, where it is known.
    pub program: Option<&'a str>,
    /// The unit that its process has outlived, if so.
    pub outlived: Option<&'a str>,
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
            learnt: Learnt::open(state_dir)?,
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
            learning: config.detect.learning,
            ignore: config.detect.ignore.clone(),
            grace: config
                .rotations
                .iter()
                .map(|rotation| (rotation.secret.clone(), rotation.grace))
                .collect(),
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

    /// Whether anything is learnt of bots: not where nothing of it is told.
    #[must_use]
    pub fn learns(&self) -> bool {
        self.rules.load().learns()
    }

    /// Writes down what was learnt.
    pub fn save(&self) {
        self.learnt.save();
    }

    /// Looks at a decision whose record is kept. Where it is a read that may be repeated: the pace of that.
    pub fn saw(&self, seen: &Seen<'_>) -> Option<Arc<Pace>> {
        let rules = self.rules.load();
        let is_honeytoken = rules.honeytokens.contains(seen.name);
        if is_honeytoken {
            self.found(&rules, seen, &Finding::honeytoken(seen));
        }
        let denied = matches!(
            seen.reason,
            Reason::NoBot | Reason::AmbiguousBot | Reason::NoGrant | Reason::DenyRule
        );
        if denied {
            let uid = seen.uid.unwrap_or(u32::MAX);
            let scanned = held(&self.scans).denied(uid, seen.name, seen.seq, Instant::now());
            if let Some(evidence) = scanned {
                self.found(&rules, seen, &Finding::name_scan(evidence));
            }
        }
        let bot = seen
            .who
            .bot()
            .filter(|_| seen.event == Event::SecretRead && !is_honeytoken)?;
        self.saw_version(&rules, bot, seen);
        if let Some(unit) = seen.outlived {
            self.found(&rules, seen, &Finding::unit_stopped(seen, unit));
        }
        self.saw_read(&rules, bot, seen)
    }

    /// Looks at the version that a bot asked for, or was given.
    fn saw_version(&self, rules: &Rules, bot: &str, seen: &Seen<'_>) {
        let Some(set) = seen.outdated.filter(|set| !set.is_zero()) else {
            return;
        };
        let grace = rules.grace.get(seen.name).copied().unwrap_or(GRACE);
        let (now, end) = (now(), set.saturating_add(grace).as_secs());
        let may_know = matches!(seen.reason, Reason::Granted | Reason::NotFound);
        if may_know && self.learnt.saw_outdated(bot, seen.name, end, now) {
            let age = now.saturating_sub(set.as_secs());
            self.found(rules, seen, &Finding::stale_version(seen, age));
        }
    }

    /// Looks at a read that a bot was granted.
    fn saw_read(&self, rules: &Rules, bot: &str, seen: &Seen<'_>) -> Option<Arc<Pace>> {
        if seen.reason != Reason::Granted || !rules.learns() {
            return None;
        }
        let read = Read {
            bot,
            secret: seen.name,
            exe: seen.program,
            now: now(),
            seq: seen.seq,
        };
        let (pace, unusual) = self.learnt.saw(&read, rules.learning);
        for unusual in unusual {
            self.found(rules, seen, &Finding::unusual(seen, unusual));
        }
        Some(pace)
    }

    /// Tells, and quarantines the bot where the configuration wants it. The same of the same bot is told once a
    /// minute, with how often it was seen meanwhile.
    fn found(&self, rules: &Rules, seen: &Seen<'_>, finding: &Finding<'_>) {
        let rule = finding.rule;
        if rules.ignores(rule, seen.who.bot()) {
            return;
        }
        let bot = seen
            .who
            .bot()
            .filter(|bot| rules.quarantine.contains(&rule) && !self.quarantine.holds(bot));
        let subject = match seen.who.bot() {
            Some(bot) => format!("bot {bot}"),
            None => format!("uid {}", seen.uid.unwrap_or(u32::MAX)),
        };
        let repeats = held(&self.told).tell(rule, &subject, finding.about, Instant::now());
        // A bot that is let out and does it again is told of, however soon.
        let Some(repeats) = repeats.or(bot.map(|_| 0)) else {
            return;
        };
        let mut members = vec![
            ("evidence", json!(finding.evidence)),
            ("repeats", json!(repeats)),
            ("quarantined", bot.is_some().into()),
            ("message", finding.message(&subject, bot.is_some()).into()),
        ];
        members.extend(finding.members.iter().cloned());
        let members = extra(&members);
        if let Some(bot) = bot {
            self.quarantine.add(bot, rule.as_str(), seen.seq);
            self.cache.wake();
        }
        let entry = Entry {
            secret: finding.secret,
            who: Some(seen.who),
            surface: seen.surface,
            request_id: Some(seen.request_id),
            extra: Some(&members),
            ..Entry::of(finding.event())
        };
        if let Err(why) = self.audit.keep(&entry) {
            tracing::error!(%why, %members, "an alert was not recorded");
        }
    }
}

impl Rules {
    fn ignores(&self, rule: Rule, bot: Option<&str>) -> bool {
        let of = |ignore: &Ignore| match (&ignore.bots, bot) {
            (None, _) => true,
            (Some(bots), Some(bot)) => bots.iter().any(|other| other == bot),
            (Some(_), None) => false,
        };
        self.ignore
            .iter()
            .any(|ignore| ignore.rule == rule && of(ignore))
    }

    fn learns(&self) -> bool {
        !Rule::LEARNT
            .into_iter()
            .all(|rule| self.ignores(rule, None))
    }
}

/// Locks whatever a panicking thread left: the state is changed only by whole steps.
fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
