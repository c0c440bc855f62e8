//! Answers as Vault's clients know them.

use hyper::StatusCode;
use hyper::header::{HeaderName, HeaderValue, RETRY_AFTER};
use keyhatch_protocol::Code;
use serde_json::{Map, Value as Json, json};

use super::numbers::Numbered;
use crate::api::answer::{self, Answer};
use crate::api::body::Body;
use crate::api::id::RequestId;
use crate::cache::{Entry, Version};

const KIND: HeaderValue = HeaderValue::from_static("application/json");
const REQUEST_ID: HeaderName = HeaderName::from_static("keyhatch-request-id");

/// How an answer ends after its data.
pub const END: &str = r#","wrap_info":null,"warnings":null,"auth":null}"#;

/// The same where the source is not well.
pub const STALE_END: &str = r#","wrap_info":null,"warnings":["The source of this secret does not answer: this is its last good value"],"auth":null}"#;

/// What Vault says of a method that a path does not have.
pub const NO_OPERATION: &str = "1 error occurred:\n\t* unsupported operation\n\n";

/// 200 with a body, of which parts may be leases.
pub fn body(body: Body) -> Answer {
    answer::of(StatusCode::OK, KIND, body)
}

/// 200 with data that holds no secret.
pub fn data(id: &RequestId, data: &Json) -> Answer {
    body(Body::one(format!(
        r#"{{"request_id":"{id}","lease_id":"","renewable":false,"lease_duration":0,"data":{data}{END}"#
    )))
}

/// A document of its own shape.
pub fn document(status: StatusCode, document: &Json) -> Answer {
    answer::of(status, KIND, Body::one(document.to_string()))
}

/// A refusal: `{"errors":[...]}`.
pub fn errors(status: u16, errors: &[impl AsRef<str>], id: &RequestId) -> Answer {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let errors: Vec<&str> = errors.iter().map(AsRef::as_ref).collect();
    let mut answer = document(status, &json!({ "errors": errors }));
    let headers = answer.headers_mut();
    if let Ok(id) = HeaderValue::from_str(id.as_str()) {
        headers.insert(REQUEST_ID, id);
    }
    if status == StatusCode::TOO_MANY_REQUESTS {
        headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    answer
}

/// A refusal with one of our codes.
pub fn problem(code: Code, id: &RequestId, detail: Option<&str>) -> Answer {
    let text = match code {
        Code::NotFound => return errors(404, &[""; 0], id),
        Code::Denied => "permission denied",
        Code::Sealed => "Vault is sealed",
        other => other.title(),
    };
    errors(code.status(), &[detail.unwrap_or(text)], id)
}

/// What is known of a secret's versions.
pub fn metadata(id: &RequestId, entry: &Entry, numbers: Numbered) -> Answer {
    let known = |version: &Version| json!({ "created_time": version.updated_at(), "deletion_time": "", "destroyed": false });
    let mut versions = Map::new();
    let mut oldest = (numbers.current, &entry.current);
    if let (Some(number), Some(version)) = (numbers.previous, &entry.previous) {
        versions.insert(number.to_string(), known(version));
        oldest = (number, version);
    }
    versions.insert(numbers.current.to_string(), known(&entry.current));
    let document = json!({
        "cas_required": false,
        "created_time": oldest.1.updated_at(),
        "current_metadata_version": 0,
        "current_version": numbers.current,
        "custom_metadata": null,
        "delete_version_after": "0s",
        "max_versions": 2,
        "metadata_cas_required": false,
        "oldest_version": oldest.0,
        "updated_time": entry.current.updated_at(),
        "versions": versions,
    });
    data(id, &document)
}
