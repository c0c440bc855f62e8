//! One connection to the agent, with blocking calls.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::process;
use std::time::{Duration, Instant};

use crate::Error;
use crate::exchange::{Answer, Exchange, Failure};
use crate::request::Request;
use crate::socket::Address;

/// A connection that only the process which made it may use.
#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    owner: u32,
    kept: bool,
}

impl Connection {
    pub(super) fn open(address: &Address, timeout: Duration) -> Result<Self, Error> {
        Ok(Self {
            stream: address.connect(timeout)?,
            owner: process::id(),
            kept: false,
        })
    }

    /// False in a child that was forked from the process which connected: the agent takes it for its parent.
    pub(super) fn is_ours(&self) -> bool {
        self.owner == process::id()
    }

    pub(super) fn into_stream(self) -> UnixStream {
        self.stream
    }

    /// Sends `request` and reads its answer within `timeout`.
    pub(super) fn exchange(
        &mut self,
        address: &Address,
        request: &Request,
        timeout: Duration,
    ) -> Result<Answer, Failure> {
        let kept = std::mem::replace(&mut self.kept, true);
        let mut exchange = Exchange::new(address, request, timeout, kept);
        let deadline = Instant::now() + timeout;
        self.send(&request.bytes, deadline)
            .map_err(|cause| exchange.failed(cause))?;
        loop {
            let read = self.read(exchange.reading.space(), deadline);
            if let Some(answer) = exchange.advance(read)? {
                return Ok(answer);
            }
        }
    }

    fn send(&mut self, bytes: &[u8], deadline: Instant) -> io::Result<()> {
        self.stream.set_write_timeout(Some(left(deadline)?))?;
        self.stream.write_all(bytes)
    }

    fn read(&mut self, space: &mut [u8], deadline: Instant) -> io::Result<usize> {
        loop {
            self.stream.set_read_timeout(Some(left(deadline)?))?;
            match self.stream.read(space) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }
}

/// The time until `deadline`; an error once it has passed.
fn left(deadline: Instant) -> io::Result<Duration> {
    match deadline.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
        left => Ok(left),
    }
}
