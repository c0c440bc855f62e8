//! A record as it is read back: whole, or only what readers of millions look at, borrowed from its line.

use std::borrow::Cow;
use std::ops::Deref;
use std::time::SystemTime;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::chain::Head;

/// One record, and the line that it was read from.
#[derive(Clone, Debug, Deserialize)]
pub struct Record {
    /// Sequence number, from 1.
    pub seq: u64,
    /// RFC 3339, UTC, microseconds.
    pub time: String,
    /// Seconds of the monotonic clock.
    pub mono: f64,
    /// What happened, such as `secret.read`.
    pub event: String,
    /// `allow`, `deny` or `info`.
    pub decision: String,
    /// Why.
    pub reason: Option<String>,
    /// The rule that decided.
    pub rule: Option<String>,
    /// The secret.
    pub secret: Option<String>,
    /// Its version.
    pub version: Option<String>,
    /// The bot.
    pub bot: Option<String>,
    /// Its roles.
    pub roles: Vec<String>,
    /// Which way it was asked.
    pub surface: String,
    /// Who asked.
    pub peer: Option<Peer>,
    /// The id that the answer carries too.
    pub request_id: Option<String>,
    /// The hash of the record before.
    pub prev: String,
    /// Its own.
    pub hash: String,
    /// The whole line, without its newline.
    #[serde(skip)]
    pub line: String,
}

/// Who asked.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize)]
pub struct Peer {
    /// Process id.
    pub pid: Option<u64>,
    /// User id.
    pub uid: Option<u64>,
    /// Group id.
    pub gid: Option<u64>,
    /// The image's path, as text; [`unescape`](super::unescape) gives its bytes.
    pub exe: Option<String>,
    /// The system unit.
    pub unit: Option<String>,
    /// Its invocation.
    pub invocation_id: Option<String>,
}

/// What readers look at in each of millions of records; nothing is copied that JSON did not escape.
#[derive(Debug, Deserialize)]
pub struct Brief<'a> {
    /// As [`Record::seq`].
    pub seq: u64,
    /// As [`Record::time`]; its text is in the order of time.
    pub time: &'a str,
    /// As [`Record::event`].
    #[serde(borrow)]
    pub event: Text<'a>,
    /// As [`Record::decision`].
    #[serde(borrow)]
    pub decision: Text<'a>,
    /// As [`Record::reason`].
    #[serde(borrow)]
    pub reason: Option<Text<'a>>,
    /// As [`Record::secret`].
    #[serde(borrow)]
    pub secret: Option<Text<'a>>,
    /// As [`Record::bot`].
    #[serde(borrow)]
    pub bot: Option<Text<'a>>,
    /// As [`Record::peer`].
    #[serde(borrow)]
    pub peer: Option<BriefPeer<'a>>,
    /// The route that was used, where one was.
    #[serde(borrow, default)]
    pub route: Option<Text<'a>>,
}

/// Who asked.
#[derive(Debug, Deserialize)]
pub struct BriefPeer<'a> {
    /// As [`Peer::pid`].
    pub pid: Option<u64>,
    /// As [`Peer::uid`].
    pub uid: Option<u64>,
    /// As [`Peer::exe`].
    #[serde(borrow)]
    pub exe: Option<Text<'a>>,
    /// As [`Peer::unit`].
    #[serde(borrow)]
    pub unit: Option<Text<'a>>,
}

/// Text of a line, as it stands there where nothing in it is escaped.
#[derive(Debug, Deserialize)]
pub struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl<'a> Brief<'a> {
    /// Reads one line; `None` where it is not a record.
    #[must_use]
    pub fn parse(line: &'a [u8]) -> Option<Self> {
        serde_json::from_slice(line).ok()
    }

    /// The peer's unit.
    #[must_use]
    pub fn unit(&self) -> Option<&str> {
        self.peer.as_ref()?.unit.as_deref()
    }
}

/// The keys of every record; what else a record has was added by its event.
const KEYS: [&str; 16] = [
    "seq",
    "time",
    "mono",
    "event",
    "decision",
    "reason",
    "rule",
    "secret",
    "version",
    "bot",
    "roles",
    "surface",
    "peer",
    "request_id",
    "prev",
    "hash",
];

impl Record {
    /// Reads one line; `None` where it is not a record.
    #[must_use]
    pub fn parse(line: &[u8]) -> Option<Self> {
        let line = std::str::from_utf8(line).ok()?;
        let mut record: Self = serde_json::from_str(line).ok()?;
        line.clone_into(&mut record.line);
        Some(record)
    }

    /// What its event adds to the keys of every record.
    #[must_use]
    pub fn extra(&self) -> Map<String, Value> {
        if self.is_plain() {
            return Map::new();
        }
        let mut all: Map<String, Value> = serde_json::from_str(&self.line).unwrap_or_default();
        all.retain(|key, _| !KEYS.contains(&key.as_str()));
        all
    }

    /// Whether nothing stands between the request id and the hash before: most records are so.
    fn is_plain(&self) -> bool {
        let id = match &self.request_id {
            Some(id) => format!("\"{id}\""),
            None => "null".to_owned(),
        };
        self.line.contains(&format!(
            ",\"request_id\":{id},\"prev\":\"{}\",\"hash\"",
            self.prev
        ))
    }

    /// Where the chain stood before it, by its own account.
    #[must_use]
    pub fn before(&self) -> Option<Head> {
        Some(Head {
            seq: self.seq.checked_sub(1)?,
            hash: self.prev.parse().ok()?,
        })
    }

    /// When, on the wall clock.
    #[must_use]
    pub fn when(&self) -> Option<SystemTime> {
        humantime::parse_rfc3339(&self.time).ok()
    }
}

/// When a line says that it was written, without parsing the rest of it.
pub(super) fn time_of(line: &[u8]) -> Option<SystemTime> {
    humantime::parse_rfc3339(time_text(line)?).ok()
}

/// The same as the record has it: such texts are in the order of time.
#[must_use]
pub fn time_text(line: &[u8]) -> Option<&str> {
    const KEY: &[u8] = b",\"time\":\"";
    // It is the second key: `{"seq":` and at most 20 digits come before.
    let head = line.get(..64.min(line.len()))?;
    let at = head.windows(KEY.len()).position(|window| window == KEY)? + KEY.len();
    let text = line.get(at..)?.split(|byte| *byte == b'"').next()?;
    std::str::from_utf8(text).ok()
}
