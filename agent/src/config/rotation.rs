//! `[[rotation]]`: which secret changes when, by what, and who is told.

use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use keyhatch_protocol::Name;

use super::section::{Section, duration};
use super::source::{Platform, Source, SourceKind};
use super::{Depth, Driver, OnRotated, driver, on_rotated};
use crate::calendar::{Calendar, local_zone};
use crate::policy::{At, Place, Report};

/// How long the version before stays readable unless told otherwise, where `every` is long enough.
pub const GRACE: Duration = Duration::from_secs(24 * 3600);

/// From here on the gaps of a calendar expression are looked at: a whole cycle of leap years is behind it.
const REFERENCE: i64 = 1_735_689_600;

/// One `[[rotation]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotation {
    /// Which secret.
    pub secret: Name,
    /// How often, or when.
    pub every: Every,
    /// How much later a rotation may begin than it is due.
    pub jitter: Duration,
    /// How long the version before stays readable.
    pub grace: Duration,
    /// By what.
    pub driver: Driver,
    /// The only host that does it.
    pub host: Option<String>,
    /// The unit that is told of a new version.
    pub on_rotated: Option<OnRotated>,
}

/// How often, or when.
#[derive(Clone, Debug, PartialEq)]
pub enum Every {
    /// When the value is this old.
    Span(Duration),
    /// At these moments.
    Calendar(Box<Calendar>),
}

impl Every {
    /// As it was written, for people.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Self::Span(span) => humantime::format_duration(*span).to_string(),
            Self::Calendar(calendar) => calendar.as_str().to_owned(),
        }
    }

    /// The shortest time between two rotations; `None` where there is only one.
    fn shortest(&self) -> Option<Duration> {
        match self {
            Self::Span(span) => Some(*span),
            Self::Calendar(calendar) => {
                calendar.shortest_gap(Timestamp::from_second(REFERENCE).ok()?)
            }
        }
    }
}

/// Every rotation. `sources` are those of the whole configuration.
pub(super) fn read_all(
    sections: &[Section<'_>],
    sources: &[Source],
    depth: Depth,
    report: &mut Report,
) -> Vec<Rotation> {
    let zone = local_zone();
    let mut all: Vec<(Rotation, Place)> = Vec::new();
    for section in sections {
        let Some(rotation) = read(section, sources, &zone, depth, report) else {
            continue;
        };
        let same = |(other, _): &&(Rotation, Place)| other.secret == rotation.secret;
        if let Some((_, first)) = all.iter().find(same) {
            let text = format!(
                "the rotation of {:?} is already at {first}, remove one",
                rotation.secret.as_str()
            );
            report.error(&section.place_of("secret"), text);
        }
        all.push((rotation, section.place()));
    }
    all.into_iter().map(|(rotation, _)| rotation).collect()
}

fn read(
    section: &Section<'_>,
    sources: &[Source],
    zone: &TimeZone,
    depth: Depth,
    report: &mut Report,
) -> Option<Rotation> {
    let known = [
        "secret",
        "every",
        "jitter",
        "grace",
        "driver",
        "host",
        "on_rotated",
    ];
    section.check_keys(&known, report);
    let secret = section
        .required("secret", "\"app/session-key\"", report)
        .and_then(|value| value.string(report))
        .and_then(|text| read_secret(&text, report));
    let every = section
        .required("every", "\"30d\"", report)
        .and_then(|value| value.string(report))
        .and_then(|text| read_every(&text, zone, report));
    let times = every
        .as_ref()
        .map(|every| read_times(section, every, report));
    let driver = section
        .required("driver", "{ kind = \"generate\", length = 40 }", report)
        .and_then(|value| driver::read(&value, depth, report));
    let host = section
        .string("host", report)
        .and_then(|text| read_host(&text, report));
    let on_rotated = section
        .get("on_rotated")
        .and_then(|value| on_rotated::read(&value, report));
    let (secret, driver) = (secret?, driver?);
    check_source(&secret, &driver, sources, report);
    if matches!(driver, Driver::Exec(_)) && section.get("host").is_none() {
        let text = format!(
            "the rotation of {:?} runs a program and has no `host`, each host with this configuration would do \
             it, name one",
            secret.value.as_str()
        );
        report.warning(&section.place(), text);
    }
    let (jitter, grace) = times?;
    Some(Rotation {
        secret: secret.value,
        every: every?,
        jitter,
        grace,
        driver,
        host,
        on_rotated,
    })
}

fn read_secret(text: &At<&str>, report: &mut Report) -> Option<At<Name>> {
    let At { value, place } = text;
    match Name::parse(value) {
        Ok(value) => Some(At {
            value,
            place: place.clone(),
        }),
        Err(why) => {
            report.error(
                place,
                format!("`secret` is {value:?}, {why}, name one secret"),
            );
            None
        }
    }
}

fn read_every(text: &At<&str>, zone: &TimeZone, report: &mut Report) -> Option<Every> {
    let At { value, place } = text;
    if let Ok(span) = humantime::parse_duration(value)
        && span >= Duration::from_secs(1)
    {
        return Some(Every::Span(span));
    }
    match Calendar::parse(value, zone) {
        Ok(calendar) => Some(Every::Calendar(Box::new(calendar))),
        Err(why) => {
            let text = format!(
                "`every` is {value:?}, {why}, write a span such as \"30d\" or a calendar expression of systemd \
                 such as \"Mon *-*-* 03:00\""
            );
            report.error(place, text);
            None
        }
    }
}

/// `jitter` and `grace`: both end before the next rotation may begin.
fn read_times(section: &Section<'_>, every: &Every, report: &mut Report) -> (Duration, Duration) {
    let half = every.shortest().map_or(Duration::MAX, |gap| gap / 2);
    let mut read = |key: &str, default: Duration| {
        let found = duration(section, key, report).unwrap_or(default.min(half));
        if found > half {
            let text = format!(
                "`{key}` is more than half of `every`, so that it would reach into the next rotation, make it at \
                 most {:?}",
                humantime::format_duration(half).to_string()
            );
            report.error(&section.place_of(key), text);
        }
        found
    };
    (read("jitter", Duration::ZERO), read("grace", GRACE))
}

fn read_host(text: &At<&str>, report: &mut Report) -> Option<String> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    let At { value, place } = text;
    if value.is_empty() || !value.bytes().all(fits) {
        report.error(
            place,
            format!("`host` is {value:?}, it is no host name, write what `hostname` prints"),
        );
        return None;
    }
    Some((*value).to_owned())
}

/// `generate` and `exec` write a store of this host, `vault` and `aws` what their own source reads.
fn check_source(secret: &At<Name>, driver: &Driver, sources: &[Source], report: &mut Report) {
    let name = secret.value.as_str();
    let owner = sources
        .iter()
        .filter(|source| name.starts_with(&source.prefix))
        .max_by_key(|source| source.prefix.len());
    let Some(owner) = owner else {
        report.error(
            &secret.place,
            format!("no source has {name:?}, each name begins with the prefix of one, change it"),
        );
        return;
    };
    let (kind, fits) = match (&owner.kind, driver) {
        (SourceKind::File { .. }, driver) => ("file", driver.is_local()),
        (SourceKind::Upstream { platform, .. }, driver) => match platform {
            Platform::Vault(_) => ("vault", matches!(driver, Driver::Vault(_))),
            Platform::Aws(_) => ("aws", matches!(driver, Driver::Aws)),
        },
    };
    if !fits {
        let wanted = match driver {
            Driver::Generate(_) | Driver::KeyPair | Driver::Exec(_) => "file",
            Driver::Vault(_) => "vault",
            Driver::Aws => "aws",
        };
        let text = format!(
            "the driver {:?} needs a source of kind {wanted:?}, {name:?} is of source {:?}, which is of kind \
             {kind:?}, use another driver",
            driver.word(),
            owner.name
        );
        report.error(&secret.place, text);
    }
}
