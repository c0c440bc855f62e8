//! What a rotation does to a secret: a pending value comes, becomes the current one or goes, and the previous one
//! is dropped when its grace time ends.

use keyhatch_protocol::Name;

use crate::store::change::now;
use crate::store::secret::Held;
use crate::store::{Edit, StoreError, Value, Verb};

/// One version of a secret, for whoever rotates it.
#[derive(Clone, Copy)]
pub struct Version<'e> {
    /// Its id.
    pub id: &'e str,
    /// Its value.
    pub value: &'e Value,
}

/// What a secret has.
pub struct Versions<'e> {
    /// What bots read.
    pub current: Version<'e>,
    /// The value before, where one is kept.
    pub previous: Option<Version<'e>>,
    /// What a rotation that has not ended made.
    pub pending: Option<Version<'e>>,
}

impl Edit {
    /// The versions of `name`; `None` where there is no such secret.
    #[must_use]
    pub fn versions(&self, name: &Name) -> Option<Versions<'_>> {
        let secret = self.secrets.get(name)?;
        Some(Versions {
            current: version(&secret.current),
            previous: secret.previous.as_ref().map(version),
            pending: secret.pending.as_ref().map(version),
        })
    }

    /// Keeps `value` as the pending one of `name`, which nobody reads before [`promote`](Self::promote). Its version
    /// ends in `unique`. The answer is the version; `None` where there is no such secret.
    pub fn set_pending(
        &mut self,
        name: &Name,
        unique: u64,
        value: Value,
    ) -> Result<Option<String>, StoreError> {
        let Some(secret) = self.secrets.get_mut(name) else {
            return Ok(None);
        };
        let counter = secret.current.meta.counter.saturating_add(1);
        let mut held = Held::with(name, counter, unique, value);
        (held.meta.current, held.meta.pending) = (false, true);
        let version = held.meta.version.clone();
        secret.pending = Some(held);
        self.pending.note(Verb::RotateCreate, Some(name.as_str()));
        Ok(Some(version))
    }

    /// Makes the pending value the current one, and the current one the previous; false where none is pending.
    pub fn promote(&mut self, name: &Name) -> bool {
        let Some(secret) = self.secrets.get_mut(name) else {
            return false;
        };
        let Some(mut fresh) = secret.pending.take() else {
            return false;
        };
        (fresh.meta.current, fresh.meta.pending) = (true, false);
        fresh.meta.updated_at = now();
        let mut old = std::mem::replace(&mut secret.current, fresh);
        old.meta.current = false;
        secret.previous = Some(old);
        self.pending.note(Verb::Rotate, Some(name.as_str()));
        true
    }

    /// Forgets the pending value; false where there is none.
    pub fn drop_pending(&mut self, name: &Name) -> bool {
        let dropped = self
            .secrets
            .get_mut(name)
            .and_then(|secret| secret.pending.take());
        if dropped.is_some() {
            self.pending.note(Verb::RotateAbandon, Some(name.as_str()));
        }
        dropped.is_some()
    }

    /// Forgets the previous value, where it is the one of this version.
    pub fn drop_previous(&mut self, name: &Name, version: &str) -> bool {
        let dropped = self
            .secrets
            .get_mut(name)
            .and_then(|secret| secret.previous.take_if(|held| held.meta.version == version));
        if dropped.is_some() {
            self.pending.note(Verb::GraceEnd, Some(name.as_str()));
        }
        dropped.is_some()
    }
}

fn version(held: &Held) -> Version<'_> {
    Version {
        id: &held.meta.version,
        value: &held.value,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::tests::{BY, contents, put};
    use super::*;
    use crate::store::{Key, Opened, Previous};

    fn name() -> Name {
        Name::parse("a").unwrap()
    }

    fn value(text: &str) -> Value {
        Value::new(text.into()).unwrap()
    }

    fn ids(edit: &Edit) -> [Option<String>; 3] {
        let versions = edit.versions(&name()).unwrap();
        let id = |version: Option<Version<'_>>| version.map(|version| version.id.to_owned());
        [Some(versions.current), versions.previous, versions.pending].map(id)
    }

    #[test]
    fn a_pending_value_becomes_the_current_one_and_the_old_one_goes_after_its_grace() {
        let key = Key::generate().unwrap();
        let mut edit = Edit::create(&key).unwrap();
        put(&mut edit, "a", b"CANARY-1");
        put(&mut edit, "a", b"CANARY-2");
        put(&mut edit, "b", b"CANARY-b");
        let pending = edit.set_pending(&name(), 0xabc, value("CANARY-3")).unwrap();
        assert_eq!(pending.as_deref(), Some("3-0000000000000abc"));
        let bytes = edit.seal(BY).unwrap();
        let opened = Opened::verify(&bytes, &key).unwrap();
        let flags: Vec<_> = opened
            .records()
            .map(|r| (r.is_current(), r.is_pending()))
            .collect();
        assert_eq!(
            flags,
            [(true, false), (false, false), (false, true), (true, false)]
        );

        let mut edit = Edit::open(&bytes, &key).unwrap();
        let [current, _, again] = ids(&edit);
        assert_eq!(again, pending);
        assert!(edit.promote(&name()) && !edit.promote(&name()));
        assert_eq!(ids(&edit), [pending, current.clone(), None]);
        assert!(!edit.drop_previous(&name(), "1-0000000000000000"));
        assert!(edit.drop_previous(&name(), &current.unwrap()));
        let values = contents(&edit.seal(BY).unwrap(), &key);
        assert_eq!(values[0], ("a".into(), true, b"CANARY-3".to_vec()));
        assert_eq!(values.len(), 2);
    }

    #[test]
    fn a_put_meanwhile_has_a_number_of_its_own_and_a_pending_value_can_be_given_up() {
        let key = Key::generate().unwrap();
        let mut edit = Edit::create(&key).unwrap();
        assert_eq!(
            edit.set_pending(&name(), 1, value("CANARY-0")).unwrap(),
            None
        );
        put(&mut edit, "a", b"CANARY-1");
        edit.set_pending(&name(), 1, value("CANARY-2")).unwrap();
        let put = edit
            .put(&name(), value("CANARY-3"), Previous::Keep)
            .unwrap();
        assert!(put.version().starts_with("3-"));
        assert!(edit.drop_pending(&name()) && !edit.drop_pending(&name()));
        assert!(!edit.promote(&name()));
    }
}
