//! How secrets of an upstream are kept ready, the same for every kind: prefetched, refreshed, fetched on
//! demand by one call however many ask, served on while the upstream is down, and forgotten when it says so.
//!
//! All upstreams are asked from one thread of their own, so that no request waits for TLS or a parser.

mod clock;
mod copy;
mod leases;
mod lend;
mod line;
mod pace;
mod serve;
mod sweep;
#[cfg(test)]
mod tests;
mod wish;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc as std_mpsc;
use std::thread;
use std::time::Duration;

use keyhatch_protocol::Name;
use tokio::sync::{mpsc, oneshot};
use tokio::task::LocalSet;

pub use clock::{Moment, elapsed, saved_now};
pub use copy::CopyPlace;
pub use pace::Pace;
pub use serve::Rooms;

use super::names::{Names, Owners};
use super::upstream::Turn;
use crate::config::Fetching;
use line::{Asked, Line};

/// How much longer than one call a request waits: for its turn, and for a second try.
const QUEUE: u32 = 3;

/// Which version of a secret is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wanted {
    /// The one that is current.
    Current,
    /// The one before.
    Previous,
}

/// What came of asking for a secret that is not held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Supply {
    /// It is served now.
    Served,
    /// There is none.
    Absent,
    /// The upstream does not say.
    Unavailable,
    /// Too many names were asked for that are not there.
    Limited,
}

/// One upstream source, before it is started.
pub struct Setup<U> {
    /// The source's name.
    pub name: Arc<str>,
    /// Which names it may serve.
    pub names: Names,
    /// How it is fetched from.
    pub fetching: Fetching,
    /// Where its sealed copy is, if it has one.
    pub copy: Option<CopyPlace>,
    /// Makes the upstream, on the thread that asks it.
    pub upstream: U,
}

impl Setup<()> {
    /// The same, of an upstream.
    #[must_use]
    pub fn of<M>(self, upstream: M) -> Setup<M> {
        Setup {
            name: self.name,
            names: self.names,
            fetching: self.fetching,
            copy: self.copy,
            upstream,
        }
    }
}

/// Starts one source on the thread of all upstreams.
pub type Begin = Box<dyn FnOnce(&Rooms, &mut Vec<String>) -> Option<Line> + Send>;

/// All upstream sources, as the others ask them.
#[derive(Default)]
pub struct Upstreams {
    owners: Owners,
    doors: HashMap<Arc<str>, Door>,
}

/// The way to one source.
struct Door {
    asks: mpsc::UnboundedSender<Asked>,
    patience: Duration,
}

/// A question whose answer is on its way.
pub struct Pending {
    answer: oneshot::Receiver<Supply>,
    patience: Duration,
}

impl Pending {
    /// The answer, or that none came in time.
    pub async fn wait(self) -> Supply {
        match tokio::time::timeout(self.patience, self.answer).await {
            Ok(Ok(supply)) => supply,
            _ => Supply::Unavailable,
        }
    }
}

/// How one kind of upstream is made. An error says what cannot be used, for the operator.
pub trait Make: Send + 'static {
    /// What is made.
    type Upstream: super::upstream::Upstream;
    /// Makes it, on the thread that will ask it.
    fn make(self) -> Result<Self::Upstream, String>;
}

/// The sources of a configuration, one by one.
pub struct Builder {
    owners: Owners,
    doors: HashMap<Arc<str>, Door>,
    begins: Vec<Begin>,
}

impl Builder {
    /// None yet.
    #[must_use]
    pub fn new(owners: Owners) -> Self {
        Self {
            owners,
            doors: HashMap::new(),
            begins: Vec::new(),
        }
    }

    /// Adds a source.
    pub fn add<M: Make>(&mut self, setup: Setup<M>) {
        let (asks, inbox) = mpsc::unbounded_channel();
        let door = Door {
            asks,
            patience: setup.fetching.timeout * QUEUE,
        };
        self.doors.insert(Arc::clone(&setup.name), door);
        self.begins.push(Box::new(move |rooms, problems| {
            let source = &setup.name;
            match setup.upstream.make() {
                Ok(upstream) => Some(Line::begin(
                    serve::Serving::new(
                        source,
                        setup.names,
                        setup.fetching,
                        setup.copy,
                        rooms.clone(),
                    ),
                    upstream,
                    inbox,
                )),
                Err(why) => {
                    problems.push(format!("source {source}: {why}"));
                    None
                }
            }
        }));
    }

    /// Makes all upstreams, serves what their sealed copies hold, and begins to ask.
    ///
    /// # Errors
    /// What cannot be used of the configuration.
    pub fn start(self, rooms: Rooms) -> Result<Upstreams, Vec<String>> {
        if self.begins.is_empty() {
            return Ok(Upstreams::default());
        }
        let (ready, begun) = std_mpsc::channel();
        let begins = self.begins;
        let spawned = thread::Builder::new()
            .name("upstreams".into())
            .spawn(move || run(begins, &rooms, &ready));
        let begun = match spawned {
            Ok(_) => begun.recv(),
            Err(why) => return Err(vec![format!("no thread for the upstream sources: {why}")]),
        };
        match begun {
            Ok(problems) if problems.is_empty() => Ok(Upstreams {
                owners: self.owners,
                doors: self.doors,
            }),
            Ok(problems) => Err(problems),
            Err(_) => Err(vec!["the upstream sources did not start".into()]),
        }
    }
}

fn run(begins: Vec<Begin>, rooms: &Rooms, ready: &std_mpsc::Sender<Vec<String>>) {
    let mut problems = Vec::new();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(2)
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(why) => {
            problems.push(format!("no runtime for the upstream sources: {why}"));
            // The starter waits for this.
            let _ = ready.send(problems);
            return;
        }
    };
    let local = LocalSet::new();
    local.block_on(&runtime, async {
        let mut lines = Vec::new();
        for begin in begins {
            lines.extend(begin(rooms, &mut problems));
        }
        let well = problems.is_empty();
        let _ = ready.send(problems);
        if well {
            let lines = lines
                .into_iter()
                .map(|line| tokio::task::spawn_local(line.0));
            for line in lines.collect::<Vec<_>>() {
                // One that panicked has said so; the others go on.
                let _ = line.await;
            }
        }
    });
}

impl Upstreams {
    /// Whether `name` belongs to an upstream.
    #[must_use]
    pub fn supplies(&self, name: &Name) -> bool {
        self.door(name).is_some()
    }

    /// Asks the upstream that owns `name` for a version that is not held, for the user `by`; `None` where
    /// none does.
    #[must_use]
    pub fn ask(&self, name: &Name, wanted: Wanted, by: Option<u32>) -> Option<Pending> {
        self.send(name, wanted, false, by)
    }

    /// Asks the upstream that owns `name` for its current value, although it is held; `None` where none does.
    /// Within a second of the last time the answer is what is held.
    #[must_use]
    pub fn ask_again(&self, name: &Name) -> Option<Pending> {
        self.send(name, Wanted::Current, true, None)
    }

    fn send(&self, name: &Name, wanted: Wanted, again: bool, by: Option<u32>) -> Option<Pending> {
        let door = self.door(name)?;
        let (reply, answer) = oneshot::channel();
        // Where the thread has ended, the answer says so by never coming.
        let _ = door.asks.send(Asked::Supply {
            name: name.clone(),
            wanted,
            again,
            by: by.unwrap_or(u32::MAX),
            reply,
        });
        Some(Pending {
            answer,
            patience: door.patience,
        })
    }

    /// Has the upstream that owns `name` give it a new value.
    ///
    /// # Errors
    /// Why it does not, for operators.
    pub async fn rotate(&self, name: &Name, turn: Turn) -> Result<(), String> {
        let door = self.door(name).ok_or("no upstream has this name")?;
        let (reply, answer) = oneshot::channel();
        // Where the thread has ended, the answer never comes.
        let _ = door.asks.send(Asked::Rotate {
            name: name.clone(),
            turn,
            reply,
        });
        answer
            .await
            .unwrap_or_else(|_| Err("the agent is sealed or stopping".into()))
    }

    /// Forgets tokens and connections, and asks nothing until [`Upstreams::unseal`].
    pub async fn seal(&self) {
        self.tell_all(Asked::Seal).await;
    }

    /// Fetches everything anew.
    pub async fn unseal(&self) {
        self.tell_all(Asked::Unseal).await;
    }

    /// Writes the sealed copies and ends.
    pub async fn stop(&self) {
        self.tell_all(Asked::Stop).await;
    }

    async fn tell_all(&self, what: fn(oneshot::Sender<()>) -> Asked) {
        let mut told = Vec::new();
        for door in self.doors.values() {
            let (reply, done) = oneshot::channel();
            let _ = door.asks.send(what(reply));
            told.push(done);
        }
        for done in told {
            // One that has ended holds nothing.
            let _ = done.await;
        }
    }

    fn door(&self, name: &Name) -> Option<&Door> {
        if self.doors.is_empty() {
            return None;
        }
        self.doors.get(self.owners.of(name.as_str())?)
    }
}
