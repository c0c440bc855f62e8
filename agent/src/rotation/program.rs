//! What a driver program is given on its standard input, and what it answers to `create`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::store::{Value, Version, Versions};

#[derive(Serialize)]
struct Input<'a> {
    secret: &'a str,
    request_id: &'a str,
    current: One<'a>,
    pending: Option<One<'a>>,
}

#[derive(Serialize)]
struct One<'a> {
    version: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_base64: Option<String>,
}

#[derive(Deserialize)]
struct Created {
    value: Option<String>,
    value_base64: Option<String>,
}

impl<'a> One<'a> {
    fn of(version: &Version<'a>) -> Self {
        let bytes = version.value.as_bytes();
        let text = std::str::from_utf8(bytes).ok();
        Self {
            version: version.id,
            value: text,
            value_base64: text.is_none().then(|| STANDARD.encode(bytes)),
        }
    }
}

/// The JSON object for one step.
pub fn input(secret: &str, request_id: &str, versions: &Versions<'_>) -> Zeroizing<Vec<u8>> {
    let input = Input {
        secret,
        request_id,
        current: One::of(&versions.current),
        pending: versions.pending.as_ref().map(One::of),
    };
    Zeroizing::new(serde_json::to_vec(&input).unwrap_or_default())
}

/// The value that a program answered to `create`.
///
/// # Errors
/// Why there is none; holds nothing of the answer.
pub fn created(answer: &[u8]) -> Result<Value, String> {
    let wanted =
        "its answer to `create` is not {\"value\": \"...\"} or {\"value_base64\": \"...\"}";
    let created: Created = serde_json::from_slice(answer).map_err(|_| wanted.to_owned())?;
    let bytes = match (created.value, created.value_base64) {
        (Some(value), None) => value.into_bytes(),
        (None, Some(value)) => STANDARD
            .decode(Zeroizing::new(value))
            .map_err(|_| wanted.to_owned())?,
        _ => return Err(wanted.to_owned()),
    };
    Value::new(bytes).map_err(|why| why.to_string())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn text_stays_text_and_other_bytes_are_base64() {
        let [text, bytes] =
            [&b"CANARY-\"1\""[..], &[0xff, 0]].map(|v| Value::new(v.to_vec()).unwrap());
        let versions = Versions {
            current: Version {
                id: "1-a",
                value: &text,
            },
            previous: None,
            pending: Some(Version {
                id: "2-b",
                value: &bytes,
            }),
        };
        let expected = r#"{"secret":"app/db","request_id":"r","current":{"version":"1-a","value":"CANARY-\"1\""},"pending":{"version":"2-b","value_base64":"/wA="}}"#;
        assert_eq!(&input("app/db", "r", &versions)[..], expected.as_bytes());
        let none = Versions {
            pending: None,
            ..versions
        };
        assert!(input("app/db", "r", &none).ends_with(br#","pending":null}"#));
    }

    #[test]
    fn an_answer_is_one_value() {
        assert!(
            created(br#"{"value":"CANARY", "more": 1}"#).unwrap()
                == Value::new("CANARY".into()).unwrap()
        );
        assert!(
            created(br#"{"value_base64":"/wA="}"#).unwrap() == Value::new(vec![0xff, 0]).unwrap()
        );
        for odd in [
            "",
            "CANARY",
            "{}",
            r#"{"value":1}"#,
            r#"{"value":"a","value_base64":""}"#,
            r#"{"value_base64":"!"}"#,
        ] {
            let why = created(odd.as_bytes()).err().unwrap();
            assert!(why.contains("create") && !why.contains("CANARY"));
        }
    }
}
