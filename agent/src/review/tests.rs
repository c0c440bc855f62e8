//! Rows, sums and escapes over lines that a test can read.

use super::tally::Tally;
use super::*;

fn line(seq: u64, time: &str, rest: &str) -> String {
    format!("{{\"seq\":{seq},\"time\":\"{time}\",\"mono\":1.0,{rest},\"prev\":\"\",\"hash\":\"\"}}")
}

fn read(seq: u64, time: &str, bot: &str, secret: &str, decision: &str) -> String {
    line(
        seq,
        time,
        &format!(
            "\"event\":\"secret.read\",\"decision\":\"{decision}\",\"reason\":\"granted\",\"rule\":null,\
             \"secret\":\"{secret}\",\"version\":null,\"bot\":\"{bot}\",\"roles\":[],\"surface\":\"native\",\
             \"peer\":null,\"request_id\":null"
        ),
    )
}

fn ask() -> Ask<'static> {
    Ask {
        dir: Path::new("/nowhere"),
        since: None,
        now: humantime::parse_rfc3339("2026-03-01T00:00:00Z").unwrap(),
        rotate_within: Duration::from_secs(10 * 24 * 60 * 60),
        policy: None,
        honeytokens: &[],
    }
}

/// Counted by two workers, each some of the lines.
fn counted(lines: &[String], from: &str) -> Review {
    let half = |which: usize| {
        let mut tally = Tally::default();
        for (_, line) in lines.iter().enumerate().filter(|(at, _)| at % 2 == which) {
            tally.count(line.as_bytes(), from);
        }
        tally
    };
    half(0).merge(half(1)).into_review(&BTreeMap::new(), &ask())
}

#[test]
fn what_workers_counted_adds_up() {
    let lines = [
        read(1, "2026-02-01T10:00:00.000001Z", "a", "x", "allow"),
        read(2, "2026-02-02T11:00:00.000001Z", "a", "x", "allow"),
        read(3, "2026-02-02T11:00:00.000002Z", "a", "y", "deny"),
        read(4, "2026-02-02T11:59:00.000003Z", "a", "x", "allow"),
    ];
    let review = counted(&lines, "");
    let [access] = &review.reads[..] else {
        panic!("{:?}", review.reads)
    };
    assert_eq!(access.reads, 3);
    assert_eq!(access.first, "2026-02-01T10:00:00.000001Z");
    assert_eq!(access.last, "2026-02-02T11:59:00.000003Z");
    assert_eq!((review.totals.allowed, review.totals.denied), (3, 1));
    assert_eq!(
        (review.first.unwrap().seq, review.last.unwrap().seq),
        (1, 4)
    );
    let hours = &review.heat["a"];
    // 1 February 2026 was a Sunday.
    assert_eq!((hours[6 * 24 + 10], hours[11]), (1, 2));
    assert_eq!(hours.iter().sum::<u64>(), 3);
    let timeline = &review.timeline;
    assert_eq!(timeline.len(), 26, "hours without a request are there, too");
    assert_eq!(
        (timeline[0].begins.as_str(), timeline[0].allowed),
        ("2026-02-01T10", 1)
    );
    assert_eq!((timeline[25].allowed, timeline[25].denied), (2, 1));
}

#[test]
fn what_a_hostile_flood_counts_ends_at_the_most_and_watches_are_no_reads() {
    let floods = format!(
        ",\"floods\":[{{\"count\":{0}}},{{\"count\":{0}}}],\"prev\"",
        u64::MAX
    );
    let flood = |seq| {
        read(seq, "2026-02-01T10:00:00.000001Z", "a", "x", "info")
            .replace("secret.read", "alert.flood")
            .replace(",\"prev\"", &floods)
    };
    let watch = read(3, "2026-02-01T10:00:00.000001Z", "a", "x", "allow")
        .replace("secret.read", "secret.watch");
    let review = counted(&[flood(1), flood(2), watch], "");
    assert_eq!(
        (review.totals.flooded, review.timeline[0].denied),
        (u64::MAX, u64::MAX)
    );
    assert!(!html(&review).is_empty() && !text(&review).is_empty());
    assert_eq!((review.reads[0].watches, review.heat.len()), (1, 0));
}

#[test]
fn a_long_time_is_shown_by_day_and_a_clock_set_wrong_fills_no_memory() {
    let lines = [
        read(1, "2026-01-01T10:00:00.000001Z", "a", "x", "allow"),
        read(2, "2026-01-31T10:00:00.000001Z", "a", "x", "allow"),
    ];
    let timeline = counted(&lines, "").timeline;
    assert_eq!(
        (timeline.len(), timeline[30].begins.as_str()),
        (31, "2026-01-31")
    );
    let wrong = [
        read(1, "1970-01-01T00:00:00.000001Z", "a", "x", "allow"),
        read(2, "9999-12-31T00:00:00.000001Z", "a", "x", "allow"),
    ];
    assert!(counted(&wrong, "").timeline.len() < 5_000);
}

#[test]
fn a_rotation_before_the_time_that_is_asked_for_counts() {
    let rotated = |seq, time, secret| {
        read(seq, time, "a", secret, "info").replace("secret.read", "secret.rotated")
    };
    let lines = [
        rotated(1, "2026-01-01T00:00:00.000001Z", "old"),
        rotated(2, "2026-02-25T00:00:00.000001Z", "new"),
        read(3, "2026-02-27T00:00:00.000001Z", "a", "old", "allow"),
        read(4, "2026-02-27T00:00:00.000001Z", "a", "new", "allow"),
        read(5, "2026-02-27T00:00:00.000001Z", "a", "never", "allow"),
    ];
    let review = counted(&lines, "2026-02-26");
    assert_eq!(review.totals.records, 3);
    let found: Vec<_> = review
        .unrotated
        .iter()
        .map(|one| (&*one.secret, one.days))
        .collect();
    assert_eq!(found, [("never", 58), ("old", 58)]);
    assert_eq!(review.unrotated[0].rotated, None);
}

#[test]
fn names_that_a_peer_makes_up_are_bounded_and_counted() {
    let mut tally = Tally::default();
    for seq in 0..60_000 {
        let line = read(
            seq,
            "2026-02-27T00:00:00.000001Z",
            "a",
            &format!("n{seq}"),
            "deny",
        );
        tally.count(line.as_bytes(), "");
    }
    let review = tally.into_review(&BTreeMap::new(), &ask());
    assert_eq!(review.denied.len(), ROWS);
    let shown: u64 = review.denied.iter().map(|denied| denied.count).sum();
    assert_eq!(shown + review.totals.left_out, 60_000);
}

#[test]
fn an_alert_that_points_to_one_record_many_times_shows_ten() {
    let alert = read(2, "2026-02-27T00:00:00.000001Z", "a", "x", "info")
        .replace("secret.read", "alert.name_scan")
        .replace(
            ",\"prev\"",
            &format!(",\"evidence\":[{}1],\"prev\"", "1,".repeat(99)),
        );
    let mut tally = Tally::default();
    tally.count(alert.as_bytes(), "");
    let happened = Happened {
        seq: 1,
        time: String::new(),
        says: String::new(),
    };
    let review = tally.into_review(&BTreeMap::from([(1, happened)]), &ask());
    let [alert] = &review.alerts[..] else {
        panic!("{:?}", review.alerts)
    };
    assert_eq!((alert.evidence.len(), alert.evidence_count), (10, 100));
}

#[test]
fn shades_begin_with_one_and_end_with_the_most() {
    let shades = [0, 1, 50, 99, 100].map(|count| shade(count, 100, 6));
    assert_eq!(shades, [0, 1, 3, 5, 5]);
    assert_eq!(shade(0, 0, 6), 0);
}

#[test]
fn a_hostile_name_is_text_in_html() {
    let name = r#"<img src=x>\"'&\u001b[2J"#;
    let lines = [read(1, "2026-02-27T00:00:00.000001Z", name, name, "allow")];
    let page = html(&counted(&lines, ""));
    assert!(page.contains("&lt;img src=x&gt;&quot;&#39;&amp;\\u{1b}[2J"));
    assert!(!page.contains("<img") && !page.contains('\x1b'));
    assert!(!text(&counted(&lines, "")).contains('\x1b'));
}
