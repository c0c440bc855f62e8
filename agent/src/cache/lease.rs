//! The loan of one value to one answer.

use std::ops::Range;
use std::sync::Arc;

use crate::audit::Receipt;
use crate::policy::Decision;
use crate::sys::arena::Block;

/// The right to lease: an allowed decision whose record is kept.
///
/// No record, no lease: only a decision of the policy and a receipt of the audit log make one.
pub struct Permit(());

impl Permit {
    /// `None` where the decision was to deny.
    #[must_use]
    pub fn new(decision: &Decision, _kept: Receipt) -> Option<Self> {
        decision.allowed().then_some(Self(()))
    }
}

/// Bytes in secret memory, lent to an answer. They are wiped when the value is no longer served and the
/// last lease has ended.
pub struct Lease {
    block: Arc<Block>,
    range: Range<usize>,
}

impl Lease {
    pub(super) fn whole(block: &Arc<Block>) -> Self {
        Self {
            block: Arc::clone(block),
            range: 0..block.len(),
        }
    }

    pub(super) fn part(block: &Arc<Block>, range: Range<usize>) -> Self {
        Self {
            block: Arc::clone(block),
            range,
        }
    }
}

impl AsRef<[u8]> for Lease {
    fn as_ref(&self) -> &[u8] {
        &self.block[self.range.clone()]
    }
}
