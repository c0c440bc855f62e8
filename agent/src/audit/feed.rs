//! Tells journald: reads the segments behind the writer and sends each record as an entry.
//!
//! Nothing is lost while journald is away: the segments wait. What was sent is remembered in
//! `journal.cursor`, so that after a kill a few entries may be sent twice, with the same sequence number.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use serde_json::json;

use super::chain::Head;
use super::follow::{Follower, Step};
use super::journald::{Sent, Socket, Together, encode};
use super::merge::Batch;
use super::record::Record;
use super::render::extra;
use super::writer::{Inner, held};

/// After a wake-up: records of this long travel together, and the writer wakes the feed no oftener.
const PACE: Duration = Duration::from_millis(25);
/// A wake-up that was missed is made up for after this.
const NAP: Duration = Duration::from_millis(250);
/// How many records are read before they are sent.
const BATCH: usize = 4096;
/// Past this, equal allowed reads of one second are told together.
const FAR_BEHIND: u64 = 10_000;
/// At least as many datagrams as wait in a socket (systemd sets `net.unix.max_dgram_qlen` to 512). They
/// are lost with a journald whose socket goes with it.
const QUEUE: usize = 1024;
/// Beside the folder of journald's socket: a link to the id of its present run, which systemd keeps for each unit.
const RUN_OF_JOURNALD: &str = "units/invocation:systemd-journald.service";
const CURSOR_EVERY: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// How long a stopping daemon goes on sending.
const FAREWELL: Duration = Duration::from_secs(2);

/// Wakes the feed, at the price of one atomic read when it is awake.
#[derive(Default)]
pub(super) struct Bell {
    asleep: AtomicBool,
    thread: OnceLock<Thread>,
}

impl Bell {
    pub(super) fn ring(&self) {
        // Pairs with the one in `sleep`: either the feed sees the new head, or this sees it asleep.
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed)
            && self.asleep.swap(false, Ordering::Relaxed)
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
    }

    fn sleep(&self, still: impl Fn() -> bool) {
        self.thread.get_or_init(thread::current);
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if still() {
            thread::park_timeout(NAP);
        }
        self.asleep.store(false, Ordering::Relaxed);
    }
}

/// How far journald is.
pub(super) struct Journal {
    /// The last record that was sent.
    pub sent: AtomicU64,
    error: Mutex<Option<String>>,
}

impl Journal {
    pub(super) fn new(sent: u64) -> Self {
        Self {
            sent: AtomicU64::new(sent),
            error: Mutex::new(None),
        }
    }

    /// How many records it is behind, and why it cannot be reached.
    pub(super) fn state(&self, seq: u64) -> (u64, Option<String>) {
        (
            seq.saturating_sub(self.sent.load(Ordering::Acquire)),
            held(&self.error).clone(),
        )
    }
}

/// The feed's thread, until the log is closed.
pub(super) fn run(inner: &Arc<Inner>) {
    let mut feed = Feed::new(inner);
    let mut farewell = None;
    loop {
        if inner.stopping.load(Ordering::SeqCst) {
            let until = *farewell.get_or_insert_with(|| Instant::now() + FAREWELL);
            if feed.is_done() || Instant::now() >= until {
                break;
            }
        } else if feed.is_done() {
            inner
                .bell
                .sleep(|| feed.is_done() && !inner.stopping.load(Ordering::SeqCst));
            thread::park_timeout(PACE);
            feed.notice_restart();
            feed.save(false);
            continue;
        }
        feed.notice_restart();
        match feed.batch(farewell) {
            Ok(true) => {}
            Ok(false) => thread::park_timeout(PACE),
            Err(why) => {
                feed.trouble(&format!("cannot read the audit log for the journal: {why}"));
                thread::park_timeout(LONGEST_WAIT);
            }
        }
        feed.save(false);
    }
    feed.save(true);
}

struct Feed<'a> {
    inner: &'a Inner,
    follower: Follower,
    socket: Socket,
    saved: (u64, Instant),
    /// The run of journald that was seen last, and the link that tells it.
    journald: (PathBuf, Option<PathBuf>),
    /// The first numbers of the entries sent last over this connection.
    recent: VecDeque<u64>,
    line: Vec<u8>,
    entry: Vec<u8>,
}

impl<'a> Feed<'a> {
    fn new(inner: &'a Inner) -> Self {
        let sent = inner.journal.sent.load(Ordering::Acquire);
        // Without a place to go on from, the next start would skip what this one did not send.
        if let Err(why) = save_cursor(&inner.settings.dir, sent) {
            tracing::warn!(%why, "the journal's place in the audit log was not saved");
        }
        let link = run_of_journald(&inner.settings.journal_socket);
        let run = fs::read_link(&link).ok();
        Self {
            journald: (link, run),
            follower: Follower::new(&inner.settings.dir, sent + 1),
            socket: Socket::new(&inner.settings.journal_socket),
            saved: (sent, Instant::now()),
            recent: VecDeque::with_capacity(QUEUE),
            line: Vec::new(),
            entry: Vec::new(),
            inner,
        }
    }

    fn head(&self) -> u64 {
        self.inner.head.load(Ordering::Acquire)
    }

    fn is_done(&self) -> bool {
        self.inner.journal.sent.load(Ordering::Acquire) >= self.head()
    }

    /// Reads some records and sends them; false when the daemon stops before they are sent.
    fn batch(&mut self, until: Option<Instant>) -> io::Result<bool> {
        let head = self.head();
        let far = head.saturating_sub(self.follower.position()) >= FAR_BEHIND;
        let (mut batch, mut lines) = (Batch::default(), 0);
        let mut reached = self.follower.position().saturating_sub(1);
        while lines < BATCH && self.follower.position() <= head {
            match self.follower.step(&mut self.line)? {
                Step::Record(seq) => {
                    (reached, lines) = (seq, lines + 1);
                    batch.add(seq, &self.line, far);
                }
                Step::Skipped(next) => reached = next - 1,
                Step::End => {
                    // The head is there but its file is not readable yet: a restart of the chain.
                    thread::park_timeout(PACE);
                    break;
                }
            }
        }
        for (record, together) in batch.entries {
            if !self.send(&record, together, until) {
                self.rewind(record.seq);
                return Ok(false);
            }
            if !far {
                self.inner.journal.sent.store(record.seq, Ordering::Release);
            }
        }
        self.inner.journal.sent.store(reached, Ordering::Release);
        Ok(true)
    }

    /// Goes back to what journald may not have read, or else to `next`: it is sent again.
    fn rewind(&mut self, next: u64) {
        let from = self.recent.front().copied().unwrap_or(next);
        self.recent.clear();
        self.follower = Follower::new(&self.inner.settings.dir, from);
        self.inner.journal.sent.store(from - 1, Ordering::Release);
    }

    /// A journald that was killed had a record in hand. Where systemd holds its socket no send fails for that, so its
    /// next run is what tells.
    fn notice_restart(&mut self) {
        let Ok(run) = fs::read_link(&self.journald.0) else {
            return;
        };
        if self
            .journald
            .1
            .replace(run.clone())
            .is_some_and(|old| old != run)
        {
            self.rewind(self.follower.position());
        }
    }

    /// Sends one entry, however long journald takes; false when the daemon stops first, or journald's socket
    /// is gone, and with it what waited there.
    fn send(
        &mut self,
        record: &Record,
        together: Option<Together>,
        until: Option<Instant>,
    ) -> bool {
        encode(&mut self.entry, record, together);
        let mut wait = PACE;
        let mut stop = until;
        loop {
            match self.socket.send(&self.entry) {
                Sent::Yes => {
                    *held(&self.inner.journal.error) = None;
                    if self.recent.len() == QUEUE {
                        self.recent.pop_front();
                    }
                    self.recent.push_back(record.seq);
                    return true;
                }
                Sent::Busy => {}
                Sent::Away(why) => {
                    let path = self.inner.settings.journal_socket.display();
                    self.trouble(&format!("journald cannot be reached at {path}: {why}"));
                    if self.inner.stopping.load(Ordering::SeqCst) || !self.recent.is_empty() {
                        return false;
                    }
                    thread::park_timeout(wait);
                    wait = (wait * 2).min(LONGEST_WAIT);
                }
            }
            self.save(false);
            if self.inner.stopping.load(Ordering::SeqCst) {
                let until = *stop.get_or_insert_with(|| Instant::now() + FAREWELL);
                if Instant::now() >= until {
                    return false;
                }
            }
        }
    }

    fn trouble(&self, what: &str) {
        let old = held(&self.inner.journal.error).replace(what.to_owned());
        if old.as_deref() != Some(what) {
            tracing::warn!("{what}; records wait in the segments");
        }
    }

    fn save(&mut self, now: bool) {
        let sent = self.inner.journal.sent.load(Ordering::Acquire);
        let (saved, at) = self.saved;
        if sent == saved || (!now && at.elapsed() < CURSOR_EVERY) {
            return;
        }
        self.saved = (sent, Instant::now());
        if let Err(why) = save_cursor(&self.inner.settings.dir, sent) {
            tracing::warn!(%why, "the journal's place in the audit log was not saved");
        }
    }
}

/// `/run/systemd/units/...` for `/run/systemd/journal/socket`.
fn run_of_journald(socket: &Path) -> PathBuf {
    let systemd = socket.parent().and_then(Path::parent);
    systemd.unwrap_or(Path::new("/")).join(RUN_OF_JOURNALD)
}

const CURSOR: &str = "journal.cursor";

/// The last record that journald was sent, as far as the disk knows.
pub(super) fn load_cursor(dir: &Path) -> Option<u64> {
    fs::read_to_string(dir.join(CURSOR))
        .ok()?
        .trim()
        .parse()
        .ok()
}

fn save_cursor(dir: &Path, sent: u64) -> io::Result<()> {
    let temporary = dir.join("journal.cursor.tmp");
    let mut file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o640)
        .open(&temporary)?;
    writeln!(file, "{sent}")?;
    file.sync_data()?;
    fs::rename(&temporary, dir.join(CURSOR))
}

/// Members of the alert for a log that ends before what journald was already sent.
pub(super) fn ahead(sent: u64, head: Head) -> String {
    extra(&[
        (
            "what",
            json!("records that the journal has are missing at the end of the log"),
        ),
        ("lost", json!({"from": head.seq + 1, "to": sent})),
    ])
}
