//! The thread that reads the sources: it watches their files, loads what changed, publishes it, and is the
//! only writer of stores inside the daemon.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use notify::RecommendedWatcher;
use serde_json::Value as Json;
use tokio::sync::oneshot;

use super::file::{FileSource, Loaded, Rejected};
use super::record::{record, record_changes};
use super::state::States;
use super::watch::{self, News, Trail};
use crate::audit::{Entry, Event, Log, Verdict, Who, extra};
use crate::cache::{Cache, Freshness};
use crate::store::{Actor, Edit, Folder, StoreError};

/// How long a file that is written in place must rest before it is read.
const REST: Duration = Duration::from_millis(300);

/// How often files are looked at even without an event: for file systems that tell none.
const LOOK: Duration = Duration::from_secs(2);

/// A change to a store, made by the daemon for an operator.
pub type StoreEdit = Box<dyn FnOnce(&mut Edit, &FileSource) -> Result<Json, KeeperError> + Send>;

/// Why the keeper could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// No such source.
    #[error("there is no source {0:?}")]
    NoSource(String),
    /// The store is not served, so it is not written either.
    #[error("{0}")]
    Rejected(#[from] Rejected),
    /// The change is not possible.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// The folder cannot be written.
    #[error("{0}")]
    Folder(#[from] crate::store::FileError),
    /// What was asked does not make sense.
    #[error("{0}")]
    Asked(String),
    /// The agent is sealed or stopping.
    #[error("the agent is sealed or stopping")]
    NotServing,
    /// What has to be recorded first cannot be.
    #[error("no audit record can be kept")]
    NoRecord,
}

/// An operator's request that stands in the audit log before it is done.
pub struct ByOperator {
    /// Who asked.
    pub who: Arc<Who>,
    /// The id that the answer carries too.
    pub request_id: String,
}

/// What the keeper is asked to do.
pub enum Asked {
    /// Look at the files of all sources now.
    Look,
    /// Change a store, and answer once the new version is served.
    Edit {
        /// Which source's.
        source: Option<String>,
        /// What to do.
        edit: StoreEdit,
        /// Who asked.
        by: Actor,
        /// Where the result goes.
        reply: oneshot::Sender<Result<Json, KeeperError>>,
    },
    /// Accept a store that is older than what was served.
    AcceptOlder {
        /// Which source's.
        source: Option<String>,
        /// Who asked.
        by: ByOperator,
        /// Where the result goes.
        reply: oneshot::Sender<Result<Json, KeeperError>>,
    },
    /// Forget every value.
    Seal(oneshot::Sender<()>),
    /// Load all values again.
    Unseal(oneshot::Sender<()>),
    /// End the thread.
    Stop,
    /// A file may have changed.
    File(News),
}

/// The keeper of all sources.
pub struct Keeper {
    sources: Vec<FileSource>,
    cache: Arc<Cache>,
    audit: Arc<Log>,
    states: Arc<States>,
    inbox: Receiver<Asked>,
    outbox: Sender<Asked>,
    /// Each source's file as it was last read: the same stamp means the same bytes.
    stamps: HashMap<Arc<str>, Stamp>,
    /// Names that each source has and may not serve, told already.
    skipped: HashMap<Arc<str>, Vec<String>>,
    trails: Arc<[Trail]>,
    watcher: Option<RecommendedWatcher>,
    /// When a file that is being written in place may be read.
    due: Option<Instant>,
}

/// What tells one state of a file from another.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp(Option<(u64, u64, u64, i64, i64, u32, u32)>);

impl Keeper {
    /// Loads all sources once and starts the thread. Sources that cannot be loaded are in trouble, said
    /// in their states and in the audit log.
    pub fn start(
        sources: Vec<FileSource>,
        cache: Arc<Cache>,
        audit: Arc<Log>,
        states: Arc<States>,
    ) -> std::io::Result<Sender<Asked>> {
        let (outbox, inbox) = channel();
        let mut keeper = Self {
            sources,
            cache,
            audit,
            states,
            inbox,
            outbox: outbox.clone(),
            stamps: HashMap::new(),
            skipped: HashMap::new(),
            trails: Arc::default(),
            watcher: None,
            due: None,
        };
        // Watch first: what changes while the first load runs is seen.
        keeper.watch_anew();
        keeper.look(false);
        thread::Builder::new()
            .name("sources".into())
            .spawn(move || keeper.run())?;
        Ok(outbox)
    }

    fn run(mut self) {
        loop {
            let wait = self
                .due
                .map_or(LOOK, |due| due.saturating_duration_since(Instant::now()));
            match self.inbox.recv_timeout(wait) {
                Ok(Asked::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(Asked::File(news)) => self.file_event(news),
                Ok(asked) => self.answer(asked),
                Err(RecvTimeoutError::Timeout) => {
                    self.due = None;
                    self.watch_anew();
                    self.look(false);
                }
            }
        }
    }

    fn answer(&mut self, asked: Asked) {
        match asked {
            Asked::Look => self.look(false),
            Asked::Edit {
                source,
                edit,
                by,
                reply,
            } => {
                // The asker may have gone; the change is made all the same.
                let _ = reply.send(self.edit(source.as_deref(), edit, by));
            }
            Asked::AcceptOlder { source, by, reply } => {
                let _ = reply.send(self.accept_older(source.as_deref(), &by));
            }
            Asked::Seal(reply) => {
                self.cache.seal();
                for source in &self.sources {
                    self.states.change(&source.name, |state| {
                        state.loaded = false;
                        state.secrets = 0;
                    });
                }
                let _ = reply.send(());
            }
            Asked::Unseal(reply) => {
                self.cache.unseal();
                self.look(true);
                let _ = reply.send(());
            }
            Asked::Stop | Asked::File(_) => {}
        }
    }

    fn file_event(&mut self, news: News) {
        match news {
            News::None => {}
            News::Writing => self.due = Some(Instant::now() + REST),
            News::Whole => self.look(false),
            News::Moved => {
                self.watch_anew();
                self.look(false);
            }
        }
    }

    fn watch_anew(&mut self) {
        let trails: Arc<[Trail]> = self.sources.iter().map(|s| Trail::to(&s.file())).collect();
        if trails == self.trails {
            return;
        }
        let outbox = self.outbox.clone();
        // The keeper may have ended.
        let tell = move |news| drop(outbox.send(Asked::File(news)));
        match watch::watch(&trails, tell) {
            Ok(watcher) => self.watcher = Some(watcher),
            Err(error) => {
                tracing::warn!(%error, "store folders are not watched; they are looked at every 2 seconds");
                self.watcher = None;
            }
        }
        self.trails = trails;
    }

    /// Loads every source whose file is not the one that was read last.
    fn look(&mut self, all: bool) {
        if self.cache.is_sealed() {
            return;
        }
        for at in 0..self.sources.len() {
            let stamp = Stamp::of(&self.sources[at].file());
            let name = Arc::clone(&self.sources[at].name);
            if all || self.stamps.get(&name) != Some(&stamp) {
                self.stamps.insert(name, stamp);
                // What went wrong is told by then.
                let _ = self.load(at);
            }
        }
    }

    /// Loads one source, publishes it and records what changed.
    fn load(&mut self, at: usize) -> Result<(), Rejected> {
        let loaded = self.read(at, false)?;
        self.accept(at, loaded)
    }

    /// Reads and verifies one source.
    fn read(&mut self, at: usize, older: bool) -> Result<Loaded, Rejected> {
        let loaded = self.sources[at].load(&self.cache, older);
        loaded.inspect_err(|rejected| self.reject(at, rejected))
    }

    /// Remembers what was read as accepted, and serves it.
    fn accept(&mut self, at: usize, loaded: Loaded) -> Result<(), Rejected> {
        let accepted = self.sources[at].accept(&loaded);
        accepted.inspect_err(|rejected| self.reject(at, rejected))?;
        self.serve(at, loaded);
        Ok(())
    }

    fn serve(&mut self, at: usize, loaded: Loaded) {
        let source = &self.sources[at];
        let first = !self
            .states
            .all_by_name()
            .get(&source.name)
            .is_some_and(|s| s.loaded);
        let changes = self.cache.publish(&source.name, loaded.entries);
        let mut recovered = false;
        let secrets = self.cache.snapshot().of_source(&source.name);
        self.states.change(&source.name, |state| {
            recovered = state.trouble.take().is_some();
            state.loaded = true;
            state.secrets = secrets;
            state.generation = loaded.generation;
            state.last_success =
                Some(humantime::format_rfc3339_seconds(SystemTime::now()).to_string());
        });
        self.record_store(at, &loaded.changes);
        if recovered {
            record(&self.audit, Event::SourceRecovered, &source.name, &[]);
        }
        let told = self
            .skipped
            .insert(Arc::clone(&source.name), loaded.skipped.clone())
            .unwrap_or_default();
        for why in loaded.skipped.iter().filter(|why| !told.contains(why)) {
            let members = [("why", why.as_str().into())];
            record(
                &self.audit,
                Event::AlertSourceRejected,
                &source.name,
                &members,
            );
        }
        if !first {
            record_changes(&self.audit, &changes);
        }
    }

    fn record_store(&self, at: usize, changes: &[crate::store::Change]) {
        let name = &self.sources[at].name;
        for change in changes {
            let members = [("change", serde_json::to_value(change).unwrap_or_default())];
            record(&self.audit, Event::StoreChanged, name, &members);
        }
    }

    /// Notes that a source's file is refused: one alert for one trouble.
    fn reject(&mut self, at: usize, rejected: &Rejected) {
        let name = &self.sources[at].name;
        if rejected.may_pass() {
            self.stamps.remove(name);
        }
        let why = rejected.to_string();
        let mut news = false;
        self.states.change(name, |state| {
            news = state.trouble.as_ref() != Some(&why);
            state.trouble = Some(why.clone());
        });
        if news {
            tracing::error!(source = %name, %why, "the source is refused; the last good values serve on");
            let members = [("why", why.as_str().into())];
            record(&self.audit, Event::AlertSourceRejected, name, &members);
            self.cache.set_freshness(name, |_| Freshness::Stale);
        }
    }

    fn edit(
        &mut self,
        source: Option<&str>,
        edit: StoreEdit,
        by: Actor,
    ) -> Result<Json, KeeperError> {
        let at = self.find(source)?;
        if self.cache.is_sealed() {
            return Err(KeeperError::NotServing);
        }
        let folder = Folder::open(&self.sources[at].folder)?;
        let guard = folder.lock()?;
        // Only what verifies and is not older is written on.
        self.load(at)?;
        let source = &self.sources[at];
        let key = source.load_key().map_err(Rejected::from)?;
        let mut open = Edit::open(&folder.read()?, &key)?;
        let done = edit(&mut open, source)?;
        if open.is_changed() {
            guard.replace(&open.seal(by)?)?;
        }
        drop(guard);
        self.stamps
            .insert(Arc::clone(&source.name), Stamp::of(&source.file()));
        self.load(at)?;
        Ok(done)
    }

    fn accept_older(&mut self, source: Option<&str>, by: &ByOperator) -> Result<Json, KeeperError> {
        let at = self.find(source)?;
        if self.cache.is_sealed() {
            return Err(KeeperError::NotServing);
        }
        let loaded = self.read(at, true)?;
        let (name, generation) = (Arc::clone(&self.sources[at].name), loaded.generation);
        let members = extra(&[
            ("source", name.as_ref().into()),
            ("generation", generation.into()),
        ]);
        let entry = Entry {
            decision: Verdict::Allow,
            who: Some(&by.who),
            surface: "admin",
            request_id: Some(&by.request_id),
            extra: Some(&members),
            ..Entry::of(Event::AdminAcceptedOlder)
        };
        let _ = self.audit.keep(&entry).map_err(|_| KeeperError::NoRecord)?;
        self.accept(at, loaded)?;
        Ok(serde_json::json!({ "source": name.as_ref(), "generation": generation }))
    }

    fn find(&self, source: Option<&str>) -> Result<usize, KeeperError> {
        match source {
            None if self.sources.len() == 1 => Ok(0),
            None => Err(KeeperError::Asked(
                "there are several sources: name one with --source".into(),
            )),
            Some(name) => self
                .sources
                .iter()
                .position(|source| &*source.name == name)
                .ok_or_else(|| KeeperError::NoSource(name.into())),
        }
    }
}

impl Stamp {
    fn of(path: &Path) -> Self {
        Self(std::fs::metadata(path).ok().map(|meta| {
            let changed = (meta.ctime(), meta.ctime_nsec());
            (
                meta.dev(),
                meta.ino(),
                meta.size(),
                changed.0,
                changed.1,
                meta.uid(),
                meta.mode(),
            )
        }))
    }
}
