//! What a rule found: the words and members of its alert.

use std::time::Duration;

use serde_json::{Value as Json, json};

use super::Seen;
use super::habits::Unusual;
use crate::audit::Event;
use crate::config::Rule;

/// What a rule found.
pub(super) struct Finding<'a> {
    pub rule: Rule,
    /// The secret that it is about.
    pub secret: Option<&'a str>,
    /// What else of the same bot counts as the same for a minute.
    pub about: Option<&'a str>,
    /// The numbers of the records that show it.
    pub evidence: Vec<u64>,
    /// What the bot did, after its name.
    does: String,
    /// More members of the record.
    pub members: Vec<(&'static str, Json)>,
}

impl<'a> Finding<'a> {
    pub(super) fn honeytoken(seen: &Seen<'a>) -> Self {
        let does = format!("asked for the honeytoken {}", seen.name);
        Self::of_secret(Rule::Honeytoken, seen, does)
    }

    pub(super) fn name_scan(evidence: Vec<u64>) -> Self {
        Self {
            rule: Rule::NameScan,
            secret: None,
            about: None,
            evidence,
            does: "was denied 50 different names within a minute".to_owned(),
            members: Vec::new(),
        }
    }

    /// `age` is for how many seconds the version has been outdated.
    pub(super) fn stale_version(seen: &Seen<'a>, age: u64) -> Self {
        let ago = humantime::format_duration(Duration::from_secs(age));
        let does = match seen.version {
            Some(version) => format!("read version {version} of {}", seen.name),
            None => format!("asked for a version of {} that is gone", seen.name),
        };
        let does = format!("{does}, which another replaced {ago} ago");
        Self {
            members: vec![("outdated_for", json!(age))],
            ..Self::of_secret(Rule::StaleVersion, seen, does)
        }
    }

    pub(super) fn unit_stopped(seen: &Seen<'a>, unit: &'a str) -> Self {
        let name = seen.name;
        let does = format!("read {name} by a process that has outlived this run of {unit}");
        Self {
            about: Some(unit),
            ..Self::of_secret(Rule::UnitStopped, seen, does)
        }
    }

    pub(super) fn unusual(seen: &Seen<'a>, unusual: Unusual) -> Self {
        let name = seen.name;
        match unusual {
            Unusual::FirstRead => {
                let does = format!("read {name}, which it never did before");
                Self::of_secret(Rule::FirstRead, seen, does)
            }
            Unusual::Hour => {
                let does = format!("read {name} at an hour at which it never did");
                Self {
                    about: None,
                    ..Self::of_secret(Rule::UnusualHour, seen, does)
                }
            }
            Unusual::Program => Self {
                secret: None,
                about: seen.program,
                members: vec![("exe_sha256", json!(seen.program))],
                ..Self::of_secret(
                    Rule::ExeChanged,
                    seen,
                    "runs a program that it never ran before".to_owned(),
                )
            },
            Unusual::Rate {
                reads,
                level,
                since,
            } => Self {
                secret: None,
                about: None,
                evidence: since.into_iter().chain(seen.seq).collect(),
                members: vec![("reads", json!(reads)), ("level", json!(level))],
                ..Self::of_secret(
                    Rule::UnusualRate,
                    seen,
                    format!(
                        "read {reads} times within ten minutes; its habit comes to {level} once in ten years"
                    ),
                )
            },
        }
    }

    fn of_secret(rule: Rule, seen: &Seen<'a>, does: String) -> Self {
        Self {
            rule,
            secret: Some(seen.name),
            about: Some(seen.name),
            evidence: seen.seq.into_iter().collect(),
            does,
            members: Vec::new(),
        }
    }

    pub(super) fn event(&self) -> Event {
        match self.rule {
            Rule::Honeytoken => Event::AlertHoneytoken,
            Rule::NameScan => Event::AlertNameScan,
            Rule::UnusualRate => Event::AlertUnusualRate,
            Rule::FirstRead => Event::AlertFirstRead,
            Rule::UnusualHour => Event::AlertUnusualHour,
            Rule::ExeChanged => Event::AlertExeChanged,
            Rule::StaleVersion => Event::AlertStaleVersion,
            Rule::UnitStopped => Event::AlertUnitStopped,
        }
    }

    /// The sentence for people.
    pub(super) fn message(&self, subject: &str, quarantined: bool) -> String {
        let end = if quarantined {
            "; the bot is quarantined"
        } else {
            ""
        };
        format!("{subject} {}{end}", self.does)
    }
}
