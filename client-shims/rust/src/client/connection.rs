//! One connection to the agent, with async calls.

use std::io;
use std::process;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout_at;

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
    pub(super) async fn open(address: &Address, limit: Limit) -> Result<Self, Error> {
        let connected = within(limit, async { Ok(address.connect_async().await) });
        let stream = connected
            .await
            .map_err(|cause| address.failed(cause, limit))??;
        Ok(Self {
            stream,
            owner: process::id(),
        })
    }

    /// False in a child that was forked from the process which connected: the agent takes it for its parent.
    pub(super) fn is_ours(&self) -> bool {
        self.owner == process::id()
    }

    /// Sends `request` and reads its answer.
    pub(super) async fn exchange(
        &mut self,
        address: &Address,
        request: &Request,
        limit: Limit,
    ) -> Result<Answer, Error> {
        let mut exchange = Exchange::new(address, request, limit);
        let sent = within(limit, self.stream.write_all(&request.bytes)).await;
        sent.map_err(|cause| exchange.failed(cause))?;
        loop {
            let read = within(limit, self.stream.read(exchange.reading.space())).await;
            if let Some(answer) = exchange.advance(read)? {
                return Ok(answer);
            }
        }
    }

    /// Waits for more of an event stream.
    pub(super) async fn read_events(
        &mut self,
        address: &Address,
        events: &mut Events,
    ) -> Result<(), Error> {
        let space = events.space().map_err(|broken| address.broken(broken))?;
        let count = self.stream.read(space).await.unwrap_or(0);
        events
            .advance(count)
            .map_err(|broken| address.broken(broken))
    }
}

async fn within<T>(limit: Limit, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout_at(limit.deadline().into(), work)
        .await
        .map_err(io::Error::from)?
}
