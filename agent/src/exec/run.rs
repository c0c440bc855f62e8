//! One run of one program, with its bounds: time, output, and nothing that outlives it.
//!
//! For a process that does nothing else: it becomes the one to whom orphans fall, and ends all its children.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, User, geteuid, getgrouplist};
use zeroize::Zeroizing;

use super::{ExecError, MOST_OUTPUT, Program};
use crate::files::{self, Holds, Trust};
use crate::sys::{peer, process};

/// All that a program finds in its environment.
const ENVIRONMENT: [(&str, &str); 2] = [
    (
        "PATH",
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    ),
    ("LANG", "C.UTF-8"),
];

/// How long what a program left behind is looked for, to be ended.
const CLEARING: Duration = Duration::from_secs(2);

/// Runs `program` with `input`. Ends it where `client`, who waits for its answer, is gone.
pub fn run(
    program: &Program,
    input: &[u8],
    client: BorrowedFd<'_>,
) -> Result<Zeroizing<Vec<u8>>, ExecError> {
    let mut command = command(program)?;
    prctl::set_child_subreaper(true).map_err(start_error)?;
    let mut child = command.spawn().map_err(start_error)?;
    let talked = talk(&mut child, input, client, Instant::now() + program.timeout);
    let main = Pid::from_raw(child.id().cast_signed());
    let status = end_all(main);
    let output = talked.map_err(|why| match why {
        Ended::Timeout => ExecError::Timeout(program.timeout),
        Ended::TooMuch => ExecError::TooMuch,
        Ended::Io(error) => ExecError::Helper(error.to_string()),
    })?;
    match status {
        Some(WaitStatus::Exited(_, 0)) => Ok(output),
        Some(WaitStatus::Exited(_, code)) => Err(ExecError::Exit(code)),
        Some(WaitStatus::Signaled(_, signal, _)) => Err(ExecError::Signal(signal as i32)),
        _ => Err(ExecError::Helper("its end was not seen".into())),
    }
}

fn start_error(error: impl Into<io::Error>) -> ExecError {
    ExecError::Start(error.into().to_string())
}

fn command(program: &Program) -> Result<Command, ExecError> {
    let [file, arguments @ ..] = program.command.as_slice() else {
        return Err(ExecError::Start("no program is named".into()));
    };
    check(Path::new(file))?;
    let mut command = Command::new(file);
    command
        .args(arguments)
        .env_clear()
        .envs(ENVIRONMENT)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0);
    let account = match &program.user {
        Some(name) => other_account(name)?,
        None => None,
    };
    process::before_exec(&mut command, account);
    Ok(command)
}

/// A program that others can write is not run; a link is followed to the program itself.
fn check(file: &Path) -> Result<(), ExecError> {
    if !file.is_absolute() {
        return Err(ExecError::Start("its path is not absolute".into()));
    }
    let real = fs::canonicalize(file).map_err(start_error)?;
    files::open(&real, Holds::Access, Trust::own())
        .map(drop)
        .map_err(|error| ExecError::Loose(error.to_string()))
}

/// The account that the program is to have, where it is another than this process's.
fn other_account(name: &str) -> Result<Option<process::Account>, ExecError> {
    let none = || ExecError::NoUser(name.to_owned());
    let user = User::from_name(name).ok().flatten().ok_or_else(none)?;
    if user.uid == geteuid() {
        return Ok(None);
    }
    if !geteuid().is_root() {
        return Err(ExecError::NotRoot(name.to_owned()));
    }
    let as_c = std::ffi::CString::new(name).map_err(|_| none())?;
    Ok(Some(process::Account {
        uid: user.uid,
        gid: user.gid,
        groups: getgrouplist(&as_c, user.gid).map_err(start_error)?,
    }))
}

/// Why a program is ended before it ends.
enum Ended {
    Timeout,
    TooMuch,
    Io(io::Error),
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Errno> for Ended {
    fn from(errno: Errno) -> Self {
        Self::Io(errno.into())
    }
}

/// Writes the input and reads the output until the program ends.
fn talk(
    child: &mut Child,
    input: &[u8],
    client: BorrowedFd<'_>,
    deadline: Instant,
) -> Result<Zeroizing<Vec<u8>>, Ended> {
    let pidfd = peer::pidfd_open(child.id().cast_signed())?;
    let mut stdin = child.stdin.take();
    let mut stdout = child.stdout.take();
    stdin.as_ref().map(do_not_wait).transpose()?;
    stdout.as_ref().map(do_not_wait).transpose()?;
    let mut left = input;
    // Room for all of it at once: a buffer that grows leaves copies behind.
    let mut output = Zeroizing::new(Vec::with_capacity(MOST_OUTPUT));
    loop {
        write_some(&mut stdin, &mut left)?;
        read_some(&mut stdout, &mut output)?;
        if peer::has_exited(pidfd.as_fd())? {
            // What it wrote last is still in the pipe.
            read_some(&mut stdout, &mut output)?;
            return Ok(output);
        }
        let wait = deadline.saturating_duration_since(Instant::now());
        if wait.is_zero() {
            return Err(Ended::Timeout);
        }
        let mut fds = vec![
            PollFd::new(client, PollFlags::empty()),
            PollFd::new(pidfd.as_fd(), PollFlags::POLLIN),
        ];
        fds.extend(
            stdin
                .as_ref()
                .map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLOUT)),
        );
        fds.extend(
            stdout
                .as_ref()
                .map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)),
        );
        let wait = wait.min(Duration::from_secs(60)) + Duration::from_millis(1);
        match poll(
            &mut fds,
            PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX),
        ) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        if fds[0]
            .revents()
            .is_some_and(|events| events.contains(PollFlags::POLLHUP))
        {
            return Err(io::Error::other("who asked for it is gone").into());
        }
    }
}

fn do_not_wait(pipe: &impl AsFd) -> nix::Result<()> {
    fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map(drop)
}

/// Writes what the pipe takes, and closes it at the end. A program need not read its input.
fn write_some(stdin: &mut Option<ChildStdin>, left: &mut &[u8]) -> io::Result<()> {
    while let Some(pipe) = stdin {
        match pipe.write(left) {
            Ok(_) if left.is_empty() => *stdin = None,
            Ok(count) => *left = &left[count..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => *stdin = None,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads what is there.
fn read_some(stdout: &mut Option<ChildStdout>, output: &mut Vec<u8>) -> Result<(), Ended> {
    let mut chunk = Zeroizing::new([0; 8 * 1024]);
    while let Some(pipe) = stdout {
        match pipe.read(&mut chunk[..]) {
            Ok(0) => *stdout = None,
            Ok(count) if output.len() + count > MOST_OUTPUT => return Err(Ended::TooMuch),
            Ok(count) => output.extend_from_slice(&chunk[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Ends what still runs: the program, its group, and what left the group and fell to this process since.
/// Returns how the program itself ended.
fn end_all(main: Pid) -> Option<WaitStatus> {
    let end = Instant::now() + CLEARING;
    let mut status = None;
    loop {
        // It may have ended by itself: its status is the one that counts.
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => break,
                Ok(ended) if ended.pid() == Some(main) => status = Some(ended),
                Ok(_) | Err(Errno::EINTR) => {}
                // Nobody is left.
                Err(_) => return status,
            }
        }
        if Instant::now() > end {
            return status;
        }
        // Whoever is gone meanwhile needs no signal.
        let _ = killpg(main, Signal::SIGKILL);
        for child in children() {
            let _ = kill(child, Signal::SIGKILL);
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// The children of this process, orphans that fell to it included (`proc_pid_task_children(5)`).
fn children() -> Vec<Pid> {
    let own = std::process::id();
    let list = fs::read_to_string(format!("/proc/self/task/{own}/children")).unwrap_or_default();
    let ids = list.split_whitespace().filter_map(|id| id.parse().ok());
    ids.map(Pid::from_raw).collect()
}
