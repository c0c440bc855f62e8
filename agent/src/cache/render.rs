//! Replies rendered inside secret memory, once, when a value is loaded.
//!
//! JSON is written straight into a block of exactly the right size; the value's plaintext never passes
//! through the heap.

use std::ops::Range;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::sys::arena::{Arena, Block, Draft, Full};

/// A rendered JSON reply, and where in it the value stands.
pub struct Rendered {
    /// The whole reply.
    pub json: Block,
    /// The JSON string of the value inside it, quotes included.
    pub string: Range<usize>,
    /// Whether that is the value's text; else it is base64.
    pub is_text: bool,
    /// The raw value inside it, if it stands there unescaped.
    pub raw: Option<Range<usize>>,
}

/// What a reply says besides the value. None of it is secret.
pub struct About<'a> {
    /// The secret's name.
    pub name: &'a str,
    /// The version of the value.
    pub version: &'a str,
    /// When the value was set, RFC 3339.
    pub updated_at: &'a str,
    /// The name of its source.
    pub source: &'a str,
    /// Whether the source no longer stands behind it.
    pub stale: bool,
}

/// How every reply ends while its source is well; a stale one ends with [`STALE`] instead.
pub const FRESH: &[u8] = b"false}";

/// How a reply ends whose source is not well: the last good value is served.
pub const STALE: &[u8] = b"true}";

/// Renders `{"name","version","value"|"value_base64","updated_at","source","stale"}`.
///
/// A value that is not UTF-8 goes into `value_base64` (RFC 4648 section 4, padded).
pub fn reply(arena: &Arc<Arena>, about: &About<'_>, value: &[u8]) -> Result<Rendered, Full> {
    let text = std::str::from_utf8(value).is_ok();
    // Names and versions are of an alphabet that JSON does not escape; source names too.
    let key = if text { "value" } else { "value_base64" };
    let head = format!(
        r#"{{"name":"{}","version":"{}","{key}":""#,
        about.name, about.version
    );
    let tail = format!(
        r#"","updated_at":"{}","source":"{}","stale":{}}}"#,
        about.updated_at, about.source, about.stale
    );
    let inner = if text {
        escaped_len(value)
    } else {
        value.len().div_ceil(3) * 4
    };
    let mut draft = arena.draft(head.len() + inner + tail.len())?;
    let (before, rest) = draft.split_at_mut(head.len());
    let (middle, after) = rest.split_at_mut(inner);
    before.copy_from_slice(head.as_bytes());
    after.copy_from_slice(tail.as_bytes());
    if text {
        escape(value, middle);
    } else {
        base64(value, middle);
    }
    let unescaped = text && inner == value.len();
    let raw = head.len()..head.len() + inner;
    Ok(Rendered {
        json: draft.freeze(),
        string: raw.start - 1..raw.end + 1,
        is_text: text,
        raw: unescaped.then_some(raw),
    })
}

/// A copy of plaintext in secret memory.
pub fn copy(arena: &Arc<Arena>, value: &[u8]) -> Result<Block, Full> {
    let mut draft: Draft = arena.draft(value.len())?;
    draft.copy_from_slice(value);
    Ok(draft.freeze())
}

/// Several parts of a reply as one block of secret memory.
pub fn joined(arena: &Arc<Arena>, parts: [&[u8]; 3]) -> Result<Block, Full> {
    let mut draft: Draft = arena.draft(parts.iter().map(|part| part.len()).sum())?;
    let mut at = 0;
    for part in parts {
        draft[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    Ok(draft.freeze())
}

/// The length of `text` inside a JSON string.
fn escaped_len(text: &[u8]) -> usize {
    text.iter()
        .map(|byte| escape_of(*byte).map_or(1, str::len))
        .sum()
}

/// Writes `text` as the inside of a JSON string; `out` has exactly the room for it.
fn escape(text: &[u8], out: &mut [u8]) {
    let mut at = 0;
    for byte in text {
        match escape_of(*byte) {
            None => {
                out[at] = *byte;
                at += 1;
            }
            Some(escape) => {
                out[at..at + escape.len()].copy_from_slice(escape.as_bytes());
                at += escape.len();
            }
        }
    }
}

/// The escapes of RFC 8259 section 7 that must be made.
fn escape_of(byte: u8) -> Option<&'static str> {
    const CONTROL: [&str; 32] = [
        "\\u0000", "\\u0001", "\\u0002", "\\u0003", "\\u0004", "\\u0005", "\\u0006", "\\u0007",
        "\\b", "\\t", "\\n", "\\u000b", "\\f", "\\r", "\\u000e", "\\u000f", "\\u0010", "\\u0011",
        "\\u0012", "\\u0013", "\\u0014", "\\u0015", "\\u0016", "\\u0017", "\\u0018", "\\u0019",
        "\\u001a", "\\u001b", "\\u001c", "\\u001d", "\\u001e", "\\u001f",
    ];
    match byte {
        b'"' => Some("\\\""),
        b'\\' => Some("\\\\"),
        0..0x20 => Some(CONTROL[usize::from(byte)]),
        _ => None,
    }
}

fn base64(value: &[u8], out: &mut [u8]) {
    // The room was counted by the same rule that the encoder uses, so it always fits.
    let written = STANDARD.encode_slice(value, out);
    debug_assert!(written.is_ok());
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ABOUT: About<'_> = About {
        name: "a/b",
        version: "1-x",
        updated_at: "2026-01-01T00:00:00Z",
        source: "local",
        stale: false,
    };

    #[test]
    fn a_plain_value_stands_raw_inside_the_json() {
        let arena = Arena::new(65536).unwrap();
        let rendered = reply(&arena, &ABOUT, b"CANARY-plain").unwrap();
        assert_eq!(&rendered.json[rendered.raw.unwrap()], b"CANARY-plain");
        assert!(rendered.json.ends_with(FRESH));
        assert!(reply(&arena, &ABOUT, b"a\"b").unwrap().raw.is_none());
    }

    proptest! {
        #[test]
        fn any_value_reads_back(value in prop::collection::vec(any::<u8>(), 0..300)) {
            let arena = Arena::new(65536).unwrap();
            let rendered = reply(&arena, &ABOUT, &value).unwrap();
            let parsed: serde_json::Value = serde_json::from_slice(&rendered.json).unwrap();
            let back = match parsed.get("value") {
                Some(text) => text.as_str().unwrap().as_bytes().to_vec(),
                None => STANDARD.decode(parsed["value_base64"].as_str().unwrap()).unwrap(),
            };
            prop_assert_eq!(back, value);
            let string: serde_json::Value = serde_json::from_slice(&rendered.json[rendered.string]).unwrap();
            let key = if rendered.is_text { "value" } else { "value_base64" };
            prop_assert_eq!(&parsed[key], &string);
            prop_assert_eq!(&parsed["stale"], &serde_json::Value::Bool(false));
        }

        #[test]
        fn any_text_reads_back(value in ".{0,200}") {
            let arena = Arena::new(65536).unwrap();
            let rendered = reply(&arena, &ABOUT, value.as_bytes()).unwrap();
            let parsed: serde_json::Value = serde_json::from_slice(&rendered.json).unwrap();
            prop_assert_eq!(parsed["value"].as_str().unwrap(), value);
        }
    }
}
