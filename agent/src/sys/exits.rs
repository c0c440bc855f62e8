//! One epoll set over the pidfds of all peers, so that an exit is learnt without asking at each request.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

/// The set. Its own descriptor is readable while an exit waits to be taken.
pub struct ExitSet(Epoll);

impl ExitSet {
    /// An empty set.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?))
    }

    /// Watches a pidfd; its exit is told once, as `token`. Closing the pidfd ends the watch.
    pub fn watch(&self, pidfd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLONESHOT;
        Ok(self.0.add(pidfd, EpollEvent::new(flags, token))?)
    }

    /// The tokens of processes that have exited since the last call, at most 64 of them.
    pub fn take(&self) -> io::Result<Vec<u64>> {
        let mut events = [EpollEvent::empty(); 64];
        let count = self.0.wait(&mut events, EpollTimeout::ZERO)?;
        Ok(events.iter().take(count).map(EpollEvent::data).collect())
    }
}

impl AsFd for ExitSet {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.0.as_fd()
    }
}

impl AsRawFd for ExitSet {
    fn as_raw_fd(&self) -> RawFd {
        self.0.0.as_raw_fd()
    }
}
