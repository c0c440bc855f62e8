//! What a request's body has to say before it may leave: JSON, looked at as any parser at the upstream might read it.
//!
//! Where two parsers could read a body in two ways, it is refused: a key that is there twice, also in another case, or
//! a body that is said to be something else than JSON.

use std::collections::HashSet;
use std::fmt;

use hyper::HeaderMap;
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE};
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value as Json};
use tokio::sync::Semaphore;

use crate::config::Condition;

/// What takes no time to look at. The larger ones are looked at one at a time, since a parsed body is many times as large.
pub const AT_ONCE: usize = 64 * 1024;
pub static LARGE: Semaphore = Semaphore::const_new(1);

/// Why a body is refused. Never holds what is in it.
#[derive(Debug, PartialEq, Eq)]
pub enum Unmet {
    /// It is not sent as plain JSON.
    Kind,
    /// It is no JSON, or can be read in two ways.
    Json,
    /// It says something else there.
    Value(String),
}

impl fmt::Display for Unmet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kind => f.write_str(
                "this route looks at bodies, send it with content-type: application/json and no content-encoding",
            ),
            Self::Json => f.write_str("the body is no JSON, or has a key twice"),
            Self::Value(pointer) => {
                write!(f, "{pointer} in the body is none of what this route allows")
            }
        }
    }
}

/// Whether a body is said to be what can be looked at.
pub fn check_kind(headers: &HeaderMap) -> Result<(), Unmet> {
    if !is_json(headers) || headers.contains_key(CONTENT_ENCODING) {
        return Err(Unmet::Kind);
    }
    Ok(())
}

/// Whether a body meets all conditions.
pub fn check(conditions: &[Condition], body: &[u8]) -> Result<(), Unmet> {
    let Strict(body) = serde_json::from_slice(body).map_err(|_| Unmet::Json)?;
    let is_unmet = |condition: &&Condition| {
        let found = body.pointer(&condition.pointer);
        !found.is_some_and(|value| condition.values.contains(value))
    };
    match conditions.iter().find(is_unmet) {
        Some(condition) => Err(Unmet::Value(condition.pointer.clone())),
        None => Ok(()),
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let mut kinds = headers.get_all(CONTENT_TYPE).iter();
    let kind = kinds.next().and_then(|kind| kind.to_str().ok());
    let plain = kind.map(|kind| kind.to_ascii_lowercase().replace([' ', '"'], ""));
    let known = ["application/json", "application/json;charset=utf-8"];
    kinds.next().is_none() && plain.is_some_and(|plain| known.contains(&plain.as_str()))
}

/// A value in which no key is there twice.
struct Strict(Json);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(StrictVisitor).map(Self)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
        Ok(Number::from_f64(value).map_or(Json::Null, Json::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Json, A::Error> {
        let mut all = Vec::new();
        while let Some(Strict(value)) = seq.next_element()? {
            all.push(value);
        }
        Ok(Json::Array(all))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let (mut all, mut folded) = (Map::new(), HashSet::new());
        while let Some((key, Strict(value))) = map.next_entry::<String, Strict>()? {
            // Some parsers take keys in any case, and characters that have the same capital for one.
            if !folded.insert(key.to_uppercase().to_lowercase()) {
                return Err(A::Error::custom("a key twice"));
            }
            all.insert(key, value);
        }
        Ok(Json::Object(all))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;
    use serde_json::json;

    fn said(kind: &str, body: &str) -> Result<(), Unmet> {
        let conditions = [
            Condition {
                pointer: "/model".into(),
                values: vec![json!("small"), json!("tiny")],
            },
            Condition {
                pointer: "/o~1p/n".into(),
                values: vec![json!(1), json!(true)],
            },
        ];
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_str(kind).unwrap());
        check_kind(&headers)?;
        check(&conditions, body.as_bytes())
    }

    #[test]
    fn a_body_says_what_it_has_to() {
        let json = "application/json; charset=UTF-8";
        assert_eq!(
            said(
                json,
                r#"{"model": "t\u0069ny", "o/p": {"n": 1}, "x": [null, 1.5]}"#
            ),
            Ok(())
        );
        assert_eq!(
            said(json, r#"{"model": "small", "o/p": {"n": true}}"#),
            Ok(())
        );
        for (body, place) in [
            (r#"{"model": "large", "o/p": {"n": 1}}"#, "/model"),
            (r#"{"Model": "small", "o/p": {"n": 1}}"#, "/model"),
            (r#"{"model": ["small"], "o/p": {"n": 1}}"#, "/model"),
            (r#"["small"]"#, "/model"),
            (r#"{"model": "small", "o/p": {"n": "1"}}"#, "/o~1p/n"),
            (r#"{"model": "small", "o/p": {"n": 2}}"#, "/o~1p/n"),
        ] {
            assert_eq!(said(json, body), Err(Unmet::Value(place.into())), "{body}");
        }
    }

    #[test]
    fn what_two_parsers_could_read_in_two_ways_is_refused() {
        let json = "application/json";
        for body in [
            r#"{"model": "small", "model": "large", "o/p": {"n": 1}}"#,
            r#"{"model": "small", "MODEL": "large", "o/p": {"n": 1}}"#,
            r#"{"model": "small", "o/p": {"n": 1, "n": 2}}"#,
            r#"{"is": 1, "i\u017f": 2, "model": "small", "o/p": {"n": 1}}"#,
            r#"{"model": "small", "o/p": {"n": 1}} {"model": "large"}"#,
            "\u{feff}{\"model\": \"small\", \"o/p\": {\"n\": 1}}",
            "model=small",
            "",
        ] {
            assert_eq!(said(json, body), Err(Unmet::Json), "{body}");
        }
        let good = r#"{"model": "small", "o/p": {"n": 1}}"#;
        for kind in [
            "application/x-www-form-urlencoded",
            "application/json; charset=utf-16",
            "text/plain",
        ] {
            assert_eq!(said(kind, good), Err(Unmet::Kind));
        }
    }
}
