//! The leases of one source: those of values that are served, and those that are ended soon.

use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use keyhatch_protocol::Name;

use super::clock::Moment;
use super::lend::{Lent, Todo};
use super::pace::dice;
use crate::sources::upstream::Lease;

/// What leases ask for now.
#[derive(Default)]
pub struct Due {
    /// More time for these.
    pub renew: Vec<(Name, Rc<Lease>)>,
    /// A fresh value for these.
    pub fetch: Vec<Name>,
    /// These are to end.
    pub revoke: Vec<Rc<Lease>>,
}

/// The leases of one source.
#[derive(Default)]
pub struct Leases {
    lent: HashMap<Name, Lent>,
    /// Leases of values that were replaced, and when they are ended.
    old: Vec<(Moment, Rc<Lease>)>,
}

impl Leases {
    /// Whether a served value is lent.
    pub fn has(&self, name: &Name) -> bool {
        self.lent.contains_key(name)
    }

    /// Whether a value's lease ended after `since`.
    pub fn ended(&self, since: Moment, now: Moment) -> bool {
        let passed = |ends: Moment| ends > since && ends <= now;
        self.lent.values().any(|lent| passed(lent.ends))
    }

    /// When something is due, or ends.
    pub fn wakes(&self, now: Moment) -> impl Iterator<Item = Moment> {
        let ends = self.lent.values().map(|lent| lent.ends);
        let leases = self.lent.values().filter_map(Lent::wake);
        let old = self.old.iter().map(|(at, _)| *at);
        leases
            .chain(ends.filter(move |ends| *ends > now))
            .chain(old)
    }

    /// What is due; the caller does it, and says when it is done.
    pub fn take_due(&mut self, now: Moment) -> Due {
        let mut due = Due::default();
        for (name, lent) in &mut self.lent {
            match lent.todo(now) {
                Todo::Wait => continue,
                Todo::Fetch => due.fetch.push(name.clone()),
                Todo::Renew => due.renew.push((name.clone(), Rc::clone(&lent.lease))),
            }
            lent.busy = true;
        }
        let old = self.old.extract_if(.., |(at, _)| *at <= now);
        due.revoke = old.map(|(_, lease)| lease).collect();
        due
    }

    /// A value is served by a new lease; the one before ends a little later.
    pub fn put(&mut self, name: Name, lent: Lent, now: Moment) {
        if let Some(old) = self.lent.insert(name, lent) {
            self.old.push((old.revoke_at(now), old.lease));
        }
    }

    /// The value is gone, and the lease with it.
    pub fn remove(&mut self, name: &Name) {
        self.lent.remove(name);
    }

    /// What was due has been tried.
    pub fn is_done(&mut self, name: &Name) {
        if let Some(lent) = self.lent.get_mut(name) {
            lent.busy = false;
        }
    }

    /// A lease that could not be tended is tried again at `next`.
    pub fn postpone(&mut self, name: &Name, next: Moment) {
        if let Some(lent) = self.lent.get_mut(name) {
            lent.postpone(next);
        }
    }

    /// The upstream gave `time` from `asked` on, or no more; with the new end, where there is one.
    pub fn renewed(
        &mut self,
        name: &Name,
        asked: Moment,
        time: Option<Duration>,
    ) -> Option<Moment> {
        let lent = self.lent.get_mut(name)?;
        let Some(time) = time else {
            lent.expires(Moment::now());
            return None;
        };
        lent.renewed(time, asked, dice());
        Some(lent.ends)
    }

    /// None is known any more.
    pub fn forget(&mut self) {
        self.lent.clear();
        self.old.clear();
    }
}
