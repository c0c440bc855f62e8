//! `driver` of a `[[rotation]]`: what makes a new value, and brings it to where it is used.

use std::path::{Path, PathBuf};
use std::time::Duration;

use keyhatch_protocol::MAX_VALUE;

use super::section::{Section, Value, duration, one_of};
use super::{Depth, held, host};
use crate::files::Holds;
use crate::policy::{At, Report};
use crate::store::ALPHABET;

/// How long one step of a program may take unless told otherwise, and at most.
const TIMEOUT: Duration = Duration::from_secs(60);
const LONGEST_TIMEOUT: Duration = Duration::from_secs(3600);

/// The length of a generated value unless told otherwise.
const LENGTH: usize = 40;

/// What makes a new value, and brings it to where it is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Driver {
    /// A random value in the store.
    Generate(Alphabet),
    /// A new pair of Ed25519 keys in the store.
    KeyPair,
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

impl Driver {
    /// The word for it.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Generate(_) | Self::KeyPair => "generate",
            Self::Exec(_) => "exec",
            Self::Vault(_) => "vault",
            Self::Aws => "aws",
        }
    }

    /// Whether it writes the encrypted store, and so keeps a pending value there.
    #[must_use]
    pub fn is_local(&self) -> bool {
        matches!(self, Self::Generate(_) | Self::KeyPair | Self::Exec(_))
    }
}

/// The kinds of driver.
#[derive(Clone, Copy)]
enum Of {
    Generate,
    Exec,
    Vault,
    Aws,
}

pub(super) fn read(value: &Value<'_>, depth: Depth, report: &mut Report) -> Option<Driver> {
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
        Of::Generate => &["kind", "length", "alphabet", "key_pair"],
        Of::Exec => &["kind", "command", "user", "timeout"],
        Of::Vault => &["kind", "field", "length", "alphabet", "path"],
        Of::Aws => &["kind"],
    };
    section.check_keys(known, report);
    Some(match kind {
        Of::Generate => match section.string("key_pair", report) {
            Some(word) => read_key_pair(&section, &word, report)?,
            None => Driver::Generate(read_alphabet(&section, report)?),
        },
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

fn read_key_pair(section: &Section<'_>, word: &At<&str>, report: &mut Report) -> Option<Driver> {
    one_of(word, "key_pair", &[("ed25519", ())], report)?;
    for key in ["length", "alphabet"] {
        if section.get(key).is_some() {
            let text = format!("`{key}` is of a random text, a key pair has none, remove it");
            report.error(&section.place_of(key), text);
        }
    }
    Some(Driver::KeyPair)
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
