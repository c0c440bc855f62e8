//! System calls (`seccomp(2)`): those that the daemon, its runtime and the C library make, and no other.
//!
//! Calls that serve only who has broken in end the process, and the kernel's own log says so. Any other that is
//! not listed answers as on a kernel that does not have it, so that a newer C library takes its older way.
//! `clone3` is such a call: its flags are in memory, where no filter sees them, and threads are made without it.

use std::collections::BTreeMap;
use std::env::consts::ARCH;

use nix::libc::{self, c_long};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen as Width, SeccompCmpOp as Is,
    SeccompCondition, SeccompFilter, SeccompRule, TargetArch, apply_filter_all_threads,
};

/// The number of a call, and what its arguments must be like: one of the rules, or anything where there is none.
type Calls = BTreeMap<i64, Vec<SeccompRule>>;

/// Another program, another process's memory, the kernel itself, or another view of the host.
const NEVER: &[c_long] = &[
    libc::SYS_add_key,
    libc::SYS_bpf,
    libc::SYS_chroot,
    libc::SYS_delete_module,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_finit_module,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_init_module,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_kcmp,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_personality,
    libc::SYS_pidfd_getfd,
    libc::SYS_pivot_root,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_quotactl,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_setdomainname,
    libc::SYS_sethostname,
    libc::SYS_setns,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
];

/// Whatever their arguments are.
const ALWAYS: &[c_long] = &[
    // Time, identity, the process itself.
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_getcpu,
    libc::SYS_getcwd,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getgroups,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getpriority,
    libc::SYS_getrandom,
    libc::SYS_getresgid,
    libc::SYS_getresuid,
    libc::SYS_getrusage,
    libc::SYS_gettid,
    libc::SYS_gettimeofday,
    libc::SYS_getuid,
    libc::SYS_nanosleep,
    libc::SYS_sysinfo,
    libc::SYS_umask,
    libc::SYS_uname,
    libc::SYS_wait4,
    libc::SYS_waitid,
    // Threads and signals.
    libc::SYS_futex,
    libc::SYS_membarrier,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    // Memory, without making any of it executable.
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_memfd_create,
    libc::SYS_mlock,
    libc::SYS_mlock2,
    libc::SYS_mremap,
    libc::SYS_msync,
    libc::SYS_munlock,
    libc::SYS_munmap,
    // Files; which ones is Landlock's.
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_fcntl,
    libc::SYS_fdatasync,
    libc::SYS_fgetxattr,
    libc::SYS_flock,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getdents64,
    libc::SYS_getxattr,
    libc::SYS_lgetxattr,
    libc::SYS_lseek,
    libc::SYS_mkdirat,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_read,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_renameat2,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_unlinkat,
    libc::SYS_write,
    libc::SYS_writev,
    // Waiting for events.
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_rm_watch,
    libc::SYS_pidfd_open,
    libc::SYS_pipe2,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    // Sockets, once made; which ports is Landlock's.
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_listen,
    libc::SYS_recvfrom,
    libc::SYS_recvmmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
];

/// The ones before `openat(2)` and its kind, which the C library still makes where they exist.
#[cfg(target_arch = "x86_64")]
const OLD: &[c_long] = &[
    libc::SYS_access,
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_dup2,
    libc::SYS_epoll_create,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd,
    libc::SYS_getdents,
    libc::SYS_inotify_init,
    libc::SYS_lstat,
    libc::SYS_mkdir,
    libc::SYS_open,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_select,
    libc::SYS_stat,
    libc::SYS_time,
    libc::SYS_unlink,
];
/// `renameat`, which the C library makes for `rename(2)` there.
#[cfg(target_arch = "aarch64")]
const OLD: &[c_long] = &[38];

/// Installs both filters, for all threads.
pub(super) fn restrict(network: bool) -> Result<(), seccompiler::Error> {
    let allowed = Calls::from_iter(allowed(network)?);
    let unknown = SeccompAction::Errno(libc::ENOSYS.cast_unsigned());
    let never = NEVER.iter().map(|call| (*call, Vec::new())).collect();
    // The second must still be able to be installed, so what kills comes first.
    for (calls, others, these) in [
        (never, SeccompAction::Allow, SeccompAction::KillProcess),
        (allowed, unknown, SeccompAction::Allow),
    ] {
        let filter = SeccompFilter::new(calls, others, these, TargetArch::try_from(ARCH)?)?;
        apply_filter_all_threads(&BpfProgram::try_from(filter)?)?;
    }
    Ok(())
}

fn allowed(network: bool) -> Result<Vec<(i64, Vec<SeccompRule>)>, BackendError> {
    let always = ALWAYS.iter().chain(OLD);
    let mut calls: Vec<_> = always.map(|call| (*call, Vec::new())).collect();
    let not_executable = SeccompRule::new(vec![without(2, libc::PROT_EXEC)?])?;
    let not_writable = SeccompRule::new(vec![without(2, libc::PROT_WRITE)?])?;
    let this_process = std::process::id().cast_signed();
    calls.extend([
        // A thread, and no process.
        (
            libc::SYS_clone,
            vec![SeccompRule::new(vec![with(0, libc::CLONE_THREAD)?])?],
        ),
        // Libraries of the name service are loaded, but nothing that was written is run.
        (libc::SYS_mmap, vec![not_executable.clone(), not_writable]),
        (libc::SYS_mprotect, vec![not_executable]),
        (libc::SYS_ioctl, ioctls()?),
        (
            libc::SYS_prctl,
            vec![one(0, libc::PR_SET_NAME)?, one(0, libc::PR_SET_VMA)?],
        ),
        // Limits are looked at and not set.
        (
            libc::SYS_prlimit64,
            vec![SeccompRule::new(vec![SeccompCondition::new(
                2,
                Width::Qword,
                Is::Eq,
                0,
            )?])?],
        ),
        // Of the thread that asks.
        (libc::SYS_setpriority, vec![one(1, 0)?]),
        (libc::SYS_sched_setscheduler, vec![one(0, 0)?]),
        (libc::SYS_tgkill, vec![one(0, this_process)?]),
        (libc::SYS_socketpair, vec![one(0, libc::AF_UNIX)?]),
        (libc::SYS_socket, sockets(network)?),
    ]);
    Ok(calls)
}

fn ioctls() -> Result<Vec<SeccompRule>, BackendError> {
    // Requests are numbers of 32 bits, whatever type the C library gives them.
    const TCGETS2: u64 = 0x802c_542a;
    [
        libc::FIONBIO,
        libc::FIONREAD,
        libc::TCGETS,
        TCGETS2,
        libc::TIOCGWINSZ,
        libc::PIDFD_GET_INFO,
    ]
    .into_iter()
    .map(|request| {
        SeccompRule::new(vec![SeccompCondition::new(
            1,
            Width::Dword,
            Is::Eq,
            request,
        )?])
    })
    .collect()
}

/// Unix sockets; with `network` also TCP, UDP, and the questions that the C library asks of its own addresses.
fn sockets(network: bool) -> Result<Vec<SeccompRule>, BackendError> {
    let mut rules = vec![one(0, libc::AF_UNIX)?];
    if !network {
        return Ok(rules);
    }
    rules.push(SeccompRule::new(vec![
        is(0, libc::AF_NETLINK)?,
        is(2, libc::NETLINK_ROUTE)?,
    ])?);
    for family in [libc::AF_INET, libc::AF_INET6] {
        for (kind, protocol) in [
            (libc::SOCK_STREAM, libc::IPPROTO_IP),
            (libc::SOCK_STREAM, libc::IPPROTO_TCP),
            (libc::SOCK_DGRAM, libc::IPPROTO_IP),
            (libc::SOCK_DGRAM, libc::IPPROTO_UDP),
        ] {
            // The kind's word has flags, too.
            let kind = SeccompCondition::new(1, Width::Dword, Is::MaskedEq(0xf), bits(kind))?;
            let rule = vec![is(0, family)?, kind, is(2, protocol)?];
            rules.push(SeccompRule::new(rule)?);
        }
    }
    Ok(rules)
}

fn one(argument: u8, value: i32) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(vec![is(argument, value)?])
}

fn is(argument: u8, value: i32) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(argument, Width::Dword, Is::Eq, bits(value))
}

fn with(argument: u8, flag: i32) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(argument, Width::Dword, Is::MaskedEq(bits(flag)), bits(flag))
}

fn without(argument: u8, flag: i32) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(argument, Width::Dword, Is::MaskedEq(bits(flag)), 0)
}

fn bits(value: i32) -> u64 {
    u64::from(value.cast_unsigned())
}
