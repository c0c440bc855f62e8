//! The segment that is being written: space reserved ahead and mapped in windows, or written record by
//! record where a file system cannot promise space.

use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::sys::statfs::{EXT4_SUPER_MAGIC, TMPFS_MAGIC, XFS_SUPER_MAGIC, fstatfs};
use nix::sys::statvfs::{FsFlags, fstatvfs};
use nix::unistd::{Gid, Group, fchown};

use super::chain::Head;
use crate::sys::map::{self, Window};

/// Space is reserved this much ahead, less as the disk fills.
const STEP: u64 = 1024 * 1024;
/// Zeros are written in pieces of this size.
const PIECE: usize = 64 * 1024;
/// The least that is reserved at once: a block.
const LEAST: u64 = 4096;
/// How much is mapped at once: little counts as resident, and few records pay for a new window.
const WINDOW: usize = 1024 * 1024;
/// A segment is closed when it is this old.
const MAX_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// Why a record cannot be kept where it should be.
#[derive(Debug)]
pub(super) enum Failure {
    /// No space: the same segment goes on once there is some.
    Full(io::Error),
    /// Anything else: a new segment is needed.
    Broken(String),
}

impl Failure {
    pub(super) fn from(what: &str, path: &Path, why: io::Error) -> Self {
        match Errno::from_raw(why.raw_os_error().unwrap_or(0)) {
            Errno::ENOSPC | Errno::EDQUOT => Self::Full(why),
            _ => Self::Broken(format!("cannot {what} {}: {why}", path.display())),
        }
    }
}

/// A place in the segment and where the chain stands there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark {
    pub offset: u64,
    pub head: Head,
}

/// The open segment.
pub(super) struct Segment {
    pub file: Arc<File>,
    pub path: PathBuf,
    /// Its beginning.
    pub base: Mark,
    /// Its end: where the next record goes.
    pub pos: u64,
    /// Up to where its records are known to be on disk.
    pub synced: Mark,
    /// How large the file is: what is reserved, or `pos` where nothing is.
    pub size: u64,
    /// How often we changed that: as often as inotify may tell of it.
    pub resized: u64,
    /// On the monotonic clock.
    born: Duration,
    limit: u64,
    window: Option<Window>,
    mapped: bool,
    id: (u64, u64),
}

impl Segment {
    /// Creates the segment whose first record follows `base`. The file must not exist.
    pub(super) fn create(path: &Path, base: Head, limit: u64, map: bool) -> Result<Self, Failure> {
        let fail = |why| Failure::from("create the audit segment", path, why);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o640)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)
            .map_err(fail)?;
        readable_by_adm(&file, 0o640);
        let mut segment = Self::over(
            file,
            path,
            Mark {
                offset: 0,
                head: base,
            },
            limit,
            map,
        )
        .map_err(fail)?;
        if let Err(why) = segment.make_room(1) {
            // Nothing is in it, and the next attempt wants the name.
            let _ = std::fs::remove_file(path);
            return Err(why);
        }
        Ok(segment)
    }

    /// Goes on in a segment whose last whole record ends at `end`; what follows is cut off.
    pub(super) fn resume(
        path: &Path,
        base: Head,
        end: Mark,
        limit: u64,
        map: bool,
    ) -> Result<Self, Failure> {
        let fail = |why| Failure::from("reopen the audit segment", path, why);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)
            .map_err(fail)?;
        file.set_len(end.offset).map_err(fail)?;
        let mut segment = Self::over(
            file,
            path,
            Mark {
                offset: 0,
                head: base,
            },
            limit,
            map,
        )
        .map_err(fail)?;
        (segment.pos, segment.size) = (end.offset, end.offset);
        Ok(segment)
    }

    fn over(file: File, path: &Path, base: Mark, limit: u64, map: bool) -> io::Result<Self> {
        let meta = file.metadata()?;
        let mapped = map && keeps_reservations(&file);
        Ok(Self {
            file: Arc::new(file),
            path: path.to_owned(),
            base,
            pos: 0,
            synced: base,
            size: 0,
            resized: 0,
            born: map::monotonic(),
            limit,
            window: None,
            mapped,
            id: (meta.dev(), meta.ino()),
        })
    }

    /// Whether the record should go to the next segment.
    pub(super) fn is_due(&self, len: usize, now: Duration) -> bool {
        self.pos > 0
            && (self.pos + len as u64 > self.limit || now.saturating_sub(self.born) >= MAX_AGE)
    }

    /// Whether records are copied into the file's pages.
    pub(super) fn is_mapped(&self) -> bool {
        self.mapped
    }

    /// Appends one line. On failure nothing of it is in the file.
    pub(super) fn append(&mut self, line: &[u8]) -> Result<(), Failure> {
        self.make_room(line.len())?;
        if self.mapped {
            let published = self
                .window
                .as_mut()
                .is_some_and(|window| window.publish(self.pos, line));
            if !published {
                return Err(Failure::Broken(
                    "the audit window is out of place".to_owned(),
                ));
            }
        } else {
            self.write(line)?;
            self.size = self.pos + line.len() as u64;
        }
        self.pos += line.len() as u64;
        Ok(())
    }

    fn write(&mut self, line: &[u8]) -> Result<(), Failure> {
        self.file.write_all_at(line, self.pos).map_err(|why| {
            // Half a line must not stay; if this fails too, the next record is written over it.
            let _ = self.file.set_len(self.pos);
            Failure::from("write to", &self.path, why)
        })
    }

    /// Makes sure that `len` more bytes can be copied in without needing anything more.
    pub(super) fn make_room(&mut self, len: usize) -> Result<(), Failure> {
        if self.mapped && self.pos + len as u64 > self.size {
            self.reserve(len)?;
        }
        let inside = self
            .window
            .as_ref()
            .is_some_and(|window| window.holds(self.pos, len));
        if self.mapped && !inside {
            self.window = None;
            let offset = self.pos - self.pos % map::ALIGN;
            match Window::map(&self.file, offset, WINDOW) {
                Ok(window) => {
                    window.populate(self.size);
                    self.window = Some(window);
                }
                Err(why) => return Err(Failure::from("map", &self.path, why)),
            }
        }
        Ok(())
    }

    /// Whether there is space again, after there was none.
    pub(super) fn find_room(&mut self) -> Result<(), Failure> {
        const SOME: [u8; 4096] = [0; 4096];
        if self.mapped {
            return self.make_room(SOME.len());
        }
        // Only writing tells; zeros at the end are no record, should we be killed here.
        self.write(&SOME)?;
        let fail = |why| Failure::from("cut", &self.path, why);
        self.file.set_len(self.pos).map_err(fail)
    }

    fn reserve(&mut self, len: usize) -> Result<(), Failure> {
        let needed = (self.pos + len as u64 - self.size).next_multiple_of(LEAST);
        let left = self.limit.saturating_sub(self.size).next_multiple_of(LEAST);
        let mut step = needed.max(STEP.min(left));
        loop {
            match map::reserve(&self.file, self.size, step) {
                Ok(()) => {
                    self.take_pages(self.size, step)?;
                    self.size += step;
                    // Once for the reservation, and once for each piece of zeros.
                    self.resized += 1 + step.div_ceil(PIECE as u64);
                    return Ok(());
                }
                Err(why) if self.size == 0 && cannot_reserve(&why) => {
                    self.mapped = false;
                    return Ok(());
                }
                Err(why) if step > needed && is_full(&why) => step = needed.max(step / 4),
                Err(why) => return Err(Failure::from("reserve space for", &self.path, why)),
            }
        }
    }

    /// Writes the zeros that are there already: the page cache then holds the space in large pieces, and
    /// taking the pages costs a sixth of what one fault for each does.
    fn take_pages(&self, from: u64, len: u64) -> Result<(), Failure> {
        static ZEROS: [u8; PIECE] = [0; PIECE];
        let fail = |why| Failure::from("write to", &self.path, why);
        let mut at = from;
        while at < from + len {
            let piece = usize::try_from(from + len - at)
                .unwrap_or(ZEROS.len())
                .min(ZEROS.len());
            self.file.write_all_at(&ZEROS[..piece], at).map_err(fail)?;
            at += piece as u64;
        }
        Ok(())
    }

    /// What someone else did to the file, if anything shows.
    pub(super) fn is_changed(&self) -> Option<Change> {
        let open = match self.file.metadata() {
            Ok(meta) => meta,
            Err(why) => return Some(Change::Content(format!("it cannot be examined: {why}"))),
        };
        match std::fs::symlink_metadata(&self.path) {
            Ok(named) if (named.dev(), named.ino()) == self.id => {}
            Ok(_) => return Some(Change::Name("another file has taken its name".to_owned())),
            Err(_) if open.nlink() == 0 => return Some(Change::Name("it was deleted".to_owned())),
            Err(_) => return Some(Change::Name("it was renamed".to_owned())),
        }
        (open.len() != self.size).then(|| {
            let (was, is) = (self.size, open.len());
            Change::Content(format!("its size was changed from {was} to {is} bytes"))
        })
    }

    /// Whether the file system has turned read-only under us, as many do after an error.
    pub(super) fn is_read_only(&self) -> bool {
        fstatvfs(&*self.file).is_ok_and(|fs| fs.flags().contains(FsFlags::ST_RDONLY))
    }

    /// How old the segment's first record is, when it is resumed.
    pub(super) fn set_age(&mut self, age: Duration) {
        self.born = map::monotonic().saturating_sub(age);
    }

    /// Unmaps it and cuts the file to its length.
    pub(super) fn cut(&mut self) -> io::Result<()> {
        self.window = None;
        self.file.set_len(self.pos)?;
        self.size = self.pos;
        Ok(())
    }
}

/// What happened to a segment that we did not do.
#[derive(Clone, Debug)]
pub(super) enum Change {
    /// It is no longer found under its name; its records are still behind the descriptor.
    Name(String),
    /// Its bytes or its size changed.
    Content(String),
}

/// Only file systems whose `fallocate` promises that a later copy into the page finds its block. Those that
/// copy on write (btrfs, ZFS), are somewhere else (NFS, FUSE), or are not known are written to instead.
fn keeps_reservations(file: &File) -> bool {
    let known = [EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC, TMPFS_MAGIC];
    fstatfs(file).is_ok_and(|fs| known.contains(&fs.filesystem_type()))
}

fn is_full(why: &io::Error) -> bool {
    matches!(why.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
}

fn cannot_reserve(why: &io::Error) -> bool {
    matches!(
        why.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL)
    )
}

/// Gives the file to group `adm` where it exists and we may, and sets its mode past the umask.
pub(super) fn readable_by_adm(file: &File, mode: u32) {
    // Looked up once: a directory service may be slow, and a request may be waiting.
    static ADM: OnceLock<Option<Gid>> = OnceLock::new();
    let adm = ADM.get_or_init(|| {
        Group::from_name("adm")
            .ok()
            .flatten()
            .map(|group| group.gid)
    });
    if adm.is_some() {
        // An unprivileged daemon that is not in the group keeps its own; the mode says the rest.
        let _ = fchown(file, None, *adm);
    }
    let _ = file.set_permissions(Permissions::from_mode(mode));
}
