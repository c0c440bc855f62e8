//! What roles say, for whoever reviews them.

use keyhatch_protocol::Action;

use super::{Pattern, Policy, Rule};

/// One role.
#[derive(Debug)]
pub struct RoleView<'a> {
    /// Its name.
    pub name: &'a str,
    /// The bots that have it.
    pub bots: Vec<&'a str>,
    /// What it grants.
    pub grants: Vec<RuleView<'a>>,
    /// What it denies.
    pub deny: Vec<RuleView<'a>>,
}

/// One grant or deny.
#[derive(Clone, Copy, Debug)]
pub struct RuleView<'a> {
    /// Any of these secrets; empty where it is about routes.
    pub secrets: &'a [Pattern],
    /// Any of these routes; empty where it is about secrets.
    pub routes: &'a [Pattern],
    /// Any of these actions.
    pub actions: &'a [Action],
    /// Where it stands, `file:line`.
    pub place: &'a str,
}

impl Policy {
    /// All roles, in the order of the configuration.
    #[must_use]
    pub fn roles(&self) -> Vec<RoleView<'_>> {
        let view = |at: usize| {
            let role = self.roles.get(at)?;
            let bots = self.bots.iter().filter(|bot| bot.role_ids.contains(&at));
            Some(RoleView {
                name: &role.name,
                bots: bots.map(|bot| &*bot.name).collect(),
                grants: role.grants.iter().map(Rule::view).collect(),
                deny: role.deny.iter().map(Rule::view).collect(),
            })
        };
        (0..self.roles.len()).filter_map(view).collect()
    }
}

impl Rule {
    fn view(&self) -> RuleView<'_> {
        RuleView {
            secrets: &self.secrets,
            routes: &self.routes,
            actions: &self.actions,
            place: &self.place,
        }
    }
}
