//! Tokens and secret ids: read from their files into secret memory, sent from there.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use hyper::header::HeaderValue;
use zeroize::Zeroizing;

use crate::config::KeySource;
use crate::files::{self, FileError, Holds, Trust};
use crate::sys::arena::{Arena, Block, Full};

/// Larger than any token, JWT, key or chain of certificates.
pub const LARGEST: u64 = 64 * 1024;

/// A file's identity and age: another one holds something else.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

/// Where a secret of the configuration is; the name of the credential where this process was given none.
pub fn place(source: &KeySource) -> Result<PathBuf, String> {
    match source {
        KeySource::File(path) => Ok(path.clone()),
        KeySource::Credential(name) => std::env::var_os("CREDENTIALS_DIRECTORY")
            .map(|folder| PathBuf::from(folder).join(name))
            .ok_or_else(|| name.clone()),
    }
}

/// What tells whether a file is still the same.
pub fn stamp(path: &Path, trust: Trust) -> Result<Stamp, FileError> {
    let file = files::open(path, Holds::Secrets, trust)?;
    let about = file.metadata().map_err(|source| FileError::Io {
        path: path.into(),
        source,
    })?;
    Ok(Stamp {
        device: about.dev(),
        inode: about.ino(),
        size: about.size(),
        changed: (about.ctime(), about.ctime_nsec()),
    })
}

/// Reads a secret without the white space around it. Why not, for operators, where it can't.
pub fn read(path: &Path, trust: Trust, arena: &Arc<Arena>) -> Result<Block, String> {
    let bytes =
        files::read(path, Holds::Secrets, trust, LARGEST).map_err(|error| error.to_string())?;
    let bytes = Zeroizing::new(bytes);
    let text = bytes.trim_ascii();
    if text.is_empty() || !text.iter().all(u8::is_ascii_graphic) {
        return Err(format!(
            "{}: it does not hold one word of text",
            path.display()
        ));
    }
    copied(text, arena).map_err(|full| full.to_string())
}

/// A copy in secret memory.
pub fn copied(bytes: &[u8], arena: &Arc<Arena>) -> Result<Block, Full> {
    let mut draft = arena.draft(bytes.len())?;
    draft.copy_from_slice(bytes);
    Ok(draft.freeze())
}

/// The value of a header, which stays where it is. `None` where it cannot be one.
pub fn header(secret: Block) -> Option<HeaderValue> {
    struct Held(Block);
    impl AsRef<[u8]> for Held {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    let mut value = HeaderValue::from_maybe_shared(Bytes::from_owner(Held(secret))).ok()?;
    value.set_sensitive(true);
    Some(value)
}
