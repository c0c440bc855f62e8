//! A secret in an edit: its current value, the one before, and what a put makes of them.

use keyhatch_protocol::Name;
use serde::Serialize;

use super::change::now;
use super::format::Meta;
use super::key::random;
use super::{StoreError, Value};

/// What a put did, with the version that is now current.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Put {
    /// There was no such secret.
    New(String),
    /// There was another value, which is now the previous one (or was revoked).
    Changed(String),
    /// The value was there already: same version, same previous one.
    Unchanged(String),
}

impl Put {
    /// The version that is now current.
    #[must_use]
    pub fn version(&self) -> &str {
        let (Self::New(version) | Self::Changed(version) | Self::Unchanged(version)) = self;
        version
    }

    /// The word for it: `new`, `changed` or `unchanged`.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::New(_) => "new",
            Self::Changed(_) => "changed",
            Self::Unchanged(_) => "unchanged",
        }
    }
}

/// A secret as it may be shown: no value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// Its name.
    pub name: Name,
    /// The current version.
    pub version: String,
    /// When it was set, RFC 3339.
    pub updated_at: String,
    /// The length of the value.
    pub bytes: usize,
    /// Whether a previous version is kept.
    pub previous: bool,
}

/// What a put does with the older version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Previous {
    /// A replaced value stays readable as the previous version.
    Keep,
    /// No previous version is left: the emergency.
    Revoke,
}

pub(super) struct Secret {
    pub(super) current: Held,
    pub(super) previous: Option<Held>,
    /// What a rotation that has not ended made.
    pub(super) pending: Option<Held>,
}

pub(super) struct Held {
    pub(super) meta: Meta,
    pub(super) value: Value,
}

impl Secret {
    pub(super) fn new(current: Held) -> Self {
        Self {
            current,
            previous: None,
            pending: None,
        }
    }

    /// Puts `value`, and says whether the secret is different now.
    pub(super) fn put(
        &mut self,
        name: &Name,
        value: Value,
        previous: Previous,
    ) -> Result<(Put, bool), StoreError> {
        let had_previous = self.previous.is_some();
        let unchanged = self.current.value == value;
        if !unchanged {
            // A value that a rotation is about to bring has its number already.
            let pending = self.pending.as_ref().map_or(0, |held| held.meta.counter);
            let counter = self.current.meta.counter.max(pending).saturating_add(1);
            let mut old = std::mem::replace(&mut self.current, Held::new(name, counter, value)?);
            old.meta.current = false;
            self.previous = Some(old);
        }
        if previous == Previous::Revoke {
            self.previous = None;
        }
        let version = self.current.meta.version.clone();
        if unchanged {
            Ok((
                Put::Unchanged(version),
                had_previous && self.previous.is_none(),
            ))
        } else {
            Ok((Put::Changed(version), true))
        }
    }

    pub(super) fn listed(&self) -> Listed {
        let meta = &self.current.meta;
        Listed {
            name: meta.name.clone(),
            version: meta.version.clone(),
            updated_at: meta.updated_at.clone(),
            bytes: self.current.value.as_bytes().len(),
            previous: self.previous.is_some(),
        }
    }

    pub(super) fn versions(&self) -> impl Iterator<Item = &Held> + Clone {
        std::iter::once(&self.current)
            .chain(&self.previous)
            .chain(&self.pending)
    }
}

impl Held {
    pub(super) fn new(name: &Name, counter: u64, value: Value) -> Result<Self, StoreError> {
        let mut unique = [0; 8];
        random(&mut unique)?;
        Ok(Self::with(name, counter, u64::from_be_bytes(unique), value))
    }

    /// One whose version ends in `unique`, which its caller has drawn.
    pub(super) fn with(name: &Name, counter: u64, unique: u64, value: Value) -> Self {
        let meta = Meta {
            name: name.clone(),
            version: format!("{counter}-{unique:016x}"),
            counter,
            updated_at: now(),
            current: true,
            pending: false,
        };
        Self { meta, value }
    }
}
