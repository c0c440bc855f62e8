//! A secret in the hands of a bot: it can be read, and does not print itself.

use std::fmt;

use keyhatch_protocol::Name;
use zeroize::Zeroizing;

use crate::{Error, json};

/// The value of a secret, with its name and version.
///
/// It cannot be cloned, printed or serialised, and its memory is wiped when it is dropped. Share it in an
/// `Arc`; read it where it is used with [`Secret::reveal`], and do not keep what that returns.
pub struct Secret {
    name: Name,
    version: String,
    stale: bool,
    value: Zeroizing<Vec<u8>>,
}

impl Secret {
    pub(crate) fn new(name: Name, version: String, value: Zeroizing<Vec<u8>>) -> Self {
        Self {
            name,
            version,
            stale: false,
            value,
        }
    }

    pub(crate) fn stale(self, stale: bool) -> Self {
        Self { stale, ..self }
    }

    /// The secret's name.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// Which value this is: an opaque text, another one for every value of the secret.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Whether its source is in trouble, so that this is the last good value and may be old.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        self.stale
    }

    /// The value, exactly.
    #[must_use]
    pub fn reveal(&self) -> &[u8] {
        &self.value
    }

    /// The value as text.
    pub fn reveal_str(&self) -> Result<&str, Error> {
        std::str::from_utf8(&self.value).map_err(|_| Error::NotText(self.name.to_string()))
    }

    /// One field of a value that is a JSON object: the characters of a string, the JSON text of anything else.
    pub fn field(&self, field: &str) -> Result<Secret, Error> {
        let value = json::field(&self.value, field).ok_or_else(|| Error::NoField {
            secret: self.name.to_string(),
            field: field.into(),
        })?;
        let field = Self::new(self.name.clone(), self.version.clone(), value);
        Ok(field.stale(self.stale))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret")
            .field("name", &self.name)
            .field("version", &self.version)
            .field("stale", &self.stale)
            .field("value", &format_args!("[hidden]"))
            .finish()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn secret(value: &[u8]) -> Secret {
        let name = Name::parse("app/db").unwrap();
        Secret::new(name, "v1".into(), Zeroizing::new(value.to_vec()))
    }

    #[test]
    fn neither_it_nor_its_errors_show_the_value() {
        let json = secret(br#"{"password":"CANARY-f1","port":1}"#);
        let bytes = secret(b"CANARY-\xff");
        for shown in [
            format!("{json:?} {json:#?}"),
            format!("{:?}", json.field("CANARY").unwrap_err()),
            format!("{:?}", bytes.field("x").unwrap_err()),
            format!("{0:?} {0}", bytes.reveal_str().unwrap_err()),
            format!("{:?}", json.field("password").unwrap()),
        ] {
            assert!(
                !shown.contains("CANARY-") && !shown.contains("67, 65"),
                "{shown}"
            );
            assert!(shown.contains("app/db"), "{shown}");
        }
    }

    #[test]
    fn fields_keep_name_and_version() {
        let field = secret(br#"{"password":"CANARY-f1"}"#)
            .field("password")
            .unwrap();
        assert_eq!(field.reveal_str().unwrap(), "CANARY-f1");
        assert_eq!((field.name().as_str(), field.version()), ("app/db", "v1"));
    }
}
