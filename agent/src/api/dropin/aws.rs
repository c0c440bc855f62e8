//! AWS Secrets Manager's own API, JSON 1.1: the operations that read, and `RotateSecret`.
//!
//! Signatures are not looked at: the kernel has said who asks.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use hyper::Request;
use hyper::body::Incoming;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use keyhatch_protocol::{Code, Name};
use serde::Deserialize;
use serde_json::{Value as Json, json};

use super::aws_answer::{self, Exception};
use super::aws_filter::Filter;
use super::aws_list::{self, Page};
use super::aws_names::{self, AwsVersion};
use super::{aws_agent, supplied};
use crate::api::answer::{self, Answer};
use crate::api::body::Body;
use crate::api::connection::{Bound, Connection};
use crate::api::id::RequestId;
use crate::api::reading::{self, Granted, Reading};
use crate::api::request::Secret;
use crate::api::route::Reply;
use crate::api::surface::Surface;
use crate::api::{incoming, rotate, supply};
use crate::audit::Event;
use crate::cache::Freshness;
use crate::rotation::Started;
use crate::sources::engine::Supply;

/// The most ids in one `BatchGetSecretValue`.
const BATCH: usize = 20;

/// Names the operation, after `secretsmanager.`.
const TARGET: HeaderName = HeaderName::from_static("x-amz-target");
const SERVICE: &[u8] = b"secretsmanager.";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct OneSecret<'a> {
    #[serde(borrow)]
    secret_id: Option<Cow<'a, str>>,
    version_id: Option<String>,
    version_stage: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ManySecrets {
    secret_id_list: Option<Vec<String>>,
    #[serde(default)]
    filters: Vec<Filter>,
    max_results: Option<usize>,
    next_token: Option<String>,
    sort_order: Option<String>,
}

/// What is asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Operation {
    GetSecretValue,
    BatchGetSecretValue,
    DescribeSecret,
    ListSecrets,
    RotateSecret,
    /// Any other.
    Unknown,
}

impl Operation {
    fn of(headers: &HeaderMap) -> Self {
        let target = headers.get(TARGET).map(HeaderValue::as_bytes);
        match target.and_then(|target| target.strip_prefix(SERVICE)) {
            Some(b"GetSecretValue") => Self::GetSecretValue,
            Some(b"BatchGetSecretValue") => Self::BatchGetSecretValue,
            Some(b"DescribeSecret") => Self::DescribeSecret,
            Some(b"ListSecrets") => Self::ListSecrets,
            Some(b"RotateSecret") => Self::RotateSecret,
            _ => Self::Unknown,
        }
    }
}

/// Answers one request.
pub fn reply(connection: &Arc<Connection>, id: RequestId, request: Request<Incoming>) -> Reply {
    let operation = Operation::of(request.headers());
    let body = request.into_body();
    let connection = Arc::clone(connection);
    Reply::later(async move {
        let body = match incoming::read(body).await {
            Ok(body) => body,
            Err((code, why)) => return aws_answer::problem(code, &id, Some(&why)),
        };
        let bound = connection.bound().await;
        match operate(&connection, &bound, id, operation, &body) {
            Ok(reply) => reply.answer().await,
            Err(exception) => exception.answer(&id),
        }
    })
}

fn operate(
    connection: &Arc<Connection>,
    bound: &Arc<Bound>,
    id: RequestId,
    operation: Operation,
    body: &[u8],
) -> Result<Reply, Exception> {
    match operation {
        Operation::RotateSecret => {
            let ask = one(connection, body)?;
            let connection = Arc::clone(connection);
            Ok(Reply::later(
                async move { rotate(&connection, id, ask).await },
            ))
        }
        Operation::GetSecretValue | Operation::DescribeSecret => {
            let ask = one(connection, body)?;
            let answer = move |connection: &Connection, bound: &Bound, ask: &Secret, supply| {
                let answer_one = match operation {
                    Operation::DescribeSecret => describe,
                    _ => get,
                };
                answer_one(connection, bound, &id, ask, supply)
            };
            Ok(supplied(connection, bound, ask, false, answer))
        }
        Operation::ListSecrets => {
            let page: ManySecrets = parse(body)?;
            let order = page.sort_order;
            let page = Page::new(page.filters, page.max_results, page.next_token, 100)?
                .ordered(order.as_deref())?;
            let answer = aws_list::list(connection, bound, &id, &page)?;
            Ok(Reply::Now(answer))
        }
        Operation::BatchGetSecretValue => batch(connection, bound, id, parse(body)?),
        Operation::Unknown => {
            let why = "This agent answers GetSecretValue, BatchGetSecretValue, DescribeSecret, ListSecrets and \
                       RotateSecret";
            Err(Exception::new("UnknownOperationException", why))
        }
    }
}

/// `GetSecretValue`
fn get(
    connection: &Connection,
    bound: &Bound,
    id: &RequestId,
    ask: &Secret,
    supply: Option<Supply>,
) -> Answer {
    aws_agent::get(connection, bound, Surface::Aws, id, ask, supply)
}

fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Exception> {
    let body = if body.is_empty() { b"{}" } else { body };
    serde_json::from_slice(body).map_err(|_| {
        let why = "The body is not the JSON object that this operation takes";
        Exception::new("SerializationException", why)
    })
}

/// The secret that a request is about.
fn one(connection: &Connection, body: &[u8]) -> Result<Secret, Exception> {
    let request: OneSecret<'_> = parse(body)?;
    let secret_id = request
        .secret_id
        .ok_or_else(|| Exception::invalid("SecretId is missing"))?;
    let name = aws_names::name(&connection.context.dropin.load(), &secret_id)
        .map_err(|_| Exception::no_name())?;
    Ok(Secret {
        which: AwsVersion::wanted(request.version_id, request.version_stage),
        ..Secret::current(name)
    })
}

/// `DescribeSecret`, for whoever may list the name, or read it.
fn describe(
    connection: &Connection,
    bound: &Bound,
    id: &RequestId,
    ask: &Secret,
    supply: Option<Supply>,
) -> Answer {
    let reading = Reading {
        event: Event::SecretList,
        action: bound.action_to_see(&ask.name),
        ..Reading::of(Surface::Aws, ask, supply)
    };
    match reading::read(connection, bound, id, &reading) {
        Ok(granted) => {
            let dropin = connection.context.dropin.load();
            let about = aws_answer::about(&dropin, &ask.name, &granted.entry, "VersionIdsToStages");
            aws_answer::document(id, &about)
        }
        Err(code) => aws_answer::problem(code, id, None),
    }
}

/// `RotateSecret`: begins a rotation that this host is configured to do. What the request says of schedules and
/// functions is not looked at: the configuration says that.
async fn rotate(connection: &Arc<Connection>, id: RequestId, ask: Secret) -> Answer {
    let ask = Secret::current(ask.name);
    let bound = connection.bound().await;
    let supply = match supply::ask(connection, &bound, &ask) {
        Some(pending) => Some(supply::wait(connection, &ask, pending).await),
        None => None,
    };
    let bound = connection.bound().await;
    match rotate::begin(connection, &bound, &id, Surface::Aws, &ask, supply).await {
        Ok(Started::Running(version)) => {
            let dropin = connection.context.dropin.load();
            aws_answer::document(
                &id,
                &aws_answer::rotating(&dropin, &ask.name, version.as_deref()),
            )
        }
        Ok(Started::NotConfigured) => {
            let why = "No rotation is configured for this secret on this host";
            Exception::new("InvalidRequestException", why).answer(&id)
        }
        Ok(other) => match rotate::refusal(&other) {
            (Code::Internal, _) => aws_answer::problem(Code::Internal, &id, None),
            (_, why) => Exception::new("InvalidRequestException", why).answer(&id),
        },
        Err(code) => aws_answer::problem(code, &id, None),
    }
}

/// `BatchGetSecretValue`: each secret is decided and recorded on its own.
fn batch(
    connection: &Arc<Connection>,
    bound: &Arc<Bound>,
    id: RequestId,
    request: ManySecrets,
) -> Result<Reply, Exception> {
    let (ids, next) = match request.secret_id_list {
        Some(_) if !request.filters.is_empty() => {
            return Err(Exception::invalid("Give SecretIdList or Filters, not both"));
        }
        Some(ids) if ids.is_empty() || ids.len() > BATCH => {
            return Err(Exception::invalid("SecretIdList has 1 to 20 ids"));
        }
        Some(ids) => (ids, None),
        None if request.filters.is_empty() => {
            return Err(Exception::invalid("Give SecretIdList or Filters"));
        }
        None => {
            let (limit, token) = (request.max_results, request.next_token);
            let page = Page::new(request.filters, limit, token, BATCH)?;
            aws_list::ids(connection, bound, &id, &page)?
        }
    };
    let connection = Arc::clone(connection);
    let bound = Arc::clone(bound);
    Ok(Reply::later(async move {
        let dropin = connection.context.dropin.load_full();
        let names = ids
            .iter()
            .filter_map(|id| aws_names::name(&dropin, id).ok());
        let supplies = supply::all(&connection, &bound, names).await;
        let bound = connection.bound().await;
        let (mut pieces, mut errors, mut stale) = (VecDeque::new(), Vec::new(), false);
        for secret_id in ids {
            let name = aws_names::name(&dropin, &secret_id);
            let read = name.map_err(|_| Exception::no_name()).and_then(|name| {
                let supply = supplies.get(&name).copied();
                read_one(&connection, &bound, &id, name, supply)
            });
            match read {
                Ok(granted) => {
                    if !pieces.is_empty() {
                        pieces.push_back(Bytes::from_static(b","));
                    }
                    aws_answer::add_value(&mut pieces, Surface::Aws, &dropin, &granted);
                    stale |= granted.entry.freshness() == Freshness::Stale;
                }
                Err(why) => errors.push(json!({
                    "SecretId": secret_id, "ErrorCode": why.kind, "Message": why.message,
                })),
            }
        }
        let mut answer = finish_batch(&id, pieces, &errors, next);
        if stale {
            answer::mark_stale(&mut answer);
        }
        answer
    }))
}

fn read_one(
    connection: &Connection,
    bound: &Bound,
    id: &RequestId,
    name: Name,
    supply: Option<Supply>,
) -> Result<Granted, Exception> {
    let ask = Secret::current(name);
    let reading = Reading::of(Surface::Aws, &ask, supply);
    reading::read(connection, bound, id, &reading)
        .map_err(|code| Exception::of_read(connection, code, &ask))
}

fn finish_batch(
    id: &RequestId,
    mut pieces: VecDeque<Bytes>,
    errors: &[Json],
    next: Option<String>,
) -> Answer {
    pieces.push_front(Bytes::from_static(b"{\"SecretValues\":["));
    let errors = Json::from(errors);
    let next = next.map_or(String::new(), |next| {
        format!(",\"NextToken\":{}", Json::from(next))
    });
    pieces.push_back(Bytes::from(format!("],\"Errors\":{errors}{next}}}")));
    aws_answer::body(id, Body::Pieces(pieces))
}
