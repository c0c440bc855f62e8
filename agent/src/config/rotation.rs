//! `[[rotation]]`: which secret changes when, by what, and who is told.

use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use keyhatch_protocol::{MAX_VALUE, Name};

use super::section::{Section, Value, duration, one_of};
use super::source::{Platform, Source, SourceKind};
use super::{Depth, OnRotated, held, host, on_rotated};
use crate::calendar::{Calendar, local_zone};
use crate::files::Holds;
use crate::policy::{At, Place, Report};
use crate::store::ALPHABET;

/// How long the version before stays readable unless told otherwise, where `every` is long enough.
pub const GRACE: Duration = Duration::from_secs(24 * 3600);

/// How long one step of a program may take unless told otherwise, and at most.
const TIMEOUT: Duration = Duration::from_secs(60);
const LONGEST_TIMEOUT: Duration = Duration::from_secs(3600);

/// The length of a generated value unless told otherwise.
const LENGTH: usize = 40;

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

/// What makes a new value, and brings it to where it is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Driver {
    /// A random value in the store.
    Generate(Alphabet),
    /// A program of the operator's.
    Exec(Program),
    /// Vault or OpenBao: a new version of a KV v2 secret, or what its server rotates.
    Vault(VaultDriver),
    /// AWS's own rotation.
    Aws,
}

/// What a random value is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alphabet {
    /// Its characters.
    pub characters: Vec<u8>,
    /// How many of them a value has.
    pub length: usize,
}

/// A program, as it is run for each step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// The program and its first arguments; the step is one more.
    pub command: Vec<String>,
    /// Who it runs as.
    pub user: Option<String>,
    /// How long one step may take.
    pub timeout: Duration,
}

/// How a secret of Vault is rotated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VaultDriver {
    /// The field of a KV v2 secret that gets a new value; its only one where none is given.
    pub field: Option<String>,
    /// What that value is made of.
    pub alphabet: Alphabet,
    /// Where the server rotates by itself: the path that tells it to.
    pub path: Option<String>,
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

impl Driver {
    /// The word for it.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Generate(_) => "generate",
            Self::Exec(_) => "exec",
            Self::Vault(_) => "vault",
            Self::Aws => "aws",
        }
    }

    /// Whether it writes the encrypted store, and so keeps a pending value there.
    #[must_use]
    pub fn is_local(&self) -> bool {
        matches!(self, Self::Generate(_) | Self::Exec(_))
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
    section.check_keys(&known, &[], report);
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
        .and_then(|value| read_driver(&value, depth, report));
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

/// The kinds of driver.
#[derive(Clone, Copy)]
enum Of {
    Generate,
    Exec,
    Vault,
    Aws,
}

fn read_driver(value: &Value<'_>, depth: Depth, report: &mut Report) -> Option<Driver> {
    let section = value.section("`driver`", report)?;
    let kinds = [
        ("generate", Of::Generate),
        ("exec", Of::Exec),
        ("vault", Of::Vault),
        ("aws", Of::Aws),
    ];
    let word = section
        .required("kind", "\"generate\"", report)?
        .string(report)?;
    let kind = one_of(&word, "kind", &kinds, report)?;
    let known: &[&str] = match kind {
        Of::Generate => &["kind", "length", "alphabet"],
        Of::Exec => &["kind", "command", "user", "timeout"],
        Of::Vault => &["kind", "field", "length", "alphabet", "path"],
        Of::Aws => &["kind"],
    };
    section.check_keys(known, &[], report);
    Some(match kind {
        Of::Generate => Driver::Generate(read_alphabet(&section, report)?),
        Of::Exec => Driver::Exec(read_program(&section, depth, report)?),
        Of::Vault => Driver::Vault(VaultDriver {
            field: section
                .string("field", report)
                .map(|at| at.value.to_owned()),
            alphabet: read_alphabet(&section, report)?,
            path: section.string("path", report).map(|at| at.value.to_owned()),
        }),
        Of::Aws => Driver::Aws,
    })
}

fn read_alphabet(section: &Section<'_>, report: &mut Report) -> Option<Alphabet> {
    let length = match section.get("length") {
        Some(value) => usize::try_from(value.number(report)?).ok()?,
        None => LENGTH,
    };
    if !(1..=MAX_VALUE).contains(&length) {
        let text =
            format!("`length` is {length}, a value has 1 to {MAX_VALUE} characters, change it");
        report.error(&section.place_of("length"), text);
    }
    let Some(At { value, place }) = section.string("alphabet", report) else {
        return Some(Alphabet {
            characters: ALPHABET.to_vec(),
            length,
        });
    };
    let mut characters: Vec<u8> = value.bytes().collect();
    characters.sort_unstable();
    characters.dedup();
    let printable = |byte: &u8| (b' '..=b'~').contains(byte);
    if characters.len() < 2 || characters.len() < value.len() || !characters.iter().all(printable) {
        let text =
            "`alphabet` must be at least two printable ASCII characters, each once, write them all";
        report.error(&place, text);
    }
    Some(Alphabet { characters, length })
}

/// A program as a driver runs it.
fn read_program(section: &Section<'_>, depth: Depth, report: &mut Report) -> Option<Program> {
    let command = section.required("command", "[\"/opt/rotate\"]", report)?;
    let place = command.place();
    let words = command.strings(report)?;
    let command: Vec<String> = words.iter().map(|word| word.value.to_owned()).collect();
    let program = command.first().map_or("", String::as_str);
    if !Path::new(program).is_absolute() || command.iter().any(|word| word.contains('\0')) {
        let text = "`command` must be a list whose first part is the absolute path of a program, begin it with a slash";
        report.error(&place, text);
        return None;
    }
    let what = "the driver program";
    let path = PathBuf::from(program);
    held::check_file(
        what,
        &path,
        Holds::Access,
        "put it there",
        &place,
        depth,
        report,
    );
    let user = section
        .string("user", report)
        .and_then(|at| host::checked_account("user", at.value, &at.place, depth, report));
    let timeout = duration(section, "timeout", report).unwrap_or(TIMEOUT);
    if timeout > LONGEST_TIMEOUT {
        report.error(
            &section.place_of("timeout"),
            "`timeout` must be at most \"1h\", a step that takes longer hangs, make it shorter",
        );
    }
    Some(Program {
        command,
        user,
        timeout,
    })
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
            Driver::Generate(_) | Driver::Exec(_) => "file",
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
