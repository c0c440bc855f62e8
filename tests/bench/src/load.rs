//! The load: as cheap as it can be, so that the server is what is measured. Requests are built before, and an
//! answer is right when it says 200 and has the length that the first one had.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

use crate::stats::Latencies;

/// A blocking client waits this long for an answer (a long poll asks for less).
const PATIENCE: Duration = Duration::from_secs(35);
/// The load waits this long, in milliseconds, for any of its connections.
const STALLED: u16 = 5000;

/// One whole HTTP answer as it came.
pub struct Answer {
    bytes: Vec<u8>,
    body_at: usize,
    headers: Vec<(String, String)>,
}

impl Answer {
    /// The first answer in `bytes`, which must hold all of it.
    pub fn parse(bytes: &[u8]) -> io::Result<Self> {
        Self::complete(bytes)?.ok_or_else(|| io::Error::other("an answer that ends too early"))
    }

    /// None while more must be read.
    fn complete(bytes: &[u8]) -> io::Result<Option<Self>> {
        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
            return Ok(None);
        };
        let head = str::from_utf8(&bytes[..end]).map_err(io::Error::other)?;
        let fields = head.lines().skip(1).filter_map(|line| line.split_once(':'));
        let headers: Vec<_> = fields
            .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
            .collect();
        let mut answer = Self {
            bytes: Vec::new(),
            body_at: end + 4,
            headers,
        };
        let length = answer.header("content-length").unwrap_or("0");
        let length: usize = length.parse().map_err(io::Error::other)?;
        let Some(whole) = bytes.get(..answer.body_at + length) else {
            return Ok(None);
        };
        answer.bytes = whole.to_vec();
        Ok(Some(answer))
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub fn body(&self) -> &[u8] {
        &self.bytes[self.body_at..]
    }

    pub fn headers(&self) -> &[(String, String)] {
        &self.headers
    }

    pub fn header(&self, wanted: &str) -> Option<&str> {
        let found = self
            .headers
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(wanted));
        found.map(|(_, value)| value.as_str())
    }

    /// An error that quotes the answer's first line, never its body, unless it is a 200.
    pub fn must_be_200(self) -> io::Result<Self> {
        only_200(&self.bytes)?;
        Ok(self)
    }
}

/// What is asked, and how long the right answer is.
pub struct Ask {
    request: Vec<u8>,
    length: usize,
}

impl Ask {
    pub fn new(request: Vec<u8>, answer: &Answer) -> Self {
        Self {
            request,
            length: answer.bytes.len(),
        }
    }
}

/// A request of the native API, with more header lines where given (each with its CRLF).
pub fn get(path: &str, more: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: keyhatch\r\n{more}\r\n").into_bytes()
}

/// One request, one answer, on a connection that is there already.
pub fn ask(mut stream: &UnixStream, request: &[u8]) -> io::Result<Answer> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(request)?;
    receive(stream)
}

/// The answer to what was asked before.
pub fn receive(mut stream: &UnixStream) -> io::Result<Answer> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 16 * 1024];
    loop {
        let read = stream.read(&mut buffer)?;
        if read == 0 {
            return Err(io::Error::other(
                "the server closed the connection before its answer ended",
            ));
        }
        bytes.extend_from_slice(&buffer[..read]);
        if let Some(answer) = Answer::complete(&bytes)? {
            return Ok(answer);
        }
    }
}

/// How a lone client asks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// Sleeps until the answer is there, as bots do.
    Sleeping,
    /// Reads again and again until the answer is there, so that its core stays awake.
    Spinning,
    /// Sleeps, on a new connection each time.
    Fresh,
}

/// Asks one by one for `slice`.
pub fn one_by_one(
    socket: &Path,
    ask: &Ask,
    manner: Manner,
    slice: Duration,
) -> io::Result<Latencies> {
    let connect = || -> io::Result<UnixStream> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nonblocking(manner == Manner::Spinning)?;
        Ok(stream)
    };
    let mut stream = connect()?;
    let mut latencies = Vec::with_capacity(100_000);
    let begin = Instant::now();
    let mut asked = begin;
    while asked - begin < slice {
        if manner == Manner::Fresh {
            stream = connect()?;
        }
        stream.write_all(&ask.request)?;
        exactly_one(&mut stream, ask, asked)?;
        let now = Instant::now();
        latencies.push(now - asked);
        asked = now;
    }
    Ok(Latencies::new(latencies))
}

/// Reads one whole answer, again and again where the stream does not block.
fn exactly_one(stream: &mut UnixStream, ask: &Ask, asked: Instant) -> io::Result<()> {
    let mut buffer = [0; 4096];
    let mut got = 0;
    while got < ask.length {
        match progress(stream, &mut buffer, got) {
            Ok(read) => got += read,
            Err(error) if error.kind() == ErrorKind::WouldBlock && asked.elapsed() < PATIENCE => {}
            Err(error) => return Err(error),
        }
    }
    right_length(got, ask.length)
}

/// How long the load goes on.
#[derive(Clone, Copy)]
pub enum Stop {
    After(Duration),
    Answers(usize),
}

/// What one round of load came to.
pub struct Rate {
    pub per_second: f64,
    pub latencies: Latencies,
}

/// Keeps `connections` busy with one request each, from one thread; a new connection each request if `fresh`.
pub fn many(
    socket: &Path,
    ask: &Ask,
    connections: usize,
    fresh: bool,
    stop: Stop,
) -> io::Result<Rate> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let mut clients = Vec::with_capacity(connections);
    for place in 0..connections {
        clients.push(Client::open(socket, &epoll, place)?);
    }
    let mut latencies = Vec::with_capacity(200_000);
    let mut events = [EpollEvent::empty(); 128];
    let begin = Instant::now();
    for client in &mut clients {
        client.send(ask, begin)?;
    }
    loop {
        let ready = epoll.wait(&mut events, STALLED)?;
        if ready == 0 {
            return Err(io::Error::other(format!(
                "no answer on {connections} connections in 5 s"
            )));
        }
        for event in &events[..ready] {
            let place = usize::try_from(event.data()).map_err(io::Error::other)?;
            let client = &mut clients[place];
            if !client.finished(ask)? {
                continue;
            }
            let now = Instant::now();
            latencies.push(now - client.asked);
            if fresh {
                *client = Client::open(socket, &epoll, place)?;
            }
            client.send(ask, now)?;
        }
        let elapsed = begin.elapsed();
        let done = match stop {
            Stop::After(slice) => elapsed >= slice,
            Stop::Answers(count) => latencies.len() >= count,
        };
        if done {
            let per_second = latencies.len() as f64 / elapsed.as_secs_f64();
            return Ok(Rate {
                per_second,
                latencies: Latencies::new(latencies),
            });
        }
    }
}

struct Client {
    stream: UnixStream,
    got: usize,
    asked: Instant,
}

impl Client {
    fn open(socket: &Path, epoll: &Epoll, place: usize) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_nonblocking(true)?;
        epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, place as u64))?;
        Ok(Self {
            stream,
            got: 0,
            asked: Instant::now(),
        })
    }

    fn send(&mut self, ask: &Ask, now: Instant) -> io::Result<()> {
        (self.got, self.asked) = (0, now);
        self.stream.write_all(&ask.request)
    }

    fn finished(&mut self, ask: &Ask) -> io::Result<bool> {
        let mut buffer = [0; 4096];
        self.got += progress(&mut self.stream, &mut buffer, self.got)?;
        if self.got > ask.length {
            right_length(self.got, ask.length)?;
        }
        Ok(self.got == ask.length)
    }
}

/// Reads once; the first bytes of an answer must say 200.
fn progress(stream: &mut UnixStream, buffer: &mut [u8], got: usize) -> io::Result<usize> {
    let read = stream.read(buffer)?;
    if read == 0 {
        return Err(io::Error::other(
            "the server closed a connection under load",
        ));
    }
    if got == 0 {
        only_200(&buffer[..read])?;
    }
    Ok(read)
}

fn only_200(bytes: &[u8]) -> io::Result<()> {
    if bytes.starts_with(b"HTTP/1.1 200") {
        return Ok(());
    }
    let line = bytes
        .split(|byte| *byte == b'\r')
        .next()
        .unwrap_or_default();
    Err(io::Error::other(format!(
        "not a 200 but: {}",
        String::from_utf8_lossy(line)
    )))
}

fn right_length(got: usize, expected: usize) -> io::Result<()> {
    if got == expected {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "an answer of {got} bytes, the first one had {expected}"
    )))
}

/// The answer that the agent gives, as the contract has it, for runs without one.
pub fn sample_answer() -> Vec<u8> {
    let value = "CANARY-bench-".repeat(16);
    let body = format!(
        r#"{{"name":"bench/s0000","version":"0123456789abcdef","value":"{}","updated_at":"2026-01-01T00:00:00Z","source":"local","stale":false}}"#,
        &value[..200]
    );
    let length = body.len();
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncache-control: no-store\r\netag: \"0123456789abcdef\"\r\n\
         content-length: {length}\r\ndate: Thu, 01 Jan 2026 00:00:00 GMT\r\n\r\n{body}"
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_complete_with_its_last_byte() -> io::Result<()> {
        let bytes = sample_answer();
        let answer = Answer::parse(&bytes)?;
        assert_eq!(answer.bytes(), bytes);
        assert_eq!(answer.header("ETag"), Some("\"0123456789abcdef\""));
        assert!(answer.body().ends_with(b"\"stale\":false}"));
        for end in 0..bytes.len() {
            assert!(Answer::parse(&bytes[..end]).is_err(), "{end}");
        }
        Ok(())
    }

    #[test]
    fn anything_but_200_is_an_error_that_quotes_one_line() {
        let outcome = only_200(b"HTTP/1.1 429 Too Many Requests\r\nx: y\r\n\r\nbody");
        let said = outcome.map_err(|error| error.to_string());
        assert_eq!(
            said,
            Err("not a 200 but: HTTP/1.1 429 Too Many Requests".to_owned())
        );
    }
}
