//! Who is at the other end of a Unix socket, as the kernel tells it.
#![allow(unsafe_code)]

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt};

/// `SO_PEERCRED`: pid, uid and gid at the time of `connect`, mapped into our namespaces.
pub struct Credentials {
    /// Process id in our pid namespace; 0 where it has none there.
    pub pid: i32,
    /// User id in our user namespace, or the overflow uid.
    pub uid: u32,
    /// Group id likewise.
    pub gid: u32,
}

/// Reads `SO_PEERCRED` (`unix(7)`).
pub fn credentials(socket: &impl AsFd) -> io::Result<Credentials> {
    let cred = getsockopt(socket, sockopt::PeerCredentials)?;
    Ok(Credentials {
        pid: cred.pid(),
        uid: cred.uid(),
        gid: cred.gid(),
    })
}

/// A descriptor of the peer's process: `SO_PEERPIDFD` (6.5), which cannot name another process.
pub fn pidfd(socket: &impl AsFd) -> io::Result<OwnedFd> {
    Ok(getsockopt(socket, sockopt::PeerPidfd)?)
}

/// `pidfd_open(2)`: the fallback, with its small window in which the pid may be another's.
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes a pid and a flag word and returns a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = i32::try_from(fd)
        .ok()
        .filter(|fd| *fd >= 0)
        .ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the kernel just made this descriptor (close-on-exec) and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `SO_PEERGROUPS` (4.13): the peer's supplementary groups at the time of `connect`.
pub fn groups(socket: &impl AsFd) -> io::Result<Vec<u32>> {
    let mut groups: Vec<libc::gid_t> = vec![0; 32];
    loop {
        let mut len = libc::socklen_t::try_from(groups.len() * size_of::<libc::gid_t>())
            .map_err(|_| io::ErrorKind::InvalidData)?;
        // SAFETY: `groups` is valid for `len` bytes, and the kernel writes no more than that.
        let done = unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut len,
            )
        };
        let count = len as usize / size_of::<libc::gid_t>();
        if done == 0 {
            groups.truncate(count);
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::ERANGE) || count <= groups.len() {
            return Err(error);
        }
        groups.resize(count, 0);
    }
}

/// Whether the process of a pidfd has exited (`pidfd_open(2)`: readable then, zombie or not).
pub fn has_exited(pidfd: BorrowedFd<'_>) -> io::Result<bool> {
    let mut fds = [PollFd::new(pidfd, PollFlags::POLLIN)];
    Ok(poll(&mut fds, PollTimeout::ZERO)? > 0)
}

/// The id of the cgroup that the process is in, by `PIDFD_GET_INFO` (6.13).
///
/// # Errors
/// `ENOTTY` or `EINVAL` on an older kernel, `ESRCH` once the process is gone.
pub fn cgroup_id(pidfd: BorrowedFd<'_>) -> io::Result<u64> {
    const PIDFD_INFO_CGROUPID: u64 = 1 << 2;
    // SAFETY: all fields are plain integers.
    let mut info: libc::pidfd_info = unsafe { std::mem::zeroed() };
    info.mask = PIDFD_INFO_CGROUPID;
    // SAFETY: the request number carries the size of `info`, which is valid and ours.
    let done = unsafe { libc::ioctl(pidfd.as_raw_fd(), libc::PIDFD_GET_INFO, &raw mut info) };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    if info.mask & PIDFD_INFO_CGROUPID == 0 {
        return Err(io::ErrorKind::Unsupported.into());
    }
    Ok(info.cgroupid)
}

/// A descriptor that came with a message (`SCM_RIGHTS`, `unix(7)`), for tests.
#[cfg(test)]
#[must_use]
pub fn received(fd: std::os::fd::RawFd) -> OwnedFd {
    // SAFETY: the kernel made it for this process as the message was received, and it is taken once.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
