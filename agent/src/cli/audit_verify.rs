//! `keyhatchd audit verify` and `audit keygen`: whether the log is as it was written, even by whoever owns the host.

use std::fmt::Write;
use std::fs;
use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::audit::{At, printed, say};
use super::{exit, fail};
use crate::audit::{self, Hash, Head, KEY_FILE, Ratchet, Report, Sealing};
use crate::files::Trust;

#[derive(clap::Args)]
pub struct Verify {
    #[command(flatten)]
    at: At,
    /// A record that must be there, as SEQ:HASH, noted elsewhere before
    #[arg(long, value_parser = head)]
    head: Option<Head>,
    /// The file with what `audit keygen` printed, or - for standard input: check the sealed checkpoints, too
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
pub struct Keygen {
    /// The daemon's configuration, which names the folder of its state
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Begin anew where there is a key already; what it sealed is still verified with what was printed then
    #[arg(long)]
    replace: bool,
}

pub fn verify(args: &Verify) -> u8 {
    let (dir, sealing) = match what_to_check(args) {
        Ok(found) => found,
        Err((code, why)) => return fail(code, why),
    };
    match audit::verify_sealed(&dir, args.head, sealing.as_ref()) {
        Ok(report) => show(&report, args),
        Err(error) => fail(exit::FAILED, error),
    }
}

fn what_to_check(args: &Verify) -> Result<(PathBuf, Option<Sealing>), (u8, String)> {
    let (dir, config) = args
        .at
        .find_with_config()
        .map_err(|why| (exit::CONFIG, why))?;
    let Some(path) = &args.key else {
        return Ok((dir, None));
    };
    let key = read_key(path).map_err(|why| (exit::FAILED, why))?;
    let held = match config {
        Some(config) => held(&config.agent.state_dir).map_err(|why| (exit::FAILED, why))?,
        None => None,
    };
    Ok((dir, Some(Sealing { key, held })))
}

fn read_key(path: &Path) -> Result<Ratchet, String> {
    let mut text = Zeroizing::new(String::with_capacity(256));
    let read = if path.as_os_str() == "-" {
        io::stdin().lock().take(256).read_to_string(&mut text)
    } else {
        fs::File::open(path).and_then(|file| file.take(256).read_to_string(&mut text))
    };
    read.map_err(|why| format!("cannot read the key from {}: {why}", path.display()))?;
    Ratchet::parse(&text).ok_or_else(|| {
        let path = path.display();
        format!("{path} is no key: it has 64 hexadecimal digits, as `audit keygen` printed them")
    })
}

/// What the host holds for its next checkpoint: a log that ends before the last one was cut.
fn held(state_dir: &Path) -> Result<Option<Ratchet>, String> {
    let path = state_dir.join(KEY_FILE);
    let held = audit::load_key(&path, Trust::of_daemon(state_dir)).map_err(|why| {
        if why.is_forbidden() {
            format!(
                "{why}; as another user, name the log with --dir: a cut end shows by --head alone then"
            )
        } else {
            why.to_string()
        }
    })?;
    match held {
        Some(held) => Ok(Some(held)),
        None => Err(format!(
            "{} is gone: the host seals nothing; name the log with --dir to check what was sealed before",
            path.display()
        )),
    }
}

fn show(report: &Report, args: &Verify) -> u8 {
    let head = match &report.head {
        Some(head) => format!("{}:{}", head.seq, head.hash),
        None => "0:".to_owned(),
    };
    let said = if args.json {
        let bad: Vec<String> = report.bad.iter().map(ToString::to_string).collect();
        say(&serde_json::json!({
            "whole": report.is_whole(), "segments": report.segments, "records": report.records,
            "head": head, "sealed": report.sealed, "unsealed": report.unsealed(), "bad": bad,
        })
        .to_string())
    } else if report.is_whole() {
        let (records, segments) = (report.records, report.segments);
        let mut text = format!("{records} records in {segments} segments, whole; head {head}");
        if let Some(seq) = report.sealed {
            let _ = write!(text, "; sealed up to record {seq}");
        }
        if let Some(more) = report.unsealed().filter(|more| *more > 0) {
            let _ = write!(text, ", not sealed after it: {more}");
        }
        say(&text)
    } else {
        report.bad.iter().for_each(|bad| eprintln!("{bad}"));
        Ok(())
    };
    printed(said, if report.is_whole() { 0 } else { exit::FAILED })
}

pub fn keygen(args: &Keygen) -> u8 {
    let at = At::of_config(args.config.clone());
    let config = match at.config() {
        Ok(Some(config)) => config,
        Ok(None) => {
            return fail(
                exit::CONFIG,
                "no configuration found; name it with --config",
            );
        }
        Err(why) => return fail(exit::CONFIG, why),
    };
    let mut bytes = Zeroizing::new([0; 32]);
    if let Err(why) = getrandom::fill(&mut bytes[..]) {
        return fail(exit::FAILED, format!("no random numbers: {why}"));
    }
    let key = Ratchet::start(bytes);
    let path = config.agent.state_dir.join(KEY_FILE);
    if let Err(why) = audit::begin(&path, &key, args.replace) {
        let path = path.display();
        return if why.kind() == io::ErrorKind::AlreadyExists {
            fail(
                exit::FAILED,
                format!(
                    "{path} is there: checkpoints are sealed already, with the key printed then; --replace begins anew"
                ),
            )
        } else {
            fail(exit::FAILED, format!("cannot make {path}: {why}"))
        };
    }
    if let Err(why) = say(&key.reveal()) {
        return fail(
            exit::FAILED,
            format!(
                "the key could not be printed ({why}) and is lost; run keygen again with --replace"
            ),
        );
    }
    if io::stderr().is_terminal() {
        eprintln!(
            "Keep this key off this host; it is not shown again. The daemon begins to seal within a second."
        );
    }
    0
}

fn head(text: &str) -> Result<Head, String> {
    let wrong = || "write SEQ:HASH as `audit verify` prints it".to_owned();
    let (seq, hash) = text.split_once(':').ok_or_else(wrong)?;
    let seq = seq.parse().map_err(|_| wrong())?;
    let hash = Hash::parse(hash.as_bytes()).ok_or_else(wrong)?;
    Ok(Head { seq, hash })
}
