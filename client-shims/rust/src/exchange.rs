//! One request and its answer, apart from how bytes are moved: what both clients share.

use std::io;
use std::time::Duration;

use crate::Error;
use crate::events::Events;
use crate::request::Request;
use crate::socket::Address;
use crate::wire::{Broken, Reading, Reply, Step};

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

/// Why an exchange failed, and whether the request may be sent again on a new connection.
pub(crate) struct Failure {
    pub error: Error,
    pub stale: bool,
}

/// An answer on its way.
pub(crate) struct Exchange<'a> {
    address: &'a Address,
    timeout: Duration,
    /// The connection has been used before: the agent may have closed it since.
    kept: bool,
    pub reading: Reading,
}

impl<'a> Exchange<'a> {
    pub(crate) fn new(
        address: &'a Address,
        request: &Request,
        timeout: Duration,
        kept: bool,
    ) -> Self {
        Self {
            address,
            timeout,
            kept,
            reading: Reading::new(request.limit),
        }
    }

    /// The bytes that were read, or why none could be; the answer once it is complete.
    pub(crate) fn advance(&mut self, read: io::Result<usize>) -> Result<Option<Answer>, Failure> {
        let untouched = self.reading.is_untouched();
        let count = read.map_err(|cause| self.failed(cause))?;
        match self.reading.advance(count) {
            Ok(Step::More) => Ok(None),
            Ok(Step::Whole(reply)) => Ok(Some(Answer::Whole(reply))),
            Ok(Step::Stream(events)) => Ok(Some(Answer::Stream(events))),
            Err(broken) => Err(Failure {
                stale: self.kept && untouched && broken == Broken::Closed,
                error: self.address.broken(broken),
            }),
        }
    }

    pub(crate) fn failed(&self, cause: io::Error) -> Failure {
        use io::ErrorKind::{BrokenPipe, ConnectionReset};
        let closed = matches!(cause.kind(), BrokenPipe | ConnectionReset);
        Failure {
            stale: self.kept && self.reading.is_untouched() && closed,
            error: self.address.failed(cause, self.timeout),
        }
    }
}
