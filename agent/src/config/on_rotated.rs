//! `on_rotated`: the unit that uses a secret, and what is done with it when there is a new version.

use super::section::{Value, one_of};
use crate::policy::Report;

/// The longest name of a unit (`systemd.unit(5)`).
const MAX_UNIT: usize = 255;

/// The agent's unit, as the packages have it.
const OWN: &str = "keyhatch.service";

/// A unit that is told of a new version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OnRotated {
    /// Its whole name.
    pub unit: String,
    /// What is done with it.
    pub job: Job,
}

/// What is done with a unit that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Job {
    /// It reads its configuration, and so its secrets, anew.
    Reload,
    /// It is stopped and started.
    TryRestart,
}

impl Job {
    /// The word for it, `systemctl`'s own.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reload => "reload",
            Self::TryRestart => "try-restart",
        }
    }
}

pub(super) fn read(value: &Value<'_>, report: &mut Report) -> Option<OnRotated> {
    let section = value.section("`on_rotated`", report)?;
    section.check_keys(&["unit", "do"], report);
    let unit = section
        .required("unit", "\"bot.service\"", report)
        .and_then(|value| value.string(report));
    let job = section
        .required("do", "\"reload\"", report)
        .and_then(|value| value.string(report))
        .and_then(|word| {
            let jobs = [Job::Reload, Job::TryRestart].map(|job| (job.as_str(), job));
            one_of(&word, "do", &jobs, report)
        });
    let unit = unit?;
    if !is_service(unit.value) {
        let text = format!(
            "`unit` is {:?}, which is not the name of one service, write it as in \"bot.service\" or \"bot@1.service\"",
            unit.value
        );
        report.error(&unit.place, text);
        return None;
    }
    if unit.value == OWN {
        let text =
            "`unit` is the agent's own, which would restart itself again and again, name the bot's";
        report.error(&unit.place, text);
        return None;
    }
    Some(OnRotated {
        unit: unit.value.to_owned(),
        job: job?,
    })
}

/// Whether it is the name of one service: no pattern, no template without an instance.
fn is_service(unit: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b":_.-\\@".contains(&byte);
    let name = unit.strip_suffix(".service");
    let whole = |name: &str| !name.is_empty() && !name.starts_with('@') && !name.ends_with('@');
    unit.len() <= MAX_UNIT && unit.bytes().all(fits) && name.is_some_and(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_is_one_service() {
        for unit in ["bot.service", "bot@1.service", "a-b_c:d\\x2d.service"] {
            assert!(is_service(unit), "{unit}");
        }
        let long = format!("{}.service", "x".repeat(MAX_UNIT));
        for unit in [
            "",
            "bot",
            "bot.socket",
            ".service",
            "bot@.service",
            "@1.service",
            "bot*.service",
            "a/b.service",
            "a b.service",
            "bot.service\n",
            &long,
        ] {
            assert!(!is_service(unit), "{unit}");
        }
    }
}
