//! Files that decide access or hold secrets: opened without following a link at their own name, and
//! trusted only where the open descriptor, and every folder on the way, belong to root or the daemon's
//! user and nobody else may write there.
//!
//! The path is walked one segment at a time with `openat`, so what was checked is what was opened.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use nix::unistd::{getegid, geteuid};

/// The most that the daemon remembers in one file.
const RECALLED: u64 = 64 << 20;

/// What a file is for, which decides who may read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    /// It decides access: nobody else may write it.
    Access,
    /// It holds secrets or keys: only its owner and the daemon's group may read it, too.
    Secrets,
}

/// Whose files are trusted, besides root's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trust {
    uid: u32,
    gid: u32,
}

impl Trust {
    /// The user and group this process runs as.
    #[must_use]
    pub fn own() -> Self {
        Self {
            uid: geteuid().as_raw(),
            gid: getegid().as_raw(),
        }
    }

    /// The owner of `state_dir` where root looks at another user's daemon; else this process's own.
    #[must_use]
    pub fn of_daemon(state_dir: &Path) -> Self {
        use std::os::unix::fs::MetadataExt;
        match std::fs::metadata(state_dir) {
            Ok(meta) if geteuid().is_root() => Self {
                uid: meta.uid(),
                gid: meta.gid(),
            },
            _ => Self::own(),
        }
    }
}

/// Why a file is not opened.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The kernel says no.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// Somebody else could change or read it.
    #[error("{path}: {what}; {remedy}")]
    Loose {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
        /// What to do.
        remedy: String,
    },
}

impl FileError {
    /// Whether the file is simply not there.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound)
    }

    /// Whether the caller may not read it.
    #[must_use]
    pub fn is_forbidden(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied)
    }
}

/// Opens the file at `path` for reading, if it and all folders above it can be trusted.
pub fn open(path: &Path, holds: Holds, trust: Trust) -> Result<File, FileError> {
    let (folder, name) = walk(path, trust)?;
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file = open_at(folder, &name, flags).map_err(|errno| match errno {
        Errno::ELOOP => FileError::Loose {
            path: path.into(),
            what: "is a symbolic link".into(),
            remedy: "name the file itself".into(),
        },
        other => io_error(path, other),
    })?;
    let stat = fstat(&file).map_err(|errno| io_error(path, errno))?;
    if kind(&stat) != SFlag::S_IFREG {
        return Err(FileError::Loose {
            path: path.into(),
            what: "is not a regular file".into(),
            remedy: "name a file".into(),
        });
    }
    check_owner_and_mode(path, &stat, holds, trust)?;
    Ok(File::from(file))
}

/// Opens the folder at `path`, links followed, if it and all folders above it can be trusted.
pub fn open_folder(path: &Path, holds: Holds, trust: Trust) -> Result<OwnedFd, FileError> {
    let (above, name) = walk(&path.join("."), trust)?;
    debug_assert_eq!(name, OsStr::new("."));
    let folder = open_at(above, &name, OFlag::O_RDONLY | OFlag::O_DIRECTORY)
        .map_err(|errno| io_error(path, errno))?;
    let stat = fstat(&folder).map_err(|errno| io_error(path, errno))?;
    check_owner_and_mode(path, &stat, holds, trust)?;
    Ok(folder)
}

/// Reads a trusted file whole, at most `limit` bytes.
pub fn read(path: &Path, holds: Holds, trust: Trust, limit: u64) -> Result<Vec<u8>, FileError> {
    let file = open(path, holds, trust)?;
    let io = |source| FileError::Io {
        path: path.into(),
        source,
    };
    // Room for all of it at once: a buffer that grows leaves copies behind.
    let len = file.metadata().map_err(io)?.len().min(limit);
    let mut bytes = Vec::with_capacity(usize::try_from(len).unwrap_or(0).saturating_add(1));
    file.take(limit.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(io)?;
    if bytes.len() as u64 > limit {
        return Err(FileError::Loose {
            path: path.into(),
            what: format!("is larger than {limit} bytes"),
            remedy: "name the right file".into(),
        });
    }
    Ok(bytes)
}

/// Reads what [`replace`] wrote, if nobody else could have; `None` before the first time.
pub fn recall(path: &Path, holds: Holds) -> Result<Option<Vec<u8>>, FileError> {
    match read(path, holds, Trust::own(), RECALLED) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.is_absent() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Replaces the file at `path` whole, readable by its owner alone: a kill at any instant leaves the old file
/// or the new one. The folder is the caller's own.
pub fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(&fresh)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&fresh, path)?;
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

/// Walks to the folder that holds the last segment of `path`; checks each folder on the way.
fn walk(path: &Path, trust: Trust) -> Result<(OwnedFd, OsString), FileError> {
    let absolute = std::path::absolute(path).map_err(|source| FileError::Io {
        path: path.into(),
        source,
    })?;
    let mut todo = segments(&absolute);
    if path.as_os_str().as_bytes().ends_with(b"/.") {
        todo.insert(0, OsString::from("."));
    }
    let mut at = PathBuf::from("/");
    let mut folder = open_root()?;
    check_folder(&at, &folder, trust)?;
    let mut links = 0;
    while todo.len() > 1 {
        let Some(segment) = todo.pop() else { break };
        let here = at.join(&segment);
        let next = open_at(&folder, &segment, OFlag::O_PATH | OFlag::O_NOFOLLOW)
            .map_err(|errno| io_error(&here, errno))?;
        let stat = fstat(&next).map_err(|errno| io_error(&here, errno))?;
        if kind(&stat) == SFlag::S_IFLNK {
            links += 1;
            if links > 40 {
                return Err(io_error(&here, Errno::ELOOP));
            }
            check_owner(&here, &stat, trust)?;
            let target = readlinkat(&next, "").map_err(|errno| io_error(&here, errno))?;
            let target = PathBuf::from(target);
            if target.is_absolute() {
                at = PathBuf::from("/");
                folder = open_root()?;
            }
            todo.extend(segments(&target));
        } else {
            check_folder(&here, &next, trust)?;
            at = here;
            folder = next;
        }
    }
    match todo.pop() {
        Some(name) => Ok((folder, name)),
        None => Err(io_error(path, Errno::EISDIR)),
    }
}

/// The segments of a path, the last one first.
fn segments(path: &Path) -> Vec<OsString> {
    path.components()
        .rev()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some(OsString::from_vec(b"..".to_vec())),
            _ => None,
        })
        .collect()
}

fn open_root() -> Result<OwnedFd, FileError> {
    nix::fcntl::open(
        "/",
        OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
    .map_err(|errno| io_error(Path::new("/"), errno))
}

fn open_at(folder: impl AsFd, name: &OsStr, flags: OFlag) -> nix::Result<OwnedFd> {
    openat(folder, name, flags | OFlag::O_CLOEXEC, Mode::empty())
}

fn check_folder(path: &Path, folder: &OwnedFd, trust: Trust) -> Result<(), FileError> {
    let stat = fstat(folder).map_err(|errno| io_error(path, errno))?;
    if kind(&stat) != SFlag::S_IFDIR {
        return Err(io_error(path, Errno::ENOTDIR));
    }
    // Others may add names to a root-owned sticky folder, but not touch each other's.
    if stat.st_uid == 0 && stat.st_mode & 0o1000 != 0 {
        return Ok(());
    }
    check_owner_and_mode(path, &stat, Holds::Access, trust)
}

fn check_owner(path: &Path, stat: &FileStat, trust: Trust) -> Result<(), FileError> {
    if stat.st_uid == 0 || stat.st_uid == trust.uid {
        return Ok(());
    }
    Err(FileError::Loose {
        path: path.into(),
        what: format!(
            "belongs to uid {}, who is neither root nor the daemon's user",
            stat.st_uid
        ),
        remedy: format!("chown root {}", path.display()),
    })
}

fn check_owner_and_mode(
    path: &Path,
    stat: &FileStat,
    holds: Holds,
    trust: Trust,
) -> Result<(), FileError> {
    check_owner(path, stat, trust)?;
    let loose = |what: &str, fix: &str| FileError::Loose {
        path: path.into(),
        what: format!("{what} (mode {:04o})", stat.st_mode & 0o7777),
        remedy: format!("chmod {fix} {}", path.display()),
    };
    if stat.st_mode & 0o022 != 0 {
        return Err(loose("others may write it", "go-w"));
    }
    if holds == Holds::Secrets {
        if stat.st_mode & 0o004 != 0 {
            return Err(loose("anyone may read it", "o-rwx"));
        }
        if stat.st_mode & 0o040 != 0 && stat.st_gid != trust.gid && !is_credential(path, stat) {
            return Err(loose(
                "a group that is not the daemon's may read it",
                "g-rwx",
            ));
        }
    }
    Ok(())
}

/// Whether systemd gave the file to this unit: an ACL lets the unit's user read it, and the mask of that shows as
/// the bits of the group, which is root's.
fn is_credential(path: &Path, stat: &FileStat) -> bool {
    let given = std::env::var_os("CREDENTIALS_DIRECTORY");
    let inside = given.is_some_and(|folder| path.parent() == Some(Path::new(&folder)));
    inside && stat.st_uid == 0 && stat.st_gid == 0
}

fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

fn io_error(path: &Path, errno: Errno) -> FileError {
    FileError::Io {
        path: path.into(),
        source: errno.into(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let dir =
                std::env::temp_dir().join(format!("keyhatch-files-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&dir).unwrap();
            mode(&dir, 0o700);
            Self(dir)
        }

        fn file(&self, name: &str, bits: u32) -> PathBuf {
            let path = self.0.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, b"content").unwrap();
            mode(&path, bits);
            path
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn mode(path: &Path, bits: u32) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(bits)).unwrap();
    }

    fn message(path: &Path, holds: Holds) -> String {
        read(path, holds, Trust::own(), 100)
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn modes_are_judged_by_what_the_file_holds() {
        let dir = Scratch::new("modes");
        let open_to_read = dir.file("a", 0o644);
        assert_eq!(
            read(&open_to_read, Holds::Access, Trust::own(), 100).unwrap(),
            b"content"
        );
        assert!(message(&open_to_read, Holds::Secrets).contains("anyone may read it"));
        assert!(message(&dir.file("b", 0o622), Holds::Access).contains("others may write it"));
        assert!(read(&dir.file("c", 0o600), Holds::Secrets, Trust::own(), 100).is_ok());
        let other_group = Trust {
            gid: 4242,
            ..Trust::own()
        };
        let group = dir.file("d", 0o640);
        assert!(open(&group, Holds::Secrets, Trust::own()).is_ok());
        assert!(open(&group, Holds::Secrets, other_group).is_err());
    }

    #[test]
    fn a_link_is_refused_as_the_file_and_followed_as_a_folder() {
        let dir = Scratch::new("links");
        let file = dir.file("real/key", 0o600);
        symlink(&file, dir.0.join("link")).unwrap();
        symlink(dir.0.join("real"), dir.0.join("folder")).unwrap();
        assert!(message(&dir.0.join("link"), Holds::Access).contains("is a symbolic link"));
        assert!(read(&dir.0.join("folder/key"), Holds::Secrets, Trust::own(), 100).is_ok());
        assert!(open_folder(&dir.0.join("folder"), Holds::Access, Trust::own()).is_ok());
    }

    #[test]
    fn a_loose_folder_above_is_named() {
        let dir = Scratch::new("folders");
        let file = dir.file("open/sub/key", 0o600);
        mode(&dir.0.join("open"), 0o777);
        let text = message(&file, Holds::Access);
        assert!(
            text.contains("open: others may write it (mode 0777)"),
            "{text}"
        );
        assert!(open_folder(&dir.0.join("open"), Holds::Access, Trust::own()).is_err());
    }

    #[test]
    fn absent_large_and_odd_files() {
        let dir = Scratch::new("odd");
        let absent = open(&dir.0.join("none"), Holds::Access, Trust::own()).unwrap_err();
        assert!(absent.is_absent());
        assert!(message(&dir.0, Holds::Access).contains("not a regular file"));
        let file = dir.file("large", 0o600);
        assert!(read(&file, Holds::Access, Trust::own(), 3).is_err());
    }
}
