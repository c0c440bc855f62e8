//! Habits as they are learnt, and what is unusual by them.
#![allow(clippy::unwrap_used)]

use super::*;

/// A Monday.
const START: u64 = 20_003 * DAY;
const LEARNING: u64 = 14 * DAY;

#[derive(Default)]
struct Bench(Habits);

impl Bench {
    /// What is unusual about a read of `secret` by `bot` at this time.
    fn read(&mut self, bot: &str, secret: &str, now: u64) -> Vec<Unusual> {
        self.run(bot, secret, now, None)
    }

    /// The same by a program that is seen.
    fn run(&mut self, bot: &str, secret: &str, now: u64, exe: Option<&str>) -> Vec<Unusual> {
        self.0.saw(&read(bot, secret, now, exe), LEARNING).1
    }
}

fn read<'a>(bot: &'a str, secret: &'a str, now: u64, exe: Option<&'a str>) -> Read<'a> {
    Read {
        bot,
        secret,
        exe,
        now,
        seq: Some(7),
    }
}

#[test]
fn a_secret_is_news_once_the_bot_has_been_watched_and_only_the_first_time() {
    let mut all = Bench::default();
    assert_eq!(all.read("bot", "a", START), []);
    assert_eq!(all.read("bot", "b", START + LEARNING - 1), []);
    assert_eq!(all.read("bot", "c", START + LEARNING), [Unusual::FirstRead]);
    assert_eq!(all.read("bot", "c", START + LEARNING), []);
    assert_eq!(all.read("bot", "b", START + LEARNING), []);
    assert_eq!(all.read("new", "c", START + LEARNING), [], "another bot");
}

#[test]
fn a_program_is_news_once_programs_have_been_seen_for_the_learning_time() {
    let mut all = Bench::default();
    assert_eq!(all.read("bot", "a", START), []);
    let later = START + LEARNING;
    assert_eq!(all.run("bot", "a", later, Some("x")), [], "the first seen");
    assert_eq!(all.run("bot", "a", later + 1, Some("y")), []);
    let later = later + LEARNING;
    for known in ["x", "y", "x"] {
        assert_eq!(all.run("bot", "a", later, Some(known)), []);
    }
    assert_eq!(all.run("bot", "a", later, Some("z")), [Unusual::Program]);
    assert_eq!(all.run("bot", "a", later, Some("z")), []);
    assert_eq!(all.read("bot", "a", later), [], "not seen");
}

#[test]
fn an_odd_hour_is_told_of_once_for_all_secrets() {
    let mut all = Bench::default();
    for day in 0..20 {
        all.read("bot", "a", START + day * DAY + 3 * HOUR);
        all.read("bot", "b", START + day * DAY + 3 * HOUR);
    }
    let odd = START + 20 * DAY + 14 * HOUR;
    assert_eq!(all.read("bot", "a", odd), [Unusual::Hour]);
    assert_eq!(all.read("bot", "b", odd + 60), []);
    assert_eq!(all.read("bot", "b", odd + 4 * HOUR), [Unusual::Hour]);
}

#[test]
fn reads_far_above_the_habit_are_told_of_as_they_come_on_the_short_way_too() {
    let mut all = Bench::default();
    for slot in 0..20 * DAY / SLOT {
        all.read("bot", "a", START + slot * SLOT);
    }
    let now = START + 20 * DAY;
    let (pace, found) = all.0.saw(&read("bot", "a", now, None), LEARNING);
    assert_eq!(found, []);
    let short = (0..1000).take_while(|_| pace.keeps(now)).count() as u64;
    let level = short + 1;
    let rate = Unusual::Rate {
        reads: level + 1,
        level,
        since: Some(7),
    };
    assert_eq!(all.read("bot", "a", now), [rate]);
    assert!((5..50).contains(&level), "{level}");
    assert!(pace.keeps(now), "told again where it is ten times as much");
    assert!(!pace.keeps(now + SLOT), "the next ten minutes");
}

#[test]
fn what_was_learnt_survives_being_written_down() {
    let mut all = Bench::default();
    for slot in 0..20 * DAY / SLOT {
        all.run("bot", "a", START + slot * SLOT, Some("x"));
    }
    let now = START + 20 * DAY;
    let text = serde_json::to_string(&all.0.bot("bot").unwrap()).unwrap();
    let read = HashMap::from([("bot".into(), serde_json::from_str(&text).unwrap())]);
    let mut all = Bench(Habits::of(read, now));
    assert_eq!((all.0.bots(), all.0.secrets()), (vec!["bot".into()], 1));
    assert_eq!(all.run("bot", "a", now, Some("x")), []);
    let found = all.run("bot", "b", now, Some("y"));
    assert_eq!(found, [Unusual::Program, Unusual::FirstRead]);
    let found: Vec<_> = (0..100).flat_map(|_| all.read("bot", "a", now)).collect();
    assert!(matches!(found[0], Unusual::Rate { .. }), "{found:?}");
}

#[test]
fn memory_is_bounded_and_who_fills_it_is_who_forgets() {
    let mut all = Bench::default();
    all.read("other", "a", START);
    for secret in 0..MOST as u64 + 100 {
        all.read("bot", &secret.to_string(), START + secret);
    }
    assert!((MOST / 2..=MOST).contains(&all.0.secrets()));
    let later = START + LEARNING + 1;
    assert_eq!(all.read("other", "b", later), [Unusual::FirstRead]);
    assert_eq!(all.read("bot", "0", later), [], "it learns anew");
    for program in 0..2 * PROGRAMS {
        all.run("bot", "x", later, Some(&program.to_string()));
    }
    assert_eq!(all.0.bot("bot").unwrap().programs.len(), PROGRAMS);
}

#[test]
fn a_clock_that_is_set_ends_no_learning_time_and_no_habit() {
    const SET: i64 = 60 * 86_400;
    let mut all = Bench::default();
    // The first read comes while the clock is behind.
    all.read("bot", "a", START);
    all.0.clock_was_set(SET);
    let now = START.saturating_add_signed(SET);
    assert_eq!(all.read("bot", "b", now + 1), []);
    assert_eq!(all.read("bot", "c", now + LEARNING), [Unusual::FirstRead]);
    // A habit is the same after the clock was ahead for a while.
    let mut all = Bench::default();
    for slot in 0..20 * DAY / SLOT {
        for _ in 0..9 {
            all.read("bot", "a", START + slot * SLOT);
        }
    }
    let now = START + 20 * DAY;
    all.0.clock_was_set(SET);
    all.read("bot", "a", now.saturating_add_signed(SET));
    all.0.clock_was_set(-SET);
    for _ in 0..9 {
        assert_eq!(all.read("bot", "a", now + SLOT), []);
    }
}

#[test]
fn an_outdated_version_is_told_of_once_a_day_after_its_time() {
    let mut all = Bench::default();
    all.read("bot", "a", START);
    let mut asks = |secret, now| all.0.saw_outdated("bot", secret, START + HOUR, now);
    assert!(!asks("a", START + HOUR));
    assert!(asks("a", START + HOUR + 1));
    assert!(!asks("a", START + DAY - 1));
    assert!(asks("a", START + DAY));
    assert!(asks("never read", START + DAY) && !asks("never read", START + DAY));
}
