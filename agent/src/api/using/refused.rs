//! Why a call of a route is not answered by its upstream.

use std::time::Duration;

use hyper::header::RETRY_AFTER;
use keyhatch_protocol::Code;

use crate::api::answer::{self, Answer};
use crate::api::id::RequestId;
use crate::routes::Failure;

/// A refusal of the agent's own.
pub struct Refused {
    /// What the bot is told.
    pub code: Code,
    /// More of it.
    pub detail: Option<String>,
    /// When to come back.
    pub retry_after: Option<Duration>,
}

impl Refused {
    /// A refusal that its code says all about.
    pub fn because(code: Code) -> Self {
        Self {
            code,
            detail: None,
            retry_after: None,
        }
    }

    /// The problem document.
    pub fn answer(self, id: &RequestId) -> Answer {
        let mut answer = answer::problem(self.code, id, self.detail.as_deref());
        if let Some(after) = self.retry_after {
            let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
            let headers = answer.headers_mut();
            headers.insert(RETRY_AFTER, seconds.max(1).into());
        }
        answer
    }
}

impl From<&Failure> for Refused {
    fn from(failure: &Failure) -> Self {
        let code = match failure {
            Failure::Timeout(_) => Code::UpstreamTimeout,
            Failure::BodyTooLarge | Failure::TooLargeToSign => Code::TooLarge,
            Failure::NoRoom => Code::RateLimited,
            Failure::BodyCut | Failure::Unsignable(_) => Code::BadRequest,
            Failure::Full(_) => Code::Internal,
            _ => Code::UpstreamFailed,
        };
        Self {
            detail: Some(failure.to_string()),
            retry_after: (code == Code::RateLimited).then_some(Duration::from_secs(1)),
            ..Self::because(code)
        }
    }
}
