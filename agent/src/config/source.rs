//! `[[source]]`: where secrets come from, and which source owns a name.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use keyhatch_protocol::Name;

use super::section::{Section, checked_name, not_yet, one_of, shown};
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
}

/// Where a 32-byte key is: `file:PATH` or `credential:NAME`.
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

/// The source that owns `name`: the one with the longest prefix of it.
#[must_use]
pub fn owner<'a>(sources: &'a [Source], name: &Name) -> Option<&'a Source> {
    sources
        .iter()
        .filter(|source| name.as_str().starts_with(&source.prefix))
        .max_by_key(|source| source.prefix.len())
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
    depth: Depth,
    report: &mut Report,
) -> Vec<Source> {
    if sections.is_empty() {
        let local = Source::local();
        let SourceKind::File { path, key } = &local.kind;
        held::check_store(path, key, [main, main], depth, report);
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
        let SourceKind::File { path, key } = &source.kind;
        let places = [&section.place_of("path"), &section.place_of("key")];
        held::check_store(path, key, places, depth, report);
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
    let SourceKind::File { path, .. } = &second.kind;
    let SourceKind::File { path: other, .. } = &first.kind;
    if path == other {
        let text = format!(
            "source {:?} has the same store {} as the one at {first_place}, remove one",
            second.name,
            shown(path)
        );
        report.error(&section.place_of("path"), text);
    }
}

fn read(section: &Section<'_>, taken: &[(&str, &Path)], report: &mut Report) -> Option<Source> {
    let before = report.errors.len();
    let kind = section
        .required("kind", "\"file\"", report)?
        .string(report)?;
    if matches!(kind.value, "vault" | "aws") {
        report.error(
            &kind.place,
            not_yet(&format!("a source of kind {:?}", kind.value)),
        );
        return None;
    }
    one_of(&kind, "kind", &[("file", ())], report)?;
    let later = ["prefetch", "refresh", "timeout", "max_stale", "snapshot"];
    section.check_keys(&["name", "kind", "path", "key", "prefix"], &later, report);
    let name = section
        .required("name", "\"local\"", report)
        .and_then(|name| name.string(report))
        .and_then(|name| checked_name("source", name, report));
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
    let key = read_key(section, report);
    let prefix = read_prefix(section, report);
    if report.errors.len() > before {
        return None;
    }
    Some(Source {
        name: name?.value,
        prefix,
        kind: SourceKind::File {
            path: path.map_or_else(|| DEFAULT_STORE.into(), |at| at.value),
            key: key.unwrap_or_else(|| KeySource::Credential(DEFAULT_KEY.into())),
        },
    })
}

fn read_key(section: &Section<'_>, report: &mut Report) -> Option<KeySource> {
    let At { value: text, place } = section.string("key", report)?;
    match text.parse() {
        Ok(KeySource::File(path)) if !path.is_absolute() => {
            report.error(
                &place,
                "`key` must name an absolute path, begin it with file:/",
            );
            None
        }
        Ok(key) => Some(key),
        Err(error) => {
            report.error(&place, format!("`key` is not understood, {error}"));
            None
        }
    }
}

fn read_prefix(section: &Section<'_>, report: &mut Report) -> String {
    let Some(At {
        value: prefix,
        place,
    }) = section.string("prefix", report)
    else {
        return String::new();
    };
    let problem = match prefix.strip_suffix('/') {
        _ if prefix.is_empty() => None,
        None => Some("it must end in a slash".into()),
        Some(part) => Name::parse(part).err().map(|error| error.to_string()),
    };
    if let Some(why) = problem {
        report.error(
            &place,
            format!("`prefix` is {prefix:?}, {why}, write it as \"app/\""),
        );
    }
    prefix.into()
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

    #[test]
    fn the_longest_prefix_owns_a_name() {
        let source = |name: &str, prefix: &str| Source {
            name: name.into(),
            prefix: prefix.into(),
            ..Source::local()
        };
        let sources = [
            source("all", ""),
            source("app", "app/"),
            source("db", "app/db/"),
        ];
        for (name, owned_by) in [
            ("x", "all"),
            ("app", "all"),
            ("app/x", "app"),
            ("app/db/x", "db"),
            ("app/dbx", "app"),
        ] {
            let name = Name::parse(name).unwrap();
            assert_eq!(owner(&sources, &name).unwrap().name, owned_by, "{name}");
        }
        assert!(owner(&sources[1..], &Name::parse("x").unwrap()).is_none());
    }
}
