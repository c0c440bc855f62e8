//! Problem documents (RFC 9457) and their stable codes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What went wrong, as a word that programs may rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// The policy does not allow it, or there is no such secret: the same answer for both.
    Denied,
    /// The bot is quarantined until an operator releases it.
    Quarantined,
    /// No such secret; only told to a peer that may read or list the name.
    NotFound,
    /// The request does not parse.
    BadRequest,
    /// No such method on this path.
    MethodNotAllowed,
    /// The request took too long to arrive.
    Timeout,
    /// A rotation is running, or in its grace time.
    InGrace,
    /// The body is too large.
    TooLarge,
    /// The headers are too large.
    HeadersTooLarge,
    /// Too many requests, connections or watches.
    RateLimited,
    /// The source is not reachable and the last good value is too old.
    UpstreamUnavailable,
    /// A route's upstream could not be asked, or did not answer well.
    UpstreamFailed,
    /// A route's upstream was silent for too long.
    UpstreamTimeout,
    /// The agent is sealed.
    Sealed,
    /// No record can be kept.
    AuditUnavailable,
    /// A fault of the agent's own.
    Internal,
}

impl Code {
    const ALL: [(Self, &'static str, u16, &'static str); 16] = [
        (Self::Denied, "denied", 403, "Denied by policy"),
        (
            Self::Quarantined,
            "quarantined",
            403,
            "This bot is quarantined",
        ),
        (Self::NotFound, "not_found", 404, "No such secret"),
        (Self::BadRequest, "bad_request", 400, "Bad request"),
        (
            Self::MethodNotAllowed,
            "method_not_allowed",
            405,
            "Method not allowed",
        ),
        (Self::Timeout, "timeout", 408, "The request took too long"),
        (
            Self::InGrace,
            "in_grace",
            409,
            "A rotation is running or in its grace time",
        ),
        (Self::TooLarge, "too_large", 413, "The body is too large"),
        (
            Self::HeadersTooLarge,
            "too_large",
            431,
            "The headers are too large",
        ),
        (Self::RateLimited, "rate_limited", 429, "Too many requests"),
        (
            Self::UpstreamUnavailable,
            "upstream_unavailable",
            503,
            "The source is unavailable",
        ),
        (
            Self::UpstreamFailed,
            "upstream_failed",
            502,
            "The route's upstream failed",
        ),
        (
            Self::UpstreamTimeout,
            "upstream_timeout",
            504,
            "The route's upstream did not answer in time",
        ),
        (Self::Sealed, "sealed", 503, "The agent is sealed"),
        (
            Self::AuditUnavailable,
            "audit_unavailable",
            503,
            "No audit record can be kept",
        ),
        (Self::Internal, "internal", 500, "A fault in the agent"),
    ];

    fn row(self) -> &'static (Self, &'static str, u16, &'static str) {
        // Every variant stands in the table; the test below walks them all.
        Self::ALL
            .iter()
            .find(|row| row.0 == self)
            .unwrap_or(&Self::ALL[15])
    }

    /// The stable word, such as `denied`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.row().1
    }

    /// The HTTP status that goes with it.
    #[must_use]
    pub fn status(self) -> u16 {
        self.row().2
    }

    /// A short sentence for people.
    #[must_use]
    pub fn title(self) -> &'static str {
        self.row().3
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Code {
    type Err = ();

    fn from_str(word: &str) -> Result<Self, ()> {
        Self::ALL
            .iter()
            .find(|row| row.1 == word)
            .map(|row| row.0)
            .ok_or(())
    }
}

/// A problem document, `application/problem+json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// A URI for the kind of problem: `urn:keyhatch:problem:CODE`.
    pub r#type: String,
    /// A short sentence for people.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// The stable code, see [`Code`].
    pub code: String,
    /// What failed, on what, and what to do. Never a value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Leads to the audit record of this request.
    pub request_id: String,
}

impl Problem {
    /// The document for `code`.
    #[must_use]
    pub fn new(code: Code, detail: Option<String>, request_id: String) -> Self {
        Self {
            r#type: format!("urn:keyhatch:problem:{code}"),
            title: code.title().into(),
            status: code.status(),
            code: code.as_str().into(),
            detail,
            request_id,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_own_row() {
        for (code, word, status, _) in Code::ALL {
            assert_eq!((code.as_str(), code.status()), (word, status));
        }
    }
}
