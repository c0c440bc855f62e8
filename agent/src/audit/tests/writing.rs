//! Keeping, switching segments, restarting, expiring.

use super::*;
use proptest::prelude::*;
use std::os::unix::fs::PermissionsExt;

#[test]
fn records_are_chained_over_segments_and_restarts() {
    let dir = Dir::new();
    let log = open(&dir);
    assert_eq!(keep(&log, 100), 100);
    let head = log.head();
    drop(log);
    let log = open(&dir);
    assert_eq!(log.head(), head);
    assert_eq!(keep(&log, 100), 200);
    wait("compressing", || {
        segments(&dir.0)
            .unwrap()
            .iter()
            .filter(|file| file.kind == Kind::Plain)
            .count()
            == 1
    });
    log.close();
    assert!(
        log.keep(&Entry::of(Event::AgentStarted)).is_err(),
        "it is closed"
    );
    let records = whole(&dir, log.head());
    assert_eq!(records.len(), 200);
    assert_eq!(records[0].secret.as_deref(), Some("app/0"));
    assert_eq!(records[0].roles, ["llm-caller", "reader"]);
    assert_eq!(
        records[0].peer.as_ref().unwrap().exe.as_deref(),
        Some("/usr/bin/bot")
    );
    let files = segments(&dir.0).unwrap();
    assert!(files.len() > 3, "{files:?}");
    for file in files {
        let mode = fs::metadata(&file.path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
    }
}

#[test]
fn written_record_by_record_is_the_same_log() {
    let dir = Dir::new();
    let written = Settings {
        mapped: false,
        ..settings(&dir.0)
    };
    let (log, _) = Log::open(written.clone()).unwrap();
    assert!(!log.stats().mapped);
    keep(&log, 100);
    // Its own writes are no one else's.
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(keep(&log, 1), 101);
    log.close();
    whole(&dir, log.head());
    drop(log);
    let log = open(&dir);
    assert_eq!(keep(&log, 1), 102);
    log.close();
    assert_eq!(whole(&dir, log.head()).len(), 102);
}

#[test]
fn sync_always_is_on_disk_before_it_returns() {
    let dir = Dir::new();
    let always = Settings {
        sync: Sync::Always,
        ..settings(&dir.0)
    };
    let (log, _) = Log::open(always).unwrap();
    for _ in 0..100 {
        let seq = keep(&log, 1);
        assert!(log.stats().synced >= seq);
    }
}

#[test]
fn what_is_kept_is_synced_within_a_second() {
    let dir = Dir::new();
    let log = open(&dir);
    let seq = keep(&log, 10);
    wait("the sync", || log.stats().synced >= seq);
    assert!(log.stats().syncs < 5, "and not once a record");
}

#[test]
fn a_second_daemon_is_refused() {
    let dir = Dir::new();
    let _log = open(&dir);
    assert!(matches!(
        Log::open(settings(&dir.0)),
        Err(AuditError::Locked(_))
    ));
}

#[test]
fn many_threads_leave_no_gap() {
    let dir = Dir::new();
    let log = open(&dir);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| keep(&log, 250));
        }
    });
    log.close();
    assert_eq!(whole(&dir, log.head()).len(), 1000);
}

#[test]
fn the_oldest_segments_go_first_and_are_named() {
    let dir = Dir::new();
    let short = Settings {
        keep: 48 << 10,
        ..settings(&dir.0)
    };
    let (log, _) = Log::open(short).unwrap();
    for _ in 0..20 {
        keep(&log, 30);
        std::thread::sleep(Duration::from_millis(10));
    }
    wait("expiring", || segments(&dir.0).unwrap()[0].first > 300);
    wait("tidying", || log.stats().bytes <= 48 << 10);
    log.close();
    let expired = events(&dir, "audit.expired");
    let first = segments(&dir.0).unwrap()[0].first;
    assert!(
        expired
            .iter()
            .any(|record| record.extra()["last_seq"] == first - 1)
    );
    assert!(
        !events(&dir, "alert.audit_short").is_empty(),
        "they were younger than keep_for"
    );
    whole(&dir, log.head());
    // Without that record the log would begin too late.
    let report = verify(&dir.0, None).unwrap();
    assert_eq!(report.first, Some(first));
}

#[test]
fn old_segments_expire_without_an_alert() {
    let dir = Dir::new();
    let short = Settings {
        keep_for: Duration::ZERO,
        ..settings(&dir.0)
    };
    let (log, _) = Log::open(short).unwrap();
    keep(&log, 100);
    wait("expiring", || segments(&dir.0).unwrap()[0].first > 1);
    log.close();
    assert!(events(&dir, "alert.*").is_empty());
    whole(&dir, log.head());
}

#[test]
fn a_flood_of_denials_is_counted_and_told() {
    let dir = Dir::new();
    let log = open(&dir);
    let who = who();
    let denial = Entry {
        decision: Verdict::Deny,
        reason: Some("no_grant"),
        ..read(&who, "app/db")
    };
    let kept: Vec<_> = (0..5000).map(|_| log.keep(&denial).unwrap()).collect();
    let recorded = kept
        .iter()
        .filter(|receipt| receipt.seq().is_some())
        .count() as u64;
    assert!((200..2000).contains(&recorded), "{recorded}");
    let allowed = log.keep(&read(&who, "app/db")).unwrap();
    assert!(allowed.seq().is_some(), "reads are never counted away");
    log.close();
    whole(&dir, log.head());
    let counted: u64 = events(&dir, "alert.flood")
        .iter()
        .map(|record| record.extra()["floods"][0]["count"].as_u64().unwrap())
        .sum();
    assert_eq!(counted + recorded, 5000);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_bytes_come_back(
        exe in any::<Vec<u8>>(), rule in any::<String>(), secret in any::<String>(), unit in any::<String>()
    ) {
        let who = Who::new(&Facts { exe: Some(&exe), unit: Some(&unit), ..Facts::default() });
        let entry = Entry { rule: Some(&rule), ..read(&who, &secret) };
        let mut line = Vec::new();
        record(&mut line, &Head::START, &entry, &mut Clock::new(), Now::read());
        prop_assert_eq!(line.pop(), Some(b'\n'));
        prop_assert!(!line.contains(&b'\n') && !line.contains(&0));
        prop_assert!(Link::read(&line).unwrap().follows(&Head::START));
        let record = Record::parse(&line).unwrap();
        let peer = record.peer.as_ref().unwrap();
        prop_assert_eq!(unescape(peer.exe.as_ref().unwrap()), exe.clone());
        prop_assert_eq!(peer.unit.as_ref(), Some(&unit));
        prop_assert_eq!(record.secret.as_ref(), Some(&secret));
        prop_assert_eq!(record.rule.as_ref(), Some(&rule));

        let mut datagram = Vec::new();
        super::super::journald::encode(&mut datagram, &record, None);
        let fields = super::super::journald::tests::decode(&datagram);
        let get = |name: &str| fields.iter().find(|(key, _)| key == name).unwrap().1.clone();
        prop_assert_eq!(get("KEYHATCH_SECRET"), secret.into_bytes());
        prop_assert_eq!(get("KEYHATCH_RULE"), rule.into_bytes());
        let text = String::from_utf8(get("KEYHATCH_PEER_EXE")).unwrap();
        prop_assert_eq!(unescape(&text), exe);
    }
}
