//! What every connection of the bots' socket shares.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use keyhatch_protocol::Name;

use super::dropin::Numbers;
use super::id::RequestIds;
use super::limits::Limits;
use crate::audit::Log;
use crate::cache::Cache;
use crate::config::{Dropin, Stamps};
use crate::exec::Runner;
use crate::identity::accounts::Lookup;
use crate::identity::{Images, Kernel};
use crate::policy::{Policy, Refusal};
use crate::rotation::Rotations;
use crate::routes::Routes;
use crate::sources::engine::{Supply, Upstreams};
use crate::sources::{Owners, States};

/// The rooms that a request passes through.
pub struct Context {
    /// The policy that decides. A reload swaps it.
    pub policy: ArcSwap<Policy>,
    /// How names of the drop-in surfaces map to ours. A reload swaps it.
    pub dropin: ArcSwap<Dropin>,
    /// The numbers of versions, for surfaces that count them.
    pub numbers: Numbers,
    /// The values.
    pub cache: Arc<Cache>,
    /// How the sources are.
    pub sources: Arc<States>,
    /// Whose a name is.
    pub owners: Owners,
    /// Those of them that are asked over the network.
    pub upstreams: Arc<Upstreams>,
    /// Rotations on schedule.
    pub rotations: Rotations,
    /// The record of truth.
    pub audit: Arc<Log>,
    /// Upstreams that secrets are used at. A reload swaps them together with the policy.
    pub routes: ArcSwap<Routes>,
    /// Bounds for each uid.
    pub limits: Arc<Limits>,
    /// Runs the programs that the configuration names.
    pub runner: Runner,
    /// Names to ids.
    pub lookup: Lookup,
    /// Programs that bots are selected by.
    pub images: Images,
    /// What this kernel tells.
    pub kernel: Kernel,
    /// Hands out request ids.
    pub ids: RequestIds,
    /// How well the agent is.
    pub health: Health,
    /// The files of the running configuration, to tell when they change on disk.
    pub config_files: ArcSwap<Stamps>,
    /// Counters of requests.
    pub counts: Counts,
}

impl Context {
    /// Makes `policy` the one that decides, and has all who wait judged again.
    pub fn set_policy(&self, policy: Arc<Policy>) {
        self.policy.store(policy);
        self.cache.wake();
    }
}

impl Context {
    /// Why a name that may be read has no value to serve; `supply` is what its upstream said.
    pub fn why_missing(&self, name: &Name, supply: Option<Supply>) -> Refusal {
        match supply {
            Some(Supply::Unavailable) => Refusal::UpstreamUnavailable,
            Some(Supply::Limited) => Refusal::Limited,
            Some(Supply::Served | Supply::Absent) => Refusal::NotFound,
            None => {
                let owner = self.owners.of(name.as_str());
                if owner.is_some_and(|source| self.sources.is_unloaded(source)) {
                    Refusal::UpstreamUnavailable
                } else {
                    Refusal::NotFound
                }
            }
        }
    }
}

/// What keeps the agent from being ready.
pub struct Status {
    /// One sentence each; empty where it is ready.
    pub reasons: Vec<String>,
}

impl Context {
    /// How the agent is now. Says which source is in trouble, never why: that is for operators.
    pub fn status(&self) -> Status {
        let mut reasons = Vec::new();
        if self.cache.is_sealed() {
            reasons.push("sealed".to_owned());
        }
        if self.health.draining.load(Ordering::Relaxed) {
            reasons.push("stopping".to_owned());
        }
        if self.audit.available().is_err() {
            reasons.push("no audit record can be kept".to_owned());
        }
        for (name, source) in self.sources.all_by_name() {
            if !source.loaded && !self.cache.is_sealed() {
                reasons.push(format!("source {name} has not loaded"));
            }
        }
        Status { reasons }
    }
}

/// How many requests ended how, since start.
#[derive(Default)]
pub struct Counts {
    /// Allowed decisions.
    pub allowed: AtomicU64,
    /// Denied decisions.
    pub denied: AtomicU64,
    /// Requests over a limit.
    pub limited: AtomicU64,
    /// Requests that did not parse.
    pub bad: AtomicU64,
}

/// How well the agent is, its sources aside.
#[derive(Default)]
pub struct Health {
    /// Told to go: no new work.
    pub draining: AtomicBool,
    /// Promises that this host does not let the agent keep.
    missing: Mutex<Vec<String>>,
}

impl Health {
    /// Sets what is missing on this host.
    pub fn set_missing(&self, missing: Vec<String>) {
        *self.missing.lock().unwrap_or_else(PoisonError::into_inner) = missing;
    }

    /// What is missing on this host.
    pub fn missing(&self) -> Vec<String> {
        self.missing
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}
