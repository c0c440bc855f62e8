//! What came of checking a log.

use std::fmt;

use super::chain::Head;

/// What is wrong with a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// The line is no record.
    NotARecord,
    /// Its bytes do not have its hash: it was edited.
    Edited,
    /// It has its own hash, but not the one that the record after it (or the pinned head) follows.
    Rewritten,
    /// Records from this one up to `to` were removed within a file.
    Removed {
        /// The last one that is missing.
        to: u64,
    },
    /// Records from this one up to `to` are missing between two segments.
    SegmentGap {
        /// The last one that is missing.
        to: u64,
    },
    /// It stands after a record that it comes before.
    Swapped,
    /// It is there twice.
    Duplicate,
    /// The file's name says another first record.
    Misnamed,
    /// The log begins here, and no `audit.expired` says where the records before went.
    BeginsLate,
    /// The log ends before the pinned head.
    CutTail,
    /// Behind a gap of zeros, or unfinished in a closed segment.
    BadTail,
    /// Records from this one up to `to` are not those that were sealed, or a checkpoint is not the host's.
    Resealed {
        /// The checkpoint that does not hold.
        to: u64,
    },
    /// Sealed checkpoints are missing between this record and `to`.
    SealsMissing {
        /// How many.
        missing: u64,
        /// The next checkpoint that is there.
        to: u64,
    },
    /// The log ends before the last checkpoint that the host has sealed.
    SealsCut {
        /// How many are missing.
        missing: u64,
    },
    /// From this record on nothing is sealed.
    Unsealed,
    /// The host seals with another key from this record on.
    OtherKey,
    /// What the host holds is not made from the verification key.
    KeyForged,
    /// The file cannot be read from here on, as when compressed bytes were changed.
    Unreadable {
        /// What the system or the decoder says.
        why: String,
    },
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::NotARecord => "the line is not an audit record",
            Self::Edited => "edited: its content does not have its hash",
            Self::Rewritten => "rewritten: its hash is not the one that was chained to or pinned",
            Self::Removed { to } => return write!(f, "removed: records up to {to} are missing"),
            Self::SegmentGap { to } => {
                return write!(f, "records up to {to} are missing between two segments");
            }
            Self::Swapped => "swapped: it stands after a later record",
            Self::Duplicate => "duplicate: it is there twice",
            Self::Misnamed => "the file's name says another first record",
            Self::BeginsLate => "the records before are missing and no audit.expired names them",
            Self::CutTail => "cut: the log ends before the pinned head",
            Self::Resealed { to } => {
                return write!(
                    f,
                    "rewritten: records from here on are not those that were sealed by checkpoint {to}"
                );
            }
            Self::SealsMissing { missing, to } => {
                return write!(
                    f,
                    "rewritten or cut: {missing} sealed checkpoints are missing before record {to}"
                );
            }
            Self::SealsCut { missing } => {
                return write!(
                    f,
                    "cut: the host has sealed {missing} checkpoints more than there are"
                );
            }
            Self::Unsealed => "not sealed: no checkpoint of this key follows",
            Self::OtherKey => "not sealed: the host seals with another key now",
            Self::KeyForged => "not sealed: the key that the host holds was not made from this one",
            Self::BadTail => "the file goes on with something that is no record",
            Self::Unreadable { why } => {
                return write!(f, "the file cannot be read from here on: {why}");
            }
        };
        f.write_str(text)
    }
}

/// One bad record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bad {
    /// The segment file's name; empty where the log ends too early.
    pub file: String,
    /// The line in it (uncompressed), from 1.
    pub line: u64,
    /// The record's number, or the one it should have.
    pub seq: u64,
    /// What is wrong.
    pub why: Why,
    /// The `alert.chain_broken` by which the agent told of it when it happened.
    pub noticed: Option<u64>,
}

impl fmt::Display for Bad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            file,
            line,
            seq,
            why,
            noticed,
        } = self;
        if file.is_empty() {
            write!(f, "record {seq}: {why}")?;
        } else {
            write!(f, "{file} line {line}, record {seq}: {why}")?;
        }
        match noticed {
            Some(alert) => write!(
                f,
                " (the agent noticed it: record {alert}, alert.chain_broken)"
            ),
            None => Ok(()),
        }
    }
}

/// What came of checking a log.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Segment files that were read.
    pub segments: u64,
    /// Records that were read.
    pub records: u64,
    /// The first record's number.
    pub first: Option<u64>,
    /// Where the chain ends.
    pub head: Option<Head>,
    /// The last record that a sealed checkpoint stands for, where a key was given and one does.
    pub sealed: Option<u64>,
    /// Whether the last line is unfinished, as a kill leaves it; the agent removes it when it starts.
    pub torn: bool,
    /// Bad records, the first one first.
    pub bad: Vec<Bad>,
}

impl Report {
    /// How many records the last sealed checkpoint does not stand for, where one stands for any.
    #[must_use]
    pub fn unsealed(&self) -> Option<u64> {
        let head = self.head.as_ref()?;
        Some(head.seq.saturating_sub(self.sealed?))
    }

    /// Whether every record is as it was written.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.bad.is_empty()
    }
}
