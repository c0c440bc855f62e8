//! Where secrets come from, and how they reach the cache.
//!
//! A source is read on one thread of its own, the [`Keeper`]'s; what it has is decrypted into secret
//! memory and published as a whole. What cannot be read or trusted is refused whole, and the last good
//! values serve on.

mod accepted;
#[cfg(feature = "aws")]
pub mod aws;
mod file;
mod keeper;
mod key;
mod state;
pub mod upstream;
pub mod watch;

pub use file::{FileSource, Rejected};
pub use keeper::{Asked, ByOperator, Keeper, KeeperError, StoreEdit};
pub use key::{KeyError, credential_offline, load_key};
pub use state::{SourceState, States};

/// Which source owns a name: the one with the longest prefix that the name begins with.
#[must_use]
pub fn owner<'a>(prefixes: impl Iterator<Item = &'a str>, name: &str) -> Option<&'a str> {
    prefixes
        .filter(|prefix| name.starts_with(prefix))
        .max_by_key(|prefix| prefix.len())
}
