//! What was measured: a table as it comes, the targets at the end, and all rounds as JSON.

use std::fs;
use std::io;
use std::path::Path;

use serde_json::{Value, json};

use crate::stats::median;

/// The servers, in the order of the table's columns.
pub const RAW: &str = "raw";
pub const HYPER: &str = "hyper";
pub const AGENT: &str = "agent";
/// Beside the agent in rows about routes.
pub const NGINX: &str = "nginx";

/// One line of the table: a figure of each server, round by round.
pub struct Row {
    pub id: String,
    pub what: String,
    pub unit: &'static str,
    pub cells: Vec<(&'static str, Vec<f64>)>,
}

impl Row {
    fn rounds(&self, server: &str) -> Option<&[f64]> {
        let cell = self.cells.iter().find(|(name, _)| *name == server);
        cell.map(|(_, rounds)| rounds.as_slice())
    }

    /// The agent's part of bare hyper or nginx, a round at a time: what disturbs one round disturbs both.
    fn ratios(&self) -> Vec<f64> {
        let peer = self.rounds(NGINX).or(self.rounds(HYPER));
        let (Some(agent), Some(peer)) = (self.rounds(AGENT), peer) else {
            return Vec::new();
        };
        agent
            .iter()
            .zip(peer)
            .map(|(agent, peer)| agent / peer)
            .collect()
    }
}

/// Which figure of a row a target is about.
enum Figure {
    Ratio,
    Agent,
}

enum Bound {
    AtMost(f64),
    AtLeast(f64),
    Under(f64),
}

const TARGETS: [(&str, &str, Figure, Bound); 25] = [
    (
        "p50 at 1 connection, of bare hyper",
        "p50_1",
        Figure::Ratio,
        Bound::AtMost(1.15),
    ),
    (
        "the same, client never sleeps",
        "p50_spin",
        Figure::Ratio,
        Bound::AtMost(1.15),
    ),
    (
        "throughput at 64, of bare hyper",
        "rate_64",
        Figure::Ratio,
        Bound::AtLeast(0.85),
    ),
    (
        "idle RSS, MiB",
        "idle_rss",
        Figure::Agent,
        Bound::Under(12.0),
    ),
    (
        "cold start with 1,000 secrets, ms",
        "cold_1000",
        Figure::Agent,
        Bound::Under(50.0),
    ),
    (
        "rename to woken long poll, worst, ms",
        "rotation_max",
        Figure::Agent,
        Bound::Under(50.0),
    ),
    (
        "open 10,000 of 1 KiB (verify), ms",
        "verify_10000",
        Figure::Agent,
        Bound::Under(300.0),
    ),
    (
        "put into 10,000 of 1 KiB, ms",
        "put_10000",
        Figure::Agent,
        Bound::Under(150.0),
    ),
    (
        "start with 10,000 secrets of OpenBao, s",
        "fetch_10000",
        Figure::Agent,
        Bound::Under(10.0),
    ),
    (
        "idle with 1,000 secrets of OpenBao, % of a core",
        "bao_busy",
        Figure::Agent,
        Bound::Under(0.5),
    ),
    (
        "throughput of an upstream's secret, of the store's",
        "bao_rate_64",
        Figure::Agent,
        Bound::AtLeast(0.95),
    ),
    (
        "throughput of AWS's agent's API, of native",
        "aws_agent_rate_64",
        Figure::Agent,
        Bound::AtLeast(0.80),
    ),
    (
        "throughput of AWS JSON 1.1, of native",
        "aws_rate_64",
        Figure::Agent,
        Bound::AtLeast(0.80),
    ),
    (
        "throughput of Vault KV v2, of native",
        "vault_rate_64",
        Figure::Agent,
        Bound::AtLeast(0.80),
    ),
    (
        "throughput with detection, of without, by time of the core",
        "detect_work_64",
        Figure::Agent,
        Bound::AtLeast(0.97),
    ),
    (
        "attacks found of 10, worst seed",
        "attacks_found",
        Figure::Agent,
        Bound::AtLeast(10.0),
    ),
    (
        "false alerts a week of 40 bots, worst seed",
        "false_alerts",
        Figure::Agent,
        Bound::AtMost(1.0),
    ),
    (
        "p50 by a route, of nginx's proxy_pass",
        "route_p50",
        Figure::Ratio,
        Bound::AtMost(1.25),
    ),
    (
        "throughput by a route at 64, of nginx's",
        "route_rate_64",
        Figure::Ratio,
        Bound::AtLeast(0.80),
    ),
    (
        "RSS with 1,000 event streams by a route, MiB",
        "route_streams_rss",
        Figure::Agent,
        Bound::Under(60.0),
    ),
    (
        "RSS that 1 GiB each way by a route adds, MiB",
        "route_bodies_rss",
        Figure::Agent,
        Bound::Under(16.0),
    ),
    (
        "filtered query of 5,000,000 records, ms",
        "audit_query",
        Figure::Agent,
        Bound::Under(2_000.0),
    ),
    (
        "report over 5,000,000 records, ms",
        "audit_report",
        Figure::Agent,
        Bound::Under(10_000.0),
    ),
    (
        "verify of an audit log, MiB/s",
        "audit_verify",
        Figure::Agent,
        Bound::AtLeast(150.0),
    ),
    (
        "memory of these, MiB",
        "audit_memory",
        Figure::Agent,
        Bound::Under(200.0),
    ),
];

/// Prints as it is told; keeps everything for the end.
pub struct Report {
    quick: bool,
    /// Not all rows are wanted, so that a target without one is left out.
    partial: bool,
    rows: Vec<Row>,
    notes: Vec<String>,
    skipped: Vec<String>,
    failed: Vec<String>,
}

impl Report {
    pub fn new(quick: bool, partial: bool) -> Self {
        let mode = if quick { "quick" } else { "full" };
        println!("keyhatch-bench, {mode}: {}", machine());
        println!(
            "medians of rounds; agent/hyper is the median of each round's ratio (least to most)\n"
        );
        println!(
            "{:<46} {:>6} {:>10} {:>10} {:>10}  agent/hyper",
            "", "unit", RAW, HYPER, AGENT
        );
        Self {
            quick,
            partial,
            rows: vec![],
            notes: vec![],
            skipped: vec![],
            failed: vec![],
        }
    }

    pub fn row(&mut self, row: Row) {
        let cell = |server| {
            row.rounds(server)
                .map_or_else(String::new, |all| figure(median(all)))
        };
        let ratios = row.ratios();
        let ratio = if ratios.is_empty() {
            String::new()
        } else {
            let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
            let most = ratios.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let peer = row
                .rounds(NGINX)
                .map(|all| format!(" of nginx's {}", figure(median(all))));
            let peer = peer.unwrap_or_default();
            format!("{:.2} ({least:.2} to {most:.2}){peer}", median(&ratios))
        };
        let line = format!(
            "{:<46} {:>6} {:>10} {:>10} {:>10}  {ratio}",
            row.what,
            row.unit,
            cell(RAW),
            cell(HYPER),
            cell(AGENT)
        );
        println!("{}", line.trim_end());
        self.rows.push(row);
    }

    /// A figure of the agent alone.
    pub fn agent(&mut self, id: &str, what: &str, unit: &'static str, rounds: Vec<f64>) {
        let (id, what) = (id.to_owned(), what.to_owned());
        self.row(Row {
            id,
            what,
            unit,
            cells: vec![(AGENT, rounds)],
        });
    }

    /// What a reader must know to judge the numbers.
    pub fn note(&mut self, what: &str) {
        println!("NOTE: {what}");
        self.notes.push(what.to_owned());
    }

    /// What cannot be measured here, by this user.
    pub fn skipped(&mut self, what: &str, why: &str) {
        println!("SKIPPED: {what}: {why}");
        self.skipped.push(format!("{what}: {why}"));
    }

    /// What should have been measured.
    pub fn failed(&mut self, what: &str, why: &io::Error) {
        println!("FAILED: {what}: {why}");
        self.failed.push(format!("{what}: {why}"));
    }

    pub fn complete(&self) -> bool {
        self.failed.is_empty()
    }

    pub fn finish(&self) {
        println!();
        for target in self.targets() {
            if self.partial && target.1.is_none() {
                continue;
            }
            let (text, measured, bound) = (&target.0, target.1, target.2);
            let (sign, limit, reached) = judge(bound, measured);
            let (measured, verdict) = match measured {
                Some(measured) => (
                    figure(measured),
                    if reached { "reached" } else { "NOT reached" },
                ),
                None => ("-".to_owned(), "NOT measured"),
            };
            println!("target: {text:<38} {sign:>2} {limit:<6} measured {measured:>8}  {verdict}");
        }
        for what in &self.skipped {
            println!("skipped: {what}");
        }
        for what in &self.failed {
            println!("failed: {what}");
        }
    }

    fn targets(&self) -> impl Iterator<Item = (&'static str, Option<f64>, &'static Bound)> {
        TARGETS.iter().map(|(text, id, which, bound)| {
            let row = self.rows.iter().find(|row| row.id == *id);
            let rounds = row.map(|row| match which {
                Figure::Ratio => row.ratios(),
                Figure::Agent => row.rounds(AGENT).unwrap_or_default().to_vec(),
            });
            (
                *text,
                rounds
                    .filter(|rounds| !rounds.is_empty())
                    .map(|all| median(&all)),
                bound,
            )
        })
    }

    pub fn write_json(&self, file: &Path) -> io::Result<()> {
        let rows: Vec<Value> = self.rows.iter().map(row_json).collect();
        let targets: Vec<Value> = self
            .targets()
            .map(|(text, measured, bound)| {
                let (sign, limit, reached) = judge(bound, measured);
                json!({"target": text, "bound": format!("{sign} {limit}"), "measured": measured, "reached": reached})
            })
            .collect();
        let all = json!({
            "quick": self.quick, "machine": machine(), "rows": rows, "targets": targets,
            "notes": self.notes, "skipped": self.skipped, "failed": self.failed,
        });
        fs::write(file, format!("{all:#}\n"))
    }
}

fn row_json(row: &Row) -> Value {
    let ratios = row.ratios();
    let mut all = json!({"id": row.id, "what": row.what, "unit": row.unit, "rounds": {}});
    for (server, rounds) in &row.cells {
        all[server] = json!(median(rounds));
        all["rounds"][server] = json!(rounds);
    }
    if !ratios.is_empty() {
        all["ratio"] = json!(median(&ratios));
    }
    all
}

/// The sign and limit of a bound, and whether it holds; nothing measured holds nothing.
fn judge(bound: &Bound, measured: Option<f64>) -> (&'static str, f64, bool) {
    let holds = |test: &dyn Fn(f64) -> bool| measured.is_some_and(test);
    match *bound {
        Bound::AtMost(limit) => ("<=", limit, holds(&|value| value <= limit)),
        Bound::AtLeast(limit) => (">=", limit, holds(&|value| value >= limit)),
        Bound::Under(limit) => ("<", limit, holds(&|value| value < limit)),
    }
}

/// Three digits that matter.
fn figure(value: f64) -> String {
    match value {
        large if large >= 1000.0 => format!("{large:.0}"),
        middle if middle >= 100.0 => format!("{middle:.1}"),
        tiny if tiny < 0.1 => format!("{tiny:.4}"),
        small => format!("{small:.2}"),
    }
}

/// Kernel, processor and load: a busy machine makes noisy numbers.
fn machine() -> String {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let cpus = read("/proc/cpuinfo");
    let model = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .unwrap_or_default();
    let load = read("/proc/loadavg");
    format!(
        "Linux {}, {}, load {}",
        read("/proc/sys/kernel/osrelease").trim(),
        model.trim_start_matches(['\t', ' ', ':']),
        load.split(' ').next().unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: &str, hyper: &[f64], agent: &[f64]) -> Row {
        let cells = vec![(HYPER, hyper.to_vec()), (AGENT, agent.to_vec())];
        Row {
            id: id.to_owned(),
            what: String::new(),
            unit: "us",
            cells,
        }
    }

    #[test]
    fn a_ratio_is_the_median_of_the_rounds_ratios() {
        let noisy = row("p50_1", &[10.0, 100.0, 10.0], &[11.0, 110.0, 30.0]);
        assert!((median(&noisy.ratios()) - 1.1).abs() < 1e-9);
    }

    #[test]
    fn a_target_is_reached_only_by_what_was_measured() {
        let mut report = Report::new(true, false);
        report.row(row("p50_1", &[10.0], &[11.5]));
        report.row(row("rate_64", &[100.0], &[84.0]));
        let verdicts: Vec<bool> = report
            .targets()
            .map(|(_, measured, bound)| judge(bound, measured).2)
            .collect();
        let mut expected = vec![false; TARGETS.len()];
        expected[0] = true;
        assert_eq!(verdicts, expected);
    }
}
