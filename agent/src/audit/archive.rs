//! Closed segments: cut, synced, compressed, and deleted when their time or the space is over.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, SystemTime};

use nix::libc;
use serde_json::json;

use super::Settings;
use super::chain::Link;
use super::entry::Entry;
use super::event::Event;
use super::files::{Kind, Lines, SegmentFile, Tail, open_read, packed_path, segments};
use super::pack::Order;
use super::record::time_of;
use super::render::extra;
use super::writer::{Inner, held};

/// How often expiry is looked at when no segment is closed.
const EVERY: Duration = Duration::from_secs(60);
/// The same after something could not be done.
const AGAIN: Duration = Duration::from_secs(1);
/// How long a request waits for segments to be deleted, where `keep` leaves no room for the next.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the archive is told.
pub(super) enum Job {
    /// A segment was closed at `len` bytes.
    Closed { file: Arc<File>, len: u64 },
    /// A segment was compressed, or could not be.
    Packed {
        order: Order,
        result: io::Result<()>,
    },
    /// The log is closed.
    Stop,
}

/// The archive's thread, until the log is closed.
pub(super) fn run(inner: &Arc<Inner>, jobs: &Receiver<Job>, orders: Sender<Order>) {
    crate::sys::map::yield_to_others();
    let mut packer = Packer {
        orders,
        busy: false,
    };
    let mut pause = Duration::ZERO;
    loop {
        let first = match jobs.recv_timeout(pause) {
            Ok(Job::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            Ok(job) => Some(job),
            Err(RecvTimeoutError::Timeout) => None,
        };
        // Looked at before the jobs are: each of these files had its job sent before.
        let closed = inner.closed();
        let (known, mut more) = (usize::from(first.is_some()), false);
        for (at, job) in first.into_iter().chain(jobs.try_iter()).enumerate() {
            match job {
                Job::Stop => return,
                Job::Closed { file, len } => cut(&file, len),
                Job::Packed { order, result } => {
                    packer.busy = false;
                    if let Err(why) = inner.put_packed(&order, result) {
                        inner.untidy(&why);
                    }
                }
            }
            more = at >= known;
        }
        pause = match closed.and_then(|closed| inner.tidy(closed, &mut packer)) {
            // What was closed since it was looked is not among them.
            Ok(_) if more => Duration::ZERO,
            Ok(pause) => pause,
            Err(why) => {
                inner.untidy(&why);
                AGAIN
            }
        };
    }
}

/// The way to the thread that compresses: one segment at a time.
struct Packer {
    orders: Sender<Order>,
    busy: bool,
}

/// Its records are synced by the keeper, or with the compressed file; what is cut off is zeros.
fn cut(file: &File, len: u64) {
    if let Err(why) = file.set_len(len) {
        tracing::warn!(%why, "a closed audit segment was not cut");
    }
}

/// The same for one that a kill left with its reserved zeros.
fn cut_leftover(file: &SegmentFile) -> io::Result<()> {
    let plain = open_read(&file.path)?;
    let mut last = [1];
    let len = plain.metadata()?.len();
    if len == 0 || plain.read_at(&mut last, len - 1)? == 0 || last != [0] {
        return Ok(());
    }
    let mut lines = Lines::from(plain, 0);
    while lines.next_line()?.is_some() {}
    let end = lines.offset();
    if lines.tail()? == Tail::Clean {
        let flags = libc::O_NOFOLLOW;
        let mut options = OpenOptions::new();
        let plain = options.write(true).custom_flags(flags).open(&file.path)?;
        cut(&plain, end);
    }
    Ok(())
}

impl Settings {
    /// The most bytes of closed segments, so that closing the current one and starting another stays
    /// within `keep`.
    fn room(&self) -> u64 {
        self.keep.saturating_sub(2 * self.segment)
    }
}

/// The bytes of closed segments, for a writer that must not get ahead of the archive.
#[derive(Default)]
pub(super) struct Crowd {
    bytes: AtomicU64,
    lock: Mutex<()>,
    changed: Condvar,
}

impl Crowd {
    /// A segment was closed.
    pub(super) fn add(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts bytes that are only wanted, where they leave the writer its room.
    fn try_add(&self, bytes: u64, settings: &Settings) -> bool {
        let sum = |now: u64| Some(now + bytes).filter(|sum| *sum <= settings.room());
        self.bytes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, sum)
            .is_ok()
    }

    fn set(&self, bytes: u64) {
        let _lock = held(&self.lock);
        self.bytes.store(bytes, Ordering::Relaxed);
        self.changed.notify_all();
    }

    /// Waits for the archive where the closed segments leave too little of `keep`. One that cannot delete
    /// is waited for once.
    pub(super) fn wait(&self, settings: &Settings) {
        let is_full = || self.bytes.load(Ordering::Relaxed) > settings.room();
        if !is_full() {
            return;
        }
        let waited = self
            .changed
            .wait_timeout_while(held(&self.lock), PATIENCE, |()| is_full());
        if waited.is_ok_and(|(_lock, time)| time.timed_out()) {
            self.bytes.store(0, Ordering::Relaxed);
        }
    }
}

impl Inner {
    /// All segments, and how many of them, from the oldest on, nobody will write again. `None` while the
    /// log is down: a repair may write any number again.
    fn closed(&self) -> io::Result<Option<(Vec<SegmentFile>, usize)>> {
        let _names = held(&self.names);
        let files = segments(&self.settings.dir)?;
        let open = files
            .iter()
            .position(|file| !self.is_closed(file))
            .unwrap_or(files.len());
        Ok((self.writer().down.is_none()).then_some((files, open)))
    }

    /// Asked while `names` is held, so that no repair begins meanwhile.
    fn is_closed(&self, file: &SegmentFile) -> bool {
        let writer = self.writer();
        writer.down.is_none() && file.first <= writer.segment.base.head.seq
    }

    fn untidy(&self, why: &io::Error) {
        let dir = self.settings.dir.display();
        tracing::warn!(%dir, %why, "closed audit segments cannot be tidied up");
    }

    /// Deletes what is to go, then has one of the segments in `known` compressed; says when to look again.
    /// Space comes first: what is closed meanwhile is looked at before the next one is compressed.
    fn tidy(
        &self,
        known: Option<(Vec<SegmentFile>, usize)>,
        packer: &mut Packer,
    ) -> io::Result<Duration> {
        let (Some((known, cut)), Some((files, closed))) = (known, self.closed()?) else {
            return Ok(AGAIN);
        };
        let (done, gone) = self.expire(&files, closed)?;
        self.take_stock()?;
        if !done {
            return Ok(AGAIN);
        }
        let left = files.get(gone).map_or(u64::MAX, |file| file.first);
        let mut plain = known[..cut].iter().filter(|file| file.kind == Kind::Plain);
        match plain.find(|file| file.first >= left) {
            Some(file) if !packer.busy => {
                // Until the plain file is gone, both count; where that is too much, look again.
                if !self.crowd.try_add(file.size(), &self.settings) {
                    return Ok(Duration::ZERO);
                }
                let order = self.order(file)?;
                packer.busy = packer.orders.send(order).is_ok();
                Ok(EVERY)
            }
            _ => Ok(EVERY),
        }
    }

    fn order(&self, file: &SegmentFile) -> io::Result<Order> {
        cut_leftover(file)?;
        let plain = open_read(&file.path)?;
        Ok(Order {
            inode: plain.metadata()?.ino(),
            plain,
            file: file.clone(),
            temporary: packed_path(&self.settings.dir, file.first).with_extension("zst.tmp"),
        })
    }

    /// Puts a compressed segment in the place of the plain one.
    fn put_packed(&self, order: &Order, result: io::Result<()>) -> io::Result<()> {
        let done = result.and_then(|()| {
            let _names = held(&self.names);
            // The name may have gone to another segment meanwhile, or the segment may have expired.
            let same = fs::metadata(&order.file.path).is_ok_and(|now| now.ino() == order.inode);
            if !same || !self.is_closed(&order.file) {
                return fs::remove_file(&order.temporary);
            }
            fs::rename(
                &order.temporary,
                packed_path(&self.settings.dir, order.file.first),
            )?;
            File::open(&self.settings.dir)?.sync_all()?;
            fs::remove_file(&order.file.path)
        });
        if done.is_err() {
            let _ = fs::remove_file(&order.temporary);
        }
        self.take_stock()?;
        done
    }

    /// Counts the closed segments. None is closed meanwhile.
    pub(super) fn take_stock(&self) -> io::Result<()> {
        let writer = self.writer();
        let files = segments(&self.settings.dir)?;
        let closed = files.iter().filter(|file| file.path != writer.segment.path);
        let (number, bytes) = closed.fold((0, 0), |(n, bytes), file| (n + 1, bytes + file.size()));
        let counters = &self.counters;
        counters.closed_segments.store(number, Ordering::Relaxed);
        counters.closed_bytes.store(bytes, Ordering::Relaxed);
        self.crowd.set(bytes);
        Ok(())
    }

    /// Deletes the oldest closed segments while there are too many bytes, or they are too old. Each is
    /// recorded first: a kill between leaves a record of what goes next time. Whether all was done, and how
    /// many are gone.
    fn expire(&self, files: &[SegmentFile], closed: usize) -> io::Result<(bool, usize)> {
        let mut bytes: u64 = files[..closed].iter().map(SegmentFile::size).sum();
        let room = self.settings.room().saturating_sub(self.settings.segment);
        for (at, file) in files[..closed].iter().enumerate() {
            let Some(after) = Next::find(&files[at + 1..])? else {
                return Ok((false, at));
            };
            let forced = bytes > room;
            let sent = self.journal.sent.load(Ordering::Acquire);
            let unsent = if self.settings.journald {
                after.last.saturating_sub(sent)
            } else {
                0
            };
            let old = after.age > self.settings.keep_for && unsent == 0;
            if !forced && !old {
                return Ok((true, at));
            }
            if !self.record_expiry(file, &after, unsent) {
                return Ok((false, at));
            }
            bytes -= file.size().min(bytes);
            let _names = held(&self.names);
            if !self.is_closed(file) {
                return Ok((false, at));
            }
            fs::remove_file(&file.path)?;
        }
        Ok((true, closed))
    }

    fn record_expiry(&self, file: &SegmentFile, after: &Next, unsent: u64) -> bool {
        let mut members = vec![
            ("segment", json!(file.name())),
            ("first_seq", json!(file.first)),
            ("last_seq", json!(after.last)),
            ("last_hash", json!(after.hash)),
        ];
        if unsent > 0 {
            members.push(("not_in_journal", json!(unsent)));
        }
        let members = extra(&members);
        let entry = |event| Entry {
            extra: Some(&members),
            ..Entry::of(event)
        };
        let short = after.age < self.settings.keep_for;
        self.append(&entry(Event::AuditExpired)).is_ok()
            && (!short || self.append(&entry(Event::AlertAuditShort)).is_ok())
    }
}

/// What the segment after one says about it: its own end, without reading it.
struct Next {
    last: u64,
    hash: String,
    age: Duration,
}

impl Next {
    /// From the first later file with a record; one that was put aside may have none.
    fn find(later: &[SegmentFile]) -> io::Result<Option<Self>> {
        for file in later {
            if let Some(found) = Self::read(file)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// `None` where it has no record yet.
    fn read(next: &SegmentFile) -> io::Result<Option<Self>> {
        let mut lines = Lines::open(next)?;
        let Some(line) = lines.next_line()? else {
            return Ok(None);
        };
        let at = time_of(line).unwrap_or(SystemTime::UNIX_EPOCH);
        Ok(Link::read(line).map(|link| Self {
            last: link.before().seq,
            hash: link.prev.to_string(),
            age: SystemTime::now().duration_since(at).unwrap_or_default(),
        }))
    }
}
