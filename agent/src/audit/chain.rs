//! The hash chain over records: pure, over the bytes of one line at a time.
//!
//! A line is `{"seq":N,...,"prev":"HASH","hash":"HASH"}`. What is hashed is the line up to and including the
//! value of `prev`, that is everything before `,"hash"`; `prev` is the hash of the record before.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};

const PREV: &[u8] = b",\"prev\":\"";
const HASH: &[u8] = b"\",\"hash\":\"";
const END: &[u8] = b"\"}";
/// What a line ends with that is not hashed: `,"hash":"..."}`.
const UNHASHED: usize = HASH.len() - 1 + Hash::LEN + END.len();

/// A SHA-256 in lower-case hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Hash([u8; Self::LEN]);

impl Hash {
    /// Its length as text.
    pub const LEN: usize = 64;
    /// What the first record of a log follows: 64 zeros.
    pub const START: Self = Self([b'0'; Self::LEN]);

    /// The hash of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = [0; Self::LEN];
        for (pair, byte) in text.chunks_exact_mut(2).zip(Sha256::digest(bytes)) {
            pair[0] = DIGITS[usize::from(byte >> 4)];
            pair[1] = DIGITS[usize::from(byte & 15)];
        }
        Self(text)
    }

    /// The hash with that text: 64 lower-case hexadecimal digits.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        let text: [u8; Self::LEN] = text.try_into().ok()?;
        let hex = |byte: &u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte);
        text.iter().all(hex).then_some(Self(text))
    }

    /// Its text, as bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Hash {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::parse(text.as_bytes()).ok_or(())
    }
}

/// Where a chain stands: the last record's number and hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Sequence number; 0 before the first record.
    pub seq: u64,
    /// Its hash.
    pub hash: Hash,
}

impl Head {
    /// Before the first record.
    pub const START: Self = Self {
        seq: 0,
        hash: Hash::START,
    };
}

/// What ties one record to the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// The record's number.
    pub seq: u64,
    /// The hash it says the record before has.
    pub prev: Hash,
    /// The hash it says that it has.
    pub hash: Hash,
    /// Whether that is the hash of its bytes.
    pub intact: bool,
}

impl Link {
    /// Reads the link of a line (without its newline); `None` where it is not a record.
    #[must_use]
    pub fn read(line: &[u8]) -> Option<Self> {
        let rest = line.strip_suffix(END)?;
        let (rest, hash) = rest.split_at_checked(rest.len().checked_sub(Hash::LEN)?)?;
        let rest = rest.strip_suffix(HASH)?;
        let (rest, prev) = rest.split_at_checked(rest.len().checked_sub(Hash::LEN)?)?;
        rest.strip_suffix(PREV)?;
        let (prev, hash) = (Hash::parse(prev)?, Hash::parse(hash)?);
        let hashed = line.get(..line.len().checked_sub(UNHASHED)?)?;
        Some(Self {
            seq: seq_of(line)?,
            prev,
            hash,
            intact: Hash::of(hashed) == hash,
        })
    }

    /// Whether it is untouched and follows `head`.
    #[must_use]
    pub fn follows(&self, head: &Head) -> bool {
        self.intact && Some(self.seq) == head.seq.checked_add(1) && self.prev == head.hash
    }

    /// Where the chain stands after it.
    #[must_use]
    pub fn head(&self) -> Head {
        Head {
            seq: self.seq,
            hash: self.hash,
        }
    }

    /// Where the chain stood before it, by its own account.
    #[must_use]
    pub fn before(&self) -> Head {
        Head {
            seq: self.seq.saturating_sub(1),
            hash: self.prev,
        }
    }
}

/// The sequence number that a line begins with.
#[must_use]
pub fn seq_of(line: &[u8]) -> Option<u64> {
    let rest = line.strip_prefix(b"{\"seq\":")?;
    let digits = rest.split(|byte| *byte == b',').next()?;
    let text = std::str::from_utf8(digits).ok()?;
    text.bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| text.parse().ok())?
}

/// Ends a line whose `prev` was just written to `line` from `start` on: hash, brace, newline.
pub(super) fn seal(line: &mut Vec<u8>, prev: &Hash) -> Hash {
    line.extend_from_slice(PREV);
    line.extend_from_slice(prev.as_bytes());
    line.push(b'"');
    let hash = Hash::of(line);
    line.extend_from_slice(&HASH[1..]);
    line.extend_from_slice(hash.as_bytes());
    line.extend_from_slice(END);
    line.push(b'\n');
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(seq: u64, prev: &Hash) -> (Vec<u8>, Hash) {
        let mut line = format!("{{\"seq\":{seq},\"event\":\"secret.read\"").into_bytes();
        let hash = seal(&mut line, prev);
        assert_eq!(line.pop(), Some(b'\n'));
        (line, hash)
    }

    #[test]
    fn a_sealed_line_reads_back_and_links() {
        let (first, hash) = line(1, &Hash::START);
        let link = Link::read(&first).unwrap();
        assert!(link.follows(&Head::START));
        let (second, _) = line(2, &hash);
        assert!(Link::read(&second).unwrap().follows(&link.head()));
        assert!(!Link::read(&second).unwrap().follows(&Head::START));
    }

    #[test]
    fn any_changed_byte_shows() {
        let (good, _) = line(1, &Hash::START);
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(
                !Link::read(&bad).is_some_and(|link| link.follows(&Head::START)),
                "byte {at}"
            );
        }
        for len in 0..good.len() {
            assert!(Link::read(&good[..len]).is_none(), "cut to {len}");
        }
    }
}
