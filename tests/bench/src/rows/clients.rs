//! The client libraries, one reader at a time: reads a second and the median of one, with and without their in-process
//! cache, beside what they replace in the same rounds: an environment variable, and boto3 with AWS's cache through
//! `keyhatch bridge`.

use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use super::Plan;
use crate::agent::READ;
use crate::process::{Server, TempFolder};
use crate::report::Report;

/// The way that is the measure of the others.
const ENVIRON: &str = "environ";
const BOTO3_CACHED: &str = "boto3-cached";

/// A way to read a secret: its id, and what the report calls it.
const WAYS: [(&str, &str); 13] = [
    (ENVIRON, "Python's os.environ"),
    ("boto3", "boto3 by the bridge"),
    (BOTO3_CACHED, "boto3 with AWS's cache"),
    ("rust", "Rust"),
    ("rust-cached", "Rust, cached"),
    ("go", "Go"),
    ("go-cached", "Go, cached"),
    ("node", "Node"),
    ("node-cached", "Node, cached"),
    ("python", "Python"),
    ("python-cached", "Python, cached"),
    ("asyncio", "Python asyncio"),
    ("asyncio-cached", "Python asyncio, cached"),
];

/// Reads a second and p50 of each, and what part that is of the two measures.
pub fn all(
    plan: &Plan,
    folder: &TempFolder,
    agent: &Server,
    report: &mut Report,
) -> io::Result<()> {
    let tools = Tools::find(folder)?;
    let mut bridge = tools.bridge(agent.socket())?;
    let url = bridge.line()?;
    let mut readers = Vec::new();
    for (way, what) in WAYS {
        let started = tools
            .command(way)
            .and_then(|command| Program::start(command, agent.socket(), &url));
        match started {
            Ok(reader) => readers.push(Reader::new(way, what, reader)),
            Err(error) => report.skipped(what, &error.to_string()),
        }
    }
    for round in 0..=plan.rounds {
        for reader in &mut readers {
            reader.measure(plan, round)?;
        }
    }
    for reader in &readers {
        reader.add(&readers, report);
    }
    Ok(())
}

/// One way being measured: its figures, round by round.
struct Reader {
    way: &'static str,
    what: &'static str,
    program: Program,
    rates: Vec<f64>,
    medians: Vec<f64>,
}

impl Reader {
    fn new(way: &'static str, what: &'static str, program: Program) -> Self {
        Self {
            way,
            what,
            program,
            rates: Vec::new(),
            medians: Vec::new(),
        }
    }

    /// One slice; the first round only warms up.
    fn measure(&mut self, plan: &Plan, round: usize) -> io::Result<()> {
        let said = self.program.ask(plan.slice.as_secs_f64());
        let said = said.map_err(|error| io::Error::other(format!("{}: {error}", self.what)))?;
        let figures: Vec<f64> = said.split(' ').filter_map(|one| one.parse().ok()).collect();
        let [rate, median] = figures[..] else {
            return Err(io::Error::other(format!("{} said {said:?}", self.what)));
        };
        if round > 0 {
            self.rates.push(rate);
            self.medians.push(median);
        }
        Ok(())
    }

    fn add(&self, all: &[Self], report: &mut Report) {
        let Self { way, what, .. } = self;
        let (rates, medians) = (self.rates.clone(), self.medians.clone());
        report.agent(
            &format!("{way}_rate"),
            &format!("{what}: reads"),
            "/s",
            rates,
        );
        report.agent(
            &format!("{way}_p50"),
            &format!("{what}: p50"),
            "us",
            medians,
        );
        for (measure, short) in [
            (ENVIRON, "os.environ"),
            (BOTO3_CACHED, "boto3 with AWS's cache"),
        ] {
            let Some(measure) = all.iter().find(|one| one.way == measure && one.way != *way) else {
                continue;
            };
            let ratios = self.rates.iter().zip(&measure.rates);
            report.agent(
                &format!("{way}_of_{}", measure.way),
                &format!("{what}: of {short}"),
                "",
                ratios.map(|(own, other)| own / other).collect(),
            );
        }
    }
}

/// A program that answers each line with one.
struct Program {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Program {
    fn start(mut command: Command, socket: &Path, url: &str) -> io::Result<Self> {
        command
            .env("KEYHATCH_SOCKET", socket)
            .env("AWS_ENDPOINT_URL_SECRETS_MANAGER", url)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.spawn()?;
        match (child.stdin.take(), child.stdout.take()) {
            (Some(input), Some(output)) => Ok(Self {
                child,
                input,
                output: BufReader::new(output),
            }),
            _ => Err(io::Error::other("a program without pipes")),
        }
    }

    fn ask(&mut self, seconds: f64) -> io::Result<String> {
        writeln!(self.input, "{seconds}")?;
        self.line()
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            return Err(io::Error::other("it ended without an answer"));
        }
        Ok(line.trim().to_owned())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended by itself, as it was told.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Where the programs are that run the readers: as `tests/run` builds and installs them.
struct Tools {
    own: PathBuf,
    sources: PathBuf,
    target: PathBuf,
    go: PathBuf,
}

impl Tools {
    fn find(folder: &TempFolder) -> io::Result<Self> {
        let own = std::env::current_exe()?;
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        Ok(Self {
            own,
            sources: root.join("tests/bench/clients"),
            target: root.join("target"),
            go: folder.path().join("go-reader"),
        })
    }

    fn bridge(&self, socket: &Path) -> io::Result<Program> {
        let mut command = Command::new(self.own.with_file_name("keyhatch"));
        command.arg("bridge");
        Program::start(command, socket, "").map_err(|error| {
            io::Error::other(format!(
                "keyhatch is not built beside this program: {error}"
            ))
        })
    }

    fn command(&self, way: &str) -> io::Result<Command> {
        let library = |name: &str| self.sources.join("../../../client-shims").join(name);
        let mut command = match way.split('-').next().unwrap_or(way) {
            "rust" => {
                let mut command = Command::new(&self.own);
                command.arg("read");
                command
            }
            "go" => Command::new(self.built_go()?),
            "node" => {
                let library = library("node/dist/index.mjs");
                if !library.exists() {
                    return Err(io::Error::other("the library for Node is not built"));
                }
                let mut command = Command::new("node");
                command.arg(self.sources.join("reader.mjs"));
                command.env("KEYHATCH_LIBRARY", library);
                command
            }
            _ => {
                let mut command = Command::new(self.target.join("venv/bin/python"));
                command.arg(self.sources.join("reader.py"));
                command.env("PYTHONPATH", library("python/src"));
                command.env("PYTHONDONTWRITEBYTECODE", "1");
                command
            }
        };
        command.args([way, READ]);
        Ok(command)
    }

    /// Builds the reader for Go, once.
    fn built_go(&self) -> io::Result<&Path> {
        if !self.go.exists() {
            let mut build = Command::new(self.target.join("venv/bin/go"));
            build.args(["build", "-o"]).arg(&self.go).arg(".");
            build.current_dir(self.sources.join("go"));
            build.env("GOCACHE", self.target.join("go-cache"));
            build.envs([
                ("GOPROXY", "off"),
                ("GOTOOLCHAIN", "local"),
                ("GOFLAGS", "-mod=mod"),
            ]);
            if !build.status()?.success() {
                return Err(io::Error::other("go build failed"));
            }
        }
        Ok(&self.go)
    }
}
