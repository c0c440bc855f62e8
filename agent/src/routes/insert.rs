//! The credential on its way out: it is written from secret memory in place of a token, as the head leaves.
//!
//! The HTTP library keeps its buffers for as long as a connection waits for the next request. So it never has the
//! credential: the head that it writes holds random tokens, and this stream, between it and TLS, writes the
//! credential where they stand.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::sys::arena::Block;

/// A token, and what is written in its place.
#[derive(Clone)]
pub struct Insertion {
    /// Random, and of characters that stand for themselves in any part of a head.
    pub token: Arc<str>,
    /// In secret memory.
    pub value: Arc<Block>,
}

/// The most requests of a connection that were given up before their heads were out and are still provided for.
const LEFT_BEHIND: usize = 64;

/// What is to be written on one connection; shared with the stream. Over HTTP/2 that is for several requests.
#[derive(Clone, Default)]
pub struct Insertions(Arc<Shared>);

#[derive(Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    /// How much was written and read.
    written: AtomicU64,
    read: AtomicU64,
}

#[derive(Default)]
struct Waiting {
    all: Vec<Entry>,
    /// Whether a request was given up before its head was out.
    has_left: bool,
}

struct Entry {
    insertion: Insertion,
    /// How many requests that are under way are written with it: over HTTP/2 it may be several.
    requests: usize,
    /// How many heads are yet to be.
    unwritten: usize,
}

impl Insertions {
    /// What a head that is about to leave is written with, until the guard is dropped.
    #[must_use]
    pub fn add<'a>(&self, these: &'a [Insertion]) -> Added<'a> {
        let mut waiting = self.lock();
        for one in these {
            match waiting.entry(one) {
                Some(at) => {
                    waiting.all[at].requests += 1;
                    waiting.all[at].unwritten += 1;
                }
                None => waiting.all.push(Entry {
                    insertion: one.clone(),
                    requests: 1,
                    unwritten: 1,
                }),
            }
        }
        drop(waiting);
        Added {
            to: self.clone(),
            these,
        }
    }

    /// What is written in a token's place, in one more head.
    pub fn value(&self, token: &str) -> Option<Arc<Block>> {
        let mut waiting = self.lock();
        let is_it = |entry: &Entry| *entry.insertion.token == *token;
        let at = waiting.all.iter().position(is_it)?;
        let entry = &mut waiting.all[at];
        entry.unwritten = entry.unwritten.saturating_sub(1);
        let value = Arc::clone(&entry.insertion.value);
        if entry.requests == 0 && entry.unwritten == 0 {
            waiting.all.remove(at);
        }
        Some(value)
    }

    /// Whether a request was given up before its head was out.
    pub fn has_left(&self) -> bool {
        self.lock().has_left
    }

    /// Notes how much went out.
    pub fn wrote(&self, bytes: usize) {
        self.0.written.fetch_add(bytes as u64, Relaxed);
    }

    /// Notes how much came in.
    pub fn received(&self, bytes: usize) {
        self.0.read.fetch_add(bytes as u64, Relaxed);
    }

    /// How many bytes have gone out on the connection.
    pub fn written(&self) -> u64 {
        self.0.written.load(Relaxed)
    }

    /// How many bytes have come in.
    pub fn read(&self) -> u64 {
        self.0.read.load(Relaxed)
    }

    /// Whether they are of the same connection.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        let waiting = self.0.waiting.lock();
        waiting.unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    /// Forgets the longest given up where there are too many. Should its head leave after all, the connection ends.
    fn forget_oldest(&mut self) {
        let left = self.all.iter().enumerate();
        let left = left.filter(|(_, entry)| entry.requests == 0);
        let left: Vec<usize> = left.map(|(at, _)| at).collect();
        if left.len() > LEFT_BEHIND {
            self.all.remove(left[0]);
        }
    }

    /// Where the same stands.
    fn entry(&self, one: &Insertion) -> Option<usize> {
        let mut all = self.all.iter();
        all.position(|entry| entry.insertion.token == one.token)
    }
}

/// Insertions of one request, which are forgotten with the last one that has them, once they are written.
pub struct Added<'a> {
    to: Insertions,
    these: &'a [Insertion],
}

impl Drop for Added<'_> {
    fn drop(&mut self) {
        let mut waiting = self.to.lock();
        for one in self.these {
            let Some(at) = waiting.entry(one) else {
                continue;
            };
            waiting.all[at].requests -= 1;
            if waiting.all[at].requests > 0 {
                continue;
            }
            if waiting.all[at].unwritten == 0 {
                waiting.all.remove(at);
            } else {
                // The head may be on its way, and holds a token that means nothing to whom it goes to.
                waiting.has_left = true;
                waiting.forget_oldest();
            }
        }
    }
}

/// A stream that writes credentials in place of tokens.
pub struct Inserting<S> {
    stream: S,
    insertions: Insertions,
    /// How much of the value that is being written is out.
    written: usize,
}

impl<S> Inserting<S> {
    /// Wraps a connected stream.
    pub fn new(stream: S, insertions: Insertions) -> Self {
        Self {
            stream,
            insertions,
            written: 0,
        }
    }
}

/// A part of what is written.
struct Piece<'a> {
    bytes: &'a [u8],
    /// Where it is a value, or the rest of one: the number of its insertion, and how long the token is.
    token: Option<(usize, usize)>,
}

/// The first token in `bytes` that was not found before: where it stands, and which it is.
fn first(all: &[Entry], found: &[usize], bytes: &[u8]) -> Option<(usize, usize)> {
    let left = all.iter().enumerate();
    let left = left.filter(|(number, entry)| entry.unwritten > 0 && !found.contains(number));
    let places = left.filter_map(|(number, entry)| {
        let token = entry.insertion.token.as_bytes();
        let at = bytes
            .windows(token.len())
            .position(|window| window == token)?;
        Some((at, number))
    });
    places.min()
}

/// What is written for `slices`. Of the value that comes first, `written` bytes are out already.
fn pieces<'a>(
    all: &'a [Entry],
    slices: &'a [io::IoSlice<'_>],
    mut written: usize,
) -> Vec<Piece<'a>> {
    let mut pieces = Vec::with_capacity(slices.len() + 2 * all.len());
    // What follows the last of them may be a large body, which is not looked through.
    let mut found = Vec::with_capacity(all.len());
    for slice in slices {
        let mut rest: &[u8] = slice;
        while let Some((at, number)) = first(all, &found, rest) {
            found.push(number);
            let Insertion { token, value } = &all[number].insertion;
            pieces.extend((at > 0).then(|| Piece::plain(&rest[..at])));
            pieces.push(Piece {
                bytes: &value[std::mem::take(&mut written)..],
                token: Some((number, token.len())),
            });
            rest = &rest[at + token.len()..];
        }
        pieces.extend((!rest.is_empty()).then(|| Piece::plain(rest)));
    }
    pieces
}

impl<'a> Piece<'a> {
    fn plain(bytes: &'a [u8]) -> Self {
        Self { bytes, token: None }
    }
}

/// What is gone of the pieces once `count` bytes of them are written.
#[derive(Default)]
struct Gone {
    /// How much of what was to be written. A token goes whole, once its value has.
    taken: usize,
    /// Of the value at which it stopped.
    of_value: usize,
    /// The insertions that are done.
    done: Vec<usize>,
}

impl Gone {
    fn of(pieces: &[Piece<'_>], mut count: usize) -> Self {
        let mut gone = Self::default();
        for piece in pieces {
            let part = count.min(piece.bytes.len());
            let is_whole = part == piece.bytes.len();
            count -= part;
            match piece.token {
                None => gone.taken += part,
                Some((number, len)) if is_whole => {
                    gone.taken += len;
                    gone.done.push(number);
                }
                Some(_) => gone.of_value = part,
            }
            if !is_whole {
                break;
            }
        }
        gone
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Inserting<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(bytes)])
    }

    /// Head and values leave together: as one record where it is TLS, and in one packet where they fit.
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let mut waiting = this.insertions.lock();
        // What would follow is the rest of a head that was begun.
        if waiting.has_left {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let all = &mut waiting.all;
        if all.iter().all(|entry| entry.unwritten == 0) {
            drop(waiting);
            let count = ready!(Pin::new(&mut this.stream).poll_write_vectored(cx, slices))?;
            this.insertions.wrote(count);
            return Poll::Ready(Ok(count));
        }
        loop {
            let pieces = pieces(all, slices, this.written);
            let out: Vec<_> = pieces
                .iter()
                .map(|piece| io::IoSlice::new(piece.bytes))
                .collect();
            let mut count = 0;
            if out.iter().any(|slice| !slice.is_empty()) {
                count = ready!(Pin::new(&mut this.stream).poll_write_vectored(cx, &out))?;
                if count == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
            }
            let gone = Gone::of(&pieces, count);
            if gone.taken > 0 || count == 0 {
                this.written = gone.of_value;
                for number in gone.done {
                    all[number].unwritten = all[number].unwritten.saturating_sub(1);
                }
                return Poll::Ready(Ok(gone.taken));
            }
            // A part of a value is nothing that could be told.
            this.written += gone.of_value;
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Inserting<S> {
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
#[allow(clippy::unwrap_used)]
pub(super) mod tests {
    use super::*;
    use crate::sys::arena::Arena;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    pub(in super::super) fn insertion(arena: &Arc<Arena>, token: &str, value: &str) -> Insertion {
        let mut draft = arena.draft(value.len()).unwrap();
        draft.copy_from_slice(value.as_bytes());
        Insertion {
            token: token.into(),
            value: Arc::new(draft.freeze()),
        }
    }

    #[tokio::test]
    async fn tokens_leave_as_values_through_narrow_and_wide_pipes() {
        let arena = Arena::new(65536).unwrap();
        let long = "CANARY-".repeat(20);
        for room in (1..20).chain([150, 180, 1000]) {
            let (near, mut far) = tokio::io::duplex(room);
            let insertions = Insertions::default();
            let these = [
                insertion(&arena, "TOKEN-1", &long),
                insertion(&arena, "TOKEN-2", ""),
                insertion(&arena, "TOKEN-3", "CANARY-3"),
            ];
            let added = insertions.add(&these);
            let mut stream = Inserting::new(near, insertions);
            let read = tokio::spawn(async move {
                let mut out = String::new();
                far.read_to_string(&mut out).await.unwrap();
                out
            });
            let (head, body) = (b"a: TOKEN-1TOKEN-3\r\nb: TOKEN-2\r\n\r\n", b"a body");
            let slices = [io::IoSlice::new(head), io::IoSlice::new(body)];
            let taken = stream.write_vectored(&slices).await.unwrap();
            let rest = [&head[..], body].concat().split_off(taken);
            stream.write_all(&rest).await.unwrap();
            // Once written, a token means nothing.
            stream.write_all(b" TOKEN-1").await.unwrap();
            drop(stream);
            assert_eq!(
                read.await.unwrap(),
                format!("a: {long}CANARY-3\r\nb: \r\n\r\na body TOKEN-1"),
                "{room}"
            );
            drop(added);
            drop(these);
            assert_eq!(arena.used(), 0, "what is written is let go");
        }
    }

    #[test]
    fn what_is_given_up_is_provided_for_while_its_head_may_leave_but_not_for_ever() {
        let arena = Arena::new(65536).unwrap();
        let insertions = Insertions::default();
        for number in 0..=LEFT_BEHIND {
            let token = format!("TOKEN-{number}");
            drop(insertions.add(&[insertion(&arena, &token, "CANARY")]));
        }
        assert!(insertions.has_left());
        // The first of too many is forgotten, and each of the others written once.
        assert!(insertions.value("TOKEN-0").is_none());
        for number in 1..=LEFT_BEHIND {
            assert!(insertions.value(&format!("TOKEN-{number}")).is_some());
            assert!(insertions.value(&format!("TOKEN-{number}")).is_none());
        }
        assert_eq!(arena.used(), 0);
    }

    #[tokio::test]
    async fn nothing_follows_a_head_that_was_given_up() {
        let arena = Arena::new(65536).unwrap();
        let (near, _far) = tokio::io::duplex(1000);
        let insertions = Insertions::default();
        let these = [insertion(&arena, "TOKEN-1", "CANARY-1")];
        let mut stream = Inserting::new(near, insertions.clone());
        drop(insertions.add(&these));
        // Not even where the next has the same token.
        let _added = insertions.add(&these);
        stream.write_all(b"a: TOKEN-1").await.unwrap_err();
    }

    #[tokio::test]
    async fn head_and_values_leave_at_once() {
        let arena = Arena::new(65536).unwrap();
        let (near, mut far) = tokio::io::duplex(1000);
        let insertions = Insertions::default();
        let these = [insertion(&arena, "TOKEN-1", "CANARY-1")];
        let _added = insertions.add(&these);
        let mut stream = Inserting::new(near, insertions);
        let slices = [
            io::IoSlice::new(b"a: TOKEN-1\r\n\r\n"),
            io::IoSlice::new(b"b"),
        ];
        assert_eq!(stream.write_vectored(&slices).await.unwrap(), 15);
        let mut out = [0; 1000];
        let count = far.read(&mut out).await.unwrap();
        assert_eq!(&out[..count], b"a: CANARY-1\r\n\r\nb");
    }
}
