//! The values of honeytokens: made of their names under a key of this host, and real nowhere.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hkdf::Hkdf;
use keyhatch_protocol::Name;
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::cache::{About, Cache, DECOYS, Entry, LoadError, Version};
use crate::config::{Platform, Source, SourceKind};
use crate::files;

const LETTERS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// As long as `store generate` makes them.
const LENGTH: usize = 40;
/// How long before the key they say to have been set, at most.
const AGE: u64 = 90 * 24 * 60 * 60;

/// Makes values.
pub(super) struct Forge {
    key: Zeroizing<Vec<u8>>,
    made: SystemTime,
}

impl Forge {
    /// With the key in `state_dir`, which is made where there is none.
    pub(super) fn open(state_dir: &Path) -> io::Result<Self> {
        let path = state_dir.join("honeytoken.key");
        if !path.exists() {
            let mut key = Zeroizing::new([0; 32]);
            getrandom::fill(&mut key[..]).map_err(io::Error::other)?;
            files::replace(&path, &key[..])?;
        }
        Ok(Self {
            key: Zeroizing::new(fs::read(&path)?),
            made: fs::metadata(&path)?.modified()?,
        })
    }

    /// The secret that is served as `name`.
    pub(super) fn entry(
        &self,
        cache: &Cache,
        sources: &[Source],
        name: &Name,
    ) -> Result<Arc<Entry>, LoadError> {
        let owner = sources
            .iter()
            .filter(|source| name.as_str().starts_with(&source.prefix))
            .max_by_key(|source| source.prefix.len())
            .or(sources.first());
        let platform = owner.and_then(|source| match &source.kind {
            SourceKind::Upstream { platform, .. } => Some(platform),
            SourceKind::File { .. } => None,
        });
        let unique = self.bytes::<16>(name, "version");
        let version = match platform {
            None => format!("1-{:016x}", u64::from_be_bytes(first(&unique))),
            Some(Platform::Vault(_)) => format!("{}", 1 + unique[0] % 9),
            Some(Platform::Aws(_)) => uuid(&unique),
        };
        let age = u64::from_be_bytes(first(&self.bytes::<8>(name, "age"))) % AGE;
        let set = self.made - Duration::from_secs(age);
        let updated_at = humantime::format_rfc3339_seconds(set).to_string();
        let about = About {
            name: name.as_str(),
            version: &version,
            updated_at: &updated_at,
            source: owner.map_or("local", |source| &source.name),
            stale: false,
        };
        let mut draft = cache.arena().draft(LENGTH)?;
        let random = self.bytes::<{ LENGTH * 8 }>(name, "value");
        for (letter, random) in draft.iter_mut().zip(random.chunks_exact(8)) {
            *letter = LETTERS[(u64::from_be_bytes(first(random)) % 62) as usize];
        }
        let version = Arc::new(Version::load(cache.arena(), &about, draft.freeze())?);
        Ok(Arc::new(Entry::new(
            name.clone(),
            DECOYS.into(),
            version,
            None,
        )))
    }

    /// HKDF-SHA256 (RFC 5869) of the key, for one use of one name.
    fn bytes<const N: usize>(&self, name: &Name, what: &str) -> [u8; N] {
        let mut out = [0; N];
        // It fails only where more is asked for than 255 hashes.
        let _ = Hkdf::<Sha256>::new(None, &self.key)
            .expand_multi_info(&[what.as_bytes(), b" ", name.as_str().as_bytes()], &mut out);
        out
    }
}

/// The first bytes of enough.
fn first(bytes: &[u8]) -> [u8; 8] {
    let mut first = [0; 8];
    first.copy_from_slice(&bytes[..8]);
    first
}

/// A random UUID (RFC 9562, version 4).
fn uuid(bytes: &[u8; 16]) -> String {
    let number = u128::from_be_bytes(*bytes) & !(0xf << 76) & !(0x3 << 62) | 4 << 76 | 2 << 62;
    let hex = format!("{number:032x}");
    let parts = [
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    ];
    parts.join("-")
}
