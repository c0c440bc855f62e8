//! A record in the Elastic Common Schema; what it has no field for is under `keyhatch`.

use serde_json::{Map, Value, json};

use super::put;
use crate::audit::{Record, safe, sentence};

/// The schema's version.
const VERSION: &str = "9.4.0";

/// One record as one event.
#[must_use]
pub fn ecs(record: &Record) -> Value {
    let (category, kinds) = category(record);
    let mut event = Map::new();
    let is_alert = record.event.starts_with("alert.");
    put(&mut event, "kind", if is_alert { "alert" } else { "event" });
    put(&mut event, "category", [category]);
    put(&mut event, "type", kinds);
    put(&mut event, "action", &*record.event);
    put(&mut event, "outcome", outcome(record));
    put(&mut event, "reason", record.reason.as_deref());
    put(&mut event, "sequence", record.seq);
    put(&mut event, "hash", &*record.hash);
    put(&mut event, "module", "keyhatch");
    put(&mut event, "dataset", "keyhatch.audit");

    let mut out = Map::new();
    put(&mut out, "@timestamp", &*record.time);
    put(&mut out, "ecs", json!({"version": VERSION}));
    put(&mut out, "message", safe(&sentence(record)));
    put(&mut out, "event", event);
    if let Some(rule) = &record.rule {
        put(&mut out, "rule", json!({"name": rule}));
    }
    if let Some(peer) = &record.peer {
        let id = |id: Option<u64>| id.map(|id| json!({"id": id.to_string()}));
        put(&mut out, "user", id(peer.uid));
        put(&mut out, "group", id(peer.gid));
        let mut process = Map::new();
        put(&mut process, "pid", peer.pid);
        put(&mut process, "executable", peer.exe.as_deref());
        put(&mut out, "process", process);
    }
    put(&mut out, "keyhatch", own(record));
    Value::Object(out)
}

/// What is nobody's field but ours.
fn own(record: &Record) -> Map<String, Value> {
    let mut own = Map::new();
    put(&mut own, "secret", record.secret.as_deref());
    put(&mut own, "version", record.version.as_deref());
    put(&mut own, "bot", record.bot.as_deref());
    put(&mut own, "roles", &*record.roles);
    put(&mut own, "surface", &*record.surface);
    put(&mut own, "request_id", record.request_id.as_deref());
    put(&mut own, "prev", &*record.prev);
    put(&mut own, "mono", record.mono);
    let peer = record.peer.as_ref();
    put(&mut own, "unit", peer.and_then(|peer| peer.unit.as_deref()));
    let invocation = peer.and_then(|peer| peer.invocation_id.as_deref());
    put(&mut own, "invocation_id", invocation);
    put(&mut own, "event", record.extra());
    own
}

/// `event.category`, and of its types those that hold.
fn category(record: &Record) -> (&'static str, Vec<&'static str>) {
    let decided = match record.decision.as_str() {
        "allow" => Some("allowed"),
        "deny" => Some("denied"),
        _ => None,
    };
    let (room, what) = record.event.split_once('.').unwrap_or_default();
    match (room, what) {
        ("alert", _) => ("intrusion_detection", vec!["info"]),
        ("secret", "rotated" | "rotate") => (
            "api",
            [Some("change"), decided].into_iter().flatten().collect(),
        ),
        ("secret", "removed") => ("api", vec!["deletion"]),
        ("secret", "used") => ("api", vec!["end"]),
        ("secret", _) => (
            "api",
            [Some("access"), decided].into_iter().flatten().collect(),
        ),
        ("agent", "started") => ("process", vec!["start"]),
        ("agent", "stopped") => ("process", vec!["end"]),
        ("agent", _) => ("process", vec!["change"]),
        ("admin", _) => (
            "api",
            [Some("admin"), decided].into_iter().flatten().collect(),
        ),
        ("policy" | "store", _) => ("configuration", vec!["change"]),
        _ => ("configuration", vec!["info"]),
    }
}

fn outcome(record: &Record) -> &'static str {
    match record.decision.as_str() {
        "allow" => "success",
        "deny" => "failure",
        _ => "unknown",
    }
}
