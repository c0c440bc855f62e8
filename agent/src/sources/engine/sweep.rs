//! One round of looking at an upstream: what it has, what changed, and the values of that.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use keyhatch_protocol::Name;
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::JoinSet;

use crate::policy::Pattern;
use crate::sources::upstream::{Answer, Fetched, Listed, Standing, Trouble, Upstream};

/// How many calls are under way at once.
pub const WIDTH: usize = 8;

/// How many values are handed over together: secret memory holds what is fetched twice until then.
const PORTION: usize = 512;

/// Values that a round fetched. Names are the upstream's own.
pub type Portion = Vec<(Name, Fetched)>;

/// What a round found. Names are the upstream's own.
#[derive(Default)]
pub struct Found {
    /// Secrets whose value is the one that is held.
    pub confirmed: Vec<Name>,
    /// Held secrets to which the upstream said a definite no.
    pub gone: Vec<Name>,
    /// Names and folders whose answer cannot be used, and why.
    pub unusable: Vec<(String, String)>,
    /// Why the round ended early, if it did, and when the upstream wants to be asked again.
    pub outage: Option<(String, Option<Duration>)>,
}

/// What is held already. Names are the upstream's own.
pub struct Held {
    /// Ordinary secrets with their versions.
    pub versions: HashMap<Name, Arc<str>>,
    /// Lent values, which are replaced when their time comes and not looked at otherwise.
    pub lent: HashSet<Name>,
}

/// Looks at all that `prefetch` names and all that is held. Values are handed over as they come.
pub async fn sweep<U: Upstream>(
    upstream: Rc<U>,
    prefetch: Rc<[Pattern]>,
    held: Held,
    listing: Duration,
    portions: UnboundedSender<Portion>,
) -> Found {
    let mut found = Found::default();
    let mut wanted = found.list(&*upstream, &prefetch, listing).await;
    wanted.retain(|name, _| !held.lent.contains(name));
    let held = held.versions;
    let mut to_fetch: BTreeSet<Name> = BTreeSet::new();
    let mut to_ask: Vec<Name> = Vec::new();
    for (name, version) in &wanted {
        match (held.get(name), version) {
            (Some(old), Some(new)) if **old == **new => found.confirmed.push(name.clone()),
            (Some(_), None) => to_ask.push(name.clone()),
            (None, _) | (Some(_), Some(_)) => drop(to_fetch.insert(name.clone())),
        }
    }
    to_ask.extend(
        held.keys()
            .filter(|name| !wanted.contains_key(*name))
            .cloned(),
    );
    if found.outage.is_none() {
        let nothing = to_ask.is_empty() && to_fetch.is_empty();
        let told = found
            .still_readable(&*upstream, nothing, &mut to_fetch)
            .await;
        if let Err(trouble) = told {
            found.trouble("what may be read", trouble);
        }
    }
    if found.outage.is_none() {
        found.ask(&upstream, to_ask, &held, &mut to_fetch).await;
    }
    let names: Vec<Name> = to_fetch.into_iter().collect();
    for names in names.chunks(PORTION) {
        if found.outage.is_some() {
            break;
        }
        let portion = found.fetch(&upstream, names.to_vec(), &held).await;
        // The engine may be stopping.
        let _ = portions.send(portion);
    }
    found
}

impl Found {
    /// What the upstream has of `prefetch`, with the version where listing tells it.
    async fn list(
        &mut self,
        upstream: &impl Upstream,
        prefetch: &[Pattern],
        within: Duration,
    ) -> BTreeMap<Name, Option<String>> {
        let mut wanted = BTreeMap::new();
        for literal in prefetch.iter().filter(|pattern| pattern.is_literal()) {
            if let Ok(name) = Name::parse(literal.as_str()) {
                wanted.insert(name, None);
            }
        }
        for folder in folders(prefetch) {
            // What is held is looked at one by one where a list does not come to an end.
            let endless = || Trouble::unusable("its list does not come to an end in time");
            let listed = tokio::time::timeout(within, upstream.list(folder)).await;
            match listed.unwrap_or_else(|_| Err(endless())) {
                Ok(listed) => self.keep_wanted(listed, prefetch, &mut wanted),
                Err(Trouble::Unusable { why }) => self.unusable.push((folder.to_owned(), why)),
                Err(Trouble::Outage { why, retry_after }) => {
                    self.outage = Some((why, retry_after));
                    break;
                }
            }
        }
        wanted
    }

    fn keep_wanted(
        &mut self,
        listed: Vec<Listed>,
        prefetch: &[Pattern],
        wanted: &mut BTreeMap<Name, Option<String>>,
    ) {
        for Listed { name, version } in listed {
            if !prefetch.iter().any(|pattern| pattern.matches(&name)) {
                continue;
            }
            match Name::parse(&name) {
                Ok(name) => drop(wanted.insert(name, version)),
                Err(why) => {
                    let name = name.chars().take(100).collect::<String>();
                    self.unusable.push((name, why.to_string()));
                }
            }
        }
    }

    /// What a list confirmed is confirmed only while it may be read. Where there is `nothing` else to ask, the
    /// upstream is asked whether it answers at all.
    async fn still_readable(
        &mut self,
        upstream: &impl Upstream,
        nothing: bool,
        to_fetch: &mut BTreeSet<Name>,
    ) -> Result<(), Trouble> {
        if self.confirmed.is_empty() {
            return if nothing {
                upstream.reach().await
            } else {
                Ok(())
            };
        }
        let readable = upstream.readable(&self.confirmed).await?;
        let confirmed = std::mem::take(&mut self.confirmed);
        for (name, readable) in confirmed.into_iter().zip(readable) {
            if readable {
                self.confirmed.push(name);
            } else {
                // Its value has the last word.
                to_fetch.insert(name);
            }
        }
        Ok(())
    }

    async fn ask<U: Upstream>(
        &mut self,
        upstream: &Rc<U>,
        names: Vec<Name>,
        held: &HashMap<Name, Arc<str>>,
        to_fetch: &mut BTreeSet<Name>,
    ) {
        let call =
            |upstream: Rc<U>, names: Vec<Name>| async move { upstream.standings(&names).await };
        for (name, standing) in in_chunks(upstream, names, call).await {
            match standing {
                Ok(Standing::Version(version))
                    if held.get(&name).is_some_and(|old| **old == *version) =>
                {
                    self.confirmed.push(name);
                }
                Ok(Standing::Version(_) | Standing::Unknown) => drop(to_fetch.insert(name)),
                Ok(Standing::Absent) => self.gone.push(name),
                Err(trouble) => self.trouble(name.as_str(), trouble),
            }
        }
    }

    async fn fetch<U: Upstream>(
        &mut self,
        upstream: &Rc<U>,
        names: Vec<Name>,
        held: &HashMap<Name, Arc<str>>,
    ) -> Portion {
        let call = |upstream: Rc<U>, names: Vec<Name>| async move { upstream.fetch(&names).await };
        let mut portion = Vec::new();
        for (name, answer) in in_chunks(upstream, names, call).await {
            match answer {
                Ok(Answer::Absent(_)) if held.contains_key(&name) => self.gone.push(name),
                // It was listed, or named in the configuration, and is not there: nothing changes.
                Ok(Answer::Absent(_)) => {}
                Ok(Answer::Found(fetched)) => portion.push((name, fetched)),
                Err(trouble) => self.trouble(name.as_str(), trouble),
            }
        }
        portion
    }

    fn trouble(&mut self, what: &str, trouble: Trouble) {
        match trouble {
            Trouble::Unusable { why } => self.unusable.push((what.to_owned(), why)),
            Trouble::Outage { why, retry_after } => {
                self.outage.get_or_insert((why, retry_after));
            }
        }
    }
}

/// Calls for all `names`, some calls at once; after an outage no new call is begun.
async fn in_chunks<U, T, F>(
    upstream: &Rc<U>,
    names: Vec<Name>,
    call: impl Fn(Rc<U>, Vec<Name>) -> F,
) -> Vec<(Name, Result<T, Trouble>)>
where
    U: Upstream,
    T: 'static,
    F: Future<Output = Vec<Result<T, Trouble>>> + 'static,
{
    let mut calls = JoinSet::new();
    let mut all = Vec::with_capacity(names.len());
    let mut down = false;
    for chunk in names.chunks(upstream.batch().max(1)) {
        if calls.len() >= WIDTH
            && let Some(Ok(done)) = calls.join_next().await
        {
            down |= add(&mut all, done);
        }
        if down {
            break;
        }
        let (chunk, answers) = (chunk.to_vec(), call(Rc::clone(upstream), chunk.to_vec()));
        calls.spawn_local(async move { (chunk, answers.await) });
    }
    while let Some(done) = calls.join_next().await {
        if let Ok(done) = done {
            add(&mut all, done);
        }
    }
    all
}

type Answered<T> = (Vec<Name>, Vec<Result<T, Trouble>>);

/// Whether one of the answers is an outage.
fn add<T>(all: &mut Vec<(Name, Result<T, Trouble>)>, (names, answers): Answered<T>) -> bool {
    let down = answers
        .iter()
        .any(|answer| matches!(answer, Err(Trouble::Outage { .. })));
    all.extend(names.into_iter().zip(answers));
    down
}

/// The folders to list so that every name that a pattern with wildcards matches is seen once.
fn folders(prefetch: &[Pattern]) -> Vec<&str> {
    let mut folders: Vec<&str> = prefetch
        .iter()
        .filter(|pattern| !pattern.is_literal())
        .map(|pattern| {
            let text = pattern.as_str();
            let plain = &text[..text.find('*').unwrap_or(text.len())];
            &plain[..plain.rfind('/').map_or(0, |slash| slash + 1)]
        })
        .collect();
    folders.sort_unstable();
    folders.dedup_by(|later, earlier| later.starts_with(&**earlier));
    folders
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn each_folder_is_listed_once() {
        let patterns = [
            "app/**",
            "app/db/*",
            "a/b*",
            "x/y/z",
            "app/key-*",
            "b/c/d/*/e",
        ];
        let patterns = patterns.map(|text| Pattern::of_names(text).unwrap());
        assert_eq!(folders(&patterns), ["a/", "app/", "b/c/d/"]);
        let all = [Pattern::of_names("**").unwrap(), patterns[0].clone()];
        assert_eq!(folders(&all), [""]);
    }
}
