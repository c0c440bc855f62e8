//! The sockets that the daemon listens on: handed over by the service manager, or bound here, where what a
//! dead daemon left is replaced and a live one's never stolen.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use nix::sys::stat::{Mode, umask};
use tokio::net::UnixListener;

use super::error::{StartError, io_error};

/// The sockets' files that this process has made.
pub(super) type Bound = Vec<PathBuf>;

/// Listens at `path`: on the socket that the service manager has bound there, or on one of our own.
pub(super) fn listen(
    handed: Option<StdListener>,
    path: &Path,
    bound: &mut Bound,
) -> Result<UnixListener, StartError> {
    let Some(handed) = handed else {
        let listener = bind(path)?;
        bound.push(path.to_owned());
        return Ok(listener);
    };
    let at = handed.local_addr().map_err(io_error("look at", path))?;
    if at.as_pathname() != Some(path) {
        tracing::warn!(
            "the service manager's socket is {at:?}, the configuration says {}: who reads the configuration asks there",
            path.display()
        );
    }
    listen_on(handed).map_err(io_error("listen on", path))
}

/// Must be called inside the runtime.
pub(super) fn listen_on(listener: StdListener) -> io::Result<UnixListener> {
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

/// Binds a socket that anyone may connect to: the policy decides, not the file's mode.
fn bind(path: &Path) -> Result<UnixListener, StartError> {
    if let Some(folder) = path.parent() {
        make_folder(folder, 0o755)?;
    }
    remove_dead(path)?;
    let listener = bind_open(path).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => StartError::SocketInUse(path.to_owned()),
        _ => io_error("bind", path)(error),
    })?;
    // A default ACL of the folder's takes some of it away.
    fs::set_permissions(path, Permissions::from_mode(0o666)).map_err(io_error("chmod", path))?;
    nix::sys::socket::listen(&listener.as_fd(), nix::sys::socket::Backlog::MAXCONN)
        .map_err(|errno| io_error("listen on", path)(errno.into()))?;
    listen_on(listener).map_err(io_error("listen on", path))
}

/// The socket has mode 666 from its first moment: a bot that tries again during a restart is never told that
/// it may not connect. Files of other threads meanwhile state their own mode, as all of this daemon's do.
fn bind_open(path: &Path) -> io::Result<StdListener> {
    let usual = umask(Mode::from_bits_truncate(0o111));
    let bound = StdListener::bind(path);
    umask(usual);
    bound
}

pub(super) fn make_folder(path: &Path, mode: u32) -> Result<(), StartError> {
    match DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(io_error("make", path)(error))
        }
        _ => Ok(()),
    }
}

/// Removes a socket that a daemon left behind; one that is listened on is never stolen.
fn remove_dead(path: &Path) -> Result<(), StartError> {
    let Ok(meta) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    if !meta.file_type().is_socket() {
        return Err(StartError::SocketInUse(path.to_owned()));
    }
    if is_dead(path).map_err(|errno| io_error("connect to", path)(errno.into()))? {
        return fs::remove_file(path).map_err(io_error("remove", path));
    }
    Err(StartError::SocketInUse(path.to_owned()))
}

/// Whether nobody listens on a socket. Does not wait for a listener that is busy.
fn is_dead(path: &Path) -> nix::Result<bool> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let probe = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    Ok(connect(probe.as_raw_fd(), &UnixAddr::new(path)?) == Err(Errno::ECONNREFUSED))
}
