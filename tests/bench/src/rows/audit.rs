//! Reading a large audit log: millions of records of forty bots over thirty days, as the agent writes and packs them.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use keyhatch_agent::audit::Hash;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use super::Plan;
use super::life::millis;
use crate::agent::Site;
use crate::report::Report;
use crate::{LOAD_CORE, SERVER_CORE};

const BOTS: u64 = 40;
const SECRETS: u64 = 60;
const DAYS: u64 = 30;
/// A segment, as by default.
const SEGMENT: usize = 64 << 20;
/// The level that the agent packs with.
const LEVEL: i32 = 1;

/// A log of `plan.records`, and each reader on it.
pub fn all(plan: &Plan, folder: &Path, site: &Site, report: &mut Report) -> io::Result<()> {
    let dir = folder.join("audit-log");
    fs::create_dir(&dir)?;
    let bytes = Log::new(&dir, plan.records).write()?;
    report.note(&format!(
        "audit: {} records, {} MiB, {} MiB packed",
        plan.records,
        bytes >> 20,
        packed(&dir)? >> 20
    ));
    // The benchmark stays on one core; readers may have both.
    thread::scope(|scope| {
        let measured = scope.spawn(|| measure(plan, &dir, bytes, site, report));
        measured
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("a reader's thread panicked")))
    })?;
    fs::remove_dir_all(&dir)
}

fn measure(
    plan: &Plan,
    dir: &Path,
    bytes: u64,
    site: &Site,
    report: &mut Report,
) -> io::Result<()> {
    let mut cores = CpuSet::new();
    cores.set(SERVER_CORE)?;
    cores.set(LOAD_CORE)?;
    sched_setaffinity(Pid::from_raw(0), &cores)?;
    let since = ["--since", "4000d"];
    let verbs: [(&str, &str, Vec<&str>); 5] = [
        (
            "audit_query",
            "audit query --bot --secret --decision",
            vec![
                "query",
                "--json",
                "--bot",
                "bot-07",
                "--secret",
                "app/7/*",
                "--decision",
                "deny",
            ],
        ),
        (
            "audit_query_day",
            "audit query --bot, one day",
            vec![
                "query",
                "--json",
                "--bot",
                "bot-07",
                "--since",
                "2026-01-20T00:00:00Z",
                "--until",
                "2026-01-21T00:00:00Z",
            ],
        ),
        (
            "audit_query_all",
            "audit query, all as JSON",
            vec!["query", "--json"],
        ),
        (
            "audit_report",
            "audit report --json",
            [&["report", "--json"], &since[..]].concat(),
        ),
        ("audit_verify", "audit verify", vec!["verify"]),
    ];
    let mut most = 0.0_f64;
    for (id, what, verb) in verbs {
        let mut took = Vec::new();
        for _ in 0..plan.store_runs.min(3) {
            let run = Run::of(site.daemon(), dir, &verb)?;
            most = most.max(run.resident);
            took.push(run.wall);
        }
        if id == "audit_verify" {
            let rate = |wall: &Duration| (bytes >> 20) as f64 / wall.as_secs_f64();
            let rates = took.iter().map(rate).collect();
            report.agent(id, what, "MiB/s", rates);
        } else {
            report.agent(id, what, "ms", took.into_iter().map(millis).collect());
        }
    }
    report.agent(
        "audit_memory",
        "the largest of them: VmHWM",
        "MiB",
        vec![most],
    );
    Ok(())
}

/// One verb from start to end.
struct Run {
    wall: Duration,
    /// The most memory that it was seen to have, in MiB.
    resident: f64,
}

impl Run {
    fn of(daemon: &Path, dir: &Path, verb: &[&str]) -> io::Result<Self> {
        let begin = Instant::now();
        let mut child = Command::new(daemon)
            .arg("audit")
            .args(verb)
            .arg("--dir")
            .arg(dir)
            .stdout(Stdio::null())
            .spawn()?;
        let status = PathBuf::from(format!("/proc/{}/status", child.id()));
        let mut resident = 0.0;
        let exit = loop {
            resident = high_water(&status).unwrap_or(resident);
            if let Some(exit) = child.try_wait()? {
                break exit;
            }
            thread::sleep(Duration::from_millis(2));
        };
        let wall = begin.elapsed();
        if exit.success() {
            return Ok(Self { wall, resident });
        }
        Err(io::Error::other(format!(
            "keyhatchd audit {}: {exit}",
            verb.join(" ")
        )))
    }
}

fn high_water(status: &Path) -> Option<f64> {
    let text = fs::read_to_string(status).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib / 1024.0)
}

fn packed(dir: &Path) -> io::Result<u64> {
    fs::read_dir(dir)?
        .map(|entry| Ok(entry?.metadata()?.len()))
        .sum()
}

/// A log that is written without a daemon, since no daemon is thirty days old.
struct Log {
    dir: PathBuf,
    records: u64,
    seq: u64,
    prev: Hash,
    random: u64,
}

impl Log {
    fn new(dir: &Path, records: u64) -> Self {
        Self {
            dir: dir.to_owned(),
            records,
            seq: 0,
            prev: Hash::START,
            random: 0x9e37_79b9_7f4a_7c15,
        }
    }

    /// Writes all segments, packed as the agent does; how many bytes they were.
    fn write(mut self) -> io::Result<u64> {
        let mut bytes = 0;
        let mut segment = Vec::with_capacity(SEGMENT);
        while self.seq < self.records {
            let first = self.seq + 1;
            segment.clear();
            while self.seq < self.records && segment.len() < SEGMENT - 1024 {
                self.next(&mut segment)?;
            }
            bytes += segment.len() as u64;
            let path = self.dir.join(format!("audit-{first:020}.jsonl.zst"));
            let mut encoder = zstd::Encoder::new(File::create(path)?, LEVEL)?;
            encoder.write_all(&segment)?;
            encoder.finish()?;
        }
        Ok(bytes)
    }

    /// A number below `end`, the same in each run.
    fn below(&mut self, end: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % end
    }

    fn next(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        self.seq += 1;
        let since = DAYS * 24 * 60 * 60 * 1_000_000 / self.records * self.seq;
        // 1 January 2026.
        let at = SystemTime::UNIX_EPOCH
            + Duration::from_secs(1_767_225_600)
            + Duration::from_micros(since);
        let (bot, secret, id) = (self.below(BOTS), self.below(SECRETS), self.below(u64::MAX));
        let denied = self.below(33) == 0;
        let (decision, reason, version) = if denied {
            ("deny", "no_grant", "null".to_owned())
        } else {
            ("allow", "granted", format!("\"{secret}-92a2d55489e3e900\""))
        };
        let start = out.len();
        write!(
            out,
            "{{\"seq\":{},\"time\":\"{}\",\"mono\":{}.{:06},\"event\":\"secret.read\",\"decision\":\"{decision}\",\
             \"reason\":\"{reason}\",\"rule\":\"/etc/keyhatch/keyhatch.toml:{}\",\"secret\":\"app/{}/key-{secret}\",\
             \"version\":{version},\"bot\":\"bot-{bot:02}\",\"roles\":[\"reader\"],\"surface\":\"native\",\
             \"peer\":{{\"pid\":{},\"uid\":{},\"gid\":{},\"exe\":null,\"unit\":\"bot-{bot:02}.service\",\
             \"invocation_id\":null}},\"request_id\":\"{id:016x}\",\"prev\":\"{}\"",
            self.seq,
            humantime::format_rfc3339_micros(at),
            since / 1_000_000,
            since % 1_000_000,
            40 + bot,
            secret % 10,
            2_000 + bot,
            20_000 + bot,
            20_000 + bot,
            self.prev
        )?;
        self.prev = Hash::of(&out[start..]);
        writeln!(out, ",\"hash\":\"{}\"}}", self.prev)
    }
}
