//! The encrypted store: its file format, how it is read, edited and replaced, and what can be imported.
//!
//! `docs/store-format.md` has every byte. The file source reads it with [`Opened`], the ops verbs write it
//! with [`Edit`]; both are pure. [`files`] is the thin rim of I/O around them.

mod change;
mod cipher;
mod dotenv;
mod edit;
mod error;
pub mod files;
mod format;
pub mod import;
mod key;
mod key_pair;
mod opened;
mod secret;
mod slot;
pub mod snapshot;
mod value;

pub use change::{Actor, Change, MAX_CHANGES, Verb};
pub use edit::{Edit, Version, Versions};
pub use error::StoreError;
pub use files::{FileError, Folder};
pub use key::{Fingerprint, Key};
pub use opened::{Opened, Record};
pub use secret::{Listed, Previous, Put};
pub use slot::{MAX_SLOTS, SlotInfo};
pub use value::{ALPHABET, Value};

/// The largest store that is read or written, in bytes (1 GiB).
pub const MAX_FILE: u64 = 1 << 30;
