//! A watch that blocks until the next change.

use std::io::{ErrorKind, Read};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

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

    fn connect(&mut self) -> Result<(UnixStream, Events), Error> {
        let Client {
            address, timeout, ..
        } = &self.client;
        let mut connection = Connection::open(address, *timeout)?;
        let request = self.progress.request();
        let answer = connection.exchange(address, &request, *timeout);
        let events = answer.map_err(|failure| failure.error)?.stream()?;
        let stream = connection.into_stream();
        // An agent that dies closes the socket, so there is nothing that a timeout would find out.
        stream
            .set_read_timeout(None)
            .map_err(|cause| address.unreachable(cause))?;
        self.stop.hold(&stream);
        self.progress.opened();
        Ok((stream, events))
    }

    /// The next change of the open stream, or why there is none.
    fn read(&mut self, (stream, events): &mut (UnixStream, Events)) -> Result<Change, Error> {
        loop {
            while let Some(event) = events.pop() {
                if let Some(change) = self.progress.take(event) {
                    return Ok(change);
                }
            }
            let space = events
                .space()
                .map_err(|broken| self.client.address.broken(broken))?;
            let count = match stream.read(space) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                count => count.unwrap_or(0),
            };
            events
                .advance(count)
                .map_err(|broken| self.client.address.broken(broken))?;
        }
    }

    /// The next change, over as many connections as it takes.
    fn advance(&mut self) -> Result<Change, Error> {
        let mut open = match self.open.take() {
            Some(open) => open,
            None => self.connect()?,
        };
        let change = self.read(&mut open)?;
        self.open = Some(open);
        Ok(change)
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

/// Ends a [`Watch`] from another thread.
#[derive(Clone, Default)]
pub struct Stop(Arc<(Mutex<Held>, Condvar)>);

#[derive(Default)]
struct Held {
    stopped: bool,
    stream: Option<UnixStream>,
}

impl Stop {
    /// The watch gives nothing more; a call that waits returns at once.
    pub fn stop(&self) {
        let mut held = self.lock();
        held.stopped = true;
        if let Some(stream) = held.stream.take() {
            // It fails only where the connection is gone already.
            let _ = stream.shutdown(Shutdown::Both);
        }
        self.0.1.notify_all();
    }

    /// Whether it has been stopped.
    pub(super) fn is_set(&self) -> bool {
        self.lock().stopped
    }

    /// Waits, and answers whether it was stopped meanwhile.
    pub(super) fn wait(&self, pause: Duration) -> bool {
        let waited = self
            .0
            .1
            .wait_timeout_while(self.lock(), pause, |held| !held.stopped);
        waited.unwrap_or_else(PoisonError::into_inner).0.stopped
    }

    fn hold(&self, stream: &UnixStream) {
        let mut held = self.lock();
        if held.stopped {
            let _ = stream.shutdown(Shutdown::Both);
        }
        held.stream = stream.try_clone().ok();
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
