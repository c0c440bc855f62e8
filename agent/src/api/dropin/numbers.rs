//! The number of a version, for surfaces that count them: the one in its id where there is one, else a counter
//! for each secret that goes up with every value it has seen, for as long as the agent runs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use keyhatch_protocol::Name;

use crate::cache::Entry;

/// The numbers of a secret's versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbered {
    /// Of the current one.
    pub current: u64,
    /// Of the one before, where it is held under a number of its own.
    pub previous: Option<u64>,
}

/// The counters of secrets whose versions have no number of their own.
#[derive(Default)]
pub struct Numbers(Mutex<HashMap<Name, Counter>>);

/// The versions seen last, and their numbers.
struct Counter {
    current: (Arc<str>, u64),
    previous: Option<(Arc<str>, u64)>,
}

impl Numbers {
    /// The numbers of the versions that are held.
    pub fn of(&self, entry: &Entry) -> Numbered {
        let current = entry.current.id();
        let previous = entry.previous.as_ref().map(|version| version.id());
        let numbers = match own(current) {
            Some(number) => Numbered {
                current: number,
                previous: previous.and_then(|id| own(id)),
            },
            None => self.count(&entry.name, current, previous),
        };
        Numbered {
            // A secret that was deleted and made again may come to the same number.
            previous: numbers.previous.filter(|n| *n != numbers.current),
            ..numbers
        }
    }

    fn count(&self, name: &Name, current: &Arc<str>, previous: Option<&Arc<str>>) -> Numbered {
        let mut counters = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let counter = counters.entry(name.clone()).or_insert_with(|| Counter {
            // The version before, which may be fetched later, is number 1.
            current: (Arc::clone(current), 2),
            previous: None,
        });
        counter.see(current, previous);
        Numbered {
            current: counter.current.1,
            previous: previous.and_then(|id| counter.number(id)),
        }
    }
}

impl Counter {
    fn see(&mut self, current: &Arc<str>, previous: Option<&Arc<str>>) {
        if self.current.0 != *current {
            let known = previous.and_then(|id| Some((Arc::clone(id), self.number(id)?)));
            let last = self.current.1;
            self.previous = known.or_else(|| Some((Arc::clone(previous?), last + 1)));
            let newest = self.previous.as_ref().map_or(last, |(_, n)| last.max(*n));
            self.current = (Arc::clone(current), newest + 1);
        } else if let Some(id) = previous
            && self.number(id).is_none()
        {
            self.previous = Some((Arc::clone(id), self.current.1 - 1));
        }
    }

    fn number(&self, id: &Arc<str>) -> Option<u64> {
        let mut known = [Some(&self.current), self.previous.as_ref()]
            .into_iter()
            .flatten();
        known.find(|(seen, _)| seen == id).map(|(_, n)| *n)
    }
}

/// The number in an id of the form `N-HEX`, as our store and Vault's KV version 2 have it.
fn own(id: &str) -> Option<u64> {
    let (number, rest) = id.split_once('-')?;
    let digits = !number.is_empty()
        && number.len() <= 15
        && !number.starts_with('0')
        && number.bytes().all(|b| b.is_ascii_digit());
    let hex = matches!(rest.len(), 8 | 16) && rest.bytes().all(|b| b.is_ascii_hexdigit());
    (digits && hex).then(|| number.parse().ok()).flatten()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::cache::{About, Version};
    use crate::sys::arena::Arena;

    fn entry(current: &str, previous: Option<&str>) -> Entry {
        let arena = Arena::new(4096).unwrap();
        let version = |id: &str| {
            let about = About {
                name: "a",
                version: id,
                updated_at: "2026-01-01T00:00:00Z",
                source: "s",
                stale: false,
            };
            let value = arena.draft(1).unwrap().freeze();
            Arc::new(Version::load(&arena, &about, value).unwrap())
        };
        Entry::new(
            Name::parse("a").unwrap(),
            "s".into(),
            version(current),
            previous.map(version),
        )
    }

    #[test]
    fn ids_with_a_number_have_that_number() {
        assert_eq!(own("3-0123456789abcdef"), Some(3));
        assert_eq!(own("12-deadbeef"), Some(12));
        for other in [
            "3",
            "3-",
            "0-deadbeef",
            "03-deadbeef",
            "x-deadbeef",
            "12345678-1234-1234-1234-123456789012",
            "1234567890123456-deadbeef",
            "3-deadbeeg",
            "deadbeef",
        ] {
            assert_eq!(own(other), None, "{other}");
        }
        let of = |current, previous| Numbers::default().of(&entry(current, previous));
        let numbers = of("7-deadbeef", Some("6-deadbeef"));
        assert_eq!((numbers.current, numbers.previous), (7, Some(6)));
        let again = of("1-deadbeef", Some("1-beefdead"));
        assert_eq!((again.current, again.previous), (1, None));
    }

    #[test]
    fn others_are_counted_and_no_two_values_share_a_number() {
        let numbers = Numbers::default();
        let see = |current: &str, previous: Option<&str>| {
            let numbered = numbers.of(&entry(current, previous));
            (numbered.current, numbered.previous)
        };
        assert_eq!(see("a", None), (2, None));
        assert_eq!(see("a", Some("z")), (2, Some(1)), "fetched later");
        assert_eq!(see("b", Some("a")), (3, Some(2)));
        assert_eq!(see("b", Some("a")), (3, Some(2)));
        assert_eq!(see("d", Some("c")), (5, Some(4)), "`c` was not seen");
        assert_eq!(see("e", None), (6, None));
        assert_eq!(see("d", Some("e")), (7, Some(6)), "put back");
    }
}
