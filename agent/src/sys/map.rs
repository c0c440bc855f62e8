//! Shared mapping windows of a file, space reserved for them, and the clock that stamps what goes in.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::libc;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

/// The alignment of a window's offset: a multiple of every page size that Linux uses.
pub const ALIGN: u64 = 64 * 1024;

/// A part of a file, mapped shared and writable. Dropping it unmaps.
///
/// Bytes past the end of the file must not be written: the kernel answers with `SIGBUS`, which ends the
/// process. The caller reserves space first (see [`reserve`]).
#[derive(Debug)]
pub struct Window {
    start: NonNull<u8>,
    len: NonZeroUsize,
    offset: u64,
}

// SAFETY: the mapping belongs to this value alone and is not bound to a thread.
unsafe impl Send for Window {}

impl Window {
    /// Maps `len` bytes of `file` from `offset`, a multiple of [`ALIGN`]; it may reach past the file's end.
    pub fn map(file: &File, offset: u64, len: usize) -> io::Result<Self> {
        let len = NonZeroUsize::new(len).ok_or(io::ErrorKind::InvalidInput)?;
        let at = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let start = unsafe {
            mmap(
                None,
                len,
                protection,
                MapFlags::MAP_SHARED,
                file.as_fd(),
                at,
            )?
        };
        Ok(Self {
            start: start.cast(),
            len,
            offset,
        })
    }

    /// Takes the pages up to byte `end` of the file all at once, so that no record pays for one.
    pub fn populate(&self, end: u64) {
        const MADV_POPULATE_WRITE: libc::c_int = 23;
        let inside = end.saturating_sub(self.offset);
        let len = usize::try_from(inside)
            .unwrap_or(usize::MAX)
            .min(self.len.get())
            & !4095;
        // SAFETY: the range lies inside the mapping, and populating changes no byte. An error (Linux before
        // 5.14) means that pages are taken one by one as they are written.
        let _ = unsafe { libc::madvise(self.start.as_ptr().cast(), len, MADV_POPULATE_WRITE) };
    }

    /// Whether `len` bytes at `offset` of the file lie inside.
    #[must_use]
    pub fn holds(&self, offset: u64, len: usize) -> bool {
        let end = self.offset + self.len.get() as u64;
        offset >= self.offset && offset + len as u64 <= end
    }

    /// Copies `bytes` to `offset` of the file, the first byte last, so that whoever sees it sees the rest.
    ///
    /// Returns false, and copies nothing, where they do not lie inside.
    pub fn publish(&mut self, offset: u64, bytes: &[u8]) -> bool {
        let Some((first, rest)) = bytes.split_first() else {
            return true;
        };
        if !self.holds(offset, bytes.len()) {
            return false;
        }
        let Ok(at) = usize::try_from(offset - self.offset) else {
            return false;
        };
        // SAFETY: `holds` says that the bytes from `at` lie inside the mapping, which lives as long as
        // `self`. No Rust reference to them exists; other processes may see them change, as they should.
        unsafe {
            let target = self.start.as_ptr().add(at);
            ptr::copy_nonoverlapping(rest.as_ptr(), target.add(1), rest.len());
            AtomicU8::from_ptr(target).store(*first, Ordering::Release);
        }
        true
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: start and length are those of the mapping, and nobody else knows them.
        let _ = unsafe { munmap(self.start.cast(), self.len.get()) };
    }
}

/// Reserves `len` zero bytes of `file` from `offset` and grows it to their end: what is written there later
/// needs no more space (`fallocate(2)`).
pub fn reserve(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let offset = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    let len = libc::off_t::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?;
    loop {
        match fallocate(file, FallocateFlags::empty(), offset, len) {
            Err(nix::Error::EINTR) => {}
            done => return Ok(done?),
        }
    }
}

/// Asks for a page that can be written and run, as one who has broken in would: the sandbox refuses it.
pub fn map_executable() -> nix::Result<()> {
    let all = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE | ProtFlags::PROT_EXEC;
    let len = NonZeroUsize::MIN;
    // SAFETY: a new mapping, at an address of the kernel's choosing, which nobody uses.
    unsafe { mmap_anonymous(None, len, all, MapFlags::MAP_PRIVATE) }.map(drop)
}

/// Gives way to others on the core, with a tenth of their share (`setpriority(2)`, this thread): not less,
/// since deleting what is over a bound must not starve.
pub fn yield_to_others() {
    // SAFETY: plain numbers; 0 means the calling thread. Where it is refused the thread is merely less kind.
    let _ = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 10) };
}

/// Runs this thread only while no other wants the core (`SCHED_IDLE` of `sched(7)`). It must hold no lock that
/// others wait for.
pub fn run_when_idle() {
    // SAFETY: all zeros is a valid `sched_param` (it has plain numbers), and 0 means the calling thread. Where
    // it is refused the thread is merely less kind.
    let _ = unsafe {
        let param: libc::sched_param = std::mem::zeroed();
        libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const param)
    };
}

/// `CLOCK_MONOTONIC`: time since some point at boot, never set back.
#[must_use]
pub fn monotonic() -> Duration {
    clock(libc::CLOCK_MONOTONIC)
}

/// The same to within a tick of the kernel (1 to 10 ms), at a fifth of the price.
#[must_use]
pub fn monotonic_coarse() -> Duration {
    clock(libc::CLOCK_MONOTONIC_COARSE)
}

/// Whole seconds since 1970 likewise.
#[must_use]
pub fn wall_seconds_coarse() -> u64 {
    clock(libc::CLOCK_REALTIME_COARSE).as_secs()
}

fn clock(which: libc::clockid_t) -> Duration {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `now` is a valid place for the answer; these clocks always exist.
    unsafe { libc::clock_gettime(which, &raw mut now) };
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn what_is_published_is_in_the_file() {
        let path = std::env::temp_dir().join(format!("keyhatch-map-{}", std::process::id()));
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .unwrap();
        std::fs::remove_file(&path).unwrap();
        reserve(&file, 0, 2 * ALIGN).unwrap();
        let mut window = Window::map(&file, ALIGN, 4096).unwrap();
        assert!(window.publish(ALIGN + 10, b"hello"));
        assert!(!window.publish(ALIGN + 4092, b"hello"), "past the window");
        assert!(!window.publish(0, b"hello"), "before the window");
        let mut seen = [0; 7];
        file.read_exact_at(&mut seen, ALIGN + 9).unwrap();
        assert_eq!(&seen, b"\0hello\0");
    }
}
