//! The answer of the policy: a value that only this room can make.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Why a request was allowed or refused: the words of the audit record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// A grant of one of the bot's roles.
    Granted,
    /// The peer matches no bot.
    NoBot,
    /// The peer matches two bots that are equally specific.
    AmbiguousBot,
    /// No role of the bot grants it.
    NoGrant,
    /// A deny of one of the bot's roles.
    DenyRule,
    /// It may be asked for, and does not exist.
    NotFound,
    /// The process that connected has exited.
    PeerGone,
    /// The process no longer is what matched the bot.
    PeerChanged,
    /// The bot is quarantined.
    Quarantined,
    /// The agent is sealed.
    Sealed,
    /// Over a limit of connections, watches or rate.
    Limited,
    /// The source is away and the last good value too old.
    UpstreamUnavailable,
    /// No record can be kept.
    AuditUnavailable,
}

impl Reason {
    const ALL: [(Self, &'static str); 13] = [
        (Self::Granted, "granted"),
        (Self::NoBot, "no_bot"),
        (Self::AmbiguousBot, "ambiguous_bot"),
        (Self::NoGrant, "no_grant"),
        (Self::DenyRule, "deny_rule"),
        (Self::NotFound, "not_found"),
        (Self::PeerGone, "peer_gone"),
        (Self::PeerChanged, "peer_changed"),
        (Self::Quarantined, "quarantined"),
        (Self::Sealed, "sealed"),
        (Self::Limited, "limited"),
        (Self::UpstreamUnavailable, "upstream_unavailable"),
        (Self::AuditUnavailable, "audit_unavailable"),
    ];

    /// The word of the record.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        // The table is in the order of the enum; the test below walks it.
        Self::ALL[self as usize].1
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Reason {
    type Err = ();

    fn from_str(word: &str) -> Result<Self, ()> {
        Self::ALL
            .iter()
            .find(|row| row.1 == word)
            .map(|row| row.0)
            .ok_or(())
    }
}

/// What the rest of the agent may find against a request, whatever the policy says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the words of `Reason`
pub enum Refusal {
    NotFound,
    PeerGone,
    PeerChanged,
    Quarantined,
    Sealed,
    Limited,
    UpstreamUnavailable,
    AuditUnavailable,
}

impl From<Refusal> for Reason {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NotFound => Self::NotFound,
            Refusal::PeerGone => Self::PeerGone,
            Refusal::PeerChanged => Self::PeerChanged,
            Refusal::Quarantined => Self::Quarantined,
            Refusal::Sealed => Self::Sealed,
            Refusal::Limited => Self::Limited,
            Refusal::UpstreamUnavailable => Self::UpstreamUnavailable,
            Refusal::AuditUnavailable => Self::AuditUnavailable,
        }
    }
}

/// Whether a request is allowed, why, and by which line of the configuration.
///
/// Only the policy makes one that allows; everyone else can only turn it into a refusal.
#[must_use]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    reason: Reason,
    rule: Option<Arc<str>>,
}

impl Decision {
    pub(super) fn new(reason: Reason, rule: Option<Arc<str>>) -> Self {
        Self { reason, rule }
    }

    /// A refusal that no rule has anything to do with.
    pub fn refused(refusal: Refusal) -> Self {
        Self::new(refusal.into(), None)
    }

    /// This decision, refused for a reason outside the policy; the rule stays.
    pub fn but(self, refusal: Refusal) -> Self {
        Self::new(refusal.into(), self.rule)
    }

    /// Whether the request may go on.
    #[must_use]
    pub fn allowed(&self) -> bool {
        self.reason == Reason::Granted
    }

    /// Why.
    #[must_use]
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// `file:line` of the grant or deny that decided.
    #[must_use]
    pub fn rule(&self) -> Option<&Arc<str>> {
        self.rule.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_word() {
        for (index, (reason, word)) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
            assert_eq!((reason.as_str(), word.parse()), (word, Ok(reason)));
        }
    }

    #[test]
    fn a_refusal_never_allows() {
        let granted = Decision::new(Reason::Granted, Some("f:1".into()));
        assert!(granted.allowed());
        for refusal in [
            Refusal::NotFound,
            Refusal::PeerGone,
            Refusal::PeerChanged,
            Refusal::Quarantined,
            Refusal::Sealed,
            Refusal::Limited,
            Refusal::UpstreamUnavailable,
            Refusal::AuditUnavailable,
        ] {
            assert!(!Decision::refused(refusal).allowed());
            let refused = granted.clone().but(refusal);
            assert!(!refused.allowed());
            assert_eq!(refused.rule().map(AsRef::as_ref), Some("f:1"));
        }
    }
}
