//! What matches, what covers and what meets.

#![allow(clippy::unwrap_used)]

use super::*;
use proptest::prelude::*;

fn pattern(text: &str) -> Pattern {
    Pattern::parse(text).unwrap()
}

/// The rules of the module's first lines, written as plainly as possible.
fn naive(pattern: &[u8], text: &[u8], segment_start: bool) -> bool {
    let rests = |limit: usize| (0..=limit).map(|n| &text[n..]);
    match pattern {
        [] => text.is_empty(),
        [b'*', b'*', b'/', tail @ ..] if segment_start => {
            naive(tail, text, true)
                || (0..text.len()).any(|n| text[n] == b'/' && naive(tail, &text[n + 1..], true))
        }
        [b'*', b'*', tail @ ..] => rests(text.len()).any(|text| naive(tail, text, false)),
        [b'*', tail @ ..] => {
            let segment = text.iter().take_while(|byte| **byte != b'/').count();
            rests(segment).any(|text| naive(tail, text, false))
        }
        [byte, tail @ ..] => text.first() == Some(byte) && naive(tail, &text[1..], *byte == b'/'),
    }
}

#[test]
fn wildcards_stay_where_they_belong() {
    for (text, yes, no) in [
        (
            "openai/*",
            vec!["openai/key", "openai/"],
            vec!["openai", "openai/a/b", "xopenai/a"],
        ),
        (
            "openai/**",
            vec!["openai/a", "openai/a/b"],
            vec!["openai", "openaix/a"],
        ),
        ("**", vec!["a", "a/b", ""], vec![]),
        ("*", vec!["a", ""], vec!["a/b"]),
        (
            "**/key",
            vec!["key", "a/key", "a/b/key"],
            vec!["akey", "a/xkey", "key/a"],
        ),
        (
            "a/**/b",
            vec!["a/b", "a/x/b", "a/x/y/b"],
            vec!["ab", "a/xb", "a/b/c"],
        ),
        ("a/*/b", vec!["a/x/b", "a//b"], vec!["a/b", "a/x/y/b"]),
        (
            "bot@*.service",
            vec!["bot@1.service"],
            vec!["bot.service", "bot@1.scope"],
        ),
        ("a**b", vec!["ab", "a/x/b"], vec!["b", "a/bc"]),
        ("a*c*e", vec!["abcde", "ace", "acece"], vec!["abcd", "a/ce"]),
        ("exact", vec!["exact"], vec!["exac", "exactly"]),
    ] {
        for good in yes {
            assert!(pattern(text).matches(good), "{text} {good}");
        }
        for bad in no {
            assert!(!pattern(text).matches(bad), "{text} {bad}");
        }
    }
}

#[test]
fn a_pattern_that_would_backtrack_for_ever_ends() {
    let text = "a".repeat(MAX_NAME);
    assert!(!pattern("a*a*a*a*b").matches(&text));
    assert!(!pattern(&"a*".repeat(250)).matches(&format!("{text}/")));
    assert!(!pattern(&format!("{}b", "**a*".repeat(100))).matches(&text));
}

#[test]
fn limits_and_names() {
    assert_eq!(Pattern::parse(""), Err(PatternError::Empty));
    assert!(pattern(&"*".repeat(MAX_PATTERN)).matches("x"));
    assert_eq!(Pattern::parse(&"*".repeat(513)), Err(PatternError::TooLong));
    assert_eq!(Pattern::of_names("a#f"), Err(PatternError::Field));
    for bad in ["/a", "a/", "a//b", "a/../b", "a b", "./a", "a?", "[a]"] {
        assert_eq!(Pattern::of_names(bad), Err(PatternError::NotAName), "{bad}");
    }
    for good in ["**", "a/*", "a.b/c-*", "**/k"] {
        assert!(Pattern::of_names(good).is_ok(), "{good}");
    }
}

#[test]
fn what_covers_what() {
    for (wide, narrow, covers) in [
        ("**", "a/*/b", true),
        ("a/**", "a/*", true),
        ("a/*", "a/**", false),
        ("a/*", "a/b", true),
        ("a/b", "a/*", false),
        ("a/*", "a/b*", true),
        ("**/key", "**/x/key", true),
        ("**/k*", "**/key", true),
        ("**/x", "**x", false),
        ("**x", "**/x", true),
        ("a/**/b", "a/b", true),
        ("*", "**", false),
        ("a/**", "a/**", true),
    ] {
        assert_eq!(
            pattern(wide).covers(&pattern(narrow)),
            covers,
            "{wide} {narrow}"
        );
    }
}

proptest! {
    #[test]
    fn matching_agrees_with_the_naive_rules(p in "[ab/*]{1,8}", t in "[ab/]{0,8}") {
        // Three stars in a row mean two, which the reference does not know.
        let p = (0..p.len()).fold(p, |p, _| p.replace("***", "**"));
        prop_assert_eq!(
            pattern(&p).matches(&t),
            naive(p.as_bytes(), t.as_bytes(), true),
            "{} {}", p, t
        );
    }

    #[test]
    fn covering_and_meeting_agree_with_matching(
        a in "[ab/*]{1,6}", b in "[ab/*]{1,6}", t in "[abx/]{0,6}"
    ) {
        let (a, b) = (pattern(&a), pattern(&b));
        if a.covers(&b) && b.matches(&t) {
            prop_assert!(a.matches(&t));
        }
        if a.matches(&t) && b.matches(&t) {
            prop_assert!(a.meets(&b) && b.meets(&a));
        }
        prop_assert!(a.covers(&a) && a.meets(&a));
    }

    #[test]
    fn what_meets_has_a_text_that_matches_both(a in "[ab/*]{1,4}", b in "[ab/*]{1,4}") {
        let (a, b) = (pattern(&a), pattern(&b));
        let mut texts = vec![String::new()];
        for _ in 0..6 {
            let longer = |text: &String| ["a", "b", "/"].map(|end| text.clone() + end);
            let found = texts.iter().any(|text| a.matches(text) && b.matches(text));
            if found {
                break;
            }
            texts = texts.iter().flat_map(longer).collect();
        }
        let found = texts.iter().any(|text| a.matches(text) && b.matches(text));
        prop_assert_eq!(a.meets(&b), found, "{} {}", a, b);
    }

    #[test]
    fn any_text_is_a_pattern_or_an_error(p in ".{0,20}", t in ".{0,20}") {
        if let Ok(p) = Pattern::parse(&p) {
            let _ = p.matches(&t);
        }
    }
}
