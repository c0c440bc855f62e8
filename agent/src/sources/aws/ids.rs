//! Names and the ids they stand for: a secret `/prod/db` is named `prod/db`, and so is one of just that id.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use keyhatch_protocol::Name;

/// Which names are known to have an id, and whether it begins with a slash.
#[derive(Default)]
pub struct Ids(Mutex<HashMap<Name, bool>>);

/// A name in a list.
pub struct Entry {
    slash: bool,
    /// The version that is current.
    pub version: Option<String>,
}

impl Ids {
    /// The ids to ask for, in turn.
    pub fn candidates(&self, name: &Name) -> Vec<String> {
        match self.map().get(name) {
            Some(slash) => vec![id(name, *slash)],
            None => vec![id(name, false), id(name, true)],
        }
    }

    /// The id it has, or most likely has.
    pub fn likely(&self, name: &Name) -> String {
        id(name, self.map().get(name).copied().unwrap_or(false))
    }

    /// Whether its id is known.
    pub fn knows(&self, name: &Name) -> bool {
        self.map().contains_key(name)
    }

    /// There is a secret with this id.
    pub fn learn(&self, name: &Name, id: &str) {
        self.map().insert(name.clone(), id.starts_with('/'));
    }

    /// There is none any more.
    pub fn forget(&self, name: &Name) {
        self.map().remove(name);
    }

    /// Learns a whole list.
    pub fn learn_all(&self, names: &BTreeMap<String, Entry>) {
        let mut map = self.map();
        for (name, entry) in names {
            if let Ok(name) = Name::parse(name) {
                map.insert(name, entry.slash);
            }
        }
    }

    fn map(&self) -> MutexGuard<'_, HashMap<Name, bool>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Puts an id under its name. Of two with one name, the one without a slash has it.
pub fn sort(names: &mut BTreeMap<String, Entry>, id: &str, version: Option<String>) {
    let name = id.strip_prefix('/').unwrap_or(id);
    let slash = name.len() < id.len();
    if slash && names.get(name).is_some_and(|entry| !entry.slash) {
        return;
    }
    names.insert(name.to_owned(), Entry { slash, version });
}

fn id(name: &Name, slash: bool) -> String {
    let slash = if slash { "/" } else { "" };
    format!("{slash}{}", name.as_str())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::parse(text).unwrap()
    }

    #[test]
    fn an_unknown_name_may_have_two_ids_and_a_known_one_has_one() {
        let ids = Ids::default();
        let db = name("prod/db");
        assert_eq!(ids.candidates(&db), ["prod/db", "/prod/db"]);
        assert_eq!(ids.likely(&db), "prod/db");
        ids.learn(&db, "/prod/db");
        assert!(ids.knows(&db));
        assert_eq!(ids.candidates(&db), ["/prod/db"]);
        assert_eq!(ids.likely(&db), "/prod/db");
        ids.forget(&db);
        assert_eq!(ids.candidates(&db).len(), 2);
    }

    #[test]
    fn of_two_ids_with_one_name_the_one_without_a_slash_has_it_whatever_the_order() {
        for order in [["db", "/db"], ["/db", "db"]] {
            let mut names = BTreeMap::new();
            for id in order {
                sort(&mut names, id, Some(format!("version of {id}")));
            }
            sort(&mut names, "/app/key", None);
            let ids = Ids::default();
            ids.learn_all(&names);
            assert_eq!(names["db"].version.as_deref(), Some("version of db"));
            assert_eq!(ids.candidates(&name("db")), ["db"]);
            assert_eq!(ids.candidates(&name("app/key")), ["/app/key"]);
        }
    }

    #[test]
    fn only_one_slash_is_dropped() {
        let mut names = BTreeMap::new();
        sort(&mut names, "//db", None);
        assert!(names.contains_key("/db"));
        Ids::default().learn_all(&names);
    }
}
