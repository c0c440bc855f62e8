//! The newest value of a secret, kept by a task.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::sleep;

use super::{Client, Watch};
use crate::progress::{Change, Retry};
use crate::{Error, Secret, Wanted};

/// The newest value of one secret. Dropping it ends the task that keeps it so.
///
/// While the agent is away, or after the grant is gone, it keeps the last value and goes on trying.
pub struct Followed {
    newest: watch::Receiver<Arc<Secret>>,
    task: AbortHandle,
}

impl Followed {
    pub(super) async fn start(client: Client, name: &str) -> Result<Self, Error> {
        let wanted = Wanted::parse(name)?;
        let (sender, newest) = watch::channel(Arc::new(client.fetch(&wanted).await?));
        let keeper = Keeper {
            client,
            wanted,
            newest: sender,
        };
        let task = tokio::spawn(keeper.run()).abort_handle();
        Ok(Self { newest, task })
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

impl Drop for Followed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What the task works with.
struct Keeper {
    client: Client,
    wanted: Wanted,
    newest: watch::Sender<Arc<Secret>>,
}

impl Keeper {
    async fn run(self) {
        let mut retry = Retry::default();
        loop {
            if let Err(error) = self.watch(&mut retry).await {
                sleep(retry.pause(&error)).await;
            }
        }
    }

    /// Follows one watch to its end. Each begins with how the secret stands, so that nothing is missed between two.
    async fn watch(&self, retry: &mut Retry) -> Result<(), Error> {
        let names = [self.wanted.name().as_str()];
        let mut watch = Watch::open(self.client.clone(), &names).await?;
        while let Some(change) = watch.next().await {
            self.apply(&change?).await?;
            *retry = Retry::default();
        }
        Ok(())
    }

    async fn apply(&self, change: &Change) -> Result<(), Error> {
        let held = self.newest.borrow().clone();
        if change.is_news(&held) {
            // A connection of its own: rotations are rare, and an idle one counts against this user's limit.
            let secret = self.client.clone().fetch(&self.wanted).await?;
            self.newest.send_replace(Arc::new(secret));
        }
        Ok(())
    }
}
