//! What an in-process cache holds of one secret, apart from who watches it.

use std::sync::{Arc, Mutex, PoisonError};

use crate::progress::Change;
use crate::{Error, Secret};

/// A value that counts only as long as an open watch says that it is the current one.
#[derive(Default)]
pub(crate) struct Cached(Mutex<State>);

#[derive(Default)]
struct State {
    /// The version that the watch told last; `None` while no watch is open.
    current: Option<String>,
    value: Option<Arc<Secret>>,
    /// Nobody watches any more: this entry is to be replaced.
    over: bool,
}

impl Cached {
    /// The value, where it is known to be the current one.
    pub(crate) fn value(&self) -> Option<Arc<Secret>> {
        self.with(|state| {
            let current = state.current.as_deref()?;
            state
                .value
                .clone()
                .filter(|secret| secret.version() == current)
        })
    }

    /// Keeps what was read. It counts once the watch says so, whichever came first.
    pub(crate) fn keep(&self, secret: &Arc<Secret>) {
        self.with(|state| state.value = Some(secret.clone()));
    }

    /// The watch told something, or broke.
    pub(crate) fn told(&self, told: &Result<Change, Error>) {
        self.with(|state| {
            state.current = told.as_ref().ok().and_then(|change| change.version.clone());
            let held = state.value.as_ref().map(|secret| secret.version());
            if held != state.current.as_deref() {
                state.value = None;
            }
        });
    }

    /// The watch is over for good.
    pub(crate) fn end(&self) {
        self.with(|state| {
            *state = State {
                over: true,
                ..State::default()
            };
        });
    }

    pub(crate) fn is_over(&self) -> bool {
        self.with(|state| state.over)
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{Address, ChangeKind, Name};
    use std::io;
    use zeroize::Zeroizing;

    fn secret(version: &str) -> Arc<Secret> {
        let name = Name::parse("a").unwrap();
        Arc::new(Secret::new(name, version.into(), Zeroizing::default()))
    }

    fn tell(cached: &Cached, version: Option<&str>) {
        cached.told(&Ok(Change {
            kind: ChangeKind::Rotated,
            name: Name::parse("a").unwrap(),
            version: version.map(Into::into),
        }));
    }

    #[test]
    fn a_value_counts_only_while_the_watch_says_so() {
        let cached = Cached::default();
        tell(&cached, Some("1"));
        assert!(cached.value().is_none(), "nothing was read yet");
        cached.keep(&secret("1"));
        assert_eq!(cached.value().unwrap().version(), "1");
        tell(&cached, Some("2"));
        assert!(cached.value().is_none(), "rotated");
        cached.keep(&secret("1"));
        assert!(cached.value().is_none(), "an answer that was overtaken");
        cached.keep(&secret("2"));
        let ended = io::ErrorKind::UnexpectedEof;
        cached.told(&Err(Address::at("/x").unreachable(ended.into())));
        assert!(cached.value().is_none(), "the watch broke");
        cached.keep(&secret("2"));
        assert!(cached.value().is_none(), "and is not open again yet");
        tell(&cached, None);
        assert!(cached.value().is_none(), "removed");
    }
}
