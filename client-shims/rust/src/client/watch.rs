//! A watch that is awaited for the next change.

use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep_until};

use super::Client;
use super::connection::Connection;
use crate::Error;
use crate::events::Events;
use crate::progress::{Change, Progress};

/// What happens to some secrets, one [`Change`] after the other.
///
/// It connects again where the connection is lost, and resumes where it was. It ends after an error that
/// waiting does not heal, such as [`Error::Denied`].
pub struct Watch {
    client: Client,
    progress: Progress,
    open: Option<(UnixStream, Events)>,
    /// Not to be opened again before this.
    after: Instant,
    over: bool,
}

impl Watch {
    pub(super) async fn open(client: Client, names: &[&str]) -> Result<Self, Error> {
        let mut watch = Self {
            client,
            progress: Progress::new(names)?,
            open: None,
            after: Instant::now(),
            over: false,
        };
        watch.connect().await?;
        Ok(watch)
    }

    /// The next change; `None` once the watch is over. Nothing is lost where the call is dropped half-way.
    pub async fn next(&mut self) -> Option<Result<Change, Error>> {
        while !self.over {
            sleep_until(self.after).await;
            match self.advance().await {
                Ok(change) => return Some(Ok(change)),
                Err(error) => {
                    self.open = None;
                    if !error.is_temporary() {
                        self.over = true;
                        return Some(Err(error));
                    }
                    self.after = Instant::now() + self.progress.pause(&error);
                }
            }
        }
        None
    }

    async fn advance(&mut self) -> Result<Change, Error> {
        loop {
            let Some((stream, events)) = &mut self.open else {
                self.connect().await?;
                continue;
            };
            while let Some(event) = events.pop() {
                if let Some(change) = self.progress.take(event) {
                    return Ok(change);
                }
            }
            let broken = |broken| self.client.address.broken(broken);
            let space = events.space().map_err(broken)?;
            let count = stream.read(space).await.unwrap_or(0);
            events.advance(count).map_err(broken)?;
        }
    }

    async fn connect(&mut self) -> Result<(), Error> {
        let Client {
            address, timeout, ..
        } = &self.client;
        let mut connection = Connection::open(address, *timeout).await?;
        let answer = connection
            .exchange(address, &self.progress.request(), *timeout)
            .await;
        let events = answer.map_err(|failure| failure.error)?.stream()?;
        self.open = Some((connection.into_stream(), events));
        self.progress.opened();
        Ok(())
    }
}
