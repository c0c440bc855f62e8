//! Which selectors hold, and which of two bots is the more specific.

#![allow(clippy::unwrap_used)]

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
