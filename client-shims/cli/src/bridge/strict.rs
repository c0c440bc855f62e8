//! Heads that can be read in one way only.
//!
//! HTTP libraries forgive: where a request has two lengths, hyper takes the one and forgets the other. What stands in
//! front of a socket that answers with secrets forgives nothing, so this stream hands a head to hyper once it is whole
//! and plain, and ends the connection otherwise. After a chunked body, or where another protocol is asked for, it looks
//! no further: such a connection is closed once it is answered, unless it is HTTP no more.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The most bytes and headers of a head; the agent's own limits.
const MAX_HEAD: usize = 16 * 1024;
const MAX_HEADERS: usize = 64;

/// A stream whose requests are looked at.
pub struct Strict<S> {
    stream: S,
    /// What was read and not passed on yet.
    pending: Vec<u8>,
    /// How much of it may be passed on.
    clear: usize,
    next: Next,
}

/// What comes after the bytes that are clear.
enum Next {
    Head,
    Body(u64),
    Anything,
}

impl<S> Strict<S> {
    pub fn new(stream: S) -> Self {
        Self {
            stream,
            pending: Vec::new(),
            clear: 0,
            next: Next::Head,
        }
    }

    /// Marks what may be passed on.
    fn examine(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        match self.next {
            Next::Anything => self.clear = self.pending.len(),
            Next::Body(left) if left > 0 => {
                let length = self
                    .pending
                    .len()
                    .min(usize::try_from(left).unwrap_or(usize::MAX));
                self.clear = length;
                self.next = Next::Body(left - length as u64);
            }
            Next::Body(_) | Next::Head => match head(&self.pending)? {
                Some((length, next)) => {
                    self.clear = length;
                    self.next = next;
                }
                None if self.pending.len() > MAX_HEAD => return Err(refused("too large")),
                None => {}
            },
        }
        Ok(())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Strict<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if this.clear > 0 {
                let length = this.clear.min(out.remaining());
                out.put_slice(&this.pending[..length]);
                this.pending.drain(..length);
                this.clear -= length;
                return Poll::Ready(Ok(()));
            }
            this.examine()?;
            if this.clear > 0 {
                continue;
            }
            let mut bytes = [0; 8192];
            let mut read = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut this.stream).poll_read(cx, &mut read))?;
            match read.filled() {
                [] if this.pending.is_empty() => return Poll::Ready(Ok(())),
                [] => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                bytes => this.pending.extend_from_slice(bytes),
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Strict<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

/// The length of the head at the start of `bytes`, and what follows it; `None` where it is not whole yet.
fn head(bytes: &[u8]) -> io::Result<Option<(usize, Next)>> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let length = match request.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err(refused("not HTTP")),
    };
    if length > MAX_HEAD || !has_plain_lines(&bytes[..length]) {
        return Err(refused("not plain"));
    }
    // A tunnel begins after it, or it is refused and the connection ends.
    let mut next = match request.method {
        Some("CONNECT") => Next::Anything,
        _ => Next::Body(0),
    };
    let (mut lengths, mut hosts, mut switches) = (0, 0, false);
    for header in request.headers.iter() {
        if header.name.eq_ignore_ascii_case("content-length") {
            lengths += 1;
            next = Next::Body(number(header.value).ok_or_else(|| refused("no length"))?);
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            lengths += 1;
            if header.value != b"chunked" || request.version != Some(1) {
                return Err(refused("an encoding other than chunked"));
            }
            next = Next::Anything;
        } else if header.name.eq_ignore_ascii_case("upgrade") {
            switches = true;
        } else if header.name.eq_ignore_ascii_case("host") {
            hosts += 1;
        }
    }
    if lengths > 1 || hosts > 1 {
        return Err(refused("two lengths or hosts"));
    }
    if switches {
        next = Next::Anything;
    }
    Ok(Some((length, next)))
}

/// Every line ends in CR LF, and neither stands elsewhere.
fn has_plain_lines(head: &[u8]) -> bool {
    head.iter().enumerate().all(|(at, byte)| match byte {
        b'\n' => at > 0 && head[at - 1] == b'\r',
        b'\r' => head.get(at + 1) == Some(&b'\n'),
        _ => true,
    }) && head.first() != Some(&b'\r')
}

/// Digits only, no sign and no list.
fn number(text: &[u8]) -> Option<u64> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(text)
        .ok()
        .filter(|_| digits)?
        .parse()
        .ok()
}

fn refused(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

    fn through(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let runtime = tokio::runtime::Builder::new_current_thread().build()?;
        let mut out = Vec::new();
        runtime
            .block_on(Strict::new(bytes).read_to_end(&mut out))
            .map(|_| out)
    }

    #[test]
    fn plain_requests_pass_as_they_are() {
        for good in [
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.0\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
            "GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\nframes, not heads",
            "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\nTLS, not heads",
        ] {
            assert_eq!(
                through(good.as_bytes()).unwrap(),
                good.as_bytes(),
                "{good:?}"
            );
        }
    }

    #[test]
    fn what_can_be_read_in_two_ways_does_not_pass() {
        for bad in [
            "POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
            "POST / HTTP/1.1\r\nContent-Length: 3, 3\r\n\r\nabc",
            "POST / HTTP/1.1\r\nContent-Length: +3\r\n\r\nabc",
            "POST / HTTP/1.1\r\nContent-Length: -3\r\n\r\nabc",
            "POST / HTTP/1.1\r\nContent-Length:\r\n\r\nabc",
            "POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: xchunked\r\n\r\n",
            "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
            "GET / HTTP/1.1\r\nTransfer-Encoding : chunked\r\n\r\n",
            "GET / HTTP/1.1\r\nA: b\r\n Transfer-Encoding: chunked\r\n\r\n",
            "GET / HTTP/1.1\nHost: a\n\n",
            "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
            "GET / HTTP/1.1\r\nA: b\rc\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n",
            "GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
            "\r\nGET / HTTP/1.1\r\n\r\n",
            "junk\r\n\r\n",
        ] {
            assert!(through(bad.as_bytes()).is_err(), "{bad:?}");
        }
        let many = "A: b\r\n".repeat(MAX_HEADERS + 1);
        assert!(through(format!("GET / HTTP/1.1\r\n{many}\r\n").as_bytes()).is_err());
        let long = "a".repeat(MAX_HEAD + 1);
        assert!(through(format!("GET /{long} HTTP/1.1\r\n\r\n").as_bytes()).is_err());
        assert!(through(format!("GET /{long}").as_bytes()).is_err());
    }
}
