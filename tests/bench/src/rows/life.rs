//! Starting, resting and storing: memory, cold start, and the verbs on a large store.

use std::io;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::geteuid;

use super::{Plan, request};
use crate::agent::{Selector, Site};
use crate::load::{self, Ask, Stop};
use crate::process::Memory;
use crate::report::Report;

/// The large store: as many values, of as many bytes each.
const MANY: usize = 10_000;
const LARGE: usize = 1024;
/// A server at rest has done its chores by then.
const REST: Duration = Duration::from_secs(1);

/// An agent of its own: at rest after its start, and again after many reads.
pub fn memory(plan: &Plan, site: &Site, report: &mut Report) -> io::Result<()> {
    let mut agent = site.start("at-rest", Selector::User)?;
    let answer = agent.first_answer(&request())?;
    thread::sleep(REST);
    let before = agent.memory()?;
    let ask = Ask::new(request(), &answer);
    load::many(agent.socket(), &ask, 64, false, Stop::Answers(plan.reads))?;
    thread::sleep(REST);
    let after = agent.memory()?;

    let reads = format!("after {} reads", plan.reads);
    memory_rows(report, "idle", "idle, 1,000 secrets", before);
    memory_rows(report, "used", &reads, after);
    let growth = after.anonymous - before.anonymous;
    report.agent(
        "growth",
        &format!("heap growth, {reads}"),
        "KiB",
        vec![growth],
    );
    Ok(())
}

fn memory_rows(report: &mut Report, id: &str, when: &str, memory: Memory) {
    let figures = [
        ("rss", "VmRSS", memory.resident),
        ("anon", "RssAnon", memory.anonymous),
        ("file", "RssFile", memory.file),
        ("shmem", "RssShmem", memory.shared),
        ("locked", "VmLck", memory.locked),
    ];
    for (part, name, kib) in figures {
        report.agent(
            &format!("{id}_{part}"),
            &format!("{when}: {name}"),
            "MiB",
            vec![kib / 1024.0],
        );
    }
}

/// From the start of the process to its first good answer, with the files in the page cache.
pub fn cold_start(plan: &Plan, site: &Site, secrets: &str, report: &mut Report) -> io::Result<()> {
    let mut starts = Vec::new();
    for _ in 0..plan.starts {
        let begin = Instant::now();
        let mut agent = site.start("cold", Selector::User)?;
        agent.first_answer(&request())?;
        starts.push(millis(begin.elapsed()));
    }
    let id = format!("cold_{}", secrets.replace(',', ""));
    report.agent(&id, &format!("cold start, {secrets} secrets"), "ms", starts);
    Ok(())
}

/// 10,000 secrets of 1 KiB: verbs on the files, and a start where locked memory allows it.
pub fn large_store(plan: &Plan, folder: &Path, report: &mut Report) -> io::Result<()> {
    let begin = Instant::now();
    let site = Site::new(&folder.join("large"), MANY, LARGE)?;
    let made = vec![millis(begin.elapsed())];
    report.agent(
        "import_10000",
        "store init and import, 10,000 of 1 KiB",
        "ms",
        made,
    );
    let mut puts = Vec::new();
    for number in 0..plan.store_runs {
        puts.push(millis(site.time_put(number, LARGE)?));
    }
    report.agent("put_10000", "store put into 10,000 of 1 KiB", "ms", puts);
    let mut opens = Vec::new();
    for _ in 0..plan.store_runs {
        opens.push(millis(site.time_verify()?));
    }
    report.agent("verify_10000", "store verify, 10,000 of 1 KiB", "ms", opens);
    if !geteuid().is_root() {
        report.skipped(
            "cold start, 10,000 secrets",
            "needs root, to lock that much memory",
        );
        return Ok(());
    }
    cold_start(plan, &site, "10,000", report)
}

pub fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
