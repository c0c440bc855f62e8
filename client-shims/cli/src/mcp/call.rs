//! `call_route`: one request by a route, its answer as a document.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderMap};
use hyper::{Method, Request};
use keyhatch::Client;
use rmcp::model::JsonObject;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::time::{Instant, timeout_at};

use super::{Refused, read};

/// More of an answer is no use to a model.
const LARGEST: usize = 256 * 1024;

/// A stream that does not end is told as far as it came by then.
const LONGEST: Duration = Duration::from_secs(120);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Call {
    route: String,
    path: String,
    #[serde(default = "get")]
    method: String,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    body: Option<Value>,
}

fn get() -> String {
    Method::GET.to_string()
}

pub async fn route(client: &Client, arguments: JsonObject) -> Result<Value, Refused> {
    let call: Call = read(arguments)?;
    let route = client.route(&call.route);
    let answer = route.send(request(call)?).await?;
    let (head, body) = answer.into_parts();
    let (body, whole) = collect(body).await;
    let mut told = Map::new();
    told.insert("status".into(), json!(head.status.as_u16()));
    told.insert("headers".into(), json!(texts(&head.headers)));
    match text(&body, whole) {
        Some(text) => told.insert("body".into(), json!(text)),
        None => told.insert("body_base64".into(), json!(STANDARD.encode(&body))),
    };
    if !whole {
        told.insert("truncated".into(), json!(true));
    }
    Ok(Value::Object(told))
}

fn request(call: Call) -> Result<Request<Full<Bytes>>, Refused> {
    if !call.path.starts_with('/') {
        let why = "`path` begins with a slash, and names no host".to_owned();
        return Err(Refused::Arguments(why));
    }
    let mut request = Request::builder()
        .method(call.method.to_ascii_uppercase().as_str())
        .uri(call.path);
    for (name, value) in &call.headers {
        request = request.header(name, value);
    }
    let body = match call.body {
        None => String::new(),
        Some(Value::String(text)) => text,
        Some(document) => {
            let named = |name: &String| name.eq_ignore_ascii_case(CONTENT_TYPE.as_str());
            if !call.headers.keys().any(named) {
                request = request.header(CONTENT_TYPE, "application/json");
            }
            document.to_string()
        }
    };
    request
        .body(Full::from(body))
        .map_err(|cause| Refused::Arguments(cause.to_string()))
}

/// As much of the body as there may be, and whether that is all.
async fn collect(mut body: Incoming) -> (Vec<u8>, bool) {
    let until = Instant::now() + LONGEST;
    let mut all = Vec::new();
    loop {
        match timeout_at(until, body.frame()).await {
            Ok(None) => return (all, true),
            Ok(Some(Ok(frame))) => {
                let piece = frame.into_data().unwrap_or_default();
                let room = LARGEST - all.len();
                all.extend_from_slice(&piece[..piece.len().min(room)]);
                if piece.len() > room {
                    return (all, false);
                }
            }
            Ok(Some(Err(_))) | Err(_) => return (all, false),
        }
    }
}

/// The body where it is text; one that was cut within a character is told up to that.
fn text(body: &[u8], whole: bool) -> Option<&str> {
    let end = match std::str::from_utf8(body) {
        Err(error) if !whole && error.error_len().is_none() => error.valid_up_to(),
        _ => body.len(),
    };
    std::str::from_utf8(&body[..end]).ok()
}

/// A header that is there twice is told as one.
fn texts(headers: &HeaderMap) -> BTreeMap<&str, String> {
    let mut texts = BTreeMap::<&str, String>::new();
    for (name, value) in headers {
        let value = String::from_utf8_lossy(value.as_bytes());
        let text = texts.entry(name.as_str()).or_default();
        if !text.is_empty() {
            text.push_str(", ");
        }
        text.push_str(&value);
    }
    texts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_was_cut_is_a_text() {
        let body = "aé".as_bytes();
        assert_eq!(text(body, true), Some("aé"));
        assert_eq!(text(&body[..2], false), Some("a"));
        assert_eq!(text(&body[..2], true), None);
        assert_eq!(text(b"a\xffb", false), None);
    }
}
