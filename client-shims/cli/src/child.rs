//! One child process: it is started, told what we are told, and its exit code becomes ours.
//!
//! On a terminal the child stays in our process group, so that Ctrl-C, Ctrl-Z, pipelines and interactive programs
//! work as if we were not there: the terminal signals both, and where the child stops, so do we. Without a terminal
//! it leads a group of its own, so that a restart ends the whole of it. Signals are read from a descriptor: there
//! is no handler that could run at a bad moment, and none is lost between two waits.

use std::env;
use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawnp};
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{SigSet, Signal, kill, killpg, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd, siginfo};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpgrp, tcgetpgrp, tcsetpgrp};
use zeroize::Zeroizing;

use crate::failure::Failure;

/// What is passed on. Faults are our own, and nobody can pass on SIGKILL and SIGSTOP.
const PASSED_ON: [Signal; 10] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGWINCH,
    Signal::SIGTSTP,
    Signal::SIGCONT,
];

/// How long a child has between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(10);

/// `si_code` of a signal that the kernel made, such as a terminal's (`sigaction(2)`).
const SI_KERNEL: i32 = 0x80;

/// A variable of the child, with a value that is wiped.
#[derive(Clone)]
pub struct Variable {
    pub name: OsString,
    pub value: Zeroizing<Vec<u8>>,
}

/// What to start, again and again.
pub struct Command {
    arguments: Vec<CString>,
}

/// Looks after children: there is one of it in a process, made before any other thread.
pub struct Keeper {
    signals: SignalFd,
    before: SigSet,
    terminal: Option<File>,
    child: Option<Pid>,
}

/// Why a wait has ended.
pub enum Event {
    /// The child has ended; its exit code, 128 and the number where it was a signal.
    Exited(u8),
    /// The descriptor waited for is readable.
    Woken,
    /// The time is up.
    TimedOut,
    /// A signal came, and was passed on.
    Told(Signal),
}

impl Command {
    pub fn new(words: &[OsString]) -> Result<Self, Failure> {
        let words = words.iter().map(|word| {
            CString::new(word.as_bytes())
                .map_err(|_| Failure::usage("no argument holds a NUL byte"))
        });
        Ok(Self {
            arguments: words.collect::<Result<_, _>>()?,
        })
    }

    fn cannot_run(&self, errno: Errno) -> Failure {
        let program = self.arguments.first().map(|word| word.to_string_lossy());
        Failure::cannot_run(&program.unwrap_or_default(), &errno.into())
    }
}

impl Keeper {
    /// From here on signals wait to be read, and orphans of the child are ours.
    pub fn new() -> Result<Self, Failure> {
        let failed = |errno: Errno| Failure::failed(format!("cannot take signals: {errno}"));
        // Where our own starter ignores it, no child could be waited for (`wait(2)`, NOTES).
        signal_hook::flag::register(signal_hook::consts::SIGCHLD, std::sync::Arc::default())
            .map_err(|cause| Failure::failed(format!("cannot take signals: {cause}")))?;
        let mut read: SigSet = PASSED_ON.into_iter().collect();
        read.add(Signal::SIGCHLD);
        let mut blocked = read;
        // Else taking the terminal back would stop us.
        blocked.add(Signal::SIGTTOU);
        let before = SigSet::thread_get_mask().map_err(failed)?;
        blocked.thread_block().map_err(failed)?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let signals = SignalFd::with_flags(&read, flags).map_err(failed)?;
        set_child_subreaper(true).map_err(failed)?;
        Ok(Self {
            signals,
            before,
            terminal: File::open("/dev/tty").ok(),
            child: None,
        })
    }

    /// Starts `command` with our environment and, instead of or beside its variables, `variables`.
    pub fn start(&mut self, command: &Command, variables: &[Variable]) -> Result<(), Failure> {
        let failed = |errno| command.cannot_run(errno);
        let mut attributes = PosixSpawnAttr::init().map_err(failed)?;
        let mut flags =
            PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK | PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF;
        attributes.set_sigmask(&self.before).map_err(failed)?;
        // The Rust runtime ignores it, which programs do not expect.
        attributes
            .set_sigdefault(&Signal::SIGPIPE.into())
            .map_err(failed)?;
        if self.terminal.is_none() {
            flags |= PosixSpawnFlags::POSIX_SPAWN_SETPGROUP;
            attributes.set_pgroup(Pid::from_raw(0)).map_err(failed)?;
        }
        attributes.set_flags(flags).map_err(failed)?;
        self.take_terminal();
        let program = command
            .arguments
            .first()
            .ok_or_else(|| failed(Errno::ENOENT))?;
        let environment = environment(variables);
        let child = posix_spawnp(
            program,
            &PosixSpawnFileActions::init().map_err(failed)?,
            &attributes,
            &command.arguments,
            &environment,
        );
        self.child = Some(child.map_err(failed)?);
        Ok(())
    }

    /// Waits for the child, a signal, `wake` to be readable, or the time `until`.
    pub fn wait(
        &mut self,
        wake: Option<BorrowedFd<'_>>,
        until: Option<Instant>,
    ) -> Result<Event, Failure> {
        loop {
            while let Ok(Some(signal)) = self.signals.read_signal() {
                if let Some(event) = self.told(&signal) {
                    return Ok(event);
                }
            }
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Ok(Event::TimedOut);
            }
            let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
            fds.extend(wake.map(|wake| PollFd::new(wake, PollFlags::POLLIN)));
            // Rounded up, so that it does not wake too early again and again.
            let left = left.map(|left| left + Duration::from_millis(1));
            let timeout = left.map_or(PollTimeout::NONE, |left| {
                PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
            });
            match poll(&mut fds, timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(Failure::failed(format!("cannot wait: {errno}"))),
            }
            let woken = fds.get(1).and_then(PollFd::any).unwrap_or(false);
            if woken && !fds[0].any().unwrap_or(false) {
                return Ok(Event::Woken);
            }
        }
    }

    /// Ends the child: SIGTERM, ten seconds, SIGKILL. Its exit code, and whether we were told to end meanwhile.
    pub fn stop(&mut self) -> Result<(u8, bool), Failure> {
        let Some(child) = self.child else {
            return Ok((0, false));
        };
        self.signal(child, Signal::SIGTERM);
        // A child that is stopped takes it only once it goes on.
        self.signal(child, Signal::SIGCONT);
        let until = Instant::now() + GRACE;
        let (mut code, mut ending, mut killed) = (None, false, false);
        loop {
            if let Some(code) = code
                && (killed || !self.has_members(child))
            {
                return Ok((code, ending));
            }
            match self.wait(None, (!killed).then_some(until))? {
                Event::Exited(exited) => code = Some(exited),
                Event::TimedOut => {
                    self.signal(child, Signal::SIGKILL);
                    killed = true;
                }
                Event::Told(signal) => ending |= ends(signal),
                Event::Woken => {}
            }
        }
    }

    /// Sends the child alone a signal.
    pub fn tell(&self, signal: Signal) {
        if let Some(child) = self.child {
            // It fails only where the child has just ended, which is told anyway.
            let _ = kill(child, signal);
        }
    }

    /// The whole group of the child, where it has one.
    fn signal(&self, child: Pid, signal: Signal) {
        let _ = match self.terminal {
            None => killpg(child, signal),
            Some(_) => kill(child, signal),
        };
    }

    /// Whether anyone is left in the child's group, of which it may itself be gone.
    fn has_members(&self, child: Pid) -> bool {
        self.terminal.is_none() && killpg(child, None) != Err(Errno::ESRCH)
    }

    fn told(&mut self, info: &siginfo) -> Option<Event> {
        let signal = i32::try_from(info.ssi_signo)
            .ok()
            .and_then(|number| Signal::try_from(number).ok())?;
        if signal == Signal::SIGCHLD {
            return self.reap();
        }
        let sender = i32::try_from(info.ssi_pid).ok().map(Pid::from_raw);
        let shared = self.terminal.is_some()
            && (info.ssi_code == SI_KERNEL || signal == Signal::SIGTSTP || sender == self.child);
        // What the terminal sends, or the child to its group, the child has had already.
        if !shared {
            self.tell(signal);
        }
        Some(Event::Told(signal))
    }

    /// Collects everyone who has ended: the child, and those whom it left behind.
    fn reap(&mut self) -> Option<Event> {
        let flags = WaitPidFlag::WNOHANG | WaitPidFlag::WUNTRACED;
        let mut ended = None;
        loop {
            let (pid, code) = match waitpid(None, Some(flags)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, u8::try_from(code).unwrap_or(1)),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, signaled(signal)),
                Ok(WaitStatus::Stopped(pid, _)) if Some(pid) == self.child => {
                    self.stop_too();
                    continue;
                }
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => break,
                // A real-time signal has no name there: see whether it was the child that is gone.
                Err(Errno::EINVAL) => match self.child {
                    Some(child) if kill(child, None) == Err(Errno::ESRCH) => (child, 1),
                    _ => continue,
                },
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(_) => break,
            };
            if Some(pid) == self.child {
                self.child = None;
                ended = Some(Event::Exited(code));
            }
        }
        // An orphan that ended is news to who waits for a group to be empty.
        ended.or(Some(Event::Told(Signal::SIGCHLD)))
    }

    /// The shell that started us sees its job stop; when it goes on, so does the child.
    fn stop_too(&self) {
        if self.terminal.is_some() {
            let _ = raise(Signal::SIGSTOP);
            self.tell(Signal::SIGCONT);
        }
    }

    /// A shell that was killed leaves the terminal to a group that is gone.
    fn take_terminal(&self) {
        if let Some(terminal) = &self.terminal
            && let Ok(front) = tcgetpgrp(terminal)
            && killpg(front, None) == Err(Errno::ESRCH)
        {
            let _ = tcsetpgrp(terminal, getpgrp());
        }
    }
}

/// Whether a signal asks a program to end.
pub fn ends(signal: Signal) -> bool {
    use Signal::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
    [SIGHUP, SIGINT, SIGQUIT, SIGTERM].contains(&signal)
}

/// As shells tell it.
fn signaled(signal: Signal) -> u8 {
    u8::try_from(128 + signal as i32).unwrap_or(1)
}

fn environment(variables: &[Variable]) -> Vec<Zeroizing<CString>> {
    let ours = |name: &OsStr| variables.iter().any(|variable| variable.name == name);
    let mut all: Vec<_> = env::vars_os()
        .filter(|(name, _)| !ours(name))
        .map(|(name, value)| assignment(&name, value.as_bytes()))
        .collect();
    all.extend(
        variables
            .iter()
            .map(|variable| assignment(&variable.name, &variable.value)),
    );
    all
}

/// `NAME=VALUE`, in a buffer that never grows, so that no copy is left behind. It holds no NUL: that was checked.
fn assignment(name: &OsStr, value: &[u8]) -> Zeroizing<CString> {
    let mut text = Vec::with_capacity(name.len() + value.len() + 2);
    text.extend_from_slice(name.as_bytes());
    text.push(b'=');
    text.extend_from_slice(value);
    Zeroizing::new(CString::new(text).unwrap_or_default())
}

impl Variable {
    /// One whose value is no secret.
    pub fn plain(name: &str, value: &str) -> Self {
        Self {
            name: name.into(),
            value: Zeroizing::new(value.into()),
        }
    }

    /// For `std::process::Command`.
    pub fn value(&self) -> OsString {
        OsString::from_vec(self.value.to_vec())
    }
}
