//! What `store import` reads: a .env file, a JSON object, or a Fernet token of either. Pure, and all or nothing.

use std::collections::HashMap;
use std::fmt;

use fernet::Fernet;
use keyhatch_protocol::{Name, NameError};
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use zeroize::Zeroizing;

use super::{Value, dotenv};

/// How the input is written.
#[derive(Clone, Copy)]
pub enum Format<'a> {
    /// A .env file, as Node's dotenv reads it.
    Dotenv,
    /// A JSON object: strings by their content, anything else by its JSON text.
    Json,
    /// A Fernet token of a JSON object (its first character is `{`) or of a .env file.
    Fernet {
        /// 32 bytes in URL-safe Base64.
        key: &'a str,
    },
}

/// Why nothing was imported. Never tells what the line says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImportError {
    /// A line that cannot be imported.
    #[error("line {line}{within}: {fault}")]
    Line {
        /// From 1.
        line: usize,
        /// Empty, or ` of the decrypted text`.
        within: &'static str,
        /// What is wrong with it.
        fault: Fault,
    },
    /// The Fernet key is not one.
    #[error("the Fernet key is not 32 bytes in URL-safe Base64; check the key file")]
    FernetKey,
}

/// What is wrong with a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Not UTF-8.
    #[error("not UTF-8 text; save the file as UTF-8")]
    NotUtf8,
    /// Neither an assignment nor a comment.
    #[error("not an assignment; write KEY=VALUE, or # in front of a comment")]
    NotAssignment,
    /// A quote that nothing closes.
    #[error("a quote is opened but not closed; close it, or quote the value with another kind")]
    UnclosedQuote,
    /// U+2028 or U+2029, which dotenv takes for an end of line in some places.
    #[error("a Unicode line separator; remove it")]
    LineSeparator,
    /// The same key twice.
    #[error("the key was given before, on line {0}; keep one of them")]
    Repeated(usize),
    /// The key, with the prefix, is no secret name.
    #[error("the key makes no secret name: {0}")]
    Name(NameError),
    /// The value is over the limit.
    #[error("the value has more than 65536 bytes; split it or leave it out")]
    TooLarge,
    /// Not JSON.
    #[error("not valid JSON; nothing was imported")]
    Json,
    /// JSON, but no object.
    #[error("a JSON object of names and values is wanted here")]
    NotObject,
    /// The token does not decrypt.
    #[error(
        "the Fernet token does not decrypt: wrong key, damaged, or made later than this clock says"
    )]
    Token,
}

/// A key and its value, and where in the text they stand.
pub(super) struct Pair {
    pub(super) key: String,
    pub(super) value: Value,
    /// Byte offset into the text.
    pub(super) at: usize,
}

impl Pair {
    pub(super) fn new(key: String, value: Vec<u8>, at: usize) -> Result<Self, FaultAt> {
        let value = Value::new(value).map_err(|_| FaultAt(at, Fault::TooLarge))?;
        Ok(Self { key, value, at })
    }
}

/// A fault at a byte offset of the text.
pub(super) struct FaultAt(pub(super) usize, pub(super) Fault);

/// Reads the secrets of `input`; `prefix` goes in front of each name.
pub fn parse(
    format: Format<'_>,
    input: &[u8],
    prefix: &str,
) -> Result<Vec<(Name, Value)>, ImportError> {
    match format {
        Format::Dotenv => parse_text(input, prefix, false, ""),
        Format::Json => parse_text(input, prefix, true, ""),
        Format::Fernet { key } => {
            let text = decrypt(key, input)?;
            let json = text.trim_ascii_start().starts_with(b"{");
            parse_text(&text, prefix, json, " of the decrypted text")
        }
    }
}

fn decrypt(key: &str, token: &[u8]) -> Result<Zeroizing<Vec<u8>>, ImportError> {
    let fernet = Fernet::new(key.trim()).ok_or(ImportError::FernetKey)?;
    let blank = token
        .iter()
        .take_while(|byte| byte.is_ascii_whitespace())
        .count();
    let bad = || at_line(token, blank, "", Fault::Token);
    let token = std::str::from_utf8(token).map_err(|_| bad())?;
    fernet
        .decrypt(token.trim())
        .map(Zeroizing::new)
        .map_err(|_| bad())
}

fn parse_text(
    input: &[u8],
    prefix: &str,
    json: bool,
    within: &'static str,
) -> Result<Vec<(Name, Value)>, ImportError> {
    let named = |FaultAt(at, fault)| at_line(input, at, within, fault);
    let text = std::str::from_utf8(input)
        .map_err(|error| named(FaultAt(error.valid_up_to(), Fault::NotUtf8)))?;
    let pairs = if json {
        json_pairs(text)
    } else {
        dotenv::pairs(text)
    };
    let mut first = HashMap::new();
    let mut secrets = Vec::new();
    for Pair { key, value, at } in pairs.map_err(named)? {
        let fault = |fault| named(FaultAt(at, fault));
        let name = Name::parse(&format!("{prefix}{key}")).map_err(|e| fault(Fault::Name(e)))?;
        if let Some(before) = first.insert(key, at) {
            return Err(fault(Fault::Repeated(line_of(input, before))));
        }
        secrets.push((name, value));
    }
    Ok(secrets)
}

/// The members of a JSON object.
fn json_pairs(text: &str) -> Result<Vec<Pair>, FaultAt> {
    // serde_json's own messages may quote the input, so only its position is used.
    let place = |error: &serde_json::Error| offset(text, error.line(), error.column());
    let start = text.len() - text.trim_ascii_start().len();
    if !text[start..].starts_with('{') {
        return Err(FaultAt(start, Fault::NotObject));
    }
    let mut json = serde_json::Deserializer::from_str(text);
    let members = (&mut json)
        .deserialize_map(Members)
        .map_err(|error| FaultAt(place(&error), Fault::Json))?;
    json.end()
        .map_err(|error| FaultAt(place(&error), Fault::Json))?;
    let pair = |(key, raw): (String, &RawValue)| {
        let at = (raw.get().as_ptr() as usize).saturating_sub(text.as_ptr() as usize);
        let value = if raw.get().starts_with('"') {
            let content = serde_json::from_str::<String>(raw.get());
            content.map_err(|_| FaultAt(at, Fault::Json))?.into_bytes()
        } else {
            raw.get().as_bytes().to_vec()
        };
        Pair::new(key, value, at)
    };
    members.into_iter().map(pair).collect()
}

/// Keeps every member of an object, the repeated ones too.
struct Members;

impl<'de> Visitor<'de> for Members {
    type Value = Vec<(String, &'de RawValue)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Vec::new();
        while let Some(member) = map.next_entry()? {
            members.push(member);
        }
        Ok(members)
    }
}

fn at_line(input: &[u8], at: usize, within: &'static str, fault: Fault) -> ImportError {
    ImportError::Line {
        line: line_of(input, at),
        within,
        fault,
    }
}

/// The line, from 1, that the byte at `at` is on. A lone carriage return ends a line too.
fn line_of(input: &[u8], at: usize) -> usize {
    let before = &input[..at.min(input.len())];
    let ends = before.iter().enumerate().filter(|(i, byte)| match byte {
        b'\n' => true,
        b'\r' => input.get(i + 1) != Some(&b'\n'),
        _ => false,
    });
    1 + ends.count()
}

/// The byte offset of a position that `serde_json` counts from 1.
fn offset(text: &str, line: usize, column: usize) -> usize {
    let before = text
        .split_inclusive('\n')
        .take(line.saturating_sub(1))
        .map(str::len);
    before.sum::<usize>() + column.saturating_sub(1)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn read(format: Format<'_>, input: &str) -> Result<Vec<(String, String)>, String> {
        let secrets = parse(format, input.as_bytes(), "p/").map_err(|e| e.to_string())?;
        let text = |(name, value): (Name, Value)| {
            let value = String::from_utf8(value.as_bytes().to_vec()).unwrap();
            (name.to_string(), value)
        };
        Ok(secrets.into_iter().map(text).collect())
    }

    fn pair(name: &str, value: &str) -> (String, String) {
        (name.to_owned(), value.to_owned())
    }

    #[test]
    fn members_of_a_json_object_are_secrets() {
        let json = r#" { "a/b": "x\n\u00e9", "n": 1.50, "t": true, "z": null,
            "o": {"k": "v"}, "l": [1, "2"], "e": "" } "#;
        let wanted = [
            pair("p/a/b", "x\né"),
            pair("p/n", "1.50"),
            pair("p/t", "true"),
            pair("p/z", "null"),
            pair("p/o", r#"{"k": "v"}"#),
            pair("p/l", r#"[1, "2"]"#),
            pair("p/e", ""),
        ];
        assert_eq!(read(Format::Json, json).unwrap(), wanted);
        assert_eq!(read(Format::Json, "{}").unwrap(), []);
    }

    #[test]
    fn errors_have_their_line_and_never_its_content() {
        let long = format!("{{\"a\":\n\"{}\"}}", "x".repeat(65_537));
        for (format, input, line, says) in [
            (
                Format::Json,
                "{\"a\": \"CANARY-1\",\n\n\"a\": \"CANARY-2\"}",
                3,
                "before, on line 1",
            ),
            (
                Format::Json,
                "{\"a\": \"CANARY-1\",\n\"a b\": \"CANARY-2\"}",
                2,
                "no secret name",
            ),
            (Format::Json, "{\"a\":\n CANARY}", 2, "not valid JSON"),
            (
                Format::Json,
                "{\"a\": \"CANARY-1\"}\n\nCANARY",
                3,
                "not valid JSON",
            ),
            (Format::Json, "{\"a\": \"CANARY-1\"", 1, "not valid JSON"),
            (
                Format::Json,
                "{\"a\": \"\\ud800 CANARY\"}",
                1,
                "not valid JSON",
            ),
            (Format::Json, "\n[\"CANARY-1\"]", 2, "JSON object"),
            (Format::Json, "", 1, "JSON object"),
            (Format::Json, &long, 2, "65536"),
            (Format::Dotenv, "A=1\r\nB=2\rCANARY", 3, "not an assignment"),
            (Format::Dotenv, "A='1\n2'\nB=\"CANARY", 3, "not closed"),
            (Format::Dotenv, "A=1\n\nA=CANARY", 3, "before, on line 1"),
            (Format::Dotenv, "A=1\n..=CANARY", 2, "no secret name"),
        ] {
            let error = read(format, input).unwrap_err();
            assert!(
                error.starts_with(&format!("line {line}: ")),
                "{input:.40}: {error}"
            );
            assert!(error.contains(says) && !error.contains("CANARY"), "{error}");
        }
        let error = parse(Format::Json, b"{\n\xff", "")
            .err()
            .unwrap()
            .to_string();
        assert!(error.starts_with("line 2: not UTF-8"), "{error}");
    }

    #[test]
    fn a_fernet_token_holds_either() {
        let key = Fernet::generate_key();
        let token = |text: &str| {
            format!(
                "\n{}\n",
                Fernet::new(&key).unwrap().encrypt(text.as_bytes())
            )
        };
        let padded = format!("{key}\n");
        let format = Format::Fernet { key: &padded };
        let wanted = [pair("p/A", "1")];
        assert_eq!(read(format, &token("A=1")).unwrap(), wanted);
        assert_eq!(read(format, &token(" {\"A\": \"1\"}")).unwrap(), wanted);

        let inside = read(format, &token("A=1\nCANARY")).unwrap_err();
        assert!(
            inside.starts_with("line 2 of the decrypted text: not an"),
            "{inside}"
        );
        let bad = token("A=1").replace("gAAAA", "gAAAB");
        assert!(
            read(format, &bad)
                .unwrap_err()
                .starts_with("line 2: the Fernet token")
        );
        assert!(
            read(format, "\u{e9}")
                .unwrap_err()
                .starts_with("line 1: the Fernet token")
        );
        let other = Fernet::generate_key();
        assert!(read(Format::Fernet { key: &other }, &token("A=1")).is_err());
        let short = parse(Format::Fernet { key: "CANARY" }, b"", "")
            .err()
            .unwrap();
        assert_eq!(short, ImportError::FernetKey);
    }
}
