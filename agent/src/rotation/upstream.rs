//! The steps of a rotation that an upstream does: it is told to, then looked at until the new version is there.
//!
//! Several hosts may read the same secret. Whoever comes first rotates it; the others see the new version and are done.

use std::time::Duration;

use super::Outcome;
use super::handle::{Plan, Rooms};
use super::state::{Running, Step};
use crate::config::Driver;
use crate::sources::engine::Supply;
use crate::sources::upstream::Turn;

/// How long a new version may take to show after it was asked for.
const PATIENCE: Duration = Duration::from_secs(60);
/// An upstream is asked once a second at most.
const LOOK: Duration = Duration::from_millis(1100);

/// Does one step.
pub async fn step(rooms: &Rooms, plan: &Plan, running: &Running) -> Outcome {
    match running.step {
        Step::Create => match look(rooms, plan, running).await {
            Ok(Some(done)) => done,
            Ok(None) => Outcome::Next,
            Err(why) => Outcome::Failed(why),
        },
        Step::Set => match rooms
            .upstreams
            .rotate(&plan.rotation.secret, turn(plan, running))
            .await
        {
            Ok(()) => Outcome::Next,
            Err(why) => Outcome::Failed(why),
        },
        Step::Test | Step::Finish => wait(rooms, plan, running).await,
    }
}

/// Waits until the new version is served.
async fn wait(rooms: &Rooms, plan: &Plan, running: &Running) -> Outcome {
    let end = tokio::time::Instant::now() + PATIENCE;
    loop {
        match look(rooms, plan, running).await {
            Ok(Some(done)) => return done,
            Err(why) if tokio::time::Instant::now() > end => return Outcome::Failed(why),
            Ok(None) if tokio::time::Instant::now() > end => {
                return Outcome::Failed(unfinished(plan));
            }
            _ => tokio::time::sleep(LOOK).await,
        }
    }
}

fn unfinished(plan: &Plan) -> String {
    let seconds = PATIENCE.as_secs();
    match plan.rotation.driver {
        Driver::Aws => format!(
            "AWS was asked, and the new version is not AWSCURRENT after {seconds} s: its function has not finished, or \
             failed; its log in CloudWatch says which"
        ),
        _ => format!("the new version does not show after {seconds} s"),
    }
}

/// Whether the secret has another version than when the rotation began.
async fn look(rooms: &Rooms, plan: &Plan, running: &Running) -> Result<Option<Outcome>, String> {
    let name = &plan.rotation.secret;
    if let Some(pending) = rooms.upstreams.ask_again(name) {
        match pending.wait().await {
            Supply::Absent => return Ok(Some(Outcome::GivenUp("the secret is gone".into()))),
            Supply::Served => {}
            Supply::Unavailable | Supply::Limited => {
                return Err("the upstream does not answer".into());
            }
        }
    }
    let snapshot = rooms.cache.snapshot();
    let entry = snapshot.get(name.as_str());
    let entry = entry.ok_or("the secret is not served")?;
    let version = entry.current.id();
    Ok((**version != *running.base).then(|| {
        let previous = Some(running.base.clone());
        Outcome::Done(version.to_string(), previous)
    }))
}

fn turn(plan: &Plan, running: &Running) -> Turn {
    let vault = match &plan.rotation.driver {
        Driver::Vault(vault) => Some(vault),
        _ => None,
    };
    Turn {
        base: running.base.clone(),
        // The same again after a kill; AWS's tokens have at least 32 characters.
        token: format!("keyhatch-rotation-{:016x}", running.unique),
        field: vault.and_then(|vault| vault.field.clone()),
        characters: vault.map_or_else(Vec::new, |vault| vault.alphabet.characters.clone()),
        length: vault.map_or(0, |vault| vault.alphabet.length),
        path: vault.and_then(|vault| vault.path.clone()),
    }
}
