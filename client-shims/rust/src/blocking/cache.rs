//! The in-process cache of a client: each secret asked for is watched by a thread of its own.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, PoisonError};
use std::thread;

use super::{Client, Stop, Watch};
use crate::cached::Cached;
use crate::{Error, Secret, Wanted};

/// The secrets that are held.
#[derive(Default)]
pub(super) struct Cache(HashMap<Wanted, Entry>);

struct Entry {
    cached: Arc<Cached>,
    stop: Stop,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.stop.stop();
    }
}

impl Cache {
    /// The entry for `wanted`, begun where there is none.
    fn entry(&mut self, client: &Client, wanted: &Wanted) -> Result<Arc<Cached>, Error> {
        self.0.retain(|_, entry| !entry.cached.is_over());
        if let Some(entry) = self.0.get(wanted) {
            return Ok(entry.cached.clone());
        }
        let entry = Entry::start(client.clone(), wanted)?;
        let cached = entry.cached.clone();
        self.0.insert(wanted.clone(), entry);
        Ok(cached)
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Entry {
    fn start(client: Client, wanted: &Wanted) -> Result<Self, Error> {
        let (cached, stop) = (Arc::<Cached>::default(), Stop::default());
        let (entry, name) = ((cached.clone(), stop.clone()), wanted.name().clone());
        thread::Builder::new()
            .name("keyhatch-cache".into())
            .spawn(move || {
                if let Ok(watch) = Watch::open(client, &[name.as_str()], stop.clone()) {
                    keep(watch, &cached, &stop);
                }
                cached.end();
            })
            .map_err(|_| Error::Input("no thread can be started to watch the secret"))?;
        let (cached, stop) = entry;
        Ok(Self { cached, stop })
    }
}

/// Until the watch ends for good.
fn keep(mut watch: Watch, cached: &Cached, stop: &Stop) {
    loop {
        let told = watch.advance();
        cached.told(&told);
        if let Err(error) = told {
            let pause = watch.progress.pause(&error);
            if !error.is_temporary() || stop.wait(pause) {
                return;
            }
        }
    }
}

/// A value from the cache where it is known to be current, else from the agent.
pub(super) fn get(client: &Client, wanted: &Wanted) -> Result<Arc<Secret>, Error> {
    if !client.is_ours() {
        // No thread of a forked child watches, and the lock may have been held by one of its parent's.
        return Ok(Arc::new(client.fetch(wanted)?));
    }
    let cached = client
        .cache
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .entry(client, wanted)?;
    if let Some(secret) = cached.value() {
        return Ok(secret);
    }
    let secret = Arc::new(client.fetch(wanted)?);
    cached.keep(&secret);
    Ok(secret)
}
