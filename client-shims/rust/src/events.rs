//! Server-sent events (WHATWG HTML, section 9.2.6) out of a chunked body, without any I/O.
//!
//! Events hold names and versions, never values, so nothing here needs wiping.

use std::collections::VecDeque;

use crate::chunks::Chunks;
use crate::wire::Broken;

/// Longer than any line of an agent: a name has at most 512 bytes.
const MAX_LINE: usize = 8 * 1024;

/// One event as it came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RawEvent {
    pub id: Option<String>,
    pub kind: String,
    pub data: String,
}

/// An event stream being read, like [`crate::wire::Reading`].
pub(crate) struct Events {
    buffer: Box<[u8; 4096]>,
    chunks: Chunks,
    parser: Parser,
    ready: VecDeque<RawEvent>,
}

impl Events {
    pub(crate) fn new() -> Self {
        Self {
            buffer: Box::new([0; 4096]),
            chunks: Chunks::new(),
            parser: Parser::default(),
            ready: VecDeque::new(),
        }
    }

    /// Where the next bytes belong. There are none after the last chunk, though the connection may stay open.
    pub(crate) fn space(&mut self) -> Result<&mut [u8], Broken> {
        if self.chunks.is_over() {
            return Err(Broken::Closed);
        }
        Ok(self.buffer.as_mut_slice())
    }

    /// `count` bytes have been read into [`Events::space`]; 0 is the end of the connection.
    pub(crate) fn advance(&mut self, count: usize) -> Result<(), Broken> {
        if count == 0 {
            return Err(Broken::Closed);
        }
        let (buffer, chunks, parser) = (&self.buffer, &mut self.chunks, &mut self.parser);
        decode(chunks, parser, &buffer[..count], &mut self.ready)
    }

    /// Takes bytes that came with the head.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        decode(&mut self.chunks, &mut self.parser, bytes, &mut self.ready)
    }

    /// The next event that is all there.
    pub(crate) fn pop(&mut self) -> Option<RawEvent> {
        self.ready.pop_front()
    }
}

fn decode(
    chunks: &mut Chunks,
    parser: &mut Parser,
    mut input: &[u8],
    ready: &mut VecDeque<RawEvent>,
) -> Result<(), Broken> {
    while let Some(piece) = chunks.next(&mut input)? {
        parser.feed(piece, ready)?;
    }
    Ok(())
}

/// Lines to events.
#[derive(Default)]
struct Parser {
    line: Vec<u8>,
    /// The last byte was a carriage return: a line feed that follows belongs to it.
    after_cr: bool,
    event: RawEvent,
}

impl Parser {
    fn feed(&mut self, bytes: &[u8], ready: &mut VecDeque<RawEvent>) -> Result<(), Broken> {
        for byte in bytes {
            let after_cr = std::mem::replace(&mut self.after_cr, *byte == b'\r');
            match byte {
                b'\n' if after_cr => {}
                b'\n' | b'\r' => self.end_line(ready)?,
                _ if self.line.len() == MAX_LINE => {
                    return Err(Broken::Malformed("a line of its event stream is too long"));
                }
                _ => self.line.push(*byte),
            }
        }
        Ok(())
    }

    fn end_line(&mut self, ready: &mut VecDeque<RawEvent>) -> Result<(), Broken> {
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            let event = std::mem::take(&mut self.event);
            if !event.data.is_empty() {
                ready.push_back(event);
            }
            return Ok(());
        }
        let line = String::from_utf8_lossy(&line);
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => self.event.kind = value.into(),
            "data" => {
                if self.event.data.len() + value.len() > MAX_LINE {
                    return Err(Broken::Malformed("an event of its stream is too long"));
                }
                if !self.event.data.is_empty() {
                    self.event.data.push('\n');
                }
                self.event.data.push_str(value);
            }
            // It goes back in a header: nothing but visible characters.
            "id" if value.bytes().all(|byte| byte.is_ascii_graphic()) => {
                self.event.id = Some(value.into());
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &[u8], piece: usize) -> Result<Vec<RawEvent>, Broken> {
        let (mut parser, mut ready) = (Parser::default(), VecDeque::new());
        for bytes in text.chunks(piece) {
            parser.feed(bytes, &mut ready)?;
        }
        Ok(ready.into())
    }

    fn event(id: Option<&str>, kind: &str, data: &str) -> RawEvent {
        RawEvent {
            id: id.map(Into::into),
            kind: kind.into(),
            data: data.into(),
        }
    }

    #[test]
    fn events_read_the_same_in_pieces_of_any_size_and_with_any_line_ending() {
        let text = ": hello\n\nid: 7\nevent: rotated\ndata: {\"a\":\ndata:1}\n\nid\nretry: 3\ndata: x\n\n\
            event: only\n\ndata: unfinished\n";
        let expected = [
            event(Some("7"), "rotated", "{\"a\":\n1}"),
            event(Some(""), "", "x"),
        ];
        for ending in ["\n", "\r\n", "\r"] {
            let text = text.replace('\n', ending);
            for piece in 1..text.len() {
                assert_eq!(parse(text.as_bytes(), piece).unwrap(), expected);
            }
        }
    }

    #[test]
    fn a_stream_that_has_ended_is_not_waited_for() {
        let mut events = Events::new();
        events.feed(b"9\r\ndata: x\n\n\r\n").unwrap();
        assert!(events.space().is_ok());
        events.feed(b"0\r\n\r\n").unwrap();
        assert!(events.pop().is_some(), "what came before the end counts");
        assert!(matches!(events.space(), Err(Broken::Closed)));
    }

    #[test]
    fn an_id_that_no_header_can_hold_is_dropped() {
        let text = "id: a b\ndata: x\n\nid: \u{e9}\ndata: x\n\n";
        for event in parse(text.as_bytes(), 99).unwrap() {
            assert_eq!(event.id, None);
        }
    }

    #[test]
    fn lines_and_events_are_bounded() {
        assert!(parse(&[b'x'; MAX_LINE + 1], 999).is_err());
        let many = "data: xxxxxxxxxxxxxxxxxxxxxxxxxxx\n".repeat(MAX_LINE / 20);
        assert!(parse(many.as_bytes(), 999).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in any::<Vec<u8>>(), text in "[a-z:\r\n ]{0,40}") {
            let _ = parse(&bytes, 5);
            let _ = parse(text.as_bytes(), 3);
            let _ = Events::new().feed(&bytes);
        }
    }
}
