//! A new value for a secret: a KV version 2 secret is written where nobody else has meanwhile, and what the server
//! makes itself it is told to make anew.

use std::sync::Arc;

use hyper::StatusCode;
use keyhatch_protocol::Name;
use serde::Serialize;
use serde_json::{Map, Value as Json};
use zeroize::Zeroizing;

use super::Inner;
use super::answer::{self, Versioned};
use super::kv::{answered, no, not_a_value};
use super::names::Place;
use super::server::{Ask, Reply};
use crate::http::Bound;
use crate::sources::upstream::{Trouble, Turn};
use crate::store::Value;

/// The answer to a write has no value in it.
const LARGEST: usize = 64 * 1024;

/// What Vault says where somebody else wrote first.
const OVERTAKEN: &[u8] = b"check-and-set";

#[derive(Serialize)]
struct Write<'a> {
    options: Options,
    data: &'a Map<String, Json>,
}

#[derive(Serialize)]
struct Options {
    cas: u64,
}

impl Inner {
    pub(super) async fn rotate(&self, name: &Name, turn: &Turn) -> Result<(), Trouble> {
        if let Some(path) = &turn.path {
            return self.tell(path).await;
        }
        match self.names.place(name.as_str()) {
            Some(Place::Kv(mount, path)) => self.write(mount, path, turn).await,
            Some(Place::Leased(path)) => match path.split_once("/static-creds/") {
                Some((engine, role)) => self.tell(&format!("{engine}/rotate-role/{role}")).await,
                None => Err(Trouble::unusable(format!(
                    "{path} lends fresh credentials by itself; give the driver the `path` that rotates"
                ))),
            },
            None => Err(Trouble::unusable(
                "no mount of the configuration has this name",
            )),
        }
    }

    /// Has the server rotate what is behind `path`.
    async fn tell(&self, path: &str) -> Result<(), Trouble> {
        let ask = Ask::post(path, Zeroizing::new(b"{}".to_vec()), Bound::Plain(LARGEST));
        let (reply, _) = self.session.ask(&ask, self.deadline()).await?;
        done(path, &reply)
    }

    async fn write(&self, mount: usize, path: &str, turn: &Turn) -> Result<(), Trouble> {
        let known = self.mount(mount).await?;
        if !known.versioned {
            let why =
                "KV version 1 cannot write only where nobody else did; use a mount of version 2";
            return Err(Trouble::unusable(why));
        }
        let reply = self.read_kv(known, mount, path, "").await?;
        if no(&reply)?.is_some() {
            return Err(Trouble::unusable("it is gone, or may not be read"));
        }
        let read: Versioned<'_> = answer::data(&reply.body).ok_or_else(not_a_value)?;
        let (made, number) = (read.metadata.created_time, read.metadata.version);
        // Somebody has rotated it since it was looked at: another host, or this one before it was killed.
        if answer::version(number, made).as_deref() != Some(&turn.base) {
            return Ok(());
        }
        let data = read.data.ok_or_else(not_a_value)?;
        let mut data: Map<String, Json> =
            serde_json::from_str(data.get()).map_err(|_| not_a_value())?;
        set_field(&mut data, turn)?;
        let write = Write {
            options: Options { cas: number },
            data: &data,
        };
        let body = Zeroizing::new(serde_json::to_vec(&write).map_err(|_| not_a_value())?);
        let path = format!("{}/data/{path}", self.names.mount(mount));
        let ask = Ask::post(&path, body, Bound::Secret(Arc::clone(&self.arena), LARGEST));
        let (reply, _) = self.session.ask(&ask, self.deadline()).await?;
        let overtaken = reply.status == StatusCode::BAD_REQUEST
            && reply
                .body
                .windows(OVERTAKEN.len())
                .any(|part| part == OVERTAKEN);
        if overtaken {
            Ok(())
        } else {
            done(&path, &reply)
        }
    }
}

/// Gives the field that the driver names, or the only one, a random value.
fn set_field(data: &mut Map<String, Json>, turn: &Turn) -> Result<(), Trouble> {
    let only = || match data.len() {
        1 => data.keys().next().cloned(),
        _ => None,
    };
    let field = turn.field.clone().or_else(only).ok_or_else(|| {
        Trouble::unusable(
            "the secret has not exactly one field; name one in the driver, field = \"password\"",
        )
    })?;
    let value = data.get_mut(&field).filter(|value| value.is_string());
    let value = value
        .ok_or_else(|| Trouble::unusable(format!("the secret has no text field {field:?}")))?;
    let fresh = Value::generate_of(&turn.characters, turn.length);
    let fresh = fresh.map_err(|why| Trouble::unusable(why.to_string()))?;
    *value = String::from_utf8_lossy(fresh.as_bytes())
        .into_owned()
        .into();
    Ok(())
}

fn done(path: &str, reply: &Reply) -> Result<(), Trouble> {
    match reply.status.as_u16() {
        200..300 => Ok(()),
        403 => Err(Trouble::unusable(format!(
            "permission denied; the policy lacks update on {path}"
        ))),
        404 => Err(Trouble::unusable(format!("there is no {path}"))),
        other => Err(answered(other)),
    }
}
