//! The in-process cache of a client: each secret asked for is watched by a task of its own.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, PoisonError};

use tokio::task::AbortHandle;
use tokio::time::sleep;

use super::{Client, Watch};
use crate::cached::Cached;
use crate::{Error, Secret, Wanted};

/// The secrets that are held.
#[derive(Default)]
pub(super) struct Cache(HashMap<Wanted, Entry>);

struct Entry {
    cached: Arc<Cached>,
    task: AbortHandle,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Cache {
    /// The entry for `wanted`, begun where there is none.
    fn entry(&mut self, client: &Client, wanted: &Wanted) -> Arc<Cached> {
        // A task may have gone with the runtime it ran in.
        self.0
            .retain(|_, entry| !entry.cached.is_over() && !entry.task.is_finished());
        let entry = self
            .0
            .entry(wanted.clone())
            .or_insert_with(|| Entry::start(client.clone(), wanted));
        entry.cached.clone()
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Entry {
    fn start(client: Client, wanted: &Wanted) -> Self {
        let cached = Arc::<Cached>::default();
        let (kept, name) = (cached.clone(), wanted.name().clone());
        let task = tokio::spawn(async move {
            if let Ok(watch) = Watch::open(client, &[name.as_str()]).await {
                keep(watch, &kept).await;
            }
            kept.end();
        });
        Self {
            cached,
            task: task.abort_handle(),
        }
    }
}

/// Until the watch ends for good.
async fn keep(mut watch: Watch, cached: &Cached) {
    loop {
        let told = watch.advance().await;
        cached.told(&told);
        if let Err(error) = told {
            if !error.is_temporary() {
                return;
            }
            sleep(watch.progress.pause(&error)).await;
        }
    }
}

/// A value from the cache where it is known to be current, else from the agent.
pub(super) async fn get(client: &Client, wanted: &Wanted) -> Result<Arc<Secret>, Error> {
    if !client.is_ours() {
        // No task of a forked child watches, and the lock may have been held by one of its parent's.
        return Ok(Arc::new(client.fetch(wanted).await?));
    }
    let cached = client
        .cache
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .entry(client, wanted);
    if let Some(secret) = cached.value() {
        return Ok(secret);
    }
    let secret = Arc::new(client.fetch(wanted).await?);
    cached.keep(&secret);
    Ok(secret)
}
