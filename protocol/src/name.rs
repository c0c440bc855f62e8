//! A secret's name: the one parser for names, wherever they come from.
//!
//! A name is 1 to 512 bytes: segments of `[A-Za-z0-9._+=@-]` joined by `/`, none of them empty, `.` or `..`.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::MAX_NAME;

/// A valid secret name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(Box<str>);

/// Why a text is not a secret name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// No bytes at all.
    #[error("a secret name cannot be empty")]
    Empty,
    /// More than [`MAX_NAME`] bytes.
    #[error("a secret name has at most 512 bytes")]
    TooLong,
    /// Two slashes in a row, or one at an end.
    #[error("a secret name cannot have an empty segment: no slash at an end, no two in a row")]
    EmptySegment,
    /// A segment that is `.` or `..`.
    #[error("a secret name cannot have a segment `.` or `..`")]
    DotSegment,
    /// A byte outside the alphabet.
    #[error("a secret name has only letters, digits and . _ + = @ - between its slashes")]
    BadByte,
    /// A percent escape that is cut short or not hexadecimal.
    #[error("a percent escape is % and two hexadecimal digits")]
    BadEscape,
}

impl Name {
    /// Checks `text` and makes it a name.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        check(text.as_bytes())?;
        Ok(Self(text.into()))
    }

    /// A name from the path of a request, where any byte may be percent-encoded.
    ///
    /// `%2F` is a slash like any other: the name is what the bytes say, once decoded.
    pub fn from_path(encoded: &str) -> Result<Self, NameError> {
        let decoded = percent_decode(encoded).ok_or(NameError::BadEscape)?;
        check(&decoded)?;
        let text = std::str::from_utf8(&decoded).map_err(|_| NameError::BadByte)?;
        Ok(Self(text.into()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Decodes `%XX`; `None` where an escape is cut short or not hexadecimal. `+` stays `+`.
#[must_use]
pub fn percent_decode(text: &str) -> Option<Cow<'_, [u8]>> {
    let bytes = text.as_bytes();
    if !bytes.contains(&b'%') {
        return Some(Cow::Borrowed(bytes));
    }
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let [first, tail @ ..] = rest {
        if *first == b'%' {
            let [high, low, tail @ ..] = tail else {
                return None;
            };
            out.push(hex_digit(*high)? << 4 | hex_digit(*low)?);
            rest = tail;
        } else {
            out.push(*first);
            rest = tail;
        }
    }
    Some(Cow::Owned(out))
}

/// Splits `NAME#field`; the field is `None` where there is no `#`.
#[must_use]
pub fn split_field(text: &str) -> (&str, Option<&str>) {
    match text.split_once('#') {
        Some((name, field)) => (name, Some(field)),
        None => (text, None),
    }
}

fn hex_digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}

fn check(name: &[u8]) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > MAX_NAME {
        return Err(NameError::TooLong);
    }
    for segment in name.split(|byte| *byte == b'/') {
        match segment {
            b"" => return Err(NameError::EmptySegment),
            b"." | b".." => return Err(NameError::DotSegment),
            _ if !segment.iter().all(|byte| allowed(*byte)) => return Err(NameError::BadByte),
            _ => {}
        }
    }
    Ok(())
}

fn allowed(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"._+=@-".contains(&byte)
}

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl std::borrow::Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::parse(text)
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        check(text.as_bytes())?;
        Ok(Self(text.into_boxed_str()))
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0.into()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_of_the_contract() {
        for good in [
            "a",
            "openai/api-key",
            "a.b_c+d=e@f-g/9",
            "...",
            "a/.b",
            &"x".repeat(512),
        ] {
            assert_eq!(Name::parse(good).unwrap().as_str(), good);
        }
        for (bad, why) in [
            ("", NameError::Empty),
            ("/a", NameError::EmptySegment),
            ("a/", NameError::EmptySegment),
            ("a//b", NameError::EmptySegment),
            (".", NameError::DotSegment),
            ("a/../b", NameError::DotSegment),
            ("a b", NameError::BadByte),
            ("a\0", NameError::BadByte),
            ("é", NameError::BadByte),
            ("a#b", NameError::BadByte),
            (&"x".repeat(513), NameError::TooLong),
        ] {
            assert_eq!(Name::parse(bad), Err(why), "{bad:?}");
        }
    }

    #[test]
    fn escapes_are_decoded_once_and_then_checked() {
        assert_eq!(Name::from_path("a%2Fb").unwrap().as_str(), "a/b");
        assert_eq!(Name::from_path("a%2").unwrap_err(), NameError::BadEscape);
        assert_eq!(Name::from_path("%zz").unwrap_err(), NameError::BadEscape);
        assert_eq!(
            Name::from_path("%2e%2e/x").unwrap_err(),
            NameError::DotSegment
        );
        assert_eq!(Name::from_path("a%00").unwrap_err(), NameError::BadByte);
        assert_eq!(Name::from_path("%252e").unwrap_err(), NameError::BadByte);
        assert_eq!(Name::from_path("%ff").unwrap_err(), NameError::BadByte);
    }

    proptest! {
        #[test]
        fn any_text_is_a_name_that_reads_back_or_an_error(text in ".{0,40}") {
            if let Ok(name) = Name::parse(&text) {
                prop_assert_eq!(name.as_str(), &text);
                prop_assert_eq!(Name::from_path(&text).unwrap(), name);
            }
        }

        #[test]
        fn no_path_decodes_to_a_dot_segment(text in "[a.%2eE/]{0,12}") {
            if let Ok(name) = Name::from_path(&text) {
                prop_assert!(name.as_str().split('/').all(|s| !matches!(s, "" | "." | "..")));
            }
        }
    }
}
