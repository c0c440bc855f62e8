//! Checks a log against the verification key of its sealed checkpoints: pure, a record at a time.
//!
//! The chain shows what was changed by someone who left it broken. Who can write all of it can chain it anew, but
//! not seal it anew: of the checkpoints before they came, the keys are gone.

use std::time::{Duration, SystemTime};

use super::checkpoint::seal_of;
use super::ratchet::Ratchet;
use super::record::Record;
use super::report::Why;

/// Records that are older than this when the log ends should have been sealed.
const PATIENCE: Duration = Duration::from_secs(60);
/// No host seals more checkpoints than this: one each second for a hundred years.
const MOST: u64 = 3_200_000_000;

/// What a log is checked against.
#[derive(Clone, Debug)]
pub struct Sealing {
    /// The verification key, at its first checkpoint.
    pub key: Ratchet,
    /// What the host holds for its next one, read before the log, where it could be.
    pub held: Option<Ratchet>,
}

/// What is known while records come.
#[derive(Debug)]
pub(super) struct Seals {
    sealing: Sealing,
    /// At the checkpoint that should come next.
    key: Ratchet,
    last: Option<Last>,
    /// Something was found, and what follows says no more.
    broken: bool,
}

/// The last good checkpoint.
#[derive(Debug)]
struct Last {
    seq: u64,
    when: Option<SystemTime>,
}

impl Seals {
    pub(super) fn new(sealing: Sealing) -> Self {
        Self {
            key: sealing.key.clone(),
            sealing,
            last: None,
            broken: false,
        }
    }

    /// The last record that is sealed, if one is.
    pub(super) fn last(&self) -> Option<u64> {
        self.last.as_ref().map(|last| last.seq)
    }

    /// The next checkpoint, in a log that begins with record `first`; what is wrong with the records before it.
    pub(super) fn checkpoint(&mut self, record: &Record, first: u64) -> Option<Why> {
        let seal = seal_of(&record.extra()).filter(|seal| seal.key == self.key.id())?;
        let head = record.before()?;
        if self.broken {
            return None;
        }
        let to = record.seq;
        let missing = seal.index.checked_sub(self.key.index());
        // Those before were deleted with the oldest segments.
        let expired = self.last.is_none() && first > 1;
        let why = match missing {
            Some(0) => None,
            Some(more) if more > MOST => Some(Why::Resealed { to }),
            Some(_) if expired => None,
            Some(missing) => Some(Why::SealsMissing { missing, to }),
            None => Some(Why::Resealed { to }),
        };
        if why.is_none() {
            self.key.forward_to(seal.index);
        }
        let why = why.or_else(|| (self.key.seal(&head) != seal).then_some(Why::Resealed { to }));
        if why.is_some() {
            self.broken = true;
            return why;
        }
        self.key.forward();
        self.last = Some(Last {
            seq: record.seq,
            when: record.when(),
        });
        None
    }

    /// What is wrong with the end of a log whose last record was written at `end`.
    pub(super) fn finish(&mut self, end: Option<SystemTime>) -> Option<Why> {
        if self.broken {
            return None;
        }
        if let Some(held) = self.sealing.held.clone() {
            if held.id() != self.key.id() {
                return Some(Why::OtherKey);
            }
            let mut true_one = self.sealing.key.clone();
            if held.index() > MOST {
                return Some(Why::KeyForged);
            }
            true_one.forward_to(held.index());
            if !held.is(&true_one) {
                return Some(Why::KeyForged);
            }
            if let Some(missing) = held
                .index()
                .checked_sub(self.key.index())
                .filter(|n| *n > 0)
            {
                return Some(Why::SealsCut { missing });
            }
        }
        let Some(last) = &self.last else {
            return Some(Why::Unsealed);
        };
        let late = |end: SystemTime, last| end.duration_since(last).is_ok_and(|age| age > PATIENCE);
        let (Some(end), Some(last)) = (end, last.when) else {
            return None;
        };
        late(end, last).then_some(Why::Unsealed)
    }
}
