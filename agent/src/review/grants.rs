//! Grants beside what was used of them: what nobody used, and the smaller policy that would have been enough.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use keyhatch_protocol::Action;
use serde::Serialize;

use super::Access;
use super::tally::Used;
use crate::policy::{Pattern, RoleView, RuleView};

/// Where a pattern stands for more names than this, it stays a pattern.
const NAMES: usize = 50;

/// A grant, as the configuration has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Grant {
    /// The role.
    pub role: String,
    /// `secrets` or `routes`.
    pub of: &'static str,
    /// One of its patterns.
    pub pattern: String,
    /// Its actions.
    pub actions: Vec<&'static str>,
    /// Where it stands, `file:line`.
    pub place: String,
}

/// A grant, or an action of it, that was not used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unused {
    /// The grant.
    #[serde(flatten)]
    pub grant: Grant,
    /// The actions that were not used by any bot; all of them where nobody used it.
    pub unused_actions: Vec<&'static str>,
    /// The bots that have it and used none of it.
    pub unused_by: Vec<String>,
    /// Whether nobody used any of it.
    pub by_all: bool,
}

impl Unused {
    /// The same in words.
    #[must_use]
    pub fn says(&self) -> String {
        let actions = self.unused_actions.join(", ");
        let mut parts = Vec::new();
        if self.by_all {
            return "nobody used it".to_owned();
        }
        if !actions.is_empty() {
            parts.push(format!("nobody used {actions}"));
        }
        if !self.unused_by.is_empty() {
            parts.push(format!("not used by {}", self.unused_by.join(", ")));
        }
        parts.join("; ")
    }
}

/// What is granted and was not used, and roles that grant what was.
pub(super) fn compare(roles: &[RoleView<'_>], used: &Used<'_>) -> (Vec<Unused>, String) {
    let mut unused = Vec::new();
    let mut policy = String::new();
    for role in roles {
        for rule in &role.grants {
            let secrets = rule.secrets.iter().map(|pattern| ("secrets", pattern));
            let routes = rule.routes.iter().map(|pattern| ("routes", pattern));
            unused.extend(secrets.chain(routes).filter_map(|(of, pattern)| {
                let grant = Grant {
                    role: role.name.to_owned(),
                    of,
                    pattern: pattern.to_string(),
                    actions: rule.actions.iter().map(|action| action.as_str()).collect(),
                    place: rule.place.to_owned(),
                };
                look(grant, pattern, rule, role, used)
            }));
        }
        smaller(&mut policy, role, used);
    }
    (unused, policy)
}

/// What of one pattern of a grant was not used, if anything.
fn look(
    grant: Grant,
    pattern: &Pattern,
    terms: &RuleView<'_>,
    role: &RoleView<'_>,
    used: &Used<'_>,
) -> Option<Unused> {
    let by: BTreeMap<&str, BTreeSet<Action>> = role
        .bots
        .iter()
        .map(|bot| {
            (
                *bot,
                actions_of(bot, pattern, grant.of, terms.actions, used),
            )
        })
        .collect();
    let actions: BTreeSet<Action> = by.values().flatten().copied().collect();
    let idle = by.iter().filter(|(_, actions)| actions.is_empty());
    let unused_by: Vec<String> = idle.map(|(bot, _)| (*bot).to_owned()).collect();
    let missing = terms
        .actions
        .iter()
        .filter(|action| !actions.contains(action));
    let unused_actions: Vec<&str> = missing.map(|action| action.as_str()).collect();
    let found = !unused_actions.is_empty() || !unused_by.is_empty();
    found.then_some(Unused {
        grant,
        unused_actions,
        unused_by,
        by_all: actions.is_empty(),
    })
}

/// What a bot did with what the pattern stands for.
fn actions_of(
    bot: &str,
    pattern: &Pattern,
    of: &str,
    granted: &[Action],
    used: &Used<'_>,
) -> BTreeSet<Action> {
    let mut actions = BTreeSet::new();
    if of == "routes" {
        let routes = used.routes.get(bot).copied().into_iter().flatten();
        if routes.into_iter().any(|route| pattern.matches(route)) {
            actions.insert(Action::Use);
        }
        return actions;
    }
    let touched = used.secrets.get(bot).into_iter().flatten();
    for access in touched.filter(|access| pattern.matches(&access.secret)) {
        actions.extend(access.actions());
    }
    // Which of the names in a list a bot wanted is not known: those that it went on to touch, or all.
    if used.lists.contains(bot) && (!actions.is_empty() || granted == [Action::List]) {
        actions.insert(Action::List);
    }
    actions.retain(|action| granted.contains(action));
    actions
}

impl Access {
    fn actions(&self) -> impl Iterator<Item = Action> {
        let counts = [
            (self.reads, Action::Read),
            (self.watches, Action::Watch),
            (self.rotations, Action::Rotate),
            (self.uses, Action::Use),
        ];
        counts
            .into_iter()
            .filter_map(|(count, action)| (count > 0).then_some(action))
    }
}

/// A role that grants what was used of it, as TOML.
fn smaller(out: &mut String, role: &RoleView<'_>, used: &Used<'_>) {
    let grants = used_grants(role, used);
    if !out.is_empty() {
        out.push('\n');
    }
    if grants.is_empty() && role.deny.is_empty() {
        let _ = writeln!(out, "# [role.{}]: nothing of it was used", key(role.name));
        return;
    }
    let _ = writeln!(out, "[role.{}]", key(role.name));
    if !grants.is_empty() {
        out.push_str("grants = [\n");
        for ((of, actions), names) in &grants {
            line(out, of, names, actions);
        }
        out.push_str("]\n");
    }
    // Where no grant is left either: a deny counts against what other roles grant.
    denied(out, role);
}

fn denied(out: &mut String, role: &RoleView<'_>) {
    if role.deny.is_empty() {
        return;
    }
    out.push_str("deny = [\n");
    for rule in &role.deny {
        let (of, patterns) = match rule.secrets {
            [] => ("routes", rule.routes),
            secrets => ("secrets", secrets),
        };
        let names = patterns.iter().map(ToString::to_string).collect();
        let actions: Vec<&str> = rule.actions.iter().map(|action| action.as_str()).collect();
        line(out, of, &names, &actions);
    }
    out.push_str("]\n");
}

/// Names by what was done with them.
type Grants<'a> = BTreeMap<(&'static str, Vec<&'a str>), BTreeSet<String>>;

fn used_grants(role: &RoleView<'_>, used: &Used<'_>) -> Grants<'static> {
    let mut done: BTreeMap<(&'static str, String), BTreeSet<Action>> = BTreeMap::new();
    for rule in &role.grants {
        for pattern in rule.secrets {
            for (name, actions) in names_of(pattern, rule, role, used) {
                done.entry(("secrets", name)).or_default().extend(actions);
            }
        }
        for pattern in rule.routes {
            let routes = role.bots.iter().filter_map(|bot| used.routes.get(bot));
            let routes = routes.flat_map(|routes| routes.iter());
            for route in routes.filter(|route| pattern.matches(route)) {
                let actions = done.entry(("routes", route.clone())).or_default();
                actions.insert(Action::Use);
            }
        }
    }
    let mut grants = Grants::new();
    for ((of, name), actions) in done {
        let actions = actions.into_iter().map(Action::as_str).collect();
        grants.entry((of, actions)).or_default().insert(name);
    }
    grants
}

/// The names behind a pattern that were touched; the pattern itself where they are many.
fn names_of(
    pattern: &Pattern,
    terms: &RuleView<'_>,
    role: &RoleView<'_>,
    used: &Used<'_>,
) -> BTreeMap<String, BTreeSet<Action>> {
    let mut names: BTreeMap<String, BTreeSet<Action>> = BTreeMap::new();
    for bot in &role.bots {
        let touched = used.secrets.get(bot).into_iter().flatten();
        for access in touched.filter(|access| pattern.matches(&access.secret)) {
            let mut actions: BTreeSet<Action> = access.actions().collect();
            actions.extend(used.lists.contains(bot).then_some(Action::List));
            actions.retain(|action| terms.actions.contains(action));
            if !actions.is_empty() {
                names
                    .entry(access.secret.clone())
                    .or_default()
                    .extend(actions);
            }
        }
    }
    let lists = role.bots.iter().any(|bot| used.lists.contains(bot));
    if terms.actions == [Action::List] && lists {
        return BTreeMap::from([(pattern.to_string(), BTreeSet::from([Action::List]))]);
    }
    if names.len() > NAMES {
        let actions = names.into_values().flatten().collect();
        names = BTreeMap::from([(pattern.to_string(), actions)]);
    }
    names
}

/// One line of a role. Names and patterns are of an alphabet that TOML need not escape.
fn line(out: &mut String, of: &str, names: &BTreeSet<String>, actions: &[&str]) {
    let list = |words: Vec<String>| words.join(", ");
    let quoted = |word: &str| format!("\"{word}\"");
    let names = list(names.iter().map(|name| quoted(name)).collect());
    let actions = list(actions.iter().map(|action| quoted(action)).collect());
    let _ = writeln!(out, "  {{ {of} = [{names}], actions = [{actions}] }},");
}

/// A key of TOML, quoted where it must be.
fn key(name: &str) -> String {
    let is_bare = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if !name.is_empty() && name.bytes().all(is_bare) {
        return name.to_owned();
    }
    serde_json::Value::from(name).to_string()
}
