//! The steps of a rotation in the encrypted store: by a random value or key pair, or by a program of the operator's.
//!
//! The store itself says how far a rotation has come: whether a value is pending, and whether it is the current one
//! already. Each step looks there first, so that one that is done twice does no harm.

use keyhatch_protocol::Name;
use nix::unistd::geteuid;
use serde_json::Value as Json;
use tokio::sync::oneshot;
use zeroize::Zeroizing;

use super::Outcome;
use super::handle::{Plan, Rooms};
use super::program;
use super::state::{Running, Step};
use crate::config::{self, Driver};
use crate::exec;
use crate::sources::{Asked, KeeperError};
use crate::store::{Actor, Edit, StoreError, Value, Versions};

/// How a secret stands to the rotation that is under way.
enum Place {
    /// As it began; the pending value is there or is not.
    Begun,
    /// The new value is the current one.
    Ended(String, Option<String>),
    /// Somebody else changed it.
    Overtaken,
    /// It is gone.
    Gone,
}

/// Does one step.
pub async fn step(rooms: &Rooms, plan: &Plan, running: &Running) -> Outcome {
    let done = match (&plan.rotation.driver, running.step) {
        (Driver::Generate(alphabet), Step::Create) => {
            let alphabet = alphabet.clone();
            let make = move || Value::generate_of(&alphabet.characters, alphabet.length);
            keep_pending(rooms, plan, running, make).await
        }
        (Driver::KeyPair, Step::Create) => {
            keep_pending(rooms, plan, running, Value::key_pair).await
        }
        (Driver::Exec(program), Step::Create) => create(rooms, plan, running, program).await,
        (Driver::Exec(program), _) => ask(rooms, plan, running, program).await,
        _ => Ok(Outcome::Next),
    };
    let done = match done {
        Ok(Outcome::Next) if running.step == Step::Finish => finish(rooms, plan, running).await,
        done => done,
    };
    done.unwrap_or_else(Outcome::Failed)
}

/// Drops the version before, whose grace time is over.
pub async fn end_grace(rooms: &Rooms, plan: &Plan, version: String) -> Result<(), String> {
    edit(rooms, plan, move |edit, name| {
        edit.drop_previous(name, &version);
        Ok(())
    })
    .await
}

/// `create` of a program: it is asked for a value, unless one is pending already.
async fn create(
    rooms: &Rooms,
    plan: &Plan,
    running: &Running,
    program: &config::Program,
) -> Result<Outcome, String> {
    let input = match input(rooms, plan, running).await? {
        Ok((input, None)) => input,
        Ok((_, Some(unique))) => return Ok(Outcome::Found(unique)),
        Err(outcome) => return Ok(outcome),
    };
    let answer = run(rooms, program, running.step, &input).await?;
    let value = program::created(&answer)?;
    keep_pending(rooms, plan, running, move || Ok(value)).await
}

/// A step of a program that only has to succeed.
async fn ask(
    rooms: &Rooms,
    plan: &Plan,
    running: &Running,
    program: &config::Program,
) -> Result<Outcome, String> {
    match input(rooms, plan, running).await? {
        Ok((_, None)) => Ok(Outcome::Again),
        Ok((input, Some(_))) => {
            run(rooms, program, running.step, &input).await?;
            Ok(Outcome::Next)
        }
        Err(outcome) => Ok(outcome),
    }
}

async fn run(
    rooms: &Rooms,
    program: &config::Program,
    step: Step,
    input: &[u8],
) -> Result<Zeroizing<Vec<u8>>, String> {
    let program = exec::of_step(program, step.as_str());
    let output = rooms.runner.run(&program, input).await;
    output
        .map(|output| output.stdout)
        .map_err(|why| why.to_string())
}

/// What a program is given, with what ends the version of the pending value, where there is one; or what follows at
/// once from how the secret stands.
async fn input(
    rooms: &Rooms,
    plan: &Plan,
    running: &Running,
) -> Result<Result<(Zeroizing<Vec<u8>>, Option<u64>), Outcome>, String> {
    let (secret, running) = (plan.rotation.secret.clone(), running.clone());
    edit(rooms, plan, move |edit, name| {
        let place = place(edit.versions(name).as_ref(), &running);
        Ok(match (place, edit.versions(name)) {
            (Place::Begun, Some(versions)) => {
                let id = &running.request_id;
                Ok((
                    program::input(secret.as_str(), id, &versions),
                    unique(&versions),
                ))
            }
            (place, _) => Err(ended(edit, name, place)),
        })
    })
    .await
}

/// Keeps what `make` makes as the pending value, unless there is one already.
async fn keep_pending(
    rooms: &Rooms,
    plan: &Plan,
    running: &Running,
    make: impl FnOnce() -> Result<Value, StoreError> + Send + 'static,
) -> Result<Outcome, String> {
    let running = running.clone();
    edit(rooms, plan, move |edit, name| {
        let place = place(edit.versions(name).as_ref(), &running);
        let Some(versions) = edit
            .versions(name)
            .filter(|_| matches!(place, Place::Begun))
        else {
            return Ok(ended(edit, name, place));
        };
        if let Some(unique) = unique(&versions) {
            return Ok(Outcome::Found(unique));
        }
        let value = make()?;
        if *versions.current.value == value {
            return Ok(Outcome::Failed(
                "the new value is the one that is current already".into(),
            ));
        }
        edit.set_pending(name, running.unique, value)?;
        Ok(Outcome::Next)
    })
    .await
}

/// The pending value becomes the current one.
async fn finish(rooms: &Rooms, plan: &Plan, running: &Running) -> Result<Outcome, String> {
    let running = running.clone();
    edit(rooms, plan, move |edit, name| {
        let place = place(edit.versions(name).as_ref(), &running);
        if !matches!(place, Place::Begun) {
            return Ok(ended(edit, name, place));
        }
        if !edit.promote(name) {
            return Ok(Outcome::Again);
        }
        let place = self::place(edit.versions(name).as_ref(), &running);
        Ok(ended(edit, name, place))
    })
    .await
}

fn place(versions: Option<&Versions<'_>>, running: &Running) -> Place {
    let Some(versions) = versions else {
        return Place::Gone;
    };
    if versions.current.id == running.base {
        Place::Begun
    } else if unique_of(versions.current.id) == Some(running.unique) {
        let previous = versions
            .previous
            .as_ref()
            .map(|version| version.id.to_owned());
        Place::Ended(versions.current.id.to_owned(), previous)
    } else {
        Place::Overtaken
    }
}

/// What follows where there is no step left to do.
fn ended(edit: &mut Edit, name: &Name, place: Place) -> Outcome {
    match place {
        Place::Ended(version, previous) => Outcome::Done(version, previous),
        Place::Begun => Outcome::Again,
        Place::Overtaken => {
            edit.drop_pending(name);
            Outcome::GivenUp("the secret was changed meanwhile".into())
        }
        Place::Gone => Outcome::GivenUp("the secret was removed meanwhile".into()),
    }
}

fn unique(versions: &Versions<'_>) -> Option<u64> {
    unique_of(versions.pending.as_ref()?.id)
}

/// What ends a version of the store.
fn unique_of(version: &str) -> Option<u64> {
    u64::from_str_radix(version.split_once('-')?.1, 16).ok()
}

/// Changes the store that has the secret, or only looks into it; `act` is given the store's own name of it.
async fn edit<T: Send + 'static>(
    rooms: &Rooms,
    plan: &Plan,
    act: impl FnOnce(&mut Edit, &Name) -> Result<T, KeeperError> + Send + 'static,
) -> Result<T, String> {
    let secret = plan.rotation.secret.clone();
    let owner = rooms.owners.of(secret.as_str()).map(ToString::to_string);
    let (reply, done) = oneshot::channel();
    let (give, mut given) = oneshot::channel();
    let edit = move |edit: &mut Edit, source: &crate::sources::FileSource| {
        let own = source.names.own(&secret);
        let own =
            own.ok_or_else(|| KeeperError::Asked(format!("{secret}: is of another source")))?;
        // Whoever asked may have gone; the change is made all the same.
        let _ = give.send(act(edit, &own)?);
        Ok(Json::Null)
    };
    let asked = Asked::Edit {
        source: owner,
        edit: Box::new(edit),
        by: Actor {
            uid: geteuid().as_raw(),
            login_uid: None,
        },
        reply,
    };
    // Where the keeper has ended, no reply comes.
    let _ = rooms.keeper.send(asked);
    match done.await {
        Ok(Ok(_)) => given
            .try_recv()
            .map_err(|_| KeeperError::NotServing.to_string()),
        Ok(Err(why)) => Err(why.to_string()),
        Err(_) => Err(KeeperError::NotServing.to_string()),
    }
}
