//! String literals of HTTP/2's compressed heads (HPACK, RFC 7541), as far as tokens and what replaces them need them.

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

/// A token as the HTTP library writes it: a literal in Huffman's code (section 5.2).
pub fn literal(token: &str) -> Vec<u8> {
    let code = encoded(token.as_bytes());
    let mut literal = length(code.len());
    literal[0] |= 0x80;
    literal.extend(code);
    literal
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

/// A token in that code. It has no other characters.
fn encoded(token: &[u8]) -> Vec<u8> {
    let (mut out, mut bits, mut count) = (Vec::new(), 0_u32, 0_u32);
    let low = |bits: u32| u8::try_from(bits & 0xff).unwrap_or(0);
    for byte in token {
        let digit = char::from(*byte).to_digit(16).unwrap_or(0);
        let (code, len) = CODES[digit as usize];
        bits = (bits << len) | u32::from(code);
        count += u32::from(len);
        while count >= 8 {
            count -= 8;
            out.push(low(bits >> count));
        }
    }
    if count > 0 {
        // What is left of the last byte is filled with ones.
        let padding = 8 - count;
        out.push(low((bits << padding) | ((1 << padding) - 1)));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(literal("302"), [0x82, 0x64, 0x02]);
        // Appendix C.6.2: 307.
        assert_eq!(literal("307"), [0x83, 0x64, 0x0e, 0xff]);
    }
}
