//! `[dropin]`: how names of AWS and of Vault map to ours.

use std::collections::BTreeMap;

use super::section::Section;
use super::source::checked_prefix;
use super::upstream::checked_path;
use crate::policy::{At, Report};

/// What follows `/v1/` in the native API, and in what Vault's clients ask besides mounts.
pub const NATIVE_PATHS: [&str; 9] = [
    "auth", "batch", "health", "rotate", "secrets", "sys", "use", "watch", "whoami",
];

/// How names of the drop-in surfaces map to ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dropin {
    /// What the name of an AWS id begins with: empty, or ending in a slash.
    pub aws_prefix: String,
    /// Mounts of Vault's KV, without a slash at their end, and what their names begin with.
    pub vault_mounts: BTreeMap<String, String>,
}

impl Default for Dropin {
    fn default() -> Self {
        Self {
            aws_prefix: String::new(),
            vault_mounts: BTreeMap::from([("secret".into(), String::new())]),
        }
    }
}

impl Dropin {
    /// What names under the mount of `path` begin with, and the path within it.
    #[must_use]
    pub fn mount<'a>(&self, path: &'a str) -> Option<(&str, &'a str)> {
        self.vault_mounts.iter().find_map(|(mount, prefix)| {
            let rest = path.strip_prefix(mount)?;
            let rest = if rest.is_empty() {
                rest
            } else {
                rest.strip_prefix('/')?
            };
            Some((prefix.as_str(), rest))
        })
    }
}

pub(super) fn read(section: &Section<'_>, report: &mut Report) -> Dropin {
    section.check_keys(&["aws_prefix", "vault_mounts"], report);
    let aws_prefix = section
        .string("aws_prefix", report)
        .map(|prefix| checked_prefix("aws_prefix", &prefix, report));
    let mut dropin = Dropin {
        aws_prefix: aws_prefix.unwrap_or_default(),
        ..Dropin::default()
    };
    if let Some(value) = section.get("vault_mounts") {
        let mounts = value.section("vault_mounts", report);
        dropin.vault_mounts = read_mounts(&mounts.unwrap_or_default(), report);
    }
    dropin
}

fn read_mounts(section: &Section<'_>, report: &mut Report) -> BTreeMap<String, String> {
    let mut mounts: BTreeMap<String, String> = BTreeMap::new();
    for value in section.values() {
        let at = At {
            value: value.key,
            place: value.place(),
        };
        let prefix = value.string(report);
        let prefix = prefix.map(|prefix| checked_prefix("vault_mounts", &prefix, report));
        let mount = checked_path("vault_mounts", &at, report);
        let (Some(prefix), Some(mount)) = (prefix, mount) else {
            continue;
        };
        let first = mount.split('/').next().unwrap_or_default();
        if NATIVE_PATHS.contains(&first) {
            let text = format!(
                "mount {mount:?} of `vault_mounts` would hide /v1/{first} of the agent's own API, name it otherwise"
            );
            report.error(&at.place, text);
        }
        let nested = |other: &&String| is_under(&mount, other) || is_under(other, &mount);
        if let Some(other) = mounts.keys().find(nested) {
            let text = format!(
                "mounts {other:?} and {mount:?} of `vault_mounts` lie in one another, rename one"
            );
            report.error(&at.place, text);
        }
        mounts.insert(mount, prefix);
    }
    mounts
}

/// Whether `path` is `mount` or lies under it.
#[must_use]
pub fn is_under(path: &str, mount: &str) -> bool {
    path.strip_prefix(mount)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}
