//! Which source owns a name, and under which name a secret of a source is served.

use std::sync::Arc;

use keyhatch_protocol::Name;

/// The prefixes of all sources, each with the source's name.
#[derive(Clone, Debug, Default)]
pub struct Owners(Arc<[(String, Arc<str>)]>);

impl Owners {
    /// From `(prefix, source)` pairs.
    #[must_use]
    pub fn new(prefixes: impl IntoIterator<Item = (String, Arc<str>)>) -> Self {
        Self(prefixes.into_iter().collect())
    }

    /// The source that owns `name`: the one with the longest prefix that it begins with.
    #[must_use]
    pub fn of(&self, name: &str) -> Option<&Arc<str>> {
        self.longest(name).map(|(_, source)| source)
    }

    fn longest(&self, name: &str) -> Option<&(String, Arc<str>)> {
        self.0
            .iter()
            .filter(|(prefix, _)| name.starts_with(prefix))
            .max_by_key(|(prefix, _)| prefix.len())
    }
}

/// The names that one source may serve.
#[derive(Clone, Debug)]
pub struct Names {
    prefix: String,
    owners: Owners,
}

impl Names {
    /// Those that begin with `prefix` and with no longer one of `owners`.
    #[must_use]
    pub fn new(prefix: &str, owners: Owners) -> Self {
        Self {
            prefix: prefix.into(),
            owners,
        }
    }

    /// The name under which a secret called `own` by the source is served.
    ///
    /// # Errors
    /// Why it is not served: it can be no name, or it belongs to another source.
    pub fn served(&self, own: &str) -> Result<Name, String> {
        let text = format!("{}{own}", self.prefix);
        let served = Name::parse(&text).map_err(|why| format!("{}: {why}", text.escape_debug()))?;
        match self.owners.longest(&text) {
            Some((prefix, _)) if *prefix != self.prefix => Err(format!(
                "{text}: belongs to the source with prefix {prefix}"
            )),
            _ => Ok(served),
        }
    }

    /// What the source calls the secret that is served as `name`.
    #[must_use]
    pub fn own(&self, name: &Name) -> Option<Name> {
        Name::parse(name.as_str().strip_prefix(&self.prefix)?).ok()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_name_belongs_to_the_longest_prefix() {
        let all = [("", "all"), ("app/", "app"), ("app/db/", "db")];
        let owners = Owners::new(all.map(|(prefix, source)| (prefix.into(), source.into())));
        for (name, source) in [
            ("x", "all"),
            ("app", "all"),
            ("app/x", "app"),
            ("app/db/x", "db"),
            ("app/dbx", "app"),
        ] {
            assert_eq!(&**owners.of(name).unwrap(), source, "{name}");
        }
        let names = Names::new("app/", owners.clone());
        assert_eq!(names.served("x").unwrap().as_str(), "app/x");
        assert!(names.served("db/x").unwrap_err().contains("app/db/"));
        assert!(names.served("a b").is_err());
        assert_eq!(
            names.own(&Name::parse("app/x").unwrap()).unwrap().as_str(),
            "x"
        );
        assert!(names.own(&Name::parse("other/x").unwrap()).is_none());
        assert!(Owners::default().of("x").is_none());
    }
}
