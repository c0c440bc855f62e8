//! Asking an upstream for what is not held, for peers that may have it: others cause no traffic there.

use std::collections::HashMap;

use keyhatch_protocol::{Action, Name};

use super::connection::{Bound, Connection};
use super::reading;
use super::request::{Secret, Which};
use crate::cache::Freshness;
use crate::sources::engine::{Pending, Supply, Wanted};

/// Asks for what a read lacks; `None` where it lacks nothing that an upstream could have.
pub fn ask(connection: &Connection, bound: &Bound, ask: &Secret) -> Option<Pending> {
    let wanted = lacking(connection, &ask.name, &ask.which)?;
    let may_read = connection.may_still(bound, Action::Read, &ask.name);
    may_read
        .then(|| {
            connection
                .context
                .upstreams
                .ask(&ask.name, wanted, connection.peer.uid())
        })
        .flatten()
}

/// Waits for what was asked for; then asks for the version before, where that is the one wanted.
pub async fn wait(connection: &Connection, ask: &Secret, pending: Pending) -> Supply {
    let supply = pending.wait().await;
    if supply != Supply::Served {
        return supply;
    }
    let previous = lacking(connection, &ask.name, &ask.which)
        .filter(|wanted| *wanted == Wanted::Previous)
        .and_then(|wanted| {
            connection
                .context
                .upstreams
                .ask(&ask.name, wanted, connection.peer.uid())
        });
    match previous {
        Some(pending) => pending.wait().await,
        None => supply,
    }
}

/// Asks for all that a batch lacks, at once; what was said of each name that was asked for.
pub async fn all(
    connection: &Connection,
    bound: &Bound,
    names: impl Iterator<Item = Name>,
) -> HashMap<Name, Supply> {
    let lacking = names.filter_map(|name| {
        let pending = ask(connection, bound, &Secret::current(name.clone()))?;
        Some((name, pending))
    });
    let mut supplies = HashMap::new();
    for (name, pending) in lacking.collect::<Vec<_>>() {
        supplies.insert(name, pending.wait().await);
    }
    supplies
}

/// Asks an upstream whether what is held still is current; `None` where no upstream has it.
pub fn again(connection: &Connection, bound: &Bound, name: &Name) -> Option<Pending> {
    let context = &connection.context;
    let may_read = context.upstreams.supplies(name)
        && !context.cache.is_sealed()
        && connection.may_still(bound, Action::Read, name);
    may_read
        .then(|| context.upstreams.ask_again(name))
        .flatten()
}

/// Asks for the secret of a route that is granted and not held.
pub fn to_use(connection: &Connection, name: &Name) -> Option<Pending> {
    let wanted = lacking(connection, name, &Which::Current)?;
    let upstreams = &connection.context.upstreams;
    upstreams.ask(name, wanted, connection.peer.uid())
}

/// Asks for the names of a watch that are not held.
pub fn to_watch(connection: &Connection, bound: &Bound, names: &[Name]) -> Vec<Pending> {
    names
        .iter()
        .filter(|name| lacking(connection, name, &Which::Current).is_some())
        .filter(|name| connection.may_still(bound, Action::Watch, name))
        .filter_map(|name| {
            connection
                .context
                .upstreams
                .ask(name, Wanted::Current, connection.peer.uid())
        })
        .collect()
}

/// What an upstream has to be asked for.
fn lacking(connection: &Connection, name: &Name, which: &Which) -> Option<Wanted> {
    let context = &connection.context;
    if !context.upstreams.supplies(name) || context.cache.is_sealed() {
        return None;
    }
    let snapshot = context.cache.snapshot();
    let entry = snapshot
        .get(name.as_str())
        .filter(|entry| entry.freshness() != Freshness::Withheld);
    let Some(entry) = entry else {
        return Some(Wanted::Current);
    };
    let may_be_previous = *which != Which::Current && entry.previous.is_none();
    (may_be_previous && reading::pick(connection, entry, which).is_none())
        .then_some(Wanted::Previous)
}
