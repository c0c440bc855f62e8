//! Bodies: read frame by frame into memory of the right kind, never more than a bound.

use std::ops::Deref;
use std::sync::Arc;

use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};

use super::client::Failure;
use crate::sys::arena::{Arena, Draft};

/// Where a body of unknown length begins.
const FIRST: usize = 8 * 1024;

/// Where a body goes, and how large it may be.
#[derive(Clone)]
pub enum Bound {
    /// Into secret memory.
    Secret(Arc<Arena>, usize),
    /// Into ordinary memory: it holds no secret.
    Plain(usize),
}

/// A body that was read whole.
pub struct Content {
    room: Room,
    len: usize,
}

enum Room {
    Secret(Draft),
    Plain(Vec<u8>),
}

impl Content {
    /// Reads `body` to its end.
    pub(super) async fn read(mut body: Incoming, bound: &Bound) -> Result<Self, Failure> {
        let most = bound.most();
        // What is announced is reserved at once, so that nothing is copied again.
        let announced = body.size_hint().exact();
        let first = match announced.map(usize::try_from) {
            Some(Ok(len)) if len <= most => len,
            Some(_) => return Err(Failure::TooLarge(most)),
            None => FIRST.min(most),
        };
        let mut content = Self {
            room: bound.room(first)?,
            len: 0,
        };
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| Failure::CutShort)?;
            if let Some(data) = frame.data_ref() {
                content.push(data, bound)?;
            }
        }
        Ok(content)
    }

    fn push(&mut self, data: &[u8], bound: &Bound) -> Result<(), Failure> {
        let end = self.len + data.len();
        if end > bound.most() {
            return Err(Failure::TooLarge(bound.most()));
        }
        if end > self.room.bytes().len() {
            let mut larger = bound.room((2 * end).min(bound.most()))?;
            larger.bytes_mut()[..self.len].copy_from_slice(&self.room.bytes()[..self.len]);
            self.room = larger;
        }
        self.room.bytes_mut()[self.len..end].copy_from_slice(data);
        self.len = end;
        Ok(())
    }
}

impl Deref for Content {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.room.bytes()[..self.len]
    }
}

impl Bound {
    fn most(&self) -> usize {
        match self {
            Self::Secret(_, most) | Self::Plain(most) => *most,
        }
    }

    fn room(&self, len: usize) -> Result<Room, Failure> {
        match self {
            Self::Secret(arena, _) => Ok(Room::Secret(arena.draft(len)?)),
            Self::Plain(_) => Ok(Room::Plain(vec![0; len])),
        }
    }
}

impl Room {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Secret(draft) => draft,
            Self::Plain(bytes) => bytes,
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Secret(draft) => draft,
            Self::Plain(bytes) => bytes,
        }
    }
}
