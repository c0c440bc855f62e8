//! Riding over a restart of the agent, without any I/O: what is asked again, when, and for how long.
//!
//! Every call of this crate only reads, so a request that may have been answered can be sent again.

use std::time::{Duration, Instant};

use crate::Error;
use crate::exchange::Limit;
use crate::request::Request;
use crate::wire::Reply;

/// How long an agent is waited for unless told otherwise: systemd restarts a service within a second.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

/// The tries of one call.
pub(crate) struct Tries<'a> {
    request: &'a Request,
    limit: Limit,
    patience: Duration,
    /// When to give up; known once a try has failed.
    until: Option<Instant>,
    pause: Duration,
}

/// What comes after one try.
pub(crate) enum Next {
    /// The call is over.
    Done(Result<Reply, Error>),
    /// Try again after this pause.
    Again(Duration),
}

impl<'a> Tries<'a> {
    pub(crate) fn new(request: &'a Request, limit: Limit, patience: Duration) -> Self {
        Self {
            request,
            limit,
            patience,
            until: None,
            pause: FIRST_PAUSE,
        }
    }

    /// Judges a try. One on a kept connection that has died is repeated at once: that alone is no restart.
    pub(crate) fn after(&mut self, tried: Result<Reply, Error>, kept: bool) -> Next {
        let restarting = match &tried {
            // An agent that is going away refuses, and ends the connection.
            Ok(reply) => reply.head.status == 503 && reply.head.close && !self.request.takes_503,
            Err(error) => error.is_restart(),
        };
        if !restarting {
            return Next::Done(tried);
        }
        if kept {
            return Next::Again(Duration::ZERO);
        }
        match self.next_pause() {
            Some(pause) => Next::Again(pause),
            None => Next::Done(tried),
        }
    }

    /// Twice as long each time; `None` where the agent has been waited for long enough.
    fn next_pause(&mut self) -> Option<Duration> {
        let now = Instant::now();
        let until = *self
            .until
            .get_or_insert_with(|| (now + self.patience).min(self.limit.deadline()));
        let pause = self.pause;
        self.pause = (pause * 2).min(LONGEST_PAUSE);
        (now + pause < until).then_some(pause)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::Address;
    use std::io;

    fn gone(kind: io::ErrorKind) -> Result<Reply, Error> {
        Err(Address::at("/run/x").unreachable(kind.into()))
    }

    fn again(tries: &mut Tries<'_>, kind: io::ErrorKind, kept: bool) -> Option<Duration> {
        match tries.after(gone(kind), kept) {
            Next::Again(pause) => Some(pause),
            Next::Done(_) => None,
        }
    }

    #[test]
    fn pauses_grow_to_a_quarter_of_a_second() {
        let (request, limit) = (Request::whoami(), Limit::of(Duration::from_secs(60)));
        let mut tries = Tries::new(&request, limit, PATIENCE);
        let refused = io::ErrorKind::ConnectionRefused;
        let pauses: Vec<_> = (0..7)
            .map(|_| again(&mut tries, refused, false).unwrap().as_millis())
            .collect();
        assert_eq!(pauses, [10, 20, 40, 80, 160, 250, 250]);
    }

    #[test]
    fn the_first_failure_of_a_kept_connection_costs_no_pause() {
        let (request, limit) = (Request::whoami(), Limit::of(Duration::from_secs(60)));
        let mut tries = Tries::new(&request, limit, Duration::ZERO);
        let ended = io::ErrorKind::UnexpectedEof;
        assert_eq!(again(&mut tries, ended, true), Some(Duration::ZERO));
        assert_eq!(again(&mut tries, ended, false), None);
    }

    #[test]
    fn no_try_begins_after_the_calls_own_limit() {
        let (request, limit) = (Request::whoami(), Limit::of(Duration::from_millis(5)));
        let mut tries = Tries::new(&request, limit, PATIENCE);
        assert_eq!(again(&mut tries, io::ErrorKind::NotFound, false), None);
    }

    #[test]
    fn what_a_restart_does_not_explain_is_told_at_once() {
        let (request, limit) = (Request::whoami(), Limit::of(Duration::from_secs(60)));
        let mut tries = Tries::new(&request, limit, PATIENCE);
        assert_eq!(
            again(&mut tries, io::ErrorKind::PermissionDenied, true),
            None
        );
        assert_eq!(
            again(&mut tries, io::ErrorKind::PermissionDenied, false),
            None
        );
    }
}
