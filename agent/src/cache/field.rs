//! One field of a value that is a JSON object.

use std::borrow::Cow;
use std::collections::HashMap;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

/// Finds field `name` of `value` and hands its bytes to `found`: a string's text, anything else's JSON.
///
/// `None` where the value is not a JSON object or has no such field. What had to be unescaped passes
/// through the heap, which wipes what it frees.
pub fn with<T>(value: &[u8], name: &str, found: impl FnOnce(&[u8]) -> T) -> Option<T> {
    #[derive(Deserialize)]
    struct Fields<'a>(#[serde(borrow)] HashMap<Cow<'a, str>, &'a RawValue>);

    let fields: Fields<'_> = serde_json::from_slice(value).ok()?;
    let json = fields.0.get(name)?.get();
    if !json.starts_with('"') {
        return Some(found(json.as_bytes()));
    }
    let inside = json.get(1..json.len().checked_sub(1)?)?;
    if !inside.contains('\\') {
        return Some(found(inside.as_bytes()));
    }
    let text: String = serde_json::from_str(json).ok()?;
    Some(found(text.as_bytes()))
}

/// Whether a value is a JSON object, so that it has fields.
pub fn is_object(value: &[u8]) -> bool {
    // Told at a glance of most values, before a parser runs.
    value.trim_ascii_start().starts_with(b"{")
        && serde_json::from_slice::<IgnoredAny>(value).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(value: &str, name: &str) -> Option<Vec<u8>> {
        with(value.as_bytes(), name, <[u8]>::to_vec)
    }

    #[test]
    fn fields_of_objects() {
        let value =
            r#"{"user":"bot","password":"a\"bé\n","port":5432,"tls":{"on":true},"n\u0061me":"x"}"#;
        assert_eq!(get(value, "user").as_deref(), Some(&b"bot"[..]));
        assert_eq!(
            get(value, "password").as_deref(),
            Some("a\"bé\n".as_bytes())
        );
        assert_eq!(get(value, "port").as_deref(), Some(&b"5432"[..]));
        assert_eq!(get(value, "tls").as_deref(), Some(&br#"{"on":true}"#[..]));
        assert_eq!(get(value, "name").as_deref(), Some(&b"x"[..]));
        assert_eq!(get(value, "absent"), None);
        assert!(is_object(value.as_bytes()) && is_object(b" {}\n"));
        for not_an_object in ["[1]", "\"text\"", "plain", "", "{\"a\":1"] {
            assert_eq!(get(not_an_object, "a"), None, "{not_an_object}");
            assert!(!is_object(not_an_object.as_bytes()), "{not_an_object}");
        }
    }
}
