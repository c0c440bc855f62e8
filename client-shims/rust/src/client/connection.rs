//! One connection to the agent, with async calls.

use std::io;
use std::process;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout_at};

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
    pub(super) async fn open(address: &Address, timeout: Duration) -> Result<Self, Error> {
        let connected = within(Instant::now() + timeout, async {
            Ok(address.connect_async().await)
        });
        let stream = connected
            .await
            .map_err(|cause| address.failed(cause, timeout))??;
        Ok(Self {
            stream,
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
    pub(super) async fn exchange(
        &mut self,
        address: &Address,
        request: &Request,
        timeout: Duration,
    ) -> Result<Answer, Failure> {
        let kept = std::mem::replace(&mut self.kept, true);
        let mut exchange = Exchange::new(address, request, timeout, kept);
        let deadline = Instant::now() + timeout;
        let sent = within(deadline, self.stream.write_all(&request.bytes)).await;
        sent.map_err(|cause| exchange.failed(cause))?;
        loop {
            let read = within(deadline, self.stream.read(exchange.reading.space())).await;
            if let Some(answer) = exchange.advance(read)? {
                return Ok(answer);
            }
        }
    }
}

async fn within<T>(deadline: Instant, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout_at(deadline, work).await.map_err(io::Error::from)?
}
