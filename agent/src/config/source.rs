//! `[[source]]`: where secrets come from, and which source owns a name.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use keyhatch_protocol::Name;

use super::section::{Section, checked_name, one_of, shown};
use super::upstream::{self, Aws, Fetching, Vault};
use super::{Depth, held};
use crate::policy::{At, Place, Report};

/// The name of a store's file in its folder.
pub const STORE_FILE: &str = "store.khs";

const DEFAULT_STORE: &str = "/var/lib/keyhatch/store";
const DEFAULT_KEY: &str = "keyhatch.key";

/// One `[[source]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Its name, unique.
    pub name: String,
    /// What its names begin with: empty, or ending in a slash; unique.
    pub prefix: String,
    /// What it reads from.
    pub kind: SourceKind,
}

/// What a source reads from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceKind {
    /// The encrypted store.
    File {
        /// The store's folder.
        path: PathBuf,
        /// The key that opens it.
        key: KeySource,
    },
    /// A platform elsewhere.
    Upstream {
        /// How it is fetched from.
        fetching: Fetching,
        /// Which one it is.
        platform: Platform,
    },
}

/// A platform that secrets are fetched from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Platform {
    /// Vault or OpenBao.
    Vault(Box<Vault>),
    /// AWS Secrets Manager.
    Aws(Aws),
}

/// Where a key or another secret is: `file:PATH` or `credential:NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// A file.
    File(PathBuf),
    /// A systemd credential of the daemon's unit.
    Credential(String),
}

/// Why a text does not say where a key is. It holds nothing of the text, which may be the key itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a key is never written out but pointed to, write \"file:PATH\" or \"credential:NAME\"")]
pub struct KeySourceError;

impl Source {
    /// The source that is there where none is given.
    fn local() -> Self {
        Self {
            name: "local".into(),
            prefix: String::new(),
            kind: SourceKind::File {
                path: DEFAULT_STORE.into(),
                key: KeySource::Credential(DEFAULT_KEY.into()),
            },
        }
    }
}

impl FromStr for KeySource {
    type Err = KeySourceError;

    fn from_str(text: &str) -> Result<Self, KeySourceError> {
        match text.split_once(':') {
            Some(("file", path)) if !path.is_empty() && !path.contains('\0') => {
                Ok(Self::File(path.into()))
            }
            // It is the name of a file in $CREDENTIALS_DIRECTORY.
            Some(("credential", name))
                if !matches!(name, "" | "." | "..") && !name.contains(['/', '\0']) =>
            {
                Ok(Self::Credential(name.into()))
            }
            _ => Err(KeySourceError),
        }
    }
}

impl fmt::Display for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Credential(name) => write!(f, "credential:{name}"),
        }
    }
}

/// Every source; its store may be none of the folders that are `taken`. Where the file has none, `main` is
/// the place of the default.
pub(super) fn read_all(
    sections: &[Section<'_>],
    taken: &[(&str, &Path)],
    main: &Place,
    has_snapshot_key: bool,
    depth: Depth,
    report: &mut Report,
) -> Vec<Source> {
    if sections.is_empty() {
        let local = Source::local();
        if let SourceKind::File { path, key } = &local.kind {
            held::check_store(path, key, [main, main], depth, report);
        }
        return vec![local];
    }
    let mut sources: Vec<(Source, Place)> = Vec::new();
    for section in sections {
        let Some(source) = read(section, taken, report) else {
            continue;
        };
        for (first, first_place) in &sources {
            check_pair(first, first_place, &source, section, report);
        }
        match &source.kind {
            SourceKind::File { path, key } => {
                let places = [&section.place_of("path"), &section.place_of("key")];
                held::check_store(path, key, places, depth, report);
            }
            SourceKind::Upstream { fetching, platform } => {
                if fetching.snapshot && !has_snapshot_key {
                    let text =
                        "`snapshot` needs a key, write snapshot_key = \"file:PATH\" in [agent]";
                    report.error(&section.place_of("snapshot"), text);
                }
                upstream::check_files(platform, section, depth, report);
            }
        }
        sources.push((source, section.place()));
    }
    sources.into_iter().map(|(source, _)| source).collect()
}

fn check_pair(
    first: &Source,
    first_place: &Place,
    second: &Source,
    section: &Section<'_>,
    report: &mut Report,
) {
    if first.name == second.name {
        let text = format!(
            "source {:?} is already at {first_place}, rename or remove one",
            second.name
        );
        report.error(&section.place_of("name"), text);
    }
    if first.prefix == second.prefix {
        let text = format!(
            "source {:?} has the same prefix {:?} as the one at {first_place}, so that no one could tell \
             whose a name is, give one another prefix",
            second.name, second.prefix
        );
        report.error(&section.place_of("prefix"), text);
    }
    if let (SourceKind::File { path, .. }, SourceKind::File { path: other, .. }) =
        (&second.kind, &first.kind)
        && path == other
    {
        let text = format!(
            "source {:?} has the same store {} as the one at {first_place}, remove one",
            second.name,
            shown(path)
        );
        report.error(&section.place_of("path"), text);
    }
}

/// The kinds of source.
#[derive(Clone, Copy)]
enum Of {
    File,
    Vault,
    Aws,
}

fn read(section: &Section<'_>, taken: &[(&str, &Path)], report: &mut Report) -> Option<Source> {
    let before = report.errors.len();
    let kind = section
        .required("kind", "\"file\"", report)?
        .string(report)?;
    let kinds = [("file", Of::File), ("vault", Of::Vault), ("aws", Of::Aws)];
    let name = section
        .required("name", "\"local\"", report)
        .and_then(|name| name.string(report))
        .and_then(|name| checked_name("source", name, report));
    let prefix = read_prefix(section, report);
    let kind = match one_of(&kind, "kind", &kinds, report)? {
        Of::File => read_file(section, taken, report),
        Of::Vault => upstream::read_vault(section, report),
        Of::Aws => upstream::read_aws(section, report),
    };
    if report.errors.len() > before {
        return None;
    }
    Some(Source {
        name: name?.value,
        prefix,
        kind: kind?,
    })
}

fn read_file(
    section: &Section<'_>,
    taken: &[(&str, &Path)],
    report: &mut Report,
) -> Option<SourceKind> {
    section.check_keys(&["name", "kind", "path", "key", "prefix"], report);
    let path = section.path("path", report);
    if let Some(At { value: path, place }) = &path
        && let Some((what, _)) = taken.iter().find(|(_, folder)| folder == path)
    {
        let text = format!(
            "`path` is {} like the {what}, a store needs a folder of its own, change one",
            shown(path)
        );
        report.error(place, text);
    }
    let key = match section.get("key") {
        Some(_) => read_key(section, "key", report)?,
        None => KeySource::Credential(DEFAULT_KEY.into()),
    };
    Some(SourceKind::File {
        path: path.map_or_else(|| DEFAULT_STORE.into(), |at| at.value),
        key,
    })
}

/// Where a secret of the configuration's own is.
pub(super) fn read_key(section: &Section<'_>, key: &str, report: &mut Report) -> Option<KeySource> {
    let At { value: text, place } = section.string(key, report)?;
    match text.parse() {
        Ok(KeySource::File(path)) if !path.is_absolute() => {
            let text = format!("`{key}` must name an absolute path, begin it with file:/");
            report.error(&place, text);
            None
        }
        Ok(source) => Some(source),
        Err(error) => {
            report.error(&place, format!("`{key}` is not understood, {error}"));
            None
        }
    }
}

fn read_prefix(section: &Section<'_>, report: &mut Report) -> String {
    section
        .string("prefix", report)
        .map_or_else(String::new, |prefix| {
            checked_prefix("prefix", &prefix, report)
        })
}

/// What names begin with: empty, or segments that end in a slash.
pub(super) fn checked_prefix(key: &str, prefix: &At<&str>, report: &mut Report) -> String {
    let At {
        value: prefix,
        place,
    } = prefix;
    let problem = match prefix.strip_suffix('/') {
        _ if prefix.is_empty() => None,
        None => Some("it must end in a slash".into()),
        Some(part) => Name::parse(part).err().map(|error| error.to_string()),
    };
    if let Some(why) = problem {
        report.error(
            place,
            format!("`{key}` is {prefix:?}, {why}, write it as \"app/\""),
        );
    }
    (*prefix).into()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_pointed_to() {
        for good in ["file:/etc/k", "file:k", "credential:keyhatch.key"] {
            assert_eq!(good.parse::<KeySource>().unwrap().to_string(), good);
        }
        for bad in [
            "",
            "file:",
            "credential:",
            "credential:a/b",
            "credential:..",
            "hunter2",
            "/etc/k",
        ] {
            assert_eq!(bad.parse::<KeySource>(), Err(KeySourceError), "{bad}");
        }
    }
}
