//! Why a route has no answer of its upstream.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::address::Kind;
use super::whole::{LARGEST, SHARE};
use crate::sys::arena::Full;

/// Why there is no answer. Never holds what the upstream sent.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The name is not known.
    #[error("the upstream's name cannot be resolved: {0}")]
    Resolve(io::Error),
    /// It leads where no route goes.
    #[error("the upstream is at a {} address, which this route may not connect to", .1.as_str())]
    Address(IpAddr, Kind),
    /// Nobody listens.
    #[error("the upstream cannot be connected to: {0}")]
    Connect(io::Error),
    /// The proxy does not lead there; its status, where it said one.
    #[error("the proxy does not connect to the upstream: {}", status_words(*.0))]
    Proxy(Option<u16>),
    /// None of the keys that the route wants.
    #[error("the upstream's public key is {0}, which is none of this route's pins")]
    Pin(String),
    /// No TLS.
    #[error("TLS with the upstream: {0}")]
    Tls(String),
    /// Not HTTP, or the connection ended before the answer began.
    #[error("the upstream ended the connection before it answered, or what came is not HTTP")]
    NoAnswer,
    /// Another protocol than the bot asked for, or in a form that cannot be searched for the secret.
    #[error(
        "the upstream switched to a protocol that was not asked for, or to compressed WebSocket frames"
    )]
    Switched,
    /// Silent for too long.
    #[error("the upstream was silent for {:.0} s", .0.as_secs_f32())]
    Timeout(Duration),
    /// A body that cannot be searched for the secret.
    #[error(
        "the upstream's answer is compressed although that was not asked for, and cannot be searched for the secret"
    )]
    Encoded,
    /// The answer is over its limit.
    #[error("the answer is larger than this route's limit")]
    AnswerTooLarge,
    /// The caller's body is over its limit.
    #[error("the body is larger than this route's limit")]
    BodyTooLarge,
    /// The caller's body must be read first, and is too large for that.
    #[error(
        "the body is signed, and so it is read whole first: it may have {} MiB, unless its client sends its SHA-256 in X-Amz-Content-Sha256 to a route with sigv4",
        LARGEST >> 20
    )]
    TooLargeToSign,
    /// The caller has as many such bodies under way as it may have.
    #[error(
        "bodies that are signed or looked at are read whole first, and {} MiB of this bot's are under way",
        SHARE >> 20
    )]
    NoRoom,
    /// What the caller sends cannot be signed.
    #[error("the request cannot be signed: {0}")]
    Unsignable(&'static str),
    /// The caller's body did not come whole.
    #[error("the body did not arrive whole")]
    BodyCut,
    /// The secret is not what the route needs.
    #[error("{0}")]
    Credential(&'static str),
    /// The secret is no JSON object with all that the route needs.
    #[error("the secret has no field {0:?}, which this route is configured to use")]
    NoField(&'static str),
    /// The client certificate or its key is none.
    #[error("the secret's certificate and private_key: {0}")]
    Identity(String),
    /// The token endpoint gave none.
    #[error("the token endpoint: {0}")]
    TokenEndpoint(String),
    /// There is no access token.
    #[error("there is no access token: {0}")]
    Token(Arc<str>),
    /// No room for the credential.
    #[error("{0}")]
    Full(#[from] Full),
}

fn status_words(status: Option<u16>) -> String {
    match status {
        Some(407) => "it wants a user and a password (407), which routes have none of".into(),
        Some(status) => format!("it answers {status}"),
        None => "it does not answer as one".into(),
    }
}
