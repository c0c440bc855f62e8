//! `LIST`: what a folder of a mount holds, as far as the peer may list it.

use keyhatch_protocol::Code;
use serde_json::json;

use super::vault_answer;
use crate::api::answer::Answer;
use crate::api::connection::{Bound, Connection};
use crate::api::id::RequestId;
use crate::api::surface::Surface;

/// What is listed: a folder of a mount, or a part of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Keys {
    /// What the names in the folder begin with.
    pub prefix: String,
    /// The keys after this one.
    pub after: String,
    /// The most keys; 0 for all.
    pub limit: usize,
}

/// Answers with the keys; folders end in a slash.
pub fn list(
    connection: &Connection,
    bound: &Bound,
    id: &RequestId,
    ask: &Keys,
) -> Result<Answer, Code> {
    let Keys {
        prefix,
        after,
        limit,
    } = ask;
    connection.judge_list(bound, id, Surface::Vault, prefix)?;
    let snapshot = connection.context.cache.snapshot();
    let names = snapshot.list(prefix, None);
    let mut keys = keys(prefix, names.map(|entry| &entry.name), |name| {
        bound.may_list(name)
    });
    keys.retain(|key| key > after);
    if *limit > 0 {
        keys.truncate(*limit);
    }
    if keys.is_empty() {
        return Err(Code::NotFound);
    }
    Ok(vault_answer::data(id, &json!({ "keys": keys })))
}

/// The keys of a folder, from names in byte order that begin with `prefix`.
fn keys<N: AsRef<str>>(
    prefix: &str,
    names: impl Iterator<Item = N>,
    may_list: impl Fn(&N) -> bool,
) -> Vec<String> {
    let mut keys: Vec<String> = Vec::new();
    for name in names {
        let Some(rest) = name.as_ref().strip_prefix(prefix) else {
            continue;
        };
        let key = match rest.find('/') {
            Some(slash) => &rest[..=slash],
            None => rest,
        };
        // What is in one folder stands together, so that the last key tells.
        if keys.last().is_none_or(|last| last != key) && may_list(&name) {
            keys.push(key.to_owned());
        }
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_end_in_a_slash_and_show_where_something_in_them_may_be_listed() {
        let names = ["a", "a-b", "a/x", "a/y", "b/c/d", "z/hidden"];
        let list = |prefix: &str| {
            let names = names.into_iter().filter(|name| name.starts_with(prefix));
            keys(prefix, names, |name| !name.contains("hidden"))
        };
        assert_eq!(list(""), ["a", "a-b", "a/", "b/"]);
        assert_eq!(list("a/"), ["x", "y"]);
        assert_eq!(list("b/"), ["c/"]);
        assert_eq!(list("z/"), [""; 0]);
    }
}
