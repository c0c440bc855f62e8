//! What the audit log says of a rotation that nobody asked for, of one that failed, and of the unit that was told.

use std::time::Duration;

use keyhatch_protocol::Name;
use serde_json::{Value as Json, json};

use super::Step;
use super::handle::Plan;
use super::state::Running;
use crate::audit::{Entry, Event, Log, Verdict, extra};
use crate::config::OnRotated;

/// Keeps the record of an attempt that nobody asked for. Without one nothing is done.
pub fn start(audit: &Log, plan: &Plan, id: &str, step: Step, failures: u32) -> bool {
    let members = extra(&[
        ("driver", plan.rotation.driver.word().into()),
        ("step", step.as_str().into()),
        ("failures", failures.into()),
    ]);
    let entry = Entry {
        decision: Verdict::Info,
        secret: Some(plan.rotation.secret.as_str()),
        surface: "schedule",
        request_id: Some(id),
        extra: Some(&members),
        ..Entry::of(Event::SecretRotate)
    };
    audit.keep(&entry).is_ok()
}

/// Tells that `step` failed, and how long it is until it is tried again; never, where it was given up.
pub fn failed(
    audit: &Log,
    plan: &Plan,
    running: &Running,
    step: Step,
    why: &str,
    again: Option<Duration>,
) {
    let secret = plan.rotation.secret.as_str();
    tracing::error!(secret, step = step.as_str(), %why, "a rotation failed; the value before serves on");
    let members = extra(&[
        ("driver", plan.rotation.driver.word().into()),
        ("step", step.as_str().into()),
        ("why", why.into()),
        ("failures", running.failures.into()),
        (
            "again_in",
            again.map_or(Json::Null, |again| json!(again.as_secs())),
        ),
    ]);
    // The rotation is not done either way.
    let _ = audit.keep(&Entry {
        secret: Some(secret),
        version: Some(&running.base),
        surface: "schedule",
        request_id: Some(&running.request_id),
        extra: Some(&members),
        ..Entry::of(Event::AlertRotationFailed)
    });
}

/// Keeps that a unit is about to be told of new versions. Without the records it is not.
pub fn telling(audit: &Log, on: &OnRotated, of: &[(Name, String)]) -> bool {
    of.iter().all(|(name, version)| {
        let entry = Entry {
            decision: Verdict::Info,
            secret: Some(name.as_str()),
            version: Some(version),
            surface: "systemd",
            extra: Some(&extra(&job(on))),
            ..Entry::of(Event::SecretWatch)
        };
        audit.keep(&entry).is_ok()
    })
}

/// Tells that a unit could not be told of a new version.
pub fn not_told(audit: &Log, on: &OnRotated, name: &Name, version: &str, why: &str) {
    let mut members = job(on).to_vec();
    members.extend([("step", "on_rotated".into()), ("why", why.into())]);
    // It is not told either way.
    let _ = audit.keep(&Entry {
        decision: Verdict::Info,
        secret: Some(name.as_str()),
        version: Some(version),
        surface: "systemd",
        extra: Some(&extra(&members)),
        ..Entry::of(Event::AlertRotationFailed)
    });
}

fn job(on: &OnRotated) -> [(&'static str, Json); 2] {
    [
        ("unit", on.unit.as_str().into()),
        ("do", on.job.as_str().into()),
    ]
}
