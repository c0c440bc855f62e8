//! The two primitives that the format is made of: HKDF-SHA256 (RFC 5869) makes a key for one use, and
//! AES-256-GCM (NIST SP 800-38D) seals under it with counted nonces.

use aes_gcm::aead::AeadInOut;
use aes_gcm::aead::inout::InOutBuf;
use aes_gcm::{Aes256Gcm, KeyInit};
use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::{Zeroize, Zeroizing};

use super::{Key, StoreError};

/// Bytes of a GCM tag.
pub(super) const TAG: usize = 16;

/// AES-256-GCM under a derived key. Each nonce may seal once.
// Boxed, so that a move leaves no second key schedule on the stack.
pub(super) struct Cipher(Box<Aes256Gcm>);

/// More stack than the calls of the primitives take.
const FRAMES: usize = 16 * 1024;

impl Cipher {
    /// The cipher for one use, from HKDF-SHA256(`secret`, `salt`, `info` joined).
    pub(super) fn derive(
        secret: &Key,
        salt: &[u8; 32],
        info: &[&[u8]],
    ) -> Result<Self, StoreError> {
        let cipher = Self::derive_below(secret, salt, info);
        wipe_frames();
        cipher
    }

    /// Leaves the key and its schedule in its frames, which the caller wipes.
    #[inline(never)]
    fn derive_below(secret: &Key, salt: &[u8; 32], info: &[&[u8]]) -> Result<Self, StoreError> {
        let mut key = Zeroizing::new([0; 32]);
        Hkdf::<Sha256>::new(Some(salt), secret.as_bytes())
            .expand_multi_info(info, &mut key[..])
            .map_err(|_| StoreError::Cipher)?;
        Ok(Self(Box::new(Aes256Gcm::new((&*key).into()))))
    }

    /// Appends the ciphertext of `plain` and its tag to `out`, where the plaintext itself never stands.
    pub(super) fn seal(
        &self,
        nonce: u64,
        aad: &[u8],
        plain: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), StoreError> {
        let start = out.len();
        out.resize(start + plain.len(), 0);
        let buffer = InOutBuf::new(plain, &mut out[start..]).map_err(|_| StoreError::Cipher)?;
        let tag = self
            .0
            .encrypt_inout_detached(&counted(nonce).into(), aad, buffer)
            .map_err(|_| StoreError::Cipher)?;
        out.extend_from_slice(&tag);
        Ok(())
    }

    /// Decrypts `sealed`, ciphertext and tag, straight into `plain`; nothing is written unless the tag fits.
    pub(super) fn open(
        &self,
        nonce: u64,
        aad: &[u8],
        sealed: &[u8],
        plain: &mut [u8],
    ) -> Result<(), StoreError> {
        let (ciphertext, tag) = sealed
            .split_last_chunk::<TAG>()
            .ok_or(StoreError::Refused)?;
        let buffer = InOutBuf::new(ciphertext, plain).map_err(|_| StoreError::Refused)?;
        self.0
            .decrypt_inout_detached(&counted(nonce).into(), aad, buffer, tag.into())
            .map_err(|_| StoreError::Refused)
    }

    /// The same into a buffer of its own, for what is not a value of the daemon's.
    pub(super) fn open_vec(
        &self,
        nonce: u64,
        aad: &[u8],
        sealed: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, StoreError> {
        let length = sealed.len().checked_sub(TAG).ok_or(StoreError::Refused)?;
        let mut plain = Zeroizing::new(vec![0; length]);
        self.open(nonce, aad, sealed, &mut plain)?;
        Ok(plain)
    }
}

/// Overwrites what the calls before have left on the stack below the caller.
#[inline(never)]
pub(super) fn wipe_frames() {
    let mut frames = [0_u8; FRAMES];
    frames.zeroize();
    std::hint::black_box(&frames);
}

/// The 12 bytes of a counted nonce.
fn counted(nonce: u64) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&nonce.to_be_bytes());
    bytes
}
