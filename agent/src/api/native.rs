//! The native API: values, lists, batches, watches, and who the peer is.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use keyhatch_protocol::{
    Action, BatchError, BatchRequest, Code, Health, ListReply, Listed, MAX_BATCH, Name,
    SourceHealth, UsableRoute, Whoami,
};

use super::answer::{self, Answer};
use super::body::Body;
use super::connection::{Bound, Connection, Wish};
use super::id::RequestId;
use super::reading::{self, Granted, Reading};
use super::request::{self, Ask, Bad, List, Secret};
use super::route::Reply;
use super::surface::Surface;
use super::watch::Watch;
use super::{incoming, rotate, supply};
use crate::audit::Event;
use crate::cache::{Form, Freshness, LoadError, STALE};
use crate::policy::BotMatch;
use crate::routes::Route;
use crate::sources::engine::Supply;

/// Answers one request of the native API. A read that needs nothing but memory is answered without a future.
pub fn reply(
    connection: &Arc<Connection>,
    bound: &Arc<Bound>,
    id: RequestId,
    request: Request<Incoming>,
) -> Reply {
    let uri = request.uri();
    let ask = match request::parse(request.method(), uri.path(), uri.query()) {
        Ok(ask) => ask,
        Err(bad) => return Reply::Now(bad_request(connection, &id, bad)),
    };
    match ask {
        Ask::Secret(ask) => secret(connection, bound, id, ask, &request),
        Ask::List(ask) => Reply::Now(or_problem(list(connection, bound, &id, &ask), &id)),
        Ask::Rotate(name) => Reply::later(rotate::native(Arc::clone(connection), id, name)),
        Ask::Watch(names) => watch(connection, bound, id, names, &request),
        Ask::Whoami => Reply::Now(answer::document(StatusCode::OK, &whoami(connection, bound))),
        Ask::Health => Reply::Now(health(connection)),
        Ask::Batch => {
            let (connection, bound) = (Arc::clone(connection), Arc::clone(bound));
            Reply::later(async move {
                let batch = match read_batch(request.into_body()).await {
                    Ok(batch) => batch,
                    Err((code, why)) => return answer::problem(code, &id, Some(&why)),
                };
                let names = batch.names.iter().filter_map(|name| Name::parse(name).ok());
                let supplies = supply::all(&connection, &bound, names).await;
                let bound = connection.bound().await;
                batch_reply(&connection, &bound, &id, batch, &supplies)
            })
        }
    }
}

fn bad_request(connection: &Connection, id: &RequestId, bad: Bad) -> Answer {
    connection.context.counts.bad.fetch_add(1, Relaxed);
    match bad {
        Bad::Request(why) => answer::problem(Code::BadRequest, id, Some(&why)),
        Bad::Method => answer::problem(Code::MethodNotAllowed, id, None),
    }
}

fn or_problem(answer: Result<Answer, Code>, id: &RequestId) -> Answer {
    answer.unwrap_or_else(|code| answer::problem(code, id, None))
}

/// `GET /v1/secrets/{name}`
fn secret(
    connection: &Arc<Connection>,
    bound: &Arc<Bound>,
    id: RequestId,
    ask: Secret,
    request: &Request<Incoming>,
) -> Reply {
    let shape = Shape {
        form: request::form(request.headers()),
        known: request::has_version(request.headers()).map(str::to_owned),
        wait: request::wait_seconds(request.headers()).filter(|seconds| *seconds > 0),
    };
    let Some(pending) = supply::ask(connection, bound, &ask) else {
        return secret_held(connection, bound, id, ask, shape, None);
    };
    let connection = Arc::clone(connection);
    Reply::later(async move {
        let supply = supply::wait(&connection, &ask, pending).await;
        let bound = connection.bound().await;
        secret_held(&connection, &bound, id, ask, shape, Some(supply))
            .answer()
            .await
    })
}

/// How a value is asked for.
struct Shape {
    form: Form,
    /// The version that the peer has.
    known: Option<String>,
    /// For how many seconds it would wait for another.
    wait: Option<u64>,
}

/// Answers with what is held now; `supply` is what the upstream said where it was asked.
fn secret_held(
    connection: &Arc<Connection>,
    bound: &Bound,
    id: RequestId,
    ask: Secret,
    shape: Shape,
    supply: Option<Supply>,
) -> Reply {
    let Shape { form, known, wait } = shape;
    match read(connection, bound, &id, &ask, form, known.as_deref(), supply) {
        Ok(Outcome::Answer(answer)) => Reply::Now(answer),
        Err(code) => Reply::Now(answer::problem(code, &id, None)),
        Ok(Outcome::NotModified(answer)) => {
            let Some(seconds) = wait else {
                return Reply::Now(answer);
            };
            let Some(watching) = connection.limits.watch() else {
                return Reply::Now(answer::problem(Code::RateLimited, &id, None));
            };
            let (connection, known) = (Arc::clone(connection), known.unwrap_or_default());
            let wait = Duration::from_secs(seconds);
            Reply::later(async move {
                let answer = long_poll(&connection, &id, &ask, form, &known, wait).await;
                drop(watching);
                answer
            })
        }
    }
}

/// How a read ended.
enum Outcome {
    /// With a value.
    Answer(Answer),
    /// The peer has the current version already.
    NotModified(Answer),
}

/// Waits for a version other than `known`; decided and recorded again each time it wakes.
async fn long_poll(
    connection: &Arc<Connection>,
    id: &RequestId,
    ask: &Secret,
    form: Form,
    known: &str,
    wait: Duration,
) -> Answer {
    let mut swaps = connection.context.cache.subscribe();
    let deadline = tokio::time::Instant::now() + wait;
    loop {
        swaps.mark_unchanged();
        let bound = connection.bound().await;
        if changed(connection, &bound, ask, known) {
            match read(connection, &bound, id, ask, form, Some(known), None) {
                Ok(Outcome::Answer(answer)) => return answer,
                Ok(Outcome::NotModified(_)) => {}
                Err(code) => return answer::problem(code, id, None),
            }
        }
        let woken = tokio::time::timeout_at(deadline, swaps.changed()).await;
        let draining = connection.context.health.draining.load(Relaxed);
        if woken.is_err() || draining {
            let bound = connection.bound().await;
            return match read(connection, &bound, id, ask, form, Some(known), None) {
                Ok(Outcome::Answer(answer) | Outcome::NotModified(answer)) => answer,
                Err(code) => answer::problem(code, id, None),
            };
        }
    }
}

/// Whether a waiting read would end now: another version, none at all, or no longer allowed.
fn changed(connection: &Connection, bound: &Bound, ask: &Secret, known: &str) -> bool {
    let snapshot = connection.context.cache.snapshot();
    let same = snapshot
        .get(ask.name.as_str())
        .and_then(|entry| reading::pick(connection, entry, &ask.which))
        .is_some_and(|version| &**version.id() == known);
    !same || !connection.may_still(bound, Action::Read, &ask.name)
}

/// Decides and records a read, and answers it.
fn read(
    connection: &Connection,
    bound: &Bound,
    id: &RequestId,
    ask: &Secret,
    form: Form,
    known: Option<&str>,
    supply: Option<Supply>,
) -> Result<Outcome, Code> {
    let reading = Reading {
        known,
        ..Reading::of(Surface::Native, ask, supply)
    };
    let granted = reading::read(connection, bound, id, &reading)?;
    let Granted { entry, version, .. } = &granted;
    if granted.same {
        return Ok(Outcome::NotModified(answer::not_modified(version)));
    }
    let body = match &ask.field {
        None => whole(&granted, form),
        Some(field) => field_of(connection, &granted, field, form)?,
    };
    let stale = entry.freshness() == Freshness::Stale;
    Ok(Outcome::Answer(answer::value(version, form, stale, body)))
}

fn whole(granted: &Granted, form: Form) -> Body {
    let Granted {
        entry,
        version,
        permit,
        ..
    } = granted;
    if form == Form::Json && entry.freshness() == Freshness::Stale {
        let pieces = [
            Bytes::from_owner(version.lease_but_staleness(permit)),
            Bytes::from_static(STALE),
        ];
        return Body::Pieces(VecDeque::from(pieces));
    }
    Body::one(Bytes::from_owner(version.lease(permit, form)))
}

fn field_of(
    connection: &Connection,
    granted: &Granted,
    field: &str,
    form: Form,
) -> Result<Body, Code> {
    let Granted {
        entry,
        version,
        permit,
        ..
    } = granted;
    let arena = connection.context.cache.arena();
    match version.lease_field(permit, arena, entry, field, form) {
        Ok(Some(lease)) => Ok(Body::one(Bytes::from_owner(lease))),
        Ok(None) => Err(Code::NotFound),
        Err(LoadError::Full(full)) => {
            tracing::warn!(%full, "a field could not be rendered");
            Err(Code::Internal)
        }
        Err(LoadError::Version(_)) => Err(Code::Internal),
    }
}

/// `GET /v1/secrets`
fn list(
    connection: &Connection,
    bound: &Bound,
    id: &RequestId,
    ask: &List,
) -> Result<Answer, Code> {
    connection.judge_list(bound, id, Surface::Native, &ask.prefix)?;
    let snapshot = connection.context.cache.snapshot();
    let mut seen = snapshot
        .list(&ask.prefix, ask.after.as_deref())
        .filter(|entry| bound.may_list(&entry.name))
        .map(|entry| Listed {
            name: entry.name.clone(),
            version: entry.current.id().to_string(),
        });
    let secrets: Vec<Listed> = seen.by_ref().take(ask.limit).collect();
    let more = seen.next().is_some();
    let next = secrets
        .last()
        .filter(|_| more)
        .map(|last| last.name.to_string());
    Ok(answer::document(
        StatusCode::OK,
        &ListReply { secrets, next },
    ))
}

async fn read_batch(body: Incoming) -> Result<BatchRequest, (Code, String)> {
    let bytes = incoming::read(body).await?;
    let batch: BatchRequest = serde_json::from_slice(&bytes).map_err(|_| {
        (
            Code::BadRequest,
            r#"the body is not {"names":["A","B"]}"#.to_owned(),
        )
    })?;
    if batch.names.len() > MAX_BATCH {
        return Err((
            Code::BadRequest,
            format!("a batch has at most {MAX_BATCH} names"),
        ));
    }
    Ok(batch)
}

/// `POST /v1/batch`: each name is decided and recorded on its own.
fn batch_reply(
    connection: &Connection,
    bound: &Bound,
    id: &RequestId,
    batch: BatchRequest,
    supplies: &HashMap<Name, Supply>,
) -> Answer {
    let mut pieces = VecDeque::from([Bytes::from_static(b"{\"secrets\":[")]);
    let mut errors = Vec::new();
    for name in batch.names {
        let read = Name::parse(&name)
            .map_err(|_| Code::BadRequest)
            .and_then(|name| {
                let supply = supplies.get(&name).copied();
                let ask = Secret::current(name);
                read(connection, bound, id, &ask, Form::Json, None, supply)
            });
        match read {
            Ok(Outcome::Answer(answer) | Outcome::NotModified(answer)) => {
                if pieces.len() > 1 {
                    pieces.push_back(Bytes::from_static(b","));
                }
                match answer.into_body() {
                    Body::One(piece) => pieces.extend(piece),
                    Body::Pieces(more) => pieces.extend(more),
                    Body::Watch(_) | Body::Passing(_) => {}
                }
            }
            Err(code) => errors.push(BatchError {
                name,
                code: code.as_str().into(),
            }),
        }
    }
    let errors = serde_json::to_string(&errors).unwrap_or_default();
    pieces.push_back(Bytes::from(format!("],\"errors\":{errors}}}")));
    answer::pieces(pieces)
}

/// `GET /v1/watch`
fn watch(
    connection: &Arc<Connection>,
    bound: &Arc<Bound>,
    id: RequestId,
    names: Vec<Name>,
    request: &Request<Incoming>,
) -> Reply {
    let last = request
        .headers()
        .get("last-event-id")
        .and_then(|last| last.to_str().ok())
        .map(str::to_owned);
    // A secret that is watched is held, so that its rotation is seen.
    let pending = supply::to_watch(connection, bound, &names);
    if pending.is_empty() {
        return Reply::Now(watch_held(connection, bound, id, names, last.as_deref()));
    }
    let connection = Arc::clone(connection);
    Reply::later(async move {
        for pending in pending {
            pending.wait().await;
        }
        let bound = connection.bound().await;
        watch_held(&connection, &bound, id, names, last.as_deref())
    })
}

fn watch_held(
    connection: &Arc<Connection>,
    bound: &Bound,
    id: RequestId,
    names: Vec<Name>,
    last: Option<&str>,
) -> Answer {
    let mut begun = Vec::new();
    for name in &names {
        let snapshot = connection.context.cache.snapshot();
        let version = snapshot
            .get(name.as_str())
            .map(|entry| Arc::clone(entry.current.id()));
        let wish = Wish {
            surface: Surface::Native,
            event: Event::SecretWatch,
            action: Action::Watch,
            name,
            version: version.as_ref(),
            supply: None,
            outdated: None,
            extra: None,
        };
        if let Err(code) = connection.judge(bound, &id, &wish) {
            return answer::problem(code, &id, None);
        }
        begun.push(version.map(|version| version.to_string()));
    }
    match connection.limits.watch() {
        Some(watching) => answer::events(Watch::new(
            Arc::clone(connection),
            id,
            names,
            begun,
            last,
            watching,
        )),
        None => answer::problem(Code::RateLimited, &id, None),
    }
}

/// `GET /v1/whoami`
fn whoami(connection: &Connection, bound: &Bound) -> Whoami {
    let peer = &connection.peer;
    let bot = match &bound.found {
        BotMatch::Bot(id) => bound.policy.bot(*id),
        _ => None,
    };
    Whoami {
        pid: peer.pid(),
        uid: peer.uid(),
        gid: peer.gid(),
        groups: peer.groups().to_vec(),
        exe: peer.exe().map(|exe| exe.to_string_lossy().into_owned()),
        unit: peer.unit().map(str::to_owned),
        user_unit: peer.user_unit().map(str::to_owned),
        bot: bot.map(|bot| bot.name.to_string()),
        roles: bot
            .map(|bot| bot.roles.iter().map(ToString::to_string).collect())
            .unwrap_or_default(),
        grants: match &bound.found {
            BotMatch::Bot(id) => bound.policy.grants(*id),
            _ => Vec::new(),
        },
        routes: usable_routes(connection, bound),
    }
}

fn usable_routes(connection: &Connection, bound: &Bound) -> Vec<UsableRoute> {
    let routes = connection.context.routes.load();
    let mut usable = routes.all();
    usable.retain(|route| bound.policy.may_use(&bound.found, route.name()));
    let told = |route: &Arc<Route>| UsableRoute {
        name: route.name().to_owned(),
        upstream: route.upstream().to_string(),
    };
    usable.into_iter().map(told).collect()
}

/// `GET /v1/health`
fn health(connection: &Connection) -> Answer {
    let health = connection.context.status();
    let ready = health.reasons.is_empty();
    let status = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let missing = connection.context.health.missing();
    let status_word = if ready { "ready" } else { "unavailable" };
    answer::document(
        status,
        &Health {
            status: status_word.into(),
            reasons: health.reasons,
            missing,
            sources: connection
                .context
                .sources
                .all_by_name()
                .into_iter()
                .map(|(name, state)| SourceHealth {
                    name: name.to_string(),
                    state: state.word().to_owned(),
                    last_success: state.last_success,
                    oldest_age: state.upstream.and_then(|upstream| upstream.oldest_age()),
                    next_try: state.upstream.and_then(|upstream| upstream.next_try()),
                })
                .collect(),
            version: env!("CARGO_PKG_VERSION").into(),
        },
    )
}
