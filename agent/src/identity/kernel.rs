//! Which of the facts that identity rests on this kernel tells, tried once at start.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use crate::sys::peer;

/// What this kernel has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// `SO_PEERPIDFD`, 6.5: without it a pid can be another's between accept and `pidfd_open`.
    pub peer_pidfd: bool,
    /// The cgroup id of `PIDFD_GET_INFO`, 6.13: without it /proc is read at each request.
    pub cgroup_id: bool,
}

impl Kernel {
    /// Asks the kernel about a socket pair of our own.
    #[must_use]
    pub fn probe() -> Self {
        let Ok((near, _far)) = UnixStream::pair() else {
            return Self {
                peer_pidfd: false,
                cgroup_id: false,
            };
        };
        match peer::pidfd(&near) {
            Ok(pidfd) => Self {
                peer_pidfd: true,
                cgroup_id: peer::cgroup_id(pidfd.as_fd()).is_ok(),
            },
            Err(_) => Self {
                peer_pidfd: false,
                cgroup_id: false,
            },
        }
    }

    /// The promises that are weaker here, for people.
    #[must_use]
    pub fn missing(self) -> Vec<String> {
        let mut missing = Vec::new();
        if !self.peer_pidfd {
            missing.push(
                "no SO_PEERPIDFD (Linux 6.5): peers are pinned by pidfd_open, with a small window for pid reuse"
                    .to_owned(),
            );
        }
        missing
    }
}
