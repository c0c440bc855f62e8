//! What the process gives up at start: core dumps, being traced, being read through /proc.

use std::fs;

use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Makes core dumps impossible and the process unreadable to its own user (`PR_SET_DUMPABLE` 0 also gives
/// /proc/PID to root and refuses ptrace).
pub fn deny_dumps() -> nix::Result<()> {
    prctl::set_dumpable(false)?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0)
}

/// Raises the soft limit on open files to the hard one: a peer takes four descriptors.
pub fn raise_open_files() -> nix::Result<u64> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok(hard)
}

/// Whether this process has a capability in its effective set (bit numbers of `capabilities(7)`).
#[must_use]
pub fn has_capability(bit: u32) -> bool {
    let Ok(status) = fs::read_to_string("/proc/self/status") else {
        return false;
    };
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .is_some_and(|caps| caps >> bit & 1 == 1)
}

/// `CAP_IPC_LOCK`: no limit on locked memory.
pub const CAP_IPC_LOCK: u32 = 14;

/// `CAP_SYS_PTRACE`: read another user's /proc/PID/exe.
pub const CAP_SYS_PTRACE: u32 = 19;

/// How many bytes this process may lock; `None` means no limit.
#[must_use]
pub fn lockable() -> Option<u64> {
    if has_capability(CAP_IPC_LOCK) {
        return None;
    }
    match getrlimit(Resource::RLIMIT_MEMLOCK) {
        Ok((nix::libc::RLIM_INFINITY, _)) => None,
        Ok((soft, _)) => Some(soft),
        Err(_) => Some(0),
    }
}

/// Whether the user namespace of this process maps every uid, so that a foreign uid is told apart
/// (`user_namespaces(7)`; unmapped ones all arrive as the overflow uid).
#[must_use]
pub fn sees_all_uids() -> bool {
    fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| {
        let words: Vec<&str> = map.split_whitespace().collect();
        words == ["0", "0", "4294967295"]
    })
}

/// The uid under which the kernel shows users it cannot map (usually 65534).
#[must_use]
pub fn overflow_uid() -> u32 {
    read_number("/proc/sys/fs/overflowuid")
        .or_else(|| read_number("/proc/sys/kernel/overflowuid"))
        .unwrap_or(65_534)
}

fn read_number(path: &str) -> Option<u32> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}
