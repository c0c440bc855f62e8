//! The credential on its way out over HTTP/2, where heads leave compressed (HPACK, RFC 7541).
//!
//! As in `insert`, the library writes a random token, in a field that is never indexed: a literal that neither end
//! keeps in a table. So this stream, between the library and TLS, can write another literal in its place, and nothing
//! of what follows means anything else. All other bytes pass as they are.
//!
//! The library may send the head of a request that was given up meanwhile all the same, and ends the request then. So
//! what stands for its credential outlives it.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::hpack::{length, never_indexed, token};
use super::insert::Insertions;
use crate::sys::arena::Block;

/// What a connection begins with, before its frames (RFC 9113 section 3.4).
const PREFACE: usize = 24;
/// The head of a frame: length, kind, flags and stream (section 4.1).
const HEAD: usize = 9;
/// The most that every peer takes in a frame (section 4.2).
const LARGEST: usize = 16 * 1024;
/// The most that is collected of one request's head, which was bounded when it came.
const LARGEST_BLOCK: usize = 256 * 1024;
/// The most that waits to be written before more is taken.
const WAITING: usize = 64 * 1024;

const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 0x4;
/// Padding and priority, which the library does not write.
const UNKNOWN: u8 = 0x8 | 0x20;

/// A stream that writes credentials in place of tokens.
pub struct InsertingH2<S> {
    stream: S,
    insertions: Insertions,
    next: Next,
    /// The head of the frame that is being taken, as far as it is here.
    head: Vec<u8>,
    block: Fields,
    out: Out,
}

/// What comes next of what is to be written.
enum Next {
    /// So much that passes as it is.
    Plain(usize),
    /// The head of a frame.
    Head,
    /// So much of a part of a block.
    Part(usize),
}

/// The fields of one request, as far as they are here.
#[derive(Default)]
struct Fields {
    /// Flags and stream of the frame that it began with.
    begin: Option<(u8, [u8; 4])>,
    /// Whether it ends with the frame that is being taken.
    is_last: bool,
    bytes: Vec<u8>,
}

/// What waits to be written.
#[derive(Default)]
struct Out(VecDeque<(Source, Range<usize>)>);

#[derive(Clone)]
enum Source {
    Plain(Arc<[u8]>),
    Value(Arc<Block>),
}

impl Source {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Plain(bytes) => bytes,
            Self::Value(value) => value,
        }
    }
}

impl Out {
    fn push(&mut self, source: Source, range: Range<usize>) {
        if !range.is_empty() {
            self.0.push_back((source, range));
        }
    }

    fn plain(&mut self, bytes: Vec<u8>) {
        let len = bytes.len();
        self.push(Source::Plain(bytes.into()), 0..len);
    }

    fn len(&self) -> usize {
        self.0.iter().map(|(_, range)| range.len()).sum()
    }

    /// Takes away what has been written; how much of `count` was not its.
    fn written(&mut self, mut count: usize) -> usize {
        while let Some((_, range)) = self.0.front_mut() {
            let part = count.min(range.len());
            range.start += part;
            count -= part;
            if range.start < range.end {
                break;
            }
            self.0.pop_front();
        }
        count
    }

    fn slices<'a>(&'a self, more: &'a [u8]) -> Vec<io::IoSlice<'a>> {
        let waiting = self.0.iter();
        let waiting = waiting.map(|(source, range)| &source.bytes()[range.clone()]);
        waiting
            .chain([more])
            .filter(|slice| !slice.is_empty())
            .map(io::IoSlice::new)
            .collect()
    }
}

impl<S> InsertingH2<S> {
    /// Wraps a connected stream on which nothing was said yet.
    pub fn new(stream: S, insertions: Insertions) -> Self {
        Self {
            stream,
            insertions,
            next: Next::Plain(PREFACE),
            head: Vec::with_capacity(HEAD),
            block: Fields::default(),
            out: Out::default(),
        }
    }

    /// Takes some of the head of a frame, and looks at it once it is whole.
    fn take_head(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(HEAD - self.head.len());
        self.head.extend_from_slice(&bytes[..taken]);
        let [a, b, c, kind, flags, ref stream @ ..] = self.head[..] else {
            return Ok(taken);
        };
        let Ok(stream) = <[u8; 4]>::try_from(stream) else {
            return Ok(taken);
        };
        let len = (usize::from(a) << 16) | (usize::from(b) << 8) | usize::from(c);
        match kind {
            HEADERS | CONTINUATION => {
                if flags & UNKNOWN != 0 && kind == HEADERS {
                    return Err(odd());
                }
                self.block.begin.get_or_insert((flags, stream));
                self.block.is_last = flags & END_HEADERS != 0;
                self.next = Next::Part(len);
                self.head.clear();
                self.take_part(&[])?;
            }
            _ => {
                self.next = if len > 0 {
                    Next::Plain(len)
                } else {
                    Next::Head
                };
                self.out.plain(std::mem::take(&mut self.head));
            }
        }
        Ok(taken)
    }

    /// Takes some of a block, which goes on once all of it is here.
    fn take_part(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Next::Part(left) = &mut self.next else {
            return Ok(0);
        };
        let taken = bytes.len().min(*left);
        *left -= taken;
        self.block.bytes.extend_from_slice(&bytes[..taken]);
        if self.block.bytes.len() > LARGEST_BLOCK {
            return Err(odd());
        }
        if *left == 0 {
            self.next = Next::Head;
            if self.block.is_last {
                let block = std::mem::take(&mut self.block);
                let fields = with_values(block.bytes, &self.insertions).ok_or_else(odd)?;
                let (flags, stream) = block.begin.ok_or_else(odd)?;
                framed(fields, flags, stream, &mut self.out);
            }
        }
        Ok(taken)
    }
}

/// What our own library does not write.
fn odd() -> io::Error {
    io::Error::other("a frame that is not expected here")
}

/// A block with the values in it; `None` where no value is known for a field that needs one, or it is no block.
fn with_values(block: Vec<u8>, insertions: &Insertions) -> Option<Vec<(Source, Range<usize>)>> {
    let places = never_indexed(&block)?;
    let block: Arc<[u8]> = block.into();
    let mut fields = Vec::with_capacity(3 * places.len() + 1);
    let mut from = 0;
    for place in places {
        let value = insertions.value(&token(&block[place.clone()])?)?;
        fields.push((Source::Plain(Arc::clone(&block)), from..place.start));
        let (len, all) = (length(value.len()), 0..value.len());
        let of_len = 0..len.len();
        fields.push((Source::Plain(len.into()), of_len));
        fields.push((Source::Value(value), all));
        from = place.end;
    }
    let rest = from..block.len();
    fields.push((Source::Plain(block), rest));
    Some(fields)
}

/// Fields in as many frames as they take.
fn framed(fields: Vec<(Source, Range<usize>)>, flags: u8, stream: [u8; 4], out: &mut Out) {
    let mut left: usize = fields.iter().map(|(_, range)| range.len()).sum();
    let mut room = LARGEST.min(left);
    let head = |kind: u8, flags: u8, len: usize| {
        let [.., a, b, c] = len.to_be_bytes();
        [&[a, b, c, kind, flags], &stream[..]].concat()
    };
    let last = |left: usize| if left <= LARGEST { END_HEADERS } else { 0 };
    out.plain(head(HEADERS, (flags & !END_HEADERS) | last(left), room));
    for (source, mut range) in fields {
        while !range.is_empty() {
            if room == 0 {
                room = LARGEST.min(left);
                out.plain(head(CONTINUATION, last(left), room));
            }
            let part = range.start..range.end.min(range.start + room);
            (left, room) = (left - part.len(), room - part.len());
            range.start = part.end;
            out.push(source.clone(), part);
        }
    }
}

impl<S: AsyncWrite + Unpin> InsertingH2<S> {
    /// Writes what waits, and of `more` as much as goes along; how much of that is gone.
    fn poll_out(&mut self, cx: &mut Context<'_>, more: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let slices = self.out.slices(more);
            if slices.is_empty() {
                return Poll::Ready(Ok(0));
            }
            let count = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, &slices))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.insertions.wrote(count);
            let of_more = self.out.written(count);
            if of_more > 0 {
                return Poll::Ready(Ok(of_more));
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for InsertingH2<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.out.len() > WAITING {
            ready!(this.poll_out(cx, &[]))?;
        }
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        match &mut this.next {
            Next::Plain(left) => {
                let most = bytes.len().min(*left);
                let count = ready!(this.poll_out(cx, &bytes[..most]))?;
                if let Next::Plain(left) = &mut this.next {
                    *left -= count;
                    if *left == 0 {
                        this.next = Next::Head;
                    }
                }
                Poll::Ready(Ok(count))
            }
            Next::Head => Poll::Ready(this.take_head(bytes)),
            Next::Part(_) => Poll::Ready(this.take_part(bytes)),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_out(cx, &[]))?;
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_out(cx, &[]))?;
        Pin::new(&mut this.stream).poll_shutdown(cx)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for InsertingH2<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (this, before) = (self.get_mut(), buffer.filled().len());
        ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
        this.insertions.received(buffer.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests;
