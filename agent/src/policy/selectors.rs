//! Who a bot is: selectors over the facts that the kernel gave, and which of two bots is the more specific.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use super::Pattern;

/// What the kernel says of a peer. Nothing in it was told by the peer itself.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// `None` where it has no mapping in the agent's user namespace: such a peer matches no bot.
    pub uid: Option<u32>,
    /// `None` likewise: it matches no `gid` and no `group`.
    pub gid: Option<u32>,
    /// Supplementary groups, those without a mapping left out.
    pub groups: Vec<u32>,
    /// The system manager's unit.
    pub unit: Option<String>,
    /// The user manager's unit.
    pub user_unit: Option<String>,
    /// The whole cgroup path.
    pub cgroup: Option<String>,
    /// Those of [`super::Policy::exe_paths`] that were proven to be this peer's image.
    pub exe: Vec<PathBuf>,
    /// The digest of the image, where [`super::Policy::needs_exe_sha256`] asked for it.
    pub exe_sha256: Option<[u8; 32]>,
}

/// The ids of the names that the policy selects on; a name that does not exist is left out.
#[derive(Clone, Debug, Default)]
pub struct Accounts {
    /// Users by name.
    pub users: BTreeMap<String, u32>,
    /// Groups by name.
    pub groups: BTreeMap<String, u32>,
}

/// The kinds of selectors, the most specific first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The image, by content.
    ExeSha256,
    /// The image, by file.
    Exe,
    /// The system manager's unit.
    Unit,
    /// The user manager's unit.
    UserUnit,
    /// The cgroup path.
    Cgroup,
    /// The user, by name.
    User,
    /// The user, by number.
    Uid,
    /// A group, by name.
    Group,
    /// A group, by number.
    Gid,
}

impl Kind {
    const ALL: [Self; 9] = [
        Self::ExeSha256,
        Self::Exe,
        Self::Unit,
        Self::UserUnit,
        Self::Cgroup,
        Self::User,
        Self::Uid,
        Self::Group,
        Self::Gid,
    ];

    /// The key in a bot's `match`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ExeSha256 => "exe_sha256",
            Self::Exe => "exe",
            Self::Unit => "unit",
            Self::UserUnit => "user_unit",
            Self::Cgroup => "cgroup",
            Self::User => "user",
            Self::Uid => "uid",
            Self::Group => "group",
            Self::Gid => "gid",
        }
    }
}

/// A bot's `match`: every selector given must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // the fields are the keys of the contract's table
pub struct Selectors {
    pub exe_sha256: Option<[u8; 32]>,
    pub exe: Option<PathBuf>,
    pub unit: Option<Pattern>,
    pub user_unit: Option<Pattern>,
    pub cgroup: Option<Pattern>,
    pub user: Option<String>,
    pub uid: Option<u32>,
    pub group: Option<String>,
    pub gid: Option<u32>,
}

/// The order of the contract; the greater is the more specific.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Specificity {
    /// `exe_sha256`, `exe`, `unit`, `user_unit`, `cgroup`, `user` or `uid`, `group` or `gid`.
    kinds: [bool; 7],
    /// Whether `unit`, `user_unit` and `cgroup` are without wildcards.
    literals: [bool; 3],
    count: usize,
}

impl Selectors {
    /// Whether this bot selects on `kind`.
    #[must_use]
    pub fn has(&self, kind: Kind) -> bool {
        match kind {
            Kind::ExeSha256 => self.exe_sha256.is_some(),
            Kind::Exe => self.exe.is_some(),
            Kind::Unit => self.unit.is_some(),
            Kind::UserUnit => self.user_unit.is_some(),
            Kind::Cgroup => self.cgroup.is_some(),
            Kind::User => self.user.is_some(),
            Kind::Uid => self.uid.is_some(),
            Kind::Group => self.group.is_some(),
            Kind::Gid => self.gid.is_some(),
        }
    }

    /// Whether every selector holds for the peer.
    #[must_use]
    pub fn match_peer(&self, facts: &Facts, accounts: &Accounts) -> bool {
        facts.uid.is_some()
            && Kind::ALL
                .iter()
                .all(|kind| self.holds(*kind, facts, accounts))
    }

    /// The selectors that do not hold for the peer.
    pub(super) fn differing(&self, facts: &Facts, accounts: &Accounts) -> Vec<Kind> {
        let mut kinds = Kind::ALL.to_vec();
        kinds.retain(|kind| !self.holds(*kind, facts, accounts));
        kinds
    }

    pub(super) fn count(&self) -> usize {
        Kind::ALL.iter().filter(|kind| self.has(**kind)).count()
    }

    pub(super) fn specificity(&self) -> Specificity {
        let literal = |glob: &Option<Pattern>| glob.as_ref().is_some_and(Pattern::is_literal);
        Specificity {
            kinds: [
                self.has(Kind::ExeSha256),
                self.has(Kind::Exe),
                self.has(Kind::Unit),
                self.has(Kind::UserUnit),
                self.has(Kind::Cgroup),
                self.has(Kind::User) || self.has(Kind::Uid),
                self.has(Kind::Group) || self.has(Kind::Gid),
            ],
            literals: [
                literal(&self.unit),
                literal(&self.user_unit),
                literal(&self.cgroup),
            ],
            count: self.count(),
        }
    }

    /// Whether the two are equally specific and one peer provably matches both.
    ///
    /// What the file cannot prove is left to the moment a peer comes: two groups that one peer may or may
    /// not be in, a user and a uid that may or may not be the same.
    pub(super) fn ties_with(&self, other: &Self) -> bool {
        self.specificity() == other.specificity()
            && Kind::ALL
                .iter()
                .all(|kind| self.has(*kind) == other.has(*kind))
            && self.exe_sha256 == other.exe_sha256
            && self.exe == other.exe
            && (&self.user, self.uid) == (&other.user, other.uid)
            && (&self.group, self.gid) == (&other.group, other.gid)
            && globs_meet(self.unit.as_ref(), other.unit.as_ref())
            && globs_meet(self.user_unit.as_ref(), other.user_unit.as_ref())
            && globs_meet(self.cgroup.as_ref(), other.cgroup.as_ref())
    }

    fn holds(&self, kind: Kind, facts: &Facts, accounts: &Accounts) -> bool {
        let in_group = |gid: &u32| facts.gid == Some(*gid) || facts.groups.contains(gid);
        match kind {
            Kind::ExeSha256 => met(self.exe_sha256.as_ref(), |d| facts.exe_sha256 == Some(*d)),
            Kind::Exe => met(self.exe.as_ref(), |exe| facts.exe.contains(exe)),
            Kind::Unit => met(self.unit.as_ref(), |g| glob_holds(g, facts.unit.as_ref())),
            Kind::UserUnit => met(self.user_unit.as_ref(), |g| {
                glob_holds(g, facts.user_unit.as_ref())
            }),
            Kind::Cgroup => met(self.cgroup.as_ref(), |g| {
                glob_holds(g, facts.cgroup.as_ref())
            }),
            Kind::User => met(self.user.as_ref(), |name| {
                facts.uid.is_some() && accounts.users.get(name).copied() == facts.uid
            }),
            Kind::Uid => met(self.uid.as_ref(), |uid| facts.uid == Some(*uid)),
            Kind::Group => met(self.group.as_ref(), |name| {
                accounts.groups.get(name).is_some_and(in_group)
            }),
            Kind::Gid => met(self.gid.as_ref(), in_group),
        }
    }

    /// `user = "support" (this peer has uid 1000)`: what is asked and what the peer is, escaped.
    pub(super) fn difference(&self, kind: Kind, facts: &Facts) -> String {
        let id = |id: Option<u32>| id.map_or("none that is mapped".into(), |id| id.to_string());
        let text =
            |text: &Option<String>| text.as_ref().map_or("none".into(), |t| format!("{t:?}"));
        let glob =
            |glob: &Option<Pattern>| format!("{:?}", glob.as_ref().map_or("", Pattern::as_str));
        let name = |name: &Option<String>| format!("{:?}", name.as_deref().unwrap_or_default());
        let (asked, actual) = match kind {
            Kind::ExeSha256 => {
                let digest = self.exe_sha256.unwrap_or_default();
                (format!("{:?}", hex(&digest)), "another image".into())
            }
            Kind::Exe => {
                let path = self.exe.as_deref().unwrap_or(Path::new(""));
                (
                    format!("{:?}", path.to_string_lossy()),
                    "another image".into(),
                )
            }
            Kind::Unit => (glob(&self.unit), text(&facts.unit)),
            Kind::UserUnit => (glob(&self.user_unit), text(&facts.user_unit)),
            Kind::Cgroup => (glob(&self.cgroup), text(&facts.cgroup)),
            Kind::User => (name(&self.user), format!("uid {}", id(facts.uid))),
            Kind::Uid => (self.uid.unwrap_or_default().to_string(), id(facts.uid)),
            Kind::Group => (name(&self.group), format!("gid {}", id(facts.gid))),
            Kind::Gid => (self.gid.unwrap_or_default().to_string(), id(facts.gid)),
        };
        format!("{} = {asked} (this peer has {actual})", kind.as_str())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing into a `String` cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// What is not asked for holds.
fn met<T>(asked: Option<&T>, holds: impl Fn(&T) -> bool) -> bool {
    asked.is_none_or(holds)
}

fn glob_holds(glob: &Pattern, fact: Option<&String>) -> bool {
    fact.is_some_and(|text| glob.matches(text))
}

fn globs_meet(one: Option<&Pattern>, other: Option<&Pattern>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => one.meets(other),
        _ => true,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn glob(text: &str) -> Option<Pattern> {
        Pattern::parse(text).ok()
    }

    fn peer() -> (Facts, Accounts) {
        let facts = Facts {
            uid: Some(1001),
            gid: Some(1001),
            groups: vec![27],
            unit: Some("support-bot.service".into()),
            user_unit: Some("app.service".into()),
            cgroup: Some("/system.slice/support-bot.service".into()),
            exe: vec!["/usr/bin/bot".into()],
            exe_sha256: Some([7; 32]),
        };
        let accounts = Accounts {
            users: [("support".into(), 1001), ("other".into(), 1002)].into(),
            groups: [("sudo".into(), 27), ("ops".into(), 50)].into(),
        };
        (facts, accounts)
    }

    /// One selector of each kind: one that holds for [`peer`], one that does not.
    fn one_of_each() -> Vec<(Kind, Selectors, Selectors)> {
        let with = |set: &dyn Fn(&mut Selectors)| {
            let mut selectors = Selectors::default();
            set(&mut selectors);
            selectors
        };
        vec![
            (
                Kind::ExeSha256,
                with(&|s| s.exe_sha256 = Some([7; 32])),
                with(&|s| s.exe_sha256 = Some([8; 32])),
            ),
            (
                Kind::Exe,
                with(&|s| s.exe = Some("/usr/bin/bot".into())),
                with(&|s| s.exe = Some("/usr/bin/bo".into())),
            ),
            (
                Kind::Unit,
                with(&|s| s.unit = glob("support-*.service")),
                with(&|s| s.unit = glob("support-*.scope")),
            ),
            (
                Kind::UserUnit,
                with(&|s| s.user_unit = glob("app.service")),
                with(&|s| s.user_unit = glob("app")),
            ),
            (
                Kind::Cgroup,
                with(&|s| s.cgroup = glob("/system.slice/**")),
                with(&|s| s.cgroup = glob("/*")),
            ),
            (
                Kind::User,
                with(&|s| s.user = Some("support".into())),
                with(&|s| s.user = Some("nobody-of-that-name".into())),
            ),
            (
                Kind::Uid,
                with(&|s| s.uid = Some(1001)),
                with(&|s| s.uid = Some(0)),
            ),
            (
                Kind::Group,
                with(&|s| s.group = Some("sudo".into())),
                with(&|s| s.group = Some("ops".into())),
            ),
            (
                Kind::Gid,
                with(&|s| s.gid = Some(1001)),
                with(&|s| s.gid = Some(0)),
            ),
        ]
    }

    #[test]
    fn each_selector_holds_and_differs() {
        let (facts, accounts) = peer();
        for (kind, good, bad) in one_of_each() {
            assert!(good.has(kind) && good.count() == 1, "{kind:?}");
            assert!(good.match_peer(&facts, &accounts), "{kind:?}");
            assert!(!bad.match_peer(&facts, &accounts), "{kind:?}");
            assert_eq!(bad.differing(&facts, &accounts), [kind]);
            assert!(bad.difference(kind, &facts).starts_with(kind.as_str()));
            // A fact that the kernel did not tell holds for nothing.
            assert!(!good.match_peer(&Facts::default(), &accounts), "{kind:?}");
        }
    }

    #[test]
    fn a_peer_without_a_mapped_uid_matches_nothing() {
        let (mut facts, accounts) = peer();
        facts.uid = None;
        for (kind, good, _) in one_of_each() {
            assert!(!good.match_peer(&facts, &accounts), "{kind:?}");
        }
    }

    #[test]
    fn every_selector_given_must_hold() {
        let (facts, accounts) = peer();
        let mut both = Selectors {
            user: Some("support".into()),
            uid: Some(1001),
            ..Selectors::default()
        };
        assert!(both.match_peer(&facts, &accounts));
        both.uid = Some(1002);
        assert!(!both.match_peer(&facts, &accounts));
    }

    #[test]
    fn the_order_of_the_contract() {
        let each = one_of_each();
        let rank = |kind: Kind| each.iter().find(|e| e.0 == kind).unwrap().1.specificity();
        for pair in [
            Kind::ExeSha256,
            Kind::Exe,
            Kind::Unit,
            Kind::UserUnit,
            Kind::Cgroup,
            Kind::User,
            Kind::Group,
        ]
        .windows(2)
        {
            assert!(rank(pair[0]) > rank(pair[1]), "{pair:?}");
        }
        assert_eq!(rank(Kind::User), rank(Kind::Uid));
        assert_eq!(rank(Kind::Group), rank(Kind::Gid));

        let unit = |unit: &str| Selectors {
            unit: glob(unit),
            ..Selectors::default()
        };
        let literal = unit("a.service").specificity();
        assert!(literal > unit("a*").specificity());
        let with_user = Selectors {
            user: Some("u".into()),
            ..unit("a*")
        };
        assert!(
            with_user.specificity() > literal,
            "one more kind goes before a literal"
        );
        let with_both = Selectors {
            uid: Some(1),
            ..with_user.clone()
        };
        assert!(
            with_both.specificity() > with_user.specificity(),
            "the number comes last"
        );
    }

    #[test]
    fn ties_are_what_the_file_can_prove() {
        let user = |name: &str| Selectors {
            user: Some(name.into()),
            ..Selectors::default()
        };
        let unit = |text: &str| Selectors {
            unit: glob(text),
            ..Selectors::default()
        };
        let group = |name: &str| Selectors {
            group: Some(name.into()),
            ..Selectors::default()
        };
        let uid = Selectors {
            uid: Some(5),
            ..Selectors::default()
        };
        for (one, other, ties) in [
            (user("a"), user("a"), true),
            (user("a"), user("b"), false),
            (user("a"), uid, false),
            (user("a"), group("a"), false),
            (group("a"), group("b"), false),
            (unit("a*"), unit("*b.service"), true),
            (unit("a*"), unit("b*"), false),
            (unit("a*"), unit("a.service"), false),
        ] {
            assert_eq!(one.ties_with(&other), ties, "{one:?} {other:?}");
            assert_eq!(other.ties_with(&one), ties);
        }
    }

    #[test]
    fn text_that_a_peer_chose_is_escaped() {
        let (mut facts, _) = peer();
        facts.unit = Some("a\nb.service".into());
        let selectors = Selectors {
            unit: glob("x.service"),
            ..Selectors::default()
        };
        assert_eq!(
            selectors.difference(Kind::Unit, &facts),
            r#"unit = "x.service" (this peer has "a\nb.service")"#
        );
    }
}
