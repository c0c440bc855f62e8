//! The servers of one Vault: which one answers, and what its answers mean whatever was asked.

use std::fmt::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hyper::header::{HeaderName, HeaderValue, LOCATION, RETRY_AFTER};
use hyper::{HeaderMap, Method, StatusCode, Uri};
use tokio::time::Instant;
use zeroize::Zeroizing;

use crate::http::{Address, Bound, Client, Content, Failure, Request, Response};
use crate::sources::upstream::Trouble;

const TOKEN: HeaderName = HeaderName::from_static("x-vault-token");
const NAMESPACE: HeaderName = HeaderName::from_static("x-vault-namespace");
/// Proves that no browser was tricked into asking; some proxies insist on it.
const REQUEST: HeaderName = HeaderName::from_static("x-vault-request");

/// A server that has not seen a write yet (412) is asked again this often, after a pause that doubles.
const CATCHING_UP: u32 = 4;
const CATCHING_UP_PAUSE: Duration = Duration::from_millis(50);
/// A server that wants to be left alone for longer is believed this long.
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

/// The servers.
pub struct Servers {
    client: Client,
    namespace: Option<HeaderValue>,
    /// The one that answered last.
    good: AtomicUsize,
}

/// One question.
pub struct Ask {
    method: Method,
    path: String,
    body: Bytes,
    bound: Bound,
}

/// An answer that is about what was asked.
pub struct Reply {
    /// 2xx or 4xx.
    pub status: StatusCode,
    /// The JSON document.
    pub body: Content,
}

/// What one server's answer means for the whole.
enum Turn {
    Answer(Reply),
    /// This one: it is standby to it, or redirects there.
    Server(usize),
    Again,
    /// Another may answer.
    Next(String, Option<Duration>),
    Trouble(Trouble),
}

impl Ask {
    /// Reads `path`, which is below `/v1/` and not encoded.
    pub fn get(path: &str, query: &str, bound: Bound) -> Self {
        Self {
            method: Method::GET,
            path: format!("/v1/{}{query}", encoded(path)),
            body: Bytes::new(),
            bound,
        }
    }

    /// Writes JSON to `path`.
    pub fn post(path: &str, body: Zeroizing<Vec<u8>>, bound: Bound) -> Self {
        Self {
            method: Method::POST,
            path: format!("/v1/{}", encoded(path)),
            body: Bytes::from_owner(body),
            bound,
        }
    }
}

impl Servers {
    pub fn new(client: Client, namespace: Option<HeaderValue>) -> Self {
        Self {
            client,
            namespace,
            good: AtomicUsize::new(0),
        }
    }

    /// Closes the connections that wait.
    pub fn close_idle(&self) {
        self.client.close_idle();
    }

    /// Asks the servers in turn, beginning with the one that answered last, until `deadline`.
    pub async fn ask(
        &self,
        ask: &Ask,
        token: Option<&HeaderValue>,
        deadline: Instant,
    ) -> Result<Reply, Trouble> {
        let request = self.request(ask, token);
        let count = self.client.addresses().len();
        let first = self.good.load(Ordering::Relaxed);
        let (mut at, mut redirected, mut behind) = (first, false, 0);
        let mut left = count;
        let mut failed = Failed::default();
        while left > 0 {
            // A server that hangs must leave time for those after it.
            let within = deadline.saturating_duration_since(Instant::now())
                / u32::try_from(left).unwrap_or(1);
            let answer = self.client.send(at, &request, &ask.bound, within).await;
            match self.judge(at, answer) {
                Turn::Answer(reply) => {
                    self.good.store(at, Ordering::Relaxed);
                    return Ok(reply);
                }
                Turn::Server(other) if !redirected => {
                    (at, redirected) = (other, true);
                    continue;
                }
                Turn::Server(_) => failed.add(self.address(at), "redirects in a circle", None),
                Turn::Again if behind < CATCHING_UP => {
                    tokio::time::sleep(CATCHING_UP_PAUSE * 2_u32.pow(behind)).await;
                    behind += 1;
                    continue;
                }
                Turn::Again => failed.add(
                    self.address(at),
                    "has not caught up with the last write (412)",
                    None,
                ),
                Turn::Next(why, pause) => failed.add(self.address(at), &why, pause),
                Turn::Trouble(trouble) => return Err(trouble),
            }
            left -= 1;
            at = (first + count - left) % count;
        }
        Err(failed.trouble())
    }

    fn request(&self, ask: &Ask, token: Option<&HeaderValue>) -> Request {
        let mut headers = HeaderMap::new();
        headers.insert(REQUEST, HeaderValue::from_static("true"));
        if let Some(namespace) = &self.namespace {
            headers.insert(NAMESPACE, namespace.clone());
        }
        if let Some(token) = token {
            headers.insert(TOKEN, token.clone());
        }
        Request {
            method: ask.method.clone(),
            path: ask.path.clone(),
            headers,
            body: ask.body.clone(),
        }
    }

    fn judge(&self, at: usize, answer: Result<Response, Failure>) -> Turn {
        let answer = match answer {
            Ok(answer) => answer,
            Err(why @ (Failure::TooLarge(_) | Failure::Full(_) | Failure::Path)) => {
                return Turn::Trouble(Trouble::unusable(format!("{}: {why}", self.address(at))));
            }
            Err(why) => return Turn::Next(why.to_string(), None),
        };
        let pause = retry_after(&answer.headers);
        match answer.status.as_u16() {
            307 | 308 => self.redirect(&answer.headers),
            412 => Turn::Again,
            429 => Turn::Trouble(Trouble::Outage {
                why: format!("{} has had too many requests (429)", self.address(at)),
                retry_after: pause,
            }),
            472 | 473 => Turn::Next(format!("is a standby ({})", answer.status.as_u16()), pause),
            503 => Turn::Next("is sealed or not ready (503)".into(), pause),
            200..300 | 400..500 => Turn::Answer(Reply {
                status: answer.status,
                body: answer.body,
            }),
            other => Turn::Next(format!("answered {other}"), pause),
        }
    }

    /// A standby points to the active server; only those of the configuration are believed.
    fn redirect(&self, headers: &HeaderMap) -> Turn {
        let to = headers
            .get(LOCATION)
            .and_then(|location| location.to_str().ok())
            .and_then(|location| location.parse::<Uri>().ok())
            .and_then(|uri| Address::of(&uri))
            .and_then(|to| {
                self.client
                    .addresses()
                    .iter()
                    .position(|known| *known == to)
            });
        match to {
            Some(to) => Turn::Server(to),
            None => Turn::Next(
                "redirects to a server that is not one of the configured addresses; add it to address, if it is yours".into(),
                None,
            ),
        }
    }

    fn address(&self, at: usize) -> &Address {
        &self.client.addresses()[at]
    }
}

/// What all servers that were asked said instead of an answer.
#[derive(Default)]
struct Failed {
    why: String,
    pause: Option<Duration>,
}

impl Failed {
    fn add(&mut self, address: &Address, why: &str, pause: Option<Duration>) {
        let gap = if self.why.is_empty() { "" } else { "; " };
        let _ = write!(self.why, "{gap}{address}: {why}");
        // The first one that is ready again is enough.
        self.pause = match (self.pause, pause) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
    }

    fn trouble(self) -> Trouble {
        Trouble::Outage {
            why: self.why,
            retry_after: self.pause,
        }
    }
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers
        .get(RETRY_AFTER)?
        .to_str()
        .ok()?
        .trim()
        .parse()
        .ok()?;
    Some(Duration::from_secs(seconds).min(LONGEST_PAUSE))
}

/// A path of Vault's, as a URL has it.
fn encoded(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z'
            | b'A'..=b'Z'
            | b'0'..=b'9'
            | b'-'
            | b'.'
            | b'_'
            | b'~'
            | b'/'
            | b'='
            | b'@'
            | b'+' => {
                out.push(char::from(byte));
            }
            other => {
                let _ = write!(out, "%{other:02X}");
            }
        }
    }
    out
}
