//! JSON strings that hold secrets, decoded into memory that is wiped.
//!
//! `serde_json` decodes escapes in a buffer of its own that it does not wipe, and its errors may quote what
//! they met. So it only finds where a value lies ([`RawValue`]), and this file decodes it.

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::value::RawValue;
use zeroize::Zeroizing;

/// A field of a JSON object: the characters of a string, or the JSON text of anything else.
pub(crate) fn field(object: &[u8], name: &str) -> Option<Zeroizing<Vec<u8>>> {
    if object.trim_ascii_start().first() != Some(&b'{') {
        return None;
    }
    let fields: HashMap<String, &RawValue> = serde_json::from_slice(object).ok()?;
    let text = fields.get(name)?.get();
    if text.starts_with('"') {
        return string(text);
    }
    Some(Zeroizing::new(text.as_bytes().to_vec()))
}

/// The bytes that a JSON string holds as base64 (RFC 4648, section 4).
pub(crate) fn base64(json: &str) -> Option<Zeroizing<Vec<u8>>> {
    let text = string(json)?;
    let mut bytes = Zeroizing::new(vec![0; base64::decoded_len_estimate(text.len())]);
    let length = STANDARD.decode_slice(text.as_slice(), &mut bytes).ok()?;
    bytes.truncate(length);
    Some(bytes)
}

/// The characters of a JSON string, given with its quotes.
pub(crate) fn string(json: &str) -> Option<Zeroizing<Vec<u8>>> {
    let mut rest = json.strip_prefix('"')?.strip_suffix('"')?;
    // No escape is shorter than what it stands for: the buffer never grows, so nothing is left behind.
    let mut out = Zeroizing::new(Vec::with_capacity(rest.len()));
    while let Some(at) = rest.find('\\') {
        out.extend_from_slice(&rest.as_bytes()[..at]);
        let (character, after) = escape(&rest[at + 1..])?;
        out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
        rest = after;
    }
    out.extend_from_slice(rest.as_bytes());
    Some(out)
}

/// One escape without its backslash, and what follows it (RFC 8259, section 7).
fn escape(text: &str) -> Option<(char, &str)> {
    let mut rest = text.chars();
    let character = match rest.next()? {
        plain @ ('"' | '\\' | '/') => plain,
        'b' => '\u{8}',
        'f' => '\u{c}',
        'n' => '\n',
        'r' => '\r',
        't' => '\t',
        'u' => return unicode(rest.as_str()),
        _ => return None,
    };
    Some((character, rest.as_str()))
}

fn unicode(text: &str) -> Option<(char, &str)> {
    let (first, rest) = unit(text)?;
    if let Some(character) = char::from_u32(first) {
        return Some((character, rest));
    }
    let (second, rest) = unit(rest.strip_prefix("\\u")?)?;
    if !(0xD800..0xDC00).contains(&first) || !(0xDC00..0xE000).contains(&second) {
        return None;
    }
    let character = 0x1_0000 + ((first - 0xD800) << 10) + (second - 0xDC00);
    Some((char::from_u32(character)?, rest))
}

fn unit(text: &str) -> Option<(u32, &str)> {
    let (digits, rest) = text.split_at_checked(4)?;
    if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    Some((u32::from_str_radix(digits, 16).ok()?, rest))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_string_reads_as_serde_json_wrote_it(text in any::<String>()) {
            let json = serde_json::to_string(&text).unwrap();
            prop_assert!(string(&json).unwrap().as_slice() == text.as_bytes());
        }

        #[test]
        fn escapes_read_as_serde_json_reads_them(text in r#"(\\(u[dD][89cC]00|u00[0-9a-f]{2}|[bfnrt"/\\x])|[a-zé]){0,8}"#) {
            let json = format!("\"{text}\"");
            let expected = serde_json::from_str::<String>(&json).ok();
            let read = string(&json).map(|bytes| String::from_utf8(bytes.to_vec()).unwrap());
            prop_assert_eq!(read, expected);
        }

        #[test]
        fn nothing_panics(text in any::<String>(), bytes in any::<Vec<u8>>()) {
            let _ = string(&text);
            let _ = base64(&text);
            let _ = field(&bytes, "a");
        }
    }

    #[test]
    fn two_units_make_one_character() {
        assert_eq!(
            string(r#""\ud83d\ude00""#).unwrap().as_slice(),
            "\u{1f600}".as_bytes()
        );
        for lone in [
            r#""\ud83d""#,
            r#""\ude00\ud83d""#,
            r#""\ud83d\n""#,
            r#""\u+123""#,
        ] {
            assert!(string(lone).is_none(), "{lone}");
        }
    }

    #[test]
    fn fields_of_any_kind() {
        let object = br#" {"user":"bot","pa\u0073s":"x\ny","port":5432,"tls":{"ca":null}} "#;
        assert_eq!(field(object, "user").unwrap().as_slice(), b"bot");
        assert_eq!(field(object, "pass").unwrap().as_slice(), b"x\ny");
        assert_eq!(field(object, "port").unwrap().as_slice(), b"5432");
        assert_eq!(field(object, "tls").unwrap().as_slice(), br#"{"ca":null}"#);
        assert!(field(object, "other").is_none());
        for no_object in [&b"plain"[..], b"[1]", b"\"x\"", b"", b"{\"a\":1} x", b"{"] {
            assert!(field(no_object, "a").is_none());
        }
    }

    #[test]
    fn base64_is_strict() {
        assert_eq!(base64(r#""AP8=""#).unwrap().as_slice(), b"\0\xff");
        assert_eq!(base64(r#""""#).unwrap().as_slice(), b"");
        assert!(base64(r#""AP8""#).is_none());
        assert!(base64(r#""A P8""#).is_none());
    }
}
