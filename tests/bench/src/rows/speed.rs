//! Latency and throughput, side by side in alternating rounds.

use std::io;
use std::time::Instant;

use nix::unistd::geteuid;

use super::{Bare, Plan, request};
use crate::agent::{READ, Selector, Site};
use crate::cgroup::Seat;
use crate::load::{self, Ask, Manner, Stop};
use crate::process::Server;
use crate::report::{AGENT, HYPER, RAW, Report, Row};
use crate::watch::{self, Watchers};

type Column<'a> = (&'static str, &'a Server);

/// One round of one server.
struct Sample {
    p50: f64,
    p99: f64,
    rate: f64,
    /// Percent of one core that the server used.
    busy: f64,
}

type Figure = fn(&Sample) -> f64;

/// One connection, many, and a new one each.
pub fn all(
    plan: &Plan,
    bare: &Bare,
    agent: Option<&Server>,
    ask: &Ask,
    report: &mut Report,
) -> io::Result<()> {
    let columns = columns(bare, agent);
    let rounds = alternate(plan, &columns, |server| {
        one(plan, server, ask, Manner::Sleeping)
    })?;
    add(
        report,
        "1 connection",
        &columns,
        &rounds,
        &[
            ("p50_1", "p50", "us", |sample| sample.p50),
            ("p99_1", "p99", "us", |sample| sample.p99),
        ],
    );
    spinning(plan, &columns, ask, report)?;

    for connections in [16, 64] {
        let rounds = alternate(plan, &columns, |server| {
            many(plan, server, ask, connections, false)
        })?;
        let what = format!("{connections} connections");
        add(
            report,
            &what,
            &columns,
            &rounds,
            &[
                (&format!("rate_{connections}"), "requests", "/s", |sample| {
                    sample.rate
                }),
                (&format!("p99_{connections}"), "p99", "us", |sample| {
                    sample.p99
                }),
                (
                    &format!("busy_{connections}"),
                    "server's core busy",
                    "%",
                    |sample| sample.busy,
                ),
            ],
        );
        say_if_disturbed(&rounds, report);
    }

    let rounds = alternate(plan, &columns, |server| {
        one(plan, server, ask, Manner::Fresh)
    })?;
    add(
        report,
        "a new connection each",
        &columns,
        &rounds,
        &[("new_p50", "p50", "us", |sample| sample.p50)],
    );
    let rounds = alternate(plan, &columns, |server| many(plan, server, ask, 16, true))?;
    add(
        report,
        "a new connection each, 16 at once",
        &columns,
        &rounds,
        &[("new_rate", "requests", "/s", |sample| sample.rate)],
    );
    Ok(())
}

/// Most of a lone client's wait is two cores waking up, the same for every server: on a virtual machine some
/// 40 us, which hide a server that works twice as much. A client that never sleeps spares its own core that,
/// and mostly the server's too (it comes back before the host takes the core), so that work is what is left.
fn spinning(plan: &Plan, columns: &[Column], ask: &Ask, report: &mut Report) -> io::Result<()> {
    let rounds = alternate(plan, columns, |server| {
        one(plan, server, ask, Manner::Spinning)
    })?;
    add(
        report,
        "1 connection, client never sleeps",
        columns,
        &rounds,
        &[("p50_spin", "p50", "us", |sample| sample.p50)],
    );
    Ok(())
}

/// Under this load a server has its core to itself, or the numbers are somebody else's.
fn say_if_disturbed(rounds: &[Vec<Sample>], report: &mut Report) {
    let busy = rounds
        .iter()
        .flatten()
        .map(|sample| sample.busy)
        .fold(f64::INFINITY, f64::min);
    if busy < 85.0 {
        report.note(&format!(
            "a server got only {busy:.0} % of its core in one round: something else runs here, or \
             the load was too slow for it"
        ));
    }
}

/// Throughput at 64 once more while 1,000 others wait: watchers at the agent, idle connections elsewhere.
pub fn beside_watchers(
    plan: &Plan,
    bare: &Bare,
    agent: Option<&Server>,
    ask: &Ask,
    report: &mut Report,
) -> io::Result<()> {
    let columns = columns(bare, agent);
    let raw = watch::idle(bare.raw.socket(), &request(), watch::COUNT)?;
    let hyper = watch::idle(bare.hyper.socket(), &request(), watch::COUNT)?;
    let watchers = agent
        .map(|agent| Watchers::open(agent.socket(), READ, watch::COUNT))
        .transpose()?;
    let rounds = alternate(plan, &columns, |server| many(plan, server, ask, 64, false))?;
    add(
        report,
        "64 beside 1,000 watchers",
        &columns,
        &rounds,
        &[
            ("watched_rate", "requests", "/s", |sample| sample.rate),
            ("watched_p99", "p99", "us", |sample| sample.p99),
        ],
    );
    drop((raw, hyper, watchers));
    Ok(())
}

/// The agent once for each way to select the bot; what is checked again on every request costs.
pub fn by_selector(
    plan: &Plan,
    site: &Site,
    bare: &Bare,
    by_user: &Server,
    ask: &Ask,
    report: &mut Report,
) -> io::Result<()> {
    if !geteuid().is_root() {
        report.skipped(
            "bots by unit and by exe",
            "needs root, for a cgroup and to see exe",
        );
        return Ok(());
    }
    let seat = Seat::take();
    let mut started = Vec::new();
    for (name, selector) in [("unit", Selector::Unit), ("exe", Selector::Exe)] {
        if let (Selector::Unit, Err(error)) = (selector, &seat) {
            report.skipped("a bot by unit", &error.to_string());
            continue;
        }
        let server = site
            .start(&format!("by-{name}"), selector)
            .and_then(|mut server| {
                server.first_answer(&request())?;
                Ok(server)
            });
        match server {
            Ok(server) => started.push((name, server)),
            Err(error) => report.failed(&format!("a bot by {name}"), &error),
        }
    }
    let agents = std::iter::once(("user", by_user));
    let agents: Vec<_> = agents
        .chain(started.iter().map(|(name, server)| (*name, server)))
        .collect();
    let mut columns: Vec<Column> = vec![(HYPER, &bare.hyper)];
    columns.extend(agents.iter().map(|(_, server)| (AGENT, *server)));
    let latency = alternate(plan, &columns, |server| {
        one(plan, server, ask, Manner::Spinning)
    })?;
    let rate = alternate(plan, &columns, |server| many(plan, server, ask, 64, false))?;
    for (place, (name, _)) in agents.iter().enumerate() {
        let pair = [columns[0], columns[place + 1]];
        let what = format!("bot by {name}");
        add(
            report,
            &what,
            &pair,
            &[&latency[0], &latency[place + 1]],
            &[(
                &format!("by_{name}_p50_spin"),
                "p50, client never sleeps",
                "us",
                |sample| sample.p50,
            )],
        );
        add(
            report,
            &what,
            &pair,
            &[&rate[0], &rate[place + 1]],
            &[(
                &format!("by_{name}_rate_64"),
                "requests, 64",
                "/s",
                |sample| sample.rate,
            )],
        );
    }
    Ok(())
}

/// What comes from an upstream beside what comes from the store.
pub fn beside_store(
    plan: &Plan,
    pair: [(&Server, &Ask); 2],
    report: &mut Report,
) -> io::Result<()> {
    let columns: Vec<Column> = vec![("upstream", pair[0].0), ("store", pair[1].0)];
    let ask_of = |server: &Server| {
        let found = pair.iter().find(|(other, _)| std::ptr::eq(*other, server));
        found.map_or(pair[0].1, |(_, ask)| *ask)
    };
    let rounds = alternate(plan, &columns, |server| {
        many(plan, server, ask_of(server), 64, false)
    })?;
    let rates = |at: usize| rounds[at].iter().map(|sample: &Sample| sample.rate);
    let ratios = rates(0).zip(rates(1)).map(|(one, other)| one / other);
    report.agent(
        "bao_rate_64",
        "64 connections: an upstream's secret, of the store's",
        "",
        ratios.collect(),
    );
    Ok(())
}

fn columns<'a>(bare: &'a Bare, agent: Option<&'a Server>) -> Vec<Column<'a>> {
    let bare = [(RAW, &bare.raw), (HYPER, &bare.hyper)];
    bare.into_iter()
        .chain(agent.map(|agent| (AGENT, agent)))
        .collect()
}

fn one(plan: &Plan, server: &Server, ask: &Ask, manner: Manner) -> io::Result<Sample> {
    let latencies = load::one_by_one(server.socket(), ask, manner, plan.slice)?;
    let (p50, p99) = (latencies.quantile(0.50), latencies.quantile(0.99));
    Ok(Sample {
        p50,
        p99,
        rate: f64::NAN,
        busy: f64::NAN,
    })
}

fn many(plan: &Plan, server: &Server, ask: &Ask, count: usize, fresh: bool) -> io::Result<Sample> {
    let (begin, used) = (Instant::now(), server.processor_time()?);
    let rate = load::many(server.socket(), ask, count, fresh, Stop::After(plan.slice))?;
    let used = server.processor_time()?.saturating_sub(used);
    Ok(Sample {
        p50: rate.latencies.quantile(0.50),
        p99: rate.latencies.quantile(0.99),
        rate: rate.per_second,
        busy: 100.0 * used.as_secs_f64() / begin.elapsed().as_secs_f64(),
    })
}

/// Each server in turn, round after round; the first round only warms up.
fn alternate(
    plan: &Plan,
    columns: &[Column],
    measure: impl Fn(&Server) -> io::Result<Sample>,
) -> io::Result<Vec<Vec<Sample>>> {
    let mut samples: Vec<Vec<Sample>> = columns.iter().map(|_| Vec::new()).collect();
    for round in 0..=plan.rounds {
        for ((column, server), samples) in columns.iter().zip(&mut samples) {
            let sample = measure(server)
                .map_err(|error| io::Error::other(format!("the {column} server: {error}")))?;
            if round > 0 {
                samples.push(sample);
            }
        }
    }
    Ok(samples)
}

/// One row for each figure: (id, what, unit, how to take it from a sample).
fn add(
    report: &mut Report,
    group: &str,
    columns: &[Column],
    rounds: &[impl AsRef<[Sample]>],
    figures: &[(&str, &str, &'static str, Figure)],
) {
    for (id, what, unit, figure) in figures {
        let cells = columns.iter().zip(rounds).map(|((column, _), rounds)| {
            (
                *column,
                rounds.as_ref().iter().map(figure).collect::<Vec<_>>(),
            )
        });
        report.row(Row {
            id: (*id).to_owned(),
            what: format!("{group}: {what}"),
            unit,
            cells: cells.collect(),
        });
    }
}
