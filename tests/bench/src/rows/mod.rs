//! The rows of the report. Each group stands on its own: one that fails is named, and the next one runs.

mod audit;
mod clients;
mod detection;
mod dropin;
mod life;
mod rotation;
mod routes;
mod speed;
mod upstream;

use std::io;
use std::path::Path;
use std::time::Duration;

use crate::agent::{READ, Selector, Site};
use crate::answer::{self, Answer};
use crate::load::Ask;
use crate::process::{Server, TempFolder};
use crate::report::Report;

/// Bytes of a value that the load reads.
const VALUE: usize = 200;
const SECRETS: usize = 1000;

/// How much is measured.
pub struct Plan {
    rounds: usize,
    slice: Duration,
    reads: usize,
    starts: usize,
    rotations: usize,
    store_runs: usize,
    /// Records of the large audit log.
    records: u64,
    /// The one group that is measured, where it is not all.
    only: Option<String>,
}

impl Plan {
    pub fn new(quick: bool, only: Option<String>) -> Self {
        if quick {
            let slice = Duration::from_millis(200);
            return Self {
                rounds: 3,
                slice,
                reads: 100_000,
                starts: 5,
                rotations: 20,
                store_runs: 3,
                records: 1_000_000,
                only,
            };
        }
        let slice = Duration::from_millis(600);
        Self {
            rounds: 9,
            slice,
            reads: 1_000_000,
            starts: 15,
            rotations: 20,
            store_runs: 9,
            records: 5_000_000,
            only,
        }
    }
}

/// The two servers to compare with.
struct Bare {
    raw: Server,
    hyper: Server,
}

impl Bare {
    /// Both give `answer`, and are checked to.
    fn start(folder: &Path, answer: &[u8], report: &mut Report) -> io::Result<Self> {
        let learnt = folder.join("answer");
        std::fs::write(&learnt, answer)?;
        let mut raw = Server::own("serve-raw", &folder.join("raw.sock"), &learnt)?;
        let mut hyper = Server::own("serve-hyper", &folder.join("hyper.sock"), &learnt)?;
        let given = hyper.first_answer(&request())?;
        if given.bytes().len() != answer.len() {
            let (bare, agent) = (given.bytes().len(), answer.len());
            report.note(&format!(
                "bare hyper answers {bare} bytes, the agent {agent}"
            ));
        }
        raw.first_answer(&request())?;
        Ok(Self { raw, hyper })
    }
}

/// What can be run by itself.
pub const GROUPS: [&str; 13] = [
    "memory",
    "speed",
    "watchers",
    "rotation",
    "selectors",
    "drop-in",
    "clients",
    "detection",
    "start",
    "upstream",
    "routes",
    "store",
    "audit",
];

/// Everything, or one group, on the agent and the two servers beside it.
pub fn all(plan: &Plan, folder: &TempFolder, report: &mut Report) -> io::Result<()> {
    let site = Site::new(&folder.path().join("site"), SECRETS, VALUE)?;
    group(plan, report, "memory", |report| {
        life::memory(plan, &site, report)
    });
    let mut agent = site.start("by-user", Selector::User)?;
    let learnt = agent.first_answer(&request())?;
    let bare = Bare::start(folder.path(), learnt.bytes(), report)?;
    let ask = Ask::new(request(), &learnt);
    group(plan, report, "speed", |report| {
        speed::all(plan, &bare, Some(&agent), &ask, report)
    });
    group(plan, report, "watchers", |report| {
        speed::beside_watchers(plan, &bare, Some(&agent), &ask, report)
    });
    group(plan, report, "rotation", |report| {
        rotation::all(plan, &site, &agent, report)
    });
    group(plan, report, "selectors", |report| {
        speed::by_selector(plan, &site, &bare, &agent, &ask, report)
    });
    group(plan, report, "drop-in", |report| {
        dropin::all(plan, &agent, report)
    });
    group(plan, report, "clients", |report| {
        clients::all(plan, folder, &agent, report)
    });
    drop(agent);
    group(plan, report, "detection", |report| {
        detection::all(plan, &site, report)
    });
    group(plan, report, "start", |report| {
        life::cold_start(plan, &site, "1,000", report)
    });
    group(plan, report, "upstream", |report| {
        upstream::all(plan, folder, &site, report)
    });
    group(plan, report, "routes", |report| {
        routes::all(plan, folder.path(), &site, report)
    });
    group(plan, report, "store", |report| {
        life::large_store(plan, folder.path(), report)
    });
    group(plan, report, "audit", |report| {
        audit::all(plan, folder.path(), &site, report)
    });
    Ok(())
}

/// The two servers alone, with an answer as the contract has it.
pub fn without_agent(plan: &Plan, folder: &TempFolder, report: &mut Report) -> io::Result<()> {
    let sample = answer::sample_answer();
    let bare = Bare::start(folder.path(), &sample, report)?;
    let ask = Ask::new(request(), &Answer::parse(&sample)?);
    speed::all(plan, &bare, None, &ask, report)?;
    speed::beside_watchers(plan, &bare, None, &ask, report)
}

fn group(
    plan: &Plan,
    report: &mut Report,
    name: &str,
    run: impl FnOnce(&mut Report) -> io::Result<()>,
) {
    if plan.only.as_ref().is_some_and(|only| only != name) {
        return;
    }
    if let Err(error) = run(report) {
        report.failed(name, &error);
    }
}

/// What every client of the load asks.
fn request() -> Vec<u8> {
    answer::get(&path_of(READ), "")
}

fn path_of(secret: &str) -> String {
    format!("/v1/secrets/{secret}")
}
