//! What AWS's Secrets Manager Agent answers: `GET /secretsmanager/get` and `GET /ping`.

use std::sync::Arc;

use hyper::{Method, Request, StatusCode};
use keyhatch_protocol::percent_decode;

use super::aws_answer::{self, Exception};
use super::aws_names::{self, AwsVersion};
use super::supplied;
use crate::api::answer::{self, Answer};
use crate::api::connection::{Bound, Connection};
use crate::api::id::RequestId;
use crate::api::reading::{self, Reading};
use crate::api::request::{Secret, pairs};
use crate::api::route::Reply;
use crate::api::surface::Surface;
use crate::sources::engine::Supply;

/// Answers one request.
pub fn reply<B>(
    connection: &Arc<Connection>,
    bound: &Arc<Bound>,
    id: RequestId,
    request: &Request<B>,
) -> Reply {
    let ping = request.uri().path() == "/ping";
    // A proxy that is told to fetch it for someone else is what the header shows.
    if !ping && request.headers().contains_key("x-forwarded-for") {
        return Reply::Now(text(StatusCode::BAD_REQUEST, "Forwarded"));
    }
    if request.method() != Method::GET {
        return Reply::Now(text(StatusCode::METHOD_NOT_ALLOWED, "Not allowed"));
    }
    if ping {
        return Reply::Now(text(StatusCode::OK, "healthy"));
    }
    let query = match Query::parse(request.uri().query()) {
        Ok(query) => query,
        Err(why) => return Reply::Now(text(StatusCode::BAD_REQUEST, &why)),
    };
    let Ok(name) = aws_names::name(&connection.context.dropin.load(), &query.secret_id) else {
        return Reply::Now(Exception::no_name().answer(&id));
    };
    let ask = Secret {
        which: AwsVersion::wanted(query.version_id, query.version_stage),
        ..Secret::current(name)
    };
    let answer = move |connection: &Connection, bound: &Bound, ask: &Secret, supply| {
        get(connection, bound, Surface::AwsAgent, &id, ask, supply)
    };
    supplied(connection, bound, ask, query.refresh_now, answer)
}

/// One value, as `GetSecretValue` has it.
pub fn get(
    connection: &Connection,
    bound: &Bound,
    surface: Surface,
    id: &RequestId,
    ask: &Secret,
    supply: Option<Supply>,
) -> Answer {
    match reading::read(connection, bound, id, &Reading::of(surface, ask, supply)) {
        Ok(granted) => aws_answer::value(connection, surface, id, &granted),
        Err(code) => Exception::of_read(connection, code, ask).answer(id),
    }
}

fn text(status: StatusCode, text: &str) -> Answer {
    let mut answer = answer::text("text/plain", text.to_owned());
    *answer.status_mut() = status;
    answer
}

/// The parameters of a request.
#[derive(Debug, Default, PartialEq, Eq)]
struct Query {
    secret_id: String,
    version_id: Option<String>,
    version_stage: Option<String>,
    refresh_now: bool,
}

impl Query {
    /// Errors are those of AWS's agent, word by word.
    fn parse(query: Option<&str>) -> Result<Self, String> {
        let mut parsed = Self::default();
        for (key, value) in pairs(query) {
            let text = || {
                let bytes = percent_decode(value)?;
                String::from_utf8(bytes.into_owned()).ok()
            };
            let value = text().ok_or_else(|| format!("{key} is no UTF-8 text"))?;
            match key {
                "secretId" => parsed.secret_id = value,
                "versionId" => parsed.version_id = Some(value),
                "versionStage" => parsed.version_stage = Some(value),
                "refreshNow" => {
                    parsed.refresh_now = match &*value.to_ascii_lowercase() {
                        "true" | "1" => true,
                        "false" | "0" => false,
                        _ => return Err("invalid refreshNow value".into()),
                    }
                }
                _ => return Err(format!("unknown parameter: {key}")),
            }
        }
        if parsed.secret_id.is_empty() {
            return Err("missing parameter secretId".into());
        }
        Ok(parsed)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn queries_as_the_agents_clients_send_them() {
        let all = "secretId=a%2Fb&versionId=v&versionStage=AWSPREVIOUS&refreshNow=TRUE";
        assert_eq!(
            Query::parse(Some(all)).unwrap(),
            Query {
                secret_id: "a/b".into(),
                version_id: Some("v".into()),
                version_stage: Some("AWSPREVIOUS".into()),
                refresh_now: true,
            }
        );
        for (query, why) in [
            (None, "missing parameter secretId"),
            (Some("secretId="), "missing parameter secretId"),
            (Some("secretId=a&x=1"), "unknown parameter: x"),
            (
                Some("secretId=a&refreshNow=maybe"),
                "invalid refreshNow value",
            ),
            (Some("secretId=%ff"), "secretId is no UTF-8 text"),
        ] {
            assert_eq!(Query::parse(query).unwrap_err(), why);
        }
    }
}
