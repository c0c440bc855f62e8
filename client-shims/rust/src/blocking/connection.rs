//! One connection to the agent, with blocking calls.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::process;

use crate::Error;
use crate::events::Events;
use crate::exchange::{Answer, Exchange, Limit};
use crate::request::Request;
use crate::socket::Address;

/// A connection that only the process which made it may use.
#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    owner: u32,
}

impl Connection {
    pub(super) fn open(address: &Address, limit: Limit) -> Result<Self, Error> {
        Ok(Self::of(address.connect(limit)?, process::id()))
    }

    pub(super) fn of(stream: UnixStream, owner: u32) -> Self {
        Self { stream, owner }
    }

    /// False in a child that was forked from the process which connected: the agent takes it for its parent.
    pub(super) fn is_ours(&self) -> bool {
        self.owner == process::id()
    }

    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Sends `request` and reads its answer.
    pub(super) fn exchange(
        &mut self,
        address: &Address,
        request: &Request,
        limit: Limit,
    ) -> Result<Answer, Error> {
        let mut exchange = Exchange::new(address, request, limit);
        self.send(&request.bytes, limit)
            .map_err(|cause| exchange.failed(cause))?;
        loop {
            let read = self.read(exchange.reading.space(), limit);
            if let Some(answer) = exchange.advance(read)? {
                return Ok(answer);
            }
        }
    }

    /// Waits for more of an event stream.
    pub(super) fn read_events(
        &mut self,
        address: &Address,
        events: &mut Events,
    ) -> Result<(), Error> {
        let space = events.space().map_err(|broken| address.broken(broken))?;
        let count = loop {
            match self.stream.read(space) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                count => break count.unwrap_or(0),
            }
        };
        events
            .advance(count)
            .map_err(|broken| address.broken(broken))
    }

    fn send(&mut self, bytes: &[u8], limit: Limit) -> io::Result<()> {
        self.stream.set_write_timeout(Some(limit.left()?))?;
        self.stream.write_all(bytes)
    }

    fn read(&mut self, space: &mut [u8], limit: Limit) -> io::Result<usize> {
        loop {
            self.stream.set_read_timeout(Some(limit.left()?))?;
            match self.stream.read(space) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }
}
