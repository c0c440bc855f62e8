//! The credential on its way out: it is written from secret memory in place of a token, as the head leaves.
//!
//! The HTTP library keeps its buffers for as long as a connection waits for the next request. So it never has the
//! credential: the head that it writes holds random tokens, and this stream, between it and TLS, writes the
//! credential where they stand.

use std::io;
use std::pin::Pin;
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

/// What is to be written on one connection; shared with the stream.
#[derive(Clone, Default)]
pub struct Insertions(Arc<Mutex<Vec<Insertion>>>);

impl Insertions {
    /// Sets what the next head is written with.
    pub fn set(&self, all: Vec<Insertion>) {
        *self.lock() = all;
    }

    /// Forgets what was not written.
    pub fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Insertion>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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

/// The first token in `bytes`: where it stands, and which it is.
fn first(all: &[Insertion], bytes: &[u8]) -> Option<(usize, usize)> {
    let places = all.iter().enumerate().filter_map(|(number, insertion)| {
        let token = insertion.token.as_bytes();
        let at = bytes
            .windows(token.len())
            .position(|window| window == token)?;
        Some((at, number))
    });
    places.min()
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Inserting<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let mut all = this.insertions.lock();
        let Some((at, number)) = first(&all, bytes) else {
            drop(all);
            return Pin::new(&mut this.stream).poll_write(cx, bytes);
        };
        if at > 0 {
            return Pin::new(&mut this.stream).poll_write(cx, &bytes[..at]);
        }
        let value = &all[number].value;
        while this.written < value.len() {
            let rest = &value[this.written..];
            let count = ready!(Pin::new(&mut this.stream).poll_write(cx, rest))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            this.written += count;
        }
        this.written = 0;
        // The token is taken whole: it is never cut, since what stands before it is taken alone.
        Poll::Ready(Ok(all.swap_remove(number).token.len()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.insertions.lock().is_empty() {
            return Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, slices);
        }
        let head = slices.iter().find(|slice| !slice.is_empty());
        self.poll_write(cx, head.map_or(&[], |slice| slice))
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
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buffer)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::sys::arena::Arena;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn insertion(arena: &Arc<Arena>, token: &str, value: &str) -> Insertion {
        let mut draft = arena.draft(value.len()).unwrap();
        draft.copy_from_slice(value.as_bytes());
        Insertion {
            token: token.into(),
            value: Arc::new(draft.freeze()),
        }
    }

    #[tokio::test]
    async fn tokens_leave_as_values_through_a_narrow_pipe() {
        let arena = Arena::new(65536).unwrap();
        let (near, mut far) = tokio::io::duplex(3);
        let insertions = Insertions::default();
        let long = "CANARY-".repeat(20);
        insertions.set(vec![
            insertion(&arena, "TOKEN-1", &long),
            insertion(&arena, "TOKEN-2", ""),
        ]);
        let mut stream = Inserting::new(near, insertions);
        let read = tokio::spawn(async move {
            let mut out = String::new();
            far.read_to_string(&mut out).await.unwrap();
            out
        });
        stream
            .write_all(b"a: TOKEN-1\r\nb: TOKEN-2\r\n\r\nbody")
            .await
            .unwrap();
        // Once written, a token means nothing.
        stream.write_all(b" TOKEN-1").await.unwrap();
        drop(stream);
        assert_eq!(
            read.await.unwrap(),
            format!("a: {long}\r\nb: \r\n\r\nbody TOKEN-1")
        );
        assert_eq!(arena.used(), 0, "what is written is let go");
    }
}
