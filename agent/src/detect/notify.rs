//! Telling somebody of alerts, by a program of the operator's or by a webhook.
//!
//! What is told is the record itself, one JSON object a call, in order. It holds no secret. What cannot be
//! told, since nobody answers or too much happens, is in the log all the same.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{HeaderMap, Method};
use tokio::sync::mpsc::Receiver;
use tokio::time::{Instant, sleep};

use crate::config::{Notify, Webhook};
use crate::exec::{Runner, notify_program};
use crate::http::{Bound, Client, Request, tls};

/// How many calls there are in a minute at most.
const A_MINUTE: u32 = 30;
const MINUTE: Duration = Duration::from_secs(60);
/// How long to wait before each further try.
const PAUSES: [Duration; 3] = [
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(25),
];
/// How long a webhook may take to answer, and how much it may say.
const PATIENCE: Duration = Duration::from_secs(10);
const MOST_ANSWER: usize = 64 * 1024;

/// What became of alerts, since start.
#[derive(Default)]
pub struct Notified {
    /// Told.
    pub sent: AtomicU64,
    /// Given up after several tries.
    pub failed: AtomicU64,
    /// Over the rate.
    pub limited: AtomicU64,
}

/// Tells of each alert to the target that the configuration names then, until the log is closed.
pub async fn run(
    mut alerts: Receiver<Vec<u8>>,
    runner: Runner,
    target: impl Fn() -> Option<Notify>,
    notified: &Notified,
) {
    let (mut began, mut calls) = (Instant::now(), 0);
    while let Some(record) = alerts.recv().await {
        let Some(target) = target() else { continue };
        if began.elapsed() >= MINUTE {
            (began, calls) = (Instant::now(), 0);
        }
        if calls >= A_MINUTE {
            notified.limited.fetch_add(1, Relaxed);
            continue;
        }
        calls += 1;
        let counter = match persist(&target, &runner, &record).await {
            Ok(()) => &notified.sent,
            Err(why) => {
                tracing::error!(%why, "[detect].notify was not told of an alert, which is in the audit log");
                &notified.failed
            }
        };
        counter.fetch_add(1, Relaxed);
    }
}

async fn persist(target: &Notify, runner: &Runner, record: &[u8]) -> Result<(), String> {
    for pause in PAUSES {
        match tell(target, runner, record).await {
            Ok(()) => return Ok(()),
            Err(why) => tracing::warn!(%why, "[detect].notify: another try in {pause:?}"),
        }
        sleep(pause).await;
    }
    tell(target, runner, record).await
}

async fn tell(target: &Notify, runner: &Runner, record: &[u8]) -> Result<(), String> {
    match target {
        Notify::Exec(command) => runner
            .run(&notify_program(command), record)
            .await
            .map(drop)
            .map_err(|error| error.to_string()),
        Notify::Webhook(webhook) => post(webhook, record).await,
    }
}

async fn post(webhook: &Webhook, record: &[u8]) -> Result<(), String> {
    let words = |error: &dyn std::fmt::Display| format!("{}: {error}", webhook.address);
    let tls = if webhook.address.is_tls() {
        Some(tls(None, None).map_err(|error| words(&error))?)
    } else {
        None
    };
    let client = Client::new(vec![webhook.address.clone()], tls);
    let json = HeaderValue::from_static("application/json");
    let request = Request {
        method: Method::POST,
        path: webhook.path.clone(),
        headers: HeaderMap::from_iter([(CONTENT_TYPE, json)]),
        body: Bytes::copy_from_slice(record),
    };
    let answer = client
        .send(0, &request, &Bound::Plain(MOST_ANSWER), PATIENCE)
        .await
        .map_err(|error| words(&error))?;
    if answer.status.is_success() {
        return Ok(());
    }
    Err(words(&format_args!("it answered {}", answer.status)))
}
