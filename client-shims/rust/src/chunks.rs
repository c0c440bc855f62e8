//! The chunked transfer coding (RFC 9112, section 7.1), as an agent sends it: no extensions, no trailers.

use crate::wire::Broken;

/// Takes the framing off a chunked body that arrives in pieces.
pub(crate) struct Chunks {
    expect: Expect,
}

#[derive(Clone, Copy)]
enum Expect {
    /// The digits of a size: how many there were, and their value.
    Size(u8, usize),
    /// The line feed after the size.
    SizeEnd(usize),
    /// So many bytes of data.
    Data(usize),
    /// The line ending after the data.
    DataCr,
    DataLf,
    /// The line ending after the last chunk.
    LastCr,
    LastLf,
    Over,
}

/// More digits than any body of ours needs.
const MAX_DIGITS: u8 = 7;

impl Chunks {
    pub(crate) fn new() -> Self {
        Self {
            expect: Expect::Size(0, 0),
        }
    }

    /// The body has ended.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.expect, Expect::Over)
    }

    /// The next piece of the body from the front of `input`; `None` where more must arrive first.
    pub(crate) fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<&'a [u8]>, Broken> {
        while let [byte, rest @ ..] = *input {
            if let Expect::Data(left) = self.expect {
                let (piece, rest) = input.split_at(left.min(input.len()));
                *input = rest;
                self.expect = match left - piece.len() {
                    0 => Expect::DataCr,
                    left => Expect::Data(left),
                };
                return Ok(Some(piece));
            }
            self.expect = self.after(*byte)?;
            *input = rest;
        }
        Ok(None)
    }

    fn after(&self, byte: u8) -> Result<Expect, Broken> {
        Ok(match (self.expect, byte) {
            (Expect::Size(digits, size), b'\r') if digits > 0 => Expect::SizeEnd(size),
            (Expect::Size(digits, size), _) if digits < MAX_DIGITS => {
                let digit = (byte as char).to_digit(16);
                let digit = digit.ok_or(Broken::Malformed("a chunk's size is no number"))?;
                Expect::Size(digits + 1, size << 4 | digit as usize)
            }
            (Expect::SizeEnd(0), b'\n') => Expect::LastCr,
            (Expect::SizeEnd(size), b'\n') => Expect::Data(size),
            (Expect::DataCr, b'\r') => Expect::DataLf,
            (Expect::DataLf, b'\n') => Expect::Size(0, 0),
            (Expect::LastCr, b'\r') => Expect::LastLf,
            (Expect::LastLf, b'\n') => Expect::Over,
            _ => return Err(Broken::Malformed("its chunks are not framed right")),
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode(bytes: &[u8], piece: usize) -> Result<(Vec<u8>, bool), Broken> {
        let mut chunks = Chunks::new();
        let mut body = Vec::new();
        for mut input in bytes.chunks(piece) {
            while let Some(data) = chunks.next(&mut input)? {
                body.extend_from_slice(data);
            }
        }
        Ok((body, chunks.is_over()))
    }

    proptest! {
        #[test]
        fn what_was_framed_is_read_in_pieces_of_any_size(
            parts in proptest::collection::vec("[a-z]{1,40}", 0..6), piece in 1..50_usize
        ) {
            let frame = |part: &String| format!("{:x}\r\n{part}\r\n", part.len());
            let mut bytes = parts.iter().map(frame).collect::<Vec<_>>().concat();
            let (body, over) = decode(bytes.as_bytes(), piece).unwrap();
            prop_assert!(!over);
            prop_assert!(body == parts.concat().as_bytes());
            bytes += "0\r\n\r\n";
            prop_assert!(decode(bytes.as_bytes(), piece).unwrap().1);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in any::<Vec<u8>>(), text in "[0-9a-f\r\n;]{0,30}") {
            let _ = decode(&bytes, 3);
            let _ = decode(text.as_bytes(), 7);
        }
    }

    #[test]
    fn loose_framing_is_refused() {
        for bad in [
            "\r\n",
            "1;x=y\r\n",
            "1\n",
            "1\r\nab",
            "-1\r\n",
            "00000001\r\n",
            "0\r\nX: y\r\n",
            "0\r\n\r\nx",
        ] {
            assert!(decode(bad.as_bytes(), 99).is_err(), "{bad:?}");
        }
    }
}
