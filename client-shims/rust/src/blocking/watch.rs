//! A watch that blocks until the next change.

use super::connection::Connection;
use super::{Client, Stop};
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
    stop: Stop,
    over: bool,
}

impl Watch {
    pub(super) fn open(client: Client, names: &[&str], stop: Stop) -> Result<Self, Error> {
        let mut watch = Self {
            client,
            progress: Progress::new(names)?,
            open: None,
            stop,
            over: false,
        };
        watch.open = Some(watch.connect()?);
        Ok(watch)
    }

    /// A handle that ends this watch from another thread.
    #[must_use]
    pub fn stopper(&self) -> Stop {
        self.stop.clone()
    }

    fn connect(&mut self) -> Result<(Connection, Events), Error> {
        let Client {
            address, timeout, ..
        } = &self.client;
        let limit = Limit::of(*timeout);
        let mut connection = Connection::open(address, limit)?;
        let request = self.progress.request();
        let events = connection.exchange(address, &request, limit)?.stream()?;
        let stream = connection.stream();
        // An agent that dies closes the socket, so there is nothing that a timeout would find out.
        stream
            .set_read_timeout(None)
            .map_err(|cause| address.unreachable(cause))?;
        self.stop.hold(stream);
        self.progress.opened();
        Ok((connection, events))
    }

    /// The next change on one connection, opened where there is none; after an error there is none.
    pub(super) fn advance(&mut self) -> Result<Change, Error> {
        let ours = |(connection, _): &(Connection, _)| connection.is_ours();
        let (mut connection, mut events) = match self.open.take().filter(ours) {
            Some(open) => open,
            None => self.connect()?,
        };
        loop {
            while let Some(event) = events.pop() {
                if let Some(change) = self.progress.take(event) {
                    self.open = Some((connection, events));
                    return Ok(change);
                }
            }
            connection.read_events(&self.client.address, &mut events)?;
        }
    }
}

impl Iterator for Watch {
    type Item = Result<Change, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.over && !self.stop.is_set() {
            match self.advance() {
                Ok(change) => return Some(Ok(change)),
                Err(error) if error.is_temporary() => {
                    let pause = self.progress.pause(&error);
                    self.stop.wait(pause);
                }
                Err(error) => {
                    self.over = true;
                    return Some(Err(error)).filter(|_| !self.stop.is_set());
                }
            }
        }
        None
    }
}
