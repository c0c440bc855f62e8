//! What a peer may do: the configuration's bots and roles, compiled once into rules that a pure function reads.
//!
//! Nothing here does I/O or asks for the time. Kernel facts come in, a [`Decision`] comes out, and no one else can
//! make one that allows. Default is deny, a deny wins over every grant, and root is a peer like any other.

mod call;
mod compile;
mod credential;
mod decision;
mod diagnostic;
mod pattern;
mod roles;
mod selectors;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use keyhatch_protocol::{Action, Name};

pub use call::{CallError, CallPattern, FORBIDDEN_METHODS};
pub use compile::{At, BotInput, RoleInput, RouteInput, RuleInput, Rules};
pub use credential::{Credential, CredentialInput};
pub use decision::{Decision, Reason, Refusal};
pub use diagnostic::{Diagnostic, Place, Report, suggest};
pub use pattern::{MAX_PATTERN, Pattern, PatternError};
pub use roles::{RoleView, RuleView};
pub use selectors::{Accounts, Facts, Kind, Selectors};

/// A compiled configuration of bots and roles.
#[derive(Debug, Default)]
pub struct Policy {
    bots: Vec<Bot>,
    roles: Vec<Role>,
    routes: Vec<RouteRules>,
}

/// A bot of one policy. It means nothing to another one, a reloaded one too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BotId(usize);

/// Who may ask, and in which roles.
#[derive(Debug)]
pub struct Bot {
    /// Its name.
    pub name: Arc<str>,
    /// The names of its roles, in the order of the configuration.
    pub roles: Vec<Arc<str>>,
    /// Where it stands, `file:line`.
    pub place: Arc<str>,
    selectors: Selectors,
    credentials: Option<credential::Credentials>,
    /// Indices into the policy's roles.
    role_ids: Vec<usize>,
}

#[derive(Debug)]
struct Role {
    name: Arc<str>,
    grants: Vec<Rule>,
    deny: Vec<Rule>,
}

/// A rule is about secrets or about routes, never both.
#[derive(Debug)]
struct Rule {
    secrets: Vec<Pattern>,
    routes: Vec<Pattern>,
    actions: Vec<Action>,
    /// `file:line`, shared with every decision that it takes.
    place: Arc<str>,
}

/// What may be asked of one route, whoever asks.
#[derive(Debug)]
struct RouteRules {
    name: Box<str>,
    /// The secret that it uses.
    secret: Name,
    allow: Vec<CallPattern>,
    deny: Vec<(CallPattern, Arc<str>)>,
    place: Arc<str>,
}

/// One call of a route: the path is in its normal form, decoded.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// The route's name.
    pub route: &'a str,
    /// The method.
    pub method: &'a str,
    /// The path at the upstream.
    pub path: &'a str,
}

/// Who a peer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BotMatch {
    /// This bot.
    Bot(BotId),
    /// None of them.
    NoBot {
        /// The bot that comes nearest, and the selectors that differ; `None` where there is no bot at all.
        nearest: Option<String>,
    },
    /// Several that are equally specific: nobody.
    Ambiguous(Vec<BotId>),
}

/// What of a bot's selectors may change in a live process, and is checked again on each request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changeable {
    /// `exe`.
    pub exe: bool,
    /// `exe_sha256`.
    pub exe_sha256: bool,
    /// `unit`, `user_unit` or `cgroup`: as long as the cgroup is the same, so are all three.
    pub cgroup: bool,
}

impl Policy {
    /// Checks `rules` and compiles them, with the warnings found on the way; or everything that is wrong.
    pub fn compile(rules: Rules) -> Result<(Self, Vec<Diagnostic>), Vec<Diagnostic>> {
        compile::compile(rules)
    }

    /// The most specific bot whose selectors all hold for the peer.
    #[must_use]
    pub fn match_bot(&self, facts: &Facts, accounts: &Accounts) -> BotMatch {
        let all = self.bots.iter().enumerate();
        let selectors = all.map(|(index, bot)| (index, &*bot.name, &bot.selectors));
        most_specific(selectors, facts, accounts)
    }

    /// Whether every selector of `bot` holds for the peer: the slow way to check again.
    #[must_use]
    pub fn still_matches(&self, bot: BotId, facts: &Facts, accounts: &Accounts) -> bool {
        self.bot(bot)
            .is_some_and(|bot| bot.selectors.match_peer(facts, accounts))
    }

    /// Whether the peer may do `action` with the secret `name`, and which line says so.
    pub fn decide(&self, who: &BotMatch, action: Action, name: &Name) -> Decision {
        let (reason, rule) = self.judge(who, action, name);
        Decision::new(reason, rule.cloned())
    }

    /// Whether the peer may make this call of a route, and which line says so.
    ///
    /// A deny of `use` on the route's secret counts too: whoever must not have a secret in any way does not
    /// get it used either.
    pub fn decide_use(&self, who: &BotMatch, call: &Call<'_>) -> Decision {
        let granted = self.decide_route(who, call.route);
        match self.refuses(call) {
            Some(refused) if granted.allowed() => refused,
            _ => granted,
        }
    }

    /// What a route itself has against a call, whoever makes it.
    #[must_use]
    pub fn refuses(&self, call: &Call<'_>) -> Option<Decision> {
        let route = self.route(call.route)?;
        let bars = |pattern: &CallPattern| pattern.may_mean(call.method, call.path);
        if let Some((_, place)) = route.deny.iter().find(|(pattern, _)| bars(pattern)) {
            let rule = Some(Arc::clone(place));
            return Some(Decision::new(Reason::DenyRule, rule));
        }
        let is = |pattern: &CallPattern| pattern.matches(call.method, call.path);
        let is_allowed = route.allow.iter().any(is);
        (!is_allowed).then(|| Decision::new(Reason::NoGrant, Some(Arc::clone(&route.place))))
    }

    /// Whether the peer may use the route at all, whatever it asks of it.
    pub fn decide_route(&self, who: &BotMatch, route: &str) -> Decision {
        let rules = self.route(route);
        let (reason, rule) = self.judge_use(who, route, rules);
        let reason = match reason {
            Reason::Granted if rules.is_none() => Reason::NotFound,
            reason => reason,
        };
        Decision::new(reason, rule.cloned())
    }

    /// Whether the peer may use the route at all, and so may learn what it allows.
    #[must_use]
    pub fn may_use(&self, who: &BotMatch, route: &str) -> bool {
        self.judge_use(who, route, self.route(route)).0 == Reason::Granted
    }

    /// The secret that a route uses.
    #[must_use]
    pub fn secret_of(&self, route: &str) -> Option<&Name> {
        self.route(route).map(|rules| &rules.secret)
    }

    fn route(&self, name: &str) -> Option<&RouteRules> {
        self.routes.iter().find(|rules| *rules.name == *name)
    }

    /// Whether the peer may learn that `name` does not exist: it may read or list it.
    #[must_use]
    pub fn may_see(&self, who: &BotMatch, name: &Name) -> bool {
        [Action::Read, Action::List]
            .into_iter()
            .any(|action| self.judge(who, action, name).0 == Reason::Granted)
    }

    /// What to check again on each request of `bot`.
    #[must_use]
    pub fn changeable(&self, bot: BotId) -> Changeable {
        let Some(bot) = self.bot(bot) else {
            return Changeable::default();
        };
        let has = |kind| bot.selectors.has(kind);
        Changeable {
            exe: has(Kind::Exe),
            exe_sha256: has(Kind::ExeSha256),
            cgroup: has(Kind::Unit) || has(Kind::UserUnit) || has(Kind::Cgroup),
        }
    }

    /// The bot of this policy; `None` where the id is another policy's.
    #[must_use]
    pub fn bot(&self, id: BotId) -> Option<&Bot> {
        self.bots.get(id.0)
    }

    /// The bot of that name.
    #[must_use]
    pub fn bot_by_name(&self, name: &str) -> Option<BotId> {
        let index = self.bots.iter().position(|bot| &*bot.name == name)?;
        Some(BotId(index))
    }

    /// All bots, in the order of the configuration.
    #[must_use]
    pub fn bots(&self) -> &[Bot] {
        &self.bots
    }

    /// What the roles of `bot` grant, as `whoami` shows it: `{"role","secrets"|"routes","actions"}` each.
    #[must_use]
    pub fn grants(&self, bot: BotId) -> Vec<serde_json::Value> {
        let roles = self.bot(bot).into_iter().flat_map(|bot| self.roles_of(bot));
        roles
            .flat_map(|role| role.grants.iter().map(|rule| rule.to_json(&role.name)))
            .collect()
    }

    /// The files whose images identity has to compare peers with.
    #[must_use]
    pub fn exe_paths(&self) -> BTreeSet<&Path> {
        self.bots
            .iter()
            .filter_map(|bot| bot.selectors.exe.as_deref())
            .collect()
    }

    /// Whether any bot is selected by the content of its image.
    #[must_use]
    pub fn needs_exe_sha256(&self) -> bool {
        self.bots
            .iter()
            .any(|bot| bot.selectors.has(Kind::ExeSha256))
    }

    /// The users that the caller looks up for [`Accounts`].
    #[must_use]
    pub fn user_names(&self) -> BTreeSet<&str> {
        self.bots
            .iter()
            .filter_map(|bot| bot.selectors.user.as_deref())
            .collect()
    }

    /// The groups that the caller looks up for [`Accounts`].
    #[must_use]
    pub fn group_names(&self) -> BTreeSet<&str> {
        self.bots
            .iter()
            .filter_map(|bot| bot.selectors.group.as_deref())
            .collect()
    }

    fn judge(&self, who: &BotMatch, action: Action, name: &Name) -> (Reason, Option<&Arc<str>>) {
        self.first_rule(who, |rule| rule.applies(action, name))
    }

    fn judge_use(
        &self,
        who: &BotMatch,
        name: &str,
        rules: Option<&RouteRules>,
    ) -> (Reason, Option<&Arc<str>>) {
        self.first_rule(who, |rule| {
            rule.applies_to_route(name)
                || rules.is_some_and(|route| rule.applies(Action::Use, &route.secret))
        })
    }

    /// The deny, or else the grant, that `decides`.
    fn first_rule(
        &self,
        who: &BotMatch,
        decides: impl Fn(&Rule) -> bool,
    ) -> (Reason, Option<&Arc<str>>) {
        let bot = match who {
            BotMatch::Bot(id) => self.bot(*id),
            BotMatch::NoBot { .. } => None,
            BotMatch::Ambiguous(_) => return (Reason::AmbiguousBot, None),
        };
        let Some(bot) = bot else {
            return (Reason::NoBot, None);
        };
        let decides = |rule: &&Rule| decides(rule);
        if let Some(rule) = self.roles_of(bot).flat_map(|role| &role.deny).find(decides) {
            return (Reason::DenyRule, Some(&rule.place));
        }
        match self
            .roles_of(bot)
            .flat_map(|role| &role.grants)
            .find(decides)
        {
            Some(rule) => (Reason::Granted, Some(&rule.place)),
            None => (Reason::NoGrant, None),
        }
    }

    fn roles_of<'a>(&'a self, bot: &'a Bot) -> impl Iterator<Item = &'a Role> {
        bot.role_ids.iter().filter_map(|id| self.roles.get(*id))
    }
}

/// The most specific of bots, each with its index, name and the selectors that count.
fn most_specific<'a>(
    bots: impl Iterator<Item = (usize, &'a str, &'a Selectors)> + Clone,
    facts: &Facts,
    accounts: &Accounts,
) -> BotMatch {
    let mut best = Vec::new();
    let mut highest = None;
    for (index, _, selectors) in bots.clone() {
        if !selectors.match_peer(facts, accounts) {
            continue;
        }
        let specificity = Some(selectors.specificity());
        if specificity > highest {
            highest = specificity;
            best.clear();
        }
        if specificity == highest {
            best.push(BotId(index));
        }
    }
    match best[..] {
        [] => BotMatch::NoBot {
            nearest: nearest(bots, facts, accounts),
        },
        [only] => BotMatch::Bot(only),
        _ => BotMatch::Ambiguous(best),
    }
}

/// The bot with the fewest selectors that differ, then with the most that hold.
fn nearest<'a>(
    bots: impl Iterator<Item = (usize, &'a str, &'a Selectors)>,
    facts: &Facts,
    accounts: &Accounts,
) -> Option<String> {
    let (_, name, selectors) = bots.min_by_key(|(_, _, selectors)| {
        let differ = selectors.differing(facts, accounts).len();
        (differ, std::cmp::Reverse(selectors.count() - differ))
    })?;
    let differences: Vec<String> = selectors
        .differing(facts, accounts)
        .into_iter()
        .map(|kind| selectors.difference(kind, facts))
        .collect();
    let differences = match facts.uid {
        None => "this peer's uid has no mapping in the agent's user namespace".into(),
        Some(_) => differences.join(", "),
    };
    Some(format!("the nearest bot is {name:?}, but {differences}"))
}

impl Bot {
    /// Who it is.
    #[must_use]
    pub fn selectors(&self) -> &Selectors {
        &self.selectors
    }
}

impl Rule {
    fn applies(&self, action: Action, name: &Name) -> bool {
        self.actions.contains(&action)
            && self
                .secrets
                .iter()
                .any(|pattern| pattern.matches(name.as_str()))
    }

    fn applies_to_route(&self, name: &str) -> bool {
        self.routes.iter().any(|pattern| pattern.matches(name))
    }

    fn to_json(&self, role: &str) -> serde_json::Value {
        let texts = |patterns: &[Pattern]| -> Vec<String> {
            patterns.iter().map(ToString::to_string).collect()
        };
        let actions: Vec<&str> = self.actions.iter().map(|action| action.as_str()).collect();
        let (what, names) = if self.routes.is_empty() {
            ("secrets", texts(&self.secrets))
        } else {
            ("routes", texts(&self.routes))
        };
        serde_json::json!({ "role": role, what: names, "actions": actions })
    }
}

#[cfg(test)]
mod tests;
