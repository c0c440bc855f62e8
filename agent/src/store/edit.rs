//! A store opened for writing: all of it in memory, changed, and sealed anew under a fresh key.

mod keys;
mod rotate;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use keyhatch_protocol::Name;
use zeroize::Zeroizing;

use super::change::Pending;
use super::format::{CHANGES_NONCE, Header, finish, meta_nonce, push_sealed, value_nonce};
use super::key::random;
use super::secret::{Held, Listed, Previous, Put, Secret};
use super::slot::Slot;
pub use rotate::{Version, Versions};

use super::{Actor, Change, Key, Opened, StoreError, Value, Verb};

/// How far `accept-older` raises the generation: past any that a host may have seen since.
const LEAP: u64 = 1 << 20;

/// A store in memory, to be changed and sealed once.
pub struct Edit {
    header: Header,
    data_key: Key,
    changes: Vec<Change>,
    pending: Pending,
    secrets: BTreeMap<Name, Secret>,
}

impl Edit {
    /// A new, empty store that `key` opens, labelled `host`.
    pub fn create(key: &Key) -> Result<Self, StoreError> {
        let data_key = Key::generate()?;
        let mut store = [0; 16];
        random(&mut store)?;
        let slots = vec![Slot::wrap("host", key, &data_key, &store)?];
        let mut pending = Pending::default();
        pending.note(Verb::Init, None);
        Ok(Self {
            header: Header {
                store,
                generation: 0,
                salt: [0; 32],
                slots,
            },
            data_key,
            changes: Vec::new(),
            pending,
            secrets: BTreeMap::new(),
        })
    }

    /// Verifies `bytes` and takes everything out of them.
    pub fn open(bytes: &[u8], key: &Key) -> Result<Self, StoreError> {
        let opened = Opened::verify(bytes, key)?;
        let mut secrets = BTreeMap::<Name, Secret>::new();
        for record in opened.records() {
            let mut value = Value::new(vec![0; record.len()])?;
            record.decrypt_into(value.as_mut())?;
            let held = Held {
                meta: record.meta().clone(),
                value,
            };
            // The other versions come right after the current one: `Opened` has checked that.
            if let Some(secret) = secrets.get_mut(record.name()) {
                if held.meta.pending {
                    secret.pending = Some(held);
                } else {
                    secret.previous = Some(held);
                }
            } else {
                secrets.insert(record.name().clone(), Secret::new(held));
            }
        }
        let Opened {
            header,
            data_key,
            changes,
            ..
        } = opened;
        Ok(Self {
            header,
            data_key,
            changes,
            pending: Pending::default(),
            secrets,
        })
    }

    /// Whether there is anything to seal; an edit that changed nothing need not be written.
    #[must_use]
    pub fn is_changed(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Puts `value` under `name`.
    pub fn put(
        &mut self,
        name: &Name,
        value: Value,
        previous: Previous,
    ) -> Result<Put, StoreError> {
        self.put_as(Verb::Put, name, value, previous)
    }

    /// Puts a fresh random value of `length` letters and digits under `name`.
    pub fn generate(&mut self, name: &Name, length: usize) -> Result<Put, StoreError> {
        self.put_as(
            Verb::Generate,
            name,
            Value::generate(length)?,
            Previous::Keep,
        )
    }

    /// Puts many values; the change list shows one import.
    ///
    /// On an error drop the edit: some values may have been put.
    pub fn import(&mut self, values: Vec<(Name, Value)>) -> Result<Vec<(Name, Put)>, StoreError> {
        let put = |(name, value)| {
            let put = self.put_as(Verb::Import, &name, value, Previous::Keep)?;
            Ok((name, put))
        };
        values.into_iter().map(put).collect()
    }

    /// Removes `name` with its previous version; false where there is no such secret.
    pub fn remove(&mut self, name: &Name) -> bool {
        let removed = self.secrets.remove(name).is_some();
        if removed {
            self.pending.note(Verb::Rm, Some(name.as_str()));
        }
        removed
    }

    /// All secrets in byte order of their names, without values.
    #[must_use]
    pub fn list(&self) -> Vec<Listed> {
        self.secrets.values().map(Secret::listed).collect()
    }

    /// A value, for its owner.
    #[must_use]
    pub fn value(&self, name: &Name) -> Option<&Value> {
        self.secrets.get(name).map(|secret| &secret.current.value)
    }

    /// The generation that was opened.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.header.generation
    }

    /// What putting these values would do, without doing it. The version is the one that is there now.
    #[must_use]
    pub fn plan(&self, values: &[(Name, Value)]) -> Vec<(Name, Put)> {
        let put = |(name, value): &(Name, Value)| {
            let put = match self.secrets.get(name).map(|secret| &secret.current) {
                None => Put::New(String::new()),
                Some(held) if held.value == *value => Put::Unchanged(held.meta.version.clone()),
                Some(held) => Put::Changed(held.meta.version.clone()),
            };
            (name.clone(), put)
        };
        values.iter().map(put).collect()
    }

    /// Raises the generation by 2^20, so that every host which saw a newer copy accepts this one.
    pub fn accept_older(&mut self) -> Result<(), StoreError> {
        self.raise_generation(LEAP)?;
        self.pending.note(Verb::AcceptOlder, None);
        Ok(())
    }

    /// The bytes of the next generation, all of it encrypted under a fresh key.
    pub fn seal(mut self, by: Actor) -> Result<Vec<u8>, StoreError> {
        self.raise_generation(1)?;
        random(&mut self.header.salt)?;
        let cipher = self.header.cipher(&self.data_key)?;
        self.pending
            .append_to(&mut self.changes, self.header.generation, by);

        let size = |held: &Held| held.value.as_bytes().len() + 512;
        let mut out = self.header.render()?;
        out.reserve(
            self.secrets
                .values()
                .flat_map(Secret::versions)
                .map(size)
                .sum(),
        );
        let changes = to_json(&self.changes)?;
        let aad = self.header.changes_aad();
        push_sealed(&mut out, &cipher, CHANGES_NONCE, &aad, &changes)?;
        let versions = self.secrets.values().flat_map(Secret::versions);
        let count = u32::try_from(versions.clone().count()).map_err(|_| StoreError::TooLarge)?;
        out.extend_from_slice(&count.to_be_bytes());
        for (index, Held { meta, value }) in (0..count).zip(versions) {
            let aad = self.header.meta_aad(index);
            push_sealed(&mut out, &cipher, meta_nonce(index), &aad, &to_json(meta)?)?;
            let aad = self.header.value_aad(index, meta);
            push_sealed(
                &mut out,
                &cipher,
                value_nonce(index),
                &aad,
                value.as_bytes(),
            )?;
        }
        finish(out, &cipher)
    }

    fn put_as(
        &mut self,
        verb: Verb,
        name: &Name,
        value: Value,
        previous: Previous,
    ) -> Result<Put, StoreError> {
        let (put, touched) = match self.secrets.entry(name.clone()) {
            Entry::Vacant(place) => {
                let current = Held::new(name, 1, value)?;
                let put = Put::New(current.meta.version.clone());
                place.insert(Secret::new(current));
                (put, true)
            }
            Entry::Occupied(place) => place.into_mut().put(name, value, previous)?,
        };
        if touched {
            self.pending.note(verb, Some(name.as_str()));
        }
        Ok(put)
    }

    fn raise_generation(&mut self, by: u64) -> Result<(), StoreError> {
        let raised = self.header.generation.checked_add(by);
        self.header.generation = raised.ok_or(StoreError::GenerationsUsedUp)?;
        Ok(())
    }
}

fn to_json<T: serde::Serialize>(value: &T) -> Result<Zeroizing<Vec<u8>>, StoreError> {
    let json = serde_json::to_vec(value).map_err(|_| StoreError::Cipher)?;
    Ok(Zeroizing::new(json))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(super) const BY: Actor = Actor {
        uid: 1000,
        login_uid: Some(1001),
    };

    fn name(text: &str) -> Name {
        Name::parse(text).unwrap()
    }

    pub(super) fn put(edit: &mut Edit, at: &str, value: &[u8]) -> Put {
        edit.put(
            &name(at),
            Value::new(value.to_vec()).unwrap(),
            Previous::Keep,
        )
        .unwrap()
    }

    /// Every version as (name, current, value), through the reader.
    pub(super) fn contents(bytes: &[u8], key: &Key) -> Vec<(String, bool, Vec<u8>)> {
        let opened = Opened::verify(bytes, key).unwrap();
        let one = |record: super::super::Record<'_>| {
            let mut value = vec![0; record.len()];
            record.decrypt_into(&mut value).unwrap();
            (record.name().to_string(), record.is_current(), value)
        };
        opened.records().map(one).collect()
    }

    #[test]
    fn the_same_value_again_changes_nothing() {
        let key = Key::generate().unwrap();
        let mut edit = Edit::create(&key).unwrap();
        assert!(matches!(put(&mut edit, "a", b"CANARY-1"), Put::New(_)));
        assert!(matches!(put(&mut edit, "a", b"CANARY-2"), Put::Changed(_)));
        let second = put(&mut edit, "a", b"CANARY-3");
        let bytes = edit.seal(BY).unwrap();

        let mut edit = Edit::open(&bytes, &key).unwrap();
        let again = put(&mut edit, "a", b"CANARY-3");
        assert_eq!(again, Put::Unchanged(second.version().to_owned()));
        assert!(second.version().starts_with("3-") && second.version().len() == 18);
        assert!(!edit.is_changed());
        let both = vec![
            ("a".into(), true, b"CANARY-3".to_vec()),
            ("a".into(), false, b"CANARY-2".to_vec()),
        ];
        assert_eq!(contents(&edit.seal(BY).unwrap(), &key), both);
    }

    #[test]
    fn revoking_leaves_no_previous_version() {
        let key = Key::generate().unwrap();
        let mut edit = Edit::create(&key).unwrap();
        put(&mut edit, "a", b"CANARY-1");
        let value = || Value::new(b"CANARY-2".to_vec()).unwrap();
        let changed = edit.put(&name("a"), value(), Previous::Revoke).unwrap();
        assert!(matches!(changed, Put::Changed(_)));
        put(&mut edit, "b", b"CANARY-1");
        put(&mut edit, "b", b"CANARY-2");
        let bytes = edit.seal(BY).unwrap();

        // The value is there already, but its previous version is not to stay.
        let mut edit = Edit::open(&bytes, &key).unwrap();
        let same = edit.put(&name("b"), value(), Previous::Revoke).unwrap();
        assert!(matches!(same, Put::Unchanged(_)) && edit.is_changed());
        let bytes = edit.seal(BY).unwrap();
        assert!(contents(&bytes, &key).iter().all(|version| version.1));

        let mut edit = Edit::open(&bytes, &key).unwrap();
        assert!(edit.remove(&name("a")) && !edit.remove(&name("a")));
        assert_eq!(contents(&edit.seal(BY).unwrap(), &key).len(), 1);
    }

    #[test]
    fn each_write_has_a_fresh_key_and_the_next_generation() {
        let key = Key::generate().unwrap();
        let mut edit = Edit::create(&key).unwrap();
        put(&mut edit, "a", b"CANARY-1");
        let first = edit.seal(BY).unwrap();
        // Two writes that start from the same restored copy.
        let twin = |_| Edit::open(&first, &key).unwrap().seal(BY).unwrap();
        let [one, two] = [0, 1].map(twin);
        let opened = |bytes| Opened::verify(bytes, &key).unwrap();
        assert_eq!(opened(&one).generation(), 2);
        assert_eq!(opened(&one).store_id(), opened(&two).store_id());
        assert_ne!(opened(&one).header.salt, opened(&two).header.salt);

        let mut edit = Edit::open(&first, &key).unwrap();
        edit.accept_older().unwrap();
        let raised = edit.seal(BY).unwrap();
        assert_eq!(opened(&raised).generation(), 1 + (1 << 20) + 1);
    }

    #[test]
    fn the_change_list_says_what_was_done_and_by_whom() {
        let key = Key::generate().unwrap();
        let mut edit = Edit::create(&key).unwrap();
        put(&mut edit, "a", b"CANARY-1");
        put(&mut edit, "b", b"CANARY-1");
        let bytes = edit.seal(BY).unwrap();
        let mut edit = Edit::open(&bytes, &key).unwrap();
        let values = ["c", "a"].map(|at| (name(at), Value::new(b"CANARY-1".to_vec()).unwrap()));
        let done = edit.import(values.into()).unwrap();
        assert!(matches!(
            (&done[0].1, &done[1].1),
            (Put::New(_), Put::Unchanged(_))
        ));
        edit.generate(&name("d"), 40).unwrap();
        edit.remove(&name("b"));
        edit.add_key("next", &Key::generate().unwrap()).unwrap();
        let bytes = edit
            .seal(Actor {
                uid: 0,
                login_uid: None,
            })
            .unwrap();

        let opened = Opened::verify(&bytes, &key).unwrap();
        let short = |c: &Change| (c.generation, c.verb, c.names.join(" "), c.uid, c.login_uid);
        let changes: Vec<_> = opened.changes().iter().map(short).collect();
        let second = |verb, names: &str| (2, verb, names.to_owned(), 0, None);
        assert_eq!(
            changes,
            [
                (1, Verb::Init, String::new(), 1000, Some(1001)),
                (1, Verb::Put, "a b".to_owned(), 1000, Some(1001)),
                second(Verb::Import, "c"),
                second(Verb::Generate, "d"),
                second(Verb::Rm, "b"),
                second(Verb::KeyAdd, "next"),
            ]
        );
    }

    #[test]
    fn the_longest_value_and_the_longest_name_fit() {
        let key = Key::generate().unwrap();
        let mut edit = Edit::create(&key).unwrap();
        put(&mut edit, &"n".repeat(512), &vec![7; 65_536]);
        put(&mut edit, "empty", b"");
        let contents = contents(&edit.seal(BY).unwrap(), &key);
        assert_eq!((contents[0].2.len(), contents[1].2.len()), (0, 65_536));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn what_is_put_is_what_is_read(
            puts in proptest::collection::vec(("[a-c]/[a-c]", proptest::collection::vec(any::<u8>(), 0..40)), 0..20)
        ) {
            let key = Key::generate().unwrap();
            let mut bytes = Edit::create(&key).unwrap().seal(BY).unwrap();
            let mut model = BTreeMap::<String, Vec<Vec<u8>>>::new();
            for (at, value) in puts {
                let mut edit = Edit::open(&bytes, &key).unwrap();
                put(&mut edit, &at, &value);
                bytes = edit.seal(BY).unwrap();
                let versions = model.entry(at).or_default();
                if versions.first() != Some(&value) {
                    versions.insert(0, value);
                    versions.truncate(2);
                }
            }
            let flat = |(at, versions): (String, Vec<Vec<u8>>)| {
                let one = move |(n, value)| (at.clone(), n == 0, value);
                versions.into_iter().enumerate().map(one).collect::<Vec<_>>()
            };
            let expected: Vec<_> = model.into_iter().flat_map(flat).collect();
            prop_assert_eq!(contents(&bytes, &key), expected);
        }
    }
}
