//! Answers: values, documents and problems, each with the headers of the contract.

use bytes::Bytes;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderName, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};
use keyhatch_protocol::{Code, OCTET_STREAM, Problem, STALE_HEADER, VERSION_HEADER};
use serde::Serialize;

use super::body::Body;
use super::id::RequestId;
use crate::cache::{Form, Version};

/// An answer on any of our sockets.
pub type Answer = Response<Body>;

const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const OCTETS: HeaderValue = HeaderValue::from_static(OCTET_STREAM);
const PROBLEM: HeaderValue = HeaderValue::from_static("application/problem+json");
const EVENTS: HeaderValue = HeaderValue::from_static("text/event-stream");
const VERSION: HeaderName = HeaderName::from_static(VERSION_HEADER);
const STALE: HeaderName = HeaderName::from_static(STALE_HEADER);

/// An answer of any kind. It is never stored.
pub fn of(status: StatusCode, kind: HeaderValue, body: Body) -> Answer {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, kind);
    headers.insert(CACHE_CONTROL, NO_STORE);
    response
}

/// 200 with a value.
pub fn value(version: &Version, form: Form, stale: bool, body: Body) -> Answer {
    let kind = match form {
        Form::Json => JSON,
        Form::Raw => OCTETS,
    };
    let mut response = of(StatusCode::OK, kind, body);
    let headers = response.headers_mut();
    headers.insert(ETAG, version.etag().clone());
    if form == Form::Raw {
        headers.insert(VERSION, version.header().clone());
    }
    if form == Form::Raw && stale {
        mark_stale(&mut response);
    }
    response
}

/// Says that the source no longer stands behind the value, where the body has no place for it.
pub fn mark_stale(answer: &mut Answer) {
    let headers = answer.headers_mut();
    headers.insert(STALE, HeaderValue::from_static("true"));
}

/// 304: the version that the peer has is the current one.
pub fn not_modified(version: &Version) -> Answer {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    response.headers_mut().insert(ETAG, version.etag().clone());
    response.headers_mut().insert(CACHE_CONTROL, NO_STORE);
    response
}

/// A JSON document without secrets.
pub fn document(status: StatusCode, document: &impl Serialize) -> Answer {
    of(status, JSON, Body::one(to_json(document)))
}

/// JSON pieces, of which some may be leases.
pub fn pieces(pieces: std::collections::VecDeque<Bytes>) -> Answer {
    of(StatusCode::OK, JSON, Body::Pieces(pieces))
}

/// Text of another kind, such as metrics.
pub fn text(kind: &'static str, text: String) -> Answer {
    of(
        StatusCode::OK,
        HeaderValue::from_static(kind),
        Body::one(text),
    )
}

/// A stream of events.
pub fn events(watch: super::watch::Watch) -> Answer {
    of(StatusCode::OK, EVENTS, Body::Watch(Box::new(watch)))
}

/// A problem document (RFC 9457).
pub fn problem(code: Code, id: &RequestId, detail: Option<&str>) -> Answer {
    let document = Problem::new(code, detail.map(str::to_owned), id.as_str().to_owned());
    let status = StatusCode::from_u16(code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = of(status, PROBLEM, Body::one(to_json(&document)));
    if code == Code::RateLimited {
        response
            .headers_mut()
            .insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

fn to_json(document: &impl Serialize) -> Vec<u8> {
    // Our documents have text keys and no type that fails to serialise.
    serde_json::to_vec(document).unwrap_or_default()
}
