//! A bot's body on its way to the upstream: never faster than the upstream takes it, never more than it may be.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use super::Route;
use super::exchange::Outgoing;
use super::failure::Failure;
use super::whole::{Room, Shares};

/// A body of announced length up to this is read first, so that the request can be repeated.
const SMALL: u64 = 16 * 1024;

/// What is sent.
pub enum Upload {
    /// All of it is here.
    Whole(Bytes),
    /// It comes as it is taken.
    Streamed(Streamed),
}

/// A body that streams by.
pub struct Streamed {
    body: Incoming,
    /// How many bytes more there may be.
    left: u64,
    progress: Arc<Progress>,
}

/// How far a body is.
#[derive(Default)]
pub struct Progress {
    bytes: AtomicU64,
    trouble: AtomicU8,
}

const TOO_LARGE: u8 = 1;
const CUT: u8 = 2;

impl Progress {
    /// How many bytes went on.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    /// More of them did.
    pub fn add(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Relaxed);
    }

    /// What of the bot's doing ended it, if so.
    pub fn trouble(&self) -> Option<Failure> {
        match self.trouble.load(Relaxed) {
            TOO_LARGE => Some(Failure::BodyTooLarge),
            CUT => Some(Failure::BodyCut),
            _ => None,
        }
    }
}

impl Route {
    /// Takes the body of what a bot asks, whole where it is signed.
    ///
    /// # Errors
    /// Where it is too large, or does not come.
    pub async fn take(
        &self,
        outgoing: &Outgoing,
        bot: &str,
        body: Incoming,
    ) -> Result<(Upload, Arc<Progress>), Failure> {
        let room = self.room(outgoing, bot, body.size_hint().exact())?;
        Upload::of(body, self.largest_body(), room, self.patience()).await
    }

    /// Takes a body that has conditions to meet: whole, in the bot's share.
    ///
    /// # Errors
    /// Where it is too large, or does not come.
    pub async fn take_whole(
        &self,
        bot: &str,
        body: Incoming,
    ) -> Result<(Upload, Arc<Progress>), Failure> {
        let largest = self.largest_looked_at();
        if body.size_hint().lower() > largest {
            return Err(Failure::BodyTooLarge);
        }
        let room = Shares::room(&self.shares, bot, body.size_hint().exact())?;
        Upload::of(body, Some(largest), Some(room), self.patience()).await
    }
}

impl Upload {
    /// Takes a body of at most `largest` bytes. A small one is waited for, but for no longer than `patience`; so is one
    /// that there is `room` for.
    ///
    /// # Errors
    /// Where it is announced to be larger, or does not come.
    async fn of(
        body: Incoming,
        largest: Option<u64>,
        room: Option<Room>,
        patience: Duration,
    ) -> Result<(Self, Arc<Progress>), Failure> {
        let largest = largest.unwrap_or(u64::MAX);
        if body.size_hint().lower() > largest {
            return Err(Failure::BodyTooLarge);
        }
        let progress = Arc::new(Progress::default());
        let is_small = body.size_hint().exact().is_some_and(|len| len <= SMALL);
        if is_small || room.is_some() {
            let most = room.as_ref().map_or(SMALL, Room::bytes);
            let read = async {
                let bytes = whole(body, largest, most).await?;
                Ok::<_, Failure>(match room {
                    Some(room) => room.holds(bytes),
                    None => bytes,
                })
            };
            let read = tokio::time::timeout(patience, read).await;
            let bytes = read.map_err(|_| Failure::BodyCut)??;
            progress.add(bytes.len() as u64);
            return Ok((Self::Whole(bytes), progress));
        }
        let streamed = Streamed {
            body,
            left: largest,
            progress: Arc::clone(&progress),
        };
        Ok((Self::Streamed(streamed), progress))
    }

    /// All of it, where it is here.
    #[must_use]
    pub fn whole(&self) -> Option<&[u8]> {
        match self {
            Self::Whole(bytes) => Some(bytes),
            Self::Streamed(_) => None,
        }
    }

    /// The same once more, where that can be sent again.
    #[must_use]
    pub fn again(&self) -> Option<Self> {
        match self {
            Self::Whole(bytes) => Some(Self::Whole(bytes.clone())),
            Self::Streamed(_) => None,
        }
    }
}

async fn whole(mut body: Incoming, largest: u64, most: u64) -> Result<Bytes, Failure> {
    let check = |len: u64| match len {
        len if len > largest => Err(Failure::BodyTooLarge),
        len if len > most => Err(Failure::TooLargeToSign),
        _ => Ok(()),
    };
    check(body.size_hint().lower())?;
    let mut read = BytesMut::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.map_err(|_| Failure::BodyCut)?.into_data() {
            check((read.len() + data.len()) as u64)?;
            read.extend_from_slice(&data);
        }
    }
    Ok(read.freeze())
}

impl Body for Upload {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        match self.get_mut() {
            Self::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Streamed(streamed) => streamed.poll_data(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_empty(),
            Self::Streamed(streamed) => streamed.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Streamed(streamed) => streamed.body.size_hint(),
        }
    }
}

impl Streamed {
    /// The next data. Trailers are left out: they could be headers that a request may not have.
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        loop {
            let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(cx)) else {
                return Poll::Ready(None);
            };
            let Ok(frame) = frame else {
                return Poll::Ready(Some(Err(self.fail(CUT, Failure::BodyCut))));
            };
            let Ok(data) = frame.into_data() else {
                continue;
            };
            let len = data.len() as u64;
            let Some(left) = self.left.checked_sub(len) else {
                return Poll::Ready(Some(Err(self.fail(TOO_LARGE, Failure::BodyTooLarge))));
            };
            self.left = left;
            self.progress.add(len);
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
    }

    fn fail(&self, trouble: u8, failure: Failure) -> Failure {
        self.progress.trouble.store(trouble, Relaxed);
        failure
    }
}
