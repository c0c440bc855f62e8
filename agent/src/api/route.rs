//! From a request's head to the surface that answers it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::Request;
use hyper::body::{Body as _, Incoming};
use keyhatch_protocol::Code;

use super::answer::Answer;
use super::connection::{Bound, Connection};
use super::id::RequestId;
use super::surface::Surface;
use super::{dropin, incoming, native, using};

/// How long a request over the limit is held, so that a flood slows itself down.
const HELD: Duration = Duration::from_secs(1);

/// An answer that is ready, or one that has to wait.
pub enum Reply {
    /// Made without waiting.
    Now(Answer),
    /// Made by waiting.
    Later(Pin<Box<dyn Future<Output = Answer> + Send>>),
}

impl Reply {
    /// An answer that has to wait.
    pub fn later(future: impl Future<Output = Answer> + Send + 'static) -> Self {
        Self::Later(Box::pin(future))
    }

    /// The answer, waited for where it has to be.
    pub async fn answer(self) -> Answer {
        match self {
            Self::Now(answer) => answer,
            Self::Later(answer) => answer.await,
        }
    }
}

/// Answers one request of a bot. A read that needs nothing but memory is answered without a future.
pub fn reply(connection: &Arc<Connection>, request: Request<Incoming>) -> Reply {
    let id = connection.context.ids.next();
    let surface = dropin::surface(&connection.context, &request);
    let bound = connection.bound_now();
    let admitted = connection.limits.admit();
    match (bound, admitted) {
        (Some(bound), true) => route(connection, &bound, id, surface, request),
        (bound, admitted) => {
            let connection = Arc::clone(connection);
            Reply::later(async move {
                let bound = match bound {
                    Some(bound) => bound,
                    None => connection.bound().await,
                };
                if !admitted {
                    connection.limited(&bound, &id, surface);
                    tokio::time::sleep(HELD).await;
                    return dropin::problem(surface, Code::RateLimited, &id, None);
                }
                route(&connection, &bound, id, surface, request)
                    .answer()
                    .await
            })
        }
    }
}

fn route(
    connection: &Arc<Connection>,
    bound: &Arc<Bound>,
    id: RequestId,
    surface: Surface,
    request: Request<Incoming>,
) -> Reply {
    match surface {
        // A credential is not asked for by HTTP.
        Surface::Native | Surface::Credential => native::reply(connection, bound, id, request),
        Surface::Route => using::reply(connection, id, request),
        Surface::Aws => dropin::aws::reply(connection, id, request),
        Surface::AwsAgent | Surface::Vault if request.body().is_end_stream() => {
            without_body(connection, bound, id, surface, &request)
        }
        // Clients that send one, to be refused, read nothing before they have sent it all.
        Surface::AwsAgent | Surface::Vault => {
            let connection = Arc::clone(connection);
            Reply::later(async move {
                let (head, body) = request.into_parts();
                if let Err((code, why)) = incoming::read(body).await {
                    return dropin::problem(surface, code, &id, Some(&why));
                }
                let bound = connection.bound().await;
                let request = Request::from_parts(head, ());
                without_body(&connection, &bound, id, surface, &request)
                    .answer()
                    .await
            })
        }
    }
}

fn without_body<B>(
    connection: &Arc<Connection>,
    bound: &Arc<Bound>,
    id: RequestId,
    surface: Surface,
    request: &Request<B>,
) -> Reply {
    match surface {
        Surface::AwsAgent => dropin::aws_agent::reply(connection, bound, id, request),
        _ => dropin::vault::reply(connection, bound, id, request),
    }
}
