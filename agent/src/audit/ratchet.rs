//! The key of sealed checkpoints, which only goes forward: each one seals a checkpoint, makes the next and is
//! wiped. Whoever takes the host has the keys to come, none of those before; the verification key is the first.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::chain::Head;

/// What is authenticated for each use, so that no value of one is that of another.
const SEAL: &[u8] = b"keyhatch-audit-checkpoint:";
const NEXT: &[u8] = b"keyhatch-audit-next-key";
const NAME: &[u8] = b"keyhatch-audit-key-id";

const KEY: usize = 32;
/// No host seals more checkpoints than this, one each second for thirty years: whoever follows a key goes no further.
pub(super) const MOST: u64 = 1_000_000_000;

/// The key of one checkpoint.
#[derive(Clone)]
pub struct Ratchet {
    id: String,
    index: u64,
    key: Zeroizing<[u8; KEY]>,
}

/// What a checkpoint says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seal {
    /// Which verification key it is checked with; tells nothing about it.
    pub key: String,
    /// The number of the checkpoint under that key, from 0.
    pub index: u64,
    /// The HMAC in hexadecimal.
    pub hmac: String,
}

impl Ratchet {
    /// At the first checkpoint of the verification key `key`.
    #[must_use]
    pub fn start(key: Zeroizing<[u8; KEY]>) -> Self {
        let id = hex(&mac(&key, &[NAME])[..8]);
        Self { id, index: 0, key }
    }

    /// The same from the key's text: 64 hexadecimal digits.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        unhex(text.trim()).map(Self::start)
    }

    /// Where an earlier one stood.
    pub(super) fn resume(id: &str, index: u64, key: &str) -> Option<Self> {
        (index <= MOST).then_some(())?;
        Some(Self {
            id: id.to_owned(),
            index,
            key: unhex(key)?,
        })
    }

    /// Which verification key it comes from.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The number of the checkpoint that it seals.
    #[must_use]
    pub fn index(&self) -> u64 {
        self.index
    }

    /// The key in hexadecimal, to be kept by whoever may.
    #[must_use]
    pub fn reveal(&self) -> Zeroizing<String> {
        Zeroizing::new(hex(&self.key[..]))
    }

    /// Seals all records up to `head`.
    #[must_use]
    pub fn seal(&self, head: &Head) -> Seal {
        let text = format!("{}:{}:{}", self.index, head.seq, head.hash);
        Seal {
            key: self.id.clone(),
            index: self.index,
            hmac: hex(&mac(&self.key, &[SEAL, text.as_bytes()])[..]),
        }
    }

    /// The next key; this one is wiped.
    pub fn forward(&mut self) {
        self.key = mac(&self.key, &[NEXT]);
        self.index += 1;
    }

    /// Goes on to checkpoint `index`, which is not before it.
    pub fn forward_to(&mut self, index: u64) {
        while self.index < index {
            self.forward();
        }
    }

    /// Whether it is the same key at the same checkpoint.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        // Both are on this side: there is nobody who could measure how long it takes.
        (&self.id, self.index) == (&other.id, other.index) && self.key == other.key
    }
}

impl fmt::Debug for Ratchet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ratchet")
            .field("id", &self.id)
            .field("index", &self.index)
            .finish_non_exhaustive()
    }
}

fn mac(key: &[u8; KEY], parts: &[&[u8]]) -> Zeroizing<[u8; KEY]> {
    // HMAC fills a short key up to its block with zeros itself; a whole block is a key that it cannot refuse.
    let mut block = Zeroizing::new([0; 64]);
    block[..KEY].copy_from_slice(key);
    let mut mac = Hmac::<Sha256>::new((&*block).into());
    parts.iter().for_each(|part| mac.update(part));
    Zeroizing::new(mac.finalize().into_bytes().into())
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = |byte: &u8| [byte >> 4, byte & 15].map(|nibble| DIGITS[usize::from(nibble)]);
    bytes.iter().flat_map(digits).map(char::from).collect()
}

fn unhex(text: &str) -> Option<Zeroizing<[u8; KEY]>> {
    let mut key = Zeroizing::new([0; KEY]);
    if text.len() != KEY * 2 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (at, byte) in key.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(at * 2..at * 2 + 2)?, 16).ok()?;
    }
    Some(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::Hash;

    const KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

    /// Made by `tests/vectors/verify_audit.py --key`, which shares no code with this.
    #[test]
    fn a_seal_is_what_the_documentation_says() {
        let mut ratchet = Ratchet::parse(KEY).unwrap();
        let head = Head {
            seq: 7,
            hash: Hash::of(b"x"),
        };
        let first = ratchet.seal(&head);
        assert_eq!((first.key.as_str(), first.index), ("466d80bb39236151", 0));
        assert_eq!(
            first.hmac,
            "80a84cd19c1faddbb7818d41d90d82916d769529e0b020d9bde41d4065d4a7e7"
        );
        ratchet.forward();
        assert_eq!(
            ratchet.seal(&head).hmac,
            "7061fbcd1472a9a97aeab8e00b1fbd023eb2722557ddb1e946b30980df128d67"
        );
    }

    #[test]
    fn a_key_goes_forward_alone_and_is_never_shown() {
        let mut ratchet = Ratchet::parse(KEY).unwrap();
        assert!(!format!("{ratchet:?}").contains("0001"));
        let before = ratchet.clone();
        ratchet.forward_to(5);
        assert!(!ratchet.is(&before) && ratchet.reveal() != before.reveal());
        assert!(
            Ratchet::resume(ratchet.id(), 5, &ratchet.reveal())
                .unwrap()
                .is(&ratchet)
        );
        assert!(Ratchet::resume(ratchet.id(), u64::MAX, KEY).is_none());
        for bad in [
            "",
            "00",
            &KEY[1..],
            &KEY.replace('0', "g"),
            &format!("{KEY}00"),
        ] {
            assert!(Ratchet::parse(bad).is_none(), "{bad}");
        }
    }
}
