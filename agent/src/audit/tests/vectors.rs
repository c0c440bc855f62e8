//! The test vectors of docs/audit-format.md: what is written, and what is found in files that were changed.

use super::*;
use std::time::UNIX_EPOCH;

const GOOD: &str = include_str!("../../../../tests/vectors/audit-good.jsonl");
const BAD: [(&str, u64, Why); 4] = [
    (
        include_str!("../../../../tests/vectors/audit-edited.jsonl"),
        2,
        Why::Edited,
    ),
    (
        include_str!("../../../../tests/vectors/audit-removed.jsonl"),
        3,
        Why::Removed { to: 3 },
    ),
    (
        include_str!("../../../../tests/vectors/audit-swapped.jsonl"),
        2,
        Why::Swapped,
    ),
    (
        include_str!("../../../../tests/vectors/audit-rewritten.jsonl"),
        2,
        Why::Rewritten,
    ),
];

/// Renders `entry` as the record after `head`, at a fixed time.
fn next(out: &mut String, head: &mut Head, entry: &Entry<'_>) {
    let since = Duration::from_micros(1_767_323_045_000_000 + head.seq * 1_500_001);
    let now = Now {
        wall: UNIX_EPOCH + since,
        mono: Duration::from_micros(86_400_000_000 + head.seq * 1_500_001),
    };
    let mut line = Vec::new();
    let hash = record(&mut line, head, entry, &mut Clock::new(), now);
    out.push_str(&String::from_utf8(line).unwrap());
    *head = Head {
        seq: head.seq + 1,
        hash,
    };
}

fn vector() -> (String, Head) {
    let (mut out, mut head) = (String::new(), Head::START);
    let members = extra(&[("agent_version", "0.1.0".into())]);
    next(
        &mut out,
        &mut head,
        &Entry {
            extra: Some(&members),
            ..Entry::of(Event::AgentStarted)
        },
    );
    let bot = who();
    next(&mut out, &mut head, &read(&bot, "openai/api-key"));
    let odd = Who::new(&Facts {
        pid: Some(77),
        uid: Some(1002),
        gid: Some(1002),
        exe: Some(b"/tmp/a \"b\"\\c\xff\n\xc3\xa9"),
        ..Facts::default()
    });
    let denied = Entry {
        decision: Verdict::Deny,
        reason: Some("no_bot"),
        rule: None,
        version: None,
        extra: Some(r#""message":"nearest is support-bot: user is mallory, not support""#),
        ..read(&odd, "openai/api-key")
    };
    next(&mut out, &mut head, &denied);
    next(&mut out, &mut head, &Entry::of(Event::AgentStopped));
    (out, head)
}

fn check(text: &str, pinned: Option<Head>) -> Report {
    let mut verifier = Verifier::new(pinned);
    verifier.segment("audit-00000000000000000001.jsonl", 1, None);
    text.lines().for_each(|line| verifier.line(line.as_bytes()));
    verifier.finish()
}

#[test]
fn the_vector_is_what_is_written_and_verifies() {
    let (written, head) = vector();
    assert_eq!(written, GOOD);
    let report = check(GOOD, Some(head));
    assert_eq!((report.bad, report.head), (vec![], Some(head)));
    let odd = Record::parse(GOOD.lines().nth(2).unwrap().as_bytes()).unwrap();
    assert_eq!(
        unescape(&odd.peer.unwrap().exe.unwrap()),
        b"/tmp/a \"b\"\\c\xff\n\xc3\xa9"
    );
}

#[test]
fn the_changed_vectors_are_named() {
    for (text, seq, why) in BAD {
        let bad = check(text, None).bad.remove(0);
        assert_eq!((bad.seq, bad.why), (seq, why));
    }
    let (_, head) = vector();
    let cut: String = GOOD.split_inclusive('\n').take(3).collect();
    assert_eq!(check(&cut, Some(head)).bad[0].why, Why::CutTail);
    assert!(check(&cut, None).is_whole(), "only a pinned head shows it");
}
