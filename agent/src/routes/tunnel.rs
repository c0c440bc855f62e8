//! A WebSocket between a bot and an upstream, once both have agreed on it. The credential was in the handshake alone.
//!
//! Each side is read no faster than the other takes it. What the upstream says is searched for the secret.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::BytesMut;
use hyper::HeaderMap;
use hyper::header::{CONNECTION, HeaderValue, SEC_WEBSOCKET_EXTENSIONS, UPGRADE};
use hyper::http::response;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::time::sleep;

use super::Route;
use super::connect::Link;
use super::credential::Credential;
use super::download::{Summary, Told};
use super::exchange::Answered;
use super::frames::Frames;
use super::upload::Progress;

/// How much is read at once.
const PIECE: usize = 16 * 1024;

const WEBSOCKET: HeaderValue = HeaderValue::from_static("websocket");

/// A WebSocket that both sides have agreed on.
pub struct Tunnel {
    upstream: OnUpgrade,
    /// What the connection is driven by until the other protocol begins.
    _link: Link,
    frames: Frames,
    progress: Arc<Progress>,
    patience: Duration,
    largest: Option<u64>,
    largest_answer: u64,
    received: u64,
    masked: usize,
    complete: bool,
    told: Option<Told>,
}

/// Whether a request or an answer is about a WebSocket and no other protocol.
#[must_use]
pub fn is_websocket(headers: &HeaderMap) -> bool {
    let mut protocols = headers.get_all(UPGRADE).iter();
    let is_one = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"websocket");
    let is_named = |value: &HeaderValue| {
        let mut words = value.as_bytes().split(|byte| *byte == b',');
        words.any(|word| word.trim_ascii().eq_ignore_ascii_case(b"upgrade"))
    };
    protocols.next().is_some_and(is_one)
        && protocols.next().is_none()
        && headers.get_all(CONNECTION).iter().any(is_named)
}

/// Whether the answer agrees to a WebSocket whose frames can be searched.
pub fn is_agreed(headers: &HeaderMap) -> bool {
    is_websocket(headers) && !headers.contains_key(SEC_WEBSOCKET_EXTENSIONS)
}

/// Says in a head that the protocol is to be, or is, another from here on.
pub fn switch(headers: &mut HeaderMap) {
    headers.insert(UPGRADE, WEBSOCKET);
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
}

impl Answered {
    /// The connection to the upstream, where it has agreed to a WebSocket.
    pub fn switched(&mut self) -> Option<OnUpgrade> {
        self.upgrade.take()
    }

    /// The head, with nothing of the secret in it, and the WebSocket; `told` learns how it went.
    #[must_use]
    pub fn tunnel(
        self,
        upstream: OnUpgrade,
        route: &Route,
        credential: &Credential,
        progress: &Arc<Progress>,
        told: Told,
    ) -> (response::Parts, Tunnel) {
        let Self { mut head, link, .. } = self;
        let masked = credential.mask.headers(&mut head.headers);
        head.extensions.clear();
        switch(&mut head.headers);
        let tunnel = Tunnel {
            upstream,
            _link: link,
            frames: Frames::new(Arc::clone(&credential.mask)),
            progress: Arc::clone(progress),
            patience: route.patience(),
            largest: route.largest_body(),
            largest_answer: route.largest_answer(),
            received: 0,
            masked,
            complete: false,
            told: Some(told),
        };
        (head, tunnel)
    }
}

impl Tunnel {
    /// Passes on what comes, until one side ends it.
    pub async fn run(mut self, bot: OnUpgrade) {
        let (Ok(bot), Ok(upstream)) = (bot.await, (&mut self.upstream).await) else {
            return;
        };
        let (from_bot, to_bot) = split(TokioIo::new(bot));
        let (from_upstream, to_upstream) = split(TokioIo::new(upstream));
        let moved = AtomicU64::new(0);
        let (progress, largest, patience) =
            (Arc::clone(&self.progress), self.largest, self.patience);
        let ended = tokio::select! {
            ended = up(from_bot, to_upstream, &progress, largest, &moved) => ended,
            ended = self.down(from_upstream, to_bot, &moved) => ended,
            () = silence(&moved, patience) => Err(io::ErrorKind::TimedOut.into()),
        };
        self.complete = ended.is_ok();
    }

    async fn down(
        &mut self,
        mut upstream: ReadHalf<TokioIo<Upgraded>>,
        mut bot: WriteHalf<TokioIo<Upgraded>>,
        moved: &AtomicU64,
    ) -> io::Result<()> {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(PIECE);
            let count = upstream.read_buf(&mut buffer).await?;
            if count == 0 {
                return Ok(());
            }
            moved.fetch_add(1, Relaxed);
            self.received += count as u64;
            if self.received > self.largest_answer {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
            let ready = self.frames.push(buffer.split().freeze());
            let ready = ready.map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
            bot.write_all(&ready).await?;
        }
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        if let Some(told) = self.told.take() {
            told(Summary {
                received: self.received,
                masked: self.masked + self.frames.hits(),
                complete: self.complete,
                cost: None,
            });
        }
    }
}

/// From the bot to the upstream, as much as a body may be.
async fn up(
    mut bot: ReadHalf<TokioIo<Upgraded>>,
    mut upstream: WriteHalf<TokioIo<Upgraded>>,
    progress: &Progress,
    largest: Option<u64>,
    moved: &AtomicU64,
) -> io::Result<()> {
    let mut buffer = vec![0; PIECE];
    loop {
        let count = bot.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        moved.fetch_add(1, Relaxed);
        progress.add(count as u64);
        if largest.is_some_and(|largest| progress.bytes() > largest) {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        upstream.write_all(&buffer[..count]).await?;
    }
}

/// Returns once nothing has moved for as long as it may.
async fn silence(moved: &AtomicU64, patience: Duration) {
    loop {
        let before = moved.load(Relaxed);
        sleep(patience).await;
        if moved.load(Relaxed) == before {
            return;
        }
    }
}
