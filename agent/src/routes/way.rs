//! The way to a server: straight to one of its addresses, or through an organisation's HTTP proxy.

use std::io;
use std::net::IpAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, lookup_host};

use super::address;
use super::failure::Failure;
use crate::config;
use crate::http::Address;

/// A proxy's answer is no longer than this.
const LARGEST_HEAD: usize = 8 * 1024;

/// How servers are reached.
pub struct Way {
    allow_private: bool,
    proxy: Option<Address>,
}

impl Way {
    /// That of a route.
    #[must_use]
    pub fn of(route: &config::Route) -> Self {
        Self {
            allow_private: route.allow_private,
            proxy: route.proxy.clone(),
        }
    }

    /// A connection to `server`.
    ///
    /// # Errors
    /// Where there is none, or the server is at an address that may not be connected to.
    pub async fn tcp(&self, server: &Address) -> Result<TcpStream, Failure> {
        let Some(proxy) = &self.proxy else {
            return straight(server, self.allow_private).await;
        };
        // A name is the proxy's to resolve, as its operator allows.
        if let Ok(address) = server.target().0.parse() {
            check(address, self.allow_private)?;
        }
        // Where the proxy is, the operator of this host has said.
        let stream = straight(proxy, true).await?;
        through(stream, server).await
    }
}

fn check(address: IpAddr, allow_private: bool) -> Result<(), Failure> {
    address::check(address, allow_private).map_err(|kind| Failure::Address(address, kind))
}

/// The name is resolved once, each address checked, and a checked one connected to.
async fn straight(server: &Address, allow_private: bool) -> Result<TcpStream, Failure> {
    let found = lookup_host(server.target()).await;
    let mut why = Failure::Resolve(io::ErrorKind::NotFound.into());
    for address in found.map_err(Failure::Resolve)? {
        if let Err(refused) = check(address.ip(), allow_private) {
            why = refused;
            continue;
        }
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => why = Failure::Connect(error),
        }
    }
    Err(why)
}

/// Has the proxy at the other end connect to `server` (RFC 9110 section 9.3.6).
async fn through(mut stream: TcpStream, server: &Address) -> Result<TcpStream, Failure> {
    let target = server.connect_target();
    let head = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n");
    let written = stream.write_all(head.as_bytes()).await;
    written.map_err(Failure::Connect)?;
    let mut answer = Vec::new();
    // The server says nothing before it is asked, so that nothing can come behind the head.
    while !answer.ends_with(b"\r\n\r\n") && answer.len() < LARGEST_HEAD {
        let read = stream.read_buf(&mut answer).await;
        if read.map_err(Failure::Connect)? == 0 {
            break;
        }
    }
    let is_whole = answer.ends_with(b"\r\n\r\n");
    match status(&answer) {
        Some(200..300) if is_whole => Ok(stream),
        other => Err(Failure::Proxy(other.filter(|_| is_whole))),
    }
}

/// The status that an answer begins with.
fn status(answer: &[u8]) -> Option<u16> {
    let rest = answer.strip_prefix(b"HTTP/1.")?;
    let (digits, end) = (rest.get(2..5)?, rest.get(5)?);
    let is_status = rest.get(1) == Some(&b' ') && b" \r".contains(end);
    let digits = std::str::from_utf8(digits).ok().filter(|_| is_status)?;
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses() {
        assert_eq!(
            status(b"HTTP/1.1 200 Connection established\r\n\r\n"),
            Some(200)
        );
        assert_eq!(status(b"HTTP/1.0 407 \r\n"), Some(407));
        assert_eq!(status(b"HTTP/1.1 200\r\n\r\n"), Some(200));
        for none in [
            &b""[..],
            b"HTTP/1.1",
            b"HTTP/1.1 20",
            b"HTTP/2 200 ",
            b"HTTP/1.1 2000 \r\n",
            b"SSH-2.0-x 200 \r\n",
        ] {
            assert_eq!(status(none), None);
        }
    }
}
