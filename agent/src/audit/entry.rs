//! What the rest of the agent says about one event, and the part of it that a connection shares.

use super::event::{Event, Verdict};
use super::render::{number, quoted, quoted_bytes, quoted_or_null};

/// One event to record. Everything but the event may be absent; it is then null in the record.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// What happened.
    pub event: Event,
    /// How it was decided.
    pub decision: Verdict,
    /// One of the contract's words for why.
    pub reason: Option<&'static str>,
    /// The rule that decided, `file:line`.
    pub rule: Option<&'a str>,
    /// The secret's name, as asked.
    pub secret: Option<&'a str>,
    /// The version that was given out.
    pub version: Option<&'a str>,
    /// Who asked; `None` for the agent's own events.
    pub who: Option<&'a Who>,
    /// Which way it was asked: `native`, `aws`, `vault`, `admin`, `agent`...
    pub surface: &'static str,
    /// The id that the answer carries too.
    pub request_id: Option<&'a str>,
    /// More members of the record, as JSON text without braces; see [`extra`](super::extra).
    pub extra: Option<&'a str>,
}

impl Entry<'_> {
    /// An event of the agent's own.
    #[must_use]
    pub const fn of(event: Event) -> Self {
        Self {
            event,
            decision: Verdict::Info,
            reason: None,
            rule: None,
            secret: None,
            version: None,
            who: None,
            surface: "agent",
            request_id: None,
            extra: None,
        }
    }
}

/// The facts about a peer that its records repeat.
#[derive(Clone, Copy, Debug, Default)]
pub struct Facts<'a> {
    /// The bot that it matches.
    pub bot: Option<&'a str>,
    /// The bot's roles.
    pub roles: &'a [&'a str],
    /// Process id, as the agent sees it.
    pub pid: Option<i32>,
    /// User id.
    pub uid: Option<u32>,
    /// Group id.
    pub gid: Option<u32>,
    /// The path of the running image: any bytes.
    pub exe: Option<&'a [u8]>,
    /// The system unit.
    pub unit: Option<&'a str>,
    /// The unit's invocation id.
    pub invocation_id: Option<&'a str>,
}

/// [`Facts`] as the JSON text that goes into each record, rendered once a connection.
#[derive(Debug)]
pub struct Who {
    bot: Option<Box<str>>,
    named: Box<[u8]>,
    peer: Box<[u8]>,
}

impl Who {
    /// Renders them.
    #[must_use]
    pub fn new(facts: &Facts<'_>) -> Self {
        Self {
            bot: facts.bot.map(Box::from),
            named: named(facts).into(),
            peer: peer(facts).into(),
        }
    }

    /// The bot's name: floods are counted by it.
    #[must_use]
    pub fn bot(&self) -> Option<&str> {
        self.bot.as_deref()
    }

    /// `"bot":..,"roles":[..]`
    pub(super) fn named(&self) -> &[u8] {
        &self.named
    }

    /// `"peer":{..}`
    pub(super) fn peer(&self) -> &[u8] {
        &self.peer
    }
}

fn named(facts: &Facts<'_>) -> Vec<u8> {
    let mut out = b"\"bot\":".to_vec();
    quoted_or_null(&mut out, facts.bot);
    out.extend_from_slice(b",\"roles\":[");
    for (at, role) in facts.roles.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        quoted(&mut out, role);
    }
    out.push(b']');
    out
}

fn peer(facts: &Facts<'_>) -> Vec<u8> {
    let mut out = b"\"peer\":{\"pid\":".to_vec();
    number_or_null(&mut out, facts.pid);
    out.extend_from_slice(b",\"uid\":");
    number_or_null(&mut out, facts.uid);
    out.extend_from_slice(b",\"gid\":");
    number_or_null(&mut out, facts.gid);
    out.extend_from_slice(b",\"exe\":");
    match facts.exe {
        Some(exe) => quoted_bytes(&mut out, exe),
        None => out.extend_from_slice(b"null"),
    }
    out.extend_from_slice(b",\"unit\":");
    quoted_or_null(&mut out, facts.unit);
    out.extend_from_slice(b",\"invocation_id\":");
    quoted_or_null(&mut out, facts.invocation_id);
    out.push(b'}');
    out
}

/// A negative number (no pid is one) is as unknown as none.
fn number_or_null<N: TryInto<u64>>(out: &mut Vec<u8>, value: Option<N>) {
    match value.and_then(|value| value.try_into().ok()) {
        Some(value) => number(out, value),
        None => out.extend_from_slice(b"null"),
    }
}
