//! What one upstream source serves: entries in the cache, how fresh they are, and what is told of them.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::SystemTime;

use keyhatch_protocol::Name;
use serde_json::Value as Json;

use super::clock::Moment;
use super::copy::{CopyPlace, Restored};
use super::sweep::Held;
use crate::audit::{Event, Log};
use crate::cache::{About, Cache, Changes, Entry, Freshness, LoadError, Version};
use crate::config::Fetching;
use crate::sources::names::Names;
use crate::sources::record::{record, record_changes};
use crate::sources::state::{SourceState, States, UpstreamState};
use crate::sources::upstream::Fetched;

/// How many alerts one round makes, and how many are remembered.
const AT_ONCE: usize = 20;
const TOLD: usize = 100_000;
/// The longest value (CONTRACT section 2).
const LONGEST: usize = 65_536;

/// The rooms that a source works with.
#[derive(Clone)]
pub struct Rooms {
    /// Where values are served from.
    pub cache: Arc<Cache>,
    /// The record of truth.
    pub audit: Arc<Log>,
    /// How all sources are.
    pub states: Arc<States>,
}

/// What one source serves. All names are those that it serves under.
pub struct Serving {
    pub source: Arc<str>,
    pub names: Names,
    pub fetching: Fetching,
    pub rooms: Rooms,
    copy: Option<CopyPlace>,
    /// When the upstream last stood behind each value that is not lent.
    confirmed: HashMap<Name, Moment>,
    /// When each lent value ends.
    lent: HashMap<Name, Moment>,
    /// What was not confirmed since then is stale.
    fresh_since: Moment,
    /// How many are not served because they are too old, or no longer lent.
    withheld: usize,
    loaded: bool,
    trouble: Option<String>,
    /// What is odd upstream, told already.
    told: HashSet<(String, String)>,
}

impl Serving {
    pub fn new(
        source: &Arc<str>,
        names: Names,
        fetching: Fetching,
        copy: Option<CopyPlace>,
        rooms: Rooms,
    ) -> Self {
        let mut serving = Self {
            source: Arc::clone(source),
            names,
            fetching,
            rooms,
            copy,
            confirmed: HashMap::new(),
            lent: HashMap::new(),
            fresh_since: Moment::now(),
            withheld: 0,
            loaded: false,
            trouble: None,
            told: HashSet::new(),
        };
        serving.restore();
        serving
    }

    /// Serves what the sealed copy holds, as stale until the upstream stands behind it.
    pub fn restore(&mut self) {
        self.fresh_since = Moment::now();
        let restored = self
            .copy
            .as_ref()
            .filter(|_| !self.is_sealed())
            .and_then(|copy| copy.load(&self.source, &self.names, &self.rooms.cache));
        match restored {
            None => {}
            Some(Err(why)) => self.alert("the snapshot", &format!("{why}; it is not used")),
            Some(Ok(restored)) => {
                let (mut entries, max) = (Vec::new(), self.fetching.max_stale);
                for Restored { entry, confirmed } in restored {
                    if self.fresh_since.since(confirmed) <= max {
                        entry.set_freshness(Freshness::Stale);
                        self.confirmed.insert(entry.name.clone(), confirmed);
                        entries.push(Arc::new(entry));
                    }
                }
                self.loaded = !entries.is_empty();
                self.rooms.cache.update(entries, &[]);
            }
        }
        self.tell_state(Moment::now());
    }

    /// Whether the agent is sealed, as it also is from the start after a restart.
    pub fn is_sealed(&self) -> bool {
        self.rooms.cache.is_sealed()
    }

    /// Forgets everything: the agent is sealed.
    pub fn forget(&mut self) {
        self.confirmed.clear();
        self.lent.clear();
        (self.loaded, self.trouble, self.withheld) = (false, None, 0);
        self.tell_state(Moment::now());
    }

    /// What is held.
    pub fn held(&self) -> Held {
        let snapshot = self.rooms.cache.snapshot();
        let versions = self
            .confirmed
            .keys()
            .filter_map(|name| {
                let entry = snapshot.get(name.as_str())?;
                Some((self.names.own(name)?, Arc::clone(entry.current.id())))
            })
            .collect();
        let lent = self.lent.keys().filter_map(|name| self.names.own(name));
        Held {
            versions,
            lent: lent.collect(),
        }
    }

    /// The entry that is served, where it still is.
    pub fn served(&self, name: &Name) -> Option<Arc<Entry>> {
        let snapshot = self.rooms.cache.snapshot();
        let entry = snapshot.get(name.as_str())?;
        (entry.source == self.source && entry.freshness() != Freshness::Withheld)
            .then(|| Arc::clone(entry))
    }

    /// Serves values that came from the upstream; `asked` is the moment before they were asked for, `ends` says
    /// of those that are lent until when.
    pub fn serve(
        &mut self,
        fetched: Vec<(Name, Fetched)>,
        ends: &HashMap<Name, Moment>,
        asked: Moment,
        on_demand: bool,
    ) {
        let mut entries = Vec::new();
        for (name, fetched) in fetched {
            match self.entry(&name, fetched) {
                Ok(entry) => entries.push(entry),
                Err(why) => {
                    self.alert(name.as_str(), &why);
                    continue;
                }
            }
            match ends.get(&name) {
                Some(ends) => drop(self.lent.insert(name, *ends)),
                None => drop(self.confirmed.insert(name, asked)),
            }
        }
        let mut changes = self.rooms.cache.update(entries, &[]);
        self.save_soon(&changes);
        if on_demand || !self.loaded {
            // A secret that nobody was served before has not rotated.
            changes.rotated.retain(|(name, _)| self.replaced(name));
        }
        record_changes(&self.rooms.audit, &changes);
    }

    fn replaced(&self, name: &Name) -> bool {
        let snapshot = self.rooms.cache.snapshot();
        snapshot
            .get(name.as_str())
            .is_some_and(|entry| entry.previous.is_some())
    }

    /// Serves the version before the current one, too.
    pub fn serve_previous(&mut self, name: &Name, fetched: Fetched) -> Result<(), String> {
        let Some(entry) = self.served(name) else {
            return Ok(());
        };
        let previous = self.version(name, fetched)?;
        let fresh = Entry::new(
            name.clone(),
            Arc::clone(&self.source),
            Arc::clone(&entry.current),
            Some(previous),
        );
        fresh.set_freshness(entry.freshness());
        self.rooms.cache.update(vec![Arc::new(fresh)], &[]);
        Ok(())
    }

    fn entry(&self, name: &Name, fetched: Fetched) -> Result<Arc<Entry>, String> {
        let snapshot = self.rooms.cache.snapshot();
        let old = snapshot
            .get(name.as_str())
            .filter(|entry| entry.source == self.source);
        if let Some(old) = old.filter(|old| **old.current.id() == *fetched.version) {
            old.set_freshness(Freshness::Fresh);
            return Ok(Arc::clone(old));
        }
        let previous = old.map(|old| Arc::clone(&old.current));
        let (source, current) = (Arc::clone(&self.source), self.version(name, fetched)?);
        Ok(Arc::new(Entry::new(
            name.clone(),
            source,
            current,
            previous,
        )))
    }

    fn version(&self, name: &Name, fetched: Fetched) -> Result<Arc<Version>, String> {
        if fetched.value.len() > LONGEST {
            let len = fetched.value.len();
            return Err(format!(
                "a value has at most {LONGEST} bytes, this one has {len}"
            ));
        }
        let about = About {
            name: name.as_str(),
            version: &fetched.version,
            updated_at: &fetched.updated_at,
            source: &self.source,
            stale: false,
        };
        Version::load(self.rooms.cache.arena(), &about, fetched.value)
            .map(Arc::new)
            .map_err(|why: LoadError| why.to_string())
    }

    /// Whether the upstream stood behind a value that it was asked for after `moment`.
    pub fn is_confirmed_since(&self, name: &Name, moment: Moment) -> bool {
        self.confirmed.get(name).is_some_and(|at| *at > moment)
    }

    /// The upstream stood behind these when it was asked.
    pub fn confirm(&mut self, names: impl IntoIterator<Item = Name>, asked: Moment) {
        for name in names {
            if let Some(at) = self.confirmed.get_mut(&name) {
                *at = asked;
            }
        }
    }

    /// The upstream said a definite no to these: nothing covers it up.
    pub fn remove(&mut self, names: &[Name]) {
        for name in names {
            self.confirmed.remove(name);
            self.lent.remove(name);
        }
        let changes = self.rooms.cache.update(Vec::new(), names);
        record_changes(&self.rooms.audit, &changes);
        if !changes.removed.is_empty() {
            self.save();
        }
    }

    /// A lease lasts until `ends` now.
    pub fn extend(&mut self, name: &Name, ends: Moment) {
        self.lent.insert(name.clone(), ends);
    }

    /// A round without an outage, begun at `begun`, has ended.
    pub fn up(&mut self, begun: Moment, next: Moment) {
        self.loaded = true;
        self.fresh_since = begun;
        if self.trouble.take().is_some() {
            record(&self.rooms.audit, Event::SourceRecovered, &self.source, &[]);
            tracing::info!(source = %self.source, "the source answers again");
        }
        self.look_at_age(Moment::now(), false);
        self.rooms.states.change(&self.source, |state| {
            state.last_success =
                Some(humantime::format_rfc3339_seconds(SystemTime::now()).to_string());
        });
        self.tell_state(next);
    }

    /// The upstream does not answer: one record for one outage.
    pub fn down(&mut self, why: &str, next: Moment) {
        if self.trouble.is_none() {
            let members = [("why", Json::from(why))];
            record(
                &self.rooms.audit,
                Event::SourceDegraded,
                &self.source,
                &members,
            );
            tracing::warn!(source = %self.source, %why, "the source does not answer; last good values serve on");
        }
        self.trouble = Some(why.to_owned());
        self.look_at_age(Moment::now(), true);
        self.tell_state(next);
    }

    /// Whether there is something to serve.
    pub fn is_loaded(&self) -> bool {
        self.loaded
    }

    /// Whether the upstream does not answer.
    pub fn is_down(&self) -> bool {
        self.trouble.is_some()
    }

    /// Marks what is stale, and withholds what is too old or no longer lent.
    pub fn look_at_age(&mut self, now: Moment, down: bool) {
        let withheld = Cell::new(0);
        self.rooms.cache.set_freshness(&self.source, |entry| {
            let freshness = self.freshness(&entry.name, now, down);
            withheld.set(withheld.get() + usize::from(freshness == Freshness::Withheld));
            freshness
        });
        self.withheld = withheld.get();
        self.rooms.states.change(&self.source, |state| {
            if let Some(upstream) = &mut state.upstream {
                upstream.withheld = withheld.get();
            }
        });
    }

    fn freshness(&self, name: &Name, now: Moment, down: bool) -> Freshness {
        if let Some(ends) = self.lent.get(name) {
            return match (*ends <= now, down) {
                (true, _) => Freshness::Withheld,
                (false, true) => Freshness::Stale,
                (false, false) => Freshness::Fresh,
            };
        }
        match self.confirmed.get(name) {
            Some(at) if !down && *at >= self.fresh_since => Freshness::Fresh,
            Some(at) if now.since(*at) <= self.fetching.max_stale => Freshness::Stale,
            _ => Freshness::Withheld,
        }
    }

    fn tell_state(&self, next: Moment) {
        let secrets = self.confirmed.len() + self.lent.len();
        let oldest = self.confirmed.values().min().copied();
        self.rooms
            .states
            .change(&self.source, |state: &mut SourceState| {
                state.loaded = self.loaded;
                state.trouble.clone_from(&self.trouble);
                state.secrets = secrets;
                state.upstream = Some(UpstreamState {
                    oldest,
                    next: Some(next),
                    withheld: self.withheld,
                });
            });
    }

    /// Tells of all that one round found, one by one as far as it is not too much.
    pub fn alert_all(&mut self, unusable: Vec<(String, String)>) {
        let mut left = AT_ONCE;
        let mut more = false;
        for (what, why) in unusable {
            if left > 0 {
                left -= usize::from(!self.told.contains(&(what.clone(), why.clone())));
                self.alert(&what, &why);
            } else {
                more |= self.is_news(&what, &why);
            }
        }
        if more {
            self.alert(
                "more names",
                "they are not served either, each for a reason like these",
            );
        }
    }

    /// Whether it was not told yet. What was told long ago is forgotten for what is new.
    fn is_news(&mut self, what: &str, why: &str) -> bool {
        if self.told.len() >= TOLD {
            self.told.clear();
        }
        self.told.insert((what.to_owned(), why.to_owned()))
    }

    /// Tells of something that is not served; once for each `what` and `why`.
    pub fn alert(&mut self, what: &str, why: &str) {
        if !self.is_news(what, why) {
            return;
        }
        let source = &self.source;
        // Debug escapes what an upstream chose.
        tracing::warn!(%source, ?what, ?why, "not served");
        let members = [("why", Json::from(format!("{what}: {why}")))];
        record(
            &self.rooms.audit,
            Event::AlertSourceRejected,
            source,
            &members,
        );
    }

    fn save_soon(&mut self, changes: &Changes) {
        if let Some(copy) = &mut self.copy
            && !(changes.rotated.is_empty() && changes.removed.is_empty() && changes.added == 0)
        {
            copy.soon(Moment::now());
        }
    }

    /// When the sealed copy is to be written.
    pub fn save_due(&self) -> Option<Moment> {
        self.copy.as_ref().and_then(CopyPlace::due)
    }

    /// Writes the sealed copy. What is lent is not in it.
    pub fn save(&mut self) {
        let Some(copy) = &mut self.copy else {
            return;
        };
        let snapshot = self.rooms.cache.snapshot();
        let entries = self
            .confirmed
            .iter()
            .filter_map(|(name, at)| Some((snapshot.get(name.as_str())?, *at)));
        let saved = copy.save(entries, self.fetching.max_stale);
        if let Err(why) = saved {
            self.alert("the snapshot", &format!("{why}; it was not written"));
        }
    }
}
