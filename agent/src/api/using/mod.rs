//! `ANY /v1/use/{route}/{path}`: a bot has the agent call an upstream with a secret that it does not see.
//!
//! The way of every request: parsed once, decided, recorded, leased; then built anew, sent, and its answer streamed
//! back with nothing of the secret in it. A second record says how it ended.

mod gate;
mod refused;
mod used;

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use hyper::body::{Body as _, Incoming};
use hyper::header::{HeaderName, SEC_WEBSOCKET_KEY};
use hyper::http::request;
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response, StatusCode, Version};
use keyhatch_protocol::Code;

use super::answer::{self, Answer};
use super::body::Body;
use super::connection::Connection;
use super::id::RequestId;
use super::route::Reply;
use crate::policy::{Call, FORBIDDEN_METHODS};
use crate::routes::{Outgoing, Summary, Target, is_websocket};
use gate::{Found, Gate};
use refused::Refused;
use used::{Used, decide};

/// On each answer of an upstream, and on none of ours: tells them apart.
const ROUTE: HeaderName = HeaderName::from_static("keyhatch-route");

const AGAIN: &str = "refused by the upstream, made once more with the version that came meanwhile, or a new access token";

/// A call as it was parsed.
struct Asked {
    route: String,
    outgoing: Outgoing,
}

/// Answers a call. It always waits for the upstream.
pub fn reply(connection: &Arc<Connection>, id: RequestId, mut request: Request<Incoming>) -> Reply {
    let upgrade = hyper::upgrade::on(&mut request);
    let (head, body) = request.into_parts();
    let asked = match Asked::parse(head, &body) {
        Ok(asked) => asked,
        Err((code, why)) => {
            connection.context.counts.bad.fetch_add(1, Relaxed);
            return Reply::Now(answer::problem(code, &id, Some(&why)));
        }
    };
    let (connection, asked) = (Arc::clone(connection), Arc::new(asked));
    Reply::later(async move {
        pass(&connection, &id, &asked, body, upgrade)
            .await
            .unwrap_or_else(|refused| refused.answer(&id))
    })
}

impl Asked {
    fn parse(head: request::Parts, body: &Incoming) -> Result<Self, (Code, String)> {
        let rest = head.uri.path().strip_prefix("/v1/use/").unwrap_or_default();
        let (route, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let method = head.method.as_str();
        // Some servers take `delete` for DELETE, which a rule is about.
        let is_odd = method.bytes().any(|byte| byte.is_ascii_lowercase());
        if is_odd || FORBIDDEN_METHODS.contains(&method) {
            let why = "no route passes this method on".to_owned();
            return Err((Code::MethodNotAllowed, why));
        }
        if !is_name(route) {
            return Err((
                Code::BadRequest,
                "a route is called as /v1/use/ROUTE/PATH".into(),
            ));
        }
        // A client whose base URL is the route asks for its root so.
        let path = if path.is_empty() { "/" } else { path };
        let target = Target::parse(path, head.uri.query())
            .map_err(|why| (Code::BadRequest, why.to_string()))?;
        Ok(Self {
            route: route.to_owned(),
            outgoing: Outgoing {
                method: head.method.clone(),
                target,
                websocket: asks_for_websocket(&head, body),
                headers: head.headers,
            },
        })
    }

    fn call(&self) -> Call<'_> {
        Call {
            route: &self.route,
            method: self.outgoing.method.as_str(),
            path: &self.outgoing.target.path,
        }
    }
}

/// Whether a request asks for a WebSocket (RFC 6455 section 4.1). No other protocol is switched to.
fn asks_for_websocket(head: &request::Parts, body: &Incoming) -> bool {
    let is_plain = head.method == Method::GET && body.is_end_stream();
    is_plain && head.headers.contains_key(SEC_WEBSOCKET_KEY) && is_websocket(&head.headers)
}

/// Whether a route may have that name, which stands in records.
fn is_name(route: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._@+-".contains(&byte);
    !matches!(route, "" | "." | "..") && route.bytes().all(fits)
}

/// Passes a call on. One that the upstream refuses with the version before a rotation is made once more with the new.
async fn pass(
    connection: &Arc<Connection>,
    id: &RequestId,
    asked: &Arc<Asked>,
    body: Incoming,
    upgrade: OnUpgrade,
) -> Result<Answer, Refused> {
    let mut gate = Gate::pass(connection, id, asked, body).await?;
    let found = std::mem::take(&mut gate.found);
    let approved_by = found.approved_by;
    let mut used = Used::begin(connection, id, asked, found).await?;
    let route = Arc::clone(&used.route);
    let taken = gate.upload(&route, &asked.outgoing, used.bot()).await;
    let (mut upload, progress) = taken.map_err(|failure| used.failed(&failure))?;
    let mut is_again = false;
    loop {
        used.progress = Some(Arc::clone(&progress));
        let again = upload.again();
        let credential = used.credential(&asked.outgoing, upload.whole()).await;
        let credential = credential.map_err(|failure| used.failed(&failure))?;
        let mut answered = route
            .send(used.bot(), &asked.outgoing, &credential, upload, &progress)
            .await
            .map_err(|failure| used.failed(&failure))?;
        used.answers(&answered);
        // Both are asked: a token that was refused is forgotten whatever else is tried.
        let is_old = answered.head.status == StatusCode::UNAUTHORIZED
            && (route.refused(&credential) | used.is_rotated());
        if let Some(same) = again.filter(|_| is_old && !is_again) {
            used.ends(None, Some(AGAIN));
            drop(used);
            let found = Found {
                route: Some(Arc::clone(&route)),
                approved_by,
                ..Found::default()
            };
            used = Used::begin(connection, id, asked, found).await?;
            (upload, is_again) = (same, true);
            continue;
        }
        let told = Box::new(move |summary: Summary| used.ends(Some(&summary), None));
        let (head, body) = if let Some(upstream) = answered.switched() {
            let (head, tunnel) = answered.tunnel(upstream, &route, &credential, &progress, told);
            let (connection, asked) = (Arc::clone(connection), Arc::clone(asked));
            tokio::spawn(async move {
                tokio::select! {
                    () = tunnel.run(upgrade) => {}
                    () = until_refused(&connection, &asked) => {}
                }
            });
            (head, Body::empty())
        } else {
            let (head, body) = answered.searched(&route, &credential, told);
            (head, Body::Passing(Box::new(body)))
        };
        let mut answer = Response::from_parts(head, body);
        *answer.version_mut() = Version::HTTP_11;
        answer.headers_mut().insert(ROUTE, route.named());
        return Ok(answer);
    }
}

/// Returns once a call that was allowed would not be any more.
async fn until_refused(connection: &Connection, asked: &Asked) {
    let mut changes = connection.context.cache.subscribe();
    loop {
        let bound = connection.bound().await;
        if !decide(connection, &bound, asked).allowed() {
            return;
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}
