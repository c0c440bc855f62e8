//! `[[honeytoken]]` and `[detect]`: what is looked out for, and what follows.

use keyhatch_protocol::Name;

use super::route::Route;
use super::section::{Section, one_of};
use crate::policy::Report;

/// `[detect]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Detect {
    /// Rules that quarantine the bot.
    pub quarantine: Vec<Rule>,
}

/// A rule that can quarantine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// Who asks for a honeytoken.
    Honeytoken,
    /// Who tries many names that it is denied.
    NameScan,
}

impl Rule {
    const WORDS: [(&'static str, Self); 2] = [
        ("honeytoken", Self::Honeytoken),
        ("name_scan", Self::NameScan),
    ];

    /// The word for it in the configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Honeytoken => "honeytoken",
            Self::NameScan => "name_scan",
        }
    }
}

pub(super) fn read(section: &Section<'_>, report: &mut Report) -> Detect {
    section.check_keys(&["quarantine"], &["notify"], report);
    let rules = section
        .get("quarantine")
        .and_then(|value| value.strings(report))
        .unwrap_or_default();
    let quarantine = rules
        .iter()
        .filter_map(|rule| one_of(rule, "quarantine", &Rule::WORDS, report))
        .collect();
    Detect { quarantine }
}

pub(super) fn read_honeytokens(
    sections: &[Section<'_>],
    routes: &[Route],
    report: &mut Report,
) -> Vec<Name> {
    let mut names: Vec<Name> = Vec::new();
    for section in sections {
        section.check_keys(&["secret"], &[], report);
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
