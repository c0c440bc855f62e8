//! The bytes of a store: the open header, the frames of what is sealed, and what each of them is bound to.
//!
//! See `docs/store-format.md`; this file and that page say the same.

use keyhatch_protocol::Name;
use serde::{Deserialize, Serialize};

use super::cipher::{Cipher, TAG};
use super::slot::{MAX_SLOTS, Slot, check_label};
use super::{Fingerprint, Key, MAX_FILE, StoreError};

const MAGIC: &[u8; 8] = b"KEYHATCH";
const VERSION: u16 = 1;

/// Where the length of the file stands.
const LENGTH_AT: usize = 10;

/// Bytes before the key slots.
const FIXED: usize = 8 + 2 + 8 + 16 + 8 + 32 + 1;

/// Bytes of the smallest slot, and of the smallest record.
const MIN_SLOT: usize = 1 + 1 + 8 + 32 + 32 + TAG;
const MIN_RECORD: usize = 2 * (4 + TAG);

const WRITE_KEY: &[u8] = b"keyhatch store 1 write key";
const CHANGES: &[u8] = b"keyhatch store 1 changes";
const META: &[u8] = b"keyhatch store 1 meta";
const VALUE: &[u8] = b"keyhatch store 1 value";

/// The nonces of one write: no two things share one.
pub(super) const TRAILER_NONCE: u64 = 0;
pub(super) const CHANGES_NONCE: u64 = 1;

pub(super) fn meta_nonce(index: u32) -> u64 {
    2 + 2 * u64::from(index)
}

pub(super) fn value_nonce(index: u32) -> u64 {
    3 + 2 * u64::from(index)
}

/// The sealed facts about one version of a secret.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Meta {
    pub(super) name: Name,
    pub(super) version: String,
    pub(super) counter: u64,
    pub(super) updated_at: String,
    /// Or the previous or pending one.
    pub(super) current: bool,
    /// Made by a rotation that has not ended: no reader gets it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(super) pending: bool,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // the signature that serde asks for
fn is_false(flag: &bool) -> bool {
    !flag
}

/// What stands open at the start of a store.
pub(super) struct Header {
    pub(super) store: [u8; 16],
    pub(super) generation: u64,
    pub(super) salt: [u8; 32],
    pub(super) slots: Vec<Slot>,
}

impl Header {
    /// Reads the header of a store and gives it with everything after it, the trailer included.
    ///
    /// Nothing of it may be believed before the trailer has been checked.
    pub(super) fn parse(bytes: &[u8]) -> Result<(Self, &[u8]), StoreError> {
        check_start(bytes)?;
        let mut rest = Frames(&bytes[LENGTH_AT + 8..]);
        let (store, generation) = (rest.array()?, u64::from_be_bytes(rest.array()?));
        let (salt, [count]) = (rest.array()?, rest.array()?);
        if !(1..=MAX_SLOTS).contains(&usize::from(count)) {
            return Err(StoreError::Refused);
        }
        let slots = (0..count).map(|_| rest.slot()).collect::<Result<_, _>>()?;
        let header = Self {
            store,
            generation,
            salt,
            slots,
        };
        Ok((header, rest.0))
    }

    /// The header as bytes; [`finish`] fills in the length of the file.
    pub(super) fn render(&self) -> Result<Vec<u8>, StoreError> {
        let mut out = [&MAGIC[..], &VERSION.to_be_bytes(), &[0; 8]].concat();
        out.extend_from_slice(&self.store);
        out.extend_from_slice(&self.generation.to_be_bytes());
        out.extend_from_slice(&self.salt);
        out.push(u8::try_from(self.slots.len()).map_err(|_| StoreError::TooManyKeys)?);
        for slot in &self.slots {
            out.push(u8::try_from(slot.label.len()).map_err(|_| StoreError::Label)?);
            out.extend_from_slice(slot.label.as_bytes());
            out.extend_from_slice(&slot.fingerprint.0);
            out.extend_from_slice(&slot.salt);
            out.extend_from_slice(&slot.wrapped);
        }
        Ok(out)
    }

    /// The cipher of this one write.
    pub(super) fn cipher(&self, data_key: &Key) -> Result<Cipher, StoreError> {
        Cipher::derive(data_key, &self.salt, &[WRITE_KEY, &self.store])
    }

    /// What the change list is bound to.
    pub(super) fn changes_aad(&self) -> Vec<u8> {
        [CHANGES, &self.store, &self.generation.to_be_bytes()].concat()
    }

    /// What the meta of record `index` is bound to.
    pub(super) fn meta_aad(&self, index: u32) -> Vec<u8> {
        self.record_aad(META, index)
    }

    /// What the value of record `index` is bound to.
    pub(super) fn value_aad(&self, index: u32, meta: &Meta) -> Vec<u8> {
        let mut aad = self.record_aad(VALUE, index);
        aad.extend_from_slice(meta.name.as_str().as_bytes());
        aad.push(0);
        aad.extend_from_slice(meta.version.as_bytes());
        aad
    }

    fn record_aad(&self, domain: &[u8], index: u32) -> Vec<u8> {
        let generation = self.generation.to_be_bytes();
        [domain, &self.store, &generation, &index.to_be_bytes()].concat()
    }
}

/// The magic, the version and the length, in the order that tells most about a wrong file.
fn check_start(bytes: &[u8]) -> Result<(), StoreError> {
    let found = bytes.len() as u64;
    let start = &bytes[..bytes.len().min(MAGIC.len())];
    if !MAGIC.starts_with(start) {
        return Err(StoreError::NotAStore);
    }
    let least = (FIXED + MIN_SLOT + 4 + 4 + TAG + TAG) as u64;
    let cut = |expected| StoreError::CutShort { found, expected };
    let mut rest = Frames(bytes.get(MAGIC.len()..).ok_or(cut(least))?);
    let version = u16::from_be_bytes(rest.array().map_err(|_| cut(least))?);
    if version != VERSION {
        return Err(StoreError::Version(version));
    }
    let length = u64::from_be_bytes(rest.array().map_err(|_| cut(least))?);
    if found > MAX_FILE {
        return Err(StoreError::TooLarge);
    }
    if found < length.max(least) {
        return Err(cut(length.max(least)));
    }
    // More bytes than announced: somebody added them.
    (found == length).then_some(()).ok_or(StoreError::Refused)
}

/// Fills in the length and appends the trailer, which authenticates every byte before it.
pub(super) fn finish(mut out: Vec<u8>, cipher: &Cipher) -> Result<Vec<u8>, StoreError> {
    let length = (out.len() + TAG) as u64;
    if length > MAX_FILE {
        return Err(StoreError::TooLarge);
    }
    out[LENGTH_AT..LENGTH_AT + 8].copy_from_slice(&length.to_be_bytes());
    let mut tag = Vec::with_capacity(TAG);
    cipher.seal(TRAILER_NONCE, &out, &[], &mut tag)?;
    out.extend_from_slice(&tag);
    Ok(out)
}

/// Appends a length and the sealed `plain`.
pub(super) fn push_sealed(
    out: &mut Vec<u8>,
    cipher: &Cipher,
    nonce: u64,
    aad: &[u8],
    plain: &[u8],
) -> Result<(), StoreError> {
    let length = u32::try_from(plain.len()).map_err(|_| StoreError::TooLarge)?;
    out.extend_from_slice(&length.to_be_bytes());
    cipher.seal(nonce, aad, plain, out)
}

/// What is left to read. Every length is checked against it before anything is allocated.
pub(super) struct Frames<'a>(pub(super) &'a [u8]);

impl<'a> Frames<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], StoreError> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(StoreError::Refused)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], StoreError> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(StoreError::Refused)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn slot(&mut self) -> Result<Slot, StoreError> {
        let [length] = self.array()?;
        let label = std::str::from_utf8(self.take(length.into())?);
        let label = label.map_err(|_| StoreError::Refused)?.to_owned();
        check_label(&label).map_err(|_| StoreError::Refused)?;
        Ok(Slot {
            label,
            fingerprint: Fingerprint(self.array()?),
            salt: self.array()?,
            wrapped: self.array()?,
        })
    }

    /// The number of records, each of which has at least [`MIN_RECORD`] bytes of what is left.
    pub(super) fn count(&mut self) -> Result<u32, StoreError> {
        let count = u32::from_be_bytes(self.array()?);
        let fits = (count as usize).saturating_mul(MIN_RECORD) <= self.0.len();
        fits.then_some(count).ok_or(StoreError::Refused)
    }

    /// A length, and as many bytes of ciphertext with their tag.
    pub(super) fn sealed(&mut self) -> Result<&'a [u8], StoreError> {
        let length = u32::from_be_bytes(self.array()?) as usize;
        self.take(length.saturating_add(TAG))
    }
}
