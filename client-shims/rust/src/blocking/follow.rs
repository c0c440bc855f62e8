//! The newest value of a secret, kept by a thread.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use super::{Client, Stop, Watch};
use crate::progress::{Change, Retry};
use crate::{Error, Secret, Wanted};

/// The newest value of one secret. Dropping it ends the thread that keeps it so.
///
/// While the agent is away, or after the grant is gone, it keeps the last value and goes on trying.
pub struct Followed {
    newest: Arc<Newest>,
    stop: Stop,
}

type Newest = Mutex<Arc<Secret>>;

impl Followed {
    pub(super) fn start(client: Client, name: &str) -> Result<Self, Error> {
        let wanted = Wanted::parse(name)?;
        let newest = Arc::new(Mutex::new(Arc::new(client.fetch(&wanted)?)));
        let stop = Stop::default();
        let keeper = Keeper {
            client,
            wanted,
            newest: newest.clone(),
            stop: stop.clone(),
        };
        thread::Builder::new()
            .name("keyhatch-follow".into())
            .spawn(move || keeper.run())
            .map_err(|_| Error::Input("no thread can be started to follow the secret"))?;
        Ok(Self { newest, stop })
    }

    /// The newest value. Ask again for each use instead of keeping it.
    #[must_use]
    pub fn secret(&self) -> Arc<Secret> {
        newest(&self.newest)
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.stop.stop();
    }
}

fn newest(cell: &Newest) -> Arc<Secret> {
    cell.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// What the thread works with.
struct Keeper {
    client: Client,
    wanted: Wanted,
    newest: Arc<Newest>,
    stop: Stop,
}

impl Keeper {
    fn run(self) {
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
    fn watch(&self, retry: &mut Retry) -> Result<(), Error> {
        let names = [self.wanted.name().as_str()];
        for change in Watch::open(self.client.clone(), &names, self.stop.clone())? {
            self.apply(&change?)?;
            *retry = Retry::default();
        }
        Ok(())
    }

    fn apply(&self, change: &Change) -> Result<(), Error> {
        if change.is_news(&newest(&self.newest)) {
            // A connection of its own: rotations are rare, and an idle one counts against this user's limit.
            let secret = Arc::new(self.client.clone().fetch(&self.wanted)?);
            *self.newest.lock().unwrap_or_else(PoisonError::into_inner) = secret;
        }
        Ok(())
    }
}
