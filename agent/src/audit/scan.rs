//! Reads many segments with every core: each is read by one worker, and what is found comes in the log's order.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::SystemTime;

use super::AuditError;
use super::chain::seq_of;
use super::files::{Lines, SegmentFile, segments};
use super::record::time_of;
use super::writer::held;

/// Lines are handed on in pieces of about this many bytes.
const PIECE: usize = 256 * 1024;
/// Pieces of one segment that wait at most for those before.
const WAITING: usize = 16;

/// The part of a log that one file has.
#[derive(Debug)]
pub struct Part {
    file: SegmentFile,
    /// What a later file has again counts there: records from this number on.
    end: u64,
    /// When its first record was written, and the first one after it.
    began: Option<SystemTime>,
    ended: Option<SystemTime>,
}

impl Part {
    /// Whether it may have a record from `since` on. A clock that was set back makes no part unwanted.
    fn may_reach(&self, since: SystemTime) -> bool {
        !self.in_order() || self.ended.is_none_or(|ended| ended >= since)
    }

    fn may_precede(&self, until: SystemTime) -> bool {
        !self.in_order() || self.began.is_none_or(|began| began < until)
    }

    /// Whether it has one of these records, if the log has it at all.
    #[must_use]
    pub fn has_any(&self, seqs: &BTreeSet<u64>) -> bool {
        self.file.first < self.end && seqs.range(self.file.first..self.end).next().is_some()
    }

    fn in_order(&self) -> bool {
        self.began.is_some() && self.began <= self.ended
    }
}

/// Which records are looked at.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// The first and last number.
    pub seq: (u64, u64),
    /// Not before.
    pub since: Option<SystemTime>,
    /// Before.
    pub until: Option<SystemTime>,
}

impl Span {
    /// Every record.
    pub const ALL: Self = Self {
        seq: (0, u64::MAX),
        since: None,
        until: None,
    };
}

/// The parts of the log in `dir` that may have records of `span`.
pub fn parts(dir: &Path, span: Span) -> Result<Vec<Part>, AuditError> {
    let files = segments(dir).map_err(AuditError::io("list", dir))?;
    let timed = span.since.is_some() || span.until.is_some();
    let mut later = (u64::MAX, None);
    let mut parts = Vec::new();
    // Each part ends where the next one begins.
    for file in files.into_iter().rev() {
        let (end, ended) = later;
        let began = if timed { began(&file) } else { None };
        later = (file.first, began);
        let part = Part {
            file,
            end,
            began,
            ended,
        };
        let (low, high) = span.seq;
        let numbered = part.end > low && part.file.first <= high;
        if numbered
            && span.since.is_none_or(|since| part.may_reach(since))
            && span.until.is_none_or(|until| part.may_precede(until))
        {
            parts.push(part);
        }
    }
    parts.reverse();
    Ok(parts)
}

fn began(file: &SegmentFile) -> Option<SystemTime> {
    let mut lines = Lines::open(file).ok()?;
    time_of(lines.next_line().ok()??)
}

/// Gives each line of `part` whose record counts there to `each`, until that says false.
fn read(part: &Part, mut each: impl FnMut(&[u8]) -> bool) -> Result<(), AuditError> {
    let fail = || AuditError::io("read", &part.file.path);
    let mut lines = match Lines::open(&part.file) {
        // It expired since it was listed.
        Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened.map_err(fail())?,
    };
    while let Some(line) = lines.next_line().map_err(fail())? {
        if seq_of(line).is_some_and(|seq| seq < part.end) && !each(line) {
            break;
        }
    }
    Ok(())
}

fn workers(parts: usize) -> usize {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    cores.min(4).min(parts).max(1)
}

/// Has every line counted by some worker's own `T`; the order among parts is nobody's business.
pub fn fold<T: Send>(
    parts: &[Part],
    new: impl Fn() -> T + Sync,
    each: impl Fn(&mut T, &[u8]) + Sync,
) -> Result<Vec<T>, AuditError> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut own = new();
        while let Some(part) = parts.get(next.fetch_add(1, Ordering::Relaxed)) {
            read(part, |line| {
                each(&mut own, line);
                true
            })?;
        }
        Ok(own)
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..workers(parts.len()))
            .map(|_| scope.spawn(work))
            .collect();
        threads.into_iter().map(joined).collect()
    })
}

fn joined<T>(thread: thread::ScopedJoinHandle<'_, T>) -> T {
    thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Gives the lines that `wanted` to `each` in the order of `parts`, until that says false.
pub fn stream(
    parts: &[Part],
    wanted: impl Fn(&[u8]) -> bool + Sync,
    mut each: impl FnMut(&[u8]) -> bool,
) -> Result<(), AuditError> {
    let channels = parts.iter().map(|_| sync_channel(WAITING));
    let (senders, receivers): (Vec<_>, Vec<_>) = channels.unzip();
    let queue = Mutex::new(parts.iter().zip(senders));
    let enough = AtomicBool::new(false);
    let work = || -> Result<(), AuditError> {
        let mut done = Ok(());
        loop {
            let Some((part, sender)) = held(&queue).next() else {
                return done;
            };
            // Even then each sender is taken and dropped: somebody waits for it.
            if !enough.load(Ordering::Relaxed) {
                done = done.and(select(part, &wanted, &sender));
                enough.fetch_or(done.is_err(), Ordering::Relaxed);
            }
        }
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..workers(parts.len()))
            .map(|_| scope.spawn(work))
            .collect();
        for receiver in receivers {
            if !hand_on(&receiver, &mut each) {
                break;
            }
        }
        // Whoever still waits to hand something on finds that nobody takes it.
        enough.store(true, Ordering::Relaxed);
        threads.into_iter().try_for_each(joined)
    })
}

/// Collects lines in pieces, so that a channel is not asked for each.
fn select(
    part: &Part,
    wanted: impl Fn(&[u8]) -> bool,
    sender: &SyncSender<Vec<u8>>,
) -> Result<(), AuditError> {
    let mut piece = Vec::new();
    let mut taken = true;
    read(part, |line| {
        if wanted(line) {
            piece.extend_from_slice(line);
            piece.push(b'\n');
            if piece.len() >= PIECE {
                taken = sender.send(std::mem::take(&mut piece)).is_ok();
            }
        }
        taken
    })?;
    if taken && !piece.is_empty() {
        let _ = sender.send(piece);
    }
    Ok(())
}

fn hand_on(receiver: &Receiver<Vec<u8>>, each: &mut impl FnMut(&[u8]) -> bool) -> bool {
    for piece in receiver {
        let mut at = 0;
        for end in memchr::memchr_iter(b'\n', &piece) {
            if !each(&piece[at..end]) {
                return false;
            }
            at = end + 1;
        }
    }
    true
}
