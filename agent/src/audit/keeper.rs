//! Watches over the segment: syncs it, notices who else touches it, and starts the repair of a log that is down.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Unavailable;
use super::segment::{Change, Mark, Segment};
use super::writer::{Down, Inner, Part, Writer, held};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

/// How often the segment is looked at, and a repair tried.
const TICK: u16 = 100;
/// With the tick, records are on disk within a second.
const SYNC_EVERY: Duration = Duration::from_millis(800);
const FLOODS_EVERY: Duration = Duration::from_secs(1);

/// The keeper's thread, until the log is closed.
pub(super) fn run(inner: &Arc<Inner>) {
    let mut watch = Watch::new(&inner.settings.dir);
    let (mut synced, mut told) = (Instant::now(), Instant::now());
    while !inner.stopping.load(Ordering::SeqCst) {
        let events = watch.wait(inner);
        inner.look(&mut watch, &events);
        if synced.elapsed() >= SYNC_EVERY {
            synced = Instant::now();
            // A failure has already stopped service.
            let _ = inner.sync_sealed();
        }
        if told.elapsed() >= FLOODS_EVERY {
            told = Instant::now();
            inner.tell_floods();
        }
        if inner.repair() {
            watch = Watch::new(&inner.settings.dir);
        }
    }
}

/// inotify on the folder. Copies into mapped pages cause no event, so a modification that we did not cause
/// by resizing is someone else's.
struct Watch {
    inotify: Option<Inotify>,
    /// The segment that is counted for, by the number before its first record.
    segment: u64,
    /// How often it had been resized at the look before the last: events of those are long over.
    resized: u64,
    /// And at the last look.
    last: u64,
}

/// What inotify told of one name.
#[derive(Default)]
struct Seen {
    modified: u64,
    written: bool,
}

impl Watch {
    fn new(dir: &Path) -> Self {
        let flags = InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC;
        let inotify = Inotify::init(flags).and_then(|inotify| {
            let events = AddWatchFlags::IN_MODIFY
                | AddWatchFlags::IN_CLOSE_WRITE
                | AddWatchFlags::IN_MOVE
                | AddWatchFlags::IN_DELETE
                | AddWatchFlags::IN_ONLYDIR
                // A deleted segment that is still open has the name of the one that took its place.
                | AddWatchFlags::from_bits_retain(nix::libc::IN_EXCL_UNLINK);
            inotify.add_watch(dir, events).map(|_| inotify)
        });
        if let Err(why) = &inotify {
            tracing::warn!(dir = %dir.display(), %why, "the audit folder is only looked at, not watched");
        }
        Self {
            inotify: inotify.ok(),
            segment: 0,
            resized: 0,
            last: 0,
        }
    }

    /// How many modifications may be our own resizes of `segment`.
    fn allowed(&mut self, segment: &Segment) -> u64 {
        if self.segment != segment.base.head.seq {
            (self.segment, self.resized, self.last) = (segment.base.head.seq, 0, 0);
        }
        let allowed = segment.resized.saturating_sub(self.resized);
        (self.resized, self.last) = (self.last, segment.resized);
        allowed
    }

    /// Waits for an event, the alarm, or the tick.
    fn wait(&self, inner: &Inner) -> HashMap<std::ffi::OsString, Seen> {
        let mut fds = vec![PollFd::new(inner.alarm.as_fd(), PollFlags::POLLIN)];
        fds.extend(
            self.inotify
                .as_ref()
                .map(|i| PollFd::new(i.as_fd(), PollFlags::POLLIN)),
        );
        let _ = poll(&mut fds, PollTimeout::from(TICK));
        let _ = inner.alarm.read();
        let mut seen: HashMap<_, Seen> = HashMap::new();
        while let Some(Ok(events)) = self.inotify.as_ref().map(Inotify::read_events) {
            for event in events {
                let Some(name) = event.name else { continue };
                let seen = seen.entry(name).or_default();
                seen.modified += u64::from(event.mask.contains(AddWatchFlags::IN_MODIFY));
                seen.written |= event.mask.contains(AddWatchFlags::IN_CLOSE_WRITE);
            }
        }
        seen
    }
}

impl Inner {
    /// Stops service where someone else changed the segment.
    fn look(&self, watch: &mut Watch, events: &HashMap<std::ffi::OsString, Seen>) {
        let mut writer = self.writer();
        if writer.down.is_some() {
            return;
        }
        let segment = &writer.segment;
        let seen = segment.path.file_name().and_then(|name| events.get(name));
        let allowed = watch.allowed(segment);
        let touched = seen
            .is_some_and(|seen| seen.written || (segment.is_mapped() && seen.modified > allowed));
        let change = segment
            .is_changed()
            .or_else(|| touched.then(|| Change::Content("another process wrote to it".to_owned())));
        if let Some(change) = change {
            self.fail(&mut writer, Down::Changed(change));
        } else if segment.is_read_only() {
            self.fail(
                &mut writer,
                Down::Broken("the audit folder is read-only".to_owned()),
            );
        }
    }

    /// Makes sure that record `seq` is on disk.
    pub(super) fn sync_to(&self, seq: u64) -> Result<(), Unavailable> {
        let _one = held(&self.syncing);
        if self.synced.load(Ordering::Acquire) >= seq {
            return Ok(());
        }
        let (parts, created) = {
            let mut writer = self.writer();
            if let Some(down) = writer
                .down
                .as_ref()
                .filter(|down| !matches!(down, Down::Full(_)))
            {
                return Err(Unavailable(down.to_string()));
            }
            (writer.unsynced(false), std::mem::take(&mut writer.created))
        };
        let done = sync_all(&parts, created.then_some(&self.settings.dir));
        self.counters.syncs.fetch_add(1, Ordering::Relaxed);
        let mut writer = self.writer();
        match done {
            Ok(()) => {
                writer.mark_synced(&parts);
                if let Some(last) = parts.last() {
                    self.synced.store(last.end.head.seq, Ordering::Release);
                }
                Ok(())
            }
            Err(why) => {
                let down = Down::Broken(format!("cannot sync the audit segment: {why}"));
                let told = Unavailable(down.to_string());
                writer.created |= created;
                self.fail(&mut writer, down);
                Err(told)
            }
        }
    }

    /// Seals what came since the last checkpoint and syncs it; then the key that did so can go.
    fn sync_sealed(&self) -> Result<(), Unavailable> {
        let next = self.seal_records();
        let seq = match &next {
            Some((_, seq)) => *seq,
            None => self.head.load(Ordering::Acquire),
        };
        let synced = self.sync_to(seq);
        if let (Some((key, _)), Ok(())) = (next, &synced) {
            self.store_key(&key);
        }
        synced
    }

    /// The last checkpoint, sync and cut, after which nothing is kept.
    pub(super) fn finish(&self) {
        let synced = self.sync_sealed();
        let mut writer = self.writer();
        if synced.is_ok()
            && writer.down.is_none()
            && let Err(why) = writer.segment.cut()
        {
            tracing::warn!(%why, "the audit segment was not cut to its length");
        }
        writer.down = Some(Down::Closed);
        writer.stop_archive();
    }
}

fn sync_all(parts: &[Part], dir: Option<&std::path::PathBuf>) -> io::Result<()> {
    for part in parts {
        part.file.sync_data()?;
    }
    match dir {
        Some(dir) => std::fs::File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

impl Writer {
    /// What is not known to be on disk, oldest first; with `whole`, the current segment from its beginning.
    pub(super) fn unsynced(&self, whole: bool) -> Vec<Part> {
        let segment = &self.segment;
        let mut parts = self.pending.clone();
        parts.push(Part {
            file: segment.file.clone(),
            from: if whole { segment.base } else { segment.synced },
            end: Mark {
                offset: segment.pos,
                head: self.head,
            },
        });
        parts
    }

    fn mark_synced(&mut self, parts: &[Part]) {
        for done in parts {
            for part in self
                .pending
                .iter_mut()
                .filter(|part| Arc::ptr_eq(&part.file, &done.file))
            {
                part.from = done.end;
            }
            if Arc::ptr_eq(&self.segment.file, &done.file) {
                self.segment.synced = done.end;
            }
        }
        self.pending
            .retain(|part| part.from.offset < part.end.offset);
    }
}
