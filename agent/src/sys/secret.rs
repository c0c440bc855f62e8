//! Memory that nothing else can read: a `memfd_secret` mapping between guard pages.
//!
//! The pages of `memfd_secret(2)` (Linux 5.14; on by default since 6.5) are taken out of the kernel's own
//! map, so neither /proc/PID/mem, ptrace nor a core dump reads them. They are locked and count against
//! `RLIMIT_MEMLOCK`. Where the call is missing, plain pages are locked and kept out of dumps instead.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{FromRawFd, OwnedFd};
use std::ptr::NonNull;

use nix::libc;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, mmap_anonymous, munmap};
use nix::unistd::{SysconfVar, ftruncate, sysconf};

/// How well the pages are protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// `memfd_secret`: no one but this process can read them.
    Secret,
    /// `mlock` and `MADV_DONTDUMP`: root can still read them.
    Locked,
}

/// A mapping of secret memory. Its owner hands out ranges; see `sys::arena`.
pub struct SecretMemory {
    reserved: NonNull<c_void>,
    start: NonNull<u8>,
    len: usize,
    protection: Protection,
}

// SAFETY: the mapping is plain memory owned by this value; who reads and writes which range is ruled by
// the arena that owns it.
unsafe impl Send for SecretMemory {}
// SAFETY: as above.
unsafe impl Sync for SecretMemory {}

impl SecretMemory {
    /// Maps `len` bytes (rounded up to whole pages) with a guard page on each side.
    pub fn map(len: usize) -> io::Result<Self> {
        let page = page_size();
        let len = len.next_multiple_of(page);
        let total = NonZeroUsize::new(len + 2 * page).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: a new mapping at an address of the kernel's choosing touches no memory of ours.
        let reserved = unsafe {
            mmap_anonymous(
                None,
                total,
                ProtFlags::PROT_NONE,
                MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE,
            )
        }?;
        // SAFETY: one page into a reservation of `len + 2 * page` bytes.
        let inner = unsafe { reserved.cast::<u8>().add(page) };
        match map_inner(inner, len) {
            Ok(protection) => Ok(Self {
                reserved,
                start: inner,
                len,
                protection,
            }),
            Err(error) => {
                // SAFETY: the whole reservation is ours and nothing points into it yet.
                let _ = unsafe { munmap(reserved, total.get()) };
                Err(error)
            }
        }
    }

    /// How well the pages are protected.
    #[must_use]
    pub fn protection(&self) -> Protection {
        self.protection
    }

    /// The number of usable bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no usable bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes of a range.
    ///
    /// # Panics
    /// Where the range is not inside the mapping.
    ///
    /// # Safety
    /// Nobody may write the range while the slice lives.
    #[must_use]
    pub unsafe fn bytes(&self, offset: usize, len: usize) -> &[u8] {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.len));
        // SAFETY: the range is inside the mapping (checked above), initialised (the kernel zeroes new
        // pages), and the caller promises that nobody writes it.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().add(offset), len) }
    }

    /// The bytes of a range, to be written.
    ///
    /// # Panics
    /// Where the range is not inside the mapping.
    ///
    /// # Safety
    /// Nobody else may read or write the range while the slice lives.
    #[must_use]
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn bytes_mut(&self, offset: usize, len: usize) -> &mut [u8] {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.len));
        // SAFETY: as in `bytes`; the caller promises that the range is its own.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().add(offset), len) }
    }

    /// Overwrites a range with zeros, in a way that the compiler keeps.
    ///
    /// # Panics
    /// Where the range is not inside the mapping.
    ///
    /// # Safety
    /// Nobody may read the range at the same time and rely on what it says.
    pub unsafe fn wipe(&self, offset: usize, len: usize) {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.len));
        // SAFETY: the range is inside the mapping, and the caller promises that nobody relies on it.
        unsafe { libc::explicit_bzero(self.start.as_ptr().add(offset).cast(), len) }
    }
}

impl Drop for SecretMemory {
    fn drop(&mut self) {
        // Each range was wiped as it was given back; writing them all again would touch every page.
        // SAFETY: the owner is gone, so no range is in use; the whole reservation is unmapped once.
        let _ = unsafe { munmap(self.reserved, self.len + 2 * page_size()) };
    }
}

/// Puts pages over the middle of the reservation.
fn map_inner(at: NonNull<u8>, len: usize) -> io::Result<Protection> {
    let size = NonZeroUsize::new(len).ok_or(io::ErrorKind::InvalidInput)?;
    let address = NonZeroUsize::new(at.as_ptr().addr());
    let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    let protection = if let Ok(fd) = memfd_secret() {
        ftruncate(
            &fd,
            i64::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?,
        )?;
        // SAFETY: replaces pages of our own reservation that nothing points into. The descriptor is
        // closed on return: with it open, root could `pidfd_getfd` and map it.
        unsafe {
            mmap(
                address,
                size,
                access,
                MapFlags::MAP_SHARED | MapFlags::MAP_FIXED,
                &fd,
                0,
            )
        }?;
        Protection::Secret
    } else {
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_FIXED;
        // SAFETY: as above, with anonymous pages.
        unsafe { mmap_anonymous(address, size, access, flags) }?;
        lock_as_written(at, len)?;
        // SAFETY: the range was mapped above.
        unsafe { madvise(at.cast(), len, MmapAdvise::MADV_DONTDUMP) }?;
        Protection::Locked
    };
    // SAFETY: the range is mapped; a forked child must not inherit it.
    unsafe { madvise(at.cast(), len, MmapAdvise::MADV_DONTFORK) }?;
    Ok(protection)
}

/// Locks each page as it is first written (`mlock2(2)`, Linux 4.4): a plain `mlock` would take all of a large
/// arena from the host at once.
fn lock_as_written(at: NonNull<u8>, len: usize) -> io::Result<()> {
    // SAFETY: only says how the kernel keeps pages that this process has mapped.
    match unsafe { libc::mlock2(at.as_ptr().cast(), len, libc::MLOCK_ONFAULT) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn memfd_secret() -> io::Result<OwnedFd> {
    // SAFETY: the call takes one flag word and returns a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC) };
    let fd = i32::try_from(fd)
        .ok()
        .filter(|fd| *fd >= 0)
        .ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the kernel just made this descriptor and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn page_size() -> usize {
    sysconf(SysconfVar::PAGE_SIZE)
        .ok()
        .flatten()
        .and_then(|n| usize::try_from(n).ok())
        .unwrap_or(4096)
}
