//! What others hold of the rotations: the way to ask for one, and how all of them stand.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc as std_mpsc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use keyhatch_protocol::Name;
use tokio::sync::{mpsc, oneshot};

use super::Status;
use super::schedule::Timing;
use crate::audit::Log;
use crate::cache::Cache;
use crate::config::Rotation;
use crate::exec::Runner;
use crate::sources::engine::Upstreams;
use crate::sources::{Asked as KeeperAsked, Owners};

/// What rotations need of the other rooms.
pub struct Rooms {
    /// What is served.
    pub cache: Arc<Cache>,
    /// The record of truth.
    pub audit: Arc<Log>,
    /// The only writer of stores.
    pub keeper: std_mpsc::Sender<KeeperAsked>,
    /// Whose a name is.
    pub owners: Owners,
    /// Sources that are asked over the network.
    pub upstreams: Arc<Upstreams>,
    /// Runs the operator's programs.
    pub runner: Runner,
    /// Makes the id of a rotation that nobody asked for.
    pub ids: Box<dyn Fn() -> String + Send + Sync>,
}

/// One rotation, as this host does it.
#[derive(Clone)]
pub struct Plan {
    /// As configured.
    pub rotation: Rotation,
    /// When.
    pub timing: Timing,
    /// Whether this host does it at all.
    pub here: bool,
}

impl Plan {
    /// Whether a unit is told of new versions.
    pub fn tells(&self) -> bool {
        self.rotation.on_rotated.is_some()
    }
}

/// What came of asking for a rotation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Started {
    /// It runs; the new version, where it is known by now.
    Running(Option<String>),
    /// One is running already.
    Already,
    /// The version before is still needed, for so long.
    InGrace(Duration),
    /// None is configured for this secret.
    NotConfigured,
    /// Another host does it.
    Elsewhere(String),
    /// The agent cannot begin one now: it is sealed, stopping, or cannot remember it.
    Unavailable,
}

pub(super) enum Asked {
    Rotate(Name, String, oneshot::Sender<Started>),
    Plans(Vec<Rotation>),
    Stop(oneshot::Sender<()>),
}

/// The way to the rotations, for those who ask.
pub struct Rotations {
    asks: mpsc::UnboundedSender<Asked>,
    board: Arc<Board>,
}

/// What others see without asking.
#[derive(Default)]
pub(super) struct Board {
    all: Mutex<Vec<Status>>,
    pub(super) done: AtomicU64,
    pub(super) failed: AtomicU64,
}

impl Rotations {
    pub(super) fn new(asks: mpsc::UnboundedSender<Asked>, board: Arc<Board>) -> Self {
        Self { asks, board }
    }

    /// Asks for a rotation, with the id of the request.
    pub async fn start(&self, name: &Name, request_id: &str) -> Started {
        let (reply, answer) = oneshot::channel();
        // Where the loop has ended, the answer never comes.
        let _ = self
            .asks
            .send(Asked::Rotate(name.clone(), request_id.to_owned(), reply));
        answer.await.unwrap_or(Started::Unavailable)
    }

    /// Takes the rotations of a configuration that was loaded anew.
    pub fn set(&self, rotations: &[Rotation]) {
        let _ = self.asks.send(Asked::Plans(rotations.to_vec()));
    }

    /// Remembers how far all have come, and ends.
    pub async fn stop(&self) {
        let (reply, done) = oneshot::channel();
        let _ = self.asks.send(Asked::Stop(reply));
        let _ = done.await;
    }

    /// Whether one is configured for this secret.
    #[must_use]
    pub fn has(&self, name: &Name) -> bool {
        let all = self.board.all();
        all.iter().any(|status| status.secret == name.as_str())
    }

    /// How all stand.
    #[must_use]
    pub fn all(&self) -> Vec<Status> {
        self.board.all().clone()
    }

    /// How many have ended well, and how often a step has failed, since start.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (count(&self.board.done), count(&self.board.failed))
    }
}

impl Board {
    pub(super) fn all(&self) -> MutexGuard<'_, Vec<Status>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
