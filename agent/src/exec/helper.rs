//! The helper of a daemon that systemd does not start programs for: a process forked before there is a secret,
//! a thread or a sandbox, which makes a process of its own for each run.
//!
//! It ends when the daemon does: its socket closes then. A run under way ends likewise, by its own.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::sys::prctl;
use nix::sys::signal::SigHandler;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair,
};
use nix::unistd::setsid;

use super::{Program, serve_one};
use crate::sys::process::{self, Forked};

/// The daemon's end of it.
pub struct Helper(OwnedFd);

impl Helper {
    /// Forks it. Only for a process with a single thread.
    pub fn start(allowed: &[Program]) -> io::Result<Self> {
        let (near, far) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )?;
        match process::fork()? {
            Forked::Parent => Ok(Self(near)),
            Forked::Child => {
                drop(near);
                serve(&far, allowed);
                // Not by the way that the daemon ends.
                process::exit_now(0);
            }
        }
    }

    /// A stream to a process that answers one question.
    pub fn connect(&self) -> io::Result<UnixStream> {
        let (near, far) = UnixStream::pair()?;
        let descriptors = [far.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&descriptors)];
        let byte = [IoSlice::new(&[0])];
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        sendmsg::<()>(self.0.as_raw_fd(), &byte, &rights, flags, None)?;
        Ok(near)
    }
}

/// Takes streams until the daemon is gone.
fn serve(control: &OwnedFd, allowed: &[Program]) {
    // What the terminal's user types is for the daemon, and so are descriptors that it was started with.
    let _ = setsid();
    let _ = prctl::set_name(c"keyhatch-exec");
    if process::keep_only(control)
        .and_then(|()| process::on_child_exit(SigHandler::SigIgn))
        .is_err()
    {
        return;
    }
    while let Some(stream) = next(control) {
        answer(stream, allowed);
    }
}

fn next(control: &OwnedFd) -> Option<UnixStream> {
    loop {
        match process::receive_stream(control) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            received => return received.ok().flatten(),
        }
    }
}

/// Makes a process for one run. Where there can be none, the stream closes unanswered.
fn answer(stream: UnixStream, allowed: &[Program]) {
    if let Ok(Forked::Child) = process::fork() {
        let done = process::on_child_exit(SigHandler::SigDfl)
            .and_then(|()| process::keep_only(&stream))
            .and_then(|()| serve_one(stream, allowed));
        process::exit_now(i32::from(done.is_err()));
    }
}
