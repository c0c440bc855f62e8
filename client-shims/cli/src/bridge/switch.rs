//! A WebSocket: once the agent has agreed, a connection is HTTP no more, and its two sides are joined.

use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::upgrade::{self, OnUpgrade};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional;

const WEBSOCKET: &str = "websocket";

/// Both sides, each once it has switched.
pub struct Switch {
    client: OnUpgrade,
    agent: OnUpgrade,
}

/// The client's side, where its request asks for a WebSocket; the agent knows no other protocol.
pub fn asked(request: &mut Request<Incoming>) -> Option<OnUpgrade> {
    let headers = request.headers();
    let named = headers.get(header::UPGRADE)?.to_str().ok()?;
    // It is asked for only where `Connection` says so, too (RFC 9110, section 7.8).
    let mut options = headers.get_all(header::CONNECTION).iter();
    let says_so = options.any(|list| {
        let mut words = list.to_str().unwrap_or_default().split(',');
        words.any(|word| word.trim().eq_ignore_ascii_case("upgrade"))
    });
    if !says_so || !named.eq_ignore_ascii_case(WEBSOCKET) {
        return None;
    }
    Some(upgrade::on(request))
}

/// What asks for it, or agrees to it, on one connection and not on the next.
pub fn mark(headers: &mut HeaderMap) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static(WEBSOCKET));
}

impl Switch {
    /// The switch that the agent's answer agrees to.
    pub fn agreed(client: Option<OnUpgrade>, answer: &mut Response<Incoming>) -> Option<Self> {
        let client = client.filter(|_| answer.status() == StatusCode::SWITCHING_PROTOCOLS)?;
        Some(Self {
            client,
            agent: upgrade::on(answer),
        })
    }

    /// Passes on what either side says, until one of them ends.
    pub async fn join(self) {
        if let (Ok(client), Ok(agent)) = (self.client.await, self.agent.await) {
            let (mut client, mut agent) = (TokioIo::new(client), TokioIo::new(agent));
            // How it ends, both sides know.
            let _ = copy_bidirectional(&mut client, &mut agent).await;
        }
    }
}
