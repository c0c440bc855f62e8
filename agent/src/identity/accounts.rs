//! User and group names of the policy, looked up when a peer is accepted.
//!
//! A lookup may go to a slow directory service, so it runs off the request loop, and its answer holds for
//! one second.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::unistd::{Group, User};

use crate::policy::{Accounts, Policy};

const HOLDS: Duration = Duration::from_secs(1);

/// The last answer, with the policy it was looked up for.
#[derive(Default)]
pub struct Lookup(Mutex<Option<Answer>>);

struct Answer {
    when: Instant,
    policy: Arc<Policy>,
    accounts: Arc<Accounts>,
}

impl Lookup {
    /// The ids of all names that `policy` selects on.
    pub async fn accounts(&self, policy: &Arc<Policy>) -> Arc<Accounts> {
        if policy.user_names().is_empty() && policy.group_names().is_empty() {
            return Arc::default();
        }
        if let Some(known) = self.known(policy) {
            return known;
        }
        let asked = Arc::clone(policy);
        let accounts = tokio::task::spawn_blocking(move || look_up(&asked)).await;
        let accounts = Arc::new(accounts.unwrap_or_default());
        let kept = Answer {
            when: Instant::now(),
            policy: Arc::clone(policy),
            accounts: Arc::clone(&accounts),
        };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(kept);
        accounts
    }

    fn known(&self, policy: &Arc<Policy>) -> Option<Arc<Accounts>> {
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let last = last.as_ref()?;
        (last.when.elapsed() < HOLDS && Arc::ptr_eq(&last.policy, policy))
            .then(|| Arc::clone(&last.accounts))
    }
}

/// Looks all names up now; a name that does not exist is left out, and matches nobody.
#[must_use]
pub fn look_up(policy: &Policy) -> Accounts {
    let users: BTreeMap<String, u32> = policy
        .user_names()
        .into_iter()
        .filter_map(|name| Some((name.to_owned(), User::from_name(name).ok()??.uid.as_raw())))
        .collect();
    let groups = policy
        .group_names()
        .into_iter()
        .filter_map(|name| Some((name.to_owned(), Group::from_name(name).ok()??.gid.as_raw())))
        .collect();
    Accounts { users, groups }
}
