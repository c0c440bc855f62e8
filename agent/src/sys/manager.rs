//! What the service manager hands over at start, and what it wants to hear: `sd_listen_fds(3)`,
//! `sd_watchdog_enabled(3)`, `sd_notify(3)`.
#![allow(unsafe_code)]

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, sendmsg, socket,
};

/// The first descriptor that is handed over (`SD_LISTEN_FDS_START`).
const FIRST: RawFd = 3;

/// More than any unit hands over; a bound on what is looked at.
const MOST: usize = 1024;

const VARIABLES: [&str; 6] = [
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
];

/// Why nothing can be taken over.
#[derive(Debug, thiserror::Error)]
pub enum ManagerError {
    /// A variable of the manager says nothing that makes sense.
    #[error("{0}={1:?}: not what a service manager sets; start keyhatchd without it")]
    Variable(&'static str, OsString),
    /// A descriptor that was announced is not there.
    #[error("descriptor {0}, announced by LISTEN_FDS: {1}")]
    Descriptor(RawFd, nix::Error),
    /// The environment can only be changed while nobody else reads it.
    #[error("the service manager's variables can only be taken before any thread is started")]
    Threads,
}

/// The service manager, if there is one.
#[derive(Default)]
pub struct Manager {
    notify: Option<SocketAddr>,
    watchdog: Option<Duration>,
}

/// A descriptor that was handed over, by the name that its unit gives it.
pub type Handed = (String, OwnedFd);

impl Manager {
    /// Takes over what the manager handed to this process, once, and forgets the variables: no child shall
    /// think that they are meant for it.
    pub fn take() -> Result<(Self, Vec<Handed>), ManagerError> {
        let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
        if VARIABLES.iter().all(|name| env::var_os(name).is_none()) {
            return Ok((Self::default(), Vec::new()));
        }
        let [pid, count, names, notify, usec, watched] = VARIABLES.map(set);
        if fs::read_dir("/proc/self/task").map_or(0, Iterator::count) != 1 {
            return Err(ManagerError::Threads);
        }
        for name in VARIABLES {
            // SAFETY: this is the only thread, so nobody reads the environment meanwhile.
            unsafe { env::remove_var(name) };
        }
        let manager = Self {
            notify: notify.map(address).transpose()?,
            watchdog: usec
                .filter(|_| is_ours(watched.as_deref(), true))
                .map(microseconds)
                .transpose()?,
        };
        let count = match count.filter(|_| is_ours(pid.as_deref(), false)) {
            Some(count) => number(&count)
                .filter(|count| *count <= MOST)
                .ok_or(ManagerError::Variable("LISTEN_FDS", count))?,
            None => 0,
        };
        Ok((manager, descriptors(count, names)?))
    }

    /// How often the manager wants to hear that the process lives, where it does.
    #[must_use]
    pub fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// Whether anybody listens.
    #[must_use]
    pub fn listens(&self) -> bool {
        self.notify.is_some()
    }

    /// Has the manager hold a connection for as long as its other end does, so that this process's death does not
    /// end it; the next process of the service is handed it by that name (`FDSTORE=1`).
    pub fn hold(&self, name: &str, connection: BorrowedFd<'_>) {
        let Some(address) = &self.notify else { return };
        if let Err(error) = send_descriptor(address, name, connection) {
            tracing::warn!(%error, "the service manager could not be given a connection to hold");
        }
    }

    /// Whether it listens in the abstract namespace, to which a sandbox closes the way.
    #[must_use]
    pub fn is_abstract(&self) -> bool {
        let address = self.notify.as_ref();
        address.is_some_and(|address| address.as_abstract_name().is_some())
    }

    /// Tells the manager, one `KEY=value` a line. Never waits: a manager that hangs must not stop the requests.
    pub fn tell(&self, state: &str) {
        let Some(address) = &self.notify else { return };
        let sent = UnixDatagram::unbound().and_then(|socket| {
            socket.set_nonblocking(true)?;
            socket.send_to_addr(state.as_bytes(), address)
        });
        if let Err(error) = sent {
            tracing::warn!(%error, "the service manager could not be told");
        }
    }
}

fn send_descriptor(
    address: &SocketAddr,
    name: &str,
    descriptor: BorrowedFd<'_>,
) -> nix::Result<()> {
    let to = match (address.as_pathname(), address.as_abstract_name()) {
        (Some(path), _) => UnixAddr::new(path)?,
        (None, name) => UnixAddr::new_abstract(name.unwrap_or_default())?,
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Datagram, flags, None)?;
    let state = format!("FDSTORE=1\nFDNAME={name}");
    let rights = [descriptor.as_raw_fd()];
    let message = ControlMessage::ScmRights(&rights);
    let text = [IoSlice::new(state.as_bytes())];
    sendmsg(
        socket.as_raw_fd(),
        &text,
        &[message],
        MsgFlags::MSG_NOSIGNAL,
        Some(&to),
    )
    .map(drop)
}

/// Whether the variable with a pid means this process; `absent` is the answer where there is none.
fn is_ours(pid: Option<&OsStr>, absent: bool) -> bool {
    pid.map_or(absent, |pid| number(pid) == Some(std::process::id()))
}

fn number<N: std::str::FromStr>(text: &OsStr) -> Option<N> {
    text.to_str()?.parse().ok()
}

fn microseconds(text: OsString) -> Result<Duration, ManagerError> {
    match number(&text) {
        Some(usec) if usec > 0 => Ok(Duration::from_micros(usec)),
        _ => Err(ManagerError::Variable("WATCHDOG_USEC", text)),
    }
}

/// A path, or with `@` in front a name in the abstract namespace.
fn address(text: OsString) -> Result<SocketAddr, ManagerError> {
    let found = match text.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name).ok(),
        [b'/', ..] => SocketAddr::from_pathname(&text).ok(),
        _ => None,
    };
    found.ok_or(ManagerError::Variable("NOTIFY_SOCKET", text))
}

/// The descriptors that were handed over, no longer inherited by any child.
fn descriptors(count: usize, names: Option<OsString>) -> Result<Vec<Handed>, ManagerError> {
    if count == 0 {
        return Ok(Vec::new());
    }
    let given = names.unwrap_or_default();
    let names: Vec<String> = match given.to_str() {
        Some("") => vec!["unknown".to_owned(); count],
        Some(names) => names.split(':').map(str::to_owned).collect(),
        None => Vec::new(),
    };
    if names.len() != count {
        return Err(ManagerError::Variable("LISTEN_FDNAMES", given));
    }
    let mut handed = Vec::new();
    for (number, name) in (FIRST..).zip(names) {
        // SAFETY: borrowed for this call alone, which fails where the number is no open descriptor.
        let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
        fcntl(borrowed, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))
            .map_err(|errno| ManagerError::Descriptor(number, errno))?;
        // SAFETY: it is open, and ours alone: the manager left it to this process by its pid, nothing here has
        // opened it, and the variables that announce it are gone, so it is taken once.
        handed.push((name, unsafe { OwnedFd::from_raw_fd(number) }));
    }
    Ok(handed)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn pids_mean_this_process_or_another() {
        let own = OsString::from(std::process::id().to_string());
        assert!(is_ours(Some(&own), false));
        assert!(!is_ours(Some(OsStr::new("1")), true));
        assert!(!is_ours(Some(OsStr::new("x")), true));
        assert!(is_ours(None, true) && !is_ours(None, false));
    }

    #[test]
    fn addresses_are_paths_or_abstract_names() {
        let path = address("/run/systemd/notify".into()).unwrap();
        assert_eq!(
            path.as_pathname().unwrap().to_str(),
            Some("/run/systemd/notify")
        );
        let name = address("@manager".into()).unwrap();
        assert_eq!(name.as_abstract_name(), Some(&b"manager"[..]));
        assert!(address("vsock:2:1".into()).is_err());
    }
}
