//! A 256-bit key: of a key slot, or the data key that the slots wrap.

use std::fmt;

use sha2::{Digest, Sha256};
use zeroize::{Zeroize, Zeroizing};

use super::StoreError;

const FINGERPRINT: &[u8] = b"keyhatch store 1 key fingerprint";

/// 32 secret bytes, wiped on drop; cannot be printed, cloned or compared.
// Boxed, so that a move copies a pointer and leaves no second copy on the stack.
pub struct Key(Box<Zeroizing<[u8; 32]>>);

impl Key {
    /// A fresh key from the kernel's random generator.
    pub fn generate() -> Result<Self, StoreError> {
        let mut key = Self::zero();
        random(&mut key.0[..])?;
        Ok(key)
    }

    /// A key from exactly 32 raw bytes; the caller wipes its own copy.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, StoreError> {
        if bytes.len() != 32 {
            return Err(StoreError::KeyLength(bytes.len()));
        }
        let mut key = Self::zero();
        key.0.copy_from_slice(bytes);
        Ok(key)
    }

    /// The raw bytes, for writing a new key to its file.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Tells keys apart without telling anything about them.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        let mut digest = Sha256::new();
        digest.update(FINGERPRINT);
        digest.update(self.as_bytes());
        let mut hash = digest.finalize();
        let mut short = [0; 8];
        short.copy_from_slice(&hash[..8]);
        hash.as_mut_slice().zeroize();
        Fingerprint(short)
    }

    pub(super) fn zero() -> Self {
        Self(Box::new(Zeroizing::new([0; 32])))
    }

    pub(super) fn as_mut(&mut self) -> &mut [u8; 32] {
        &mut self.0
    }
}

/// Eight bytes of a SHA-256 over a key; shown in hexadecimal. Not secret.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 8]);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Fills `out` from the kernel's random generator.
pub(super) fn random(out: &mut [u8]) -> Result<(), StoreError> {
    getrandom::fill(out).map_err(|_| StoreError::Random)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_32_bytes_and_nothing_else() {
        for length in [0, 31, 33, 64] {
            let error = Key::from_bytes(&vec![7; length]).err().unwrap();
            assert_eq!(error, StoreError::KeyLength(length));
        }
        assert_eq!(Key::from_bytes(&[7; 32]).unwrap().as_bytes(), &[7; 32]);
    }

    #[test]
    fn fingerprints_follow_the_documented_hash() {
        // printf 'keyhatch store 1 key fingerprint' | cat - <(head -c 32 /dev/zero) | sha256sum
        let zero = Key::from_bytes(&[0; 32]).unwrap().fingerprint();
        assert_eq!(zero.to_string(), "9f90bdf9807a22cf");
        assert_ne!(zero, Key::generate().unwrap().fingerprint());
    }
}
