//! Asking for a rotation: decided and recorded like a read, then begun.

use std::sync::Arc;

use hyper::StatusCode;
use keyhatch_protocol::{Action, Code, Name, RotateReply};

use super::answer::{self, Answer};
use super::connection::{Bound, Connection};
use super::id::RequestId;
use super::reading::{self, Reading};
use super::request::Secret;
use super::supply;
use super::surface::Surface;
use crate::audit::Event;
use crate::rotation::Started;
use crate::sources::engine::Supply;

/// What is said, and recorded, where no `[[rotation]]` names the secret.
pub const NOT_CONFIGURED: &str = "no rotation is configured for this secret on this host";

const NOTHING_DONE: &str = "\"message\":\"no rotation is configured, so that nothing was done\"";

/// `POST /v1/rotate/{name}`
pub async fn native(connection: Arc<Connection>, id: RequestId, name: Name) -> Answer {
    let ask = Secret::current(name);
    let bound = connection.bound().await;
    let supply = match supply::ask(&connection, &bound, &ask) {
        Some(pending) => Some(supply::wait(&connection, &ask, pending).await),
        None => None,
    };
    let bound = connection.bound().await;
    match begin(&connection, &bound, &id, Surface::Native, &ask, supply).await {
        Ok(Started::Running(version)) => {
            let name = ask.name;
            answer::document(StatusCode::ACCEPTED, &RotateReply { name, version })
        }
        Ok(other) => {
            let (code, why) = refusal(&other);
            answer::problem(code, &id, Some(&why))
        }
        Err(code) => answer::problem(code, &id, None),
    }
}

/// Decides and records, then begins.
///
/// # Errors
/// The code to answer with, where it is not granted or no record can be kept.
pub async fn begin(
    connection: &Connection,
    bound: &Bound,
    id: &RequestId,
    surface: Surface,
    ask: &Secret,
    supply: Option<Supply>,
) -> Result<Started, Code> {
    let rotations = &connection.context.rotations;
    let configured = rotations.has(&ask.name);
    let reading = Reading {
        event: Event::SecretRotate,
        action: Action::Rotate,
        extra: (!configured).then_some(NOTHING_DONE),
        ..Reading::of(surface, ask, supply)
    };
    reading::read(connection, bound, id, &reading)?;
    if !configured {
        return Ok(Started::NotConfigured);
    }
    Ok(rotations.start(&ask.name, id.as_str()).await)
}

/// The code for what did not begin, and why.
pub fn refusal(started: &Started) -> (Code, String) {
    match started {
        Started::Already => (Code::InGrace, "its rotation is running already".into()),
        Started::InGrace(left) => {
            let seconds = left.as_secs().max(1);
            let why = format!(
                "the version before its last rotation is still needed, for {seconds} more seconds"
            );
            (Code::InGrace, why)
        }
        Started::Elsewhere(host) => (
            Code::BadRequest,
            format!("the host {host} rotates this secret, ask there"),
        ),
        Started::NotConfigured => (Code::BadRequest, NOT_CONFIGURED.into()),
        Started::Unavailable | Started::Running(_) => (
            Code::Internal,
            "the rotation could not be begun; an operator can see why in the agent's log".into(),
        ),
    }
}
