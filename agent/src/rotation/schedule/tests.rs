//! Months of a host's life in a moment: it sleeps, is restarted, loses its power, has its clock set back, summer begins
//! and ends, steps fail, and the daemon is killed at any time, in a step too. Each moment that is due is done once.

#![allow(clippy::unwrap_used)]

use jiff::tz::TimeZone;
use keyhatch_protocol::Name;
use proptest::prelude::*;

use super::*;
use crate::config::{Alphabet, Driver};

const HOUR: u64 = 3_600_000;
const DAY: u64 = 24 * HOUR;

/// 1 February 2026, so that a summer begins in the months that follow, or ends in the south.
const START: u64 = 1_769_904_000_000;

fn timing(every: Every, jitter: Duration, grace: Duration) -> Timing {
    let rotation = Rotation {
        secret: Name::parse("app/key").unwrap(),
        every,
        jitter,
        grace,
        driver: Driver::Generate(Alphabet {
            characters: b"ab".to_vec(),
            length: 8,
        }),
        host: None,
        on_rotated: None,
    };
    Timing::of(&rotation, "host")
}

fn calendar(text: &str) -> Every {
    Every::Calendar(Box::new(Calendar::parse(text, &TimeZone::UTC).unwrap()))
}

/// What happens to a host.
#[derive(Clone, Debug)]
enum Fate {
    /// It is awake for so many milliseconds.
    Awake(u64),
    /// It sleeps.
    Asleep(u64),
    /// It is off, and its clock is set back by the second number meanwhile.
    Off(u64, u64),
    /// The daemon is killed and started again.
    Killed,
    /// The wall clock is set back.
    SetBack(u64),
    /// The next step fails so often.
    Fails(u32),
    /// The daemon is killed in the next step, and started again.
    KilledInStep,
}

struct Run {
    /// The moments that it was for, in seconds: from the one that was due up to when it began.
    moments: Option<(i64, i64)>,
    begun: u64,
    done: u64,
}

struct World {
    timing: Timing,
    state: State,
    /// Milliseconds that have really passed.
    real: u64,
    wall: i64,
    boot: u64,
    booted: u64,
    version: u64,
    runs: Vec<Run>,
    /// The clock was set back since the last run.
    set_back: bool,
    /// Time was lost to a clock that was set back while the host was off.
    lost: bool,
    /// How often the next step fails.
    fails: u32,
    killed_in_step: bool,
    /// What is on disk.
    saved: String,
}

impl World {
    fn new(timing: Timing) -> Self {
        Self {
            timing,
            state: State::default(),
            real: 0,
            wall: i64::try_from(START).unwrap(),
            boot: 0,
            booted: 0,
            version: 0,
            runs: Vec::new(),
            set_back: false,
            lost: false,
            fails: 0,
            killed_in_step: false,
            saved: serde_json::to_string(&State::default()).unwrap(),
        }
    }

    fn clock(&self) -> Saved {
        Saved {
            wall: u64::try_from(self.wall).unwrap(),
            since_boot: self.real - self.booted,
            boot: self.boot.to_string(),
        }
    }

    fn pass(&mut self, time: u64) {
        self.real += time;
        self.wall += i64::try_from(time).unwrap();
    }

    /// As the daemon does before a step: what is remembered is all that is left after a kill.
    fn save(&mut self) {
        self.state.keep(&self.clock());
        self.saved = serde_json::to_string(&self.state).unwrap();
        self.kill();
    }

    fn kill(&mut self) {
        self.state = serde_json::from_str(&self.saved).unwrap();
    }

    fn awake(&mut self, time: u64) {
        let end = self.real + time;
        while self.real < end {
            let now = self.clock();
            let version = self.version.to_string();
            let before = self.state.clone();
            self.timing
                .look(&mut self.state, &version, Duration::ZERO, &now);
            if self.state != before {
                self.save();
            }
            match self.timing.todo(&self.state, &now) {
                Todo::Wait(wait) => {
                    let wait = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
                    self.pass(wait.max(1).min(end - self.real));
                }
                Todo::Begin => {
                    let due = self.state.due.as_ref().and_then(|due| due.at);
                    let moments = due.map(|due| (due, self.wall / 1000));
                    let begun = self.real;
                    self.timing
                        .begin(&mut self.state, 7, "r".into(), "t".into(), &now);
                    self.save();
                    self.runs.push(Run {
                        moments,
                        begun,
                        done: begun,
                    });
                    self.set_back = false;
                }
                Todo::Go if std::mem::take(&mut self.killed_in_step) => {
                    self.pass(10_000);
                    self.kill();
                }
                Todo::Go if self.fails > 0 => {
                    self.fails -= 1;
                    self.pass(10_000);
                    let now = self.clock();
                    self.state
                        .running
                        .as_mut()
                        .unwrap()
                        .failed("no".into(), &now);
                    self.save();
                }
                Todo::Go => {
                    self.pass(20_000);
                    self.version += 1;
                    let (version, now) = (self.version.to_string(), self.clock());
                    let previous = Some((self.version - 1).to_string());
                    self.timing.done(&mut self.state, &version, previous, &now);
                    self.save();
                    self.runs.last_mut().unwrap().done = self.real;
                    self.lost = false;
                }
                Todo::EndGrace => {
                    self.state.grace = None;
                    self.save();
                }
            }
        }
    }

    fn meet(&mut self, fate: &Fate, most_back: u64) {
        let back = |by: u64| i64::try_from(by.min(most_back)).unwrap();
        match *fate {
            Fate::Awake(time) => self.awake(time),
            Fate::Asleep(time) => self.pass(time),
            Fate::Off(time, by) => {
                self.save();
                self.pass(time);
                self.boot += 1;
                self.booted = self.real;
                if !self.set_back && by > 0 {
                    self.wall -= back(by);
                    (self.set_back, self.lost) = (true, true);
                }
                self.save();
            }
            Fate::Killed => self.kill(),
            Fate::Fails(count) => self.fails = count,
            Fate::KilledInStep => self.killed_in_step = true,
            Fate::SetBack(by) => {
                if !self.set_back {
                    self.wall -= back(by);
                    self.set_back = true;
                }
            }
        }
    }
}

fn fates() -> impl Strategy<Value = Vec<Fate>> {
    let fate = prop_oneof![
        6 => (1..3 * DAY).prop_map(Fate::Awake),
        2 => (1..2 * DAY).prop_map(Fate::Asleep),
        2 => (1..2 * DAY, prop_oneof![Just(0), 1..12 * HOUR]).prop_map(|(time, by)| Fate::Off(time, by)),
        2 => Just(Fate::Killed),
        1 => (1..12 * HOUR).prop_map(Fate::SetBack),
        1 => (1..4_u32).prop_map(Fate::Fails),
        1 => Just(Fate::KilledInStep),
    ];
    prop::collection::vec(fate, 60..90)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn each_moment_of_a_calendar_is_done_once(
        text in prop::sample::select(vec![
            "*-*-* 02:30 Europe/Berlin", "Mon,Thu *-*-* 03:00 America/New_York", "*-*-* 0/12:00:00", "Sun 02:15 Europe/London",
            "*-*-* 02:30 Australia/Sydney",
        ]),
        jitter in prop::sample::select(vec![0, 60, 3600]),
        fates in fates(),
    ) {
        let every = calendar(text);
        let Every::Calendar(expression) = every.clone() else { unreachable!() };
        let mut world = World::new(timing(every, Duration::from_secs(jitter), Duration::from_secs(3600)));
        world.awake(1);
        for fate in &fates {
            world.meet(fate, 10 * HOUR);
        }
        // The last of them has the time that it may take.
        world.awake(2 * HOUR);
        let done: Vec<(i64, i64)> = world.runs.iter().map(|run| run.moments.unwrap()).collect();
        prop_assert!(done.windows(2).all(|two| two[0].1 < two[1].0), "{done:?}");
        let mut moment = i64::try_from(START / 1000).unwrap();
        while let Some(next_one) = next(&expression, moment).filter(|next| *next < world.wall / 1000 - 3700) {
            moment = next_one;
            let runs = done.iter().filter(|(from, to)| (*from..=*to).contains(&moment));
            prop_assert_eq!(runs.count(), 1, "{} in {:?}", moment, done);
        }
        prop_assert!(world.runs.len() > 5, "{} runs in {} days", world.runs.len(), world.real / DAY);
    }

    #[test]
    fn a_span_is_never_shorter_and_longer_only_where_nobody_was_there(
        hours in 5_u64..200,
        jitter in prop::sample::select(vec![0, 600, 7200]),
        fates in fates(),
    ) {
        let every = Duration::from_secs(hours * 3600);
        let mut world = World::new(timing(Every::Span(every), Duration::from_secs(jitter), every / 2));
        world.awake(1);
        let mut seen = 0;
        for fate in &fates {
            let lost = world.lost;
            world.meet(fate, 10 * HOUR);
            for (at, run) in world.runs.iter().enumerate().skip(seen) {
                // The one before may have failed over several fates; it has ended by now.
                let last = at.checked_sub(1).map_or(0, |before| world.runs[before].done);
                let passed = Duration::from_millis(run.begun - last);
                prop_assert!(passed >= every, "{passed:?} < {every:?}");
                let latest = every + Duration::from_secs(jitter + 1);
                // It came due while nobody was there.
                let begun_late = matches!(fate, Fate::Awake(time)
                    if Duration::from_millis((world.real - time).saturating_sub(last)) > every);
                prop_assert!(passed <= latest || lost || begun_late, "{passed:?} > {latest:?}");
            }
            seen = world.runs.len();
        }
        prop_assert!(seen > 0);
    }
}

#[test]
fn jitter_is_the_same_whenever_one_asks_and_other_for_another_host() {
    let hour = Duration::from_secs(3600);
    let timing = timing(calendar("daily"), hour, hour);
    let drawn: Vec<Duration> = (0..200).map(|which| timing.later(which)).collect();
    let again: Vec<Duration> = (0..200).map(|which| timing.later(which)).collect();
    assert_eq!(drawn, again);
    assert!(drawn.iter().all(|later| *later <= hour));
    let quarters = |n: u32| drawn.iter().filter(|later| **later >= hour / 4 * n).count();
    assert!(quarters(1) < 180 && quarters(3) > 20);
}

#[test]
fn a_clock_that_was_years_ahead_does_not_stop_a_calendar() {
    let mut world = World::new(timing(
        calendar("Mon 03:00"),
        Duration::ZERO,
        Duration::from_secs(60),
    ));
    world.awake(DAY);
    let ahead = i64::try_from(3650 * DAY).unwrap();
    world.wall += ahead;
    world.awake(8 * DAY);
    let runs = world.runs.len();
    assert!(runs > 0);
    world.wall -= ahead;
    world.awake(15 * DAY);
    assert!(world.runs.len() > runs);
}

#[test]
fn what_is_due_in_a_grace_time_waits_and_a_failure_backs_off() {
    let day = Duration::from_secs(86_400);
    let timing = timing(calendar("*-*-* 03:00"), Duration::ZERO, day / 2);
    let mut world = World::new(timing.clone());
    world.awake(1);
    let now = world.clock();
    // Asked for at midnight: at three the version before is still needed.
    timing.begin(&mut world.state, 1, "r".into(), "t".into(), &now);
    timing.done(&mut world.state, "1", Some("0".into()), &now);
    world.version = 1;
    world.awake(11 * HOUR);
    assert!(world.runs.is_empty());
    world.awake(2 * HOUR);
    assert_eq!(world.runs.len(), 1);

    let now = world.clock();
    timing.begin(&mut world.state, 1, "r".into(), "t".into(), &now);
    let mut pauses = Vec::new();
    for _ in 0..9 {
        world
            .state
            .running
            .as_mut()
            .unwrap()
            .failed("no".into(), &now);
        let Todo::Wait(pause) = timing.todo(&world.state, &now) else {
            panic!("no pause");
        };
        pauses.push(pause.as_secs());
    }
    assert_eq!(pauses, [60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]);
}
