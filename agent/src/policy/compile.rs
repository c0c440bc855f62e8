//! From the configuration's bots and roles to rules that can be followed: what contradicts itself is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use keyhatch_protocol::{Action, Name};

use super::credential::{self, CredentialInput, Credentials};
use super::{
    Bot, CallPattern, Diagnostic, Kind, Pattern, Place, Policy, Report, Role, RouteRules, Rule,
    Selectors, suggest,
};

/// Uids that `DynamicUser=` hands to one service after another (systemd.exec(5), `UIDS-GIDS.md`).
const DYNAMIC_USERS: std::ops::RangeInclusive<u32> = 61184..=65519;

/// What the kernel reports for an id without a mapping (`/proc/sys/kernel/overflowuid`).
const OVERFLOW_ID: u32 = 65534;

/// A value and the line that it stands on.
#[derive(Clone, Debug)]
pub struct At<T> {
    /// The value.
    pub value: T,
    /// Its line.
    pub place: Place,
}

/// The bots and roles of a configuration, each part well-formed.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// `[[bot]]`, in order.
    pub bots: Vec<BotInput>,
    /// `[role.X]`, in order.
    pub roles: Vec<RoleInput>,
    /// `[[route]]`, in order.
    pub routes: Vec<RouteInput>,
}

/// One `[[route]]`, as far as it says what may be asked.
#[derive(Clone, Debug)]
pub struct RouteInput {
    /// Its name, and where it is given.
    pub name: At<String>,
    /// The secret that it uses.
    pub secret: Name,
    /// The calls that may be made.
    pub allow: Vec<At<CallPattern>>,
    /// Those among them that may not.
    pub deny: Vec<At<CallPattern>>,
}

/// One `[[bot]]`.
#[derive(Clone, Debug)]
pub struct BotInput {
    /// Its name, and where it is given.
    pub name: At<String>,
    /// Its `match`.
    pub selectors: Selectors,
    /// Its roles.
    pub roles: Vec<At<String>>,
    /// What systemd may fetch for its unit.
    pub credentials: Vec<CredentialInput>,
}

/// One `[role.X]`.
#[derive(Clone, Debug)]
pub struct RoleInput {
    /// Its name, and where the table begins.
    pub name: At<String>,
    /// What it grants.
    pub grants: Vec<RuleInput>,
    /// What it denies.
    pub deny: Vec<RuleInput>,
}

/// One grant or deny.
#[derive(Clone, Debug)]
pub struct RuleInput {
    /// Any of these names; empty where the rule is about routes.
    pub secrets: Vec<Pattern>,
    /// Any of these routes; empty where the rule is about secrets.
    pub routes: Vec<Pattern>,
    /// Any of these actions.
    pub actions: Vec<Action>,
    /// Where it begins.
    pub place: Place,
}

pub(super) fn compile(rules: Rules) -> Result<(Policy, Vec<Diagnostic>), Vec<Diagnostic>> {
    let mut report = Report::default();
    let role_ids = index_roles(&rules, &mut report);
    check_bots(&rules.bots, &mut report);
    check_ties(&rules.bots, &mut report);
    credential::check(&rules.bots, &mut report);
    for role in &rules.roles {
        check_reachable(role, &mut report);
    }
    check_role_names(&rules, &role_ids, &mut report);
    check_routes(&rules, &mut report);
    if !report.errors.is_empty() {
        return Err(report.errors);
    }
    let policy = Policy {
        bots: rules.bots.iter().map(|bot| bot.build(&role_ids)).collect(),
        roles: rules.roles.into_iter().map(RoleInput::build).collect(),
        routes: rules.routes.into_iter().map(RouteInput::build).collect(),
    };
    credential::warn_of_refused(&policy, &rules.bots, &mut report);
    Ok((policy, report.warnings))
}

fn index_roles(rules: &Rules, report: &mut Report) -> BTreeMap<String, usize> {
    let mut ids: BTreeMap<String, usize> = BTreeMap::new();
    for (index, role) in rules.roles.iter().enumerate() {
        let At { value: name, place } = &role.name;
        match ids.get(name) {
            Some(first) => twice(report, place, "role", name, &rules.roles[*first].name.place),
            None => drop(ids.insert(name.clone(), index)),
        }
    }
    ids
}

fn check_bots(bots: &[BotInput], report: &mut Report) {
    let mut names: BTreeMap<&str, &Place> = BTreeMap::new();
    for bot in bots {
        let At { value: name, place } = &bot.name;
        match names.get(name.as_str()) {
            Some(first) => twice(report, place, "bot", name, first),
            None => drop(names.insert(name, place)),
        }
        if let Some(problem) = bot.selectors.problem() {
            report.error(place, format!("bot {name:?} {problem}"));
        }
        if bot.roles.is_empty() {
            report.warning(
                place,
                format!("bot {name:?} has no roles, so that it is denied everything"),
            );
        }
    }
}

fn twice(report: &mut Report, place: &Place, what: &str, name: &str, first: &Place) {
    let text =
        format!("{what} {name:?} is already at {first}, each is given once, rename or remove one");
    report.error(place, text);
}

fn check_ties(bots: &[BotInput], report: &mut Report) {
    for (index, bot) in bots.iter().enumerate() {
        let tie = bots[..index]
            .iter()
            .find(|first| first.selectors.ties_with(&bot.selectors));
        if let Some(first) = tie {
            report.error(
                &bot.name.place,
                format!(
                    "bot {:?} and bot {:?} at {} match the same peers and neither is more specific, \
                     so that both would be denied, add a selector to one of them",
                    bot.name.value, first.name.value, first.name.place
                ),
            );
        }
    }
}

fn check_reachable(role: &RoleInput, report: &mut Report) {
    let name = &role.name.value;
    for (index, deny) in role.deny.iter().enumerate() {
        if let Some(first) = deny.covered_by(&role.deny[..index]) {
            let text = format!("this deny of role {name:?} repeats the one at {first}, remove it");
            report.error(&deny.place, text);
        }
    }
    for (index, grant) in role.grants.iter().enumerate() {
        if let Some(deny) = grant.covered_by(&role.deny) {
            let text = format!(
                "this grant of role {name:?} can never allow anything, the deny at {deny} covers it, \
                 remove one of the two"
            );
            report.error(&grant.place, text);
        } else if let Some(first) = grant.covered_by(&role.grants[..index]) {
            let text = format!(
                "this grant of role {name:?} adds nothing to the one at {first}, remove it"
            );
            report.error(&grant.place, text);
        }
    }
}

fn check_role_names(rules: &Rules, ids: &BTreeMap<String, usize>, report: &mut Report) {
    let mut used = BTreeSet::new();
    for bot in &rules.bots {
        let mut own = BTreeSet::new();
        for At { value: role, place } in &bot.roles {
            used.insert(role);
            if !own.insert(role) {
                report.error(
                    place,
                    format!("role {role:?} is listed twice, once is enough, remove one"),
                );
            } else if !ids.contains_key(role) {
                let hint = suggest(role, ids.keys().map(String::as_str));
                let text =
                    format!("there is no role {role:?}, {hint} Roles are tables [role.NAME]");
                report.error(place, text);
            }
        }
    }
    for role in &rules.roles {
        if !used.contains(&role.name.value) {
            let text = format!(
                "no bot has role {:?}, so that it grants nothing",
                role.name.value
            );
            report.warning(&role.name.place, text);
        }
    }
}

/// Names once, calls that can be made, and grants of routes that are there.
fn check_routes(rules: &Rules, report: &mut Report) {
    let mut names: BTreeMap<&str, &Place> = BTreeMap::new();
    for route in &rules.routes {
        let At { value: name, place } = &route.name;
        match names.get(name.as_str()) {
            Some(first) => twice(report, place, "route", name, first),
            None => drop(names.insert(name, place)),
        }
        for allow in &route.allow {
            let denied = |deny: &&At<CallPattern>| deny.value.covers(&allow.value);
            if let Some(deny) = route.deny.iter().find(denied) {
                let text = format!(
                    "\"{}\" can never be asked, the deny at {} covers it, remove one of the two",
                    allow.value, deny.place
                );
                report.error(&allow.place, text);
            }
        }
    }
    for role in &rules.roles {
        for rule in role.grants.iter().chain(&role.deny) {
            let unknown = |pattern: &&Pattern| !names.keys().any(|name| pattern.matches(name));
            for pattern in rule.routes.iter().filter(unknown) {
                let hint = suggest(pattern.as_str(), names.keys().copied());
                let text =
                    format!("there is no route {pattern:?}, {hint}; routes are tables [[route]]");
                report.error(&rule.place, text);
            }
        }
    }
}

impl Selectors {
    /// What is wrong with it in itself, as the end of a sentence that begins with the bot.
    fn problem(&self) -> Option<String> {
        if self.count() == 0 {
            return Some("matches every peer, give `match` at least one selector".into());
        }
        if self.matches_any_peer() {
            return Some("matches every peer by its globs, add another selector".into());
        }
        if self.has(Kind::UserUnit) && !self.has(Kind::User) && !self.has(Kind::Uid) {
            let text = "has `user_unit` without `user` or `uid`, but every user names their own units, add one";
            return Some(text.into());
        }
        match self.uid {
            Some(OVERFLOW_ID) => Some(never("uid")),
            Some(u32::MAX) => Some("has uid 4294967295, which is no user, use another".into()),
            Some(uid) if DYNAMIC_USERS.contains(&uid) && !self.has(Kind::Unit) => Some(format!(
                "has uid {uid}, which systemd gives to one DynamicUser= service after another, add `unit`"
            )),
            _ if self.gid == Some(OVERFLOW_ID) => Some(never("gid")),
            _ => None,
        }
    }

    pub(super) fn matches_any_peer(&self) -> bool {
        let globs = [&self.unit, &self.user_unit, &self.cgroup];
        let given = || globs.into_iter().flatten();
        given().count() == self.count()
            && given().all(|glob| matches!(glob.as_str(), "*" | "**" | "/**"))
    }
}

fn never(what: &str) -> String {
    format!(
        "has {what} 65534, which stands for ids without a mapping and never matches, use another"
    )
}

impl RuleInput {
    /// Whether `others` leave nothing for this rule to decide: the place of one of them.
    fn covered_by<'a>(&self, others: &'a [Self]) -> Option<&'a Place> {
        let mut place = None;
        let covers = |wide: &[Pattern], pattern: &Pattern| wide.iter().any(|w| w.covers(pattern));
        for action in &self.actions {
            let mut about = |others_cover: &dyn Fn(&Self) -> bool| {
                let is = |other: &&Self| other.actions.contains(action) && others_cover(other);
                place = Some(&others.iter().find(is)?.place);
                Some(())
            };
            for pattern in &self.secrets {
                about(&|other| covers(&other.secrets, pattern))?;
            }
            for pattern in &self.routes {
                about(&|other| covers(&other.routes, pattern))?;
            }
        }
        place
    }

    fn build(self) -> Rule {
        Rule {
            secrets: self.secrets,
            routes: self.routes,
            actions: self.actions,
            place: self.place.to_string().into(),
        }
    }
}

impl RoleInput {
    fn build(self) -> Role {
        Role {
            name: self.name.value.into(),
            grants: self.grants.into_iter().map(RuleInput::build).collect(),
            deny: self.deny.into_iter().map(RuleInput::build).collect(),
        }
    }
}

impl RouteInput {
    fn build(self) -> RouteRules {
        RouteRules {
            place: self.name.place.to_string().into(),
            name: self.name.value.into(),
            secret: self.secret,
            allow: self.allow.into_iter().map(|at| at.value).collect(),
            deny: self
                .deny
                .into_iter()
                .map(|at| (at.value, at.place.to_string().into()))
                .collect(),
        }
    }
}

impl BotInput {
    fn build(&self, ids: &BTreeMap<String, usize>) -> Bot {
        let known = |role: &At<String>| ids.get(&role.value).copied();
        Bot {
            role_ids: self.roles.iter().filter_map(known).collect(),
            roles: self
                .roles
                .iter()
                .map(|role| Arc::from(&*role.value))
                .collect(),
            name: self.name.value.as_str().into(),
            place: self.name.place.to_string().into(),
            selectors: self.selectors.clone(),
            credentials: Credentials::build(self),
        }
    }
}
