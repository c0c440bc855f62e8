//! What can go wrong, in types that a program can match on. No error ever holds a value.

use std::fmt;
use std::io;
use std::time::Duration;

use keyhatch_protocol::{Code, NameError, Problem};

use crate::socket::Address;

/// Why a request was not answered with what it asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The policy does not allow it, or there is no such secret: the agent gives the same answer for both.
    #[error("{0}")]
    Denied(Reason),
    /// This bot is quarantined until an operator releases it.
    #[error("{0}")]
    Quarantined(Reason),
    /// No such secret; only told to a bot that may read or list the name.
    #[error("{0}")]
    NotFound(Reason),
    /// The agent is sealed: it holds no values until an operator unseals it.
    #[error("{0}")]
    Sealed(Reason),
    /// The source is down and the last good value too old, or no audit record can be kept. Try again later.
    #[error("{0}")]
    Unavailable(Reason),
    /// Too many requests.
    #[error("{reason}")]
    RateLimited {
        /// What the agent said.
        reason: Reason,
        /// How long to wait before asking again, where the agent said so.
        retry_after: Option<Duration>,
    },
    /// The agent does not understand the request.
    #[error("{0}")]
    BadRequest(Reason),
    /// The upstream of a route could not be asked, or gave no answer that can be passed on.
    #[error("{0}")]
    UpstreamFailed(Reason),
    /// The upstream of a route was silent for too long.
    #[error("{0}")]
    UpstreamTimeout(Reason),
    /// Any other refusal, such as a fault of the agent's own.
    #[error("{0}")]
    Failed(Reason),
    /// What listens at the socket is not the agent's user, so nothing was sent to it.
    #[error(
        "the server at {socket} runs as uid {uid} and is not trusted, so nothing was sent to it: \
         name the socket of an agent that runs as root, as you, or as the owner of the socket's folder"
    )]
    Refused {
        /// The socket.
        socket: Address,
        /// Who listens there.
        uid: u32,
    },
    /// Nobody listens at the socket, or the connection broke.
    #[error("cannot reach the agent at {socket}: {cause}")]
    Unreachable {
        /// The socket.
        socket: Address,
        /// What the system said.
        cause: io::Error,
    },
    /// The agent did not answer in time.
    #[error("the agent at {socket} did not answer within {after:?}")]
    TimedOut {
        /// The socket.
        socket: Address,
        /// How long the client waited.
        after: Duration,
    },
    /// The answer is not one that an agent gives.
    #[error("the answer is not one of a Keyhatch agent: {0}")]
    Protocol(&'static str),
    /// The text asked for is not a secret name.
    #[error("{name:?} is not a secret name: {cause}")]
    Name {
        /// As given.
        name: String,
        /// What is wrong with it.
        cause: NameError,
    },
    /// The version or field given cannot be one.
    #[error("{0}")]
    Input(&'static str),
    /// The value is not UTF-8 text.
    #[error("the value of {0} is not UTF-8 text: read it as bytes")]
    NotText(String),
    /// The value is not a JSON object with this field.
    #[error("the value of {secret} is not a JSON object with a field {field:?}")]
    NoField {
        /// The secret's name.
        secret: String,
        /// The field asked for.
        field: String,
    },
}

/// What the agent said, from its problem document (RFC 9457).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// The HTTP status.
    pub status: u16,
    /// The stable code, such as `denied`; empty where the answer was no problem document.
    pub code: String,
    /// What failed and what to do, in a sentence.
    pub detail: String,
    /// Leads to the audit record of the request.
    pub request_id: Option<String>,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)?;
        match (self.code.as_str(), self.request_id.as_deref()) {
            ("", _) => write!(f, " (status {})", self.status),
            (code, None) => write!(f, " ({code})"),
            (code, Some(id)) => write!(f, " ({code}, request {id})"),
        }
    }
}

impl Error {
    /// The error for an answer of `status` with `body`.
    pub(crate) fn from_answer(status: u16, retry_after: Option<Duration>, body: &[u8]) -> Self {
        let reason = Reason::read(status, body);
        let code = reason.code.parse::<Code>().ok();
        match (code, status) {
            (Some(Code::Denied), _) | (None, 403) => Self::Denied(reason),
            (Some(Code::Quarantined), _) => Self::Quarantined(reason),
            (Some(Code::NotFound), _) | (None, 404) => Self::NotFound(reason),
            (Some(Code::Sealed), _) => Self::Sealed(reason),
            (Some(Code::UpstreamUnavailable | Code::AuditUnavailable | Code::Timeout), _)
            | (None, 408 | 503) => Self::Unavailable(reason),
            (Some(Code::RateLimited), _) | (None, 429) => Self::RateLimited {
                reason,
                retry_after,
            },
            (Some(Code::UpstreamFailed), _) => Self::UpstreamFailed(reason),
            (Some(Code::UpstreamTimeout), _) => Self::UpstreamTimeout(reason),
            (Some(Code::BadRequest | Code::TooLarge | Code::HeadersTooLarge), _)
            | (None, 400 | 413 | 431) => Self::BadRequest(reason),
            _ => Self::Failed(reason),
        }
    }

    /// What the agent said, where it was the agent that refused.
    #[must_use]
    pub fn reason(&self) -> Option<&Reason> {
        match self {
            Self::Denied(reason)
            | Self::Quarantined(reason)
            | Self::NotFound(reason)
            | Self::Sealed(reason)
            | Self::Unavailable(reason)
            | Self::RateLimited { reason, .. }
            | Self::BadRequest(reason)
            | Self::UpstreamFailed(reason)
            | Self::UpstreamTimeout(reason)
            | Self::Failed(reason) => Some(reason),
            _ => None,
        }
    }

    /// The request id, which leads to the audit record.
    #[must_use]
    pub fn request_id(&self) -> Option<&str> {
        self.reason()?.request_id.as_deref()
    }

    /// Whether this is how an agent looks that is being restarted: gone for a moment, or gone in mid-answer.
    pub(crate) fn is_restart(&self) -> bool {
        use io::ErrorKind::{
            BrokenPipe, ConnectionRefused, ConnectionReset, NotFound, UnexpectedEof,
        };
        let gone = [
            NotFound,
            ConnectionRefused,
            ConnectionReset,
            BrokenPipe,
            UnexpectedEof,
        ];
        matches!(self, Self::Unreachable { cause, .. } if gone.contains(&cause.kind()))
    }

    /// Whether the same request may well succeed a little later.
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Sealed(_)
            | Self::Unavailable(_)
            | Self::RateLimited { .. }
            | Self::UpstreamFailed(_)
            | Self::UpstreamTimeout(_)
            | Self::Unreachable { .. }
            | Self::TimedOut { .. } => true,
            Self::Failed(reason) => reason.status >= 500,
            _ => false,
        }
    }
}

impl Reason {
    fn read(status: u16, body: &[u8]) -> Self {
        let Ok(problem) = serde_json::from_slice::<Problem>(body) else {
            return Self {
                status,
                code: String::new(),
                detail: "the answer says no more than its status".into(),
                request_id: None,
            };
        };
        Self {
            status,
            code: one_line(&problem.code),
            detail: one_line(problem.detail.as_deref().unwrap_or(&problem.title)),
            request_id: (!problem.request_id.is_empty()).then(|| one_line(&problem.request_id)),
        }
    }
}

/// Text for a terminal or a log: a control character cannot start a line or an escape sequence of its own.
fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn answer(code: Code) -> Error {
        let problem = Problem::new(code, Some("say\n\u{1b}[31mmore".into()), "r-1".into());
        Error::from_answer(code.status(), None, &serde_json::to_vec(&problem).unwrap())
    }

    #[test]
    fn each_code_has_its_error() {
        assert!(matches!(answer(Code::Denied), Error::Denied(_)));
        assert!(matches!(answer(Code::Quarantined), Error::Quarantined(_)));
        assert!(matches!(answer(Code::NotFound), Error::NotFound(_)));
        assert!(matches!(answer(Code::Sealed), Error::Sealed(_)));
        for code in [
            Code::UpstreamUnavailable,
            Code::AuditUnavailable,
            Code::Timeout,
        ] {
            assert!(matches!(answer(code), Error::Unavailable(_)), "{code}");
        }
        for code in [Code::BadRequest, Code::TooLarge, Code::HeadersTooLarge] {
            assert!(matches!(answer(code), Error::BadRequest(_)), "{code}");
        }
        assert!(matches!(
            answer(Code::UpstreamFailed),
            Error::UpstreamFailed(_)
        ));
        assert!(matches!(
            answer(Code::UpstreamTimeout),
            Error::UpstreamTimeout(_)
        ));
        for code in [Code::Internal, Code::MethodNotAllowed, Code::InGrace] {
            assert!(matches!(answer(code), Error::Failed(_)), "{code}");
        }
        let wait = Some(Duration::from_secs(7));
        let limited = Error::from_answer(429, wait, b"");
        assert!(matches!(limited, Error::RateLimited { retry_after, .. } if retry_after == wait));
    }

    #[test]
    fn a_message_is_one_line_and_names_the_request() {
        let error = answer(Code::Denied);
        assert_eq!(error.request_id(), Some("r-1"));
        assert_eq!(
            error.to_string(),
            "say\u{fffd}\u{fffd}[31mmore (denied, request r-1)"
        );
    }

    #[test]
    fn an_answer_without_a_problem_document_is_judged_by_its_status() {
        for body in [&b""[..], b"<html>", b"{}", b"\xff"] {
            assert!(matches!(
                Error::from_answer(403, None, body),
                Error::Denied(_)
            ));
            assert!(matches!(
                Error::from_answer(503, None, body),
                Error::Unavailable(_)
            ));
            assert!(matches!(
                Error::from_answer(302, None, body),
                Error::Failed(_)
            ));
        }
    }

    #[test]
    fn temporary_means_worth_another_try() {
        assert!(answer(Code::Sealed).is_temporary());
        assert!(answer(Code::Internal).is_temporary());
        assert!(!answer(Code::Denied).is_temporary());
        assert!(!answer(Code::MethodNotAllowed).is_temporary());
    }
}
