//! APIs that programs already speak, on the same socket: AWS's Secrets Manager Agent, AWS Secrets Manager and
//! the read side of Vault's KV version 2. Each is a way to ask; what may be had, and how it is recorded, is not
//! decided here.

pub mod aws;
pub mod aws_agent;
mod aws_answer;
mod aws_filter;
mod aws_list;
mod aws_names;
mod numbers;
pub mod vault;
mod vault_answer;
mod vault_keys;
mod vault_own;

use std::sync::Arc;

use hyper::{Method, Request};
use keyhatch_protocol::Code;

pub use aws_names::AwsVersion;
pub use numbers::Numbers;

use super::answer::{self, Answer};
use super::connection::{Bound, Connection};
use super::context::Context;
use super::id::RequestId;
use super::request::Secret;
use super::route::Reply;
use super::supply;
use super::surface::Surface;
use crate::config::NATIVE_PATHS;
use crate::sources::engine::Supply;

/// The surface that a request belongs to, by its path.
pub fn surface<B>(context: &Context, request: &Request<B>) -> Surface {
    let path = request.uri().path();
    let Some(rest) = path.strip_prefix("/v1/") else {
        return match path {
            "/ping" | "/secretsmanager/get" => Surface::AwsAgent,
            "/" if request.method() == Method::POST => Surface::Aws,
            _ => Surface::Native,
        };
    };
    let first = rest.split('/').next().unwrap_or_default();
    match first {
        "sys" | "auth" => Surface::Vault,
        "use" => Surface::Route,
        native if NATIVE_PATHS.contains(&native) => Surface::Native,
        _ if context.dropin.load().mount(rest).is_some() => Surface::Vault,
        // Vault's clients say so themselves; theirs is a mount that is not configured.
        _ if request.headers().contains_key("x-vault-request") => Surface::Vault,
        _ => Surface::Native,
    }
}

/// A refusal as the clients of a surface know it.
pub fn problem(surface: Surface, code: Code, id: &RequestId, detail: Option<&str>) -> Answer {
    match surface {
        Surface::Native | Surface::Route | Surface::Credential => answer::problem(code, id, detail),
        Surface::AwsAgent | Surface::Aws => aws_answer::problem(code, id, detail),
        Surface::Vault => vault_answer::problem(code, id, detail),
    }
}

/// Answers from memory, after an upstream was asked for what is not there, or `again` for what is.
fn supplied(
    connection: &Arc<Connection>,
    bound: &Arc<Bound>,
    ask: Secret,
    again: bool,
    answer: impl FnOnce(&Connection, &Bound, &Secret, Option<Supply>) -> Answer + Send + 'static,
) -> Reply {
    let pending = supply::ask(connection, bound, &ask).or_else(|| {
        again
            .then(|| supply::again(connection, bound, &ask.name))
            .flatten()
    });
    let Some(pending) = pending else {
        return Reply::Now(answer(connection, bound, &ask, None));
    };
    let connection = Arc::clone(connection);
    Reply::later(async move {
        let supply = supply::wait(&connection, &ask, pending).await;
        let bound = connection.bound().await;
        answer(&connection, &bound, &ask, Some(supply))
    })
}
