//! The two servers that the agent is compared with. Both answer every request with the bytes of one file,
//! which the benchmark learnt from the agent, and check nothing.

use std::convert::Infallible;
use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_LENGTH, DATE, HeaderMap, HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::answer::Answer;

/// The listener's mark in epoll; connections have their place in the table.
const LISTENER: u64 = u64::MAX;

/// One thread, epoll, one `read` and one `write` a request: whatever arrives is taken for one whole request.
pub fn raw(socket: &Path, answer: &Path) -> io::Result<()> {
    let answer = fs::read(answer)?;
    let listener = UnixListener::bind(socket)?;
    listener.set_nonblocking(true)?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
    let mut connections = Connections::default();
    let mut events = [EpollEvent::empty(); 128];
    let mut buffer = [0; 4096];
    loop {
        let ready = match epoll.wait(&mut events, EpollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            other => other?,
        };
        for event in &events[..ready] {
            if event.data() == LISTENER {
                connections.accept(&listener, &epoll)?;
            } else {
                connections.answer(event.data(), &mut buffer, &answer);
            }
        }
    }
}

/// Open connections by number; a closed one's number is used again.
#[derive(Default)]
struct Connections {
    open: Vec<Option<UnixStream>>,
    free: Vec<usize>,
}

impl Connections {
    fn accept(&mut self, listener: &UnixListener, epoll: &Epoll) -> io::Result<()> {
        loop {
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            stream.set_nonblocking(true)?;
            let place = self.free.pop().unwrap_or_else(|| {
                self.open.push(None);
                self.open.len() - 1
            });
            epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, place as u64))?;
            self.open[place] = Some(stream);
        }
    }

    fn answer(&mut self, place: u64, buffer: &mut [u8], answer: &[u8]) {
        let Ok(place) = usize::try_from(place) else {
            return;
        };
        let Some(stream) = self.open.get_mut(place).and_then(Option::as_mut) else {
            return;
        };
        let gone = match stream.read(buffer) {
            Ok(0) => true,
            Ok(_) => stream.write_all(answer).is_err(),
            Err(error) => error.kind() != ErrorKind::WouldBlock,
        };
        if gone {
            self.open[place] = None;
            self.free.push(place);
        }
    }
}

/// hyper's HTTP/1 over tokio's current-thread runtime, with the agent's headers and body, and vectored writes.
pub fn hyper(socket: &Path, answer: &Path) -> io::Result<()> {
    let answer = Answer::parse(&fs::read(answer)?)?;
    let dated = answer.header("date").is_some();
    let (headers, body) = (header_map(&answer)?, Bytes::from(answer.body().to_vec()));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    runtime.block_on(async move {
        let listener = tokio::net::UnixListener::bind(socket)?;
        loop {
            let (stream, _) = listener.accept().await?;
            let (headers, body) = (headers.clone(), body.clone());
            let service = service_fn(move |_: Request<Incoming>| {
                let mut response = Response::new(Full::new(body.clone()));
                *response.headers_mut() = headers.clone();
                std::future::ready(Ok::<_, Infallible>(response))
            });
            let connection = http1::Builder::new()
                .writev(true)
                .auto_date_header(dated)
                .serve_connection(TokioIo::new(stream), service);
            tokio::spawn(async move {
                // A client that hangs up is the end of its connection, and none of our concern.
                drop(connection.await);
            });
        }
    })
}

/// The learnt headers, less the two that hyper writes itself.
fn header_map(answer: &Answer) -> io::Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    for (name, value) in answer.headers() {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(io::Error::other)?;
        let value = HeaderValue::from_str(value).map_err(io::Error::other)?;
        if name != CONTENT_LENGTH && name != DATE {
            headers.append(name, value);
        }
    }
    Ok(headers)
}
