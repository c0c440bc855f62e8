//! The forms in which a secret may come back whole: as it is, in Base64 and in hexadecimal. Those that escape single
//! characters are found by `escapes`.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use zeroize::Zeroizing;

/// A shorter value is not searched for: it would be found everywhere.
pub const SHORTEST: usize = 8;

/// A form, wiped when it is dropped.
pub type Form = Zeroizing<Vec<u8>>;

/// Every form of a value that is long enough to be searched for, each once; the value itself is the first.
pub fn of(value: &[u8]) -> Vec<Form> {
    let mut forms: Vec<Form> = Vec::new();
    let mut add = |form: Vec<u8>| {
        let form = Zeroizing::new(form);
        if form.len() >= SHORTEST && !forms.contains(&form) {
            forms.push(form);
        }
    };
    if value.len() < SHORTEST {
        return Vec::new();
    }
    add(value.to_vec());
    add(hex(value, b"0123456789abcdef"));
    add(hex(value, b"0123456789ABCDEF"));
    for alphabet in [&STANDARD_NO_PAD, &URL_SAFE_NO_PAD] {
        (0..3).for_each(|shift| add(base64_within(value, alphabet, shift)));
    }
    forms
}

fn hex(value: &[u8], digits: &[u8; 16]) -> Vec<u8> {
    let mut out = Vec::with_capacity(2 * value.len());
    for byte in value {
        out.extend([
            digits[usize::from(byte >> 4)],
            digits[usize::from(byte & 15)],
        ]);
    }
    out
}

/// The characters that the value alone decides where it stands `shift` bytes into a longer text.
fn base64_within(value: &[u8], alphabet: &impl Engine, shift: usize) -> Vec<u8> {
    let mut shifted = Zeroizing::new(vec![0; shift]);
    shifted.reserve_exact(value.len());
    shifted.extend_from_slice(value);
    let mut encoded = vec![0; shifted.len().div_ceil(3) * 4];
    // The room is what the longest encoding takes.
    let len = alphabet.encode_slice(&*shifted, &mut encoded).unwrap_or(0);
    encoded.truncate(len);
    // Bits of neighbours are in the first and the last character of the value.
    let first = (shift * 8).div_ceil(6);
    let last = shifted.len() * 8 / 6;
    encoded.truncate(last);
    encoded.drain(..first.min(last));
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE};

    #[test]
    fn usual_encodings_of_a_secret_hold_one_of_its_forms() {
        let secret = "CANARY-/ab?c~d é\"<&";
        let forms = of(secret.as_bytes());
        let found = |text: &[u8]| {
            forms
                .iter()
                .any(|form| text.windows(form.len()).any(|window| window == &form[..]))
        };
        for before in ["", "x", "xy", "Bearer "] {
            for after in ["", ".", "..", "\n"] {
                let text = format!("{before}{secret}{after}");
                assert!(found(STANDARD.encode(&text).as_bytes()), "{text}");
                assert!(found(URL_SAFE.encode(&text).as_bytes()), "{text}");
            }
        }
        for text in [
            format!("x{secret}y"),
            "43414e4152592d2f61623f637e6420c3a9223c26".to_owned(),
            "43414E4152592D2F61623F637E6420C3A9223C26".to_owned(),
        ] {
            assert!(found(text.as_bytes()), "{text}");
        }
        assert!(!found(b"CANARY-/ab?c~d"));
    }

    #[test]
    fn what_is_short_has_no_forms() {
        assert!(of(b"1234567").is_empty());
        assert!(!of(b"12345678").is_empty());
    }
}
