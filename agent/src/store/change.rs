//! The sealed list of the last changes, from which the daemon records what an offline verb did.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

/// How many changes a store remembers; older ones fall off.
pub const MAX_CHANGES: usize = 64;

/// How many names one change lists; an import may touch more.
const MAX_NAMES: usize = 64;

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verb {
    /// The store was made.
    Init,
    /// A value was put.
    Put,
    /// A value was made at random.
    Generate,
    /// Many values were put at once.
    Import,
    /// Secrets were removed.
    Rm,
    /// A new data key.
    Rekey,
    /// A key slot was added.
    KeyAdd,
    /// A key slot was removed.
    KeyRm,
    /// The generation was raised, so that a restored copy is accepted.
    AcceptOlder,
    /// A rotation made a value, which is not served yet.
    RotateCreate,
    /// A rotation ended: its value is the current one.
    Rotate,
    /// A rotation was given up, and its value with it.
    RotateAbandon,
    /// The grace time of a rotation ended, and the previous version with it.
    GraceEnd,
}

/// Who writes: facts of the kernel about the process that runs the verb.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Actor {
    /// The real uid.
    pub uid: u32,
    /// The login uid (`/proc/self/loginuid`), where one is set.
    pub login_uid: Option<u32>,
}

/// One change of a store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The generation of the store that it made.
    pub generation: u64,
    /// What was done.
    pub verb: Verb,
    /// The secrets it was done to, or the labels of key slots; the first 64 in order.
    pub names: Vec<String>,
    /// How many more names there were.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more: u64,
    /// Who did it.
    pub uid: u32,
    /// Who had logged in, where that is known.
    pub login_uid: Option<u32>,
    /// When, RFC 3339 in UTC.
    pub time: String,
}

/// What an edit has done so far; it becomes changes when the store is sealed.
#[derive(Default)]
pub(super) struct Pending(Vec<(Verb, Vec<String>, u64)>);

impl Pending {
    /// Notes `verb`, on `name` where it is about one; the same verb again adds to its names.
    pub(super) fn note(&mut self, verb: Verb, name: Option<&str>) {
        if self.0.last().is_none_or(|last| last.0 != verb) {
            self.0.push((verb, Vec::new(), 0));
        }
        if let (Some((_, names, more)), Some(name)) = (self.0.last_mut(), name) {
            if names.len() < MAX_NAMES {
                names.push(name.to_owned());
            } else {
                *more += 1;
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds what is pending to `changes`, of which the last [`MAX_CHANGES`] stay.
    pub(super) fn append_to(self, changes: &mut Vec<Change>, generation: u64, by: Actor) {
        let time = now();
        changes.extend(self.0.into_iter().map(|(verb, names, more)| Change {
            generation,
            verb,
            names,
            more,
            uid: by.uid,
            login_uid: by.login_uid,
            time: time.clone(),
        }));
        changes.drain(..changes.len().saturating_sub(MAX_CHANGES));
    }
}

/// The time as RFC 3339 in UTC, to the millisecond.
pub(super) fn now() -> String {
    // humantime panics on a clock set before 1970.
    let now = SystemTime::now().max(SystemTime::UNIX_EPOCH);
    humantime::format_rfc3339_millis(now).to_string()
}

#[allow(clippy::trivially_copy_pass_by_ref)] // the signature that serde asks for
fn is_zero(count: &u64) -> bool {
    *count == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_bounded_in_changes_and_in_names() {
        let by = Actor {
            uid: 7,
            login_uid: None,
        };
        let mut changes = Vec::new();
        for generation in 1..=70 {
            let mut pending = Pending::default();
            for n in 0..100 {
                pending.note(Verb::Import, Some(&format!("n{n}")));
            }
            pending.append_to(&mut changes, generation, by);
        }
        assert_eq!(changes.len(), MAX_CHANGES);
        assert_eq!((changes[0].generation, changes[63].generation), (7, 70));
        assert_eq!((changes[0].names.len(), changes[0].more), (MAX_NAMES, 36));
    }
}
