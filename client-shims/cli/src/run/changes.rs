//! What watches tell of the secrets of the running child, gathered for the one thread that decides.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use keyhatch::blocking::Client;
use keyhatch::{Error, Name};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::deliver::Versions;
use crate::failure::Failure;
use crate::output::visible;

/// The names of one watch fit a request head, and their versions an event id.
const MAX_NAMES: usize = 50;
const MAX_BYTES: usize = 4096;

/// Before a watch that was refused is tried again: a grant may come back.
const AGAIN: Duration = Duration::from_secs(60);

/// Before a watch that could not begin is tried again.
const SOON: Duration = Duration::from_secs(1);

/// The newest versions told, and a descriptor that is readable when there is news.
pub struct Changes {
    shared: Arc<Shared>,
    followed: BTreeSet<Name>,
}

struct Shared {
    told: Mutex<BTreeMap<Name, Option<String>>>,
    bell: EventFd,
}

impl Changes {
    pub fn watch<'a>(
        client: &Client,
        names: impl Iterator<Item = &'a Name>,
    ) -> Result<Self, Failure> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let bell = EventFd::from_flags(flags)
            .map_err(|errno| Failure::failed(format!("cannot watch: {errno}")))?;
        let shared = Shared {
            told: Mutex::default(),
            bell,
        };
        let mut changes = Self {
            shared: Arc::new(shared),
            followed: BTreeSet::new(),
        };
        changes.follow(client, names);
        Ok(changes)
    }

    /// Watches those of `names` that are not watched yet.
    pub fn follow<'a>(&mut self, client: &Client, names: impl Iterator<Item = &'a Name>) {
        let mut new: Vec<String> = Vec::new();
        for name in names {
            if !self.followed.insert(name.clone()) {
                continue;
            }
            let bytes: usize = new.iter().map(String::len).sum();
            if new.len() == MAX_NAMES || bytes + name.as_str().len() > MAX_BYTES {
                start(client, std::mem::take(&mut new), &self.shared);
            }
            new.push(name.to_string());
        }
        if !new.is_empty() {
            start(client, new, &self.shared);
        }
    }

    /// Whether another version than the child was given is served now. One that was removed is no reason to restart.
    pub fn differ_from(&self, given: &Versions) -> bool {
        self.shared.with(|told| {
            told.iter().any(|(name, version)| {
                let given = given.get(name);
                given.is_some() && version.is_some() && version.as_ref() != given
            })
        })
    }

    /// From now on `given` counts as told.
    pub fn note(&self, given: &mut Versions) {
        self.shared.with(|told| {
            for (name, version) in &mut *given {
                if let Some(Some(newest)) = told.get(name) {
                    version.clone_from(newest);
                }
            }
        });
    }

    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.bell.as_fd()
    }

    /// The bell has been heard. It fails only where it had not rung.
    pub fn heard(&self) {
        let _ = self.shared.bell.read();
    }
}

impl Shared {
    fn with<T>(&self, act: impl FnOnce(&mut BTreeMap<Name, Option<String>>) -> T) -> T {
        act(&mut self.told.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn tell(&self, name: Name, version: Option<String>) {
        self.with(|told| told.insert(name, version));
        // A bell that rings already is heard once, which is enough.
        let _ = self.bell.write(1);
    }
}

/// One thread for one watch.
fn start(client: &Client, names: Vec<String>, shared: &Arc<Shared>) {
    let watcher = (client.clone(), shared.clone());
    let started = thread::Builder::new()
        .name("keyhatch-watch".into())
        .spawn(move || keep(&watcher.0, &names, &watcher.1));
    if let Err(cause) = started {
        eprintln!("keyhatch: run: rotations are not seen: {cause}");
    }
}

fn keep(client: &Client, names: &[String], shared: &Arc<Shared>) {
    let mut said = false;
    loop {
        let error = listen(client, names, shared, &mut said);
        if matches!(error, Error::Denied(_)) && names.len() > 1 {
            // One that may not be watched is no reason to miss the others.
            for name in names {
                start(client, vec![name.clone()], shared);
            }
            return;
        }
        if error.is_temporary() {
            thread::sleep(SOON);
            continue;
        }
        if !std::mem::replace(&mut said, true) {
            let (names, error) = (names.join(", "), error.to_string());
            eprintln!(
                "keyhatch: run: rotations of {} are not seen: {}",
                visible(&names),
                visible(&error)
            );
        }
        thread::sleep(AGAIN);
    }
}

/// Tells of changes until the watch ends for good, and why it did.
fn listen(client: &Client, names: &[String], shared: &Shared, said: &mut bool) -> Error {
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let watch = match client.watch(&names) {
        Ok(watch) => watch,
        Err(error) => return error,
    };
    for change in watch {
        match change {
            Ok(change) => {
                *said = false;
                shared.tell(change.name, change.version);
            }
            Err(error) => return error,
        }
    }
    Error::Input("the watch has ended")
}
