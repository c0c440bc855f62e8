//! A month of reads by forty bots with daily and weekly habits, and ten attacks among them: made of a seed.
//!
//! Bots have what bots have: clocks that drift, load that varies from day to day and grows, restarts, crash loops, a
//! clock change, people who work late, a job that somebody runs again by hand. Two changes are honest ones that the
//! rules are there to tell of: a release that reads one more secret, and another build of a program.

// Counts and times of a month are far below where these lose anything.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss
)]

pub const DAYS: u64 = 30;
/// Attacks come, and alerts count, after this many days.
pub const LEARNING_DAYS: u64 = 14;
pub const BOTS: usize = 40;
pub const DAY: u64 = 24 * HOUR;
const HOUR: u64 = 60 * MINUTE;
const MINUTE: u64 = 60;
/// A Monday.
const START: u64 = 20_003 * DAY;
/// On its Sunday clocks are set back: what goes by local time comes an hour later from then on.
const CLOCK_CHANGE: u64 = 20;
/// How long after its rotation the version before may be used.
pub const GRACE: u64 = DAY;

/// A read.
pub struct Event {
    pub at: u64,
    pub bot: usize,
    pub secret: u16,
    pub why: Why,
    /// On a connection of its own.
    pub fresh: bool,
    /// Which build of the bot's program does it.
    pub program: u8,
    /// Where it asks for the version before: when the current one was set.
    pub outdated: Option<u64>,
}

/// What a read is part of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Why {
    Habit,
    /// Somebody changed what the bot does.
    Change,
    /// The attack of that number in [`ATTACKS`].
    Attack(usize),
}

/// Which rule is to find which attack.
pub const ATTACKS: [(&str, &str); 10] = [
    ("first_read", "a service reads what it never read"),
    ("first_read", "a web bot reads one more secret a day"),
    ("unusual_rate", "a web bot dumps its secrets in a loop"),
    ("unusual_rate", "a bot of few reads reads 200 times"),
    ("unusual_rate", "a service reads once a second"),
    ("unusual_hour", "a daily job runs half a day off"),
    ("unusual_hour", "an office tool reads at night"),
    (
        "unusual_hour",
        "a job of workdays runs on a Saturday, at another hour",
    ),
    ("exe_changed", "another program reads, at the usual pace"),
    (
        "stale_version",
        "a bot uses a version three days after its rotation",
    ),
];

/// What a bot does all day.
#[derive(Clone, Copy)]
enum Habit {
    /// Refreshes its secrets every so many seconds.
    Service(u64),
    /// Reads as its users ask: so many times in ten minutes at the height of the day.
    Web(f64),
    /// Runs at a time of the day, on weekdays alone or on all days; reads so often.
    Daily(u64, bool, u64),
    /// Polls each hour, and reads so often on one day of the week.
    Weekly(u64, u64, u64),
    /// People use it in the hours of an office, so many times a day.
    Office(u64, f64),
    /// Reads at any time, so many times a day.
    Rare(f64),
}

struct Bot {
    number: usize,
    habit: Habit,
    secrets: u16,
}

/// All reads of the month that belongs to this seed, in order.
pub fn month(seed: u64) -> Vec<Event> {
    let mut dice = Dice(seed);
    let bots: Vec<Bot> = (0..BOTS).map(|number| bot(number, &mut dice)).collect();
    let mut events = Vec::new();
    for bot in &bots {
        for day in 0..DAYS {
            a_day(bot, day, &mut dice, &mut events);
        }
        accidents(bot, &mut dice, &mut events);
    }
    changes(&bots, &mut dice, &mut events);
    attacks(&bots, &mut dice, &mut events);
    events.sort_by_key(|event| event.at);
    events
}

fn bot(number: usize, dice: &mut Dice) -> Bot {
    let (habit, secrets) = match number {
        0..12 => (Habit::Service(60 + dice.below(840)), 1 + dice.below(4)),
        12..20 => (Habit::Web(3.0 + 27.0 * dice.share()), 2 + dice.below(5)),
        20..28 => {
            let (time, times) = (dice.below(DAY), 1 + dice.below(20));
            (
                Habit::Daily(time, number.is_multiple_of(2), times),
                1 + dice.below(3),
            )
        }
        28..32 => {
            let (day, time, times) = (dice.below(7), dice.below(DAY), 200 + dice.below(1800));
            (Habit::Weekly(day, time, times), 5 + dice.below(15))
        }
        32..36 => (
            Habit::Office(6 + dice.below(4), 10.0 + 30.0 * dice.share()),
            3 + dice.below(5),
        ),
        _ => (Habit::Rare(1.0 + 4.0 * dice.share()), 1 + dice.below(3)),
    };
    Bot {
        number,
        habit,
        secrets: secrets as u16,
    }
}

/// The reads of a usual day.
fn a_day(bot: &Bot, day: u64, dice: &mut Dice, events: &mut Vec<Event>) {
    let is_workday = day % 7 < 5;
    let begin = START + day * DAY;
    let local = begin + if day >= CLOCK_CHANGE { HOUR } else { 0 };
    match bot.habit {
        Habit::Service(period) => {
            let mut at = begin + dice.below(period);
            while at < begin + DAY {
                all(bot, at, events);
                at += period - period / 10 + dice.below(period / 5 + 1);
            }
            if is_workday && dice.chance(0.2) {
                all(bot, begin + 8 * HOUR + dice.below(9 * HOUR), events);
            }
        }
        Habit::Web(peak) => {
            let load = (0.25 * dice.normal()).exp() * 1.01_f64.powf(day as f64);
            let load = load * if is_workday { 1.0 } else { 0.4 };
            for slot in 0..DAY / (10 * MINUTE) {
                let angle = (slot as f64 / 144.0 - 0.6) * std::f64::consts::TAU;
                let mean = peak * load * (0.55 + 0.45 * angle.cos());
                for _ in 0..dice.poisson(mean) {
                    one(
                        bot,
                        begin + slot * 10 * MINUTE + dice.below(10 * MINUTE),
                        dice,
                        events,
                    );
                }
            }
        }
        Habit::Daily(time, on_workdays, times) => {
            if is_workday || !on_workdays {
                let at = local + time + dice.below(10 * MINUTE);
                run(bot, at, times, dice, events);
            }
        }
        Habit::Weekly(weekday, time, times) => {
            let minute = dice.below(5) * MINUTE;
            for hour in 0..24 {
                events.push(event(bot, begin + hour * HOUR + minute, 0));
            }
            if day % 7 == weekday {
                let times = times + dice.below(times / 5);
                run(bot, local + time, times, dice, events);
            }
        }
        Habit::Office(from, times) => {
            if is_workday {
                for _ in 0..dice.poisson(times) {
                    one(
                        bot,
                        local + from * HOUR + dice.below(9 * HOUR),
                        dice,
                        events,
                    );
                }
            }
            // Somebody works late.
            if is_workday && dice.chance(0.03) {
                one(
                    bot,
                    local + (from + 9) * HOUR + dice.below(3 * HOUR),
                    dice,
                    events,
                );
            }
        }
        Habit::Rare(times) => {
            for _ in 0..dice.poisson(times) {
                one(bot, begin + dice.below(DAY), dice, events);
            }
        }
    }
}

/// A crash loop in every other bot, while it is at work; a job that is run again by hand on the same day.
fn accidents(bot: &Bot, dice: &mut Dice, events: &mut Vec<Event>) {
    if !dice.chance(0.5) {
        return;
    }
    let own: Vec<u64> = events
        .iter()
        .filter(|event| event.bot == bot.number)
        .map(|event| event.at)
        .collect();
    let Some(at) = own.get(dice.below(own.len() as u64) as usize) else {
        return;
    };
    for restart in 0..5 {
        all(bot, at + 2 * restart, events);
    }
    if let Habit::Daily(_, _, times) = bot.habit
        && dice.chance(0.25)
    {
        run(bot, at + HOUR + dice.below(3 * HOUR), times, dice, events);
    }
}

/// What operators change: a release that reads one more secret, another build of a program; secrets that rotate weekly,
/// and bots that use the version before for some hours.
fn changes(bots: &[Bot], dice: &mut Dice, events: &mut Vec<Event>) {
    let released = &bots[dice.below(20) as usize];
    let at = START + dice.below((DAYS - 1) * DAY);
    for time in 0..10 {
        events.push(Event {
            why: Why::Change,
            ..event(released, at + time * 2 * HOUR, released.secrets)
        });
    }
    let (upgraded, at) = (dice.below(8) as usize, START + dice.below(DAYS * DAY));
    let after = |event: &&mut Event| event.bot == upgraded && event.at >= at;
    for event in events.iter_mut().filter(after) {
        event.program = 1;
    }
    if let Some(first) = events.iter_mut().filter(after).min_by_key(|event| event.at) {
        (first.why, first.fresh) = (Why::Change, true);
    }
    for bot in bots[..20].iter().filter(|bot| bot.number.is_multiple_of(5)) {
        for week in 0..4 {
            let set = START + week * 7 * DAY + 3 * HOUR;
            events.push(Event {
                outdated: Some(set),
                ..event(bot, set + dice.below(6 * HOUR), 0)
            });
        }
    }
}

fn attacks(bots: &[Bot], dice: &mut Dice, events: &mut Vec<Event>) {
    let mut put = |number, event: Event| {
        events.push(Event {
            why: Why::Attack(number),
            fresh: true,
            ..event
        });
    };
    // Each has a bot of its own, of a kind that can be attacked so, and a day.
    let pick = |from: u64, dice: &mut Dice| &bots[(from + dice.below(4)) as usize];
    let midnight = |dice: &mut Dice| START + (LEARNING_DAYS + 1 + dice.below(12)) * DAY;
    let moment = |dice: &mut Dice| midnight(dice) + dice.below(DAY);

    put(0, event(pick(0, dice), moment(dice), 900));

    let (bot, at) = (pick(12, dice), moment(dice));
    for later in 0..3 {
        put(1, event(bot, at + u64::from(later) * DAY, 900 + later));
    }

    let (bot, at) = (pick(16, dice), moment(dice));
    for read in 0..1800 {
        put(
            2,
            event(bot, at + read / 30, (read % u64::from(bot.secrets)) as u16),
        );
    }

    let (bot, at) = (pick(36, dice), moment(dice));
    for read in 0..200 {
        put(3, event(bot, at + 3 * read, 0));
    }

    let (bot, at) = (pick(4, dice), moment(dice));
    for read in 0..600 {
        put(4, event(bot, at + read, 0));
    }

    let (bot, day) = (pick(20, dice), midnight(dice));
    if let Habit::Daily(time, ..) = bot.habit {
        for read in 0..5 {
            put(5, event(bot, day + (time + 12 * HOUR) % DAY + read, 0));
        }
    }

    let (bot, day) = (pick(32, dice), midnight(dice));
    if let Habit::Office(from, _) = bot.habit {
        for read in 0..3 {
            put(6, event(bot, day + (from + 17) % 24 * HOUR + 7 * read, 0));
        }
    }

    // Those of workdays have even numbers.
    let bot = &bots[24 + 2 * dice.below(2) as usize];
    let saturday = START + (19 + 7 * dice.below(2)) * DAY;
    if let Habit::Daily(time, ..) = bot.habit {
        put(7, event(bot, saturday + (time + 8 * HOUR) % DAY, 0));
    }

    let stranger = Event {
        program: 9,
        ..event(pick(8, dice), moment(dice), 0)
    };
    put(8, stranger);

    let set = START + 21 * DAY + 3 * HOUR;
    let late = Event {
        outdated: Some(set),
        ..event(&bots[30], set + 3 * DAY + dice.below(DAY), 0)
    };
    put(9, late);
}

/// All secrets of a bot at once, as it starts or refreshes.
fn all(bot: &Bot, at: u64, events: &mut Vec<Event>) {
    for secret in 0..bot.secrets {
        events.push(event(bot, at, secret));
    }
}

/// One of them.
fn one(bot: &Bot, at: u64, dice: &mut Dice, events: &mut Vec<Event>) {
    let secret = dice.below(u64::from(bot.secrets)) as u16;
    events.push(event(bot, at, secret));
}

/// A job: all its secrets in turn, a few a second.
fn run(bot: &Bot, at: u64, times: u64, dice: &mut Dice, events: &mut Vec<Event>) {
    let mut now = at;
    for read in 0..times.max(u64::from(bot.secrets)) {
        events.push(event(bot, now, (read % u64::from(bot.secrets)) as u16));
        now += dice.below(2);
    }
}

fn event(bot: &Bot, at: u64, secret: u16) -> Event {
    Event {
        at,
        bot: bot.number,
        secret,
        why: Why::Habit,
        fresh: false,
        program: 0,
        outdated: None,
    }
}

/// `SplitMix64` (Steele, Lea, Flood 2014): the same numbers for the same seed, everywhere.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }

    /// From 0 to 1.
    fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn chance(&mut self, share: f64) -> bool {
        self.share() < share
    }

    /// Mean 0, variance 1 (Box and Muller).
    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.share()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.share()).cos()
    }

    /// Knuth's way, for small means.
    fn poisson(&mut self, mean: f64) -> u64 {
        let (limit, mut product, mut count) = ((-mean).exp(), self.share(), 0);
        while product > limit {
            product *= self.share();
            count += 1;
        }
        count
    }
}
