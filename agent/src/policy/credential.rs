//! What systemd may fetch for a unit: ids, each standing for a secret or for one field of one.
//!
//! systemd asks as root from inside the unit's cgroup, before the unit's own user or program is there. So a bot is
//! found here by what it says of its unit alone, and root is believed only about the unit that the kernel names.

use std::collections::BTreeMap;

use keyhatch_protocol::{Action, Name};

use super::compile::{At, BotInput};
use super::{
    Accounts, BotMatch, Changeable, Decision, Facts, Kind, Pattern, Place, Policy, Reason, Report,
    Selectors, most_specific,
};

/// What the id of a credential stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    /// The secret.
    pub name: Name,
    /// One field of it only.
    pub field: Option<String>,
}

/// One entry of a bot's `credentials`.
#[derive(Clone, Debug)]
pub struct CredentialInput {
    /// The id, as the unit's `LoadCredential=` names it.
    pub id: String,
    /// What it stands for.
    pub credential: Credential,
    /// Its line.
    pub place: Place,
}

/// The credentials of one bot.
#[derive(Debug)]
pub(super) struct Credentials {
    by_id: BTreeMap<String, Credential>,
    /// The bot's selectors, those left out that do not count here.
    unit: Selectors,
}

impl Credentials {
    pub(super) fn build(bot: &BotInput) -> Option<Self> {
        let entry = |input: &CredentialInput| (input.id.clone(), input.credential.clone());
        (!bot.credentials.is_empty()).then(|| Self {
            by_id: bot.credentials.iter().map(entry).collect(),
            unit: bot.selectors.of_unit(),
        })
    }
}

impl Policy {
    /// Whether any bot has credentials.
    #[must_use]
    pub fn has_credentials(&self) -> bool {
        self.bots.iter().any(|bot| bot.credentials.is_some())
    }

    /// The bot that systemd asks for; `claimed` is the unit that it says so of.
    #[must_use]
    pub fn match_unit(&self, facts: &Facts, claimed: Option<&str>) -> BotMatch {
        let nobody = |why: String| BotMatch::NoBot { nearest: Some(why) };
        if facts.uid != Some(0) {
            return nobody("only root, as systemd asks, is given credentials".into());
        }
        let (Some(unit), Some(claimed)) = (&facts.unit, claimed) else {
            return nobody(match facts.unit {
                None => "this peer is in no unit of the system manager".into(),
                Some(_) => "the source address names no unit, as that of systemd does".into(),
            });
        };
        if unit != claimed {
            return nobody(format!(
                "the source address names unit {claimed:?}, but this peer is in {unit:?}"
            ));
        }
        let with_credentials = self.bots().iter().enumerate().filter_map(|(index, bot)| {
            let credentials = bot.credentials.as_ref()?;
            Some((index, &*bot.name, &credentials.unit))
        });
        most_specific(with_credentials, facts, &Accounts::default())
    }

    /// What `id` stands for to the bot that was found; or why to nothing.
    pub fn credential(&self, who: &BotMatch, id: &str) -> Result<&Credential, Decision> {
        let refused = |reason| Err(Decision::new(reason, None));
        match who {
            BotMatch::NoBot { .. } => refused(Reason::NoBot),
            BotMatch::Ambiguous(_) => refused(Reason::AmbiguousBot),
            BotMatch::Bot(bot) => {
                let credentials = self.bot(*bot).and_then(|bot| bot.credentials.as_ref());
                match credentials.and_then(|credentials| credentials.by_id.get(id)) {
                    Some(credential) => Ok(credential),
                    None => refused(Reason::NoGrant),
                }
            }
        }
    }
}

impl Changeable {
    /// What of a peer may change for whom systemd asks.
    #[must_use]
    pub fn of_unit() -> Self {
        Self {
            cgroup: true,
            ..Self::default()
        }
    }
}

impl Selectors {
    /// What it says of the unit that a peer is in.
    fn of_unit(&self) -> Self {
        Self {
            unit: self.unit.clone(),
            cgroup: self.cgroup.clone(),
            ..Self::default()
        }
    }
}

/// Whether systemd can be told for which bot it asks.
pub(super) fn check(bots: &[BotInput], report: &mut Report) {
    let with_credentials: Vec<&BotInput> = bots
        .iter()
        .filter(|bot| !bot.credentials.is_empty())
        .collect();
    for (index, bot) in with_credentials.iter().enumerate() {
        let At { value: name, place } = &bot.name;
        let unit = bot.selectors.of_unit();
        if !unit.has(Kind::Unit) && !unit.has(Kind::Cgroup) {
            let text = format!(
                "bot {name:?} has `credentials`, which systemd fetches for a unit, add `unit` or `cgroup` to its `match`"
            );
            report.error(place, text);
        } else if unit.matches_any_peer() {
            let text = format!(
                "bot {name:?} has `credentials`, and its globs fit every unit: the other selectors do not count for them, \
                 name its unit"
            );
            report.error(place, text);
        } else {
            warn_of_length(bot, report);
        }
        if let Some(first) = with_credentials[..index]
            .iter()
            .find(|first| first.selectors.of_unit().ties_with(&unit))
        {
            let text = format!(
                "bot {name:?} and bot {:?} at {} have `credentials` for the same unit, where only `unit` and `cgroup` \
                 count, so that both would be refused them, put them into one",
                first.name.value, first.name.place
            );
            report.error(place, text);
        }
    }
}

/// systemd's address has room for so many bytes of unit and id.
const ROOM: usize = 83;

fn warn_of_length(bot: &BotInput, report: &mut Report) {
    let unit = bot.selectors.unit.as_ref().map_or("", Pattern::as_str);
    for CredentialInput { id, place, .. } in &bot.credentials {
        let length = unit.len() + id.len();
        if length > ROOM {
            let text = format!(
                "credential {id:?} and unit {unit:?} have {length} bytes together, systemd asks for at most {ROOM}, \
                 shorten one"
            );
            report.warning(place, text);
        }
    }
}

/// Which credentials would be refused for want of a grant.
pub(super) fn warn_of_refused(policy: &Policy, bots: &[BotInput], report: &mut Report) {
    for bot in bots {
        let Some(id) = policy.bot_by_name(&bot.name.value) else {
            continue;
        };
        for CredentialInput {
            id: credential,
            credential: Credential { name, .. },
            place,
        } in &bot.credentials
        {
            let decision = policy.decide(&BotMatch::Bot(id), Action::Read, name);
            if decision.allowed() {
                continue;
            }
            let text = match decision.rule() {
                Some(rule) => format!("the deny at {rule} keeps bot {:?} from it", bot.name.value),
                None => format!("no role of bot {:?} grants to read it", bot.name.value),
            };
            let text =
                format!("credential {credential:?} is {name}, and {text}: it would be refused");
            report.warning(place, text);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::policy::{BotId, Rules};

    fn bot(line: usize, name: &str, selectors: Selectors, ids: &[&str]) -> BotInput {
        let place = Place {
            file: "k.toml".into(),
            line,
        };
        let credential = |id: &&str| CredentialInput {
            id: (*id).to_owned(),
            credential: Credential {
                name: Name::parse("app/key").unwrap(),
                field: None,
            },
            place: place.clone(),
        };
        BotInput {
            name: At {
                value: name.to_owned(),
                place: place.clone(),
            },
            selectors,
            roles: Vec::new(),
            credentials: ids.iter().map(credential).collect(),
        }
    }

    fn at(unit: &str, uid: Option<u32>) -> Selectors {
        Selectors {
            unit: Some(Pattern::parse(unit).unwrap()),
            uid,
            ..Selectors::default()
        }
    }

    fn policy() -> Policy {
        let bots = vec![
            bot(1, "glob", at("x@*.service", Some(1)), &["db"]),
            bot(2, "one", at("x@1.service", None), &["db", "api"]),
            bot(3, "without", at("x@1.service", Some(0)), &[]),
        ];
        let rules = Rules {
            routes: vec![],
            bots,
            roles: Vec::new(),
        };
        Policy::compile(rules).unwrap().0
    }

    fn peer(uid: u32, unit: Option<&str>) -> Facts {
        Facts {
            uid: Some(uid),
            unit: unit.map(str::to_owned),
            ..Facts::default()
        }
    }

    fn found(facts: &Facts, claimed: Option<&str>) -> Result<usize, String> {
        match policy().match_unit(facts, claimed) {
            BotMatch::Bot(BotId(index)) => Ok(index),
            BotMatch::NoBot { nearest } => Err(nearest.unwrap()),
            BotMatch::Ambiguous(_) => Err("ambiguous".into()),
        }
    }

    #[test]
    fn root_in_the_unit_that_it_names_is_the_units_bot() {
        let (one, seven) = ("x@1.service", "x@7.service");
        assert_eq!(found(&peer(0, Some(seven)), Some(seven)), Ok(0));
        // The more specific wins; a bot without credentials is not looked at, though it fits better.
        assert_eq!(found(&peer(0, Some(one)), Some(one)), Ok(1));
        for (facts, claimed, why) in [
            (peer(1, Some(seven)), Some(seven), "only root"),
            (
                Facts {
                    uid: None,
                    ..peer(0, Some(seven))
                },
                Some(seven),
                "only root",
            ),
            (peer(0, None), Some(seven), "in no unit"),
            (peer(0, Some(seven)), None, "names no unit"),
            (
                peer(0, Some(one)),
                Some(seven),
                "but this peer is in \"x@1.service\"",
            ),
            (
                peer(0, Some("y.service")),
                Some("y.service"),
                "the nearest bot is",
            ),
        ] {
            let said = found(&facts, claimed).unwrap_err();
            assert!(said.contains(why), "{said}");
        }
    }

    #[test]
    fn an_id_stands_for_something_to_the_bot_that_has_it_alone() {
        let policy = policy();
        let reason = |who: &BotMatch, id| policy.credential(who, id).map_err(|no| no.reason());
        assert!(reason(&BotMatch::Bot(BotId(1)), "api").is_ok());
        assert_eq!(
            reason(&BotMatch::Bot(BotId(0)), "api"),
            Err(Reason::NoGrant)
        );
        assert_eq!(reason(&BotMatch::Bot(BotId(2)), "db"), Err(Reason::NoGrant));
        assert_eq!(
            reason(&BotMatch::NoBot { nearest: None }, "db"),
            Err(Reason::NoBot)
        );
        assert_eq!(
            reason(&BotMatch::Ambiguous(vec![]), "db"),
            Err(Reason::AmbiguousBot)
        );
        assert!(policy.has_credentials() && !Policy::default().has_credentials());
    }
}
