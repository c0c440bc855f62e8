//! What an answer's body is made of: bytes that are ready, a watch that makes them as they are asked for, or what a
//! route's upstream sends.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Frame, SizeHint};

use super::watch::Watch;
use crate::routes::{Download, Failure};

/// The body of an answer.
pub enum Body {
    /// One piece, or nothing.
    One(Option<Bytes>),
    /// Several pieces, written one after the other without being copied together.
    Pieces(VecDeque<Bytes>),
    /// A stream of events.
    Watch(Box<Watch>),
    /// The answer of a route's upstream.
    Passing(Box<Download>),
}

impl Body {
    /// No bytes at all.
    pub fn empty() -> Self {
        Self::One(None)
    }

    /// One piece.
    pub fn one(bytes: impl Into<Bytes>) -> Self {
        Self::One(Some(bytes.into()).filter(|bytes: &Bytes| !bytes.is_empty()))
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let piece = match self.get_mut() {
            Self::One(bytes) => Poll::Ready(bytes.take()),
            Self::Pieces(pieces) => Poll::Ready(pieces.pop_front()),
            Self::Watch(watch) => watch.poll_next(cx),
            Self::Passing(passing) => return Pin::new(&mut **passing).poll_frame(cx),
        };
        piece.map(|piece| piece.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::One(bytes) => bytes.is_none(),
            Self::Pieces(pieces) => pieces.is_empty(),
            Self::Watch(_) => false,
            Self::Passing(passing) => passing.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        let len = |bytes: &Bytes| bytes.len() as u64;
        match self {
            Self::One(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, len)),
            Self::Pieces(pieces) => SizeHint::with_exact(pieces.iter().map(len).sum()),
            Self::Watch(_) => SizeHint::default(),
            Self::Passing(passing) => passing.size_hint(),
        }
    }
}
