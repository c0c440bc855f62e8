//! The programs that peers run, compared with the files that the policy names.
//!
//! A path proves nothing, since each mount namespace has its own: a peer runs the program at a configured
//! path where device and inode are those of the file that the agent sees there, or where its content is
//! one that the agent saw there before (a package upgrade under a running bot).

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, fstatat};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// A larger program is not read, and so matches by device and inode only.
const LARGEST: u64 = 256 << 20;

/// How many contents are remembered for one path, and how many hashes in all.
const CONTENTS_A_PATH: usize = 8;
const HASHES: usize = 1024;

/// A file as it stands: the same key means the same content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Image {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl Image {
    /// The image that the process of an open /proc/PID folder runs. Follows the kernel's own link.
    ///
    /// # Errors
    /// `ESRCH` or `ENOENT` once it is gone; `EACCES` without `CAP_SYS_PTRACE` for another user's.
    pub fn running(proc_dir: &OwnedFd) -> nix::Result<Self> {
        let stat = fstatat(proc_dir, "exe", AtFlags::empty())?;
        Ok(Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            size: u64::try_from(stat.st_size).unwrap_or(u64::MAX),
            changed: (stat.st_ctime, stat.st_ctime_nsec),
        })
    }

    fn of(meta: &fs::Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }

    /// Whether both are the same file, by device and inode.
    #[must_use]
    pub fn same_file(&self, other: &Self) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }
}

/// SHA-256 of a file's content.
type Content = [u8; 32];

/// What is known of the configured paths, and the hashes that were made already.
pub struct Images {
    memory: PathBuf,
    /// Held while that is written.
    writing: Mutex<()>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// Each path's contents, the newest last.
    seen: BTreeMap<PathBuf, Vec<Content>>,
    /// The file at each path when it was last read.
    current: HashMap<PathBuf, Image>,
    hashes: HashMap<Image, Content>,
}

/// The file that remembers contents across restarts.
#[derive(Default, Serialize, Deserialize)]
struct Remembered(BTreeMap<PathBuf, Vec<String>>);

impl Images {
    /// Starts with what an earlier run remembered in `state_dir`.
    #[must_use]
    pub fn open(state_dir: &Path) -> Self {
        let memory = state_dir.join("exe-seen.json");
        let text = fs::read(&memory).unwrap_or_default();
        let remembered: Remembered = serde_json::from_slice(&text).unwrap_or_default();
        let seen = remembered
            .0
            .into_iter()
            .map(|(path, list)| (path, unhex_all(&list)))
            .collect();
        Self {
            memory,
            writing: Mutex::default(),
            known: Mutex::new(Known {
                seen,
                ..Known::default()
            }),
        }
    }

    /// Which of `paths` the peer proves to run, if that can be told without reading a file.
    #[must_use]
    pub fn proven_at_once(&self, image: &Image, paths: &[PathBuf]) -> Option<Vec<PathBuf>> {
        let known = self.known();
        let mut proven = Vec::new();
        for path in paths {
            let Ok(meta) = fs::metadata(path) else {
                continue;
            };
            let there = Image::of(&meta);
            if known.current.get(path) != Some(&there) {
                return None;
            }
            if there.same_file(image) {
                proven.push(path.clone());
                continue;
            }
            let Some(seen) = known.seen.get(path) else {
                continue;
            };
            if seen.contains(known.hashes.get(image)?) {
                proven.push(path.clone());
            }
        }
        Some(proven)
    }

    /// The same, reading what has to be read. Takes as long as that does: not for the request loop.
    #[must_use]
    pub fn proven(&self, proc_dir: &OwnedFd, image: &Image, paths: &[PathBuf]) -> Vec<PathBuf> {
        self.learn(paths);
        self.proven_without_learning(proc_dir, image, paths)
    }

    /// The same for a look from outside the daemon, which remembers nothing.
    #[must_use]
    pub fn proven_without_learning(
        &self,
        proc_dir: &OwnedFd,
        image: &Image,
        paths: &[PathBuf],
    ) -> Vec<PathBuf> {
        let content = self.running_content(proc_dir, image);
        let known = self.known();
        paths
            .iter()
            .filter(|path| {
                let same = fs::metadata(path).is_ok_and(|meta| Image::of(&meta).same_file(image));
                let seen = || {
                    content.is_some_and(|hash| {
                        known.seen.get(*path).is_some_and(|s| s.contains(&hash))
                    })
                };
                same || seen()
            })
            .cloned()
            .collect()
    }

    /// SHA-256 of the image that a process runs; `None` where it cannot be read or is not `image` any more.
    #[must_use]
    pub fn running_content(&self, proc_dir: &OwnedFd, image: &Image) -> Option<Content> {
        if let Some(hash) = self.known().hashes.get(image) {
            return Some(*hash);
        }
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let file = File::from(openat(proc_dir.as_fd(), "exe", flags, Mode::empty()).ok()?);
        self.hash(file)
            .ok()
            .filter(|(read, _)| read == image)
            .map(|(_, hash)| hash)
    }

    /// The content hash that is known already.
    #[must_use]
    pub fn known_content(&self, image: &Image) -> Option<Content> {
        self.known().hashes.get(image).copied()
    }

    /// Reads the files at `paths` that are new or changed, and remembers their contents.
    pub fn learn(&self, paths: &[PathBuf]) {
        let mut news = false;
        for path in paths {
            let there = fs::metadata(path).ok().map(|meta| Image::of(&meta));
            if there.is_none() || self.known().current.get(path) == there.as_ref() {
                continue;
            }
            let file = File::options()
                .read(true)
                .custom_flags(nix::libc::O_NONBLOCK)
                .open(path);
            let Ok((image, hash)) = file.and_then(|file| self.hash(file)) else {
                continue;
            };
            let mut known = self.known();
            known.current.insert(path.clone(), image);
            let seen = known.seen.entry(path.clone()).or_default();
            if !seen.contains(&hash) {
                seen.push(hash);
                let surplus = seen.len().saturating_sub(CONTENTS_A_PATH);
                seen.drain(..surplus);
                news = true;
            }
        }
        if news && let Err(error) = self.remember() {
            tracing::warn!(%error, file = %self.memory.display(), "contents of exe selectors are not remembered");
        }
    }

    fn hash(&self, mut file: File) -> io::Result<(Image, Content)> {
        let meta = file.metadata()?;
        if !meta.is_file() || meta.size() > LARGEST {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let image = Image::of(&meta);
        let mut hasher = Sha256::new();
        let mut chunk = vec![0; 64 * 1024];
        loop {
            match file.read(&mut chunk)? {
                0 => break,
                count => hasher.update(&chunk[..count]),
            }
        }
        let hash: Content = hasher.finalize().into();
        let mut known = self.known();
        if known.hashes.len() >= HASHES {
            known.hashes.clear();
        }
        known.hashes.insert(image, hash);
        Ok((image, hash))
    }

    fn remember(&self) -> io::Result<()> {
        let _alone = self.writing.lock();
        let remembered = Remembered(
            self.known()
                .seen
                .iter()
                .map(|(path, list)| (path.clone(), list.iter().map(hex).collect()))
                .collect(),
        );
        crate::files::replace(&self.memory, &serde_json::to_vec(&remembered)?)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The hash as text.
#[must_use]
pub fn hex(hash: &[u8; 32]) -> String {
    use std::fmt::Write;
    hash.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex_all(list: &[String]) -> Vec<Content> {
    list.iter().filter_map(|text| unhex(text)).collect()
}

fn unhex(text: &str) -> Option<Content> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    let mut hash = [0; 32];
    for (byte, at) in hash.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(&text[at..at + 2], 16).ok()?;
    }
    Some(hash)
}
