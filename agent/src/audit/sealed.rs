//! Checks a log against the verification key of its sealed checkpoints: pure, a record at a time.
//!
//! The chain shows what was changed by someone who left it broken. Who can write all of it can chain it anew, but
//! not seal it anew: of the checkpoints before they came, the keys are gone.

use std::time::{Duration, SystemTime};

use super::checkpoint::seal_of;
use super::ratchet::{MOST, Ratchet};
use super::record::Record;
use super::report::Why;

/// Records that are older than this when the log ends should have been sealed.
const PATIENCE: Duration = Duration::from_secs(60);

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
            // Each checkpoint is a record, so that there are fewer of them.
            Some(_) if expired && seal.index < to => None,
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

    /// What is wrong with the end of a log; `latest` is the latest time in a record after the last checkpoint,
    /// empty where there is none.
    pub(super) fn finish(&mut self, latest: &str) -> Option<Why> {
        if self.broken {
            return None;
        }
        if let Some(held) = self.sealing.held.clone() {
            if held.id() != self.key.id() {
                return Some(Why::OtherKey);
            }
            let mut true_one = self.sealing.key.clone();
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
        let sealed = last.when.filter(|_| !latest.is_empty())?;
        let is_late = humantime::parse_rfc3339(latest)
            // No daemon has written what is no time.
            .map_or(true, |latest| {
                latest
                    .duration_since(sealed)
                    .is_ok_and(|age| age > PATIENCE)
            });
        is_late.then_some(Why::Unsealed)
    }
}

#[cfg(test)]
mod tests {
    use zeroize::Zeroizing;

    use super::super::chain::{Hash, Head};
    use super::super::entry::Entry;
    use super::super::event::Event;
    use super::super::render::{Clock, Now, extra, record};
    use super::*;

    /// The checkpoint `index` of `key` as record `seq`.
    fn checkpoint(key: &Ratchet, index: u64, seq: u64) -> Record {
        let (seq, hash) = (seq - 1, Hash::of(b"x"));
        let head = Head { seq, hash };
        let mut key = key.clone();
        key.forward_to(index);
        let seal = key.seal(&head);
        let members = [
            ("key", seal.key.into()),
            ("index", index.into()),
            ("hmac", seal.hmac.into()),
        ];
        let entry = Entry {
            extra: Some(&extra(&members)),
            ..Entry::of(Event::AuditCheckpoint)
        };
        let mut line = Vec::new();
        record(&mut line, &head, &entry, &mut Clock::new(), Now::read());
        Record::parse(&line).unwrap()
    }

    #[test]
    fn a_log_whose_beginning_expired_has_fewer_checkpoints_than_records() {
        let key = Ratchet::start(Zeroizing::new([1; 32]));
        let found = |index, seq| {
            let mut seals = Seals::new(Sealing {
                key: key.clone(),
                held: None,
            });
            seals.checkpoint(&checkpoint(&key, index, seq), 5)
        };
        assert_eq!(found(6, 7), None);
        assert_eq!(found(7, 7), Some(Why::SealsMissing { missing: 7, to: 7 }));
    }
}
