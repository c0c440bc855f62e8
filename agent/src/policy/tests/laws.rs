//! What holds for any policy: chance makes grants and denials.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
struct Draft {
    grants: Vec<(String, Vec<Action>)>,
    deny: Vec<(String, Vec<Action>)>,
}

fn drafts() -> impl Strategy<Value = Draft> {
    let actions = proptest::sample::subsequence(Action::ALL.to_vec(), 1..=5);
    let rules = || {
        proptest::collection::vec(
            ("(a|b|\\*|\\*\\*)(/(a|b|\\*|\\*\\*)){0,2}", actions.clone()),
            0..4,
        )
    };
    (rules(), rules()).prop_map(|(grants, deny)| Draft { grants, deny })
}

/// Without `compile`, which would refuse most of what chance makes.
fn built(draft: &Draft) -> Policy {
    let rules = |from: &[(String, Vec<Action>)]| -> Vec<Rule> {
        let build = |(pattern, actions): &(String, Vec<Action>)| Rule {
            secrets: vec![Pattern::of_names(pattern).unwrap()],
            routes: vec![],
            actions: actions.clone(),
            place: "k.toml:1".into(),
        };
        from.iter().map(build).collect()
    };
    Policy {
        bots: vec![Bot {
            name: "b".into(),
            roles: vec!["r".into()],
            place: "k.toml:1".into(),
            credentials: None,
            selectors: uid(1),
            role_ids: vec![0],
        }],
        roles: vec![Role {
            name: "r".into(),
            grants: rules(&draft.grants),
            deny: rules(&draft.deny),
        }],
        routes: vec![],
    }
}

proptest! {
    #[test]
    fn nothing_is_allowed_without_a_grant_or_against_a_deny(
        draft in drafts(), secret in "(a|b)(/(a|b)){0,3}", action in proptest::sample::select(&Action::ALL)
    ) {
        let secret = name(&secret);
        let hit = |rules: &[(String, Vec<Action>)]| rules.iter().any(|(pattern, actions)| {
            actions.contains(&action) && Pattern::of_names(pattern).unwrap().matches(secret.as_str())
        });
        let decision = built(&draft).decide(&BotMatch::Bot(BotId(0)), action, &secret);
        prop_assert_eq!(decision.allowed(), hit(&draft.grants) && !hit(&draft.deny));
    }

    #[test]
    fn one_more_deny_never_allows_more(
        draft in drafts(), more in drafts(), secret in "(a|b)(/(a|b)){0,3}",
        action in proptest::sample::select(&Action::ALL)
    ) {
        let secret = name(&secret);
        let who = BotMatch::Bot(BotId(0));
        let before = built(&draft).decide(&who, action, &secret);
        let mut stricter = draft;
        stricter.deny.extend(more.deny);
        let after = built(&stricter).decide(&who, action, &secret);
        prop_assert!(before.allowed() || !after.allowed());
    }

    #[test]
    fn what_is_refused_as_unreachable_changes_no_decision(
        draft in drafts(), secret in "(a|b)(/(a|b)){0,3}", action in proptest::sample::select(&Action::ALL)
    ) {
        let inputs = |rules: &[(String, Vec<Action>)]| -> Vec<RuleInput> {
            rules.iter().enumerate().map(|(line, (p, a))| rule(line + 1, &[p], a)).collect()
        };
        let compiled = Policy::compile(Rules {
            routes: vec![],
            bots: vec![bot(1, "b", uid(1), &["r"])],
            roles: vec![role(1, "r", inputs(&draft.grants), vec![])],
        });
        if let Err(errors) = compiled {
            let mut less = draft.clone();
            let mut line = 0;
            less.grants.retain(|_| {
                line += 1;
                errors.iter().all(|error| error.place.line != line)
            });
            let who = BotMatch::Bot(BotId(0));
            let secret = name(&secret);
            prop_assert_eq!(
                built(&draft).decide(&who, action, &secret).allowed(),
                built(&less).decide(&who, action, &secret).allowed()
            );
        }
    }
}
