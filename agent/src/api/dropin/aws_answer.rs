//! Answers as AWS's clients know them.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::{HeaderName, HeaderValue, RETRY_AFTER};
use keyhatch_protocol::{Code, Name};
use serde::Serialize;
use serde_json::{Value as Json, json};

use super::aws_names::{self, Arn, CURRENT, version_id};
use crate::api::answer::{self, Answer};
use crate::api::body::Body;
use crate::api::connection::Connection;
use crate::api::id::RequestId;
use crate::api::reading::Granted;
use crate::api::request::{Secret, Which};
use crate::api::surface::Surface;
use crate::cache::{Entry, Freshness, Kind, Shape, Version};
use crate::config::Dropin;

const KIND: HeaderValue = HeaderValue::from_static("application/x-amz-json-1.1");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-amzn-requestid");
const ERROR_TYPE: HeaderName = HeaderName::from_static("x-amzn-errortype");

/// Why a request is not answered, in AWS's words.
#[derive(Debug)]
pub struct Exception {
    status: u16,
    /// Its type.
    pub kind: &'static str,
    /// For people.
    pub message: Cow<'static, str>,
}

impl Exception {
    /// One of status 400.
    pub fn new(kind: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            status: 400,
            kind,
            message: message.into(),
        }
    }

    /// What was asked is wrong.
    pub fn invalid(message: &'static str) -> Self {
        Self::new("InvalidParameterException", message)
    }

    /// What is said of an id that can be no name.
    pub fn no_name() -> Self {
        Self::invalid(
            "SecretId is no name: 1 to 512 of letters, digits and -/_+=.@, or an ARN with one",
        )
    }

    /// The exception that says the same as one of our codes.
    pub fn of(code: Code) -> Self {
        let (status, kind) = match code {
            Code::Denied | Code::Quarantined => (400, "AccessDeniedException"),
            Code::NotFound => (400, "ResourceNotFoundException"),
            Code::BadRequest | Code::MethodNotAllowed => (400, "InvalidParameterException"),
            Code::InGrace => (400, "InvalidRequestException"),
            Code::RateLimited => (400, "ThrottlingException"),
            Code::Timeout => (408, "RequestTimeoutException"),
            Code::TooLarge | Code::HeadersTooLarge => (413, "RequestEntityTooLargeException"),
            Code::UpstreamUnavailable | Code::Sealed | Code::AuditUnavailable => {
                (503, "InternalServiceError")
            }
            Code::Internal | Code::UpstreamFailed | Code::UpstreamTimeout => {
                (500, "InternalServiceError")
            }
        };
        let message = match code {
            Code::Denied => "This host's policy denies it, or there is no such secret",
            Code::NotFound => "Secrets Manager can't find the specified secret.",
            other => other.title(),
        };
        Self {
            status,
            ..Self::new(kind, message)
        }
    }

    /// Why a read of `ask` failed with `code`: of what is not found, which part.
    pub fn of_read(connection: &Connection, code: Code, ask: &Secret) -> Self {
        let exception = Self::of(code);
        let snapshot = connection.context.cache.snapshot();
        if code != Code::NotFound || snapshot.get(ask.name.as_str()).is_none() {
            return exception;
        }
        let what = match &ask.which {
            Which::Aws(wanted) => wanted.what(),
            _ => format!("secret value for staging label: {}", aws_names::PREVIOUS),
        };
        let message = format!("Secrets Manager can't find the specified {what}");
        Self {
            message: message.into(),
            ..exception
        }
    }

    /// The answer.
    pub fn answer(&self, id: &RequestId) -> Answer {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let text = json!({ "__type": self.kind, "message": self.message }).to_string();
        let mut answer = answer::of(status, KIND, Body::one(text));
        name_request(&mut answer, id);
        let headers = answer.headers_mut();
        headers.insert(ERROR_TYPE, HeaderValue::from_static(self.kind));
        if self.kind == "ThrottlingException" {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        answer
    }
}

/// 200 with a document without secrets.
pub fn document(id: &RequestId, document: &impl Serialize) -> Answer {
    // Our documents have text keys and no type that fails to serialise.
    let json = serde_json::to_vec(document).unwrap_or_default();
    body(id, Body::one(json))
}

/// 200 with a body, of which parts may be leases.
pub fn body(id: &RequestId, body: Body) -> Answer {
    let mut answer = answer::of(StatusCode::OK, KIND, body);
    name_request(&mut answer, id);
    answer
}

/// 200 with one value, as `GetSecretValue` has it.
pub fn value(
    connection: &Connection,
    surface: Surface,
    id: &RequestId,
    granted: &Granted,
) -> Answer {
    let dropin = connection.context.dropin.load();
    let arena = connection.context.cache.arena();
    let Granted {
        version, permit, ..
    } = granted;
    let shape = shape(surface, &dropin, granted);
    let frame = || (head(surface, &dropin, granted), END);
    let body = if let Some(lease) = version.lease_framed(permit, arena, shape, frame) {
        Body::one(Bytes::from_owner(lease))
    } else {
        let mut pieces = VecDeque::with_capacity(3);
        add_value(&mut pieces, surface, &dropin, granted);
        Body::Pieces(pieces)
    };
    let mut answer = self::body(id, body);
    if granted.entry.freshness() == Freshness::Stale {
        answer::mark_stale(&mut answer);
    }
    answer
}

/// All that the answer depends on besides the version: the API, the stage, and how much of the name is AWS's.
fn shape(surface: Surface, dropin: &Dropin, granted: &Granted) -> Shape {
    let stage = aws_names::stage(&granted.entry, &granted.version);
    Shape {
        api: usize::from(surface == Surface::AwsAgent),
        variant: 2 * dropin.aws_prefix.len() + usize::from(stage == CURRENT),
    }
}

/// The members of one value; its bytes are lent.
pub fn add_value(
    pieces: &mut VecDeque<Bytes>,
    surface: Surface,
    dropin: &Dropin,
    granted: &Granted,
) {
    let Granted {
        version, permit, ..
    } = granted;
    pieces.push_back(Bytes::from(head(surface, dropin, granted)));
    pieces.push_back(Bytes::from_owner(version.lease_string(permit)));
    pieces.push_back(Bytes::from_static(END.as_bytes()));
}

/// How a value's answer ends.
const END: &str = "}";

/// What precedes the value.
fn head(surface: Surface, dropin: &Dropin, granted: &Granted) -> String {
    let Granted { entry, version, .. } = granted;
    let own = aws_names::own(dropin, &entry.name).unwrap_or_default();
    let key = match version.kind() {
        Kind::Binary => "SecretBinary",
        Kind::Object | Kind::Text => "SecretString",
    };
    // AWS's agent writes the time as text.
    let quote = if surface == Surface::AwsAgent {
        "\""
    } else {
        ""
    };
    // Names and versions are of an alphabet that JSON does not escape.
    format!(
        r#"{{"ARN":"{arn}","Name":"{own}","VersionId":"{version_id}","VersionStages":["{stage}"],"CreatedDate":{quote}{created}{quote},"{key}":"#,
        arn = Arn(own),
        version_id = version_id(version.id()),
        stage = aws_names::stage(entry, version),
        created = Seconds(version.set_at()),
    )
}

/// Seconds since 1970 as AWS writes them, with milliseconds where there are some.
struct Seconds(Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.subsec_millis() {
            0 => write!(f, "{}", self.0.as_secs()),
            millis => write!(f, "{}.{millis:03}", self.0.as_secs()),
        }
    }
}

/// The same as a number of a document.
fn seconds(version: &Version) -> Json {
    serde_json::from_str(&Seconds(version.set_at()).to_string()).unwrap_or_default()
}

/// A refusal with one of our codes.
pub fn problem(code: Code, id: &RequestId, detail: Option<&str>) -> Answer {
    let mut exception = Exception::of(code);
    if let Some(detail) = detail {
        exception.message = Cow::Owned(detail.to_owned());
    }
    exception.answer(id)
}

/// A list entry, or what `DescribeSecret` says besides it: `versions` is how the map of versions is called.
pub fn about(dropin: &Dropin, name: &Name, entry: &Entry, versions: &str) -> Json {
    let own = aws_names::own(dropin, name).unwrap_or_default();
    let held = [Some(&entry.current), entry.previous.as_ref()];
    let stages: serde_json::Map<_, _> = held
        .into_iter()
        .flatten()
        .map(|version| {
            let stage = aws_names::stage(entry, version);
            (version_id(version.id()).into_owned(), json!([stage]))
        })
        .collect();
    let oldest = entry.previous.as_ref().unwrap_or(&entry.current);
    json!({
        "ARN": Arn(own).to_string(),
        "Name": own,
        "CreatedDate": seconds(oldest),
        "LastChangedDate": seconds(&entry.current),
        versions: stages,
    })
}

/// What is said of a secret whose rotation has begun; `version` is the one to come, where it is known.
pub fn rotating(dropin: &Dropin, name: &Name, version: Option<&str>) -> Json {
    let own = aws_names::own(dropin, name).unwrap_or_default();
    let mut about = json!({ "ARN": Arn(own).to_string(), "Name": own });
    if let Some(version) = version {
        about["VersionId"] = version_id(version).into();
    }
    about
}

fn name_request(answer: &mut Answer, id: &RequestId) {
    if let Ok(id) = HeaderValue::from_str(id.as_str()) {
        answer.headers_mut().insert(REQUEST_ID, id);
    }
}
