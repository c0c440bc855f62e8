//! Against systemd's own answers, and what must hold of every expression in every zone.

#![allow(clippy::unwrap_used)]

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;

use super::*;

fn calendar(text: &str) -> Calendar {
    Calendar::parse(text, &TimeZone::UTC).unwrap()
}

fn moment(text: &str) -> Timestamp {
    text.parse().unwrap()
}

#[test]
fn it_is_what_systemd_says() {
    let vectors = include_str!("../../../tests/vectors/calendar.txt");
    let mut seen = 0;
    for line in vectors.lines().filter(|line| !line.starts_with('#')) {
        let parts: Vec<&str> = line.split(" | ").collect();
        let [text, after, moments] = parts[..] else {
            panic!("{line}")
        };
        let mut last = moment(after);
        let found = Calendar::parse(text, &TimeZone::UTC).unwrap();
        for expected in moments.split(' ').filter(|word| *word != "never") {
            last = found.next(last).unwrap();
            assert_eq!(last, moment(expected), "{line}");
        }
        if moments == "never" {
            assert_eq!(found.next(last), None, "{line}");
        }
        seen += 1;
    }
    assert!(seen > 100);
}

#[test]
fn a_time_that_the_clock_skips_is_later_and_one_that_comes_twice_counts_once() {
    let daily = calendar("*-*-* 02:30 Europe/Berlin");
    let from = |start: &str, count| {
        let start = Some(moment(start));
        let moments = std::iter::successors(start, |moment| daily.next(*moment));
        let texts = moments.skip(1).take(count).map(|moment| moment.to_string());
        texts.collect::<Vec<_>>()
    };
    assert_eq!(
        from("2026-03-28T00:00:00Z", 3),
        [
            "2026-03-28T01:30:00Z",
            "2026-03-29T01:30:00Z",
            "2026-03-30T00:30:00Z"
        ]
    );
    // Asked in between: 02:30 was skipped, and is still to come as 03:30.
    assert_eq!(from("2026-03-29T01:10:00Z", 1), ["2026-03-29T01:30:00Z"]);
    assert_eq!(
        from("2026-10-24T12:00:00Z", 2),
        ["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"]
    );
}

#[test]
fn what_is_no_expression_is_told() {
    let local = TimeZone::UTC;
    let why = |text| Calendar::parse(text, &local).unwrap_err().to_string();
    assert_eq!(why("Mon *-*-* 25:00"), "25 is out of range");
    assert_eq!(why("Mon *-*-* 5..3:00"), "5..3 is out of range");
    assert_eq!(why("Fri..Mon"), "Fri..Mon is out of range");
    assert_eq!(why("*:0/0"), "0/0 is out of range");
    assert_eq!(
        why("Mon *-*-* 03:00 Mars/Olympus"),
        r#"there is no time zone "Mars/Olympus""#
    );
    assert_eq!(why("*-02-30"), "no day is ever like this");
    for odd in [
        "",
        " ",
        "Mox",
        "*-*~1",
        "26-1-1-1",
        "1:2:3:4",
        "*-*-* 1:2 3:4",
        "weekly daily",
        "-1:00",
        "1.5:00",
        "*:*/5",
        "Mon,,Tue",
        "30d",
    ] {
        assert!(Calendar::parse(odd, &local).is_err(), "{odd}");
    }
}

#[test]
fn the_shortest_gap_is_found() {
    let gap = |text: &str| {
        let hours = calendar(text).shortest_gap(moment("2026-01-01T00:00:00Z"));
        hours.map(|gap| gap.as_secs() / 3600)
    };
    assert_eq!(gap("Mon *-*-* 03:00"), Some(168));
    assert_eq!(gap("Mon,Tue *-*-* 03:00"), Some(24));
    assert_eq!(gap("*-*-* 03:00 Europe/Berlin"), Some(23));
    assert_eq!(gap("2026-05-05"), None);
}

const ZONES: [&str; 6] = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",
    "Pacific/Apia",
    "Asia/Kathmandu",
];

fn expression() -> impl Strategy<Value = String> {
    let weekdays = prop::sample::select(vec!["", "Mon ", "Fri..Sun ", "Tue,Thu "]);
    let days = prop::sample::select(vec!["*-*-*", "*-*-1/5", "*-3,10-*", "*-*-29..31"]);
    let minutes = prop::sample::select(vec!["*", "0", "7/20", "30..45"]);
    let hours = prop::sample::select(vec!["*", "2", "1..3", "0/7"]);
    let zone = prop::sample::select(ZONES.to_vec());
    (weekdays, days, hours, minutes, zone).prop_map(|(weekdays, days, hours, minutes, zone)| {
        format!("{weekdays}{days} {hours}:{minutes} {zone}")
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Moments go up, and no moment is missed from wherever one asks.
    #[test]
    fn moments_go_up_and_none_is_missed(text in expression(), start in 1_700_000_000_i64..1_900_000_000, ask in 0.0_f64..1.0) {
        let calendar = calendar(&text);
        let start = Timestamp::from_second(start).unwrap();
        let Some(first) = calendar.next(start) else { return Ok(()) };
        prop_assert!(first > start);
        let second = calendar.next(first).unwrap();
        prop_assert!(second > first);
        #[allow(clippy::cast_possible_truncation)]
        let between = (second.duration_since(first).as_secs() as f64 * ask) as i64;
        let between = first + SignedDuration::from_secs(between);
        prop_assert_eq!(calendar.next(between), Some(second), "from {}", between);
        prop_assert_eq!(calendar.next(start + SignedDuration::from_nanos(1)).map(|m| m == first || start + SignedDuration::from_nanos(1) == first), Some(true));
    }

    #[test]
    fn no_text_makes_it_panic(text in "[A-Za-z0-9*,./: -]{0,30}") {
        if let Ok(calendar) = Calendar::parse(&text, &TimeZone::UTC) {
            let _ = calendar.next(Timestamp::UNIX_EPOCH);
        }
    }
}
