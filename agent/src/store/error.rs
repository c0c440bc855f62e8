//! Why a store cannot be opened or changed. No text here holds a name, a value or a key.

use super::{Fingerprint, MAX_FILE, MAX_SLOTS};

/// What went wrong with a store's bytes or with a change to them; the caller adds the path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The first bytes are not the magic.
    #[error("this is not a Keyhatch store: it does not begin with KEYHATCH; check the path")]
    NotAStore,
    /// A version of the format that this program does not know.
    #[error(
        "the store has format version {0}, this program reads version 1; use a newer keyhatchd"
    )]
    Version(u16),
    /// Fewer bytes than the header says.
    #[error("the store is cut short: {found} of {expected} bytes; restore it from a backup")]
    CutShort {
        /// Bytes that are there.
        found: u64,
        /// Bytes that the header announces, or the smallest store where even the header is cut.
        expected: u64,
    },
    /// More than [`MAX_FILE`] bytes.
    #[error(
        "the store would have more than {MAX_FILE} bytes; remove secrets or use a second store"
    )]
    TooLarge,
    /// No key slot has the fingerprint of the key.
    #[error("no key slot of this store fits the key with fingerprint {0}; give one of its keys")]
    WrongKey(Fingerprint),
    /// A tag does not match: edited, damaged, or put together from several stores.
    #[error("the store does not verify: it was edited or damaged; restore it from a backup")]
    Refused,
    /// Written with the right key, but not by these rules.
    #[error("the store verifies but {0}; a faulty program wrote it, restore it from a backup")]
    Malformed(&'static str),
    /// A key of another length.
    #[error(
        "a key is exactly 32 raw bytes, this one has {0}; is it text, or does it end in a newline?"
    )]
    KeyLength(usize),
    /// A value over the limit.
    #[error(
        "a value has at most 65536 bytes, this one has {0} or more; split it or store a reference"
    )]
    ValueTooLarge(usize),
    /// A generated value that would be empty or too long.
    #[error("a generated value has 1 to 65536 characters, not {0}")]
    GeneratedLength(usize),
    /// A label outside the alphabet.
    #[error("a key label is 1 to 64 bytes of letters, digits and . _ + = @ -")]
    Label,
    /// The label is in use.
    #[error("the store already has a key labelled {0}; choose another label")]
    LabelTaken(String),
    /// The key is in a slot already.
    #[error("the store already has this key, labelled {0}")]
    KeyTaken(String),
    /// There is no such label.
    #[error("the store has no key labelled {0}; `store key list` shows them")]
    NoSuchLabel(String),
    /// Without it nothing could open the store.
    #[error("{0} is the last key of the store, without it nothing opens it; add another key first")]
    LastKey(String),
    /// All slots are in use.
    #[error("a store has at most {MAX_SLOTS} keys; remove one first")]
    TooManyKeys,
    /// Rekeying needs the key of every slot.
    #[error(
        "a new data key must be wrapped for every key of the store, and no key was given for: {0}; \
         give them with --keep-key, or remove those slots first and add them again afterwards"
    )]
    KeysMissing(String),
    /// The buffer does not have the length of the value.
    #[error("a value of {expected} bytes cannot be decrypted into a buffer of {found}")]
    Buffer {
        /// Bytes of the value.
        expected: usize,
        /// Bytes of the buffer.
        found: usize,
    },
    /// The generation counter is at its end.
    #[error("the generation counter of the store is used up; import its secrets into a new store")]
    GenerationsUsedUp,
    /// The kernel gives no random bytes.
    #[error("the kernel gave no random bytes; nothing was written, try again")]
    Random,
    /// A primitive refused lengths that the limits above rule out.
    #[error("the cipher refused its input; this is a fault in keyhatchd, please report it")]
    Cipher,
}
