//! A record in the Open Cybersecurity Schema Framework: API Activity, Application Lifecycle for the agent's own
//! events, Detection Finding for alerts. What it has no attribute for is in `unmapped`.

use std::time::UNIX_EPOCH;

use serde_json::{Map, Value, json};

use super::put;
use crate::audit::{Record, safe, sentence};

/// The schema's version.
const VERSION: &str = "1.5.0";
/// `File` of an unknown type is not ours: a program is a regular file.
const REGULAR_FILE: u64 = 1;

/// The classes that records become.
#[derive(Clone, Copy)]
enum Class {
    Api,
    Lifecycle,
    Finding,
}

impl Class {
    fn of(record: &Record) -> Self {
        match record.event.split_once('.') {
            Some(("alert", _)) => Self::Finding,
            Some(("agent", _)) => Self::Lifecycle,
            _ => Self::Api,
        }
    }

    /// Category and class.
    fn ids(self) -> (u64, u64) {
        match self {
            Self::Api => (6, 6003),
            Self::Lifecycle => (6, 6002),
            Self::Finding => (2, 2004),
        }
    }
}

/// One record as one event.
#[must_use]
pub fn ocsf(record: &Record) -> Value {
    let class = Class::of(record);
    let ((category, class_uid), activity) = (class.ids(), activity(class, record));
    let mut out = Map::new();
    put(&mut out, "category_uid", category);
    put(&mut out, "class_uid", class_uid);
    put(&mut out, "activity_id", activity);
    put(&mut out, "type_uid", class_uid * 100 + activity);
    put(&mut out, "severity_id", severity(record));
    put(&mut out, "time", millis(record));
    put(&mut out, "message", safe(&sentence(record)));
    put(&mut out, "metadata", metadata(record));
    match class {
        Class::Api => api(&mut out, record),
        Class::Lifecycle => put(&mut out, "app", product()),
        Class::Finding => finding(&mut out, record),
    }
    let status = match (class, record.decision.as_str()) {
        // Of a finding it says how far it has been dealt with.
        (Class::Finding, _) | (_, "allow") => Some(1),
        (_, "deny") => Some(2),
        _ => None,
    };
    put(&mut out, "status_id", status);
    put(&mut out, "status_detail", record.reason.as_deref());
    put(&mut out, "unmapped", unmapped(record));
    Value::Object(out)
}

fn activity(class: Class, record: &Record) -> u64 {
    const OTHER: u64 = 99;
    let event = record.event.as_str();
    match class {
        Class::Finding => 1,
        Class::Lifecycle => match event {
            "agent.started" => 3,
            "agent.stopped" => 4,
            _ => OTHER,
        },
        Class::Api => match event {
            "secret.read" | "secret.list" | "secret.watch" | "secret.use" => 2,
            "secret.rotate" | "secret.rotated" | "store.changed" | "policy.loaded" => 3,
            "secret.removed" => 4,
            _ => OTHER,
        },
    }
}

/// Informational, low for a denial, high and critical for alerts.
fn severity(record: &Record) -> u64 {
    match (record.event.as_str(), record.decision.as_str()) {
        ("alert.honeytoken" | "alert.chain_broken", _) => 5,
        (alert, _) if alert.starts_with("alert.") => 4,
        (_, "deny") => 2,
        _ => 1,
    }
}

fn millis(record: &Record) -> u64 {
    let since = record
        .when()
        .and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0))
}

fn product() -> Value {
    json!({"name": "Keyhatch", "vendor_name": "Keyhatch", "version": env!("CARGO_PKG_VERSION")})
}

fn metadata(record: &Record) -> Value {
    json!({
        "version": VERSION, "product": product(), "sequence": record.seq, "uid": record.hash,
        "log_name": "audit", "original_time": record.time, "event_code": record.event,
    })
}

fn api(out: &mut Map<String, Value>, record: &Record) {
    let mut api = Map::new();
    put(&mut api, "operation", &*record.event);
    put(&mut api, "service", json!({"name": "keyhatch"}));
    let request = record.request_id.as_ref().map(|id| json!({"uid": id}));
    put(&mut api, "request", request);
    put(out, "api", api);
    put(out, "actor", actor(record));
    // The peer is a process of this host: no address, its unit at most.
    let unit = record.peer.as_ref().and_then(|peer| peer.unit.as_deref());
    put(
        out,
        "src_endpoint",
        json!({"name": unit.unwrap_or("localhost")}),
    );
    // A list of all names has none.
    if let Some(secret) = record.secret.as_ref().filter(|name| !name.is_empty()) {
        let mut resource = Map::new();
        put(&mut resource, "name", &**secret);
        put(&mut resource, "type", "secret");
        put(&mut resource, "version", record.version.as_deref());
        put(out, "resources", [Value::Object(resource)]);
    }
}

fn actor(record: &Record) -> Map<String, Value> {
    let mut actor = Map::new();
    // The schema wants an actor: what nobody asked for, the agent did.
    let own = record.peer.is_none().then_some("keyhatchd");
    put(&mut actor, "app_name", record.bot.as_deref().or(own));
    let Some(peer) = &record.peer else {
        return actor;
    };
    let mut user = Map::new();
    put(&mut user, "uid", peer.uid.map(|uid| uid.to_string()));
    let groups = peer.gid.map(|gid| vec![json!({"uid": gid.to_string()})]);
    put(&mut user, "groups", groups);
    let mut process = Map::new();
    put(&mut process, "pid", peer.pid);
    if let Some(exe) = &peer.exe {
        let name = exe.rsplit('/').next().unwrap_or_default();
        put(
            &mut process,
            "file",
            json!({"name": name, "path": exe, "type_id": REGULAR_FILE}),
        );
    }
    put(&mut actor, "user", user);
    put(&mut actor, "process", process);
    actor
}

fn finding(out: &mut Map<String, Value>, record: &Record) {
    put(out, "is_alert", true);
    let (title, desc) = (&record.event, safe(&sentence(record)));
    put(
        out,
        "finding_info",
        json!({"uid": record.hash, "title": title, "desc": desc}),
    );
}

fn unmapped(record: &Record) -> Map<String, Value> {
    let mut own = record.extra();
    put(&mut own, "decision", &*record.decision);
    put(&mut own, "rule", record.rule.as_deref());
    put(&mut own, "bot", record.bot.as_deref());
    put(&mut own, "roles", &*record.roles);
    put(&mut own, "surface", &*record.surface);
    put(&mut own, "secret", record.secret.as_deref());
    put(&mut own, "prev", &*record.prev);
    let invocation = record
        .peer
        .as_ref()
        .and_then(|peer| peer.invocation_id.as_deref());
    put(&mut own, "invocation_id", invocation);
    own
}
