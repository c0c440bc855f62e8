//! Where records go: the state behind the log, and how an entry becomes a record in the segment.

use std::fmt;
use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::eventfd::EventFd;

use super::alerts::Alerts;
use super::archive::{Crowd, Job};
use super::chain::Hash;
use super::chain::Head;
use super::checkpoint::KeyFile;
use super::entry::Entry;
use super::event::Event;
use super::feed::{Bell, Journal};
use super::files::{MAX_LINE, plain_path};
use super::flood::Floods;
use super::ratchet::Ratchet;
use super::render::{Clock, Now, Phrase, extra, record, record_again};
use super::segment::{Change, Failure, Mark, Segment};
use super::{Settings, Unavailable};

/// What requests and the background threads share.
pub(super) struct Inner {
    pub settings: Settings,
    pub writer: Mutex<Writer>,
    /// Held while syncing: whoever waits for it finds that the sync before did its work too.
    pub syncing: Mutex<()>,
    /// Held while segment files are renamed or deleted by one thread that another creates.
    pub names: Mutex<()>,
    /// Where the key of checkpoints is, if they can be sealed at all.
    pub key_file: Mutex<Option<KeyFile>>,
    pub floods: Mutex<Floods>,
    pub head: AtomicU64,
    pub synced: AtomicU64,
    pub stopping: Arc<AtomicBool>,
    pub alarm: EventFd,
    pub bell: Bell,
    pub journal: Journal,
    pub crowd: Crowd,
    pub alerts: Alerts,
    pub counters: Counters,
    pub last_error: Mutex<Option<String>>,
}

#[derive(Default)]
pub(super) struct Counters {
    pub closed_segments: AtomicU64,
    pub closed_bytes: AtomicU64,
    pub refused: AtomicU64,
    pub unrecorded: AtomicU64,
    pub syncs: AtomicU64,
}

/// Where the next record goes.
pub(super) struct Writer {
    pub segment: Segment,
    pub head: Head,
    /// Closed segments that are not known to be on disk, oldest first.
    pub pending: Vec<Part>,
    /// Whether a segment was created that the folder on disk may not list yet.
    pub created: bool,
    pub down: Option<Down>,
    /// The key of the next checkpoint, where records are sealed.
    pub key: Option<Ratchet>,
    /// The number of the last checkpoint.
    pub sealed: u64,
    pub archive: Sender<Job>,
    pub line: Vec<u8>,
    pub clock: Clock,
}

/// The part of a segment that is not known to be on disk.
#[derive(Clone)]
pub(super) struct Part {
    pub file: Arc<File>,
    pub from: Mark,
    pub end: Mark,
}

/// Why no record can be kept now.
#[derive(Clone, Debug)]
pub(super) enum Down {
    Full(String),
    Broken(String),
    Changed(Change),
    Closed,
}

impl fmt::Display for Down {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full(why) => write!(f, "the disk of the audit folder is full: {why}"),
            Self::Broken(why) => f.write_str(why),
            Self::Changed(Change::Name(what) | Change::Content(what)) => {
                write!(f, "someone changed the audit segment: {what}")
            }
            Self::Closed => f.write_str("the audit log is closed"),
        }
    }
}

impl From<Failure> for Down {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Full(why) => Self::Full(why.to_string()),
            Failure::Broken(what) => Self::Broken(what),
        }
    }
}

impl Inner {
    pub(super) fn writer(&self) -> MutexGuard<'_, Writer> {
        held(&self.writer)
    }

    /// Appends a record unless the log is down.
    pub(super) fn append(&self, entry: &Entry<'_>) -> Result<u64, Unavailable> {
        self.append_with(|writer| {
            let seq = writer.put(entry, &self.settings)?;
            self.alerts.take(entry.event, &writer.line);
            Ok(seq)
        })
    }

    /// Appends the record of a phrase unless the log is down.
    pub(super) fn append_again(
        &self,
        phrase: &Phrase,
        request_id: &str,
    ) -> Result<u64, Unavailable> {
        self.append_with(|writer| writer.put_again(phrase, request_id, &self.settings))
    }

    pub(super) fn append_with(
        &self,
        put: impl FnOnce(&mut Writer) -> Result<u64, Down>,
    ) -> Result<u64, Unavailable> {
        let mut writer = self.writer();
        if let Some(down) = &writer.down {
            return Err(Unavailable(down.to_string()));
        }
        let (base, pos) = (writer.segment.base.head, writer.segment.pos);
        match put(&mut writer) {
            Ok(seq) => {
                if writer.segment.base.head != base {
                    self.crowd.add(pos);
                }
                self.head.store(seq, Ordering::Release);
                drop(writer);
                self.bell.ring();
                Ok(seq)
            }
            Err(down) => {
                let why = Unavailable(down.to_string());
                self.fail(&mut writer, down);
                Err(why)
            }
        }
    }

    /// Stops service until the keeper has repaired it.
    pub(super) fn fail(&self, writer: &mut Writer, down: Down) {
        *held(&self.last_error) = Some(down.to_string());
        tracing::error!(why = %down, "no audit record can be kept");
        writer.down = Some(down);
        self.raise_alarm();
    }

    /// Wakes the keeper.
    pub(super) fn raise_alarm(&self) {
        // It fails only where the counter is full, and then the keeper is awake.
        let _ = self.alarm.write(1);
    }

    /// Records what was counted of floods, if anything.
    pub(super) fn tell_floods(&self) {
        if self.writer().down.is_some() {
            return;
        }
        let Some(floods) = held(&self.floods).take() else {
            return;
        };
        let members = extra(&[("floods", floods)]);
        let entry = Entry {
            extra: Some(&members),
            ..Entry::of(Event::AlertFlood)
        };
        if let Err(why) = self.append(&entry) {
            tracing::warn!(%why, %members, "a flood of denials was not recorded");
        }
    }
}

impl Writer {
    /// Renders the entry as the next record and puts it into the segment.
    pub(super) fn put(&mut self, entry: &Entry<'_>, settings: &Settings) -> Result<u64, Down> {
        self.put_rendered(settings, |line, head, clock, now| {
            let hash = record(line, head, entry, clock, now);
            if line.len() <= MAX_LINE {
                return hash;
            }
            let short = Entry {
                extra: Some("\"too_long\":true"),
                ..*entry
            };
            record(line, head, &short, clock, now)
        })
    }

    /// The same from a phrase.
    pub(super) fn put_again(
        &mut self,
        phrase: &Phrase,
        request_id: &str,
        settings: &Settings,
    ) -> Result<u64, Down> {
        self.put_rendered(settings, |line, head, clock, now| {
            record_again(line, head, phrase, request_id, clock, now)
        })
    }

    /// Puts what `render` makes into the segment, or into the next one.
    fn put_rendered(
        &mut self,
        settings: &Settings,
        render: impl Fn(&mut Vec<u8>, &Head, &mut Clock, Now) -> Hash,
    ) -> Result<u64, Down> {
        let now = Now::read();
        let mut hash = render(&mut self.line, &self.head, &mut self.clock, now);
        let len = self.line.len() + self.reserve();
        if self.segment.is_due(len, now.mono) {
            let before = self.head.seq;
            self.switch(settings)?;
            if self.head.seq != before {
                hash = render(&mut self.line, &self.head, &mut self.clock, now);
            }
        }
        self.segment.append(&self.line)?;
        self.advance(hash);
        Ok(self.head.seq)
    }

    /// The chain goes on after a record with that hash.
    pub(super) fn advance(&mut self, hash: Hash) {
        self.head = Head {
            seq: self.head.seq + 1,
            hash,
        };
    }

    /// Ends the archive's thread.
    pub(super) fn stop_archive(&self) {
        let _ = self.archive.send(Job::Stop);
    }

    /// Seals and closes the segment and starts the next one.
    pub(super) fn switch(&mut self, settings: &Settings) -> Result<(), Failure> {
        self.checkpoint()?;
        let path = plain_path(&settings.dir, self.head.seq + 1);
        let next = Segment::create(&path, self.head, settings.segment, settings.mapped)?;
        let old = std::mem::replace(&mut self.segment, next);
        self.created = true;
        let _ = self.archive.send(Job::Closed {
            file: old.file.clone(),
            len: old.pos,
        });
        let end = Mark {
            offset: old.pos,
            head: self.head,
        };
        self.pending.push(Part {
            file: old.file,
            from: old.synced,
            end,
        });
        Ok(())
    }
}

/// Locks whatever a panicking thread left: the state is changed only by whole steps.
pub(super) fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
