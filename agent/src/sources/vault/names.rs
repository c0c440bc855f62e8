//! Which mount and path a name stands for, and back.

use std::collections::BTreeMap;

use crate::config;

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place<'a> {
    /// A secret of a KV mount, by the mount's number and the path below it.
    Kv(usize, &'a str),
    /// A path that lends its value.
    Leased(&'a str),
}

/// A part of a KV mount that a folder of names stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folder {
    /// The mount's number.
    pub mount: usize,
    /// The folder below the mount: empty, or ending in a slash.
    pub path: String,
}

/// The names of one source.
pub struct Names {
    /// Mounts, without a slash at the end, and what their names begin with.
    mounts: Vec<(String, String)>,
    leased: BTreeMap<String, String>,
}

impl Names {
    /// The names of a configuration; a path that Vault cannot have is handed back.
    pub fn new(config: &config::Vault) -> Result<Self, String> {
        let mounts = config
            .mounts
            .iter()
            .map(|(mount, prefix)| Ok((path(mount)?, prefix.clone())))
            .collect::<Result<_, String>>()?;
        let leased = config
            .leases
            .iter()
            .map(|leased| Ok((leased.name.clone(), path(&leased.path)?)))
            .collect::<Result<_, String>>()?;
        Ok(Self { mounts, leased })
    }

    /// The mount of this number.
    pub fn mount(&self, number: usize) -> &str {
        &self.mounts[number].0
    }

    /// What a name stands for: a leased path of that name, else the mount whose prefix is the longest.
    pub fn place<'a>(&'a self, name: &'a str) -> Option<Place<'a>> {
        if let Some(path) = self.leased.get(name) {
            return Some(Place::Leased(path));
        }
        let (number, prefix) = self.owner(name)?;
        let path = &name[prefix.len()..];
        (!path.is_empty()).then_some(Place::Kv(number, path))
    }

    /// The leased names that begin with `folder`.
    pub fn leased_below<'a>(&'a self, folder: &'a str) -> impl Iterator<Item = &'a str> {
        self.leased
            .keys()
            .map(String::as_str)
            .filter(move |name| name.starts_with(folder))
    }

    /// What to list for the names that begin with `folder`.
    pub fn folders(&self, folder: &str) -> Vec<Folder> {
        let part = |(mount, (_, prefix)): (usize, &(String, String))| {
            let path = match folder.strip_prefix(prefix.as_str()) {
                Some(path) => path.to_owned(),
                None if prefix.starts_with(folder) => String::new(),
                None => return None,
            };
            Some(Folder { mount, path })
        };
        self.mounts.iter().enumerate().filter_map(part).collect()
    }

    /// The name of what is at `path` of a mount, a folder where it ends in a slash; `None` where that name
    /// stands for something else.
    pub fn name(&self, mount: usize, path: &str) -> Option<String> {
        let name = format!("{}{path}", self.mounts[mount].1);
        let ours = self.owner(&name).is_some_and(|(owner, _)| owner == mount);
        (ours && !self.leased.contains_key(&name)).then_some(name)
    }

    fn owner(&self, name: &str) -> Option<(usize, &str)> {
        self.mounts
            .iter()
            .enumerate()
            .map(|(number, (_, prefix))| (number, prefix.as_str()))
            .filter(|(_, prefix)| name.starts_with(prefix))
            .max_by_key(|(_, prefix)| prefix.len())
    }
}

/// A path without slashes around it.
fn path(text: &str) -> Result<String, String> {
    let path = text.trim_matches('/');
    let odd = |segment: &str| matches!(segment, "" | "." | "..");
    if path.split('/').any(odd) || path.chars().any(char::is_control) {
        return Err(text.to_owned());
    }
    Ok(path.to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::sources::vault::tests::config;
    use proptest::prelude::*;

    fn names(mounts: &[(&str, &str)], leases: &[(&str, &str)]) -> Names {
        Names::new(&config(&["http://127.0.0.1:1".into()], mounts, leases)).unwrap()
    }

    #[test]
    fn the_longest_prefix_owns_a_name_and_a_leased_name_is_its_own() {
        let names = names(
            &[
                ("secret", ""),
                ("team/kv2", "other/"),
                ("deep", "other/deep/"),
            ],
            &[("db/ro", "database/creds/ro")],
        );
        let by_name = |name| match names.place(name) {
            Some(Place::Kv(mount, path)) => format!("{} {path}", names.mount(mount)),
            Some(Place::Leased(path)) => format!("leased {path}"),
            None => "none".into(),
        };
        assert_eq!(by_name("app/db"), "secret app/db");
        assert_eq!(by_name("other/x"), "team/kv2 x");
        assert_eq!(by_name("other/deep/x/y"), "deep x/y");
        assert_eq!(by_name("db/ro"), "leased database/creds/ro");
        assert_eq!(by_name("db/rw"), "secret db/rw");
    }

    #[test]
    fn a_folder_of_names_is_listed_where_they_are() {
        let names = names(
            &[("kv2", "other/"), ("secret", "")],
            &[("other/lent", "x/creds/y")],
        );
        let folders = |folder| {
            let list = names.folders(folder).into_iter();
            list.map(|f| format!("{}:{}", names.mount(f.mount), f.path))
                .collect::<Vec<_>>()
        };
        assert_eq!(folders(""), ["kv2:", "secret:"]);
        assert_eq!(folders("app/"), ["secret:app/"]);
        assert_eq!(folders("other/a/"), ["kv2:a/", "secret:other/a/"]);
        assert_eq!(names.name(0, "a/b").as_deref(), Some("other/a/b"));
        assert_eq!(names.name(1, "other/a/b"), None);
        assert_eq!(names.name(0, "lent"), None);
        assert_eq!(
            names.leased_below("other/").collect::<Vec<_>>(),
            ["other/lent"]
        );
        assert_eq!(names.leased_below("app/").count(), 0);
    }

    #[test]
    fn paths_that_leave_their_place_are_refused() {
        for bad in ["", "/", "a/../b", "a//b", ".", "a\nb"] {
            assert!(path(bad).is_err(), "{bad:?}");
        }
        assert_eq!(path("/team/kv/").unwrap(), "team/kv");
    }

    proptest! {
        #[test]
        fn every_listed_name_leads_back_to_its_path(mount in 0_usize..3, path in "[a-c]{1,2}(/[a-c]{1,2}){0,3}") {
            let names = names(&[("x", ""), ("y", "a/"), ("z", "a/b/")], &[]);
            if let Some(name) = names.name(mount, &path) {
                prop_assert_eq!(names.place(&name), Some(Place::Kv(mount, path.as_str())));
            }
        }
    }
}
