//! The newest value of a secret, kept by a thread.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use super::{Client, Stop, Watch};
use crate::progress::{Change, Retry};
use crate::{Error, Secret, Wanted};

/// The newest value of one secret. Dropping it ends the thread that keeps it so.
///
/// While the agent is away, or after the grant is gone, it keeps the last value and goes on trying. A forked
/// child has no such thread: it follows the secret anew, or has the value of the moment it was forked.
pub struct Followed {
    newest: Arc<Mutex<Arc<Secret>>>,
    _thread: OnRotate,
}

/// A function is called with each new value of a secret, until this is dropped.
///
/// A forked child has no thread that calls it.
#[must_use = "nothing is called any more once this is dropped"]
pub struct OnRotate {
    stop: Stop,
}

impl Followed {
    pub(super) fn start(client: Client, name: &str) -> Result<Self, Error> {
        let wanted = Wanted::parse(name)?;
        let first = Arc::new(client.fetch(&wanted)?);
        let newest = Arc::new(Mutex::new(first.clone()));
        let cell = newest.clone();
        let thread = OnRotate::start(client, wanted, first, move |secret| {
            *cell.lock().unwrap_or_else(PoisonError::into_inner) = secret;
        })?;
        Ok(Self {
            newest,
            _thread: thread,
        })
    }

    /// The newest value. Ask again for each use instead of keeping it.
    #[must_use]
    pub fn secret(&self) -> Arc<Secret> {
        self.newest
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl fmt::Debug for Followed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Followed").field(&self.secret()).finish()
    }
}

impl OnRotate {
    pub(super) fn start(
        client: Client,
        wanted: Wanted,
        held: Arc<Secret>,
        tell: impl FnMut(Arc<Secret>) + Send + 'static,
    ) -> Result<Self, Error> {
        let stop = Stop::default();
        let keeper = Keeper {
            client,
            wanted,
            held,
            tell,
            stop: stop.clone(),
        };
        thread::Builder::new()
            .name("keyhatch-follow".into())
            .spawn(move || keeper.run())
            .map_err(|_| Error::Input("no thread can be started to follow the secret"))?;
        Ok(Self { stop })
    }
}

impl Drop for OnRotate {
    fn drop(&mut self) {
        self.stop.stop();
    }
}

/// What the thread works with.
struct Keeper<F> {
    client: Client,
    wanted: Wanted,
    held: Arc<Secret>,
    tell: F,
    stop: Stop,
}

impl<F: FnMut(Arc<Secret>)> Keeper<F> {
    fn run(mut self) {
        let mut retry = Retry::default();
        loop {
            let Err(error) = self.watch(&mut retry) else {
                return;
            };
            if self.stop.wait(retry.pause(&error)) {
                return;
            }
        }
    }

    /// Follows one watch to its end. Each begins with how the secret stands, so that nothing is missed between two.
    fn watch(&mut self, retry: &mut Retry) -> Result<(), Error> {
        let name = self.wanted.name().clone();
        for change in Watch::open(self.client.clone(), &[name.as_str()], self.stop.clone())? {
            self.apply(&change?)?;
            *retry = Retry::default();
        }
        Ok(())
    }

    fn apply(&mut self, change: &Change) -> Result<(), Error> {
        if change.is_news(&self.held) {
            // A connection of its own: rotations are rare, and an idle one counts against this user's limit.
            self.held = Arc::new(self.client.clone().fetch(&self.wanted)?);
            (self.tell)(self.held.clone());
        }
        Ok(())
    }
}
