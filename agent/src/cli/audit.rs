//! `keyhatchd audit`: reading the audit log. It works on the files, with or without a running daemon.

use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Subcommand;

use super::{audit_report, audit_verify, exit, fail, paths};
use crate::audit::{self, AuditError, Filter, Record};
use crate::config::{self, Config, Depth};
use crate::review;

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Print the newest records
    #[command(after_help = "Example: keyhatchd audit tail -f")]
    Tail(Tail),
    /// Print the records that match; patterns have * for anything
    #[command(
        after_help = "Example: keyhatchd audit query --bot support-bot --decision deny --since 1h"
    )]
    Query(Box<Query>),
    /// Say who read what, what was denied, and what of the policy nobody uses
    #[command(after_help = "Example: keyhatchd audit report --since 7d --html > report.html")]
    Report(audit_report::Report),
    /// Check every record and the chain that binds them
    #[command(after_help = "Example: keyhatchd audit verify")]
    Verify(audit_verify::Verify),
    /// Begin sealed checkpoints, and print the key that they are verified with, once
    #[command(
        after_help = "Example: keyhatchd audit keygen > /media/usb/HOST.key, then off the host: keyhatchd audit verify --dir COPY --key HOST.key"
    )]
    Keygen(audit_verify::Keygen),
}

/// Which log.
#[derive(clap::Args)]
pub struct At {
    /// The folder of the log
    #[arg(long, value_name = "DIR", conflicts_with = "config")]
    dir: Option<PathBuf>,
    /// The daemon's configuration, which names the folder
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(clap::Args)]
struct Tail {
    #[command(flatten)]
    at: At,
    /// Go on with new records as they come
    #[arg(short, long)]
    follow: bool,
    /// How many records to begin with
    #[arg(short = 'n', long, default_value_t = 20)]
    lines: usize,
    /// Print the records themselves, one JSON object a line
    #[arg(long)]
    json: bool,
    /// Print events for a SIEM, one JSON object a line
    #[arg(long, conflicts_with = "json")]
    format: Option<Siem>,
}

/// The words of a SIEM.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Siem {
    /// The Elastic Common Schema
    Ecs,
    /// The Open Cybersecurity Schema Framework
    Ocsf,
}

impl Siem {
    fn line(self, record: &Record) -> String {
        match self {
            Self::Ecs => review::ecs(record).to_string(),
            Self::Ocsf => review::ocsf(record).to_string(),
        }
    }
}

#[derive(clap::Args)]
struct Query {
    #[command(flatten)]
    at: At,
    /// The bot's name
    #[arg(long)]
    bot: Option<String>,
    /// The secret's name
    #[arg(long)]
    secret: Option<String>,
    /// The event, such as secret.read or alert.*
    #[arg(long)]
    event: Option<String>,
    /// allow, deny or info
    #[arg(long)]
    decision: Option<String>,
    /// The peer's unit
    #[arg(long)]
    unit: Option<String>,
    /// The peer's uid
    #[arg(long)]
    uid: Option<u32>,
    /// The peer's process id
    #[arg(long)]
    pid: Option<u32>,
    /// The path of the peer's program, as records show it
    #[arg(long)]
    exe: Option<String>,
    /// Not before: a time as 2026-01-31T12:00:00Z, or a span such as 2h before now
    #[arg(long, value_parser = moment)]
    since: Option<SystemTime>,
    /// Not after: the same
    #[arg(long, value_parser = moment)]
    until: Option<SystemTime>,
    /// A record's number, or FIRST-LAST
    #[arg(long, value_parser = numbers)]
    seq: Option<(u64, u64)>,
    /// At most so many, the newest ones
    #[arg(long)]
    limit: Option<usize>,
    /// Print the records themselves, one JSON object a line
    #[arg(long, conflicts_with = "csv")]
    json: bool,
    /// Print comma-separated values with a header line
    #[arg(long)]
    csv: bool,
    /// Print events for a SIEM, one JSON object a line
    #[arg(long, conflicts_with_all = ["json", "csv"])]
    format: Option<Siem>,
}

pub fn audit(args: Args) -> u8 {
    match args.verb {
        Verb::Tail(tail) => with_dir(&tail.at, |dir| print_tail(&dir, &tail)),
        Verb::Query(query) => with_dir(&query.at, |dir| print_query(&dir, &query)),
        Verb::Report(report) => audit_report::report(&report),
        Verb::Verify(verify) => audit_verify::verify(&verify),
        Verb::Keygen(keygen) => audit_verify::keygen(&keygen),
    }
}

fn with_dir(at: &At, act: impl FnOnce(PathBuf) -> Result<u8, AuditError>) -> u8 {
    match at.find().map(act) {
        Ok(Ok(code)) => code,
        Ok(Err(error)) => fail(exit::FAILED, error),
        Err(problem) => fail(exit::CONFIG, problem),
    }
}

impl At {
    /// The log of that configuration, or of the one that is found.
    pub fn of_config(config: Option<PathBuf>) -> Self {
        Self { dir: None, config }
    }

    /// The folder that is meant: the service's where it has a configuration, else the caller's own.
    pub fn find(&self) -> Result<PathBuf, String> {
        self.find_with_config().map(|(dir, _)| dir)
    }

    /// The configuration that is meant; none where the folder was named itself.
    pub fn config(&self) -> Result<Option<Config>, String> {
        self.find_with_config().map(|(_, config)| config)
    }

    /// Both.
    pub fn find_with_config(&self) -> Result<(PathBuf, Option<Config>), String> {
        match &self.dir {
            Some(dir) => Ok((dir.clone(), None)),
            None => self
                .load()
                .map(|config| (config.audit.dir.clone(), Some(config))),
        }
    }

    fn load(&self) -> Result<Config, String> {
        let service = PathBuf::from(paths::CONFIG);
        let dev = paths::dev_state().map(|state| state.join("keyhatch.toml"));
        let config = self
            .config
            .clone()
            .or_else(|| Some(service).filter(|path| path.exists()))
            .or_else(|| dev.filter(|path| path.exists()))
            .ok_or("no configuration found; name the log with --dir or --config")?;
        config::load(&config, Depth::ContentOnly).map_err(|problems| {
            let problems = problems.iter().map(ToString::to_string);
            problems.collect::<Vec<_>>().join("\n")
        })
    }
}

fn print_tail(dir: &std::path::Path, args: &Tail) -> Result<u8, AuditError> {
    let color = colored();
    let mut said = Ok(());
    audit::tail(dir, args.follow, args.lines, |record| {
        let line = match args.format {
            Some(format) => format.line(record),
            None if args.json => record.line.clone(),
            None => audit::format_line(record, color),
        };
        said = say(&line);
        said.is_ok()
    })?;
    Ok(printed(said, 0))
}

fn print_query(dir: &std::path::Path, args: &Query) -> Result<u8, AuditError> {
    let filter = Filter {
        bot: args.bot.clone(),
        secret: args.secret.clone(),
        event: args.event.clone(),
        decision: args.decision.clone(),
        unit: args.unit.clone(),
        uid: args.uid,
        pid: args.pid,
        exe: args.exe.clone(),
        since: args.since,
        until: args.until,
        seq: args.seq,
        limit: args.limit,
    };
    let color = colored();
    let mut out = BufWriter::new(std::io::stdout().lock());
    let mut said = if args.csv {
        writeln!(out, "{HEADER}")
    } else {
        Ok(())
    };
    audit::lines(dir, &filter, |line| {
        if args.json {
            said = out.write_all(line).and_then(|()| out.write_all(b"\n"));
            return said.is_ok();
        }
        let Some(record) = Record::parse(line) else {
            return true;
        };
        let text = match args.format {
            Some(format) => format.line(&record),
            None if args.csv => csv(&record),
            None => audit::format_line(&record, color),
        };
        said = writeln!(out, "{text}");
        said.is_ok()
    })?;
    Ok(printed(said.and_then(|()| out.flush()), 0))
}

/// The columns of comma-separated values.
const HEADER: &str =
    "seq,time,event,decision,reason,secret,version,bot,uid,pid,unit,exe,request_id";

/// Whether standard output shows colours, and nobody asked for none (no-color.org).
fn colored() -> bool {
    let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    std::io::stdout().is_terminal() && !unwanted
}

/// Prints a line.
pub(super) fn say(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush())
}

/// The exit code once something was `said`, else what failed. Who reads may have gone, as `head` does, which is
/// no failure.
pub(super) fn printed(said: io::Result<()>, code: u8) -> u8 {
    match said {
        Err(why) if why.kind() != io::ErrorKind::BrokenPipe => fail(
            exit::FAILED,
            format!("cannot write to standard output: {why}"),
        ),
        _ => code,
    }
}

fn csv(record: &Record) -> String {
    let peer = record.peer.as_ref();
    let number = |n: Option<u64>| n.map(|n| n.to_string()).unwrap_or_default();
    let text = |t: &Option<String>| t.clone().unwrap_or_default();
    let cells = [
        record.seq.to_string(),
        record.time.clone(),
        record.event.clone(),
        record.decision.clone(),
        text(&record.reason),
        text(&record.secret),
        text(&record.version),
        text(&record.bot),
        number(peer.and_then(|peer| peer.uid)),
        number(peer.and_then(|peer| peer.pid)),
        peer.map(|peer| text(&peer.unit)).unwrap_or_default(),
        peer.map(|peer| text(&peer.exe)).unwrap_or_default(),
        text(&record.request_id),
    ];
    cells
        .iter()
        .map(|cell| csv_cell(cell))
        .collect::<Vec<_>>()
        .join(",")
}

/// RFC 4180, and no cell that a spreadsheet takes for a formula.
fn csv_cell(text: &str) -> String {
    let guarded = if text.starts_with(['=', '+', '-', '@']) {
        format!("'{text}")
    } else {
        text.to_owned()
    };
    let clean = audit::safe(&guarded);
    if clean.contains([',', '"']) {
        format!("\"{}\"", clean.replace('"', "\"\""))
    } else {
        clean
    }
}

pub(super) fn moment(text: &str) -> Result<SystemTime, String> {
    if let Ok(span) = humantime::parse_duration(text) {
        // RFC 3339 is written from 1970 on; there is no record before.
        let at = SystemTime::now().checked_sub(span);
        return Ok(at.map_or(UNIX_EPOCH, |at| at.max(UNIX_EPOCH)));
    }
    humantime::parse_rfc3339_weak(text)
        .map_err(|_| "write 2026-01-31T12:00:00Z, or a span such as 2h".into())
}

fn numbers(text: &str) -> Result<(u64, u64), String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (first.parse(), last.parse()) {
        (Ok(first), Ok(last)) => Ok((first, last)),
        _ => Err("write a number, or FIRST-LAST".into()),
    }
}
