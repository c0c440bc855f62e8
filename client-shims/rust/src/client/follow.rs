//! The newest value of a secret, kept by a task.

use std::fmt;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::sleep;

use super::{Client, Watch};
use crate::progress::{Change, Retry};
use crate::{Error, Secret, Wanted};

/// The newest value of one secret. Dropping it ends the task that keeps it so.
///
/// While the agent is away, or after the grant is gone, it keeps the last value and goes on trying. A forked
/// child has no such task: it follows the secret anew, or has the value of the moment it was forked.
pub struct Followed {
    newest: watch::Receiver<Arc<Secret>>,
    _task: OnRotate,
}

/// A function is called with each new value of a secret, until this is dropped.
///
/// A forked child has no task that calls it.
#[must_use = "nothing is called any more once this is dropped"]
pub struct OnRotate {
    task: AbortHandle,
}

impl Followed {
    pub(super) async fn start(client: Client, name: &str) -> Result<Self, Error> {
        let wanted = Wanted::parse(name)?;
        let first = Arc::new(client.fetch(&wanted).await?);
        let (sender, newest) = watch::channel(first.clone());
        let task = OnRotate::start(client, wanted, first, move |secret| {
            sender.send_replace(secret);
        });
        Ok(Self {
            newest,
            _task: task,
        })
    }

    /// The newest value. Ask again for each use instead of keeping it.
    #[must_use]
    pub fn secret(&self) -> Arc<Secret> {
        self.newest.borrow().clone()
    }

    /// Waits until there is a newer value than the last that this call gave, and gives it.
    pub async fn changed(&mut self) -> Arc<Secret> {
        if self.newest.changed().await.is_err() {
            // The task is gone with its runtime: nothing will change any more.
            std::future::pending::<()>().await;
        }
        self.newest.borrow_and_update().clone()
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
    ) -> Self {
        let keeper = Keeper {
            client,
            wanted,
            held,
            tell,
        };
        let task = tokio::spawn(keeper.run()).abort_handle();
        Self { task }
    }
}

impl Drop for OnRotate {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What the task works with.
struct Keeper<F> {
    client: Client,
    wanted: Wanted,
    held: Arc<Secret>,
    tell: F,
}

impl<F: FnMut(Arc<Secret>)> Keeper<F> {
    async fn run(mut self) {
        let mut retry = Retry::default();
        loop {
            if let Err(error) = self.watch(&mut retry).await {
                sleep(retry.pause(&error)).await;
            }
        }
    }

    /// Follows one watch to its end. Each begins with how the secret stands, so that nothing is missed between two.
    async fn watch(&mut self, retry: &mut Retry) -> Result<(), Error> {
        let name = self.wanted.name().clone();
        let mut watch = Watch::open(self.client.clone(), &[name.as_str()]).await?;
        while let Some(change) = watch.next().await {
            self.apply(&change?).await?;
            *retry = Retry::default();
        }
        Ok(())
    }

    async fn apply(&mut self, change: &Change) -> Result<(), Error> {
        if change.is_news(&self.held) {
            // A connection of its own: rotations are rare, and an idle one counts against this user's limit.
            self.held = Arc::new(self.client.clone().fetch(&self.wanted).await?);
            (self.tell)(self.held.clone());
        }
        Ok(())
    }
}
