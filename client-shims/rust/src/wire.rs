//! HTTP/1.1 answers from bytes, without any I/O: both clients read into [`Reading::space`] and tell it how much.
//!
//! Strict and bounded: an answer that a Keyhatch agent would not give (RFC 9112) is an error, and the
//! connection it came on is not used again. Every buffer here may hold a value and is wiped.

use zeroize::{Zeroize, Zeroizing};

use crate::chunks::Chunks;
use crate::events::Events;
use crate::head::{Head, Length, parse_head};

/// The most bytes of a status line and its headers.
const MAX_HEAD: usize = 8 * 1024;

/// A whole answer.
pub(crate) struct Reply {
    pub head: Head,
    pub body: Zeroizing<Vec<u8>>,
}

/// How far an answer has been read.
pub(crate) enum Step {
    /// Read on into [`Reading::space`].
    More,
    /// All of it is here.
    Whole(Reply),
    /// It is an event stream, to be read by [`Events`] from here on.
    Stream(Events),
}

/// Why an answer could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    /// The connection ended before the answer did.
    Closed,
    /// The bytes are no answer of an agent.
    Malformed(&'static str),
}

/// One answer being read.
pub(crate) struct Reading {
    scratch: Scratch,
    stage: Stage,
    /// The largest body accepted.
    limit: usize,
}

enum Stage {
    Head,
    Sized(Head, Zeroizing<Vec<u8>>, usize),
    Chunked(Head, Zeroizing<Vec<u8>>, Chunks),
    Over,
}

/// Where bytes arrive before it is known whose they are.
struct Scratch {
    bytes: Box<[u8; MAX_HEAD]>,
    filled: usize,
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.bytes[..self.filled].zeroize();
    }
}

impl Reading {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            scratch: Scratch {
                bytes: Box::new([0; MAX_HEAD]),
                filled: 0,
            },
            stage: Stage::Head,
            limit,
        }
    }

    /// Where the next bytes belong; never empty while [`Step::More`] is asked for.
    pub(crate) fn space(&mut self) -> &mut [u8] {
        match &mut self.stage {
            Stage::Sized(_, body, filled) => &mut body[*filled..],
            _ => &mut self.scratch.bytes[self.scratch.filled..],
        }
    }

    /// `count` bytes have been read into [`Reading::space`]; 0 is the end of the connection.
    pub(crate) fn advance(&mut self, count: usize) -> Result<Step, Broken> {
        if count == 0 {
            return Err(Broken::Closed);
        }
        match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Head => {
                self.scratch.filled += count;
                self.head()
            }
            Stage::Sized(head, body, filled) => Ok(self.sized(head, body, filled + count)),
            Stage::Chunked(head, body, chunks) => {
                self.scratch.filled += count;
                self.chunked(head, body, chunks, 0)
            }
            Stage::Over => Err(Broken::Malformed("more bytes than the answer has")),
        }
    }

    fn head(&mut self) -> Result<Step, Broken> {
        let seen = &self.scratch.bytes[..self.scratch.filled];
        let Some((head, end)) = parse_head(seen)? else {
            if self.scratch.filled == MAX_HEAD {
                return Err(Broken::Malformed("its headers are too large"));
            }
            self.stage = Stage::Head;
            return Ok(Step::More);
        };
        let rest = &seen[end..];
        match head.length {
            Length::Known(length) if length > self.limit => {
                Err(Broken::Malformed("its body is too large"))
            }
            Length::Known(length) if rest.len() > length => {
                Err(Broken::Malformed("more bytes than the answer has"))
            }
            Length::Known(length) => {
                let mut body = Zeroizing::new(vec![0; length]);
                body[..rest.len()].copy_from_slice(rest);
                let filled = rest.len();
                Ok(self.sized(head, body, filled))
            }
            Length::Chunked if head.status == 200 && head.events => {
                let mut events = Events::new();
                events.feed(rest)?;
                Ok(Step::Stream(events))
            }
            Length::Chunked => self.chunked(head, Zeroizing::default(), Chunks::new(), end),
        }
    }

    fn sized(&mut self, head: Head, body: Zeroizing<Vec<u8>>, filled: usize) -> Step {
        if filled == body.len() {
            return Step::Whole(Reply { head, body });
        }
        self.stage = Stage::Sized(head, body, filled);
        Step::More
    }

    /// Takes what lies in the scratch buffer from `start` on and leaves it empty.
    fn chunked(
        &mut self,
        head: Head,
        mut body: Zeroizing<Vec<u8>>,
        mut chunks: Chunks,
        start: usize,
    ) -> Result<Step, Broken> {
        let mut input = &self.scratch.bytes[start..self.scratch.filled];
        while let Some(piece) = chunks.next(&mut input)? {
            if piece.len() > self.limit - body.len() {
                return Err(Broken::Malformed("its body is too large"));
            }
            append(&mut body, piece);
        }
        self.scratch.bytes[..self.scratch.filled].zeroize();
        self.scratch.filled = 0;
        if chunks.is_over() {
            return Ok(Step::Whole(Reply { head, body }));
        }
        self.stage = Stage::Chunked(head, body, chunks);
        Ok(Step::More)
    }
}

/// Grows by copying to a new buffer, so that the old one is wiped: `Vec` would leave it behind.
fn append(body: &mut Zeroizing<Vec<u8>>, piece: &[u8]) {
    let needed = body.len() + piece.len();
    if needed > body.capacity() {
        let mut larger = Zeroizing::new(Vec::with_capacity(needed * 2));
        larger.extend_from_slice(body);
        *body = larger;
    }
    body.extend_from_slice(piece);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use super::*;
    use proptest::prelude::*;

    /// Reads an answer that arrives in pieces of `piece` bytes.
    fn read(bytes: &[u8], piece: usize, limit: usize) -> Result<Option<Reply>, Broken> {
        let mut reading = Reading::new(limit);
        let mut rest = bytes;
        while !rest.is_empty() {
            let space = reading.space();
            let count = piece.min(rest.len()).min(space.len());
            assert!(count > 0, "asked for more without space for it");
            space[..count].copy_from_slice(&rest[..count]);
            rest = &rest[count..];
            match reading.advance(count)? {
                Step::More => {}
                Step::Whole(reply) if rest.is_empty() => return Ok(Some(reply)),
                Step::Whole(_) => return Err(Broken::Malformed("test: bytes are left")),
                Step::Stream(_) => return Ok(None),
            }
        }
        reading.advance(0).map(|_| None)
    }

    const VALUE: &[u8] =
        b"HTTP/1.1 200 OK\r\nKeyhatch-Version: 3-ab\r\nContent-Length: 8\r\n\r\nCANARY-1";
    const CHUNKED: &[u8] = b"HTTP/1.1 429 Slow\r\nTransfer-Encoding: chunked\r\nRetry-After: 3\r\n\
        Connection: close\r\n\r\n4\r\nCANA\r\n4\r\nRY-1\r\n0\r\n\r\n";

    #[test]
    fn answers_read_the_same_in_pieces_of_any_size() {
        for piece in 1..=VALUE.len() {
            let reply = read(VALUE, piece, 8).unwrap().unwrap();
            assert_eq!(reply.body.as_slice(), b"CANARY-1");
            assert_eq!(reply.head.version.as_deref(), Some("3-ab"));
            assert!(!reply.head.close);
        }
        for piece in 1..=CHUNKED.len() {
            let reply = read(CHUNKED, piece, 8).unwrap().unwrap();
            assert_eq!(reply.body.as_slice(), b"CANARY-1");
            assert_eq!(reply.head.retry_after, Some(Duration::from_secs(3)));
            assert!(reply.head.close);
        }
    }

    #[test]
    fn a_body_over_the_limit_is_refused_before_it_is_read() {
        assert_eq!(
            read(VALUE, 4096, 7).err(),
            Some(Broken::Malformed("its body is too large"))
        );
        assert_eq!(
            read(CHUNKED, 4096, 7).err(),
            Some(Broken::Malformed("its body is too large"))
        );
    }

    #[test]
    fn an_answer_cut_short_is_an_error_wherever_it_is_cut() {
        for whole in [VALUE, CHUNKED] {
            for end in 0..whole.len() {
                assert_eq!(read(&whole[..end], 4096, 8).err(), Some(Broken::Closed));
            }
        }
    }

    #[test]
    fn more_bytes_than_the_answer_has_are_refused() {
        let bytes = [VALUE, b"x"].concat();
        assert!(matches!(read(&bytes, 4096, 8), Err(Broken::Malformed(_))));
        let bytes = [CHUNKED, b"x"].concat();
        assert!(matches!(read(&bytes, 4096, 8), Err(Broken::Malformed(_))));
    }

    #[test]
    fn a_head_without_end_is_refused() {
        let bytes = [b"HTTP/1.1 200 OK\r\nX: ".as_slice(), &[b'x'; MAX_HEAD]].concat();
        assert!(matches!(read(&bytes, 999, 8), Err(Broken::Malformed(_))));
    }

    #[test]
    fn only_a_good_answer_is_an_event_stream() {
        let stream = "Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
        let good = format!("HTTP/1.1 200 OK\r\n{stream}");
        assert!(read(good.as_bytes(), 4096, 8).unwrap().is_none());
        let bad = format!("HTTP/1.1 403 No\r\n{stream}0\r\n\r\n");
        assert_eq!(
            read(bad.as_bytes(), 4096, 8).unwrap().unwrap().head.status,
            403
        );
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_pass_its_limit(
            head in r"HTTP/1\.[01] [0-9]{3} x\r\n((Content-Length: [0-9]{0,3}|Transfer-Encoding: chunked|[A-Z:]{0,4})\r\n){0,3}\r\n",
            body in prop_oneof![proptest::collection::vec(any::<u8>(), 0..99), "([0-9a-f]{1,2}\r\n[a-z]{0,9}\r\n){0,5}".prop_map(String::into_bytes)],
            piece in 1..200_usize,
        ) {
            let bytes = [head.as_bytes(), &body].concat();
            if let Ok(Some(reply)) = read(&bytes, piece, 50) {
                prop_assert!(reply.body.len() <= 50);
            }
            let _ = read(&body, piece, 50);
        }
    }
}
