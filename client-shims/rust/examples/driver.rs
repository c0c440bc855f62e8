//! Drives the library for the conformance tests: one JSON object a line in, one a line out, values as base64.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};
use std::panic;
use std::sync::{Arc, Mutex, RwLock};
use std::thread;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http_body_util::BodyExt as _;
use keyhatch::blocking::{Client, OnRotate};
use keyhatch::{Batch, Error, Secret, Wanted};
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
enum Op {
    Get {
        name: String,
        field: Option<String>,
        version: Option<String>,
        #[serde(default)]
        cache: bool,
    },
    List {
        #[serde(default)]
        prefix: String,
    },
    Batch {
        names: Vec<String>,
    },
    Whoami,
    Health,
    Wait {
        name: String,
        version: String,
        seconds: u64,
    },
    Watch {
        names: Vec<String>,
        count: usize,
    },
    OnRotate {
        name: String,
    },
    Loop {
        name: String,
        reads: u64,
        pause_ms: u64,
    },
    Print {
        name: String,
    },
    Use(Use),
    Quit,
}

#[derive(Deserialize)]
struct Use {
    route: String,
    path: String,
    #[serde(default = "get_method")]
    method: String,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    #[serde(default)]
    body: String,
    #[serde(default)]
    stream: bool,
}

fn get_method() -> String {
    "GET".into()
}

fn main() -> io::Result<()> {
    let client = Client::new();
    let mut rotations = Vec::new();
    for line in io::stdin().lines() {
        let answer = match serde_json::from_str(&line?) {
            Ok(Op::Quit) => return Ok(()),
            Ok(op) => act(&client, op, &mut rotations),
            Err(cause) => Ok(json!({ "error": "Driver", "message": cause.to_string() })),
        };
        say(&answer.unwrap_or_else(|error| told(&error)))?;
    }
    Ok(())
}

fn say(line: &Value) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

fn act(client: &Client, op: Op, rotations: &mut Vec<OnRotate>) -> Result<Value, Error> {
    match op {
        Op::Get {
            name,
            field,
            version,
            cache,
        } => {
            let secret = get(client, &name, field, version, cache)?;
            Ok(json!({
                "ok": true,
                "value": STANDARD.encode(secret.reveal()),
                "version": secret.version(),
                "name": secret.name(),
                "stale": secret.is_stale(),
            }))
        }
        Op::List { prefix } => Ok(json!({ "ok": true, "secrets": client.list(&prefix)? })),
        Op::Batch { names } => {
            let names: Vec<_> = names.iter().map(String::as_str).collect();
            Ok(batch(&client.batch(&names)?))
        }
        Op::Whoami => {
            let me = client.whoami()?;
            Ok(json!({ "ok": true, "bot": me.bot, "uid": me.uid }))
        }
        Op::Health => Ok(json!({ "ok": true, "status": client.health()?.status })),
        Op::Wait {
            name,
            version,
            seconds,
        } => wait(client, &name, &version, Duration::from_secs(seconds)),
        Op::Watch { names, count } => watch(client, &names, count),
        Op::OnRotate { name } => {
            let rotated = name.clone();
            rotations.push(client.on_rotate(&name, move |secret| {
                // Nobody reads any more: the driver is about to be ended.
                let _ = say(&json!({ "rotated": rotated, "version": secret.version() }));
            })?);
            Ok(json!({ "ok": true, "started": true }))
        }
        Op::Loop {
            name,
            reads,
            pause_ms,
        } => Ok(read_on(client, &name, reads, pause_ms)),
        Op::Print { name } => {
            let outputs = printed(client.get(&name)?, client);
            Ok(json!({ "ok": true, "outputs": outputs }))
        }
        Op::Use(call) => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            let runtime = runtime.map_err(|_| Error::Input("no runtime"))?;
            runtime.block_on(used(&call))
        }
        Op::Quit => Ok(Value::Null),
    }
}

fn get(
    client: &Client,
    name: &str,
    field: Option<String>,
    version: Option<String>,
    cache: bool,
) -> Result<Arc<Secret>, Error> {
    if cache && version.is_none() {
        let secret = client.get_cached(name)?;
        return match field {
            Some(field) => Ok(Arc::new(secret.field(&field)?)),
            None => Ok(secret),
        };
    }
    let mut wanted = Wanted::parse(name)?;
    if let Some(version) = version {
        wanted = wanted.version(version);
    }
    let secret = client.fetch(&wanted)?;
    Ok(Arc::new(match field {
        Some(field) => secret.field(&field)?,
        None => secret,
    }))
}

fn batch(batch: &Batch) -> Value {
    let secrets = batch.secrets.iter().map(|secret| {
        let value = STANDARD.encode(secret.reveal());
        json!({
            "name": secret.name(),
            "version": secret.version(),
            "value": value,
            "stale": secret.is_stale(),
        })
    });
    json!({ "ok": true, "secrets": secrets.collect::<Vec<_>>(), "errors": batch.errors })
}

fn wait(client: &Client, name: &str, version: &str, wait: Duration) -> Result<Value, Error> {
    let _ = say(&json!({ "ok": true, "started": true }));
    Ok(match client.wait_for_change(name, version, wait)? {
        None => json!({ "ok": true, "changed": false }),
        Some(secret) => json!({
            "ok": true,
            "changed": true,
            "version": secret.version(),
            "value": STANDARD.encode(secret.reveal()),
        }),
    })
}

fn watch(client: &Client, names: &[String], count: usize) -> Result<Value, Error> {
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let watch = client.watch(&names)?;
    let _ = say(&json!({ "ok": true, "started": true }));
    let mut events = Vec::new();
    for change in watch.take(count) {
        let change = change?;
        events.push(json!({
            "kind": change.kind.as_str(),
            "name": change.name,
            "version": change.version,
        }));
    }
    Ok(json!({ "ok": true, "events": events }))
}

fn read_on(client: &Client, name: &str, reads: u64, pause_ms: u64) -> Value {
    let mut failures = 0;
    let mut last_error = None;
    for _ in 0..reads {
        if let Err(error) = client.get(name) {
            failures += 1;
            last_error = Some(error.to_string());
        }
        thread::sleep(Duration::from_millis(pause_ms));
    }
    json!({ "ok": true, "reads": reads, "failures": failures, "last_error": last_error })
}

async fn used(call: &Use) -> Result<Value, Error> {
    let mut request = hyper::Request::builder()
        .method(call.method.as_str())
        .uri(call.path.as_str());
    for (name, value) in &call.headers {
        request = request.header(name, value);
    }
    let request = request
        .body(call.body.clone())
        .map_err(|_| Error::Input("no such request"))?;
    let route = keyhatch::Client::new().route(&call.route);
    let (head, mut body) = route.send(request).await?.into_parts();
    let mut whole = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Error::Protocol("it was cut"))?;
        let piece = frame.into_data().unwrap_or_default();
        if call.stream {
            let _ = say(&json!({ "ok": true, "piece": String::from_utf8_lossy(&piece) }));
        }
        whole.extend_from_slice(&piece);
    }
    if call.stream {
        return Ok(json!({ "ok": true, "end": true }));
    }
    let name = head.headers.get("keyhatch-route");
    Ok(json!({
        "ok": true,
        "status": head.status.as_u16(),
        "route": name.and_then(|name| name.to_str().ok()),
        "body": String::from_utf8_lossy(&whole),
    }))
}

/// The ways in which a Rust program comes to print what it holds. A `Secret` has no `Display` and no `Serialize`.
fn printed(secret: Secret, client: &Client) -> Vec<String> {
    #[derive(Debug)]
    #[allow(dead_code)]
    struct Settings<'a> {
        key: &'a Secret,
    }
    let of = &secret;
    let mut all = vec![
        format!("{of:?}"),
        format!("{of:#?}"),
        format!("{of:x?}"),
        format!("{of:#X?}"),
        format!("{of:200?}"),
        format!("{:?}", Some(of)),
        format!("{:?}", [of]),
        format!("{:?}", vec![of]),
        format!("{:#?}", (of, 1)),
        format!("{:?}", BTreeMap::from([("key", of)])),
        format!("{:?}", HashMap::from([("key", of)])),
        format!("{:?}", Settings { key: of }),
        format!("{:?}", Ok::<_, ()>(of)),
        format!("{}", format_args!("{of:?}")),
        format!("{:?}", of.name()),
        format!("{:?}", of.reveal_str().map(str::len)),
        format!("{:?}", of.field("none")),
        described(&of.field("none")),
        panicked(|| panic!("{of:?}")),
        format!("{:?}", Err::<(), _>(of)),
        format!("{:?}", client.get_cached(of.name().as_str())),
        format!("{:?}", client.batch(&[of.name().as_str()])),
        format!("{:?}", client.follow(of.name().as_str())),
        format!("{client:?}"),
    ];
    let name = of.name().to_string();
    all.push(format!("{:?}", Box::new(&secret)));
    all.push(format!("{:?}", Mutex::new(&secret)));
    all.push(format!("{:?}", RwLock::new(&secret)));
    all.push(format!("{:?}", Arc::new(secret)));
    all.push(format!("{:?}", Wanted::parse(&name)));
    all
}

fn described<T>(result: &Result<T, Error>) -> String {
    match result {
        Ok(_) => String::new(),
        Err(error) => format!("{error} {error:?} {:?}", std::error::Error::source(error)),
    }
}

fn panicked(act: impl FnOnce()) -> String {
    let payload = panic::catch_unwind(panic::AssertUnwindSafe(act)).err();
    payload
        .and_then(|payload| payload.downcast_ref::<String>().cloned())
        .unwrap_or_default()
}

fn told(error: &Error) -> Value {
    let kind = match error {
        Error::Denied(_) => "Denied",
        Error::Quarantined(_) => "Quarantined",
        Error::NotFound(_) => "NotFound",
        Error::Sealed(_) => "Sealed",
        Error::Unavailable(_) => "Unavailable",
        Error::RateLimited { .. } => "RateLimited",
        Error::BadRequest(_) => "BadRequest",
        Error::UpstreamFailed(_) => "UpstreamFailed",
        Error::UpstreamTimeout(_) => "UpstreamTimeout",
        Error::Refused { .. } => "Refused",
        Error::Unreachable { .. } => "Unreachable",
        Error::TimedOut { .. } => "TimedOut",
        Error::Protocol(_) => "Protocol",
        Error::Name { .. } => "Name",
        Error::NoField { .. } => "NoField",
        Error::NotText(_) => "NotText",
        _ => "Failed",
    };
    let reason = error.reason();
    json!({
        "error": kind,
        "code": reason.map(|reason| &reason.code).filter(|code| !code.is_empty()),
        "status": reason.map(|reason| reason.status),
        "request_id": error.request_id(),
        "message": error.to_string(),
    })
}
