//! The read side of Vault's KV version 2, as its CLI and its libraries ask for it.

use std::collections::VecDeque;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use hyper::{Method, Request};
use keyhatch_protocol::{Code, Name, NameError, percent_decode};

use super::vault_answer::{self, NO_OPERATION};
use super::vault_keys::{self, Keys};
use super::{supplied, vault_own};
use crate::api::answer::Answer;
use crate::api::body::Body;
use crate::api::connection::{Bound, Connection};
use crate::api::id::RequestId;
use crate::api::reading::{self, Granted, Reading};
use crate::api::request::{Secret, Which, pairs};
use crate::api::route::Reply;
use crate::api::surface::Surface;
use crate::audit::Event;
use crate::cache::{Freshness, Kind};
use crate::config::Dropin;
use crate::sources::engine::Supply;

/// The room for what precedes a value.
const HEAD: usize = 320;

/// What is asked of a mount, or of Vault itself.
#[derive(Debug, PartialEq, Eq)]
pub enum Ask {
    /// `GET /v1/{mount}/data/{path}`
    Data(Secret),
    /// `GET /v1/{mount}/metadata/{path}`
    Metadata(Secret),
    /// `LIST /v1/{mount}/metadata/{path}`
    Keys(Keys),
    /// A path under `sys` or `auth`.
    Own(String),
}

/// Why a request is not answered: its status and the words of Vault.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused(pub u16, pub Vec<String>);

/// Answers one request.
pub fn reply<B>(
    connection: &Arc<Connection>,
    bound: &Arc<Bound>,
    id: RequestId,
    request: &Request<B>,
) -> Reply {
    let uri = request.uri();
    let dropin = connection.context.dropin.load();
    let ask = match parse(&dropin, request.method(), uri.path(), uri.query()) {
        Ok(ask) => ask,
        Err(Refused(status, errors)) => {
            connection.context.counts.bad.fetch_add(1, Relaxed);
            return Reply::Now(vault_answer::errors(status, &errors, &id));
        }
    };
    match ask {
        Ask::Data(ask) => {
            let answer = move |connection: &Connection, bound: &Bound, ask: &Secret, supply| {
                let read = data(connection, bound, &id, ask, supply);
                read.unwrap_or_else(|code| vault_answer::problem(code, &id, None))
            };
            supplied(connection, bound, ask, false, answer)
        }
        Ask::Metadata(ask) => {
            let answer = move |connection: &Connection, bound: &Bound, ask: &Secret, supply| {
                let read = metadata(connection, bound, &id, ask, supply);
                read.unwrap_or_else(|code| vault_answer::problem(code, &id, None))
            };
            supplied(connection, bound, ask, false, answer)
        }
        Ask::Keys(ask) => {
            let keys = vault_keys::list(connection, bound, &id, &ask);
            Reply::Now(keys.unwrap_or_else(|code| vault_answer::problem(code, &id, None)))
        }
        Ask::Own(path) => Reply::Now(vault_own::answer(
            connection,
            bound,
            &id,
            &path,
            uri.query(),
        )),
    }
}

/// Parses the request line.
fn parse(
    dropin: &Dropin,
    method: &Method,
    path: &str,
    query: Option<&str>,
) -> Result<Ask, Refused> {
    let path = path.strip_prefix("/v1/").unwrap_or_default();
    let listing = method.as_str() == "LIST" || *method == Method::GET && wants_list(query);
    let reading = *method == Method::GET && !listing;
    if path.starts_with("sys/") || path.starts_with("auth/") {
        // Some probe with HEAD whether it is well.
        let probing = *method == Method::HEAD && path == "sys/health";
        return if reading || probing {
            Ok(Ask::Own(path.to_owned()))
        } else {
            Err(no_operation())
        };
    }
    let Some((prefix, rest)) = dropin.mount(path) else {
        let path = String::from_utf8_lossy(&percent_decode(path).unwrap_or_default()).into_owned();
        let why = format!("no handler for route {path:?}. route entry not found.");
        return Err(Refused(404, vec![why]));
    };
    let (kind, path) = rest.split_once('/').unwrap_or((rest, ""));
    match (kind, path) {
        ("data", "") if reading => Err(Refused(404, Vec::new())),
        ("data", _) if reading => Ok(Ask::Data(Secret {
            which: version(query)?,
            ..Secret::current(name(prefix, path)?)
        })),
        ("metadata", _) if listing => Ok(Ask::Keys(Keys {
            prefix: folder(prefix, path)?,
            ..page(query)?
        })),
        ("metadata", path) if reading && !path.is_empty() => {
            Ok(Ask::Metadata(Secret::current(name(prefix, path)?)))
        }
        ("data" | "metadata" | "delete" | "undelete" | "destroy" | "subkeys" | "config", _) => {
            Err(no_operation())
        }
        _ => {
            let why = "1 error occurred:\n\t* unsupported path\n\n";
            Err(Refused(404, vec![why.into()]))
        }
    }
}

fn no_operation() -> Refused {
    Refused(405, vec![NO_OPERATION.into()])
}

fn wants_list(query: Option<&str>) -> bool {
    pairs(query).any(|(key, value)| key == "list" && matches!(value, "true" | "1"))
}

/// The version asked for; nothing, 0 and less mean the current one, as in Vault.
fn version(query: Option<&str>) -> Result<Which, Refused> {
    let Some((_, value)) = pairs(query).find(|(key, _)| *key == "version") else {
        return Ok(Which::Current);
    };
    match value.parse::<i64>().map(u64::try_from) {
        Ok(Err(_) | Ok(0)) => Ok(Which::Current),
        Ok(Ok(number)) => Ok(Which::Number(number)),
        Err(_) => Err(no_number("version")),
    }
}

/// The part of a list that is asked for, as OpenBao has it; 0 and less mean all of it.
fn page(query: Option<&str>) -> Result<Keys, Refused> {
    let mut keys = Keys::default();
    for (key, value) in pairs(query) {
        match key {
            "after" => {
                keys.after = decoded(value).map_err(|why| Refused(400, vec![why.to_string()]))?;
            }
            "limit" => {
                let limit: i64 = value.parse().map_err(|_| no_number("limit"))?;
                keys.limit = usize::try_from(limit).unwrap_or(0);
            }
            _ => {}
        }
    }
    Ok(keys)
}

fn no_number(field: &str) -> Refused {
    let why = format!(
        "Field validation failed: error converting input for field {field:?}: it is no number"
    );
    Refused(400, vec![why])
}

fn name(prefix: &str, path: &str) -> Result<Name, Refused> {
    let parsed = match prefix {
        "" => Name::from_path(path),
        _ => decoded(path).and_then(|path| Name::parse(&format!("{prefix}{path}"))),
    };
    parsed.map_err(|why| Refused(400, vec![why.to_string()]))
}

/// What the names in a folder begin with.
fn folder(prefix: &str, path: &str) -> Result<String, Refused> {
    let path = path.strip_suffix('/').unwrap_or(path);
    if path.is_empty() {
        return Ok(prefix.to_owned());
    }
    Ok(format!("{}/", name(prefix, path)?))
}

fn decoded(path: &str) -> Result<String, NameError> {
    let bytes = percent_decode(path).ok_or(NameError::BadEscape)?;
    String::from_utf8(bytes.into_owned()).map_err(|_| NameError::BadByte)
}

/// The value of one version.
fn data(
    connection: &Connection,
    bound: &Bound,
    id: &RequestId,
    ask: &Secret,
    supply: Option<Supply>,
) -> Result<Answer, Code> {
    let reading = Reading::of(Surface::Vault, ask, supply);
    let granted = reading::read(connection, bound, id, &reading)?;
    Ok(vault_answer::body(Body::Pieces(value(
        connection, id, &granted,
    ))))
}

/// A JSON object is lent as it is; any other value is the field of one.
fn value(connection: &Connection, id: &RequestId, granted: &Granted) -> VecDeque<Bytes> {
    let Granted {
        entry,
        version,
        permit,
        ..
    } = granted;
    let numbers = connection.context.numbers.of(entry);
    let number = if version.id() == entry.current.id() {
        numbers.current
    } else {
        numbers.previous.unwrap_or_default()
    };
    let mut head = String::with_capacity(HEAD);
    // Writing to a string does not fail.
    let _ = write!(
        head,
        r#"{{"request_id":"{id}","lease_id":"","renewable":false,"lease_duration":0,"data":{{"metadata":{{"created_time":"{}","custom_metadata":null,"deletion_time":"","destroyed":false,"version":{number}}},"data":"#,
        version.updated_at(),
    );
    let field = match version.kind() {
        Kind::Object => None,
        Kind::Text => Some("value"),
        Kind::Binary => Some("value_base64"),
    };
    let mut tail = "}";
    let lease = match field {
        None => version.lease(permit, crate::cache::Form::Raw),
        Some(field) => {
            let _ = write!(head, "{{\"{field}\":");
            tail = "}}";
            version.lease_string(permit)
        }
    };
    let end = if entry.freshness() == Freshness::Stale {
        vault_answer::STALE_END
    } else {
        vault_answer::END
    };
    VecDeque::from([
        Bytes::from(head),
        Bytes::from_owner(lease),
        Bytes::from_static(tail.as_bytes()),
        Bytes::from_static(end.as_bytes()),
    ])
}

/// What is known of a secret's versions, for whoever may list the name, or read it.
fn metadata(
    connection: &Connection,
    bound: &Bound,
    id: &RequestId,
    ask: &Secret,
    supply: Option<Supply>,
) -> Result<Answer, Code> {
    let reading = Reading {
        event: Event::SecretList,
        action: bound.action_to_see(&ask.name),
        ..Reading::of(Surface::Vault, ask, supply)
    };
    let Granted { entry, .. } = reading::read(connection, bound, id, &reading)?;
    let numbers = connection.context.numbers.of(&entry);
    Ok(vault_answer::metadata(id, &entry, numbers))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn ask(method: &str, path: &str) -> Result<Ask, Refused> {
        let mounts = [("secret", ""), ("kv/two", "other/")];
        let dropin = Dropin {
            vault_mounts: mounts.map(|(m, p)| (m.into(), p.into())).into(),
            ..Dropin::default()
        };
        let (path, query) = path
            .split_once('?')
            .map_or((path, None), |(p, q)| (p, Some(q)));
        parse(&dropin, &method.parse().unwrap(), path, query)
    }

    fn secret(name: &str) -> Secret {
        Secret::current(Name::parse(name).unwrap())
    }

    #[test]
    fn paths_of_mounts_are_names() {
        assert_eq!(
            ask("GET", "/v1/secret/data/app/db"),
            Ok(Ask::Data(secret("app/db")))
        );
        let second = Secret {
            which: Which::Number(2),
            ..secret("other/app/db")
        };
        assert_eq!(
            ask("GET", "/v1/kv/two/data/app%2Fdb?version=2"),
            Ok(Ask::Data(second))
        );
        for current in ["0", "-1"] {
            let path = format!("/v1/secret/data/a?version={current}");
            assert_eq!(ask("GET", &path), Ok(Ask::Data(secret("a"))));
        }
        assert_eq!(
            ask("GET", "/v1/secret/metadata/a"),
            Ok(Ask::Metadata(secret("a")))
        );
        for (method, path, prefix) in [
            ("LIST", "/v1/secret/metadata", ""),
            ("LIST", "/v1/secret/metadata/app/", "app/"),
            ("GET", "/v1/secret/metadata/?list=true", ""),
            ("GET", "/v1/kv/two/metadata/app?list=true", "other/app/"),
        ] {
            let keys = Keys {
                prefix: prefix.into(),
                ..Keys::default()
            };
            assert_eq!(ask(method, path), Ok(Ask::Keys(keys)), "{path}");
        }
    }

    #[test]
    fn everything_else_is_refused_as_vault_would() {
        for (method, path, status) in [
            ("GET", "/v1/secret/data/", 404),
            ("GET", "/v1/secret/data", 404),
            ("GET", "/v1/secret/metadata", 405),
            ("GET", "/v1/secret/data/a?version=x", 400),
            ("GET", "/v1/secret/data/../a", 400),
            ("GET", "/v1/secret/data/%2e%2e/a", 400),
            ("GET", "/v1/secret/data/a%00", 400),
            ("GET", "/v1/secret/data//a", 400),
            ("GET", "/v1/secret/data/%ff", 400),
            ("LIST", "/v1/secret/metadata/a//", 400),
            ("LIST", "/v1/secret/metadata/a?limit=x", 400),
            ("LIST", "/v1/secret/data/a", 405),
            ("PUT", "/v1/secret/data/a", 405),
            ("POST", "/v1/secret/data/a", 405),
            ("PATCH", "/v1/secret/data/a", 405),
            ("DELETE", "/v1/secret/metadata/a", 405),
            ("HEAD", "/v1/secret/data/a", 405),
            ("GET", "/v1/secret/config", 405),
            ("GET", "/v1/secret/a", 404),
            ("GET", "/v1/secret", 404),
            ("GET", "/v1/secretary/data/a", 404),
            ("GET", "/v1/kv/data/a", 404),
            ("POST", "/v1/auth/token/create", 405),
        ] {
            let refused = ask(method, path).unwrap_err();
            assert_eq!(refused.0, status, "{method} {path}");
        }
    }
}
