//! From the store's rename to those who wait for the new value.

use std::io;

use super::{Plan, VALUE, path_of};
use crate::agent::{ROTATING, Site};
use crate::process::Server;
use crate::report::Report;
use crate::watch::{self, LongPoll, Watchers};

/// Rotations that 1,000 watchers are told of.
const TOLD: usize = 5;

/// One long poll at a time, then 1,000 watchers at once.
pub fn all(plan: &Plan, site: &Site, agent: &Server, report: &mut Report) -> io::Result<()> {
    let mut rotations = site.rotations(plan.rotations + TOLD, VALUE)?;
    let mut woken = Vec::new();
    for _ in 0..plan.rotations {
        let poll = LongPoll::begin(agent.socket(), &path_of(ROTATING))?;
        let renamed = rotations.next()?;
        woken.push(millis(poll.woken()?.duration_since(renamed)));
    }
    let worst = woken.iter().copied().fold(0.0, f64::max);
    report.agent(
        "rotation_p50",
        "rename to woken long poll: p50 of 20",
        "ms",
        woken,
    );
    report.agent(
        "rotation_max",
        "rename to woken long poll: worst of 20",
        "ms",
        vec![worst],
    );

    let mut watchers = Watchers::open(agent.socket(), ROTATING, watch::COUNT)?;
    let (mut middle, mut last) = (Vec::new(), Vec::new());
    for _ in 0..TOLD {
        let renamed = rotations.next()?;
        let (half, all) = watchers.told("rotated")?;
        middle.push(millis(half.duration_since(renamed)));
        last.push(millis(all.duration_since(renamed)));
    }
    report.agent(
        "told_half",
        "rename to 1,000 watchers: half told",
        "ms",
        middle,
    );
    report.agent("told_all", "rename to 1,000 watchers: all told", "ms", last);
    Ok(())
}

fn millis(time: std::time::Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
