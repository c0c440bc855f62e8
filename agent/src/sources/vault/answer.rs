//! What Vault answers: the JSON of its API, read without copying a value.
//!
//! A parser's own words may quote what it read, so they are never passed on.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use crate::sources::upstream::Standing;

/// How deep a value may nest: what a JSON parser with the usual bound reads.
const DEEPEST: usize = 127;

/// What every answer is wrapped in.
#[derive(Deserialize)]
pub struct Envelope<'a> {
    /// Empty where nothing is lent.
    #[serde(default)]
    pub lease_id: &'a str,
    #[serde(default)]
    pub renewable: bool,
    #[serde(default)]
    pub lease_duration: u64,
    #[serde(default, borrow)]
    pub data: Option<&'a RawValue>,
    #[serde(default, borrow)]
    pub auth: Option<Auth<'a>>,
}

/// A login, or a token that was renewed.
#[derive(Deserialize)]
pub struct Auth<'a> {
    pub client_token: &'a str,
    pub lease_duration: u64,
    pub renewable: bool,
}

/// `data` of `auth/token/lookup-self`.
#[derive(Deserialize)]
pub struct OwnToken {
    pub ttl: u64,
    #[serde(default)]
    pub renewable: bool,
}

/// `data` of what unwraps a secret id.
#[derive(Deserialize)]
pub struct SecretId<'a> {
    pub secret_id: &'a str,
}

/// `data` of `sys/internal/ui/mounts/MOUNT`.
#[derive(Deserialize)]
pub struct MountInfo<'a> {
    /// Ends in a slash.
    pub path: &'a str,
    #[serde(default, borrow)]
    pub options: Option<MountOptions<'a>>,
}

#[derive(Deserialize)]
pub struct MountOptions<'a> {
    #[serde(default)]
    pub version: Option<&'a str>,
}

/// `data` of a version of KV v2. The secret's own data is `None` where the version is deleted.
#[derive(Deserialize)]
pub struct Versioned<'a> {
    #[serde(default, borrow)]
    pub data: Option<&'a RawValue>,
    #[serde(borrow)]
    pub metadata: VersionInfo<'a>,
}

#[derive(Deserialize)]
pub struct VersionInfo<'a> {
    pub version: u64,
    pub created_time: &'a str,
}

/// `data` of the metadata of KV v2.
#[derive(Deserialize)]
pub struct Metadata<'a> {
    pub current_version: u64,
    #[serde(borrow)]
    pub versions: BTreeMap<u64, Made<'a>>,
}

/// One version in the metadata.
#[derive(Deserialize)]
pub struct Made<'a> {
    pub created_time: &'a str,
    #[serde(default)]
    pub deletion_time: &'a str,
    #[serde(default)]
    pub destroyed: bool,
}

/// `data` of a list.
#[derive(Deserialize)]
pub struct Keys<'a> {
    pub keys: Vec<String>,
    /// For each key, where the list is a detailed one. A folder's is empty.
    #[serde(default, borrow)]
    pub key_info: BTreeMap<String, &'a RawValue>,
}

/// What data that is lent without a lease may say of its end.
#[derive(Deserialize)]
pub struct Ends {
    #[serde(default)]
    ttl: Option<u64>,
    #[serde(default)]
    expiration: Option<u64>,
}

/// Reads JSON. `None` where it is not what it should be.
pub fn parse<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Option<T> {
    serde_json::from_slice(json).ok()
}

/// The `data` of an answer, read as `T`.
pub fn data<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Option<T> {
    let envelope: Envelope<'a> = parse(body)?;
    parse(envelope.data?.get().as_bytes())
}

/// The text of a value, if it is a JSON object that others can read, too.
pub fn object(raw: &RawValue) -> Option<&[u8]> {
    let text = raw.get().as_bytes();
    (text.first() == Some(&b'{') && depth(text) <= DEEPEST).then_some(text)
}

impl Made<'_> {
    /// Whether its value can still be read.
    pub fn is_there(&self) -> bool {
        // It may say when it is going to be deleted.
        let deleted = !self.deletion_time.is_empty()
            && humantime::parse_rfc3339(self.deletion_time)
                .map_or(true, |time| time <= SystemTime::now());
        !self.destroyed && !deleted
    }
}

impl Metadata<'_> {
    /// How the secret stands; not known where this does not tell.
    pub fn standing(&self) -> Standing {
        if self.current_version == 0 {
            return Standing::Absent;
        }
        match self.versions.get(&self.current_version) {
            Some(made) if !made.is_there() => Standing::Absent,
            Some(made) => version(self.current_version, made.created_time)
                .map_or(Standing::Unknown, Standing::Version),
            None => Standing::Unknown,
        }
    }

    /// The number of the version before the current one that is still there.
    pub fn previous(&self) -> Option<u64> {
        self.versions
            .range(..self.current_version)
            .rev()
            .find(|(_, made)| made.is_there())
            .map(|(number, _)| *number)
    }
}

impl Ends {
    /// How long from now, where it says so.
    pub fn time(&self) -> Option<Duration> {
        let now = SystemTime::UNIX_EPOCH
            .elapsed()
            .map_or(0, |time| time.as_secs());
        let left = self
            .ttl
            .or(self.expiration.map(|end| end.saturating_sub(now)))?;
        // What ends this very moment is asked for again a little later.
        Some(Duration::from_secs(left.max(1)))
    }
}

/// `N-HASH8`: a secret that was deleted with all its versions begins at 1 again, at another time.
/// `None` where the time is none.
pub fn version(number: u64, created_time: &str) -> Option<String> {
    humantime::parse_rfc3339(created_time).ok()?;
    let hash = Sha256::digest(created_time.as_bytes());
    let [a, b, c, d, ..] = hash[..] else {
        return None;
    };
    Some(format!("{number}-{a:02x}{b:02x}{c:02x}{d:02x}"))
}

/// How deep valid JSON nests.
fn depth(json: &[u8]) -> usize {
    let (mut now, mut deepest) = (0_usize, 0);
    let (mut in_text, mut escaped) = (false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            b'{' | b'[' if !in_text => {
                now += 1;
                deepest = deepest.max(now);
            }
            b'}' | b']' if !in_text => now = now.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn depth_counts_what_nests_and_not_what_is_text() {
        assert_eq!(depth(br#"{"a":[{"b":"]]}\"[[["}],"c":{}}"#), 3);
        let nested = |levels: usize| format!("{}1{}", "{\"a\":".repeat(levels), "}".repeat(levels));
        for (levels, usable) in [(DEEPEST, true), (DEEPEST + 1, false)] {
            let text = nested(levels);
            let raw: &RawValue = serde_json::from_str(&text).unwrap();
            assert_eq!(object(raw).is_some(), usable);
            assert_eq!(
                serde_json::from_str::<serde_json::Value>(&text).is_ok(),
                usable
            );
        }
    }

    #[test]
    fn a_version_that_was_made_again_is_another() {
        assert_ne!(
            version(1, "2026-01-02T03:04:05.1Z"),
            version(1, "2026-01-02T03:04:05.2Z")
        );
        assert_eq!(version(1, "yesterday"), None);
        assert_eq!(version(1, "2026-01-02T03:04:05\"Z"), None);
    }

    proptest! {
        #[test]
        fn no_answer_is_read_as_more_than_it_says(body in "[{}\\[\\]\":,a-d0-9]{0,40}") {
            let _ = data::<Versioned<'_>>(body.as_bytes());
            let _ = data::<Metadata<'_>>(body.as_bytes()).map(|metadata| (metadata.standing(), metadata.previous()));
            let _ = data::<Keys<'_>>(body.as_bytes());
        }
    }
}
