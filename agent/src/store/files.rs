//! The rim of I/O around a store: its folder, the lock between writers, and replacing the file whole.
//!
//! Everything goes through the open folder, so that a swapped path cannot lead elsewhere midway. Whether owners and
//! modes can be trusted is judged elsewhere, on [`Folder::file`] and [`Folder::open_store`].

use std::fs::{DirBuilder, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag, openat, renameat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::MAX_FILE;

/// The store itself.
pub const STORE: &str = "store.khs";

/// What writers lock.
pub const LOCK: &str = "store.lock";

/// The next store while it is written. One name is enough, since only the holder of the lock writes; what a
/// killed writer left is removed by the next one.
const NEXT: &str = "store.khs.next";

/// Why the files of a store cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system said no.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// What was tried, such as `lock`.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The folder has no store yet.
    #[error("there is no store at {}; `keyhatchd store init` makes one", .0.display())]
    Missing(PathBuf),
    /// The folder has a store already.
    #[error("there is a store already at {}; use it, or choose another folder", .0.display())]
    Exists(PathBuf),
    /// A folder, a device, a pipe.
    #[error("{} is not a regular file; put the store itself there", .0.display())]
    NotRegular(PathBuf),
    /// More than [`MAX_FILE`] bytes.
    #[error("{} has more than {MAX_FILE} bytes, so it is no store; check the path", .0.display())]
    TooLarge(PathBuf),
}

/// The folder of a store, open.
pub struct Folder {
    dir: File,
    path: PathBuf,
}

impl Folder {
    /// Opens the folder at `path`, which is no symbolic link.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let dir = nix::fcntl::open(path, flags, Mode::empty())
            .map_err(|errno| failed("open the folder", path, errno))?;
        Ok(Self {
            dir: dir.into(),
            path: path.to_owned(),
        })
    }

    /// Opens the folder at `path`, and makes it (0700) where it does not exist.
    pub fn init(path: &Path) -> Result<Self, FileError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|error| failed("make the folder", path, error))?;
        Self::open(path)
    }

    /// The open folder, for a check of its owner and mode.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.dir
    }

    /// Opens the store for reading; what was opened stays whole while it is replaced.
    pub fn open_store(&self) -> Result<File, FileError> {
        let path = self.path.join(STORE);
        // Without O_NONBLOCK a pipe in its place would make the open wait.
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK;
        let file = match self.open_at(STORE, flags) {
            Ok(file) => file,
            Err(Errno::ENOENT) => return Err(FileError::Missing(path)),
            Err(errno) => return Err(failed("open", &path, errno)),
        };
        let meta = file
            .metadata()
            .map_err(|error| failed("look at", &path, error))?;
        if !meta.is_file() {
            return Err(FileError::NotRegular(path));
        }
        Ok(file)
    }

    /// The bytes of the store as it is now.
    pub fn read(&self) -> Result<Vec<u8>, FileError> {
        self.read_from(&self.open_store()?)
    }

    /// The bytes of a store that [`open_store`](Self::open_store) opened.
    pub fn read_from(&self, file: &File) -> Result<Vec<u8>, FileError> {
        let path = self.path.join(STORE);
        let size = file
            .metadata()
            .map_err(|error| failed("look at", &path, error))?
            .len();
        let capacity = usize::try_from(size.min(MAX_FILE)).unwrap_or(0);
        let mut bytes = Vec::with_capacity(capacity.saturating_add(1));
        file.take(MAX_FILE + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| failed("read", &path, error))?;
        if bytes.len() as u64 > MAX_FILE {
            return Err(FileError::TooLarge(path));
        }
        Ok(bytes)
    }

    /// Waits until no other writer holds the lock, and holds it until the guard is dropped.
    pub fn lock(&self) -> Result<Guard<'_>, FileError> {
        let path = self.path.join(LOCK);
        let mut file = self
            .lock_file()
            .map_err(|error| failed("open", &path, error))?;
        loop {
            match Flock::lock(file, FlockArg::LockExclusive) {
                Ok(lock) => {
                    return Ok(Guard {
                        folder: self,
                        _lock: lock,
                    });
                }
                Err((again, Errno::EINTR)) => file = again,
                Err((_, errno)) => return Err(failed("lock", &path, errno)),
            }
        }
    }

    /// Opens the lock file, or makes it and gives it to the folder's owner: root must not lock the daemon out.
    fn lock_file(&self) -> io::Result<File> {
        match self.open_at(LOCK, OFlag::O_RDWR) {
            Err(Errno::ENOENT) => {}
            opened => return Ok(opened?),
        }
        match self.open_at(LOCK, OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL) {
            Ok(file) => {
                give(&file, &self.dir.metadata()?)?;
                Ok(file)
            }
            // Another writer was faster.
            Err(Errno::EEXIST) => Ok(self.open_at(LOCK, OFlag::O_RDWR)?),
            Err(errno) => Err(errno.into()),
        }
    }

    fn open_at(&self, name: &str, flags: OFlag) -> nix::Result<File> {
        let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        openat(&self.dir, name, flags, mode).map(File::from)
    }
}

/// The right to write, held by one process at a time.
pub struct Guard<'f> {
    folder: &'f Folder,
    _lock: Flock<File>,
}

impl Guard<'_> {
    /// Writes the first store of a folder, owned like the folder; refused where there is one.
    pub fn create(&self, bytes: &[u8]) -> Result<(), FileError> {
        match self.folder.open_store() {
            Err(FileError::Missing(_)) => self.write(bytes, None),
            Ok(_) => Err(FileError::Exists(self.folder.path.join(STORE))),
            Err(error) => Err(error),
        }
    }

    /// Replaces the store whole, with the owner and the mode it had. A kill at any instant leaves the old or the new one.
    pub fn replace(&self, bytes: &[u8]) -> Result<(), FileError> {
        let old = self.folder.open_store()?;
        self.write(bytes, Some(&old))
    }

    fn write(&self, bytes: &[u8], old: Option<&File>) -> Result<(), FileError> {
        let path = self.folder.path.join(NEXT);
        self.write_next(bytes, old)
            .and_then(|()| self.rename_next())
            .map_err(|error| {
                // The old store stands; a leftover would only be removed later.
                let _ = self.remove_next();
                failed("write", &path, error)
            })
    }

    fn write_next(&self, bytes: &[u8], old: Option<&File>) -> io::Result<()> {
        self.remove_next()?;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
        let mut next = self.folder.open_at(NEXT, flags)?;
        match old {
            Some(old) => {
                let old = old.metadata()?;
                // The owner first: until then the mode must stay the tightest.
                give(&next, &old)?;
                next.set_permissions(Permissions::from_mode(old.mode() & 0o777))?;
            }
            None => give(&next, &self.folder.dir.metadata()?)?,
        }
        next.write_all(bytes)?;
        next.sync_all()
    }

    fn rename_next(&self) -> io::Result<()> {
        let dir = &self.folder.dir;
        renameat(dir, NEXT, dir, STORE)?;
        dir.sync_all()
    }

    fn remove_next(&self) -> io::Result<()> {
        match unlinkat(&self.folder.dir, NEXT, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Makes `file` belong to whom `like` belongs to.
fn give(file: &File, like: &std::fs::Metadata) -> io::Result<()> {
    let mine = file.metadata()?;
    let (uid, gid) = (like.uid(), like.gid());
    if (mine.uid(), mine.gid()) == (uid, gid) {
        return Ok(());
    }
    fchown(file, Some(uid), Some(gid))
}

fn failed(doing: &'static str, path: &Path, source: impl Into<io::Error>) -> FileError {
    FileError::Io {
        doing,
        path: path.to_owned(),
        source: source.into(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    /// A folder of its own, gone at the end of the test.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new() -> Self {
            let unique = crate::store::Key::generate().unwrap().fingerprint();
            let path = std::env::temp_dir().join(format!("keyhatch-store-{unique}"));
            fs::create_dir(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn a_new_store_is_private_and_made_once() {
        let scratch = Scratch::new();
        let path = scratch.0.join("new");
        let folder = Folder::init(&path).unwrap();
        assert!(matches!(folder.read(), Err(FileError::Missing(_))));
        let guard = folder.lock().unwrap();
        assert!(matches!(guard.replace(b"x"), Err(FileError::Missing(_))));
        guard.create(b"one").unwrap();
        assert!(matches!(guard.create(b"two"), Err(FileError::Exists(_))));
        assert_eq!(folder.read().unwrap(), b"one");
        assert_eq!(mode(&path), 0o700);
        assert_eq!(
            (mode(&path.join(STORE)), mode(&path.join(LOCK))),
            (0o600, 0o600)
        );
    }

    #[test]
    fn a_replaced_store_keeps_its_mode_and_its_owner() {
        let scratch = Scratch::new();
        let folder = Folder::open(&scratch.0).unwrap();
        folder.lock().unwrap().create(b"one").unwrap();
        let store = scratch.0.join(STORE);
        fs::set_permissions(&store, Permissions::from_mode(0o640)).unwrap();
        // Only root may give a file away; others see that the owner stays theirs.
        let _ = std::os::unix::fs::chown(&store, Some(4242), Some(4243));
        let before = fs::metadata(&store).unwrap();
        let old = folder.open_store().unwrap();

        folder.lock().unwrap().replace(b"two").unwrap();
        let after = fs::metadata(&store).unwrap();
        assert_eq!((after.uid(), after.gid()), (before.uid(), before.gid()));
        assert_eq!(mode(&store), 0o640);
        assert_eq!(folder.read().unwrap(), b"two");
        assert_eq!(folder.read_from(&old).unwrap(), b"one");
    }

    #[test]
    fn what_a_killed_writer_left_is_removed() {
        let scratch = Scratch::new();
        let folder = Folder::open(&scratch.0).unwrap();
        folder.lock().unwrap().create(b"one").unwrap();
        let next = scratch.0.join(NEXT);
        symlink("/dev/null", &next).unwrap();
        folder.lock().unwrap().replace(b"two").unwrap();
        assert!(fs::symlink_metadata(&next).is_err());
        assert_eq!(folder.read().unwrap(), b"two");
    }

    #[test]
    fn links_and_pipes_are_refused() {
        let scratch = Scratch::new();
        let link = scratch.0.join("link");
        symlink(&scratch.0, &link).unwrap();
        assert!(Folder::open(&link).is_err());

        let folder = Folder::open(&scratch.0).unwrap();
        let store = scratch.0.join(STORE);
        symlink("/dev/null", &store).unwrap();
        assert!(matches!(folder.read(), Err(FileError::Io { .. })));
        assert!(folder.lock().unwrap().replace(b"x").is_err());
        fs::remove_file(&store).unwrap();
        nix::unistd::mkfifo(&store, Mode::S_IRWXU).unwrap();
        assert!(matches!(folder.read(), Err(FileError::NotRegular(_))));
    }

    #[test]
    fn writers_wait_for_each_other_and_none_is_lost() {
        let scratch = Scratch::new();
        Folder::open(&scratch.0)
            .unwrap()
            .lock()
            .unwrap()
            .create(b"")
            .unwrap();
        let append = || {
            for _ in 0..25 {
                let folder = Folder::open(&scratch.0).unwrap();
                let guard = folder.lock().unwrap();
                let mut bytes = folder.read().unwrap();
                bytes.push(b'x');
                guard.replace(&bytes).unwrap();
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(append);
            }
        });
        assert_eq!(
            Folder::open(&scratch.0).unwrap().read().unwrap(),
            [b'x'; 100]
        );
    }
}
