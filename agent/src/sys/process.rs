//! Making processes: the fork of a helper, and what a program changes in itself before it begins.
#![allow(unsafe_code)]

use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::libc;
use nix::sys::prctl;
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::unistd::{ForkResult, Gid, Uid, setgroups, setresgid, setresuid};

/// Which side of a fork this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forked {
    /// The process that forked.
    Parent,
    /// Its copy.
    Child,
}

/// Copies this process (`fork(2)`), which must have a single thread: a lock that another one held would stay
/// locked in the copy.
pub fn fork() -> io::Result<Forked> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("the process has several threads already"));
    }
    // SAFETY: there is no other thread, so the copy is whole and may do whatever this process may.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { .. } => Ok(Forked::Parent),
        ForkResult::Child => Ok(Forked::Child),
    }
}

/// Ends a copy without what the process that it is a copy of does at its end.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: ends the process, without running anything of it.
    unsafe { libc::_exit(code) }
}

/// Closes every descriptor but the standard ones and `kept`. For a copy that ends by [`exit_now`]: whoever owned
/// one of them in this process never comes to use or close it.
pub fn keep_only(kept: &impl AsRawFd) -> io::Result<()> {
    let kept = kept.as_raw_fd().cast_unsigned();
    for (first, last) in [(3, kept.saturating_sub(1)), ((kept + 1).max(3), u32::MAX)] {
        // SAFETY: closes descriptors, which this copy does not use any more.
        if first <= last && unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Sets what happens as a child ends: ignored, it leaves nothing to wait for.
pub fn on_child_exit(what: SigHandler) -> io::Result<()> {
    // SAFETY: no handler of ours is installed, only one of the kernel's two.
    unsafe { signal(Signal::SIGCHLD, what) }
        .map(drop)
        .map_err(io::Error::from)
}

/// A stream that another process sent (`SCM_RIGHTS`, `unix(7)`); `None` once nobody can send one any more.
pub fn receive_stream(socket: &OwnedFd) -> io::Result<Option<UnixStream>> {
    let mut byte = [0];
    let mut parts = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!(libc::c_int);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    if message.bytes == 0 {
        return Ok(None);
    }
    let descriptors = message.cmsgs()?.find_map(|part| match part {
        ControlMessageOwned::ScmRights(descriptors) => descriptors.first().copied(),
        _ => None,
    });
    let descriptor = descriptors.ok_or(io::ErrorKind::InvalidData)?;
    // SAFETY: the kernel made it for this process as the message was received, and there is room for one alone.
    let stream = unsafe { OwnedFd::from_raw_fd(descriptor) };
    Ok(Some(UnixStream::from(stream)))
}

/// Whom a program runs as.
pub struct Account {
    /// Its user.
    pub uid: Uid,
    /// Its group.
    pub gid: Gid,
    /// Its supplementary groups.
    pub groups: Vec<Gid>,
}

/// Has a program take on `account`, and end with the process that starts it.
pub fn before_exec(command: &mut Command, account: Option<Account>) {
    let change = move || {
        if let Some(Account { uid, gid, groups }) = &account {
            setgroups(groups)?;
            setresgid(*gid, *gid, *gid)?;
            setresuid(*uid, *uid, *uid)?;
        }
        // A change of the user forgets it, so it comes last.
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        Ok(())
    };
    // SAFETY: only system calls are made, of a copy of a process with a single thread; nothing is allocated.
    unsafe { command.pre_exec(change) };
}
