//! A watch that is awaited for the next change.

use tokio::time::{Instant, sleep_until};

use super::Client;
use super::connection::Connection;
use crate::Error;
use crate::events::Events;
use crate::exchange::Limit;
use crate::progress::{Change, Progress};

/// What happens to some secrets, one [`Change`] after the other.
///
/// It connects again where the connection is lost, and resumes where it was. It ends after an error that
/// waiting does not heal, such as [`Error::Denied`].
pub struct Watch {
    client: Client,
    pub(super) progress: Progress,
    open: Option<(Connection, Events)>,
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

    /// The next change on one connection, opened where there is none; after an error there is none.
    pub(super) async fn advance(&mut self) -> Result<Change, Error> {
        loop {
            let Some((connection, events)) = self.open.as_mut().filter(|open| open.0.is_ours())
            else {
                self.connect().await?;
                continue;
            };
            while let Some(event) = events.pop() {
                if let Some(change) = self.progress.take(event) {
                    return Ok(change);
                }
            }
            let read = connection.read_events(&self.client.address, events);
            if let Err(error) = read.await {
                self.open = None;
                return Err(error);
            }
        }
    }

    async fn connect(&mut self) -> Result<(), Error> {
        let Client {
            address, timeout, ..
        } = &self.client;
        let limit = Limit::of(*timeout);
        let mut connection = Connection::open(address, limit).await?;
        let request = self.progress.request();
        let answer = connection.exchange(address, &request, limit).await?;
        self.open = Some((connection, answer.stream()?));
        self.progress.opened();
        Ok(())
    }
}
