//! Many different names that one user is denied: pure, on a clock that is passed in.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::time::{Duration, Instant};

/// How many different names within which time are a scan.
const NAMES: usize = 50;
const WITHIN: Duration = Duration::from_secs(60);
/// Users that are followed at once; past them the one that was denied longest ago is forgotten.
const USERS: usize = 1024;

/// What each user was denied last.
#[derive(Default)]
pub(super) struct Scans {
    users: HashMap<u32, Vec<Denied>>,
    /// Its keys are secret, so that nobody finds names that count as one.
    hasher: RandomState,
}

struct Denied {
    name: u64,
    at: Instant,
    seq: Option<u64>,
}

impl Scans {
    /// Counts a denial; the evidence where it makes a scan. Then it begins anew.
    pub(super) fn denied(
        &mut self,
        uid: u32,
        name: &str,
        seq: Option<u64>,
        now: Instant,
    ) -> Option<Vec<u64>> {
        if self.users.len() >= USERS && !self.users.contains_key(&uid) {
            self.forget_one();
        }
        let name = self.hasher.hash_one(name);
        let denied = self.users.entry(uid).or_default();
        denied.retain(|d| d.name != name && now.saturating_duration_since(d.at) < WITHIN);
        denied.push(Denied { name, at: now, seq });
        if denied.len() < NAMES {
            return None;
        }
        let evidence = denied.iter().filter_map(|denied| denied.seq).collect();
        denied.clear();
        Some(evidence)
    }

    fn forget_one(&mut self) {
        let last = |denied: &[Denied]| denied.last().map(|denied| denied.at);
        let oldest = self
            .users
            .iter()
            .min_by_key(|(_, denied)| last(denied))
            .map(|(uid, _)| *uid);
        oldest.map(|uid| self.users.remove(&uid));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fifty_different_names_within_a_minute_and_nothing_less() {
        let start = Instant::now();
        let mut scans = Scans::default();
        let mut denied = |uid, name: u64, after| {
            let now = start + Duration::from_secs(after);
            scans.denied(uid, &format!("n{name}"), Some(name), now)
        };
        for again in 0..200 {
            assert_eq!(denied(1, again % 49, 0), None, "the same names");
        }
        for name in 0..49 {
            assert_eq!(denied(2, name, 0), None, "another user");
        }
        assert_eq!(denied(2, 49, 60), None, "the others are a minute old");
        let evidence = denied(1, 49, 59).map(|evidence| evidence.len());
        assert_eq!(evidence, Some(50));
        assert_eq!(denied(1, 50, 59), None, "told once");
    }

    #[test]
    fn memory_is_bounded_however_many_users_and_names_there_are() {
        let (mut scans, now) = (Scans::default(), Instant::now());
        for uid in 0..3000 {
            scans.denied(uid, "x", None, now);
        }
        for name in 0..3000 {
            scans.denied(7, &name.to_string(), None, now);
        }
        assert!(scans.users.len() <= USERS);
        assert!(scans.users.values().all(|denied| denied.len() < NAMES));
    }
}
