//! What a bot asks, parsed once from method, path and query.

use std::fmt;

use hyper::Method;
use hyper::header::{ACCEPT, HeaderMap, HeaderName, IF_NONE_MATCH};
use keyhatch_protocol::{MAX_BATCH, Name, OCTET_STREAM, percent_decode};

use super::dropin::AwsVersion;
use crate::cache::Form;

const PREFER: HeaderName = HeaderName::from_static("prefer");

/// The longest that a long poll waits, in seconds.
const LONGEST_WAIT: u64 = 300;

/// The most names on one page of a list.
const PAGE: usize = 1_000;

/// A request of the native API.
#[derive(Debug, PartialEq, Eq)]
pub enum Ask {
    /// `GET /v1/secrets/{name}`
    Secret(Secret),
    /// `GET /v1/secrets`
    List(List),
    /// `POST /v1/batch`
    Batch,
    /// `GET /v1/watch`
    Watch(Vec<Name>),
    /// `POST /v1/rotate/{name}`
    Rotate(Name),
    /// `GET /v1/whoami`
    Whoami,
    /// `GET /v1/health`
    Health,
}

/// A request for a value.
#[derive(Debug, PartialEq, Eq)]
pub struct Secret {
    /// Whose value.
    pub name: Name,
    /// Which of its versions.
    pub which: Which,
    /// One field of it only.
    pub field: Option<String>,
}

impl Secret {
    /// The whole current value.
    pub fn current(name: Name) -> Self {
        Self {
            name,
            which: Which::Current,
            field: None,
        }
    }
}

/// A version as a request names it.
#[derive(Debug, PartialEq, Eq)]
pub enum Which {
    /// The one that is current.
    Current,
    /// The one before.
    Previous,
    /// The one with this id.
    Id(String),
    /// The one that AWS would find.
    Aws(AwsVersion),
    /// The one with this number among a secret's versions.
    Number(u64),
}

impl Which {
    /// Whether it is another version than the current one wherever it is not held.
    pub fn is_fixed(&self) -> bool {
        match self {
            Self::Current => false,
            Self::Previous | Self::Id(_) | Self::Number(_) => true,
            Self::Aws(version) => version.has_id(),
        }
    }
}

/// A request for names.
#[derive(Debug, PartialEq, Eq)]
pub struct List {
    /// What the names begin with.
    pub prefix: String,
    /// The last name of the page before.
    pub after: Option<String>,
    /// How many at most.
    pub limit: usize,
}

/// Why a request does not parse.
#[derive(Debug, PartialEq, Eq)]
pub enum Bad {
    /// No such path, or a parameter that is wrong.
    Request(String),
    /// The path exists, the method does not.
    Method,
}

impl Bad {
    fn because(why: impl fmt::Display) -> Self {
        Self::Request(why.to_string())
    }
}

/// Parses the request line. The path is taken as it came: nothing is normalised away.
pub fn parse(method: &Method, path: &str, query: Option<&str>) -> Result<Ask, Bad> {
    let only = |wanted: Method, ask: Ask| {
        if *method == wanted {
            Ok(ask)
        } else {
            Err(Bad::Method)
        }
    };
    let rest = path.strip_prefix("/v1/").ok_or_else(no_such_path)?;
    if let Some(name) = rest.strip_prefix("secrets/") {
        let name = Name::from_path(name).map_err(Bad::because)?;
        return only(Method::GET, Ask::Secret(secret(name, query)?));
    }
    if let Some(name) = rest.strip_prefix("rotate/") {
        let name = Name::from_path(name).map_err(Bad::because)?;
        if let Some((key, _)) = pairs(query).next() {
            return Err(unknown(key, "none"));
        }
        return only(Method::POST, Ask::Rotate(name));
    }
    match rest {
        "secrets" => only(Method::GET, Ask::List(list(query)?)),
        "batch" => only(Method::POST, Ask::Batch),
        "watch" => only(Method::GET, Ask::Watch(watch(query)?)),
        "whoami" => only(Method::GET, Ask::Whoami),
        "health" => only(Method::GET, Ask::Health),
        _ => Err(no_such_path()),
    }
}

fn no_such_path() -> Bad {
    Bad::Request("no such path; see GET /v1/secrets/NAME".into())
}

fn secret(name: Name, query: Option<&str>) -> Result<Secret, Bad> {
    let mut ask = Secret::current(name);
    for (key, value) in pairs(query) {
        match key {
            "version" => {
                ask.which = match text(value)? {
                    word if word == "previous" => Which::Previous,
                    word if word == "current" => Which::Current,
                    id => Which::Id(id),
                }
            }
            "field" => ask.field = Some(text(value)?),
            other => return Err(unknown(other, "version, field")),
        }
    }
    Ok(ask)
}

fn list(query: Option<&str>) -> Result<List, Bad> {
    let mut ask = List {
        prefix: String::new(),
        after: None,
        limit: PAGE,
    };
    for (key, value) in pairs(query) {
        match key {
            "prefix" => ask.prefix = text(value)?,
            "after" => ask.after = Some(text(value)?),
            "limit" => {
                let limit: usize = text(value)?.parse().unwrap_or(0);
                if !(1..=PAGE).contains(&limit) {
                    return Err(Bad::because(format_args!(
                        "limit is a number from 1 to {PAGE}"
                    )));
                }
                ask.limit = limit;
            }
            other => return Err(unknown(other, "prefix, after, limit")),
        }
    }
    Ok(ask)
}

fn watch(query: Option<&str>) -> Result<Vec<Name>, Bad> {
    let mut names = Vec::new();
    for (key, value) in pairs(query) {
        if key != "name" {
            return Err(unknown(key, "name"));
        }
        let name = Name::from_path(value).map_err(Bad::because)?;
        if !names.contains(&name) {
            names.push(name);
        }
        if names.len() > MAX_BATCH {
            return Err(Bad::because(format_args!(
                "a watch has at most {MAX_BATCH} names"
            )));
        }
    }
    if names.is_empty() {
        return Err(Bad::because("name the secrets to watch: ?name=A&name=B"));
    }
    Ok(names)
}

fn unknown(key: &str, known: &str) -> Bad {
    let key: String = key.chars().take(40).collect();
    Bad::Request(format!("no such parameter {key:?}; there is {known}"))
}

/// The parameters of a query, still encoded.
pub fn pairs(query: Option<&str>) -> impl Iterator<Item = (&str, &str)> {
    query
        .unwrap_or_default()
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

fn text(value: &str) -> Result<String, Bad> {
    let bytes =
        percent_decode(value).ok_or_else(|| Bad::because("a percent escape is cut short"))?;
    String::from_utf8(bytes.into_owned()).map_err(|_| Bad::because("a parameter is not UTF-8"))
}

/// The shape that the peer asks for.
pub fn form(headers: &HeaderMap) -> Form {
    let wanted = headers
        .get(ACCEPT)
        .map_or(&b""[..], |accept| accept.as_bytes());
    let raw = wanted.len() >= OCTET_STREAM.len()
        && wanted[..OCTET_STREAM.len()].eq_ignore_ascii_case(OCTET_STREAM.as_bytes());
    if raw { Form::Raw } else { Form::Json }
}

/// The version that the peer has: `If-None-Match` (RFC 9110 section 13.1.2), a single tag, weak or strong.
pub fn has_version(headers: &HeaderMap) -> Option<&str> {
    let tag = headers.get(IF_NONE_MATCH)?.to_str().ok()?.trim();
    let tag = tag.strip_prefix("W/").unwrap_or(tag);
    Some(tag.strip_prefix('"')?.strip_suffix('"').unwrap_or(tag))
}

/// How long the peer would wait for a change: `Prefer: wait=SECONDS` (RFC 7240 section 4.3).
pub fn wait_seconds(headers: &HeaderMap) -> Option<u64> {
    headers
        .get_all(PREFER)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split([',', ';']))
        .filter_map(|word| word.trim().strip_prefix("wait="))
        .find_map(|seconds| seconds.trim().parse::<u64>().ok())
        .map(|seconds| seconds.min(LONGEST_WAIT))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn get(path: &str) -> Result<Ask, Bad> {
        let (path, query) = path
            .split_once('?')
            .map_or((path, None), |(p, q)| (p, Some(q)));
        parse(&Method::GET, path, query)
    }

    #[test]
    fn requests_for_values() {
        let ask = Secret {
            name: Name::parse("a/b").unwrap(),
            which: Which::Previous,
            field: Some("p w".into()),
        };
        assert_eq!(
            get("/v1/secrets/a%2Fb?version=previous&field=p%20w"),
            Ok(Ask::Secret(ask))
        );
    }

    #[test]
    fn tricks_with_paths_are_bad_requests() {
        for path in [
            "/v1/secrets/../admin",
            "/v1/secrets/%2e%2e/admin",
            "/v1/secrets/a%00b",
            "/v1/secrets//a",
            "/v1/secrets/",
            "//v1/secrets/a",
            "/v1/secrets/%ff",
            "/v1/secrets/%c0%ae",
            "/v1/secrets/a?limit=1",
            "/v1/secrets?limit=0",
            "/v1/watch",
            "/v1/watch?name=..",
            "/",
            "/v1/../v1/whoami",
            "/V1/whoami",
        ] {
            assert!(matches!(get(path), Err(Bad::Request(_))), "{path}");
        }
        let long = format!("/v1/secrets/{}", "x".repeat(513));
        assert!(matches!(get(&long), Err(Bad::Request(_))));
        assert_eq!(
            parse(&Method::DELETE, "/v1/secrets/a", None),
            Err(Bad::Method)
        );
        assert_eq!(get("/v1/batch"), Err(Bad::Method));
    }

    #[test]
    fn headers_that_shape_the_answer() {
        let mut headers = HeaderMap::new();
        assert_eq!(form(&headers), Form::Json);
        headers.insert(ACCEPT, "application/octet-stream".parse().unwrap());
        assert_eq!(form(&headers), Form::Raw);
        headers.insert(IF_NONE_MATCH, "W/\"3-ab\"".parse().unwrap());
        assert_eq!(has_version(&headers), Some("3-ab"));
        headers.insert(PREFER, "respond-async, wait=9999".parse().unwrap());
        assert_eq!(wait_seconds(&headers), Some(300));
    }
}
