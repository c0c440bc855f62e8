//! What bounds the use of a route: `limits` for each bot, and `require` for what a request's body says.

use hyper::header::HeaderName;
use serde_json::Value as Json;

use super::audit::size;
use super::section::{Section, Value};
use crate::policy::Report;

/// How much each bot may do with a route; what is absent is unlimited.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteLimits {
    /// Requests a minute.
    pub requests_per_minute: Option<u32>,
    /// Bytes of a request's body.
    pub body: Option<u64>,
    /// Requests at once.
    pub streams: Option<u32>,
    /// Bytes of an answer's body.
    pub answer: Option<u64>,
    /// What its answers say they cost.
    pub spend: Option<Spend>,
}

/// How much a bot may spend in an hour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spend {
    /// What says how much an answer cost.
    pub cost: Cost,
    /// So much in an hour.
    pub per_hour: u32,
}

/// Where an answer says how much it cost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cost {
    /// In this header.
    Header(HeaderName),
    /// In its body, below these keys; in the last of a stream's events that has it.
    Pointer(Vec<String>),
}

/// What a body has to say at one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// The place, as it is written (RFC 6901).
    pub pointer: String,
    /// One of these.
    pub values: Vec<Json>,
}

/// `limits`.
pub(super) fn read_limits(section: &Section<'_>, report: &mut Report) -> RouteLimits {
    let Some(limits) = section
        .get("limits")
        .and_then(|value| value.section("`limits`", report))
    else {
        return RouteLimits::default();
    };
    let keys = ["requests_per_minute", "body", "streams", "answer", "spend"];
    limits.check_keys(&keys, report);
    RouteLimits {
        requests_per_minute: at_least_one(&limits, "requests_per_minute", report),
        streams: at_least_one(&limits, "streams", report),
        body: size(&limits, "body", report),
        answer: size(&limits, "answer", report),
        spend: limits
            .get("spend")
            .and_then(|value| value.section("`spend`", report))
            .and_then(|spend| read_spend(&spend, report)),
    }
}

fn at_least_one(section: &Section<'_>, key: &'static str, report: &mut Report) -> Option<u32> {
    let value = section.get(key)?;
    let number = value.number(report)?;
    if number == 0 {
        let text = format!("`{key}` is 0, so that nothing is allowed, leave the route out");
        report.error(&value.place(), text);
    }
    Some(number)
}

fn read_spend(section: &Section<'_>, report: &mut Report) -> Option<Spend> {
    section.check_keys(&["header", "pointer", "per_hour"], report);
    section.required("per_hour", "200000", report)?;
    let per_hour = at_least_one(section, "per_hour", report);
    let cost = match (section.get("header"), section.get("pointer")) {
        (Some(header), None) => {
            let name = header.string(report)?;
            let parsed = HeaderName::try_from(name.value).ok();
            if parsed.is_none() {
                let text = format!("`header` is {:?}, which no header is named", name.value);
                report.error(&name.place, text);
            }
            Cost::Header(parsed?)
        }
        (None, Some(pointer)) => Cost::Pointer(read_pointer(&pointer, report)?),
        _ => {
            let text = "`spend` says not what an answer costs, name a header or a pointer such as \"/usage/total_tokens\"";
            report.error(&section.place(), text);
            return None;
        }
    };
    Some(Spend {
        cost,
        per_hour: per_hour?,
    })
}

fn read_pointer(value: &Value<'_>, report: &mut Report) -> Option<Vec<String>> {
    let text = value.string(report)?;
    let keys = keys(text.value);
    if keys.is_none() {
        report.error(&text.place, not_a_pointer(text.value));
    }
    keys
}

fn not_a_pointer(text: &str) -> String {
    format!("{text:?} is no JSON pointer, write it as \"/usage/total_tokens\"")
}

/// The keys of a JSON pointer (RFC 6901).
fn keys(pointer: &str) -> Option<Vec<String>> {
    let unescape = |key: &str| key.replace("~1", "/").replace("~0", "~");
    let keys = pointer.strip_prefix('/')?.split('/').map(unescape);
    Some(keys.collect())
}

/// `require`.
pub(super) fn read_conditions(section: &Section<'_>, report: &mut Report) -> Vec<Condition> {
    let conditions = section
        .get("require")
        .and_then(|value| value.section("`require`", report));
    let Some(conditions) = conditions else {
        return Vec::new();
    };
    let mut read = |value: Value<'_>| {
        if keys(value.key).is_none() {
            report.error(&value.place(), not_a_pointer(value.key));
        }
        let list = value.list(report)?;
        if list.is_empty() {
            let text = "is empty, so that nothing is allowed, name what is";
            report.error(&value.place(), format!("`{}` {text}", value.key));
        }
        let values = list.iter().filter_map(|value| value.json(report)).collect();
        Some(Condition {
            pointer: value.key.to_owned(),
            values,
        })
    };
    conditions.values().filter_map(&mut read).collect()
}
