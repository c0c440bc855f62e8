//! What sources tell the audit log.

use keyhatch_protocol::Name;
use serde_json::Value as Json;

use crate::audit::{Entry, Event, Log, extra};
use crate::cache::Changes;

/// Records an event of a source. Its values are served already; the log itself says when it cannot be written.
pub fn record(audit: &Log, event: Event, source: &str, members: &[(&str, Json)]) {
    let mut all = vec![("source", Json::from(source))];
    all.extend(members.iter().cloned());
    let members = extra(&all);
    let _ = audit.keep(&Entry {
        extra: Some(&members),
        ..Entry::of(event)
    });
}

/// Records each new version and each secret that is gone.
pub fn record_changes(audit: &Log, changes: &Changes) {
    for (name, version) in &changes.rotated {
        record_change(audit, Event::SecretRotated, name, version);
    }
    for (name, version) in &changes.removed {
        record_change(audit, Event::SecretRemoved, name, version);
    }
}

fn record_change(audit: &Log, event: Event, name: &Name, version: &str) {
    let _ = audit.keep(&Entry {
        secret: Some(name.as_str()),
        version: Some(version),
        ..Entry::of(event)
    });
}
