//! Behaviour of the whole room over real files.

mod disk;
mod journal;
mod reading;
mod vectors;
mod writing;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::chain::Head;
use super::render::{Clock, Now, record};
use super::*;

/// The line of some record with this number.
pub(super) fn line(seq: u64) -> Vec<u8> {
    let mut line = Vec::new();
    let head = Head {
        seq: seq - 1,
        ..Head::START
    };
    let entry = Entry::of(Event::SecretRead);
    record(&mut line, &head, &entry, &mut Clock::new(), Now::read());
    line.pop();
    line
}

/// A folder that goes away with its test.
pub(super) struct Dir(pub PathBuf);

impl Dir {
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path =
            std::env::temp_dir().join(format!("keyhatch-audit-{}-{number}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// The only segment that is being written.
    fn current(&self) -> PathBuf {
        let files = segments(&self.0).unwrap();
        files
            .into_iter()
            .rfind(|file| file.kind == Kind::Plain)
            .unwrap()
            .path
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// No journal, small segments.
fn settings(dir: &Path) -> Settings {
    Settings {
        journald: false,
        segment: 16 << 10,
        ..Settings::new(dir)
    }
}

fn open(dir: &Dir) -> Arc<Log> {
    Log::open(settings(&dir.0)).unwrap().0
}

fn who() -> Who {
    Who::new(&Facts {
        bot: Some("support-bot"),
        roles: &["llm-caller", "reader"],
        pid: Some(4242),
        uid: Some(1001),
        gid: Some(1001),
        exe: Some(b"/usr/bin/bot"),
        unit: Some("support-bot.service"),
        invocation_id: None,
    })
}

fn read<'a>(who: &'a Who, secret: &'a str) -> Entry<'a> {
    Entry {
        decision: Verdict::Allow,
        reason: Some("granted"),
        rule: Some("keyhatch.toml:12"),
        secret: Some(secret),
        version: Some("v1"),
        who: Some(who),
        surface: "native",
        request_id: Some("0123456789abcdef"),
        ..Entry::of(Event::SecretRead)
    }
}

/// Keeps `n` records and returns the last one's number.
fn keep(log: &Log, n: u64) -> u64 {
    let who = who();
    let kept = (0..n).map(|i| {
        log.keep(&read(&who, &format!("app/{i}")))
            .unwrap()
            .seq()
            .unwrap()
    });
    kept.last().unwrap()
}

/// Waits for the background: what is promised within a second is given ten, for slow machines.
fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < until, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Every record of the log, which must be whole up to `head`.
fn whole(dir: &Dir, head: Head) -> Vec<Record> {
    let report = verify(&dir.0, Some(head)).unwrap();
    assert_eq!(report.bad, []);
    assert_eq!(report.head, Some(head));
    query(&dir.0, &Filter::default()).unwrap()
}

fn events(dir: &Dir, event: &str) -> Vec<Record> {
    let filter = Filter {
        event: Some(event.to_owned()),
        ..Filter::default()
    };
    query(&dir.0, &filter).unwrap()
}
