//! What the audit log says of a rotation that nobody asked for, of one that failed, and of the unit that was told.

use std::time::Duration;

use serde_json::{Value as Json, json};

use super::Step;
use super::handle::Plan;
use super::state::Running;
use crate::audit::{Entry, Event, Log, Verdict, extra};

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

/// Keeps that the unit was told of `version`; or alerts, where it could not be.
pub fn told(audit: &Log, plan: &Plan, version: &str, why: Option<&str>) {
    let Some(on) = &plan.rotation.on_rotated else {
        return;
    };
    let secret = plan.rotation.secret.as_str();
    let mut members = vec![
        ("unit", Json::from(on.unit.as_str())),
        ("do", on.job.as_str().into()),
    ];
    let event = match why {
        Some(why) => {
            members.extend([("step", "on_rotated".into()), ("why", why.into())]);
            Event::AlertRotationFailed
        }
        None => Event::SecretWatch,
    };
    // The unit is told either way.
    let _ = audit.keep(&Entry {
        decision: Verdict::Info,
        secret: Some(secret),
        version: Some(version),
        surface: "systemd",
        extra: Some(&extra(&members)),
        ..Entry::of(event)
    });
}
