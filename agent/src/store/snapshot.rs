//! A sealed copy of an upstream's last good values: its bytes.
//!
//! `docs/store-format.md` has them. A copy is bound to the host and to the source's configuration, and says how
//! old each value was when it was written. It is opened whole or not at all.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::cipher::{Cipher, TAG};
use super::key::random;
use super::{Fingerprint, Key, StoreError};

const MAGIC: &[u8; 8] = b"KHSNAP\x01\n";
const INFO: &[u8] = b"keyhatch snapshot 1";
/// Magic, fingerprint of the key, hash of the binding, salt.
const HEAD: usize = 8 + 8 + 8 + 32;

/// Why a copy is not opened. No text here holds a name, a value or a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// The first bytes are not the magic.
    #[error("it is no snapshot of this version")]
    NotASnapshot,
    /// Sealed under another key.
    #[error("it is sealed under another key, with fingerprint {0}")]
    OtherKey(Fingerprint),
    /// Of another host, or of a source that was configured otherwise.
    #[error("it is of another host or of a source with another configuration")]
    OtherBinding,
    /// A tag does not match, or bytes are missing or left over.
    #[error("it is cut short, edited or damaged")]
    Refused,
    /// It verifies but was not written by these rules.
    #[error("it verifies but cannot be understood; a faulty program wrote it")]
    Malformed,
    /// The cipher or the random generator failed.
    #[error(transparent)]
    Cipher(StoreError),
}

/// When a copy was written, by two clocks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// Milliseconds since 1970 by the wall clock, which may be set.
    pub wall: u64,
    /// Milliseconds since boot, suspend counted (`CLOCK_BOOTTIME`).
    pub since_boot: u64,
    /// Which boot that was.
    pub boot: String,
}

/// What is known of one secret besides its values.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// The name it is served under.
    pub name: String,
    /// Milliseconds between the last time that the upstream stood behind it and the writing of the copy.
    pub age: u64,
    /// The current version, then the one before where there is one.
    pub versions: Vec<VersionAbout>,
}

/// What is known of one version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionAbout {
    /// Its id.
    pub id: String,
    /// When it was set, RFC 3339.
    pub updated_at: String,
}

#[derive(Serialize, Deserialize)]
struct Start {
    saved: Saved,
    secrets: usize,
}

/// Writes a copy of `secrets`, each with the plaintext of its versions.
pub fn seal(
    key: &Key,
    binding: &str,
    saved: &Saved,
    secrets: &[(About, Vec<&[u8]>)],
) -> Result<Vec<u8>, SnapshotError> {
    let mut salt = [0; 32];
    random(&mut salt).map_err(SnapshotError::Cipher)?;
    let mut out = Vec::new();
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&key.fingerprint().0);
    out.extend_from_slice(&short_hash(binding));
    out.extend_from_slice(&salt);
    let mut frames = Writer {
        cipher: cipher(key, &salt, binding)?,
        next: 0,
        out,
    };
    frames.json(&Start {
        saved: saved.clone(),
        secrets: secrets.len(),
    })?;
    for (about, values) in secrets {
        frames.json(about)?;
        for value in values {
            frames.bytes(value)?;
        }
    }
    Ok(frames.out)
}

/// An open copy, to be read from its first secret to its last.
pub struct Snapshot<'a> {
    frames: Reader<'a>,
    /// When it was written.
    pub saved: Saved,
    left: usize,
}

impl<'a> Snapshot<'a> {
    /// Opens a copy and verifies its beginning; the rest is verified as it is read.
    pub fn open(bytes: &'a [u8], key: &Key, binding: &str) -> Result<Self, SnapshotError> {
        let (head, rest) = bytes
            .split_first_chunk::<HEAD>()
            .ok_or(SnapshotError::NotASnapshot)?;
        let (magic, head) = head.split_at(8);
        let (fingerprint, head) = head.split_at(8);
        let (bound, salt) = head.split_at(8);
        if magic != MAGIC {
            return Err(SnapshotError::NotASnapshot);
        }
        if fingerprint != key.fingerprint().0 {
            let mut other = Fingerprint([0; 8]);
            other.0.copy_from_slice(fingerprint);
            return Err(SnapshotError::OtherKey(other));
        }
        if bound != short_hash(binding) {
            return Err(SnapshotError::OtherBinding);
        }
        let salt = salt.try_into().map_err(|_| SnapshotError::Refused)?;
        let mut frames = Reader {
            cipher: cipher(key, salt, binding)?,
            next: 0,
            rest,
        };
        let start: Start = frames.json()?;
        Ok(Self {
            frames,
            saved: start.saved,
            left: start.secrets,
        })
    }

    /// The next secret; `None` after the last, with nothing behind it.
    pub fn next_secret(&mut self) -> Result<Option<About>, SnapshotError> {
        if self.left == 0 {
            return match self.frames.rest {
                [] => Ok(None),
                _ => Err(SnapshotError::Refused),
            };
        }
        self.left -= 1;
        self.frames.json().map(Some)
    }

    /// The length of the value that follows.
    pub fn value_len(&self) -> Result<usize, SnapshotError> {
        let (sealed, _) = self.frames.peek()?;
        Ok(sealed.len() - TAG)
    }

    /// Decrypts the value that follows straight into `plain`, which has exactly its length.
    pub fn value_into(&mut self, plain: &mut [u8]) -> Result<(), SnapshotError> {
        self.frames.open_into(plain)
    }
}

fn cipher(key: &Key, salt: &[u8; 32], binding: &str) -> Result<Cipher, SnapshotError> {
    let bound = Sha256::digest(binding);
    Cipher::derive(key, salt, &[INFO, &bound]).map_err(SnapshotError::Cipher)
}

fn short_hash(binding: &str) -> [u8; 8] {
    let mut short = [0; 8];
    short.copy_from_slice(&Sha256::digest(binding)[..8]);
    short
}

/// Frames: a length, ciphertext and tag. The number of a frame is its nonce, so none can be moved.
struct Writer {
    cipher: Cipher,
    next: u64,
    out: Vec<u8>,
}

impl Writer {
    fn json(&mut self, what: &impl Serialize) -> Result<(), SnapshotError> {
        let text = serde_json::to_vec(what).map_err(|_| SnapshotError::Malformed)?;
        self.bytes(&text)
    }

    fn bytes(&mut self, plain: &[u8]) -> Result<(), SnapshotError> {
        let len = u32::try_from(plain.len() + TAG).map_err(|_| SnapshotError::Malformed)?;
        self.out.extend_from_slice(&len.to_be_bytes());
        self.cipher
            .seal(self.next, &[], plain, &mut self.out)
            .map_err(SnapshotError::Cipher)?;
        self.next += 1;
        Ok(())
    }
}

struct Reader<'a> {
    cipher: Cipher,
    next: u64,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// The sealed bytes of the next frame, and what follows it.
    fn peek(&self) -> Result<(&'a [u8], &'a [u8]), SnapshotError> {
        let (len, rest) = self
            .rest
            .split_first_chunk::<4>()
            .ok_or(SnapshotError::Refused)?;
        usize::try_from(u32::from_be_bytes(*len))
            .ok()
            .filter(|len| *len >= TAG)
            .and_then(|len| rest.split_at_checked(len))
            .ok_or(SnapshotError::Refused)
    }

    fn open_into(&mut self, plain: &mut [u8]) -> Result<(), SnapshotError> {
        let (sealed, rest) = self.peek()?;
        if sealed.len() != plain.len() + TAG {
            return Err(SnapshotError::Refused);
        }
        self.cipher
            .open(self.next, &[], sealed, plain)
            .map_err(|_| SnapshotError::Refused)?;
        (self.next, self.rest) = (self.next + 1, rest);
        Ok(())
    }

    fn json<T: for<'de> Deserialize<'de>>(&mut self) -> Result<T, SnapshotError> {
        let (sealed, _) = self.peek()?;
        let mut text = vec![0; sealed.len() - TAG];
        self.open_into(&mut text)?;
        serde_json::from_slice(&text).map_err(|_| SnapshotError::Malformed)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    type Secret = (About, Vec<Vec<u8>>);

    fn saved() -> Saved {
        Saved {
            wall: 1_700_000_000_000,
            since_boot: 42,
            boot: "b".into(),
        }
    }

    fn about(name: &str, versions: &[&str]) -> About {
        let version = |id: &&str| VersionAbout {
            id: (*id).into(),
            updated_at: "2026-01-01T00:00:00Z".into(),
        };
        About {
            name: name.into(),
            age: 7,
            versions: versions.iter().map(version).collect(),
        }
    }

    fn sample(key: &Key) -> Vec<u8> {
        let secrets = [
            (about("a/b", &["2-x", "1-y"]), vec![&b"CANARY-1"[..], b""]),
            (about("c", &["1-z"]), vec![&b"CANARY-2"[..]]),
        ];
        seal(key, "host/source", &saved(), &secrets).unwrap()
    }

    fn read(bytes: &[u8], key: &Key, binding: &str) -> Result<Vec<Secret>, SnapshotError> {
        let mut open = Snapshot::open(bytes, key, binding)?;
        let mut all = Vec::new();
        while let Some(about) = open.next_secret()? {
            let mut values = Vec::new();
            for _ in &about.versions {
                let mut value = vec![0; open.value_len()?];
                open.value_into(&mut value)?;
                values.push(value);
            }
            all.push((about, values));
        }
        Ok(all)
    }

    #[test]
    fn what_was_sealed_comes_back_and_shows_nothing_outside() {
        let key = Key::generate().unwrap();
        let bytes = sample(&key);
        let all = read(&bytes, &key, "host/source").unwrap();
        assert_eq!(all[0].0, about("a/b", &["2-x", "1-y"]));
        assert_eq!(all[0].1, [b"CANARY-1".to_vec(), Vec::new()]);
        assert_eq!(all[1].1, [b"CANARY-2".to_vec()]);
        for hidden in [&b"CANARY"[..], b"a/b"] {
            assert!(!bytes.windows(hidden.len()).any(|part| part == hidden));
        }
        assert_ne!(bytes, sample(&key), "each copy has a fresh salt");
    }

    #[test]
    fn another_key_or_binding_is_named() {
        let (key, other) = (Key::generate().unwrap(), Key::generate().unwrap());
        let bytes = sample(&key);
        let error = read(&bytes, &other, "host/source").unwrap_err();
        assert_eq!(error, SnapshotError::OtherKey(key.fingerprint()));
        let error = read(&bytes, &key, "host/other").unwrap_err();
        assert_eq!(error, SnapshotError::OtherBinding);
    }

    #[test]
    fn every_flipped_byte_and_every_cut_is_refused() {
        let key = Key::generate().unwrap();
        let bytes = sample(&key);
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert!(read(&bad, &key, "host/source").is_err(), "byte {at}");
            assert!(
                read(&bytes[..at], &key, "host/source").is_err(),
                "cut at {at}"
            );
        }
        let longer = [&bytes[..], b"x"].concat();
        assert_eq!(
            read(&longer, &key, "host/source"),
            Err(SnapshotError::Refused)
        );
    }
}
