//! What the policy decides, as tables; and as laws, beside.

#![allow(clippy::unwrap_used)]

use super::*;

mod laws;

fn place(line: usize) -> Place {
    Place {
        file: "k.toml".into(),
        line,
    }
}

fn rule(line: usize, secrets: &[&str], actions: &[Action]) -> RuleInput {
    RuleInput {
        secrets: secrets
            .iter()
            .map(|p| Pattern::of_names(p).unwrap())
            .collect(),
        routes: vec![],
        actions: actions.to_vec(),
        place: place(line),
    }
}

fn bot(line: usize, name: &str, selectors: Selectors, roles: &[&str]) -> BotInput {
    let at = |value: &str| At {
        value: value.to_owned(),
        place: place(line),
    };
    BotInput {
        name: at(name),
        selectors,
        roles: roles.iter().map(|role| at(role)).collect(),
        credentials: Vec::new(),
    }
}

fn role(line: usize, name: &str, grants: Vec<RuleInput>, deny: Vec<RuleInput>) -> RoleInput {
    RoleInput {
        name: At {
            value: name.into(),
            place: place(line),
        },
        grants,
        deny,
    }
}

fn uid(uid: u32) -> Selectors {
    Selectors {
        uid: Some(uid),
        ..Selectors::default()
    }
}

fn unit(text: &str) -> Selectors {
    Selectors {
        unit: Some(Pattern::parse(text).unwrap()),
        ..Selectors::default()
    }
}

fn peer(uid: u32) -> Facts {
    Facts {
        uid: Some(uid),
        gid: Some(uid),
        ..Facts::default()
    }
}

fn name(text: &str) -> Name {
    Name::parse(text).unwrap()
}

fn compile(rules: Rules) -> Policy {
    Policy::compile(rules).unwrap().0
}

fn errors(rules: Rules) -> Vec<String> {
    let errors = Policy::compile(rules).unwrap_err();
    errors.iter().map(ToString::to_string).collect()
}

const READS: [Action; 3] = [Action::Read, Action::List, Action::Watch];

fn example() -> Policy {
    compile(Rules {
        routes: vec![],
        bots: vec![
            bot(1, "support", uid(1000), &["llm", "ops"]),
            bot(2, "reader", uid(1001), &["llm"]),
        ],
        roles: vec![
            role(
                10,
                "llm",
                vec![
                    rule(11, &["openai/*"], &READS),
                    rule(12, &["lists/**"], &[Action::List]),
                ],
                vec![rule(13, &["openai/admin-key"], &Action::ALL)],
            ),
            role(
                20,
                "ops",
                vec![rule(21, &["**"], &[Action::Read, Action::Rotate])],
                vec![rule(22, &["vault/**"], &[Action::Read])],
            ),
        ],
    })
}

#[test]
fn the_line_that_decides_is_named() {
    let policy = example();
    for (who, action, secret, reason, line) in [
        (
            1000,
            Action::Read,
            "openai/key",
            Reason::Granted,
            Some("k.toml:11"),
        ),
        (
            1000,
            Action::Read,
            "openai/a/b",
            Reason::Granted,
            Some("k.toml:21"),
        ),
        (
            1000,
            Action::Read,
            "openai/admin-key",
            Reason::DenyRule,
            Some("k.toml:13"),
        ),
        (
            1000,
            Action::Read,
            "vault/x",
            Reason::DenyRule,
            Some("k.toml:22"),
        ),
        (
            1000,
            Action::Rotate,
            "vault/x",
            Reason::Granted,
            Some("k.toml:21"),
        ),
        (1000, Action::Use, "openai/key", Reason::NoGrant, None),
        (
            1001,
            Action::Watch,
            "openai/key",
            Reason::Granted,
            Some("k.toml:11"),
        ),
        (1001, Action::Read, "lists/a/b", Reason::NoGrant, None),
        (1001, Action::Read, "other", Reason::NoGrant, None),
        (0, Action::Read, "openai/key", Reason::NoBot, None),
        (1002, Action::Read, "openai/key", Reason::NoBot, None),
    ] {
        let matched = policy.match_bot(&peer(who), &Accounts::default());
        let decision = policy.decide(&matched, action, &name(secret));
        let found = (decision.reason(), decision.rule().map(AsRef::as_ref));
        assert_eq!(found, (reason, line), "{who} {action} {secret}");
        assert_eq!(decision.allowed(), reason == Reason::Granted);
    }
}

#[test]
fn only_who_may_read_or_list_learns_that_a_name_is_absent() {
    let policy = example();
    let reader = policy.match_bot(&peer(1001), &Accounts::default());
    let stranger = policy.match_bot(&peer(5), &Accounts::default());
    for (secret, sees) in [
        ("openai/x", true),
        ("lists/x", true),
        ("openai/admin-key", false),
        ("other", false),
    ] {
        assert_eq!(policy.may_see(&reader, &name(secret)), sees, "{secret}");
        assert!(!policy.may_see(&stranger, &name(secret)));
    }
}

#[test]
fn an_empty_policy_and_a_foreign_id_allow_nothing() {
    let policy = Policy::default();
    let root = policy.match_bot(&peer(0), &Accounts::default());
    assert_eq!(root, BotMatch::NoBot { nearest: None });
    let foreign = BotMatch::Bot(BotId(7));
    for who in [root, foreign] {
        assert!(!policy.decide(&who, Action::Read, &name("a")).allowed());
        assert!(!policy.may_see(&who, &name("a")));
    }
}

#[test]
fn the_more_specific_bot_wins_and_a_tie_is_nobody() {
    let policy = compile(Rules {
        routes: vec![],
        bots: vec![
            bot(1, "user", uid(1000), &["r"]),
            bot(2, "glob", unit("a*.service"), &["r"]),
            bot(3, "literal", unit("ab.service"), &["r"]),
            bot(
                4,
                "one",
                Selectors {
                    gid: Some(7),
                    ..Selectors::default()
                },
                &["r"],
            ),
            bot(
                5,
                "two",
                Selectors {
                    gid: Some(8),
                    ..Selectors::default()
                },
                &["r"],
            ),
        ],
        roles: vec![role(9, "r", vec![rule(9, &["**"], &READS)], vec![])],
    });
    let found = |facts: &Facts| match policy.match_bot(facts, &Accounts::default()) {
        BotMatch::Bot(id) => policy.bot(id).unwrap().name.to_string(),
        BotMatch::NoBot { .. } => "nobody".into(),
        BotMatch::Ambiguous(bots) => format!("{} of them", bots.len()),
    };
    let mut facts = peer(1000);
    assert_eq!(found(&facts), "user");
    facts.unit = Some("ac.service".into());
    assert_eq!(found(&facts), "glob");
    facts.unit = Some("ab.service".into());
    assert_eq!(found(&facts), "literal");
    let mut facts = peer(5);
    facts.groups = vec![8];
    assert_eq!(found(&facts), "two");
    facts.groups = vec![8, 7];
    assert_eq!(found(&facts), "2 of them");
    let who = policy.match_bot(&facts, &Accounts::default());
    let decision = policy.decide(&who, Action::Read, &name("a"));
    assert_eq!(decision.reason(), Reason::AmbiguousBot);
}

#[test]
fn the_nearest_bot_is_named_with_what_differs() {
    let both = Selectors {
        uid: Some(7),
        ..unit("b.service")
    };
    let policy = compile(Rules {
        routes: vec![],
        bots: vec![bot(1, "far", uid(1), &[]), bot(2, "near", both, &[])],
        roles: vec![],
    });
    let mut facts = peer(7);
    facts.unit = Some("c.service".into());
    let nearest = |facts: &Facts| match policy.match_bot(facts, &Accounts::default()) {
        BotMatch::NoBot { nearest } => nearest.unwrap(),
        other => panic!("{other:?}"),
    };
    assert_eq!(
        nearest(&facts),
        r#"the nearest bot is "near", but unit = "b.service" (this peer has "c.service")"#
    );
    facts.uid = None;
    assert!(nearest(&facts).contains("no mapping"));
}

#[test]
fn what_the_caller_has_to_look_up() {
    let all = Selectors {
        exe: Some("/bin/b".into()),
        exe_sha256: Some([0; 32]),
        user: Some("u".into()),
        group: Some("g".into()),
        ..unit("b.service")
    };
    let policy = compile(Rules {
        routes: vec![],
        bots: vec![bot(1, "all", all, &[]), bot(2, "uid", uid(1), &[])],
        roles: vec![],
    });
    assert_eq!(policy.exe_paths(), [Path::new("/bin/b")].into());
    assert_eq!(policy.user_names(), ["u"].into());
    assert_eq!(policy.group_names(), ["g"].into());
    assert!(policy.needs_exe_sha256());
    let changeable = policy.changeable(policy.bot_by_name("all").unwrap());
    assert_eq!(
        changeable,
        Changeable {
            exe: true,
            exe_sha256: true,
            cgroup: true
        }
    );
    let fixed = policy.changeable(policy.bot_by_name("uid").unwrap());
    assert_eq!(fixed, Changeable::default());
    assert!(policy.bot_by_name("nobody").is_none());
}

#[test]
fn whoami_shows_what_the_roles_grant() {
    let policy = example();
    let reader = policy.bot_by_name("reader").unwrap();
    assert_eq!(
        policy.grants(reader)[0],
        serde_json::json!({
            "role": "llm", "secrets": ["openai/*"], "actions": ["read", "list", "watch"]
        })
    );
    assert_eq!(policy.grants(reader).len(), 2);
}

#[test]
fn a_bot_that_says_too_little_is_refused() {
    let user_unit = Selectors {
        user_unit: Some(Pattern::parse("a.service").unwrap()),
        ..Selectors::default()
    };
    let gid = Selectors {
        gid: Some(65534),
        ..Selectors::default()
    };
    for (selectors, text) in [
        (Selectors::default(), "matches every peer, give"),
        (unit("*"), "matches every peer by its globs"),
        (user_unit, "has `user_unit` without `user` or `uid`"),
        (uid(61184), "has uid 61184, which systemd gives"),
        (uid(65519), "has uid 65519, which systemd gives"),
        (uid(65534), "has uid 65534, which stands for"),
        (uid(u32::MAX), "has uid 4294967295"),
        (gid, "has gid 65534"),
    ] {
        let rules = Rules {
            routes: vec![],
            bots: vec![bot(3, "b", selectors, &[])],
            roles: vec![],
        };
        let found = errors(rules);
        assert!(
            found[0].starts_with(&format!("k.toml:3: bot \"b\" {text}")),
            "{found:?}"
        );
        assert_eq!(found.len(), 1);
    }
    for selectors in [
        uid(61183),
        uid(65520),
        Selectors {
            uid: Some(61184),
            ..unit("a.service")
        },
    ] {
        let rules = Rules {
            routes: vec![],
            bots: vec![bot(3, "b", selectors, &[])],
            roles: vec![],
        };
        assert!(Policy::compile(rules).is_ok());
    }
}

#[test]
fn rules_that_never_decide_are_refused() {
    let read = [Action::Read];
    for (grants, deny, expected) in [
        (
            vec![rule(2, &["a/b", "a/c"], &READS)],
            vec![rule(3, &["a/*"], &Action::ALL)],
            Some(
                "k.toml:2: this grant of role \"r\" can never allow anything, the deny at k.toml:3",
            ),
        ),
        (
            vec![rule(2, &["a/*"], &READS), rule(4, &["a/b"], &read)],
            vec![],
            Some("k.toml:4: this grant of role \"r\" adds nothing to the one at k.toml:2"),
        ),
        (
            vec![],
            vec![rule(3, &["a"], &read), rule(5, &["a"], &read)],
            Some("k.toml:5: this deny of role \"r\" repeats the one at k.toml:3"),
        ),
        // Part of each is left.
        (
            vec![rule(2, &["a/b", "x"], &READS)],
            vec![rule(3, &["a/*"], &Action::ALL)],
            None,
        ),
        (
            vec![rule(2, &["a/b"], &READS)],
            vec![rule(3, &["a/*"], &read)],
            None,
        ),
        (
            vec![rule(2, &["a/b"], &READS), rule(4, &["a/*"], &READS)],
            vec![],
            None,
        ),
        (
            vec![rule(2, &["a/**"], &READS)],
            vec![rule(3, &["a/*"], &Action::ALL)],
            None,
        ),
    ] {
        let rules = Rules {
            routes: vec![],
            bots: vec![bot(1, "b", uid(1), &["r"])],
            roles: vec![role(1, "r", grants, deny)],
        };
        match expected {
            Some(text) => assert!(errors(rules)[0].starts_with(text)),
            None => assert!(Policy::compile(rules).is_ok()),
        }
    }
}

#[test]
fn a_route_is_used_by_grant_call_and_no_deny_of_its_secret() {
    let calls = |line: usize, texts: &[&str]| {
        let at = |text: &&str| At {
            value: CallPattern::parse(text).unwrap(),
            place: place(line),
        };
        texts.iter().map(at).collect::<Vec<_>>()
    };
    let route = |line: usize, name: &str, secret: &str| RouteInput {
        name: At {
            value: name.to_owned(),
            place: place(line),
        },
        secret: Name::parse(secret).unwrap(),
        allow: calls(line, &["GET /v1/**"]),
        deny: calls(line + 1, &["GET /v1/admin/**"]),
    };
    let of_routes = |line: usize, pattern: &str| RuleInput {
        secrets: vec![],
        routes: vec![Pattern::parse(pattern).unwrap()],
        actions: vec![Action::Use],
        place: place(line),
    };
    let policy = compile(Rules {
        routes: vec![route(1, "pay", "pay/key"), route(3, "root", "pay/root")],
        bots: vec![bot(5, "b", uid(1), &["r"])],
        roles: vec![role(
            6,
            "r",
            vec![of_routes(7, "*")],
            vec![rule(8, &["pay/root"], &Action::ALL)],
        )],
    });
    let who = BotMatch::Bot(policy.bot_by_name("b").unwrap());
    for (name, method, path, reason, line) in [
        ("pay", "GET", "/v1/x", Reason::Granted, "k.toml:7"),
        ("pay", "POST", "/v1/x", Reason::NoGrant, "k.toml:1"),
        ("pay", "GET", "/v1/admin/x", Reason::DenyRule, "k.toml:2"),
        ("root", "GET", "/v1/x", Reason::DenyRule, "k.toml:8"),
        ("gone", "GET", "/v1/x", Reason::NotFound, "k.toml:7"),
    ] {
        let call = Call {
            route: name,
            method,
            path,
        };
        let decision = policy.decide_use(&who, &call);
        assert_eq!(decision.reason(), reason, "{name} {method} {path}");
        assert_eq!(decision.rule().map(AsRef::as_ref), Some(line));
    }
    // The grant of a route is none of its secret.
    let read = policy.decide(&who, Action::Read, &Name::parse("pay/key").unwrap());
    assert_eq!(read.reason(), Reason::NoGrant);
}
