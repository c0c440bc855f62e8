//! `ListSecrets`, and the names that `BatchGetSecretValue` finds by filters: what the peer may list, a page at a
//! time, in the order of the names.

use keyhatch_protocol::Name;
use serde::Deserialize;
use serde_json::{Value as Json, json};

use super::aws_answer::{self, Exception};
use super::aws_names;
use crate::api::answer::Answer;
use crate::api::connection::{Bound, Connection};
use crate::api::id::RequestId;
use crate::api::surface::Surface;

/// A condition on the secrets of a list: one of the values has to fit.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Filter {
    key: String,
    #[serde(default)]
    values: Vec<String>,
}

/// One page of a list.
pub struct Page {
    filters: Vec<Filter>,
    limit: usize,
    after: Option<String>,
}

impl Page {
    /// The page that a request asks for; `most` is the largest.
    pub fn new(
        filters: Vec<Filter>,
        limit: Option<usize>,
        token: Option<String>,
        most: usize,
    ) -> Result<Self, Exception> {
        let limit = limit.unwrap_or(most);
        if !(1..=most).contains(&limit) {
            let why = "MaxResults is out of range";
            return Err(Exception::invalid(why));
        }
        // A token is the last name of the page before.
        if token
            .as_deref()
            .is_some_and(|token| Name::parse(token).is_err())
        {
            let why = "NextToken is none of this agent's";
            return Err(Exception::new("InvalidNextTokenException", why));
        }
        Ok(Self {
            filters,
            limit,
            after: token,
        })
    }

    fn fits(&self, own: &str) -> bool {
        self.filters.iter().all(|filter| filter.fits(own))
    }
}

impl Filter {
    fn fits(&self, own: &str) -> bool {
        self.values
            .iter()
            .any(|value| match value.strip_prefix('!') {
                Some(value) => !self.has(own, value),
                None => self.has(own, value),
            })
    }

    /// Secrets have a name here, and no description, tag, region or owner.
    fn has(&self, own: &str, value: &str) -> bool {
        match &*self.key {
            "name" => own.starts_with(value),
            "all" => {
                let own = own.to_ascii_lowercase();
                value
                    .to_ascii_lowercase()
                    .split_ascii_whitespace()
                    .any(|word| own.contains(word))
            }
            _ => false,
        }
    }
}

/// `ListSecrets`
pub fn list(
    connection: &Connection,
    bound: &Bound,
    id: &RequestId,
    page: &Page,
) -> Result<Answer, Exception> {
    let dropin = connection.context.dropin.load();
    let (names, next) = names(connection, bound, id, page)?;
    let snapshot = connection.context.cache.snapshot();
    let about = |name: &Name| {
        let entry = snapshot.get(name.as_str())?;
        Some(aws_answer::about(
            &dropin,
            name,
            entry,
            "SecretVersionsToStages",
        ))
    };
    let mut document =
        json!({ "SecretList": names.iter().filter_map(about).collect::<Vec<Json>>() });
    if let Some(next) = next {
        document["NextToken"] = next.into();
    }
    Ok(aws_answer::document(id, &document))
}

/// The ids of a page, and the token of the next.
pub fn ids(
    connection: &Connection,
    bound: &Bound,
    id: &RequestId,
    page: &Page,
) -> Result<(Vec<String>, Option<String>), Exception> {
    let dropin = connection.context.dropin.load();
    let (names, next) = names(connection, bound, id, page)?;
    let own = |name: &Name| aws_names::own(&dropin, name).map(str::to_owned);
    Ok((names.iter().filter_map(own).collect(), next))
}

/// Decides and records the list.
fn names(
    connection: &Connection,
    bound: &Bound,
    id: &RequestId,
    page: &Page,
) -> Result<(Vec<Name>, Option<String>), Exception> {
    let dropin = connection.context.dropin.load();
    connection
        .judge_list(bound, id, Surface::Aws, &dropin.aws_prefix)
        .map_err(Exception::of)?;
    let snapshot = connection.context.cache.snapshot();
    let mut seen = snapshot
        .list(&dropin.aws_prefix, page.after.as_deref())
        .filter(|entry| aws_names::own(&dropin, &entry.name).is_some_and(|own| page.fits(own)))
        .filter(|entry| bound.may_list(&entry.name))
        .map(|entry| entry.name.clone());
    let names: Vec<Name> = seen.by_ref().take(page.limit).collect();
    let more = seen.next().is_some();
    let next = names.last().filter(|_| more).map(Name::to_string);
    Ok((names, next))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fits(key: &str, values: &[&str], own: &str) -> bool {
        let values = values.iter().map(|value| (*value).to_owned()).collect();
        let key = key.to_owned();
        Filter { key, values }.fits(own)
    }

    #[test]
    fn filters_are_prefixes_of_names_and_may_be_turned_round() {
        assert!(fits("name", &["app/"], "app/key"));
        assert!(!fits("name", &["App/", "key"], "app/key"));
        assert!(fits("name", &["x", "app"], "app/key"));
        assert!(fits("name", &["!x"], "app/key"));
        assert!(!fits("name", &["!app"], "app/key"));
        assert!(fits("all", &["KEY other"], "app/key"));
        assert!(!fits("tag-key", &["app"], "app/key"));
        assert!(!fits("name", &[], "app/key"));
    }

    #[test]
    fn pages_are_bounded() {
        let page = |limit, token: Option<&str>| {
            Page::new(Vec::new(), limit, token.map(str::to_owned), 100).is_ok()
        };
        assert!(page(None, None) && page(Some(1), Some("a/b")) && page(Some(100), None));
        assert!(!page(Some(0), None) && !page(Some(101), None) && !page(None, Some("a b")));
    }
}
