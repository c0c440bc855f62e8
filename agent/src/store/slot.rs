//! Key slots: the data key of a store, wrapped once for each key that opens it.

use serde::{Serialize, Serializer};

use super::cipher::{Cipher, TAG};
use super::key::random;
use super::{Fingerprint, Key, StoreError};

/// The most keys one store may have.
pub const MAX_SLOTS: usize = 16;

/// The longest label, in bytes.
pub(super) const MAX_LABEL: usize = 64;

const DOMAIN: &[u8] = b"keyhatch store 1 key slot";

/// What may be shown of a key slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SlotInfo {
    /// The name that the key was added under; the first one is `host`.
    pub label: String,
    /// Which key it is.
    #[serde(serialize_with = "as_text")]
    pub fingerprint: Fingerprint,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn as_text<S: Serializer>(fingerprint: &Fingerprint, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(fingerprint)
}

/// A wrapped copy of the data key.
pub(super) struct Slot {
    pub(super) label: String,
    pub(super) fingerprint: Fingerprint,
    pub(super) salt: [u8; 32],
    pub(super) wrapped: [u8; 32 + TAG],
}

impl Slot {
    /// Wraps `data_key` under `key`.
    pub(super) fn wrap(
        label: &str,
        key: &Key,
        data_key: &Key,
        store: &[u8; 16],
    ) -> Result<Self, StoreError> {
        check_label(label)?;
        let mut salt = [0; 32];
        random(&mut salt)?;
        // The salt is fresh, so the derived key seals this once and a constant nonce is sound.
        let mut sealed = Vec::with_capacity(32 + TAG);
        Cipher::derive(key, &salt, &[DOMAIN])?.seal(
            0,
            &aad(store, label),
            data_key.as_bytes(),
            &mut sealed,
        )?;
        Ok(Self {
            label: label.to_owned(),
            fingerprint: key.fingerprint(),
            salt,
            wrapped: sealed.try_into().map_err(|_| StoreError::Cipher)?,
        })
    }

    /// The data key, opened with `key`.
    pub(super) fn unwrap(&self, key: &Key, store: &[u8; 16]) -> Result<Key, StoreError> {
        let mut data_key = Key::zero();
        Cipher::derive(key, &self.salt, &[DOMAIN])?.open(
            0,
            &aad(store, &self.label),
            &self.wrapped,
            data_key.as_mut(),
        )?;
        Ok(data_key)
    }

    pub(super) fn info(&self) -> SlotInfo {
        SlotInfo {
            label: self.label.clone(),
            fingerprint: self.fingerprint,
        }
    }
}

/// A label is one segment of a name, of at most 64 bytes.
pub(super) fn check_label(label: &str) -> Result<(), StoreError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._+=@-".contains(&byte);
    let fits = (1..=MAX_LABEL).contains(&label.len()) && label.bytes().all(allowed);
    fits.then_some(()).ok_or(StoreError::Label)
}

fn aad(store: &[u8; 16], label: &str) -> Vec<u8> {
    [DOMAIN, store, label.as_bytes()].concat()
}
