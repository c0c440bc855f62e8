//! One arena of secret memory, handed out as blocks that wipe themselves.
//!
//! A [`Draft`] is written by its one owner, then frozen into a [`Block`] that any number of readers share
//! behind an `Arc`. Whatever the way it goes, its bytes are zero before the range is free again.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::secret::{Protection, SecretMemory};

/// Blocks begin at multiples of this, so that a rotation finds the room that the old value left.
const GRAIN: usize = 64;

/// Secret memory and which parts of it are free.
pub struct Arena {
    memory: SecretMemory,
    free: Mutex<Free>,
}

/// The arena has no room for a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "secret memory is full: {wanted} bytes wanted, {used} of {size} used; raise LimitMEMLOCK= (ulimit -l) \
     or grant CAP_IPC_LOCK"
)]
pub struct Full {
    /// The bytes asked for.
    pub wanted: usize,
    /// The bytes in use.
    pub used: usize,
    /// The size of the arena.
    pub size: usize,
}

/// Free ranges by offset; neighbours are joined.
struct Free {
    ranges: BTreeMap<usize, usize>,
    bytes: usize,
}

impl Arena {
    /// An arena of `len` bytes. Pages are only taken from the system as they are first written.
    pub fn new(len: usize) -> io::Result<Arc<Self>> {
        let memory = SecretMemory::map(len)?;
        let len = memory.len();
        let free = Free {
            ranges: BTreeMap::from([(0, len)]),
            bytes: len,
        };
        Ok(Arc::new(Self {
            memory,
            free: Mutex::new(free),
        }))
    }

    /// A block of `len` bytes, all zero, to be written by the caller.
    pub fn draft(self: &Arc<Self>, len: usize) -> Result<Draft, Full> {
        let room = rounded(len);
        // A statement of its own: what is full is counted under the same lock.
        let offset = self.free().take(room);
        let offset = offset.ok_or_else(|| self.full(len))?;
        Ok(Draft(Range {
            arena: Arc::clone(self),
            offset,
            len,
        }))
    }

    /// How well the memory is protected.
    #[must_use]
    pub fn protection(&self) -> Protection {
        self.memory.protection()
    }

    /// Bytes in all.
    #[must_use]
    pub fn size(&self) -> usize {
        self.memory.len()
    }

    /// Bytes in use.
    #[must_use]
    pub fn used(&self) -> usize {
        self.size() - self.free().bytes
    }

    fn full(&self, wanted: usize) -> Full {
        Full {
            wanted,
            used: self.used(),
            size: self.size(),
        }
    }

    fn free(&self) -> MutexGuard<'_, Free> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Free {
    /// The first range with enough room: low addresses are used again before new pages are touched.
    fn take(&mut self, room: usize) -> Option<usize> {
        let (&offset, &len) = self.ranges.iter().find(|(_, len)| **len >= room)?;
        self.ranges.remove(&offset);
        if len > room {
            self.ranges.insert(offset + room, len - room);
        }
        self.bytes -= room;
        Some(offset)
    }

    fn give(&mut self, offset: usize, room: usize) {
        let (mut start, mut len) = (offset, room);
        if let Some((&before, &before_len)) = self.ranges.range(..offset).next_back()
            && before + before_len == offset
        {
            self.ranges.remove(&before);
            start = before;
            len += before_len;
        }
        if let Some(after_len) = self.ranges.remove(&(offset + room)) {
            len += after_len;
        }
        self.ranges.insert(start, len);
        self.bytes += room;
    }
}

fn rounded(len: usize) -> usize {
    len.max(1).next_multiple_of(GRAIN)
}

/// A range that belongs to one value alone.
struct Range {
    arena: Arc<Arena>,
    offset: usize,
    len: usize,
}

impl Drop for Range {
    fn drop(&mut self) {
        // SAFETY: this value is the only one that knows the range, and it is going away.
        unsafe { self.arena.memory.wipe(self.offset, self.len) };
        self.arena.free().give(self.offset, rounded(self.len));
    }
}

/// Secret memory being written.
pub struct Draft(Range);

impl Draft {
    /// Ends the writing.
    #[must_use]
    pub fn freeze(self) -> Block {
        Block(self.0)
    }
}

impl Deref for Draft {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the range belongs to this value alone, and `&self` keeps writers away.
        unsafe { self.0.arena.memory.bytes(self.0.offset, self.0.len) }
    }
}

impl DerefMut for Draft {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: the range belongs to this value alone, and `&mut self` keeps everyone else away.
        unsafe { self.0.arena.memory.bytes_mut(self.0.offset, self.0.len) }
    }
}

/// Secret memory that no longer changes until it is wiped.
pub struct Block(Range);

impl Deref for Block {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: nothing writes a block's range before it is dropped.
        unsafe { self.0.arena.memory.bytes(self.0.offset, self.0.len) }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_freed_block_is_zero_and_its_room_is_used_again() {
        let arena = Arena::new(8192).unwrap();
        let mut draft = arena.draft(100).unwrap();
        draft.copy_from_slice(&[7; 100]);
        let offset = draft.0.offset;
        let block = draft.freeze();
        assert!(block.iter().all(|byte| *byte == 7));
        drop(block);
        assert_eq!(arena.used(), 0);
        let again = arena.draft(100).unwrap();
        assert_eq!(again.0.offset, offset);
        assert!(again.iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_full_arena_says_so_and_recovers() {
        let arena = Arena::new(4096).unwrap();
        let half = arena.draft(2048).unwrap();
        let error = arena.draft(4096).map(drop).unwrap_err();
        assert_eq!(
            error,
            Full {
                wanted: 4096,
                used: 2048,
                size: 4096
            }
        );
        assert!(error.to_string().contains("LimitMEMLOCK"));
        drop(half);
        assert!(arena.draft(4096).is_ok());
    }

    proptest! {
        #[test]
        fn blocks_never_overlap_and_all_room_comes_back(sizes in prop::collection::vec((0usize..900, any::<bool>()), 1..60)) {
            let arena = Arena::new(16384).unwrap();
            let mut held: Vec<(Draft, u8)> = Vec::new();
            for (turn, (size, keep)) in sizes.into_iter().enumerate() {
                let mark = u8::try_from(turn % 250).unwrap() + 1;
                if let Ok(mut draft) = arena.draft(size) {
                    prop_assert!(draft.iter().all(|byte| *byte == 0));
                    draft.fill(mark);
                    held.push((draft, mark));
                }
                if !keep && !held.is_empty() {
                    held.swap_remove(turn % held.len());
                }
                for (draft, mark) in &held {
                    prop_assert!(draft.iter().all(|byte| byte == mark));
                }
            }
            held.clear();
            prop_assert_eq!(arena.used(), 0);
            prop_assert_eq!(arena.free().ranges.len(), 1);
        }
    }
}
