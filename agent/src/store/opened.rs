//! A store opened for reading: authenticated whole first, values decrypted where the caller wants them.

use keyhatch_protocol::{MAX_VALUE, Name};

use super::cipher::{Cipher, TAG};
use super::format::{CHANGES_NONCE, Frames, Header, Meta, TRAILER_NONCE, meta_nonce, value_nonce};
use super::{Change, Key, SlotInfo, StoreError};

/// A store whose every byte has been authenticated.
pub struct Opened<'a> {
    pub(super) header: Header,
    pub(super) data_key: Key,
    pub(super) changes: Vec<Change>,
    cipher: Cipher,
    records: Vec<Sealed<'a>>,
}

/// One record: its facts, and its value still sealed.
struct Sealed<'a> {
    index: u32,
    meta: Meta,
    value: &'a [u8],
}

impl<'a> Opened<'a> {
    /// Authenticates the whole of `bytes` with `key`, then reads the names; no value is decrypted yet.
    pub fn verify(bytes: &'a [u8], key: &Key) -> Result<Self, StoreError> {
        let (header, body) = Header::parse(bytes)?;
        let fingerprint = key.fingerprint();
        let slot = header
            .slots
            .iter()
            .find(|slot| slot.fingerprint == fingerprint);
        let slot = slot.ok_or(StoreError::WrongKey(fingerprint))?;
        let data_key = slot.unwrap(key, &header.store)?;
        let cipher = header.cipher(&data_key)?;
        let (before, trailer) = bytes.split_last_chunk::<TAG>().ok_or(StoreError::Refused)?;
        cipher.open(TRAILER_NONCE, before, trailer, &mut [])?;

        let mut frames = Frames(&body[..body.len().saturating_sub(TAG)]);
        let changes = read_changes(&header, &cipher, frames.sealed()?)?;
        let records = (0..frames.count()?)
            .map(|index| read_record(&header, &cipher, &mut frames, index))
            .collect::<Result<Vec<_>, _>>()?;
        if !frames.0.is_empty() {
            return Err(StoreError::Malformed("has bytes after its last record"));
        }
        check_order(&records)?;
        Ok(Self {
            header,
            data_key,
            changes,
            cipher,
            records,
        })
    }

    /// The random id of this store, the same in every generation.
    #[must_use]
    pub fn store_id(&self) -> [u8; 16] {
        self.header.store
    }

    /// Goes up by one with every write.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.header.generation
    }

    /// The last changes, oldest first, at most 64.
    #[must_use]
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// The keys that open this store.
    #[must_use]
    pub fn keys(&self) -> Vec<SlotInfo> {
        self.header
            .slots
            .iter()
            .map(super::slot::Slot::info)
            .collect()
    }

    /// Every version of every secret, sorted by name: the current one, then the previous and the pending one
    /// where there are such.
    #[must_use]
    pub fn records(&self) -> impl ExactSizeIterator<Item = Record<'_>> {
        self.records.iter().map(|sealed| Record {
            opened: self,
            sealed,
        })
    }
}

/// One version of a secret in an [`Opened`] store.
#[derive(Clone, Copy)]
pub struct Record<'o> {
    opened: &'o Opened<'o>,
    sealed: &'o Sealed<'o>,
}

impl<'o> Record<'o> {
    /// The secret's name.
    #[must_use]
    pub fn name(&self) -> &'o Name {
        &self.sealed.meta.name
    }

    /// The opaque version of this value.
    #[must_use]
    pub fn version(&self) -> &'o str {
        &self.sealed.meta.version
    }

    /// The how manieth value of this secret it is, from 1.
    #[must_use]
    pub fn counter(&self) -> u64 {
        self.sealed.meta.counter
    }

    /// Whether it is the current version, or else the previous or pending one.
    #[must_use]
    pub fn is_current(&self) -> bool {
        self.sealed.meta.current
    }

    /// Whether it is of a rotation that has not ended, and so for nobody to read.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        self.sealed.meta.pending
    }

    /// When this value was put, RFC 3339 in UTC.
    #[must_use]
    pub fn updated_at(&self) -> &'o str {
        &self.sealed.meta.updated_at
    }

    /// Bytes of the value.
    #[must_use]
    #[allow(clippy::len_without_is_empty)] // an empty value is a value like any other
    pub fn len(&self) -> usize {
        self.sealed.value.len() - TAG
    }

    pub(super) fn meta(&self) -> &'o Meta {
        &self.sealed.meta
    }

    /// Decrypts the value straight into `dst`, which has exactly [`len`](Self::len) bytes; no other copy is made.
    pub fn decrypt_into(&self, dst: &mut [u8]) -> Result<(), StoreError> {
        let (expected, found) = (self.len(), dst.len());
        if expected != found {
            return Err(StoreError::Buffer { expected, found });
        }
        let Sealed { index, meta, value } = self.sealed;
        let aad = self.opened.header.value_aad(*index, meta);
        self.opened
            .cipher
            .open(value_nonce(*index), &aad, value, dst)
    }
}

fn read_changes(
    header: &Header,
    cipher: &Cipher,
    sealed: &[u8],
) -> Result<Vec<Change>, StoreError> {
    let json = cipher.open_vec(CHANGES_NONCE, &header.changes_aad(), sealed)?;
    serde_json::from_slice(&json)
        .map_err(|_| StoreError::Malformed("its change list does not parse"))
}

fn read_record<'a>(
    header: &Header,
    cipher: &Cipher,
    frames: &mut Frames<'a>,
    index: u32,
) -> Result<Sealed<'a>, StoreError> {
    let json = cipher.open_vec(meta_nonce(index), &header.meta_aad(index), frames.sealed()?)?;
    let meta = serde_json::from_slice(&json)
        .map_err(|_| StoreError::Malformed("has a record without name or version"))?;
    let value = frames.sealed()?;
    if value.len() > MAX_VALUE + TAG {
        return Err(StoreError::Malformed(
            "has a value of more than 65536 bytes",
        ));
    }
    Ok(Sealed { index, meta, value })
}

/// Names go up; after a current version may come the one previous version of the same name, then the pending one.
fn check_order(records: &[Sealed<'_>]) -> Result<(), StoreError> {
    let mut last: Option<&Meta> = None;
    for Sealed { meta, .. } in records {
        let in_order = match last {
            _ if meta.current && meta.pending => false,
            None => meta.current,
            Some(last) if meta.current => last.name < meta.name,
            Some(last) if meta.pending => !last.pending && last.name == meta.name,
            Some(last) => last.current && last.name == meta.name,
        };
        if !in_order {
            return Err(StoreError::Malformed("its records are out of order"));
        }
        last = Some(meta);
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::store::{Actor, Edit, Previous, Value};

    fn small() -> (Vec<u8>, Key) {
        let key = Key::generate().unwrap();
        let mut edit = Edit::create(&key).unwrap();
        for (at, value) in [("a", "CANARY-1"), ("a", "CANARY-2"), ("b", "CANARY-3")] {
            let value = Value::new(value.into()).unwrap();
            edit.put(&Name::parse(at).unwrap(), value, Previous::Keep)
                .unwrap();
        }
        (
            edit.seal(Actor {
                uid: 0,
                login_uid: None,
            })
            .unwrap(),
            key,
        )
    }

    fn refusal(bytes: &[u8], key: &Key) -> StoreError {
        Opened::verify(bytes, key).err().unwrap()
    }

    #[test]
    fn every_flipped_bit_is_refused() {
        let (bytes, key) = small();
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut edited = bytes.clone();
                edited[at] ^= 1 << bit;
                let error = refusal(&edited, &key);
                assert!(
                    !matches!(error, StoreError::Malformed(_)),
                    "{at} {bit}: {error}"
                );
            }
        }
    }

    #[test]
    fn every_truncation_is_called_one() {
        let (bytes, key) = small();
        for length in 0..bytes.len() {
            let error = refusal(&bytes[..length], &key);
            assert!(
                matches!(error, StoreError::CutShort { .. }),
                "{length}: {error}"
            );
        }
        assert_eq!(
            refusal(&[&bytes[..], b"x"].concat(), &key),
            StoreError::Refused
        );
    }

    #[test]
    fn an_error_says_which_kind_of_wrong_file_it_is() {
        let (mut bytes, key) = small();
        assert_eq!(refusal(b"[[source]]", &key), StoreError::NotAStore);
        let other = Key::generate().unwrap();
        assert_eq!(
            refusal(&bytes, &other),
            StoreError::WrongKey(other.fingerprint())
        );
        bytes[9] = 2;
        assert_eq!(refusal(&bytes, &key), StoreError::Version(2));
    }

    /// Where the last two records begin and end, found by their lengths from the end.
    fn last_two(bytes: &[u8]) -> (usize, usize, usize) {
        let (header, body) = Header::parse(bytes).unwrap();
        assert_eq!(header.slots.len(), 1);
        let mut frames = Frames(body);
        frames.sealed().unwrap();
        frames.count().unwrap();
        let mut starts = Vec::new();
        for _ in 0..3 {
            starts.push(bytes.len() - frames.0.len());
            frames.sealed().unwrap();
            frames.sealed().unwrap();
        }
        (starts[1], starts[2], bytes.len() - TAG)
    }

    #[test]
    fn swapped_records_are_refused_also_with_a_valid_trailer() {
        let (bytes, key) = small();
        let (second, third, end) = last_two(&bytes);
        let parts = [&bytes[..second], &bytes[third..end], &bytes[second..third]];
        let mut swapped = parts.concat();
        assert_eq!(
            refusal(&[&swapped[..], &bytes[end..]].concat(), &key),
            StoreError::Refused
        );
        // Each record is bound to its place, so the right trailer does not help either.
        let cipher = Opened::verify(&bytes, &key).unwrap().cipher;
        swapped = crate::store::format::finish(swapped, &cipher).unwrap();
        assert_eq!(refusal(&swapped, &key), StoreError::Refused);
    }

    #[test]
    fn a_value_of_an_older_write_does_not_fit() {
        let (bytes, key) = small();
        let newer = Edit::open(&bytes, &key).unwrap();
        let newer = newer
            .seal(Actor {
                uid: 0,
                login_uid: None,
            })
            .unwrap();
        let (older, mut mixed) = (bytes, newer);
        let (from, to) = (last_two(&older), last_two(&mixed));
        mixed.splice(to.1..to.2, older[from.1..from.2].iter().copied());
        assert_eq!(refusal(&mixed, &key), StoreError::Refused);
    }

    #[test]
    fn huge_counts_and_lengths_allocate_nothing() {
        assert!(Frames(&[0xff; 64]).count().is_err());
        assert!(Frames(&[0xff; 64]).sealed().is_err());
    }

    #[test]
    fn a_value_goes_into_exactly_its_length() {
        let (bytes, key) = small();
        let opened = Opened::verify(&bytes, &key).unwrap();
        let record = opened.records().next().unwrap();
        let error = record.decrypt_into(&mut [0; 9]).unwrap_err();
        assert_eq!(
            error,
            StoreError::Buffer {
                expected: 8,
                found: 9
            }
        );
        let mut value = [0; 8];
        record.decrypt_into(&mut value).unwrap();
        assert_eq!(&value, b"CANARY-2");
        assert_eq!((record.counter(), record.is_current()), (2, true));
        assert!(record.version().starts_with("2-") && record.updated_at().ends_with('Z'));
    }

    #[test]
    fn neither_names_nor_values_show() {
        let key = Key::generate().unwrap();
        let mut edit = Edit::create(&key).unwrap();
        let name = Name::parse("CANARY-name").unwrap();
        edit.put(
            &name,
            Value::new("CANARY-value".into()).unwrap(),
            Previous::Keep,
        )
        .unwrap();
        let bytes = edit
            .seal(Actor {
                uid: 0,
                login_uid: None,
            })
            .unwrap();
        assert!(!bytes.windows(6).any(|six| six == b"CANARY"));
    }

    /// The documented vector: what Rust reads is what `tests/vectors/open_store.py` prints.
    #[test]
    fn the_vector_opens_with_the_documented_bytes() {
        let bytes = include_bytes!("../../../tests/vectors/store-1.khs");
        let key = Key::from_bytes(include_bytes!("../../../tests/vectors/store-1.key")).unwrap();
        let json = include_bytes!("../../../tests/vectors/store-1.json");
        let expected: Vec<serde_json::Value> = serde_json::from_slice(json).unwrap();
        let opened = Opened::verify(bytes, &key).unwrap();
        assert_eq!((opened.generation(), opened.changes().len()), (3, 6));
        assert_eq!(
            (&opened.keys()[0].label[..], &opened.keys()[1].label[..]),
            ("host", "recovery")
        );
        assert_eq!(opened.records().len(), expected.len());
        for (record, expected) in opened.records().zip(expected) {
            let mut value = vec![0; record.len()];
            record.decrypt_into(&mut value).unwrap();
            match expected["value"].as_str() {
                Some(text) => assert_eq!(value, text.as_bytes()),
                None => assert_eq!(value, [0, 255, 128, 10]),
            }
            assert_eq!(record.name().as_str(), expected["name"]);
            assert_eq!(record.version(), expected["version"]);
            assert_eq!(record.is_current(), expected["current"]);
            let pending = expected["pending"].as_bool().unwrap_or_default();
            assert_eq!(record.is_pending(), pending);
        }
    }
}
