//! The process that connected, pinned by a pidfd.
//!
//! /proc/PID is opened as a folder between two checks that the pidfd's process lives, and kept: whoever
//! has the pid later, that folder only ever speaks of this process. The identity stays that of who
//! connected, whoever holds the socket now.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::{OFlag, openat, readlinkat};
use nix::sys::stat::Mode;

use super::image::Image;
use super::invocation::Run;
use super::kernel::Kernel;
use super::{cgroup, invocation};
use crate::policy::Facts;
use crate::sys::{harden, peer as kernel_peer};

/// A peer, as the kernel told at accept. Nothing else makes one.
pub struct Peer {
    pid: i32,
    uid: Option<u32>,
    gid: Option<u32>,
    groups: Vec<u32>,
    process: Option<Process>,
    gone: AtomicBool,
}

/// What is known of a process that was alive at accept.
struct Process {
    pidfd: OwnedFd,
    proc_dir: OwnedFd,
    exe: Option<OsString>,
    image: Option<Image>,
    cgroup: Option<String>,
    cgroup_id: Option<u64>,
    invocation_id: Option<String>,
}

/// How a peer stands now, compared with the moment of accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Alive and the same in what was asked about.
    Same,
    /// The process has exited.
    Gone,
    /// It runs another program, or moved to another cgroup.
    Changed,
}

impl Peer {
    /// Identifies the process at the other end of a connected Unix socket.
    ///
    /// A process that has exited already is identified as far as the kernel still can, and stands as gone.
    pub fn identify(socket: &impl AsFd, kernel: Kernel) -> io::Result<Self> {
        let who = kernel_peer::credentials(socket)?;
        let overflow = overflow_uid();
        let open = || {
            if kernel.peer_pidfd {
                kernel_peer::pidfd(socket)
            } else {
                kernel_peer::pidfd_open(who.pid)
            }
        };
        let process = pin(open, who.pid, kernel);
        Ok(Self {
            pid: who.pid,
            uid: (who.uid != overflow).then_some(who.uid),
            gid: (who.gid != overflow).then_some(who.gid),
            groups: kernel_peer::groups(socket)?
                .into_iter()
                .filter(|gid| *gid != overflow)
                .collect(),
            gone: AtomicBool::new(process.is_none()),
            process,
        })
    }

    /// A process by its pid, for a look from outside the daemon. Never a peer of a socket.
    pub fn of_process(pid: i32) -> io::Result<Self> {
        let gone = || io::Error::from_raw_os_error(nix::libc::ESRCH);
        let process =
            pin(|| kernel_peer::pidfd_open(pid), pid, Kernel::probe()).ok_or_else(gone)?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let numbers = |key: &str| -> Vec<u32> {
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix(key))
                .unwrap_or_default();
            line.split_whitespace()
                .filter_map(|word| word.parse().ok())
                .collect()
        };
        // Real, effective, saved and file-system ids: the effective one is what a socket shows.
        Ok(Self {
            pid,
            uid: numbers("Uid:").get(1).copied(),
            gid: numbers("Gid:").get(1).copied(),
            groups: numbers("Groups:"),
            gone: AtomicBool::new(false),
            process: Some(process),
        })
    }

    /// What the kernel says of it, in the policy's words; the program is judged by [`super::Images`].
    #[must_use]
    pub fn facts(&self) -> Facts {
        Facts {
            uid: self.uid,
            gid: self.gid,
            groups: self.groups.clone(),
            unit: self.unit().map(str::to_owned),
            user_unit: self.user_unit().map(str::to_owned),
            cgroup: self.cgroup().map(str::to_owned),
            exe: Vec::new(),
            exe_sha256: None,
        }
    }

    /// Whether it stands as it did; `cgroup` and `image` say what to look at again.
    #[must_use]
    pub fn standing(&self, cgroup: bool, image: bool) -> Standing {
        let Some(process) = self.process.as_ref().filter(|_| !self.is_gone()) else {
            return Standing::Gone;
        };
        if cgroup && !process.same_cgroup() || image && !process.same_image() {
            return match kernel_peer::has_exited(process.pidfd.as_fd()) {
                Ok(false) => Standing::Changed,
                _ => Standing::Gone,
            };
        }
        Standing::Same
    }

    /// Asks the kernel whether the process has exited: for a peer whose exit nobody is told of.
    #[must_use]
    pub fn has_exited(&self) -> bool {
        self.pidfd()
            .is_none_or(|pidfd| !matches!(kernel_peer::has_exited(pidfd), Ok(false)))
    }

    /// Notes that the process has exited.
    pub fn set_gone(&self) {
        self.gone.store(true, Ordering::Relaxed);
    }

    /// Whether the process has exited.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    /// The pidfd, to be told of the exit.
    #[must_use]
    pub fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.process.as_ref().map(|process| process.pidfd.as_fd())
    }

    /// The open /proc/PID.
    #[must_use]
    pub fn proc_dir(&self) -> Option<&OwnedFd> {
        self.process.as_ref().map(|process| &process.proc_dir)
    }

    /// Process id in the agent's pid namespace.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// User id; `None` where the agent's user namespace has no name for it.
    #[must_use]
    pub fn uid(&self) -> Option<u32> {
        self.uid
    }

    /// Group id likewise.
    #[must_use]
    pub fn gid(&self) -> Option<u32> {
        self.gid
    }

    /// Supplementary groups.
    #[must_use]
    pub fn groups(&self) -> &[u32] {
        &self.groups
    }

    /// Who logged in, as the kernel's audit knows it; `None` where nobody did or the kernel does not tell.
    #[must_use]
    pub fn login_uid(&self) -> Option<u32> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let file = openat(self.proc_dir()?, "loginuid", flags, Mode::empty()).ok()?;
        let mut text = String::new();
        File::from(file).take(32).read_to_string(&mut text).ok()?;
        text.trim().parse().ok().filter(|uid| *uid != u32::MAX)
    }

    /// The path of the running image, for people; `None` where the agent may not see it.
    #[must_use]
    pub fn exe(&self) -> Option<&OsString> {
        self.process.as_ref()?.exe.as_ref()
    }

    /// The running image.
    #[must_use]
    pub fn image(&self) -> Option<&Image> {
        self.process.as_ref()?.image.as_ref()
    }

    /// The path in the unified cgroup hierarchy.
    #[must_use]
    pub fn cgroup(&self) -> Option<&str> {
        self.process.as_ref()?.cgroup.as_deref()
    }

    /// The system manager's unit.
    #[must_use]
    pub fn unit(&self) -> Option<&str> {
        cgroup::unit(self.cgroup()?)
    }

    /// The run of the system manager's unit, at accept.
    #[must_use]
    pub fn invocation_id(&self) -> Option<&str> {
        self.process.as_ref()?.invocation_id.as_deref()
    }

    /// The system service that the process has outlived: it does not run any more, or in another run than at accept.
    #[must_use]
    pub fn outlived(&self) -> Option<&str> {
        let unit = self.unit().filter(|unit| unit.ends_with(".service"))?;
        let is_outlived = match (invocation::run(unit), self.invocation_id()) {
            (Run::Is(now), Some(then)) => now != then,
            // It may have moved to another control group meanwhile.
            (Run::Not, _) => self.process.as_ref()?.same_cgroup(),
            _ => false,
        };
        is_outlived.then_some(unit)
    }

    /// The user manager's unit.
    #[must_use]
    pub fn user_unit(&self) -> Option<&str> {
        cgroup::user_unit(self.cgroup()?)
    }
}

impl Process {
    /// The run of its unit. As long as a process of a unit lives the unit has not begun another run, unless it
    /// leaves processes behind (`KillMode=`), so what was read while this one lived is its own.
    fn find_invocation(&self) -> Option<String> {
        let Run::Is(id) = invocation::run(cgroup::unit(self.cgroup.as_deref()?)?) else {
            return None;
        };
        let alive = matches!(kernel_peer::has_exited(self.pidfd.as_fd()), Ok(false));
        (self.same_cgroup() && alive).then_some(id)
    }

    fn same_cgroup(&self) -> bool {
        match self.cgroup_id {
            Some(id) => kernel_peer::cgroup_id(self.pidfd.as_fd()).is_ok_and(|now| now == id),
            None => read_cgroup(&self.proc_dir).ok() == self.cgroup,
        }
    }

    fn same_image(&self) -> bool {
        match (&self.image, Image::running(&self.proc_dir)) {
            (Some(then), Ok(now)) => then.same_file(&now),
            _ => false,
        }
    }
}

/// Pins the process and reads what may be read; `None` once it has exited.
fn pin(open: impl Fn() -> io::Result<OwnedFd>, pid: i32, kernel: Kernel) -> Option<Process> {
    if pid <= 0 {
        // A process outside our pid namespace has no /proc entry here and cannot be told apart.
        return None;
    }
    let pidfd = open().ok()?;
    let alive = || matches!(kernel_peer::has_exited(pidfd.as_fd()), Ok(false));
    if !alive() {
        return None;
    }
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let proc_dir = nix::fcntl::open(format!("/proc/{pid}").as_str(), flags, Mode::empty()).ok()?;
    if !alive() {
        return None;
    }
    // The id first: if the process moves between the two reads, the next check sees another id.
    let cgroup_id = if kernel.cgroup_id {
        kernel_peer::cgroup_id(pidfd.as_fd()).ok()
    } else {
        None
    };
    let cgroup = read_cgroup(&proc_dir).ok();
    let image = Image::running(&proc_dir).ok();
    let exe = readlinkat(&proc_dir, "exe").ok();
    let mut process = Process {
        pidfd,
        proc_dir,
        exe,
        image,
        cgroup,
        cgroup_id,
        invocation_id: None,
    };
    process.invocation_id = process.find_invocation();
    Some(process)
}

fn read_cgroup(proc_dir: &OwnedFd) -> io::Result<String> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let file = File::from(openat(proc_dir, "cgroup", flags, Mode::empty())?);
    let mut text = String::with_capacity(512);
    file.take(64 * 1024).read_to_string(&mut text)?;
    cgroup::unified(&text)
        .map(str::to_owned)
        .ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// The overflow uid, read once.
fn overflow_uid() -> u32 {
    static OVERFLOW: std::sync::OnceLock<u32> = std::sync::OnceLock::new();
    *OVERFLOW.get_or_init(harden::overflow_uid)
}
