//! The load: as cheap as it can be, so that the server is what is measured. Requests are built before, and an
//! answer is right when it says 200 and has the length that the first one had.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

use crate::answer::{Answer, PATIENCE, only_200};
use crate::stats::Latencies;

/// The load waits this long, in milliseconds, for any of its connections.
const STALLED: u16 = 5000;

/// What is asked, and how long the right answer is.
pub struct Ask {
    request: Vec<u8>,
    length: usize,
}

impl Ask {
    pub fn new(request: Vec<u8>, answer: &Answer) -> Self {
        Self {
            request,
            length: answer.bytes().len(),
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

fn right_length(got: usize, expected: usize) -> io::Result<()> {
    if got == expected {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "an answer of {got} bytes, the first one had {expected}"
    )))
}
