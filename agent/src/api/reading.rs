//! The one way from what is asked of a secret to the right to lease its value, whichever surface asks.

use std::sync::Arc;

use keyhatch_protocol::{Action, Code};

use super::connection::{Bound, Connection, Wish};
use super::id::RequestId;
use super::request::{Secret, Which};
use super::surface::Surface;
use crate::audit::Event;
use crate::cache::{Entry, Freshness, Permit, Version};
use crate::sources::engine::Supply;

/// What is asked of one secret.
pub struct Reading<'a> {
    /// The way it is asked.
    pub surface: Surface,
    /// The event to record.
    pub event: Event,
    /// The action that needs a grant.
    pub action: Action,
    /// Which secret and version.
    pub ask: &'a Secret,
    /// What the upstream said, where it was asked.
    pub supply: Option<Supply>,
    /// The version that the peer has.
    pub known: Option<&'a str>,
    /// More members of the record.
    pub extra: Option<&'a str>,
}

impl<'a> Reading<'a> {
    /// A plain read.
    pub fn of(surface: Surface, ask: &'a Secret, supply: Option<Supply>) -> Self {
        Self {
            surface,
            event: Event::SecretRead,
            action: Action::Read,
            ask,
            supply,
            known: None,
            extra: None,
        }
    }
}

/// A secret that was granted: the record of it is kept.
pub struct Granted {
    /// The secret.
    pub entry: Arc<Entry>,
    /// The version that was asked for.
    pub version: Arc<Version>,
    /// The right to lease it.
    pub permit: Permit,
    /// The peer has this version already.
    pub same: bool,
}

/// Decides and records.
///
/// # Errors
/// The code to answer with.
pub fn read(
    connection: &Connection,
    bound: &Bound,
    id: &RequestId,
    reading: &Reading<'_>,
) -> Result<Granted, Code> {
    let ask = reading.ask;
    let snapshot = connection.context.cache.snapshot();
    let held = snapshot.get(ask.name.as_str());
    let entry = held.filter(|entry| entry.freshness() != Freshness::Withheld);
    // What is held but too old is as good as not answered for.
    let supply = reading
        .supply
        .or_else(|| (held.is_some() && entry.is_none()).then_some(Supply::Unavailable));
    let picked = entry.and_then(|entry| pick(connection, entry, &ask.which));
    let version = picked.filter(|version| {
        let field = ask.field.as_deref();
        field.is_none_or(|field| version.has_field(field))
    });
    let outdated = entry.filter(|entry| {
        picked.map_or_else(
            || ask.which.is_fixed(),
            |version| !Arc::ptr_eq(version, &entry.current),
        )
    });
    let same = version.is_some_and(|version| Some(&**version.id()) == reading.known);
    let wish = Wish {
        surface: reading.surface,
        event: reading.event,
        action: reading.action,
        name: &ask.name,
        version: version.map(|version| version.id()),
        supply,
        outdated: outdated.map(|entry| entry.current.set_at()),
        extra: reading
            .extra
            .or_else(|| same.then_some("\"not_modified\":true")),
    };
    let permit = connection.judge(bound, id, &wish)?;
    let (Some(entry), Some(version)) = (entry, version) else {
        return Err(Code::NotFound);
    };
    Ok(Granted {
        entry: Arc::clone(entry),
        version: Arc::clone(version),
        permit,
        same,
    })
}

/// The version that is asked for, where it is held.
pub fn pick<'a>(
    connection: &Connection,
    entry: &'a Entry,
    which: &Which,
) -> Option<&'a Arc<Version>> {
    let versions = || [Some(&entry.current), entry.previous.as_ref()];
    let held = |is: &dyn Fn(&Version) -> bool| {
        let mut versions = versions().into_iter().flatten();
        versions.find(|version| is(version))
    };
    match which {
        Which::Current => Some(&entry.current),
        Which::Previous => entry.previous.as_ref(),
        Which::Id(id) => held(&|version| **version.id() == **id),
        Which::Aws(wanted) => held(&|version| wanted.is(entry, version)),
        Which::Number(number) => {
            let numbers = connection.context.numbers.of(entry);
            if *number == numbers.current {
                Some(&entry.current)
            } else {
                entry
                    .previous
                    .as_ref()
                    .filter(|_| numbers.previous == Some(*number))
            }
        }
    }
}
