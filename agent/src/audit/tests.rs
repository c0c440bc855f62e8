//! Behaviour of the whole room over real files.

use super::chain::Head;
use super::entry::Entry;
use super::event::Event;
use super::render::{Clock, Now, record};

/// The line of some record with this number.
pub(super) fn line(seq: u64) -> Vec<u8> {
    let mut line = Vec::new();
    let head = Head {
        seq: seq - 1,
        ..Head::START
    };
    record(
        &mut line,
        &head,
        &Entry::of(Event::SecretRead),
        &mut Clock::new(),
        Now::read(),
    );
    line.pop();
    line
}
