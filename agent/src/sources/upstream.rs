//! What an upstream can be asked. When, how often, and what follows from an answer is the engine's
//! business, and the same for all.

use std::fmt::Write;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use hkdf::Hkdf;
use keyhatch_protocol::Name;
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::sys::arena::Block;

/// Why a question has no answer that counts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// No answer at all: transport, TLS, a time-out, 5xx, 429, a login that failed. The upstream counts as
    /// down, and the last good values serve on.
    #[error("{why}")]
    Outage {
        /// For operators: what failed, on what. Never holds a value, a token or what the upstream sent.
        why: String,
        /// When the upstream wants to be asked again, if it said so.
        retry_after: Option<Duration>,
    },
    /// An answer about this one secret that cannot be used: not JSON, a wrong type, too large. Others are
    /// not affected; its last good value serves on.
    #[error("{why}")]
    Unusable {
        /// For operators, as above.
        why: String,
    },
}

impl Trouble {
    /// The upstream does not answer.
    pub fn outage(why: impl Into<String>) -> Self {
        Self::Outage {
            why: why.into(),
            retry_after: None,
        }
    }

    /// The answer about one secret cannot be used.
    pub fn unusable(why: impl Into<String>) -> Self {
        Self::Unusable { why: why.into() }
    }
}

/// A name that an upstream has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The upstream's own name; the source's prefix is not part of it.
    pub name: String,
    /// Its current version, where listing tells it.
    pub version: Option<String>,
}

/// How a secret stands upstream, without its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It has this version.
    Version(String),
    /// Only its value could tell.
    Unknown,
    /// A definite no: it is not there, is deleted, or this agent may not read it.
    Absent,
}

/// A value, in secret memory already.
pub struct Fetched {
    /// Opaque, unique for each value of the secret, ASCII without quotes or spaces. Where the upstream counts
    /// versions it begins with the number and a dash (`7-5f2c01aa`).
    pub version: String,
    /// When it was set, RFC 3339 in UTC.
    pub updated_at: String,
    /// The exact bytes.
    pub value: Block,
    /// For how long it is lent, where it is.
    pub lease: Option<Lease>,
}

/// The answer to a question for a value.
pub enum Answer {
    /// It is there.
    Found(Fetched),
    /// A definite no, which ends serving at once. Why, for operators.
    Absent(String),
}

/// The time for which an upstream lends a value.
pub struct Lease {
    /// What it is renewed and revoked by. Whoever has it can end the lease, so it is kept in secret memory.
    pub id: Block,
    /// How long it lasts from now.
    pub time: Duration,
    /// Whether it can be renewed.
    pub renewable: bool,
}

/// How a secret is given a new value upstream.
#[derive(Clone, Debug)]
pub struct Turn {
    /// The version that is to be replaced: where another one is current by now, there is nothing to do.
    pub base: String,
    /// What makes two requests the same one.
    pub token: String,
    /// The field that gets a random value, where the upstream makes none itself; the only one where none is named.
    pub field: Option<String>,
    /// What that value is made of.
    pub characters: Vec<u8>,
    /// How many of them.
    pub length: usize,
    /// Where the upstream rotates by itself, if the configuration says where.
    pub path: Option<String>,
}

/// What makes versions for values that have none upstream: the same after a restart, other for another value,
/// and of no use to guess the value by.
#[derive(Clone)]
pub struct VersionKey(Arc<Zeroizing<[u8; 32]>>);

impl VersionKey {
    /// The caller wipes its own copy.
    #[must_use]
    pub fn new(bytes: &[u8; 32]) -> Self {
        let mut key = Arc::new(Zeroizing::new([0; 32]));
        if let Some(key) = Arc::get_mut(&mut key) {
            key.copy_from_slice(bytes);
        }
        Self(key)
    }

    /// The version of `name` while it has this value: 16 hexadecimal digits.
    #[must_use]
    pub fn of(&self, name: &str, value: &[u8]) -> String {
        let mut out = [0; 8];
        // Only more than 8,160 bytes are refused.
        let _ = Hkdf::<Sha256>::new(Some(&self.0[..]), value).expand(name.as_bytes(), &mut out);
        out.iter()
            .fold(String::with_capacity(16), |mut text, byte| {
                let _ = write!(text, "{byte:02x}");
                text
            })
    }
}

/// A kind of upstream. All names are the upstream's own: the source's prefix is the engine's business.
///
/// Each call logs in as needed, renews what it logged in with, ends within the source's `timeout` (a list:
/// each of its requests does), and bounds what it reads. The engine runs several calls at once, on one thread.
pub trait Upstream: 'static {
    /// How many names one call may ask for.
    fn batch(&self) -> usize;

    /// Every secret whose name begins with `folder`: empty, or ending in a slash.
    fn list(&self, folder: &str) -> impl Future<Output = Result<Vec<Listed>, Trouble>>;

    /// Logs in and asks for nothing: whether the upstream answers, where there is no secret to ask it for.
    fn reach(&self) -> impl Future<Output = Result<(), Trouble>>;

    /// Whether this agent may still read each of these, in their order: a list may go on telling a secret's
    /// version to one that may no longer read it. `true` where the upstream cannot tell.
    fn readable(&self, names: &[Name]) -> impl Future<Output = Result<Vec<bool>, Trouble>>;

    /// How these stand, at most [`Upstream::batch`]; one answer for each, in their order.
    fn standings(&self, names: &[Name]) -> impl Future<Output = Vec<Result<Standing, Trouble>>>;

    /// The current values of these, at most [`Upstream::batch`]; one answer for each, in their order.
    fn fetch(&self, names: &[Name]) -> impl Future<Output = Vec<Result<Answer, Trouble>>>;

    /// The value before the current one.
    fn previous(&self, name: &Name) -> impl Future<Output = Result<Answer, Trouble>>;

    /// Extends a lease; the time it lasts from now, or `None` where it cannot be extended any more.
    fn renew(&self, lease: &Lease) -> impl Future<Output = Result<Option<Duration>, Trouble>>;

    /// Ends a lease.
    fn revoke(&self, lease: &Lease) -> impl Future<Output = Result<(), Trouble>>;

    /// Has a secret given a new value. The answer may come before the new version is current; asking again for the
    /// same turn does no harm.
    fn rotate(&self, name: &Name, turn: &Turn) -> impl Future<Output = Result<(), Trouble>>;

    /// Forgets tokens and connections: the agent is sealed. The next call logs in anew.
    fn forget(&self);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_tells_name_value_and_key_apart_and_is_the_same_again() {
        let key = VersionKey::new(&[7; 32]);
        let version = key.of("app/db", b"CANARY-1");
        assert_eq!(version.len(), 16);
        assert_eq!(version, VersionKey::new(&[7; 32]).of("app/db", b"CANARY-1"));
        for other in [
            key.of("app/db", b"CANARY-2"),
            key.of("app/dc", b"CANARY-1"),
            VersionKey::new(&[8; 32]).of("app/db", b"CANARY-1"),
        ] {
            assert_ne!(version, other);
        }
    }
}
