//! A header with a signature of the body.

use std::fmt::Write;

use ::hmac::{KeyInit, Mac};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Sha256, Sha512};
use zeroize::Zeroizing;

use crate::config::{Algorithm, Encoding, Hmac, Piece};

/// The header's value, and the signature in it.
pub struct Signature {
    /// All of it.
    pub value: Zeroizing<String>,
    /// What must not come back.
    pub signature: Zeroizing<String>,
}

/// Signs `body` at `now`, in seconds since 1970.
pub fn sign(hmac: &Hmac, key: &[u8], body: &[u8], now: &str) -> Signature {
    let template = &hmac.template;
    let message: Vec<&[u8]> = template
        .message
        .iter()
        .map(|piece| match piece {
            Piece::Text(text) => text.as_bytes(),
            Piece::Timestamp => now.as_bytes(),
            Piece::Body => body,
        })
        .collect();
    let tag = match hmac.algorithm {
        Algorithm::Sha256 => tag::<::hmac::Hmac<Sha256>>(key, &message),
        Algorithm::Sha512 => tag::<::hmac::Hmac<Sha512>>(key, &message),
    };
    let signature = Zeroizing::new(match template.encoding {
        Encoding::Hex => hex(&tag),
        Encoding::Base64 => STANDARD.encode(&*tag),
    });
    let [before, after] = [&template.before, &template.after].map(|pieces| around(pieces, now));
    Signature {
        value: Zeroizing::new([&before, signature.as_str(), &after].concat()),
        signature,
    }
}

fn tag<M: Mac + KeyInit>(key: &[u8], message: &[&[u8]]) -> Zeroizing<Vec<u8>> {
    // A key of any length is one.
    let Ok(mut mac) = <M as KeyInit>::new_from_slice(key) else {
        return Zeroizing::default();
    };
    message.iter().for_each(|piece| mac.update(piece));
    Zeroizing::new(mac.finalize().into_bytes().to_vec())
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn around(pieces: &[Piece], now: &str) -> String {
    let texts = pieces.iter().map(|piece| match piece {
        Piece::Text(text) => text.as_str(),
        Piece::Timestamp => now,
        Piece::Body => "",
    });
    texts.collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::config::Signed;

    fn signed(template: &str, algorithm: Algorithm, key: &str, body: &str) -> String {
        let hmac = Hmac {
            header: "x-signature".parse().unwrap(),
            algorithm,
            template: Signed::parse(template).unwrap(),
            timestamp: None,
        };
        let signature = sign(&hmac, key.as_bytes(), body.as_bytes(), "1531420618");
        signature.value.to_string()
    }

    #[test]
    fn as_services_document_it() {
        // GitHub's and Slack's own examples.
        let github = signed(
            "sha256={hex:{body}}",
            Algorithm::Sha256,
            "It's a Secret to Everybody",
            "Hello, World!",
        );
        assert_eq!(
            github,
            "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
        );
        let slack = signed(
            "v0={hex:v0:{timestamp}:{body}}",
            Algorithm::Sha256,
            "8f742231b10e8888abcd99yyyzzz85a5",
            "token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&channel_id=G8PSS9T3V&channel_name=foobar&user_id=U2CERLKJA&user_name=roadrunner&command=%2Fwebhook-collect&text=&response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN&trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c",
        );
        assert_eq!(
            slack,
            "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503"
        );
        // RFC 4231, test case 2.
        let sha512 = signed(
            "{base64:{body}}",
            Algorithm::Sha512,
            "Jefe",
            "what do ya want for nothing?",
        );
        assert!(sha512.starts_with("Fkt6e/z4GeLjlfvnO1bgo4e9"), "{sha512}");
    }
}
