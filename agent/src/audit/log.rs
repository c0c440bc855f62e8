//! The log that requests see: [`Log::keep`] renders a record, chains it and copies it into the segment.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::alerts::Alerts;
use super::archive::{self, Crowd, Job};
use super::chain::Head;
use super::checkpoint::{self, KeyFile};
use super::entry::Entry;
use super::event::{Event, Verdict};
use super::feed::{self, Bell, Journal};
use super::flood::Floods;
use super::keeper;
use super::pack;
use super::recover::recover;
use super::render::{Clock, Phrase};
use super::segment::readable_by_adm;
use super::writer::{Counters, Inner, Writer, held};
use super::{AuditError, Kept, OnFailure, Receipt, Settings, Sync, Unavailable};

/// An open audit log. Closing or dropping it syncs and ends its threads.
pub struct Log {
    pub(super) inner: Arc<Inner>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    _lock: Flock<File>,
}

/// The state of a log, for status and metrics.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// The number of the last record.
    pub seq: u64,
    /// The number of the last record known to be on disk.
    pub synced: u64,
    /// Segment files, the current one included.
    pub segments: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Whether records are copied into mapped pages (else each is written).
    pub mapped: bool,
    /// Records that journald has not been sent; 0 where it is not fed.
    pub journal_behind: u64,
    /// Why journald cannot be reached; `None` where it can, or is not fed.
    pub journal_error: Option<String>,
    /// Denials that were counted and not recorded one by one.
    pub flooded: u64,
    /// Requests refused because no record could be kept.
    pub refused: u64,
    /// Requests served without one (`on_failure = "allow"`).
    pub unrecorded: u64,
    /// Alerts by rule.
    pub alerts: BTreeMap<&'static str, u64>,
    /// Syncs to disk.
    pub syncs: u64,
    /// The last thing that went wrong, whether or not it is over.
    pub last_error: Option<String>,
}

impl Log {
    /// Opens the log in `settings.dir`, continuing what is there. The notes say what a kill left behind.
    pub fn open(settings: Settings) -> Result<(Arc<Self>, Vec<String>), AuditError> {
        make_folder(&settings.dir)?;
        let lock = lock(&settings.dir)?;
        let mut found = recover(&settings)?;
        let sent = feed::load_cursor(&settings.dir);
        if let Some(sent) = sent.filter(|sent| settings.journald && *sent > found.head.seq) {
            found.alerts.push(feed::ahead(sent, found.head));
        }
        let mut key_file = settings.key_file.as_deref().map(KeyFile::new);
        let key = match &mut key_file {
            Some(file) => {
                let (key, alert) = checkpoint::open(file, &settings.dir)?;
                found.alerts.extend(alert);
                key
            }
            None => None,
        };
        let (archive, closed) = channel();
        let inner = Arc::new(Inner {
            writer: Mutex::new(Writer {
                head: found.head,
                segment: found.segment,
                pending: Vec::new(),
                created: true,
                down: None,
                key,
                sealed: 0,
                archive,
                line: Vec::with_capacity(4096),
                clock: Clock::new(),
            }),
            syncing: Mutex::new(()),
            names: Mutex::new(()),
            key_file: Mutex::new(key_file),
            floods: Mutex::new(Floods::default()),
            head: AtomicU64::new(found.head.seq),
            // What a kill left may not be on disk: the first sync takes care of it.
            synced: AtomicU64::new(0),
            stopping: Arc::default(),
            alarm: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
                .map_err(|why| AuditError::io("make an eventfd for", &settings.dir)(why.into()))?,
            bell: Bell::default(),
            journal: Journal::new(sent.map_or(found.head.seq, |sent| sent.min(found.head.seq))),
            crowd: Crowd::default(),
            alerts: Alerts::default(),
            counters: Counters::default(),
            last_error: Mutex::new(None),
            settings,
        });
        for alert in &found.alerts {
            let entry = Entry {
                extra: Some(alert),
                ..Entry::of(Event::AlertChainBroken)
            };
            inner
                .append(&entry)
                .map_err(|why| AuditError::NotWritable(why.0))?;
        }
        let threads = start(&inner, closed)?;
        let log = Self {
            inner,
            threads: Mutex::new(threads),
            _lock: lock,
        };
        Ok((Arc::new(log), found.notes))
    }

    /// Records `entry` before its answer leaves. When this returns, killing the daemon does not lose it.
    pub fn keep(&self, entry: &Entry<'_>) -> Result<Receipt, Unavailable> {
        let inner = &*self.inner;
        if entry.decision == Verdict::Deny {
            let bot = entry.who.and_then(|who| who.bot());
            let now = crate::sys::map::monotonic();
            if !held(&inner.floods).admit(bot, entry.reason.unwrap_or("unknown"), now) {
                return Ok(Receipt(Kept::Counted));
            }
        }
        self.receipt(inner.append(entry))
    }

    /// Syncs where the settings ask for it, and says what may be done now.
    fn receipt(&self, appended: Result<u64, Unavailable>) -> Result<Receipt, Unavailable> {
        let inner = &*self.inner;
        let kept = appended.and_then(|seq| match inner.settings.sync {
            Sync::Always => inner.sync_to(seq).map(|()| seq),
            Sync::Second => Ok(seq),
        });
        inner.crowd.wait(&inner.settings);
        match (kept, inner.settings.on_failure) {
            (Ok(seq), _) => Ok(Receipt(Kept::Recorded(seq))),
            (Err(why), OnFailure::Deny) => {
                inner.counters.refused.fetch_add(1, Ordering::Relaxed);
                Err(why)
            }
            (Err(_), OnFailure::Allow) => {
                inner.counters.unrecorded.fetch_add(1, Ordering::Relaxed);
                Ok(Receipt(Kept::Unrecorded))
            }
        }
    }

    /// The same for an allowed request whose records have been rendered before.
    ///
    /// # Errors
    /// As [`keep`](Self::keep).
    pub fn keep_again(&self, phrase: &Phrase, request_id: &str) -> Result<Receipt, Unavailable> {
        self.receipt(self.inner.append_again(phrase, request_id))
    }

    /// Whether records can be kept now; if not, why.
    pub fn available(&self) -> Result<(), String> {
        self.inner
            .writer()
            .down
            .as_ref()
            .map_or(Ok(()), |down| Err(down.to_string()))
    }

    /// The last record's number and hash: pin it elsewhere, and a cut tail shows.
    #[must_use]
    pub fn head(&self) -> Head {
        self.inner.writer().head
    }

    /// The records of alerts, from the opening of the log on; `None` for whoever asks second.
    #[must_use]
    pub fn alerts(&self) -> Option<tokio::sync::mpsc::Receiver<Vec<u8>>> {
        self.inner.alerts.listen()
    }

    /// How the log stands.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let inner = &*self.inner;
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (seq, size, mapped) = {
            let writer = inner.writer();
            (
                writer.head.seq,
                writer.segment.size,
                writer.segment.is_mapped(),
            )
        };
        let (behind, error) = if inner.settings.journald {
            inner.journal.state(seq)
        } else {
            (0, None)
        };
        Stats {
            seq,
            synced: count(&inner.synced),
            segments: count(&inner.counters.closed_segments) + 1,
            bytes: count(&inner.counters.closed_bytes) + size,
            mapped,
            journal_behind: behind,
            journal_error: error,
            flooded: held(&inner.floods).total,
            refused: count(&inner.counters.refused),
            unrecorded: count(&inner.counters.unrecorded),
            alerts: inner.alerts.counts(),
            syncs: count(&inner.counters.syncs),
            last_error: held(&inner.last_error).clone(),
        }
    }

    /// Syncs, cuts the segment to its length, lets journald have what it takes, and ends the threads.
    pub fn close(&self) {
        if self.inner.stopping.swap(true, Ordering::SeqCst) {
            return;
        }
        self.inner.tell_floods();
        self.inner.raise_alarm();
        let mut threads = std::mem::take(&mut *held(&self.threads)).into_iter();
        // The keeper comes first: it must not repair what `finish` closes.
        let _ = threads.next().map(JoinHandle::join);
        self.inner.finish();
        self.inner.bell.ring();
        for thread in threads {
            let _ = thread.join();
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log")
            .field("dir", &self.inner.settings.dir)
            .finish_non_exhaustive()
    }
}

/// Makes the folder of a log where it is missing.
pub fn make_folder(dir: &Path) -> Result<(), AuditError> {
    match DirBuilder::new().mode(0o750).create(dir) {
        Ok(()) => {
            let made = File::open(dir).map_err(AuditError::io("open", dir))?;
            readable_by_adm(&made, 0o750);
            Ok(())
        }
        Err(why) if why.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(why) => Err(AuditError::io("make the audit folder", dir)(why)),
    }
}

fn lock(dir: &Path) -> Result<Flock<File>, AuditError> {
    let path = dir.join("audit.lock");
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        // Whoever may read the log must not be able to lock it.
        .mode(0o600)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(&path)
        .map_err(AuditError::io("open", &path))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|_| AuditError::Locked(dir.to_owned()))
}

fn start(inner: &Arc<Inner>, closed: Receiver<Job>) -> Result<Vec<JoinHandle<()>>, AuditError> {
    inner
        .take_stock()
        .map_err(AuditError::io("list", &inner.settings.dir))?;
    let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(work)
            .map_err(AuditError::io("start a thread for", &inner.settings.dir))
    };
    // The keeper comes first: `close` ends it before the rest.
    let (keeping, archiving, feeding) = (inner.clone(), inner.clone(), inner.clone());
    let (stopping, packed) = (inner.stopping.clone(), inner.writer().archive.clone());
    let (orders, ordered) = channel();
    // Nobody waits for the packer, not even at the end: it may get no time for long. So it must hold no segment open
    // either, whose late closing would look like a stranger's write to whoever opens the log next.
    spawn(
        "audit-pack",
        Box::new(move || pack::run(&stopping, &ordered, &packed)),
    )?;
    let mut threads = vec![
        spawn("audit-keeper", Box::new(move || keeper::run(&keeping)))?,
        spawn(
            "audit-archive",
            Box::new(move || archive::run(&archiving, &closed, orders)),
        )?,
    ];
    if inner.settings.journald {
        threads.push(spawn(
            "audit-journal",
            Box::new(move || feed::run(&feeding)),
        )?);
    }
    Ok(threads)
}
