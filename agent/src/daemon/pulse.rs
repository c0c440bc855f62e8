//! What the service manager is told while the daemon serves: that its request loop lives, and in one line
//! how it is.
//!
//! A thread rings, since a timer in the request loop would have the kernel set one up each time the loop
//! waits; but only the loop that accepts answers, so that a stuck one is ended by the watchdog.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Duration;

use tokio::sync::mpsc::{Receiver, channel, error::TrySendError};

use crate::api::Context;
use crate::sources::Asked;
use crate::sys::manager::Manager;

/// How often the line is looked at where there is no watchdog.
const LOOK: Duration = Duration::from_secs(5);

/// What beats.
pub(super) struct Pulse {
    pub manager: Arc<Manager>,
    pub context: Arc<Context>,
    pub keeper: Sender<Asked>,
    /// The line that was told last.
    pub told: String,
}

impl Pulse {
    /// To be called by the loop that accepts, once for each ring.
    pub fn beat(&mut self) {
        let line = status(&self.context);
        let mut words = Vec::new();
        // A restart heals a keeper that ended, too; what it is asked costs a look at each file.
        if self.manager.watchdog().is_some() {
            if self.keeper.send(Asked::Look).is_ok() {
                words.push("WATCHDOG=1".to_owned());
            } else {
                tracing::error!("the keeper of the sources has ended");
            }
        }
        if line != self.told {
            words.push(format!("STATUS={line}"));
            self.told = line;
        }
        if !words.is_empty() {
            self.manager.tell(&words.join("\n"));
        }
    }
}

/// Rings twice within the watchdog's time, where there is a manager to be told anything.
pub(super) fn ring(manager: &Manager) -> io::Result<Receiver<()>> {
    let (ring, rings) = channel(1);
    if !manager.listens() {
        return Ok(rings);
    }
    let pause = manager.watchdog().map_or(LOOK, |within| within / 2);
    let run = move || {
        // A ring that was not answered yet is enough.
        while let Ok(()) | Err(TrySendError::Full(())) = ring.try_send(()) {
            thread::sleep(pause);
        }
    };
    thread::Builder::new().name("pulse".into()).spawn(run)?;
    Ok(rings)
}

/// How the agent is, in one line for `systemctl status`.
pub(super) fn status(context: &Context) -> String {
    let reasons = context.status().reasons;
    let secrets = context.cache.snapshot().len();
    let bots = context.policy.load().bots().len();
    let sources = context.sources.all_by_name();
    let mut line = format!(
        "{}: {secrets} secrets of {} sources for {bots} bots",
        if reasons.is_empty() {
            "Serving"
        } else {
            "Not ready"
        },
        sources.len(),
    );
    let troubled = sources
        .iter()
        .filter(|(_, source)| source.loaded && source.trouble.is_some());
    let troubled = troubled.map(|(name, _)| format!("source {name} is degraded"));
    for trouble in reasons.into_iter().chain(troubled) {
        line.push_str("; ");
        line.push_str(&trouble);
    }
    line
}
