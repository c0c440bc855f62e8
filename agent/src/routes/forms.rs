//! The forms in which a secret may come back: as it is, and as programs usually encode it.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use zeroize::Zeroizing;

/// A shorter value is not searched for: it would be found everywhere.
pub const SHORTEST: usize = 8;

/// A form, wiped when it is dropped.
pub type Form = Zeroizing<Vec<u8>>;

/// Every form of a value that is long enough to be searched for, each once.
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
    for digits in [b"0123456789ABCDEF", b"0123456789abcdef"] {
        add(percent(value, digits, false));
        add(percent(value, digits, true));
    }
    for alphabet in [&STANDARD_NO_PAD, &URL_SAFE_NO_PAD] {
        (0..3).for_each(|shift| add(base64_within(value, alphabet, shift)));
    }
    if let Ok(text) = std::str::from_utf8(value) {
        for slash in [false, true] {
            add(json(text, slash, false));
            add(json(text, slash, true));
        }
        add(html(text));
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

/// RFC 3986's unreserved characters stay; as a form does, a space may be a plus.
fn percent(value: &[u8], digits: &[u8; 16], of_form: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(3 * value.len());
    for byte in value {
        match byte {
            b' ' if of_form => out.push(b'+'),
            // What encoders of forms and of URIs disagree about.
            b'~' if of_form => out.extend(b"%7E"),
            byte if byte.is_ascii_alphanumeric() || b"-._~".contains(byte) => out.push(*byte),
            byte => {
                let (high, low) = (usize::from(byte >> 4), usize::from(byte & 15));
                out.extend([b'%', digits[high], digits[low]]);
            }
        }
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

/// The inside of a JSON string, as encoders differ: the slash, and what is not ASCII.
fn json(text: &str, slash: bool, ascii: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(6 * text.len());
    let unicode = |out: &mut Vec<u8>, unit: u16| out.extend(format!("\\u{unit:04x}").bytes());
    for c in text.chars() {
        match c {
            '"' => out.extend(b"\\\""),
            '\\' => out.extend(b"\\\\"),
            '/' if slash => out.extend(b"\\/"),
            '\n' => out.extend(b"\\n"),
            '\r' => out.extend(b"\\r"),
            '\t' => out.extend(b"\\t"),
            '\u{8}' => out.extend(b"\\b"),
            '\u{c}' => out.extend(b"\\f"),
            // Some encoders are careful of HTML, too.
            c if c < ' ' || ascii && (!c.is_ascii() || matches!(c, '<' | '>' | '&')) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    unicode(&mut out, *unit);
                }
            }
            c => out.extend(c.encode_utf8(&mut [0; 4]).bytes()),
        }
    }
    out
}

fn html(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(6 * text.len());
    for c in text.chars() {
        match c {
            '&' => out.extend(b"&amp;"),
            '<' => out.extend(b"&lt;"),
            '>' => out.extend(b"&gt;"),
            '"' => out.extend(b"&quot;"),
            '\'' => out.extend(b"&#x27;"),
            c => out.extend(c.encode_utf8(&mut [0; 4]).bytes()),
        }
    }
    out
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
            serde_json::to_string(secret).unwrap_or_default(),
            "CANARY-\\/ab?c~d \u{e9}\\\"<&".to_owned(),
            "CANARY-/ab?c~d \\u00e9\\\"\\u003c\\u0026".to_owned(),
            "CANARY-%2Fab%3Fc~d%20%C3%A9%22%3C%26".to_owned(),
            "CANARY-%2fab%3fc%7Ed+%c3%a9%22%3c%26".to_owned(),
            "CANARY-/ab?c~d \u{e9}&quot;&lt;&amp;".to_owned(),
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
