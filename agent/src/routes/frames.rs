//! What an upstream says over a WebSocket (RFC 6455), searched for the secret frame by frame.
//!
//! A frame that is whole goes on whole, so that no message waits for the next. The asterisks are as many bytes as the
//! secret was, so that the lengths in the heads of frames stay right.

use std::sync::Arc;

use bytes::Bytes;

use super::mask::{Mask, Stream};

/// The bits of a first byte that only extensions use, of which none was agreed on.
const EXTENSIONS: u8 = 0x70;

/// The bit of a second byte that says that a frame is masked, as those of clients are.
const MASKED: u8 = 0x80;

/// Frames as they come in pieces.
pub struct Frames {
    stream: Stream,
    /// The head that is coming in.
    head: Vec<u8>,
    /// How much of the frame's payload is still to come.
    left: u64,
}

/// What is no frame of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoFrame;

impl Frames {
    /// The frames of one connection from its beginning.
    #[must_use]
    pub fn new(mask: Arc<Mask>) -> Self {
        Self {
            stream: Stream::new(mask),
            head: Vec::new(),
            left: 0,
        }
    }

    /// How often something was found.
    #[must_use]
    pub fn hits(&self) -> usize {
        self.stream.hits()
    }

    /// What of the frames so far may go on.
    ///
    /// # Errors
    /// Where it is no frame, or one that cannot be searched.
    pub fn push(&mut self, mut piece: Bytes) -> Result<Vec<u8>, NoFrame> {
        let mut out = Vec::with_capacity(piece.len());
        while !piece.is_empty() {
            if self.left == 0 {
                let byte = piece.split_to(1);
                out.extend_from_slice(&byte);
                self.head.extend_from_slice(&byte);
                self.left = self.payload()?.unwrap_or(0);
                continue;
            }
            let here = usize::try_from(self.left).map_or(piece.len(), |left| left.min(piece.len()));
            out.extend_from_slice(&self.stream.push(piece.split_to(here)));
            self.left -= here as u64;
            if self.left == 0 {
                out.extend_from_slice(&self.stream.end());
            }
        }
        Ok(out)
    }

    /// The length of the payload, once the head that says it is whole.
    fn payload(&mut self) -> Result<Option<u64>, NoFrame> {
        let [first, second, rest @ ..] = &self.head[..] else {
            return Ok(None);
        };
        if first & EXTENSIONS != 0 || second & MASKED != 0 {
            return Err(NoFrame);
        }
        let len = match second {
            126 => rest
                .try_into()
                .ok()
                .map(|len| u64::from(u16::from_be_bytes(len))),
            127 => rest.try_into().ok().map(u64::from_be_bytes),
            len => Some(u64::from(*len)),
        };
        if len.is_some() {
            self.head.clear();
        }
        Ok(len)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::sys::arena::Arena;

    const KEY: &[u8] = b"CANARY-key-0123456789";

    fn frame(payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0x81];
        match payload.len() {
            len @ 0..126 => frame.push(u8::try_from(len).unwrap()),
            len @ 126..65536 => {
                frame.push(126);
                frame.extend(u16::try_from(len).unwrap().to_be_bytes());
            }
            len => {
                frame.push(127);
                frame.extend((len as u64).to_be_bytes());
            }
        }
        [&frame, payload].concat()
    }

    fn frames() -> Frames {
        let arena = Arena::new(1 << 20).unwrap();
        Frames::new(Arc::new(Mask::new(&arena, &[KEY]).unwrap()))
    }

    #[test]
    fn frames_keep_their_lengths_and_lose_the_secret_however_they_come() {
        let before = vec![b'x'; 70_000];
        let payloads: [&[u8]; 6] = [
            KEY,
            b"",
            b"C",
            b"a CANARY-key-0123456789 b",
            &before,
            b"CANARY-",
        ];
        let sent: Vec<u8> = payloads.iter().flat_map(|payload| frame(payload)).collect();
        let wanted: [&[u8]; 6] = [
            &[b'*'; 21],
            b"",
            b"C",
            b"a ********************* b",
            &before,
            b"CANARY-",
        ];
        let wanted: Vec<u8> = wanted.iter().flat_map(|payload| frame(payload)).collect();
        for size in [1, 2, 3, 7, 1000, sent.len()] {
            let mut frames = frames();
            let mut out = Vec::new();
            for piece in sent.chunks(size) {
                out.extend(frames.push(Bytes::copy_from_slice(piece)).unwrap());
            }
            assert!(out == wanted, "{size}");
            assert_eq!(frames.hits(), 2);
        }
    }

    #[test]
    fn a_whole_frame_waits_for_nothing() {
        let mut frames = frames();
        let whole = frame(b"CANARY-");
        assert_eq!(frames.push(whole.clone().into()).unwrap(), whole);
    }

    #[test]
    fn what_cannot_be_searched_does_not_go_on() {
        for odd in [&b"\xc1\x05"[..], b"\x91\x01x", b"\x81\x85abcd"] {
            assert_eq!(frames().push(Bytes::from_static(odd)), Err(NoFrame));
        }
    }
}
