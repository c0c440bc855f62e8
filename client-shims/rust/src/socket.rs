//! Where the agent listens, and whether what listens there may be trusted.

use std::env;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use keyhatch_protocol::DEFAULT_SOCKET;
use nix::fcntl::{OFlag, open};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, setsockopt, socket, sockopt,
};
use nix::sys::stat::{Mode, fstat};
use nix::sys::time::TimeVal;

use crate::Error;
use crate::exchange::Limit;
use crate::wire::Broken;

/// The uid that stands for every uid without a mapping in this user namespace (`user_namespaces(7)`).
const OVERFLOW_UID: u32 = 65_534;

/// The socket of an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    path: PathBuf,
    guessed: bool,
}

/// The folder of a socket, opened before connecting, so that its owner is a fact and not a second look-up.
#[derive(Clone, Copy)]
struct Folder {
    owner: u32,
    /// Others than the owner can make files in it.
    shared: bool,
}

impl Address {
    /// The socket at `path`.
    #[must_use]
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            guessed: false,
        }
    }

    /// `$KEYHATCH_SOCKET`, else the host's agent if there is one, else the caller's own dev agent.
    #[must_use]
    pub fn find() -> Self {
        if let Some(path) = env::var_os("KEYHATCH_SOCKET").filter(|path| !path.is_empty()) {
            return Self::at(path);
        }
        if Path::new(DEFAULT_SOCKET).exists() {
            return Self::at(DEFAULT_SOCKET);
        }
        let folder =
            match env::var_os("XDG_RUNTIME_DIR").filter(|path| Path::new(path).is_absolute()) {
                Some(runtime) => PathBuf::from(runtime).join("keyhatch"),
                None => format!("/tmp/keyhatch-{}", own_uid()).into(),
            };
        Self {
            path: folder.join("keyhatch.sock"),
            guessed: true,
        }
    }

    /// The socket's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Connects and checks who listens.
    pub(crate) fn connect(&self, limit: Limit) -> Result<UnixStream, Error> {
        if self.is_host_back() {
            return Self::at(DEFAULT_SOCKET).connect(limit);
        }
        let folder = self.folder()?;
        let stream = limit
            .left()
            .and_then(|left| self.dial(left))
            .map_err(|cause| self.failed(cause, limit))?;
        self.check(folder, &stream)?;
        Ok(stream)
    }

    /// A connection to the agent, once it is known who listens: for a program that speaks HTTP itself.
    #[cfg(feature = "tokio")]
    pub async fn connect_async(&self) -> Result<tokio::net::UnixStream, Error> {
        let host = Self::at(DEFAULT_SOCKET);
        let address = if self.is_host_back() { &host } else { self };
        address.connect_here().await
    }

    #[cfg(feature = "tokio")]
    async fn connect_here(&self) -> Result<tokio::net::UnixStream, Error> {
        let folder = self.folder()?;
        let stream = loop {
            match tokio::net::UnixStream::connect(&self.path).await {
                // A full backlog answers at once where a blocking connect would wait.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                other => break other.map_err(|cause| self.unreachable(cause))?,
            }
        };
        self.check(folder, &stream)?;
        Ok(stream)
    }

    /// The host's agent was away when this address was guessed, as it is for a moment of each restart.
    fn is_host_back(&self) -> bool {
        self.guessed && Path::new(DEFAULT_SOCKET).exists()
    }

    /// The send timeout bounds `connect` as well (`unix(7)`), which waits where the backlog is full.
    fn dial(&self, timeout: Duration) -> io::Result<UnixStream> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        let micros = i64::try_from(timeout.as_micros()).unwrap_or(i64::MAX);
        let timeout = TimeVal::new(micros / 1_000_000, micros % 1_000_000);
        setsockopt(&fd, sockopt::SendTimeout, &timeout)?;
        connect(fd.as_raw_fd(), &UnixAddr::new(&self.path)?)?;
        Ok(UnixStream::from(fd))
    }

    fn folder(&self) -> Result<Folder, Error> {
        let folder = match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let facts = open(folder, flags, Mode::empty())
            .and_then(|fd: OwnedFd| fstat(&fd))
            .map_err(|errno| self.unreachable(errno.into()))?;
        Ok(Folder {
            owner: facts.st_uid,
            shared: facts.st_mode & 0o022 != 0,
        })
    }

    fn check(&self, folder: Folder, stream: &impl AsFd) -> Result<(), Error> {
        let uid = getsockopt(&stream.as_fd(), sockopt::PeerCredentials)
            .map_err(|errno| self.unreachable(errno.into()))?
            .uid();
        if trusted(uid, own_uid(), folder, self.guessed) {
            return Ok(());
        }
        Err(Error::Refused {
            socket: self.clone(),
            uid,
        })
    }

    /// The error for a system call that failed.
    pub(crate) fn failed(&self, cause: io::Error, limit: Limit) -> Error {
        match cause.kind() {
            // A socket's own time limit shows as either (`socket(7)`, SO_RCVTIMEO).
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Error::TimedOut {
                socket: self.clone(),
                after: limit.total(),
            },
            _ => self.unreachable(cause),
        }
    }

    /// The error for an answer that could not be read.
    pub(crate) fn broken(&self, broken: Broken) -> Error {
        match broken {
            Broken::Closed => self.unreachable(io::ErrorKind::UnexpectedEof.into()),
            Broken::Malformed(what) => Error::Protocol(what),
        }
    }

    pub(crate) fn unreachable(&self, cause: io::Error) -> Error {
        Error::Unreachable {
            socket: self.clone(),
            cause,
        }
    }
}

/// Root, the caller itself, or who owns the folder of the socket.
///
/// The folder does not count for a path that was guessed: anyone can make `/tmp/keyhatch-UID` before its user
/// does. The overflow uid is many users in one, so it counts only as the owner of a folder where nobody else
/// can put a socket: that is the host's folder as a rootless container sees it.
fn trusted(server: u32, own: u32, folder: Folder, guessed: bool) -> bool {
    if server == OVERFLOW_UID {
        return folder.owner == server && !folder.shared && (!guessed || own == server);
    }
    server == 0 || server == own || (server == folder.owner && !guessed)
}

fn own_uid() -> u32 {
    nix::unistd::geteuid().as_raw()
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if self.guessed {
            write!(f, " (there is no {DEFAULT_SOCKET})")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: u32 = 1000;
    const AGENT: u32 = 990;
    const MALLORY: u32 = 1001;

    fn of(owner: u32, shared: bool) -> Folder {
        Folder { owner, shared }
    }

    #[test]
    fn root_oneself_and_the_folders_owner_are_trusted() {
        assert!(trusted(0, OWN, of(MALLORY, true), false));
        assert!(trusted(OWN, OWN, of(MALLORY, true), true));
        assert!(trusted(AGENT, OWN, of(AGENT, false), false));
        assert!(!trusted(MALLORY, OWN, of(AGENT, false), false));
        assert!(!trusted(MALLORY, OWN, of(0, true), false));
        assert!(!trusted(MALLORY, 0, of(0, true), false));
    }

    #[test]
    fn a_guessed_folder_that_someone_else_made_first_proves_nothing() {
        assert!(!trusted(MALLORY, OWN, of(MALLORY, false), true));
        assert!(!trusted(OVERFLOW_UID, OWN, of(OVERFLOW_UID, false), true));
    }

    #[test]
    fn the_overflow_uid_counts_only_where_no_one_else_can_listen() {
        assert!(trusted(OVERFLOW_UID, OWN, of(OVERFLOW_UID, false), false));
        assert!(!trusted(OVERFLOW_UID, OWN, of(OVERFLOW_UID, true), false));
        assert!(!trusted(OVERFLOW_UID, OVERFLOW_UID, of(0, true), false));
        assert!(trusted(
            OVERFLOW_UID,
            OVERFLOW_UID,
            of(OVERFLOW_UID, false),
            true
        ));
    }
}
