//! `keyhatch-bench`: how fast the agent is, as ratios within one run.
//!
//! Three servers give the same answer over a Unix socket: a raw one that parses nothing (the floor of the
//! kernel), a bare hyper one (the floor of the library), and `keyhatchd`. Servers run on core 0, the load on
//! core 1, in alternating rounds, so that what the machine does meanwhile hits all three alike.

mod agent;
mod answer;
mod cgroup;
mod fleet;
mod load;
mod nginx;
mod openbao;
mod origin;
mod process;
mod reader;
mod report;
mod rows;
mod servers;
mod stats;
mod traffic;
mod watch;

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::report::Report;
use crate::rows::Plan;

const USAGE: &str = "\
keyhatch-bench: the agent's speed against a bare hyper server and a raw socket

usage: keyhatch-bench [--quick] [--json FILE] [--only GROUP] [--without-agent]
       keyhatch-bench fleet [--json AGENTS SECRETS REFRESH CAPACITY]

  --quick          under a minute, noisier
  --json FILE      write every round's numbers there too
  --only GROUP     only these rows: memory, speed, watchers, rotation, selectors, drop-in, clients, detection, start,
                   upstream, routes, store, audit
  --without-agent  only the two servers to compare with
  fleet            what 2,000 agents ask of one upstream, simulated; or one fleet as JSON

example: cargo build --release -p keyhatch-agent -p keyhatch-bench && target/release/keyhatch-bench --quick
Run it as root for the rows that need it (bots by unit and exe, the store of 10,000 secrets).
";

/// The server's core, and the load's.
const SERVER_CORE: usize = 0;
const LOAD_CORE: usize = 1;

struct Options {
    quick: bool,
    json: Option<PathBuf>,
    only: Option<String>,
    without_agent: bool,
}

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let words: Vec<&str> = arguments.iter().filter_map(|word| word.to_str()).collect();
    let outcome = match words[..] {
        ["serve-raw", socket, answer] => servers::raw(Path::new(socket), Path::new(answer)),
        ["serve-hyper", socket, answer] => servers::hyper(Path::new(socket), Path::new(answer)),
        ["serve-origin", socket] => origin::serve(Path::new(socket)),
        ["read", way, name] => reader::main(way, name),
        ["fleet", ref rest @ ..] => {
            if fleet::main(rest) {
                return ExitCode::SUCCESS;
            }
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
        _ => match options(&words, arguments.len()) {
            Some(options) => return bench(&options),
            None => return ExitCode::from(2),
        },
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("keyhatch-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

/// None: usage was printed and there is nothing to run.
fn options(words: &[&str], given: usize) -> Option<Options> {
    let mut options = Options {
        quick: false,
        json: None,
        only: None,
        without_agent: false,
    };
    let mut rest = words.iter();
    let mut understood = words.len() == given;
    while let Some(word) = rest.next() {
        match *word {
            "--quick" => options.quick = true,
            "--without-agent" => options.without_agent = true,
            "--only" => match rest.next().filter(|group| rows::GROUPS.contains(group)) {
                Some(group) => options.only = Some((*group).to_owned()),
                None => understood = false,
            },
            "--json" => match rest.next() {
                Some(file) => options.json = Some(PathBuf::from(file)),
                None => understood = false,
            },
            _ => understood = false,
        }
    }
    if !understood {
        eprint!("{USAGE}");
        return None;
    }
    Some(options)
}

fn bench(options: &Options) -> ExitCode {
    let mut report = Report::new(options.quick, options.only.is_some());
    if let Err(error) = run(options, &mut report) {
        report.failed("the benchmark", &error);
    }
    report.finish();
    if let Some(file) = &options.json
        && let Err(error) = report.write_json(file)
    {
        eprintln!("keyhatch-bench: {}: {error}", file.display());
        return ExitCode::FAILURE;
    }
    if report.complete() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn run(options: &Options, report: &mut Report) -> io::Result<()> {
    if cfg!(debug_assertions) {
        report.note("a debug build: build with --release, these numbers mean nothing");
    }
    process::raise_open_files()?;
    process::pin(LOAD_CORE)?;
    let folder = process::TempFolder::new()?;
    let plan = Plan::new(options.quick, options.only.clone());
    if options.without_agent {
        return rows::without_agent(&plan, &folder, report);
    }
    rows::all(&plan, &folder, report)
}
