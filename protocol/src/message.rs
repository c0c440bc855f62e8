//! Requests and replies of the native API that hold no value.
//!
//! A reply with a value is rendered by the agent inside locked memory and read by each client into a type
//! of its own that wipes itself, so it has no struct here. Its shape:
//! `{"name","version","value"|"value_base64","updated_at","source","stale"}`.

use serde::{Deserialize, Serialize};

use crate::Name;

/// `GET /v1/secrets?prefix=P`: what the peer may see.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListReply {
    /// In byte order of the names.
    pub secrets: Vec<Listed>,
    /// Pass it as `after` for the next page; absent on the last one.
    pub next: Option<String>,
}

/// One name that a peer may see.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// The secret's name.
    pub name: Name,
    /// Its current version.
    pub version: String,
}

/// `POST /v1/batch`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchRequest {
    /// At most [`crate::MAX_BATCH`] names.
    pub names: Vec<String>,
}

/// One name of a batch that was not answered with a value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchError {
    /// The name as asked.
    pub name: String,
    /// See [`crate::Code`].
    pub code: String,
}

/// `POST /v1/rotate/NAME`: the rotation has begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RotateReply {
    /// The secret's name.
    pub name: Name,
    /// The version that it will bring; absent where an upstream makes it.
    pub version: Option<String>,
}

/// What happened to a watched secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChangeKind {
    /// How it stands as the watch begins.
    Current,
    /// A new version is served.
    Rotated,
    /// It is gone.
    Removed,
}

impl ChangeKind {
    /// The `event:` field of the stream.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Current => "current",
            Self::Rotated => "rotated",
            Self::Removed => "removed",
        }
    }
}

/// The `data:` field of one event of `GET /v1/watch`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The secret's name.
    pub name: Name,
    /// Its version; null once it is removed.
    pub version: Option<String>,
}

/// `GET /v1/whoami`: who the agent thinks the peer is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Whoami {
    /// Process id, as the agent sees it.
    pub pid: i32,
    /// User id; null where it has no mapping in the agent's user namespace.
    pub uid: Option<u32>,
    /// Group id; null likewise.
    pub gid: Option<u32>,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// The running image's path; null where the agent may not see it.
    pub exe: Option<String>,
    /// The system unit.
    pub unit: Option<String>,
    /// The user manager's unit.
    pub user_unit: Option<String>,
    /// The bot that matches.
    pub bot: Option<String>,
    /// Its roles.
    pub roles: Vec<String>,
    /// What its roles grant, as written in the configuration.
    pub grants: Vec<serde_json::Value>,
    /// The routes that it may use. An older agent does not say.
    #[serde(default)]
    pub routes: Vec<UsableRoute>,
}

/// One route that a peer may use, in [`Whoami`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsableRoute {
    /// Its name.
    pub name: String,
    /// Where its requests go: `https://HOST:PORT`, or `http://HOST:PORT`.
    pub upstream: String,
}

/// `GET /v1/health`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// `ready` or `unavailable`.
    pub status: String,
    /// Why it is not ready; empty where it is.
    pub reasons: Vec<String>,
    /// Promises that this kernel or limit does not let the agent keep.
    pub missing: Vec<String>,
    /// How each source is. An older agent does not say.
    #[serde(default)]
    pub sources: Vec<SourceHealth>,
    /// The agent's own version; empty where it does not say.
    #[serde(default)]
    pub version: String,
}

/// How one source is, in [`Health`]. Why it is so is for operators.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceHealth {
    /// Its name.
    pub name: String,
    /// `up`; `degraded` where last good values serve on; where nothing is loaded yet `starting` or `down`.
    pub state: String,
    /// When values were last loaded well, RFC 3339.
    pub last_success: Option<String>,
    /// Seconds since an upstream stood behind its oldest value.
    pub oldest_age: Option<u64>,
    /// Seconds until an upstream is asked again.
    pub next_try: Option<u64>,
}
