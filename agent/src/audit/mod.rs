//! The audit log: one record per decision, chained by hashes, in segment files, before the answer leaves.
//!
//! [`Log::keep`] is the only way to a [`Receipt`], and no value is given out without one. The segments are
//! the record of truth; journald is fed from them, behind the requests. docs/audit-format.md has the bytes.
//!
//! `chain`, `render`, `flood` and `verify` are pure; `log` is what requests see, `writer` makes records of
//! entries, `segment` is the file; `keeper` watches and `repair`s, `archive` closes and expires, `feed` and
//! `journald` tell the journal.

// A test may fail by a panic.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod alerts;
mod archive;
mod chain;
mod checkpoint;
mod entry;
mod event;
mod feed;
mod files;
mod flood;
mod follow;
mod format;
mod journald;
mod keeper;
mod log;
mod merge;
mod pack;
mod query;
mod ratchet;
mod record;
mod recover;
mod render;
mod repair;
mod report;
mod scan;
mod sealed;
mod segment;
#[cfg(test)]
mod tests;
mod verify;
mod writer;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::files::FileError;

pub use chain::{Hash, Head, Link, seq_of};
pub use checkpoint::{begin, load_key};
pub use entry::{Entry, Facts, Who};
pub use event::{Event, Verdict};
pub use files::{Kind, Lines, SegmentFile, Tail, segments};
pub use follow::{Follower, Step, tail};
pub use format::{format_line, safe, sentence};
pub use log::{Log, Stats, make_folder};
pub use query::{Filter, lines, query};
pub use ratchet::{Ratchet, Seal};
pub use record::{Brief, BriefPeer, Peer, Record, Text, time_text};
pub use render::{Members, Phrase, extra, unescape};
pub use report::{Bad, Report, Why};
pub use scan::{Part, Span, fold, parts, stream};
pub use sealed::Sealing;
pub use verify::{Verifier, verify, verify_sealed};

/// Where journald listens for its native protocol.
pub const JOURNAL_SOCKET: &str = "/run/systemd/journal/socket";

/// The name in the state folder of the key of the next checkpoint.
pub const KEY_FILE: &str = "checkpoint.key";

/// How a log is kept; the contract's `[audit]`.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The folder of the segments; made (0750) where it is missing.
    pub dir: PathBuf,
    /// Whether records are streamed to journald.
    pub journald: bool,
    /// Where it listens.
    pub journal_socket: PathBuf,
    /// When a record must be on disk.
    pub sync: Sync,
    /// A segment is closed at this many bytes.
    pub segment: u64,
    /// The most bytes of all segments together.
    pub keep: u64,
    /// How long records are kept.
    pub keep_for: Duration,
    /// What happens to requests when no record can be kept.
    pub on_failure: OnFailure,
    /// The file with the key of sealed checkpoints, once there is one; `None` where none are made.
    pub key_file: Option<PathBuf>,
    /// Whether records are copied into mapped pages where the file system allows it.
    pub mapped: bool,
}

impl Settings {
    /// The contract's defaults for a log in `dir`.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            journald: true,
            journal_socket: PathBuf::from(JOURNAL_SOCKET),
            sync: Sync::Second,
            segment: 64 << 20,
            keep: 4 << 30,
            keep_for: Duration::from_secs(90 * 24 * 60 * 60),
            on_failure: OnFailure::Deny,
            key_file: None,
            mapped: true,
        }
    }
}

/// When a record must be on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    /// Before `keep` returns.
    Always,
    /// At least once a second.
    Second,
}

/// What happens to requests when no record can be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFailure {
    /// They are refused.
    Deny,
    /// They are served, and the receipt says that there is no record.
    Allow,
}

/// Proof that an event was recorded, or that the settings do without. Only [`Log::keep`] makes one.
#[must_use]
#[derive(Debug, PartialEq, Eq)]
pub struct Receipt(Kept);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kept {
    Recorded(u64),
    Counted,
    Unrecorded,
}

impl Receipt {
    /// The record's sequence number; `None` for a denial that was only counted, or when unrecorded.
    #[must_use]
    pub fn seq(&self) -> Option<u64> {
        match self.0 {
            Kept::Recorded(seq) => Some(seq),
            Kept::Counted | Kept::Unrecorded => None,
        }
    }

    /// Whether there is no record at all because `on_failure` is to allow.
    #[must_use]
    pub fn is_unrecorded(&self) -> bool {
        self.0 == Kept::Unrecorded
    }
}

/// No record can be kept now; the log goes on by itself once the cause is gone.
#[derive(Clone, Debug, thiserror::Error)]
#[error("no audit record can be kept: {0}")]
pub struct Unavailable(pub String);

/// Why a log cannot be opened or read.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// A file or folder operation failed.
    #[error("cannot {what} {path}: {why}", path = path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        why: io::Error,
    },
    /// Two daemons must not write one log.
    #[error("another process writes the audit log in {}; stop it, or give each its own [audit] dir", .0.display())]
    Locked(PathBuf),
    /// The key of checkpoints cannot be used.
    #[error("no checkpoint can be sealed: {0}")]
    Key(FileError),
    /// The segment cannot be started.
    #[error("no audit record can be kept: {0}; make room or fix the folder, then start again")]
    NotWritable(String),
}

impl AuditError {
    pub(crate) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |why| Self::Io { what, path, why }
    }
}
