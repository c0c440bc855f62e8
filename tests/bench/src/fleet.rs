//! `keyhatch-bench fleet`: what many agents ask of one upstream, in simulated time.
//!
//! The schedule is the agent's own (`sources::engine::pace`); the upstream is a queue that answers a fixed number
//! of requests a second. `tests/bench/fleet.py` runs real agents against a real OpenBao beside it.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use keyhatch_agent::sources::engine::{Moment, Pace};
use serde_json::{Value, json};

/// How long an answer is on its way.
const WAY: Duration = Duration::from_millis(1);
/// How many fetches one agent has under way (`sources::engine`).
const WIDTH: u64 = 8;

/// What is simulated.
#[derive(Clone, Copy)]
pub struct Fleet {
    pub agents: usize,
    /// Secrets that each agent holds, all in one folder.
    pub secrets: u64,
    pub refresh: Duration,
    /// Requests a second that the upstream answers.
    pub capacity: f64,
    /// Whether agents start with a sealed snapshot.
    pub snapshot: bool,
}

/// What came of it.
pub struct Outcome {
    /// Requests a second once all is calm.
    pub steady: f64,
    /// The most requests that arrived in one second after all agents started together.
    pub peak: u64,
    /// Until every agent had confirmed its values after that.
    pub settled: Duration,
    /// From a rotation until half of the agents, 99 of 100, and all served it.
    pub half: Duration,
    pub most: Duration,
    pub all: Duration,
}

/// A pseudo-random sequence (`SplitMix64`), so that each run is the same.
struct Dice(u64);

impl Dice {
    fn throw(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        f64::from(u32::try_from((mixed ^ (mixed >> 31)) >> 32).unwrap_or(0)) / f64::from(u32::MAX)
    }
}

/// One upstream: requests are answered in turn.
struct Upstream {
    each: Duration,
    free: Duration,
    /// Arrivals in each second.
    seconds: Vec<u64>,
}

impl Upstream {
    /// `count` requests that arrive together at `at`; when the last answer is back.
    fn ask(&mut self, at: Duration, count: u64) -> Duration {
        let second = usize::try_from(at.as_secs()).unwrap_or(usize::MAX);
        if self.seconds.len() <= second {
            self.seconds.resize(second + 1, 0);
        }
        self.seconds[second] += count;
        let busy = self.each * u32::try_from(count).unwrap_or(u32::MAX);
        self.free = self.free.max(at) + busy;
        self.free + WAY * 2
    }
}

/// One agent: when it begins a round is its own business, and what a round asks for.
struct Agent {
    pace: Pace,
    /// What the round that is under way still asks for: so many requests at once, one after the other.
    left: VecDeque<u64>,
    confirmed: bool,
    /// The round that is under way fetches the value that rotated.
    fetches: bool,
    rotated: Option<Duration>,
}

impl Agent {
    /// A login and the kind of the mount at first, then a list with versions; then what may still be read, or the
    /// values of what is new.
    fn begin(&mut self, fleet: &Fleet) {
        if !self.confirmed {
            self.left.extend([1, 1]);
        }
        self.left.push_back(1);
        if self.confirmed || fleet.snapshot {
            self.left.push_back(1);
        } else {
            let (full, rest) = (fleet.secrets / WIDTH, fleet.secrets % WIDTH);
            self.left.extend((0..full).map(|_| WIDTH));
            self.left.extend((rest > 0).then_some(rest));
        }
    }

    /// Whether a round whose list is there at `now` goes on with the value that rotated.
    fn goes_on(&mut self, rotation: Duration, now: Duration) -> bool {
        let news = self.confirmed && !self.fetches && self.rotated.is_none() && now >= rotation;
        if news {
            self.fetches = true;
            self.left.push_back(1);
        }
        news
    }

    /// A round has ended.
    fn end(&mut self, now: Duration) {
        self.confirmed = true;
        if std::mem::take(&mut self.fetches) {
            self.rotated = Some(now);
        }
    }
}

/// Runs a fleet that starts together; long after that, one secret rotates.
pub fn run(fleet: &Fleet) -> Outcome {
    let (start, mut dice) = (Moment::now(), Dice(7));
    let mut upstream = Upstream {
        each: Duration::from_secs_f64(1.0 / fleet.capacity),
        free: Duration::ZERO,
        seconds: Vec::new(),
    };
    let mut agents: Vec<Agent> = (0..fleet.agents)
        .map(|_| Agent {
            pace: Pace::begin(fleet.refresh, start, fleet.snapshot, dice.throw()),
            left: VecDeque::new(),
            confirmed: false,
            fetches: false,
            rotated: None,
        })
        .collect();
    let due = |agent: &Agent| agent.pace.next().since(start);
    let mut queue: BinaryHeap<Reverse<(Duration, usize)>> = BinaryHeap::new();
    for (at, agent) in agents.iter_mut().enumerate() {
        agent.begin(fleet);
        queue.push(Reverse((due(agent), at)));
    }
    // Everything a start asks for is answered well before.
    let asked = fleet.agents as f64 * (4 + fleet.secrets) as f64;
    let rotation = fleet.refresh * 20 + Duration::from_secs_f64(asked / fleet.capacity);
    let (mut settled, mut told) = (Duration::ZERO, 0);
    while told < fleet.agents {
        let Some(Reverse((now, at))) = queue.pop() else {
            break;
        };
        let agent = &mut agents[at];
        if agent.left.is_empty() && !agent.goes_on(rotation, now) {
            settled = settled.max(if agent.confirmed { settled } else { now });
            told += usize::from(agent.fetches);
            agent.end(now);
            agent.pace.succeeded(start + now, dice.throw());
            agent.begin(fleet);
            queue.push(Reverse((due(agent), at)));
        } else if let Some(count) = agent.left.pop_front() {
            queue.push(Reverse((upstream.ask(now, count), at)));
        }
    }
    outcome(fleet, &upstream, &agents, rotation, settled)
}

fn outcome(
    fleet: &Fleet,
    upstream: &Upstream,
    agents: &[Agent],
    rotation: Duration,
    settled: Duration,
) -> Outcome {
    let mut told: Vec<Duration> = agents
        .iter()
        .filter_map(|agent| agent.rotated)
        .map(|at| at.saturating_sub(rotation))
        .collect();
    told.sort_unstable();
    let share = |hundredths: usize| told[(told.len() - 1) * hundredths / 100];
    let calm = |second: u64| usize::try_from(second).unwrap_or(usize::MAX);
    let seconds = &upstream.seconds
        [calm(rotation.saturating_sub(fleet.refresh * 10).as_secs())..calm(rotation.as_secs())];
    Outcome {
        steady: seconds.iter().sum::<u64>() as f64 / seconds.len() as f64,
        peak: upstream
            .seconds
            .iter()
            .take(calm(rotation.as_secs()))
            .copied()
            .max()
            .unwrap_or(0),
        settled,
        half: share(50),
        most: share(99),
        all: share(100),
    }
}

impl Outcome {
    fn json(&self, fleet: &Fleet) -> Value {
        json!({
            "agents": fleet.agents, "secrets": fleet.secrets, "refresh": fleet.refresh.as_secs_f64(),
            "capacity": fleet.capacity, "snapshot": fleet.snapshot, "steady": self.steady, "peak": self.peak,
            "settled": self.settled.as_secs_f64(), "half": self.half.as_secs_f64(),
            "most": self.most.as_secs_f64(), "all": self.all.as_secs_f64(),
        })
    }
}

/// Prints a table, or one fleet as JSON: `--json AGENTS SECRETS REFRESH CAPACITY`.
pub fn main(arguments: &[&str]) -> bool {
    if let ["--json", agents, secrets, refresh, capacity] = arguments {
        let parsed = (
            agents.parse(),
            secrets.parse(),
            refresh.parse(),
            capacity.parse(),
        );
        let (Ok(agents), Ok(secrets), Ok(refresh), Ok(capacity)) = parsed else {
            return false;
        };
        let refresh = Duration::from_secs_f64(refresh);
        let fleet = Fleet {
            agents,
            secrets,
            refresh,
            capacity,
            snapshot: false,
        };
        println!("{}", run(&fleet).json(&fleet));
        return true;
    }
    println!(
        "2,000 agents, 20 secrets each, one upstream that answers 2,000 requests a second (simulated)\n"
    );
    println!("refresh  snapshot  steady req/s  peak req/s  settled  rotation at half / 99 % / all");
    for seconds in [5, 10, 30, 60, 300] {
        for snapshot in [false, true] {
            let refresh = Duration::from_secs(seconds);
            let fleet = Fleet {
                agents: 2_000,
                secrets: 20,
                refresh,
                capacity: 2_000.0,
                snapshot,
            };
            let found = run(&fleet);
            println!(
                "{seconds:>5} s  {:<8}  {:>12.0}  {:>10}  {:>5.1} s  {:>6.1} s / {:.1} s / {:.1} s",
                if snapshot { "yes" } else { "no" },
                found.steady,
                found.peak,
                found.settled.as_secs_f64(),
                found.half.as_secs_f64(),
                found.most.as_secs_f64(),
                found.all.as_secs_f64(),
            );
        }
    }
    arguments.is_empty()
}
