//! The keys of a store in an edit: added, removed, and wrapped anew.

use crate::store::slot::{MAX_SLOTS, Slot};
use crate::store::{Edit, Key, SlotInfo, StoreError, Verb};

impl Edit {
    /// The keys that open this store.
    #[must_use]
    pub fn keys(&self) -> Vec<SlotInfo> {
        self.header.slots.iter().map(Slot::info).collect()
    }

    /// Lets `key` open the store too.
    pub fn add_key(&mut self, label: &str, key: &Key) -> Result<(), StoreError> {
        let fingerprint = key.fingerprint();
        for slot in &self.header.slots {
            if slot.label == label {
                return Err(StoreError::LabelTaken(label.to_owned()));
            }
            if slot.fingerprint == fingerprint {
                return Err(StoreError::KeyTaken(slot.label.clone()));
            }
        }
        if self.header.slots.len() == MAX_SLOTS {
            return Err(StoreError::TooManyKeys);
        }
        let slot = Slot::wrap(label, key, &self.data_key, &self.header.store)?;
        self.header.slots.push(slot);
        self.pending.note(Verb::KeyAdd, Some(label));
        Ok(())
    }

    /// Takes the key labelled `label` off the store, but never the last one.
    ///
    /// Whoever kept the data key can still read: [`rekey`](Self::rekey) ends that.
    pub fn remove_key(&mut self, label: &str) -> Result<(), StoreError> {
        let at = self
            .header
            .slots
            .iter()
            .position(|slot| slot.label == label);
        let at = at.ok_or_else(|| StoreError::NoSuchLabel(label.to_owned()))?;
        if self.header.slots.len() == 1 {
            return Err(StoreError::LastKey(label.to_owned()));
        }
        self.header.slots.remove(at);
        self.pending.note(Verb::KeyRm, Some(label));
        Ok(())
    }

    /// Makes a new data key and wraps it for every slot, of which `keys` has all the keys.
    ///
    /// A slot cannot be wrapped without its key, and none is dropped silently: where one is missing, nothing changes
    /// and the error names the labels. Remove those first and add them again when their keys are at hand.
    pub fn rekey(&mut self, keys: &[&Key]) -> Result<(), StoreError> {
        let data_key = Key::generate()?;
        let (mut slots, mut missing) = (Vec::new(), Vec::new());
        for Slot {
            label, fingerprint, ..
        } in &self.header.slots
        {
            if let Some(key) = keys.iter().find(|key| key.fingerprint() == *fingerprint) {
                slots.push(Slot::wrap(label, key, &data_key, &self.header.store)?);
            } else {
                missing.push(label.as_str());
            }
        }
        if !missing.is_empty() {
            return Err(StoreError::KeysMissing(missing.join(", ")));
        }
        self.header.slots = slots;
        self.data_key = data_key;
        self.pending.note(Verb::Rekey, None);
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::store::Opened;
    use crate::store::edit::tests::{BY, contents, put};

    #[test]
    fn every_key_of_the_store_opens_it_until_removed() {
        let (host, next, other) = (
            Key::generate().unwrap(),
            Key::generate().unwrap(),
            Key::generate().unwrap(),
        );
        let mut edit = Edit::create(&host).unwrap();
        put(&mut edit, "a", b"CANARY-1");
        assert_eq!(
            edit.remove_key("host"),
            Err(StoreError::LastKey("host".into()))
        );
        assert_eq!(edit.add_key("a b", &next), Err(StoreError::Label));
        assert_eq!(
            edit.add_key("host", &next),
            Err(StoreError::LabelTaken("host".into()))
        );
        assert_eq!(
            edit.add_key("next", &host),
            Err(StoreError::KeyTaken("host".into()))
        );
        edit.add_key("next", &next).unwrap();
        let bytes = edit.seal(BY).unwrap();
        assert_eq!(contents(&bytes, &host), contents(&bytes, &next));
        let wrong = Opened::verify(&bytes, &other).err().unwrap();
        assert_eq!(wrong, StoreError::WrongKey(other.fingerprint()));

        let mut edit = Edit::open(&bytes, &next).unwrap();
        edit.remove_key("host").unwrap();
        assert_eq!(
            edit.remove_key("host"),
            Err(StoreError::NoSuchLabel("host".into()))
        );
        assert_eq!(edit.keys()[0].label, "next");
        let bytes = edit.seal(BY).unwrap();
        assert_eq!(contents(&bytes, &next).len(), 1);
        assert!(matches!(
            Opened::verify(&bytes, &host).err().unwrap(),
            StoreError::WrongKey(_)
        ));
    }

    #[test]
    fn a_store_has_at_most_16_keys() {
        let key = Key::generate().unwrap();
        let mut edit = Edit::create(&key).unwrap();
        for n in 1..MAX_SLOTS {
            edit.add_key(&format!("k{n}"), &Key::generate().unwrap())
                .unwrap();
        }
        let one_more = edit.add_key("k", &Key::generate().unwrap());
        assert_eq!(one_more, Err(StoreError::TooManyKeys));
        assert!(Opened::verify(&edit.seal(BY).unwrap(), &key).is_ok());
    }

    #[test]
    fn rekeying_needs_every_key_and_drops_none_silently() {
        let (host, away) = (Key::generate().unwrap(), Key::generate().unwrap());
        let mut edit = Edit::create(&host).unwrap();
        edit.add_key("away", &away).unwrap();
        put(&mut edit, "a", b"CANARY-1");
        let before = edit.seal(BY).unwrap();

        let mut edit = Edit::open(&before, &host).unwrap();
        assert_eq!(
            edit.rekey(&[&host]),
            Err(StoreError::KeysMissing("away".into()))
        );
        assert!(!edit.is_changed());
        edit.rekey(&[&host, &away]).unwrap();
        let after = edit.seal(BY).unwrap();
        assert_eq!(contents(&after, &host), contents(&before, &away));
        assert_eq!(contents(&after, &away), contents(&before, &away));
        let data_key = |bytes: &[u8]| *Opened::verify(bytes, &host).unwrap().data_key.as_bytes();
        assert_ne!(data_key(&before), data_key(&after));
    }
}
