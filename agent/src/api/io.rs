//! A connection's bytes, with just enough bookkeeping to see who stalls.
//!
//! A timer for each request would cost more than the request. Instead a connection notes the second in
//! which it began to wait for a head or for room to write, and one sweep a second shuts down those that
//! have waited too long. See `server::sweep`.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::task::{Context, Poll, ready};

use hyper::rt::{Read, ReadBuf, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::sync::Notify;

/// How much is thrown away of what a peer still sends: more than any body that an ordinary client sends unasked.
const UNWANTED: usize = 64 << 20;

/// The second of the sweep's clock, counted from 1.
#[derive(Default)]
pub struct Seconds(AtomicU32);

impl Seconds {
    /// The current second; 0 before the first sweep.
    pub fn now(&self) -> u32 {
        self.0.load(Relaxed)
    }

    /// Moves the clock.
    pub fn set(&self, second: u32) {
        self.0.store(second, Relaxed);
    }
}

/// Since when a connection waits; 0 where it does not.
#[derive(Default)]
pub struct Stall {
    head: AtomicU32,
    /// Some request's head has come in whole.
    asked: AtomicBool,
    /// What comes in while an answer is made is a body, which has its own time, or the next request.
    answering: AtomicBool,
    write: AtomicU32,
    /// All is answered, and the peer has not closed its end yet.
    leave: AtomicU32,
    /// Requests whose bodies stream: their pauses are the upstream's.
    using: AtomicU32,
    /// Told when there is none of them any more.
    unused: Notify,
    /// The last read took what was there already, so that the kernel was not asked for events before it.
    at_once: AtomicBool,
}

impl Stall {
    /// A request's head has come in whole.
    pub fn head_is_whole(&self) {
        self.head.store(0, Relaxed);
        self.asked.store(true, Relaxed);
    }

    /// Whether a head is coming in, or the first one is awaited.
    pub fn is_asking(&self) -> bool {
        self.head.load(Relaxed) != 0 || !self.asked.load(Relaxed)
    }

    /// The handler of a request waits: for its body, or for a change.
    pub fn answer_begins(&self) {
        self.answering.store(true, Relaxed);
    }

    /// The handler has its answer.
    pub fn answer_is_made(&self) {
        self.answering.store(false, Relaxed);
    }

    /// Whether the handler of a request has no answer yet.
    pub fn is_answering(&self) -> bool {
        self.answering.load(Relaxed)
    }

    /// Whether the peer may have exited before its request came, and the news of it still waits.
    pub fn may_miss_exit(&self) -> bool {
        self.at_once.load(Relaxed)
    }

    /// Whether a route is used on it.
    pub fn is_using(&self) -> bool {
        self.using.load(Relaxed) != 0
    }

    /// Returns once no route is used on it: a WebSocket outlives the HTTP that it began as.
    pub async fn until_unused(&self) {
        while self.is_using() {
            self.unused.notified().await;
        }
    }

    /// Whether an answer waits for the peer to read.
    pub fn is_writing(&self) -> bool {
        self.write.load(Relaxed) != 0
    }

    /// Whether a head, a write or a goodbye has waited longer than it may.
    pub fn is_overdue(&self, now: u32, head: u32, write: u32) -> bool {
        let waits = |since: &AtomicU32, bound: u32| {
            let since = since.load(Relaxed);
            since != 0 && now.saturating_sub(since) > bound
        };
        waits(&self.head, head) || waits(&self.write, write) || waits(&self.leave, head)
    }

    fn begin(since: &AtomicU32, clock: &Seconds) {
        if since.load(Relaxed) == 0 {
            since.store(clock.now().max(1), Relaxed);
        }
    }
}

/// Marks a connection as one on which a route is used, until it is dropped.
pub struct Using(Arc<Stall>);

impl Using {
    /// Marks it.
    pub fn of(stall: &Arc<Stall>) -> Self {
        stall.using.fetch_add(1, Relaxed);
        Self(Arc::clone(stall))
    }
}

impl Drop for Using {
    fn drop(&mut self) {
        if self.0.using.fetch_sub(1, Relaxed) == 1 {
            self.0.unused.notify_one();
        }
    }
}

/// The stream that hyper reads and writes.
pub struct Io {
    stream: TokioIo<UnixStream>,
    stall: Arc<Stall>,
    clock: Arc<Seconds>,
    /// The stream had nothing to read since the last read.
    waited: bool,
    /// How much was thrown away at the end.
    unwanted: usize,
}

impl Io {
    /// Wraps an accepted stream.
    pub fn new(stream: UnixStream, stall: Arc<Stall>, clock: Arc<Seconds>) -> Self {
        Self {
            stream: TokioIo::new(stream),
            stall,
            clock,
            waited: false,
            unwanted: 0,
        }
    }

    /// Notes whether all that was offered has been taken.
    fn note_write(&self, offered: usize, done: &Poll<io::Result<usize>>) {
        match done {
            Poll::Ready(Ok(count)) if *count >= offered => self.stall.write.store(0, Relaxed),
            Poll::Ready(Err(_)) => {}
            _ => Stall::begin(&self.stall.write, &self.clock),
        }
    }

    /// Throws away what a peer still sends after its answer, until it closes its end: to close on it would break its
    /// pipe, and it would not read why it was refused (RFC 9112 section 9.6).
    fn poll_leave(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        Stall::begin(&self.stall.leave, &self.clock);
        let mut bytes = [MaybeUninit::uninit(); 4096];
        // A few at a time, so that others are served meanwhile.
        for _ in 0..16 {
            let mut read = ReadBuf::uninit(&mut bytes);
            let done = ready!(Pin::new(&mut self.stream).poll_read(cx, read.unfilled()));
            self.unwanted += read.filled().len();
            if done.is_err() || read.filled().is_empty() || self.unwanted > UNWANTED {
                return Poll::Ready(());
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl AsFd for Io {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.inner().as_fd()
    }
}

impl Read for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        let waited = std::mem::replace(&mut self.waited, read.is_pending());
        ready!(read)?;
        self.stall.at_once.store(!waited, Relaxed);
        if !self.stall.answering.load(Relaxed) && !self.stall.is_using() {
            Stall::begin(&self.stall.head, &self.clock);
        }
        Poll::Ready(Ok(()))
    }
}

impl Write for Io {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.note_write(bytes.len(), &done);
        done
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.note_write(slices.iter().map(|slice| slice.len()).sum(), &done);
        done
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
        // What was a WebSocket has said its own goodbye.
        if !self.stall.is_using() {
            ready!(self.poll_leave(cx));
        }
        Poll::Ready(Ok(()))
    }
}
