//! Values that an upstream lends: when a lease is renewed, when a fresh one is fetched before the old ends,
//! and when the old one is ended.

use std::rc::Rc;
use std::time::Duration;

use super::clock::Moment;
use crate::sources::upstream::Lease;

/// What is to be done about a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Todo {
    /// Nothing yet.
    Wait,
    /// Ask for more time.
    Renew,
    /// Fetch a fresh value.
    Fetch,
}

/// One lease of a value that is served.
pub struct Lent {
    pub lease: Rc<Lease>,
    /// The value is not served past it.
    pub ends: Moment,
    /// Nothing is done before.
    next: Moment,
    /// Something is being done.
    pub busy: bool,
    renewable: bool,
}

impl Lent {
    /// A lease that was asked for at `asked`.
    pub fn new(lease: Lease, asked: Moment, dice: f64) -> Self {
        let time = served_for(lease.time);
        Self {
            ends: asked + time,
            next: asked + ahead(time, dice),
            busy: false,
            renewable: lease.renewable,
            lease: Rc::new(lease),
        }
    }

    /// What is to be done now.
    pub fn todo(&self, now: Moment) -> Todo {
        match (self.busy || now < self.next, self.renewable) {
            (true, _) => Todo::Wait,
            (false, true) => Todo::Renew,
            (false, false) => Todo::Fetch,
        }
    }

    /// When to look at it again.
    pub fn wake(&self) -> Option<Moment> {
        (!self.busy).then_some(self.next)
    }

    /// It lasts for `time` from `asked` on. Where that is much less than at first, the upstream's own limit
    /// is near, and a fresh value is fetched at once.
    pub fn renewed(&mut self, time: Duration, asked: Moment, dice: f64) {
        self.ends = asked + served_for(time);
        self.renewable = time > self.lease.time / 3;
        self.next = if self.renewable {
            asked + ahead(served_for(time), dice)
        } else {
            asked
        };
    }

    /// It cannot be renewed any more: a fresh value is fetched at once.
    pub fn expires(&mut self, now: Moment) {
        (self.renewable, self.next) = (false, now);
    }

    /// It is tried again at `next`.
    pub fn postpone(&mut self, next: Moment) {
        self.next = next;
    }

    /// When to end it once a fresh one is served: readers have a third of its time to change over.
    pub fn revoke_at(&self, now: Moment) -> Moment {
        self.ends.min(now + self.lease.time / 3)
    }
}

/// How long a value is served that is lent for `time`: leases are told in whole seconds, and what they guard may
/// end a second early (`VALID UNTIL` of `PostgreSQL` is written without fractions).
fn served_for(time: Duration) -> Duration {
    time.saturating_sub((time / 4).min(Duration::from_secs(1)))
}

/// Two thirds of a lease's time, a tenth sooner or later: the last third is for trying again.
fn ahead(time: Duration, dice: f64) -> Duration {
    time.mul_f64(2.0 / 3.0 * (0.9 + 0.2 * dice))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::sys::arena::Arena;

    fn lent(renewable: bool, now: Moment) -> Lent {
        let id = Arena::new(4096).unwrap().draft(1).unwrap().freeze();
        let time = Duration::from_secs(91);
        Lent::new(
            Lease {
                id,
                time,
                renewable,
            },
            now,
            0.5,
        )
    }

    #[test]
    fn a_lease_is_renewed_ahead_until_its_own_limit_then_replaced() {
        let now = Moment::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        let mut lent = lent(true, now);
        assert_eq!(lent.todo(at(59)), Todo::Wait);
        assert_eq!(lent.todo(at(61)), Todo::Renew);
        lent.renewed(Duration::from_secs(91), at(61), 0.5);
        assert_eq!(lent.ends, at(151));
        assert_eq!(lent.todo(at(100)), Todo::Wait);
        assert_eq!(lent.todo(at(122)), Todo::Renew);
        lent.renewed(Duration::from_secs(20), at(122), 0.5);
        assert_eq!(lent.todo(at(122)), Todo::Fetch);
        assert_eq!(lent.revoke_at(at(123)), at(141));
        lent.busy = true;
        assert_eq!(lent.todo(at(1000)), Todo::Wait);
    }

    #[test]
    fn one_that_cannot_be_renewed_is_replaced_before_it_ends() {
        let now = Moment::now();
        let lent = lent(false, now);
        assert_eq!(lent.todo(now + Duration::from_secs(61)), Todo::Fetch);
        assert!(now + Duration::from_secs(61) < lent.ends);
    }
}
