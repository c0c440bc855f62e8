//! Huffman's code of HTTP/2 (RFC 7541 appendix B), for the characters of which tokens are made.

/// The codes of `0` to `9` and `a` to `f`: bits, and how many.
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

/// A token in that code. Any other character is left out: there is none in a token.
pub fn encoded(token: &[u8]) -> Vec<u8> {
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
