//! The rotations of the running daemon: one loop that begins what is due, does its steps one after the other, and
//! remembers how far each has come before it goes on.

mod telling;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use keyhatch_protocol::Name;
use tokio::sync::mpsc;
use tokio::task::{self, JoinSet};

use super::handle::{Asked, Board, Plan, Rooms, Rotations, Started};
use super::schedule::{self, Timing, Todo};
use super::state::{Last, Memory, Running, State, Step};
use super::{Outcome, local, records, status, upstream};
use crate::cache::Cache;
use crate::config::Rotation;
use crate::sources::engine::{Wanted, saved_now};
use crate::store::snapshot::Saved;
use telling::News;

/// How often the clocks are looked at: a timer of the runtime stands still while the host sleeps, and knows nothing of
/// a clock that was set.
const LOOK: Duration = Duration::from_secs(30);

/// The pause after what the host does not let happen: no record, no room on the disk, a sealed agent.
const PAUSE: Duration = Duration::from_secs(1);

/// How often what has passed is remembered even where nothing happens.
const REMEMBER: Duration = Duration::from_secs(3600);

/// The loop, before it runs.
pub struct Service {
    rooms: Arc<Rooms>,
    inbox: mpsc::UnboundedReceiver<Asked>,
    board: Arc<Board>,
    memory: Arc<Memory>,
    plans: BTreeMap<Name, Plan>,
    states: BTreeMap<Name, State>,
    tasks: JoinSet<Outcome>,
    /// Which secret each task is about.
    busy: HashMap<task::Id, Name>,
    /// The tasks that tell a unit.
    telling: HashMap<task::Id, News>,
    /// Since when there has been something to tell each unit.
    untold_since: HashMap<String, Instant>,
    remembered: Instant,
    /// What came last is not on disk.
    unsaved: bool,
}

impl Service {
    /// The rotations of a configuration, as they stood when the daemon ended.
    ///
    /// # Errors
    /// What is remembered cannot be read.
    pub fn new(
        rotations: &[Rotation],
        state_dir: &Path,
        rooms: Rooms,
    ) -> Result<(Rotations, Self), String> {
        let memory = Memory::new(state_dir);
        let states = memory.load()?;
        let (asks, inbox) = mpsc::unbounded_channel();
        let board = Arc::<Board>::default();
        let mut service = Self {
            rooms: Arc::new(rooms),
            inbox,
            board: Arc::clone(&board),
            memory: Arc::new(memory),
            plans: BTreeMap::new(),
            states,
            tasks: JoinSet::new(),
            busy: HashMap::new(),
            telling: HashMap::new(),
            untold_since: HashMap::new(),
            remembered: Instant::now(),
            unsaved: false,
        };
        service.set_plans(rotations);
        service.publish();
        Ok((Rotations::new(asks, board), service))
    }

    /// Runs until it is told to stop.
    pub async fn run(mut self) {
        if !self.states.is_empty() {
            // Told or not: the times of the boot before count on from here.
            self.save().await;
        }
        let mut swaps = self.rooms.cache.subscribe();
        loop {
            swaps.mark_unchanged();
            let wait = self.look().await;
            self.publish();
            tokio::select! {
                asked = self.inbox.recv() => match asked {
                    Some(Asked::Rotate(name, request_id, reply)) => {
                        let started = self.asked(&name, request_id).await;
                        let _ = reply.send(started);
                    }
                    Some(Asked::Plans(rotations)) => self.set_plans(&rotations),
                    Some(Asked::Stop(reply)) => {
                        if !self.states.is_empty() {
                            self.save().await;
                        }
                        let _ = reply.send(());
                        return;
                    }
                    None => return,
                },
                Some(ended) = self.tasks.join_next_with_id(), if !self.tasks.is_empty() => {
                    let (task, outcome) = ended.unwrap_or_else(|error| {
                        (error.id(), Outcome::Failed("a bug ended it; the agent's log says where".into()))
                    });
                    if let Some(name) = self.busy.remove(&task) {
                        self.ended(&name, outcome).await;
                    } else if let Some(news) = self.telling.remove(&task) {
                        self.told(news, outcome).await;
                    }
                }
                // A unit is told of what others change, too.
                _ = swaps.changed(), if self.plans.values().any(Plan::tells) => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    fn set_plans(&mut self, rotations: &[Rotation]) {
        let own = schedule::own_name();
        let host = schedule::host_seed();
        self.plans = rotations
            .iter()
            .map(|rotation| {
                let plan = Plan {
                    timing: Timing::of(rotation, &host),
                    here: schedule::is_here(rotation.host.as_deref(), &own),
                    rotation: rotation.clone(),
                };
                (rotation.secret.clone(), plan)
            })
            .collect();
        self.warn_of_bus();
    }

    /// Begins and goes on with what can be; answers when to look again.
    async fn look(&mut self) -> Duration {
        // Nothing is begun on what a kill would forget.
        if self.rooms.cache.is_sealed() || (self.unsaved && !self.save().await) {
            return PAUSE;
        }
        let plans: Vec<Plan> = self.plans.values().cloned().collect();
        let mut wait = self.tell(&plans, LOOK);
        for plan in plans {
            if !plan.here || self.is_busy(&plan.rotation.secret) {
                continue;
            }
            wait = wait.min(self.look_at(&plan).await);
            if self.unsaved {
                return wait.min(PAUSE);
            }
        }
        if self.remembered.elapsed() > REMEMBER && !self.states.is_empty() {
            self.save().await;
        }
        wait
    }

    /// Takes in which version is served, and what the clocks show; whether one is.
    fn see(&mut self, plan: &Plan, now: &Saved) -> bool {
        let name = &plan.rotation.secret;
        let Some((version, age)) = current(&self.rooms.cache, name, now) else {
            return false;
        };
        let state = self.states.entry(name.clone()).or_default();
        let before = state.clone();
        plan.timing.look(state, &version, age, now);
        // A moment that nobody remembers is missed by a daemon that was killed before it.
        self.unsaved |= *state != before;
        true
    }

    async fn look_at(&mut self, plan: &Plan) -> Duration {
        let (name, now) = (&plan.rotation.secret, saved_now());
        let found = self.see(plan, &now);
        let state = self.states.entry(name.clone()).or_default();
        if self.unsaved {
            return Duration::ZERO;
        }
        if !found && state.running.is_none() {
            // There is nothing to rotate yet. An upstream may have it: what nobody read is not held.
            drop(self.rooms.upstreams.ask(name, Wanted::Current, None));
            return LOOK / 6;
        }
        match plan.timing.todo(state, &now) {
            Todo::Wait(wait) => wait,
            // Another host, or the upstream itself, came first.
            Todo::Begin if !plan.rotation.driver.is_local() && plan.timing.is_done(state, &now) => {
                plan.timing.pass(state, &now);
                Duration::ZERO
            }
            Todo::Begin => {
                let id = (self.rooms.ids)();
                if records::start(&self.rooms.audit, plan, &id, Step::Create, 0)
                    && self.begin(plan, id).await.is_some()
                {
                    return Duration::ZERO;
                }
                PAUSE
            }
            Todo::Go => {
                let Some(running) = state.running.clone() else {
                    return PAUSE;
                };
                if running.failed.is_some()
                    && !records::start(
                        &self.rooms.audit,
                        plan,
                        &running.request_id,
                        running.step,
                        running.failures,
                    )
                {
                    return PAUSE;
                }
                self.go(plan, running);
                LOOK
            }
            Todo::EndGrace => {
                self.end_grace(plan);
                LOOK
            }
        }
    }

    /// Answers who asks for a rotation.
    async fn asked(&mut self, name: &Name, request_id: String) -> Started {
        let Some(plan) = self.plans.get(name).cloned() else {
            return Started::NotConfigured;
        };
        if !plan.here {
            return Started::Elsewhere(plan.rotation.host.unwrap_or_default());
        }
        let now = saved_now();
        if !self.see(&plan, &now) || self.rooms.cache.is_sealed() {
            return Started::Unavailable;
        }
        let busy = self.is_busy(name);
        let state = self.states.entry(name.clone()).or_default();
        if let Some(running) = &mut state.running {
            if busy || running.failed.is_none() {
                return Started::Already;
            }
            // It failed and waits: it is tried again now.
            running.failed = None;
            return Started::Running(next_version(&plan, running));
        }
        if let Some(left) = self.grace_left(&plan, &now) {
            return Started::InGrace(left);
        }
        match self.begin(&plan, request_id).await {
            Some(running) => Started::Running(next_version(&plan, &running)),
            None => Started::Unavailable,
        }
    }

    /// What is left of a grace time that still protects somebody: the version before is there.
    fn grace_left(&self, plan: &Plan, now: &Saved) -> Option<Duration> {
        let name = &plan.rotation.secret;
        let state = self.states.get(name)?;
        let left = plan.timing.grace_left(state, now)?;
        let snapshot = self.rooms.cache.snapshot();
        let previous = snapshot.get(name.as_str())?.previous.as_ref();
        let grace = state.grace.as_ref()?;
        let needed = previous.is_some_and(|previous| **previous.id() == *grace.previous);
        (needed && !left.is_zero()).then_some(left)
    }

    /// Begins a rotation: it is remembered before anything is done.
    async fn begin(&mut self, plan: &Plan, request_id: String) -> Option<Running> {
        let (name, now) = (&plan.rotation.secret, saved_now());
        let state = self.states.entry(name.clone()).or_default();
        let before = state.clone();
        let unique = getrandom::u64().ok()?;
        plan.timing.begin(state, unique, request_id, time(), &now);
        state.grace = None;
        let running = state.running.clone();
        if self.save().await {
            return running;
        }
        self.states.insert(name.clone(), before);
        None
    }

    /// Does the next step, beside the loop.
    fn go(&mut self, plan: &Plan, running: Running) {
        let name = plan.rotation.secret.clone();
        if let Some(running) = self
            .states
            .get_mut(&name)
            .and_then(|state| state.running.as_mut())
        {
            running.failed = None;
        }
        let (rooms, plan) = (Arc::clone(&self.rooms), plan.clone());
        self.beside(name, async move {
            if plan.rotation.driver.is_local() {
                local::step(&rooms, &plan, &running).await
            } else {
                upstream::step(&rooms, &plan, &running).await
            }
        });
    }

    fn end_grace(&mut self, plan: &Plan) {
        let name = plan.rotation.secret.clone();
        let grace = self.states.get(&name).and_then(|state| state.grace.clone());
        let Some(grace) = grace else { return };
        let (rooms, plan) = (Arc::clone(&self.rooms), plan.clone());
        self.beside(name, async move {
            if plan.rotation.driver.is_local() {
                while let Err(why) = local::end_grace(&rooms, &plan, grace.previous.clone()).await {
                    tracing::warn!(secret = %plan.rotation.secret, %why, "the previous version is not dropped yet");
                    tokio::time::sleep(LOOK).await;
                }
            }
            Outcome::GraceOver
        });
    }

    /// Does `work` for the secret beside the loop. A seal ends it, since it holds values.
    fn beside(&mut self, name: Name, work: impl Future<Output = Outcome> + Send + 'static) {
        let cache = Arc::clone(&self.rooms.cache);
        let mut swaps = cache.subscribe();
        let task = self.tasks.spawn(async move {
            tokio::select! {
                biased;
                _ = swaps.wait_for(|_| cache.is_sealed()) => Outcome::Sealed,
                outcome = work => outcome,
            }
        });
        self.busy.insert(task.id(), name);
    }

    fn is_busy(&self, name: &Name) -> bool {
        self.busy.values().any(|busy| busy == name)
    }

    /// Takes in what came of a step.
    async fn ended(&mut self, name: &Name, outcome: Outcome) {
        let Some(plan) = self.plans.get(name).cloned() else {
            return;
        };
        let now = saved_now();
        let state = self.states.entry(name.clone()).or_default();
        let Some(mut running) = state.running.take() else {
            if matches!(outcome, Outcome::GraceOver) {
                state.grace = None;
                self.save().await;
            }
            return;
        };
        let step = running.step;
        match outcome {
            Outcome::Next => running.step = step.next(),
            Outcome::Found(unique) => (running.unique, running.step) = (unique, Step::Set),
            Outcome::Again | Outcome::GraceOver => running.step = Step::Create,
            Outcome::Sealed => {}
            Outcome::Failed(why) => {
                running.failed(why.clone(), &now);
                let again = plan.timing.pause_left(&running, &now);
                state.running = Some(running.clone());
                self.board.failed.fetch_add(1, Ordering::Relaxed);
                records::failed(&self.rooms.audit, &plan, &running, step, &why, Some(again));
                self.save().await;
                return;
            }
            Outcome::GivenUp(why) => {
                state.last = Some(Last {
                    at: time(),
                    version: None,
                    why: Some(why.clone()),
                });
                records::failed(&self.rooms.audit, &plan, &running, step, &why, None);
                self.save().await;
                return;
            }
            Outcome::Done(version, previous) => {
                plan.timing.done(state, &version, previous, &now);
                state.last = Some(Last {
                    at: time(),
                    version: Some(version),
                    why: None,
                });
                self.board.done.fetch_add(1, Ordering::Relaxed);
                self.save().await;
                return;
            }
        }
        state.running = Some(running);
        self.save().await;
    }

    /// Remembers how far all have come; whether it is on disk.
    async fn save(&mut self) -> bool {
        let now = saved_now();
        self.states.values_mut().for_each(|state| state.keep(&now));
        self.remembered = Instant::now();
        let (memory, states) = (Arc::clone(&self.memory), self.states.clone());
        let saved = task::spawn_blocking(move || memory.save(&states)).await;
        self.unsaved = !matches!(saved, Ok(Ok(())));
        match saved {
            Ok(Ok(())) => true,
            Ok(Err(why)) => {
                let path = self.memory.path().display();
                tracing::error!(%path, %why, "how far the rotations have come cannot be remembered");
                false
            }
            Err(_) => false,
        }
    }

    fn publish(&self) {
        let now = saved_now();
        let none = State::default();
        let stand = |(name, plan): (&Name, &Plan)| {
            status::of(plan, self.states.get(name).unwrap_or(&none), &now)
        };
        *self.board.all() = self.plans.iter().map(stand).collect();
    }
}

/// The version that is served of a secret, and how old its value is by the wall clock.
fn current(cache: &Cache, name: &Name, now: &Saved) -> Option<(String, Duration)> {
    let snapshot = cache.snapshot();
    let version = &snapshot.get(name.as_str())?.current;
    let set = humantime::parse_rfc3339(version.updated_at()).ok();
    let set = set.and_then(|set| set.duration_since(SystemTime::UNIX_EPOCH).ok());
    let age = set.map(|set| Duration::from_millis(now.wall).saturating_sub(set));
    Some((version.id().to_string(), age.unwrap_or_default()))
}

/// The version that a rotation in a store will bring.
fn next_version(plan: &Plan, running: &Running) -> Option<String> {
    let counter: u64 = running.base.split_once('-')?.0.parse().ok()?;
    let counter = counter.checked_add(1)?;
    plan.rotation
        .driver
        .is_local()
        .then(|| format!("{counter}-{:016x}", running.unique))
}

fn time() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now().max(SystemTime::UNIX_EPOCH)).to_string()
}
