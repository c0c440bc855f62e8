//! Public keys of which a server must have one, besides a certificate that is trusted: authorities can be misled.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::server::ParsedCertificate;

/// What curl writes before it (`--pinnedpubkey`).
const KIND: &str = "sha256//";

/// The SHA-256 of a certificate's `SubjectPublicKeyInfo` (RFC 7469 section 2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pin([u8; 32]);

/// Why a text is not a pin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a pin; write sha256//BASE64, as for curl's --pinnedpubkey")]
pub struct PinError(String);

impl Pin {
    /// Reads `sha256//BASE64`.
    ///
    /// # Errors
    /// Where it is written otherwise.
    pub fn parse(text: &str) -> Result<Self, PinError> {
        let encoded = text.strip_prefix(KIND);
        let bytes = encoded.and_then(|encoded| STANDARD.decode(encoded).ok());
        let hash = bytes.and_then(|bytes| bytes.try_into().ok());
        hash.map(Self).ok_or_else(|| PinError(text.into()))
    }

    /// That of a certificate's key; `None` where it cannot be read.
    #[must_use]
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let parsed = ParsedCertificate::try_from(certificate).ok()?;
        let key = parsed.subject_public_key_info();
        Some(Self(Sha256::digest(key).into()))
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{KIND}{}", STANDARD.encode(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_read_as_they_are_written() {
        let text = "sha256//YhKJKSzoTt2b5FP18fvpHo7fJYqQCjAa3HWY3tvRMwE=";
        assert_eq!(Pin::parse(text).map(|pin| pin.to_string()), Ok(text.into()));
        for bad in [
            "",
            "sha256//",
            "sha256/YhKJKSzoTt2b5FP18fvpHo7fJYqQCjAa3HWY3tvRMwE=",
            "sha256//YhKJKSzoTt2b5FP18fvpHo7fJYqQCjAa3HWY3tvRMw==",
            "sha256//YhKJKSzoTt2b5FP18fvpHo7fJYqQCjAa3HWY3tvRMwE",
            "sha1//YhKJKSzoTt2b5FP18fvpHo7fJYqQCjAa3HWY3tvRMwE=",
        ] {
            assert!(Pin::parse(bad).is_err(), "{bad}");
        }
    }
}
