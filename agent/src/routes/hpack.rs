//! HTTP/2's compressed heads (HPACK, RFC 7541), as far as tokens and what replaces them need them.

use std::ops::Range;

/// The codes of `0` to `9` and `a` to `f`, of which tokens are made: bits, and how many (appendix B).
const CODES: [(u8, u8); 16] = [
    (0x00, 5),
    (0x01, 5),
    (0x02, 5),
    (0x19, 6),
    (0x1a, 6),
    (0x1b, 6),
    (0x1c, 6),
    (0x1d, 6),
    (0x1e, 6),
    (0x1f, 6),
    (0x03, 5),
    (0x23, 6),
    (0x04, 5),
    (0x24, 6),
    (0x05, 5),
    (0x25, 6),
];

/// Where the values of those fields stand in a block that no table may hold (section 6.2.3), each with its length;
/// `None` where it is no block.
pub fn never_indexed(block: &[u8]) -> Option<Vec<Range<usize>>> {
    let (mut found, mut at) = (Vec::new(), 0);
    while let Some(first) = block.get(at) {
        // How many bits of it begin the number of a name, and whether a value follows (section 6).
        let (prefix, has_value) = match first {
            0x80.. => (7, false),
            0x40.. => (6, true),
            0x20.. => (5, false),
            _ => (4, true),
        };
        let name = integer(block, &mut at, prefix)?;
        if !has_value {
            continue;
        }
        if name == 0 {
            string(block, &mut at)?;
        }
        let value = string(block, &mut at)?;
        found.extend((first & 0xf0 == 0x10).then_some(value));
    }
    Some(found)
}

/// The token that a literal holds as the HTTP library writes it: in Huffman's code (section 5.2).
pub fn token(literal: &[u8]) -> Option<String> {
    let mut at = 0;
    literal.first().filter(|first| **first & 0x80 != 0)?;
    let len = integer(literal, &mut at, 7)?;
    let code = literal.get(at..).filter(|code| code.len() == len)?;
    let (mut text, mut bits, mut count) = (String::new(), 0_u32, 0_u8);
    for byte in code {
        (bits, count) = ((bits << 8) | u32::from(*byte), count + 8);
        while let Some((digit, len)) = digit(bits, count) {
            text.push(digit);
            count -= len;
            bits &= (1 << count) - 1;
        }
        // No digit has so many bits.
        if count >= 8 {
            return None;
        }
    }
    // What is left of the last byte is filled with ones.
    (bits == (1 << count) - 1).then_some(text)
}

/// The digit that `count` bits begin with, and how many of them are its.
fn digit(bits: u32, count: u8) -> Option<(char, u8)> {
    let is_it = |(code, len): &(u8, u8)| count >= *len && bits >> (count - len) == u32::from(*code);
    let at = CODES.iter().position(is_it)?;
    let digit = char::from_digit(u32::try_from(at).ok()?, 16)?;
    Some((digit, CODES[at].1))
}

/// An integer that begins with so many bits of the next byte (section 5.1), which may be no larger than a block.
fn integer(bytes: &[u8], at: &mut usize, prefix: u8) -> Option<usize> {
    const MOST: usize = 1 << 24;
    let mut next = || {
        let byte = usize::from(*bytes.get(*at)?);
        *at += 1;
        Some(byte)
    };
    let full = (1 << prefix) - 1;
    let mut value = next()? & full;
    if value < full {
        return Some(value);
    }
    for shift in [0, 7, 14, 21] {
        let byte = next()?;
        value += (byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return (value <= MOST).then_some(value);
        }
    }
    None
}

/// Where a string with its length stands.
fn string(bytes: &[u8], at: &mut usize) -> Option<Range<usize>> {
    let start = *at;
    let len = integer(bytes, at, 7)?;
    *at = at.checked_add(len).filter(|end| *end <= bytes.len())?;
    Some(start..*at)
}

/// The length of a literal that is written as it is: an integer with a prefix of 7 bits (section 5.1).
pub fn length(len: usize) -> Vec<u8> {
    const PREFIX: usize = 0x7f;
    let byte = |value: usize| u8::try_from(value & 0xff).unwrap_or(0);
    if len < PREFIX {
        return vec![byte(len)];
    }
    let (mut out, mut rest) = (vec![byte(PREFIX)], len - PREFIX);
    while rest >= 0x80 {
        out.push(byte((rest & 0x7f) | 0x80));
        rest >>= 7;
    }
    out.push(byte(rest));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_looked_at_within_their_bounds(block in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut end = 0;
            for value in never_indexed(&block).unwrap_or_default() {
                prop_assert!(end < value.start && value.start < value.end && value.end <= block.len());
                end = value.end;
                let _ = token(&block[value]);
            }
        }
    }

    #[test]
    fn lengths_are_those_of_the_standard() {
        assert_eq!(length(10), [10]);
        assert_eq!(length(126), [126]);
        assert_eq!(length(127), [127, 0]);
        // RFC 7541 appendix C.1.2 has 1337 with a prefix of 5 bits: 31, 154, 10.
        assert_eq!(length(127 + 1306), [127, 154, 10]);
    }

    #[test]
    fn codes_are_those_of_the_standard() {
        // RFC 7541 appendix C.6.1: the status 302.
        assert_eq!(token(&[0x82, 0x64, 0x02]).as_deref(), Some("302"));
        // Appendix C.6.2: 307.
        assert_eq!(token(&[0x83, 0x64, 0x0e, 0xff]).as_deref(), Some("307"));
        // Not in that code, of another length, with other characters (`www.example.com`), or a padding of zeros.
        for other in [
            &[0x03, b'3', b'0', b'2'][..],
            &[0x81, 0x64, 0x02],
            &[],
            &[
                0x8c, 0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff,
            ],
            &[0x83, 0x64, 0x0e, 0xf0],
        ] {
            assert_eq!(token(other), None, "{other:x?}");
        }
    }

    #[test]
    fn fields_that_are_never_indexed_are_found_where_they_stand() {
        // RFC 7541 appendix C.2.3: `password: secret`, between an indexed field and one that is added to the table.
        let password = b"\x10\x08password\x06secret";
        let block = [
            &[0x82][..],
            password,
            b"\x40\x0acustom-key\x0dcustom-header",
            &[0x3f, 0xe1, 0x1f],
            b"\x04\x0c/sample/path",
        ]
        .concat();
        let values = |block: &[u8]| {
            let found = never_indexed(block)?.into_iter();
            Some(found.map(|value| block[value].to_vec()).collect::<Vec<_>>())
        };
        assert_eq!(values(&block), Some(vec![b"\x06secret".to_vec()]));
        // With the number of a known name.
        let known = b"\x1f\x08\x03abc\x82";
        assert_eq!(values(known), Some(vec![b"\x03abc".to_vec()]));
        for cut in 2..block.len() {
            // Nothing beyond the end is looked at.
            let _ = never_indexed(&block[..cut]);
        }
        assert_eq!(never_indexed(&block[..14]), None);
        assert_eq!(
            never_indexed(&[0x1f, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]),
            None
        );
    }
}
