//! Those who wait: idle connections, watchers of a secret, and the long poll.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

use crate::answer::{self, Answer};

/// How many wait at once.
pub const COUNT: usize = 1000;
/// All watchers must be told within this time, in milliseconds, or the row could not be measured.
const PATIENCE: u16 = 10_000;

/// Connections that asked once and stay open: what a bare server has in place of watchers.
pub fn idle(socket: &Path, request: &[u8], count: usize) -> io::Result<Vec<UnixStream>> {
    (0..count)
        .map(|_| {
            let stream = UnixStream::connect(socket)?;
            answer::ask(&stream, request)?.must_be_200()?;
            Ok(stream)
        })
        .collect()
}

/// Open event streams of one secret.
pub struct Watchers {
    epoll: Epoll,
    streams: Vec<Stream>,
}

struct Stream {
    socket: UnixStream,
    unread: Vec<u8>,
}

impl Watchers {
    /// Each has had its `current` event.
    pub fn open(socket: &Path, name: &str, count: usize) -> io::Result<Self> {
        let request = answer::get(
            &format!("/v1/watch?name={name}"),
            "Accept: text/event-stream\r\n",
        );
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let mut streams = Vec::with_capacity(count);
        for place in 0..count {
            let mut socket = UnixStream::connect(socket)?;
            socket.write_all(&request)?;
            socket.set_nonblocking(true)?;
            epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, place as u64))?;
            streams.push(Stream {
                socket,
                unread: Vec::new(),
            });
        }
        let mut watchers = Self { epoll, streams };
        watchers.told("current")?;
        Ok(watchers)
    }

    /// Waits until every watcher has had `event`; when the middle one and the last one had.
    pub fn told(&mut self, event: &str) -> io::Result<(Instant, Instant)> {
        let mark = format!("event: {event}");
        let count = self.streams.len();
        let mut told = Vec::with_capacity(count);
        let mut events = [EpollEvent::empty(); 128];
        while told.len() < count {
            let ready = self.epoll.wait(&mut events, PATIENCE)?;
            if ready == 0 {
                let what = format!(
                    "{} of {count} watchers were told `{event}` in 10 s",
                    told.len()
                );
                return Err(io::Error::other(what));
            }
            for event in &events[..ready] {
                let place = usize::try_from(event.data()).map_err(io::Error::other)?;
                if self.streams[place].read_until(mark.as_bytes())? {
                    told.push(Instant::now());
                }
            }
        }
        let last = told
            .last()
            .copied()
            .ok_or_else(|| io::Error::other("no watchers"))?;
        Ok((told[count / 2], last))
    }
}

impl Stream {
    /// Reads what is there; true when it held the mark.
    fn read_until(&mut self, mark: &[u8]) -> io::Result<bool> {
        let mut buffer = [0; 4096];
        let read = self.socket.read(&mut buffer)?;
        if read == 0 {
            return Err(io::Error::other("the server closed a watcher"));
        }
        self.unread.extend_from_slice(&buffer[..read]);
        if self.unread.starts_with(b"HTTP/1.1 ") && !self.unread.starts_with(b"HTTP/1.1 200") {
            let line = self
                .unread
                .split(|byte| *byte == b'\r')
                .next()
                .unwrap_or_default();
            let line = String::from_utf8_lossy(line).into_owned();
            return Err(io::Error::other(format!("a watcher was refused: {line}")));
        }
        let held = self.unread.windows(mark.len()).any(|window| window == mark);
        if held {
            self.unread.clear();
        }
        Ok(held)
    }
}

/// A request that waits at the server until its secret changes.
pub struct LongPoll {
    stream: UnixStream,
    version: String,
}

impl LongPoll {
    /// Learns the version that is served now, and asks for the next one.
    pub fn begin(socket: &Path, path: &str) -> io::Result<Self> {
        let mut stream = UnixStream::connect(socket)?;
        let now = answer::ask(&stream, &answer::get(path, ""))?.must_be_200()?;
        let version = etag(&now)?;
        let more = format!("If-None-Match: {version}\r\nPrefer: wait=30\r\n");
        stream.write_all(&answer::get(path, &more))?;
        // Time for the server to have it waiting, so that the wake is measured and not the request.
        thread::sleep(Duration::from_millis(20));
        Ok(Self { stream, version })
    }

    /// When the new version was there.
    pub fn woken(self) -> io::Result<Instant> {
        let answer = answer::receive(&self.stream)?;
        let at = Instant::now();
        if etag(&answer.must_be_200()?)? == self.version {
            return Err(io::Error::other(
                "the long poll was answered with the version it had",
            ));
        }
        Ok(at)
    }
}

fn etag(answer: &Answer) -> io::Result<String> {
    let found = answer.header("etag").map(str::to_owned);
    found.ok_or_else(|| io::Error::other("an answer without an ETag"))
}
