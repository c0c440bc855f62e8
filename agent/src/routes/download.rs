//! An answer's body on its way to the bot, searched for the secret as it streams by.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::HeaderMap;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::http::response;
use tokio::time::{Instant, Sleep, sleep};

use super::Route;
use super::connect::Link;
use super::credential::Credential;
use super::exchange::Answered;
use super::failure::Failure;
use super::headers;
use super::mask::{Mask, Stream};
use super::pool::Pool;
use super::tally::Tally;
use crate::config::Cost;

/// How an answer went.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Summary {
    /// Bytes of its body.
    pub received: u64,
    /// How many places held the secret, headers and trailers included.
    pub masked: usize,
    /// Whether it came whole.
    pub complete: bool,
    /// What it said that it cost.
    pub cost: Option<f64>,
}

/// Told once how an answer went.
pub type Told = Box<dyn FnOnce(Summary) + Send>;

/// The body of an answer.
pub struct Download {
    body: Incoming,
    mask: Arc<Mask>,
    /// Held so that other requests may share it meanwhile, where they may.
    _shared: Option<Arc<Credential>>,
    stream: Stream,
    patience: Duration,
    /// Made once it is waited for: a small answer is there with its head.
    silence: Option<Pin<Box<Sleep>>>,
    /// Trailers that wait for the last bytes before them.
    trailers: Option<HeaderMap>,
    ended: bool,
    /// How large it may be.
    largest: u64,
    received: u64,
    cost: Option<f64>,
    tally: Option<Tally>,
    masked: usize,
    link: Option<Link>,
    pool: Arc<Pool>,
    told: Option<Told>,
}

impl Answered {
    /// The head, with nothing of the secret in it, and the body that will be searched; `told` learns how it went.
    #[must_use]
    pub fn searched(
        self,
        route: &Route,
        credential: &Arc<Credential>,
        told: Told,
    ) -> (response::Parts, Download) {
        let Self {
            mut head,
            body,
            link,
            ..
        } = self;
        let (cost, tally) = route.counts_cost(&head.headers);
        let masked = credential.mask.headers(&mut head.headers);
        // The reason phrase is any text, and of no use.
        head.extensions.clear();
        let mut download = Download {
            stream: Stream::new(Arc::clone(&credential.mask)),
            mask: Arc::clone(&credential.mask),
            _shared: credential.is_shared.then(|| Arc::clone(credential)),
            body,
            patience: route.patience(),
            silence: None,
            trailers: None,
            ended: false,
            largest: route.largest_answer(),
            received: 0,
            cost,
            tally,
            masked,
            link: Some(link),
            pool: Arc::clone(&route.pool),
            told: Some(told),
        };
        // An answer without a body is never asked for it.
        if download.body.is_end_stream() {
            download.end();
        }
        (head, download)
    }
}

impl Route {
    /// How large an answer's body may be.
    pub(super) fn largest_answer(&self) -> u64 {
        self.config.limits.answer.unwrap_or(u64::MAX)
    }

    /// What an answer's head says that it cost, or what finds that in its body.
    fn counts_cost(&self, headers: &HeaderMap) -> (Option<f64>, Option<Tally>) {
        match self.config.limits.spend.as_ref().map(|spend| &spend.cost) {
            None => (None, None),
            Some(Cost::Header(name)) => {
                let said = headers.get(name).and_then(|value| value.to_str().ok());
                let cost = said.and_then(|text| text.trim().parse().ok());
                (cost.filter(|cost: &f64| cost.is_finite()), None)
            }
            Some(Cost::Pointer(keys)) => {
                let kind = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
                let events = kind.is_some_and(|kind| kind.starts_with(b"text/event-stream"));
                (None, Some(Tally::new(keys, events)))
            }
        }
    }
}

impl Download {
    /// The whole answer is here: the connection may wait for the next request, unless its buffers hold what was
    /// found.
    fn end(&mut self) {
        self.ended = true;
        self.tell(true);
        match self.link.take() {
            Some(link) if self.found() == 0 => self.pool.put(link),
            Some(link) => self.pool.close(&link.insertions),
            None => {}
        }
    }

    /// It ends before it is whole.
    fn fail(&mut self) {
        self.ended = true;
        self.tell(false);
        if let Some(link) = self.link.take() {
            self.pool.close(&link.insertions);
        }
    }

    /// What is ready and what waited, at the end of the body.
    fn last(&mut self, ready: Bytes) -> Bytes {
        let held = self.stream.end();
        self.end();
        match (ready.is_empty(), held.is_empty()) {
            (_, true) => ready,
            (true, _) => held,
            _ => [ready, held].concat().into(),
        }
    }

    fn found(&self) -> usize {
        self.masked + self.stream.hits()
    }

    fn tell(&mut self, complete: bool) {
        if let Some(told) = self.told.take() {
            told(Summary {
                received: self.received,
                masked: self.found(),
                complete,
                cost: self.tally.as_ref().and_then(Tally::cost).or(self.cost),
            });
        }
    }

    /// The next frame of the upstream's, no later than it may be silent.
    fn poll_upstream(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(frame) => {
                let frame = frame.map(|frame| frame.map_err(|_| Failure::NoAnswer));
                if let (Some(Ok(_)), Some(silence)) = (&frame, &mut self.silence) {
                    silence.as_mut().reset(Instant::now() + self.patience);
                }
                Poll::Ready(frame)
            }
            Poll::Pending => {
                let patience = self.patience;
                let silence = self
                    .silence
                    .get_or_insert_with(|| Box::pin(sleep(patience)));
                ready!(silence.as_mut().poll(cx));
                Poll::Ready(Some(Err(Failure::Timeout(self.patience))))
            }
        }
    }
}

impl Body for Download {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let this = self.get_mut();
        loop {
            if let Some(trailers) = this.trailers.take() {
                return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
            }
            if this.ended {
                return Poll::Ready(None);
            }
            let ready = match ready!(this.poll_upstream(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        this.received += data.len() as u64;
                        if this.received > this.largest {
                            this.fail();
                            return Poll::Ready(Some(Err(Failure::AnswerTooLarge)));
                        }
                        if let Some(tally) = &mut this.tally {
                            tally.feed(&data);
                        }
                        let ready = this.stream.push(data);
                        // Whoever knows the length asks no more once it is there; HTTP/2 may say later that it ends.
                        if this.body.is_end_stream() || this.body.size_hint().exact() == Some(0) {
                            this.last(ready)
                        } else {
                            ready
                        }
                    }
                    Err(frame) => {
                        let mut trailers = frame.into_trailers().unwrap_or_default();
                        headers::from_upstream(&mut trailers);
                        this.masked += this.mask.headers(&mut trailers);
                        this.trailers = Some(trailers);
                        this.last(Bytes::new())
                    }
                },
                Some(Err(failure)) => {
                    this.fail();
                    return Poll::Ready(Some(Err(failure)));
                }
                None => this.last(Bytes::new()),
            };
            if !ready.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(ready))));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended && self.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let held = self.stream.held() as u64;
        let left = self.body.size_hint();
        match left.exact() {
            Some(left) => SizeHint::with_exact(left + held),
            None => SizeHint::default(),
        }
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        self.tell(false);
    }
}
