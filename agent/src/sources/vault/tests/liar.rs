//! A server that answers what a test says, byte for byte.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

pub const MADE: &str = "2026-01-02T03:04:05.678Z";

/// What was asked.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Method, path and query, without `/v1/`.
    pub what: String,
    pub token: String,
    pub body: String,
    pub head: String,
}

/// What to do about it.
pub enum Act {
    Json(u16, String),
    /// These bytes, then the connection is closed.
    Bytes(Vec<u8>),
    /// These bytes, then nothing ever.
    Silence(&'static str),
}

type Script = dyn Fn(&Asked) -> Option<Act> + Send + Sync;

pub struct Liar {
    pub address: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    open: Arc<AtomicUsize>,
    closed: Arc<Notify>,
}

impl Liar {
    /// What `script` leaves is answered as a good server would.
    pub async fn new(script: impl Fn(&Asked) -> Option<Act> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let liar = Self {
            address: format!("http://{}", listener.local_addr().unwrap()),
            asked: Arc::default(),
            open: Arc::default(),
            closed: Arc::default(),
        };
        let (asked, open, closed) = (liar.asked.clone(), liar.open.clone(), liar.closed.clone());
        let script: Arc<Script> = Arc::new(script);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (script, asked, open, closed) =
                    (script.clone(), asked.clone(), open.clone(), closed.clone());
                open.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(async move {
                    serve(stream, &*script, &asked).await;
                    open.fetch_sub(1, Ordering::SeqCst);
                    closed.notify_one();
                });
            }
        });
        liar
    }

    /// How often something that begins like this was asked.
    pub fn count(&self, what: &str) -> usize {
        let asked = self.asked.lock().unwrap();
        asked
            .iter()
            .filter(|asked| asked.what.starts_with(what))
            .count()
    }

    pub fn last(&self, what: &str) -> Asked {
        let asked = self.asked.lock().unwrap();
        asked
            .iter()
            .rev()
            .find(|asked| asked.what.starts_with(what))
            .unwrap()
            .clone()
    }

    /// Waits until every connection is closed.
    pub async fn all_closed(&self) {
        while self.open.load(Ordering::SeqCst) > 0 {
            self.closed.notified().await;
        }
    }
}

async fn serve(mut stream: TcpStream, script: &Script, log: &Mutex<Vec<Asked>>) {
    while let Some(asked) = read(&mut stream).await {
        log.lock().unwrap().push(asked.clone());
        match script(&asked).unwrap_or_else(|| good(&asked)) {
            Act::Json(status, body) => {
                let reply = json(status, "", &body);
                if stream.write_all(&reply).await.is_err() {
                    return;
                }
            }
            Act::Bytes(bytes) => {
                let _ = stream.write_all(&bytes).await;
                return;
            }
            Act::Silence(bytes) => {
                let _ = stream.write_all(bytes.as_bytes()).await;
                // Until the other side gives up.
                let _ = stream.read(&mut [0; 1]).await;
                return;
            }
        }
    }
}

async fn read(stream: &mut TcpStream) -> Option<Asked> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let field = |name: &str| {
        let line = head
            .lines()
            .find(|line| line.to_lowercase().starts_with(name))?;
        Some(line[name.len()..].trim().to_owned())
    };
    let length = field("content-length:").map_or(0, |text| text.parse().unwrap());
    while bytes.len() < end + length {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
    let what = head
        .lines()
        .next()?
        .strip_suffix(" HTTP/1.1")?
        .replace("/v1/", "");
    Some(Asked {
        what,
        token: field("x-vault-token:").unwrap_or_default(),
        body: String::from_utf8(bytes[end..].to_vec()).unwrap(),
        head,
    })
}

pub fn json(status: u16, headers: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 {status} X\r\n{headers}content-length: {length}\r\n\r\n{body}").into_bytes()
}

pub fn data(data: &str) -> String {
    format!(
        r#"{{"request_id":"x","lease_id":"","renewable":false,"lease_duration":0,"data":{data},"auth":null}}"#
    )
}

pub fn versioned(value: &str) -> Act {
    Act::Json(
        200,
        data(&format!(
            r#"{{"data":{value},"metadata":{{"created_time":"{MADE}","deletion_time":"","destroyed":false,"version":3}}}}"#
        )),
    )
}

pub fn login(token: &str, seconds: u64) -> Act {
    Act::Json(
        200,
        format!(
            r#"{{"data":null,"auth":{{"client_token":"{token}","lease_duration":{seconds},"renewable":true}}}}"#
        ),
    )
}

pub fn mount(path: &str, version: &str) -> Act {
    Act::Json(
        200,
        data(&format!(
            r#"{{"path":"{path}/","options":{{"version":"{version}"}}}}"#
        )),
    )
}

fn good(asked: &Asked) -> Act {
    let what = asked.what.as_str();
    if what.ends_with("/login") {
        login("CANARY-token", 0)
    } else if let Some(path) = what.strip_prefix("GET sys/internal/ui/mounts/") {
        mount(path, "2")
    } else if what == "GET auth/token/lookup-self" {
        Act::Json(200, data(r#"{"ttl":0,"renewable":false}"#))
    } else if what.starts_with("GET secret/data/") {
        versioned(r#"{"password":"CANARY-value"}"#)
    } else {
        Act::Json(404, r#"{"errors":[]}"#.into())
    }
}
