//! A secret in text that escapes characters one by one: percent-encoding, JSON and HTML.
//!
//! Encoders agree neither on which characters they escape nor on how (`\u002b`, `\u002B`, `&#43;`, `&#x2b;`, `%2B`), so
//! that no list of forms is whole. The text is read as a decoder reads it instead, beside the value.

/// How a text compares with a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Match {
    /// It begins with the value, which takes this many bytes.
    Whole(usize),
    /// It may be the beginning of the value.
    Cut,
    /// It does not begin with the value.
    No,
}

/// One character of a text, and how many bytes stand for it.
enum Unit {
    Char(char, usize),
    /// A byte of a character, perhaps.
    Byte(u8, usize),
    Cut,
    Plain,
}

/// Whether `text` begins with `value`, each character of which may be escaped.
#[must_use]
pub fn begins(text: &[u8], value: &[u8]) -> Match {
    let (mut at, mut done) = (0, 0);
    while let Some(&wanted) = value.get(done) {
        let Some(&byte) = text.get(at) else {
            return Match::Cut;
        };
        match unit(&text[at..]) {
            Unit::Char(c, len) if value[done..].starts_with(utf8(c, &mut [0; 4])) => {
                at += len;
                done += c.len_utf8();
            }
            Unit::Byte(byte, len) if byte == wanted => {
                at += len;
                done += 1;
            }
            // What the value ends with is there, whatever may follow.
            Unit::Cut if byte != wanted || done + 1 < value.len() => return Match::Cut,
            // As forms write a space.
            _ if byte == wanted || byte == b'+' && wanted == b' ' => {
                at += 1;
                done += 1;
            }
            _ => return Match::No,
        }
    }
    Match::Whole(at)
}

/// The bytes that `value` may begin with, and those that may come second: for a look before the comparison.
#[must_use]
pub fn beginnings(value: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let mut first = b"%\\&".to_vec();
    let mut second = b"%\\&+u#/\"bfnrtalgq".to_vec();
    if let [one, two, ..] = value {
        first.push(if *one == b' ' { b'+' } else { *one });
        second.push(*two);
        let high = char::from_digit(u32::from(one >> 4), 16).unwrap_or_default();
        second.extend([high, high.to_ascii_uppercase()].map(|digit| digit as u8));
    }
    (first, second)
}

fn utf8(c: char, buffer: &mut [u8; 4]) -> &[u8] {
    c.encode_utf8(buffer).as_bytes()
}

fn unit(text: &[u8]) -> Unit {
    match text {
        [b'%', rest @ ..] => match number(rest, 16, 2) {
            Number::Is(byte, 2) => u8::try_from(byte).map_or(Unit::Plain, |b| Unit::Byte(b, 3)),
            Number::Cut => Unit::Cut,
            Number::Is(..) => Unit::Plain,
        },
        [b'\\', b'u', rest @ ..] => json_number(rest),
        [b'\\' | b'&'] => Unit::Cut,
        [b'\\', short, ..] => match short {
            b'"' | b'\\' | b'/' => Unit::Char(char::from(*short), 2),
            b'b' => Unit::Char('\u{8}', 2),
            b'f' => Unit::Char('\u{c}', 2),
            b'n' => Unit::Char('\n', 2),
            b'r' => Unit::Char('\r', 2),
            b't' => Unit::Char('\t', 2),
            _ => Unit::Plain,
        },
        [b'&', b'#', b'x' | b'X', rest @ ..] => html_number(rest, 16, 3),
        [b'&', b'#', rest @ ..] => html_number(rest, 10, 2),
        [b'&', ..] => html_name(text),
        _ => Unit::Plain,
    }
}

/// Digits at the beginning of a text: what they say and how many there are.
enum Number {
    Is(u32, usize),
    /// The text ends before they do.
    Cut,
}

fn number(text: &[u8], radix: u32, most: usize) -> Number {
    let mut number: u32 = 0;
    for (count, byte) in text.iter().take(most).enumerate() {
        let Some(digit) = char::from(*byte).to_digit(radix) else {
            return Number::Is(number, count);
        };
        number = number.saturating_mul(radix).saturating_add(digit);
    }
    if text.len() < most {
        Number::Cut
    } else {
        Number::Is(number, most)
    }
}

/// What follows `\u`. A character beyond the basic plane is two of them.
fn json_number(rest: &[u8]) -> Unit {
    let high = match number(rest, 16, 4) {
        Number::Is(high, 4) => high,
        Number::Is(..) => return Unit::Plain,
        Number::Cut => return Unit::Cut,
    };
    if !(0xd800..0xdc00).contains(&high) {
        return char::from_u32(high).map_or(Unit::Plain, |c| Unit::Char(c, 6));
    }
    match &rest[4..] {
        [b'\\', b'u', rest @ ..] => match number(rest, 16, 4) {
            Number::Is(low @ 0xdc00..0xe000, 4) => {
                let both = 0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00);
                char::from_u32(both).map_or(Unit::Plain, |c| Unit::Char(c, 12))
            }
            Number::Is(..) => Unit::Plain,
            Number::Cut => Unit::Cut,
        },
        [] | [b'\\'] => Unit::Cut,
        _ => Unit::Plain,
    }
}

/// What follows `&#` or `&#x`, which are `before` bytes.
fn html_number(rest: &[u8], radix: u32, before: usize) -> Unit {
    // Zeros may come before; nobody writes more of them.
    match number(rest, radix, 9) {
        Number::Is(code, count @ 1..9) if rest[count] == b';' => {
            let len = before + count + 1;
            char::from_u32(code).map_or(Unit::Plain, |c| Unit::Char(c, len))
        }
        Number::Is(..) => Unit::Plain,
        Number::Cut => Unit::Cut,
    }
}

fn html_name(text: &[u8]) -> Unit {
    const NAMES: [(&[u8], char); 5] = [
        (b"&amp;", '&'),
        (b"&lt;", '<'),
        (b"&gt;", '>'),
        (b"&quot;", '"'),
        (b"&apos;", '\''),
    ];
    for (name, c) in NAMES {
        if text.starts_with(name) {
            return Unit::Char(c, name.len());
        }
        if name.starts_with(text) {
            return Unit::Cut;
        }
    }
    Unit::Plain
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALUE: &str = "CANARY-/a+b?c~d \u{e9}\u{1f511}'\"<&.";

    #[test]
    fn whatever_an_encoder_escapes() {
        for text in [
            VALUE,
            // Python's quote and quote_plus, JavaScript's encodeURIComponent, lower case.
            "CANARY-/a%2Bb%3Fc~d%20%C3%A9%F0%9F%94%91%27%22%3C%26.",
            "CANARY-%2Fa%2Bb%3Fc%7Ed+%C3%A9%F0%9F%94%91%27%22%3C%26.",
            "CANARY-%2Fa%2Bb%3Fc~d%20%C3%A9%F0%9F%94%91'%22%3C%26.",
            "%43ANARY-%2fa%2bb%3fc%7ed+%c3%a9%f0%9f%94%91%27%22%3c%26.",
            // JSON of Python, Go, PHP, .NET.
            "CANARY-/a+b?c~d \\u00e9\\ud83d\\udd11'\\\"<&.",
            "CANARY-/a+b?c~d \u{e9}\u{1f511}'\\\"\\u003c\\u0026.",
            "CANARY-\\/a+b?c~d \\u00e9\\ud83d\\udd11'\\\"<&.",
            "CANARY-/a\\u002Bb?c~d \\u00E9\\uD83D\\uDD11\\u0027\\u0022\\u003C\\u0026.",
            // HTML of Python, Go, PHP, Mustache, and all in numbers.
            "CANARY-/a+b?c~d \u{e9}\u{1f511}&#x27;&quot;&lt;&amp;.",
            "CANARY-/a&#43;b?c~d \u{e9}\u{1f511}&#39;&#34;&lt;&amp;.",
            "CANARY-/a+b?c~d \u{e9}\u{1f511}&#039;&quot;&lt;&amp;.",
            "CANARY-&#x2F;a+b?c~d \u{e9}&#128273;&apos;&quot;&lt;&amp;.",
            "&#67;ANARY-&#X2f;a+b?c~d \u{e9}&#x1F511;&#39;&quot;&lt;&amp;.",
        ] {
            let value = VALUE.as_bytes();
            let (first, second) = beginnings(value);
            let bytes = text.as_bytes();
            assert!(first.contains(&bytes[0]) && second.contains(&bytes[1]));
            assert_eq!(begins(bytes, value), Match::Whole(bytes.len()), "{text}");
            for cut in 1..bytes.len() {
                assert_eq!(begins(&bytes[..cut], value), Match::Cut, "{text} {cut}");
            }
        }
    }

    #[test]
    fn what_only_looks_like_it_is_another() {
        for text in [
            "CANARY-/a b?c",
            "CANARY-%2Fa%2",
            "CANARY-%2Ga",
            "CANARY-&#47a",
            "CANARY-&#x;a",
            "CANARY-\\u00",
            "CANARY-&",
            "\\",
            "&#0000000000047;",
            "\\ud83dx",
            "&ampx",
            "CANARY-\\x2f",
            "",
        ] {
            assert!(
                !matches!(begins(text.as_bytes(), VALUE.as_bytes()), Match::Whole(_)),
                "{text}"
            );
        }
        assert_eq!(begins(b"a%26", b"a&"), Match::Whole(4));
        assert_eq!(begins(b"%61&", b"a&"), Match::Whole(4));
        assert_eq!(begins(b"CANARY-&#47a", VALUE.as_bytes()), Match::No);
        assert_eq!(
            begins(b"\\ud83dx", "\u{1f511}xxxxxxx".as_bytes()),
            Match::No
        );
    }
}
