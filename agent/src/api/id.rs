//! Request ids: they lead from a bot's own log to the audit record.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// One request's id: eight hexadecimal digits of this run of the daemon, a dash, twelve of a counter. All
/// ids have the same length, so that two answers differ in nothing else.
#[derive(Clone, Copy)]
pub struct RequestId([u8; 21]);

/// Hands out ids.
pub struct RequestIds {
    run: [u8; 8],
    next: AtomicU64,
}

impl RequestIds {
    /// Ids of a new run of the daemon.
    pub fn new() -> Result<Self, getrandom::Error> {
        let mut run = [0; 8];
        hex(u64::from(getrandom::u32()?), &mut run);
        Ok(Self {
            run,
            next: AtomicU64::new(1),
        })
    }

    /// The next id.
    pub fn next(&self) -> RequestId {
        let mut id = [b'-'; 21];
        id[..8].copy_from_slice(&self.run);
        hex(self.next.fetch_add(1, Ordering::Relaxed), &mut id[9..]);
        RequestId(id)
    }
}

impl RequestId {
    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // Hexadecimal digits and a dash.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The lowest digits of `number` that fit.
fn hex(mut number: u64, out: &mut [u8]) {
    for digit in out.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(number & 15) as usize];
        number >>= 4;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn ids_differ_and_have_one_length() {
        let ids = RequestIds::new().unwrap();
        let (one, two) = (ids.next(), ids.next());
        assert_eq!(one.as_str().len(), 21);
        assert_ne!(one.as_str(), two.as_str());
        assert_eq!(&two.as_str()[8..], "-000000000002");
    }
}
