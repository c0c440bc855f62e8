//! What AWS tells of a secret, as the engine takes it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use aws_sdk_secretsmanager::primitives::{Blob, DateTime};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use keyhatch_protocol::MAX_VALUE;
use sha2::{Digest, Sha256};

use super::session::Stage;
use crate::sources::upstream::{Fetched, Trouble};
use crate::sys::arena::Arena;

/// A value as the SDK holds it, on the heap; it is wiped there by the daemon's allocator.
pub struct Value {
    pub version: Option<String>,
    pub created: Option<DateTime>,
    pub text: Option<String>,
    pub binary: Option<Blob>,
}

impl Value {
    /// Moves it into secret memory.
    pub fn keep(self, arena: &Arc<Arena>) -> Result<Fetched, Trouble> {
        let bytes = match (&self.text, &self.binary) {
            (Some(text), _) => text.as_bytes(),
            (None, Some(blob)) => blob.as_ref(),
            (None, None) => return Err(Trouble::unusable("AWS answered without a value")),
        };
        if bytes.len() > MAX_VALUE {
            return Err(Trouble::unusable(format!(
                "the value has {} bytes; at most {MAX_VALUE} can be served",
                bytes.len()
            )));
        }
        let Some(version) = &self.version else {
            return Err(Trouble::unusable("AWS answered without a version"));
        };
        let mut draft = arena
            .draft(bytes.len())
            .map_err(|full| Trouble::unusable(full.to_string()))?;
        draft.copy_from_slice(bytes);
        Ok(Fetched {
            version: opaque(version),
            updated_at: utc(self.created),
            value: draft.freeze(),
            lease: None,
        })
    }
}

/// The version that has a stage.
pub fn staged(stages: &HashMap<String, Vec<String>>, stage: Stage) -> Option<String> {
    let has = |labels: &Vec<String>| labels.iter().any(|label| label == stage.label());
    let version = stages.iter().find(|(_, labels)| has(labels));
    version.map(|(id, _)| opaque(id))
}

/// A version id is a UUID unless its maker chose another text; one that cannot stand in a header is hashed.
fn opaque(id: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if (1..=64).contains(&id.len()) && id.bytes().all(plain) {
        return id.to_owned();
    }
    URL_SAFE_NO_PAD.encode(Sha256::digest(id))
}

fn utc(created: Option<DateTime>) -> String {
    let created = created.and_then(|at| SystemTime::try_from(at).ok());
    humantime::format_rfc3339_millis(created.unwrap_or_else(SystemTime::now)).to_string()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn value(text: Option<&str>, binary: Option<&[u8]>) -> Value {
        Value {
            version: Some("0c9fb5d2-4ab2-4e3d-8d5f-2f3d3a4b5c6d".into()),
            created: Some(DateTime::from_millis(1_700_000_000_250)),
            text: text.map(str::to_owned),
            binary: binary.map(Blob::new),
        }
    }

    #[test]
    fn text_and_binary_are_kept_byte_for_byte() {
        let arena = Arena::new(1 << 18).unwrap();
        let text = value(Some("CANARY-ä\n"), None).keep(&arena).unwrap();
        assert_eq!(&text.value[..], "CANARY-ä\n".as_bytes());
        assert_eq!(text.version, "0c9fb5d2-4ab2-4e3d-8d5f-2f3d3a4b5c6d");
        assert_eq!(text.updated_at, "2023-11-14T22:13:20.250Z");
        let bytes = [0, 255, 10, 13];
        let binary = value(None, Some(&bytes)).keep(&arena).unwrap();
        assert_eq!(binary.value[..], bytes);
        let empty = value(Some(""), None).keep(&arena).unwrap();
        assert!(empty.value.is_empty());
    }

    #[test]
    fn what_cannot_be_served_is_unusable_and_not_quoted() {
        let arena = Arena::new(1 << 18).unwrap();
        let why = |value: Value| match value.keep(&arena) {
            Err(Trouble::Unusable { why }) => why,
            _ => panic!("it is usable"),
        };
        assert!(value(Some(&"x".repeat(65_536)), None).keep(&arena).is_ok());
        let large = "CANARY-".repeat(10_000);
        let text = why(value(Some(&large), None));
        assert!(
            text.contains("70000 bytes") && text.contains("65536"),
            "{text}"
        );
        assert!(!text.contains("CANARY"));
        assert!(why(value(None, None)).contains("without a value"));
        let nameless = Value {
            version: None,
            ..value(Some("CANARY"), None)
        };
        assert!(why(nameless).contains("without a version"));
        let small = Arena::new(4096).unwrap();
        let full = value(Some(&"x".repeat(5000)), None).keep(&small);
        assert!(
            matches!(full, Err(Trouble::Unusable { why }) if why.contains("secret memory is full"))
        );
        assert_eq!(small.used(), 0);
    }

    #[test]
    fn a_version_can_stand_in_a_header() {
        let odd = "my \"version\" of the thirty-second kind";
        assert_eq!(opaque(odd).len(), 43);
        assert_eq!(opaque(odd), opaque(odd));
        assert_ne!(
            opaque(odd),
            opaque("my 'version' of the thirty-second kind")
        );
        assert_eq!(opaque("").len(), 43);
        assert_eq!(opaque("a-1_b.C"), "a-1_b.C");
    }

    #[test]
    fn the_current_version_is_the_one_staged_so_and_a_pending_one_is_none() {
        let stages = |list: &[(&str, &[&str])]| -> HashMap<String, Vec<String>> {
            let owned = |labels: &[&str]| labels.iter().map(|label| (*label).to_owned()).collect();
            list.iter()
                .map(|(id, labels)| ((*id).to_owned(), owned(labels)))
                .collect()
        };
        let rotating = stages(&[
            ("v3", &["AWSPENDING"]),
            ("v2", &["custom", "AWSCURRENT"]),
            ("v1", &["AWSPREVIOUS"]),
        ]);
        assert_eq!(staged(&rotating, Stage::Current).as_deref(), Some("v2"));
        assert_eq!(staged(&rotating, Stage::Previous).as_deref(), Some("v1"));
        assert_eq!(
            staged(&stages(&[("v3", &["AWSPENDING"])]), Stage::Current),
            None
        );
    }
}
