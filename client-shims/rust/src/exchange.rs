//! One request and its answer, apart from how bytes are moved: what both clients share.

use std::io;
use std::time::{Duration, Instant};

use crate::Error;
use crate::events::Events;
use crate::request::Request;
use crate::socket::Address;
use crate::wire::{Reading, Reply, Step};

/// What a request is answered with.
pub(crate) enum Answer {
    Whole(Reply),
    Stream(Events),
}

impl Answer {
    /// The answer to anything but a watch.
    pub(crate) fn whole(self) -> Result<Reply, Error> {
        match self {
            Self::Whole(reply) => Ok(reply),
            Self::Stream(_) => Err(Error::Protocol("an event stream came unasked")),
        }
    }

    /// The answer to a watch.
    pub(crate) fn stream(self) -> Result<Events, Error> {
        match self {
            Self::Stream(events) => Ok(events),
            Self::Whole(reply) => {
                crate::reply::good(reply)?;
                Err(Error::Protocol("a watch was not answered with events"))
            }
        }
    }
}

/// How long a call may take, all its tries together.
#[derive(Clone, Copy)]
pub(crate) struct Limit {
    total: Duration,
    deadline: Instant,
}

impl Limit {
    pub(crate) fn total(&self) -> Duration {
        self.total
    }

    pub(crate) fn of(total: Duration) -> Self {
        Self {
            total,
            deadline: Instant::now() + total,
        }
    }

    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// The time left; an error once there is none.
    pub(crate) fn left(&self) -> io::Result<Duration> {
        match self.deadline.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
            left => Ok(left),
        }
    }
}

/// An answer on its way.
pub(crate) struct Exchange<'a> {
    address: &'a Address,
    limit: Limit,
    pub reading: Reading,
}

impl<'a> Exchange<'a> {
    pub(crate) fn new(address: &'a Address, request: &Request, limit: Limit) -> Self {
        Self {
            address,
            limit,
            reading: Reading::new(request.limit),
        }
    }

    /// The bytes that were read, or why none could be; the answer once it is complete.
    pub(crate) fn advance(&mut self, read: io::Result<usize>) -> Result<Option<Answer>, Error> {
        let count = read.map_err(|cause| self.failed(cause))?;
        match self.reading.advance(count) {
            Ok(Step::More) => Ok(None),
            Ok(Step::Whole(reply)) => Ok(Some(Answer::Whole(reply))),
            Ok(Step::Stream(events)) => Ok(Some(Answer::Stream(events))),
            Err(broken) => Err(self.address.broken(broken)),
        }
    }

    pub(crate) fn failed(&self, cause: io::Error) -> Error {
        self.address.failed(cause, self.limit)
    }
}
