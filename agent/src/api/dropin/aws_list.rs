//! `ListSecrets`, and the names that `BatchGetSecretValue` finds by filters: what the peer may list, a page at a
//! time, in the order of the names.

use keyhatch_protocol::Name;
use serde_json::{Value as Json, json};

use super::aws_answer::{self, Exception};
use super::aws_filter::Filter;
use super::aws_names;
use crate::api::answer::Answer;
use crate::api::connection::{Bound, Connection};
use crate::api::id::RequestId;
use crate::api::surface::Surface;

/// One page of a list.
pub struct Page {
    filters: Vec<Filter>,
    limit: usize,
    after: Option<String>,
    /// From the last name to the first.
    backwards: bool,
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
        filters.iter().try_for_each(Filter::check)?;
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
            backwards: false,
        })
    }

    /// The same page of the list from its other end, where `order` says so.
    pub fn ordered(self, order: Option<&str>) -> Result<Self, Exception> {
        match order {
            None | Some("asc") => Ok(self),
            Some("desc") => Ok(Self {
                backwards: true,
                ..self
            }),
            Some(_) => {
                let why = "SortOrder: there is asc and desc";
                Err(Exception::new("ValidationException", why))
            }
        }
    }

    fn fits(&self, own: &str) -> bool {
        self.filters.iter().all(|filter| filter.fits(own))
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
    let after = page.after.as_deref();
    let seen = snapshot
        .list(&dropin.aws_prefix, after.filter(|_| !page.backwards))
        .filter(|entry| aws_names::own(&dropin, &entry.name).is_some_and(|own| page.fits(own)))
        .filter(|entry| bound.may_list(&entry.name))
        .map(|entry| entry.name.clone());
    let mut seen: Box<dyn Iterator<Item = Name>> = if page.backwards {
        let before: Vec<Name> = seen
            .take_while(|name| after.is_none_or(|after| name.as_str() < after))
            .collect();
        Box::new(before.into_iter().rev())
    } else {
        Box::new(seen)
    };
    let names: Vec<Name> = seen.by_ref().take(page.limit).collect();
    let more = seen.next().is_some();
    let next = names.last().filter(|_| more).map(Name::to_string);
    Ok((names, next))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_bounded() {
        let page = |limit, token: Option<&str>| {
            Page::new(Vec::new(), limit, token.map(str::to_owned), 100).is_ok()
        };
        assert!(page(None, None) && page(Some(1), Some("a/b")) && page(Some(100), None));
        assert!(!page(Some(0), None) && !page(Some(101), None) && !page(None, Some("a b")));
    }
}
