//! `[[honeytoken]]` and `[detect]`: what is looked out for, and what follows.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use hyper::Uri;
use keyhatch_protocol::Name;

use super::Depth;
use super::rotation::Rotation;
use super::route::Route;
use super::section::{Section, Value, duration, one_of};
use crate::files::{self, Holds};
use crate::http::Address;
use crate::policy::{Policy, Report, suggest};

/// How long a bot is only watched unless told otherwise: two of each weekday.
const LEARNING: Duration = Duration::from_secs(14 * 24 * 3600);

/// `[detect]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Detect {
    /// Rules that quarantine the bot.
    pub quarantine: Vec<Rule>,
    /// Who is told of alerts.
    pub notify: Option<Notify>,
    /// How long a bot is watched before anything that was learnt of it is news.
    pub learning: Duration,
    /// What is not told of.
    pub ignore: Vec<Ignore>,
}

impl Default for Detect {
    fn default() -> Self {
        Self {
            quarantine: Vec::new(),
            notify: None,
            learning: LEARNING,
            ignore: Vec::new(),
        }
    }
}

/// A rule that is not told of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ignore {
    /// Which.
    pub rule: Rule,
    /// Of which bots; `None` is all.
    pub bots: Option<Vec<String>>,
}

/// How somebody is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notify {
    /// A program, which gets the record on standard input.
    Exec(Vec<String>),
    /// An address, which the record is posted to.
    Webhook(Webhook),
}

/// Where to post to. A path may be as good as a token, so it is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Webhook {
    /// The server.
    pub address: Address,
    /// Path and query.
    pub path: String,
}

impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Webhook({})", self.address)
    }
}

/// A rule about what a bot does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// Who asks for a honeytoken.
    Honeytoken,
    /// Who tries many names that it is denied.
    NameScan,
    /// Who reads far more than it used to.
    UnusualRate,
    /// Who reads a secret that it never read.
    FirstRead,
    /// Who reads a secret at an hour at which it never did.
    UnusualHour,
    /// Who runs a program that it never ran.
    ExeChanged,
    /// Who asks for a version whose grace time is over.
    StaleVersion,
    /// Who reads although its unit has stopped.
    UnitStopped,
}

impl Rule {
    const WORDS: [(&'static str, Self); 8] = [
        ("honeytoken", Self::Honeytoken),
        ("name_scan", Self::NameScan),
        ("unusual_rate", Self::UnusualRate),
        ("first_read", Self::FirstRead),
        ("unusual_hour", Self::UnusualHour),
        ("exe_changed", Self::ExeChanged),
        ("stale_version", Self::StaleVersion),
        ("unit_stopped", Self::UnitStopped),
    ];
    /// Those that go by what was learnt of the bot, or of the secret.
    pub const LEARNT: [Self; 5] = [
        Self::UnusualRate,
        Self::FirstRead,
        Self::UnusualHour,
        Self::ExeChanged,
        Self::StaleVersion,
    ];
    /// Those that can be wrong.
    fn fallible() -> impl Iterator<Item = Self> {
        Self::LEARNT.into_iter().chain([Self::UnitStopped])
    }

    /// The word for it in the configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        let word = Self::WORDS.into_iter().find(|(_, rule)| *rule == self);
        word.map_or("", |(word, _)| word)
    }
}

pub(super) fn read(
    section: &Section<'_>,
    policy: Option<&Policy>,
    depth: Depth,
    report: &mut Report,
) -> Detect {
    let keys = ["quarantine", "notify", "learning", "ignore"];
    section.check_keys(&keys, report);
    let rules = section
        .get("quarantine")
        .and_then(|value| value.strings(report))
        .unwrap_or_default();
    let quarantine = rules
        .iter()
        .filter_map(|rule| one_of(rule, "quarantine", &Rule::WORDS, report))
        .collect();
    let notify = section
        .get("notify")
        .and_then(|value| value.section("`notify`", report))
        .and_then(|notify| read_notify(&notify, depth, report));
    let ignored = section.get("ignore").and_then(|value| value.list(report));
    let ignore = ignored
        .unwrap_or_default()
        .iter()
        .filter_map(|value| read_ignore(&value.section("`ignore`", report)?, policy, report))
        .collect();
    Detect {
        quarantine,
        notify,
        learning: duration(section, "learning", report).unwrap_or(LEARNING),
        ignore,
    }
}

fn read_ignore(
    section: &Section<'_>,
    policy: Option<&Policy>,
    report: &mut Report,
) -> Option<Ignore> {
    section.check_keys(&["rule", "bots"], report);
    let given = section
        .required("rule", "\"unusual_hour\"", report)?
        .string(report)?;
    let rules: Vec<_> = Rule::fallible().map(|rule| (rule.as_str(), rule)).collect();
    let rule = one_of(&given, "rule", &rules, report)?;
    let Some(bots) = section.get("bots") else {
        return Some(Ignore { rule, bots: None });
    };
    let bots = bots.strings(report)?;
    // Without a policy there are other errors to put right first.
    let unknown = |bot: &str| policy.filter(|policy| policy.bot_by_name(bot).is_none());
    for bot in &bots {
        if let Some(policy) = unknown(bot.value) {
            let hint = suggest(bot.value, policy.bots().iter().map(|bot| &*bot.name));
            let text = format!("there is no bot {:?}, {hint}", bot.value);
            report.error(&bot.place, text);
        }
    }
    let bots = bots.iter().map(|bot| bot.value.to_owned()).collect();
    Some(Ignore {
        rule,
        bots: Some(bots),
    })
}

fn read_notify(section: &Section<'_>, depth: Depth, report: &mut Report) -> Option<Notify> {
    section.check_keys(&["exec", "webhook"], report);
    match (section.get("exec"), section.get("webhook")) {
        (Some(exec), None) => read_exec(&exec, depth, report).map(Notify::Exec),
        (None, Some(webhook)) => read_webhook(&webhook, report).map(Notify::Webhook),
        _ => {
            let text = "`notify` is either { exec = [\"/opt/page-someone\"] } or { webhook = \"https://...\" }";
            report.error(&section.place(), text.to_owned());
            None
        }
    }
}

fn read_exec(value: &Value<'_>, depth: Depth, report: &mut Report) -> Option<Vec<String>> {
    let place = value.place();
    let words = value.strings(report)?;
    let command: Vec<String> = words.iter().map(|word| word.value.to_owned()).collect();
    let program = command.first().map(Path::new);
    let Some(program) = program.filter(|program| program.is_absolute()) else {
        let text = "`exec` must begin with the absolute path of a program";
        report.error(&place, text.to_owned());
        return None;
    };
    if let Depth::Full(trust) = depth
        && let Err(error) = files::open(program, Holds::Access, trust)
    {
        report.error(&place, error.to_string());
    }
    Some(command)
}

fn read_webhook(value: &Value<'_>, report: &mut Report) -> Option<Webhook> {
    let given = value.string(report)?;
    let uri: Option<Uri> = given.value.parse().ok();
    let webhook = uri.and_then(|uri| {
        Some(Webhook {
            address: Address::of(&uri)?,
            path: uri.path_and_query()?.to_string(),
        })
    });
    let fits = |webhook: &Webhook| webhook.address.is_tls() || webhook.address.is_loopback();
    if !webhook.as_ref().is_some_and(fits) {
        let text =
            "`webhook` must be an https:// address; http:// is for this host's own loopback alone";
        report.error(&given.place, text.to_owned());
    }
    webhook
}

pub(super) fn read_honeytokens(
    sections: &[Section<'_>],
    routes: &[Route],
    rotations: &[Rotation],
    report: &mut Report,
) -> Vec<Name> {
    let mut names: Vec<Name> = Vec::new();
    for section in sections {
        section.check_keys(&["secret"], report);
        let given = section
            .required("secret", "\"prod/master-key\"", report)
            .and_then(|value| value.string(report));
        let Some(given) = given else { continue };
        let name = match Name::parse(given.value) {
            Ok(name) => name,
            Err(why) => {
                report.error(
                    &given.place,
                    format!("`secret` is {:?}, {why}", given.value),
                );
                continue;
            }
        };
        if rotations.iter().any(|rotation| rotation.secret == name) {
            let text = format!(
                "the honeytoken {name} is to be rotated, but it is real nowhere; name another"
            );
            report.error(&given.place, text);
        }
        if routes.iter().any(|route| route.secret == name) {
            let text = format!(
                "the honeytoken {name} is the secret of a route, which would send what is real nowhere; name another"
            );
            report.error(&given.place, text);
        }
        if names.contains(&name) {
            report.error(
                &given.place,
                format!("the honeytoken {name} is given twice, remove one"),
            );
        }
        names.push(name);
    }
    names
}
