//! Servers as subprocesses: started on their core, watched, and ended with the benchmark.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, SysconfVar, sysconf};

use crate::{LOAD_CORE, SERVER_CORE, answer};

/// A server must be there, and gone after SIGTERM, within this time.
const PATIENCE: Duration = Duration::from_secs(10);

/// Puts this thread, and what it starts from now on, on one core.
pub fn pin(core: usize) -> io::Result<()> {
    let mut cores = CpuSet::new();
    cores.set(core)?;
    sched_setaffinity(Pid::from_raw(0), &cores).map_err(|error| {
        let why = format!("core {core}: {error}; the benchmark needs cores 0 and 1");
        io::Error::other(why)
    })
}

/// A thousand watchers need more descriptors than most shells allow at first.
pub fn raise_open_files() -> io::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}

/// A folder of our own under the temporary one, removed at the end.
pub struct TempFolder(PathBuf);

impl TempFolder {
    pub fn new() -> io::Result<Self> {
        let path = std::env::temp_dir().join(format!("keyhatch-bench-{}", std::process::id()));
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempFolder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("keyhatch-bench: {} stays: {error}", self.0.display());
        }
    }
}

/// A running server, ended when it is dropped.
pub struct Server {
    child: Child,
    socket: PathBuf,
    log: PathBuf,
}

/// What `/proc/PID/status` says of a process's memory, in KiB.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    pub resident: f64,
    pub anonymous: f64,
    pub file: f64,
    pub shared: f64,
    pub locked: f64,
}

impl Server {
    /// Starts `command` on the servers' core. It is not ready yet; its output goes to a file beside `socket`.
    pub fn spawn(command: &mut Command, socket: &Path) -> io::Result<Self> {
        Self::spawn_on(SERVER_CORE, command, socket)
    }

    /// The same on another core.
    pub fn spawn_on(core: usize, command: &mut Command, socket: &Path) -> io::Result<Self> {
        let log = socket.with_extension("log");
        let output = File::create(&log)?;
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        // A child inherits the affinity of the thread that starts it, so no code runs between fork and exec.
        pin(core)?;
        let child = command.spawn();
        pin(LOAD_CORE)?;
        let child = child.map_err(|error| {
            io::Error::other(format!("{}: {error}", command.get_program().display()))
        })?;
        Ok(Self {
            child,
            socket: socket.to_owned(),
            log,
        })
    }

    /// One of our own two servers.
    pub fn own(verb: &str, socket: &Path, answer: &Path) -> io::Result<Self> {
        let own = std::env::current_exe()?;
        Self::spawn(Command::new(own).arg(verb).arg(socket).arg(answer), socket)
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Asks again and again until there is a good answer, which it gives.
    pub fn first_answer(&mut self, request: &[u8]) -> io::Result<answer::Answer> {
        let begin = Instant::now();
        loop {
            let answer = UnixStream::connect(&self.socket)
                .and_then(|stream| answer::ask(&stream, request))
                .and_then(answer::Answer::must_be_200);
            let error = match answer {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            if let Some(status) = self.child.try_wait()? {
                return Err(self.complain(&format!("ended with {status}")));
            }
            if begin.elapsed() > PATIENCE {
                return Err(self.complain(&format!("no good answer in 10 s ({error})")));
            }
            thread::sleep(Duration::from_micros(100));
        }
    }

    /// `what`, with the end of what the server said.
    fn complain(&self, what: &str) -> io::Error {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().rev().take(8).collect();
        let said: Vec<&str> = lines.into_iter().rev().collect();
        let name = self.log.file_stem().unwrap_or_default().display();
        io::Error::other(format!(
            "the server {name} {what}; it said:\n    {}",
            said.join("\n    ")
        ))
    }

    fn proc(&self, file: &str) -> io::Result<String> {
        let path = format!("/proc/{}/{file}", self.child.id());
        fs::read_to_string(&path).map_err(|error| io::Error::other(format!("{path}: {error}")))
    }

    pub fn memory(&self) -> io::Result<Memory> {
        let status = self.proc("status")?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim_start_matches(':')
                .trim()
                .strip_suffix(" kB")?
                .parse()
                .ok()
        };
        let of = |name: &str| -> io::Result<f64> {
            field(name).ok_or_else(|| io::Error::other(format!("no {name} in /proc/PID/status")))
        };
        Ok(Memory {
            resident: of("VmRSS")?,
            anonymous: of("RssAnon")?,
            file: of("RssFile")?,
            shared: of("RssShmem")?,
            locked: of("VmLck")?,
        })
    }

    /// Processor time that all its threads have used.
    pub fn processor_time(&self) -> io::Result<Duration> {
        let stat = self.proc("stat")?;
        // After the command in brackets, utime and stime are the 12th and 13th field (proc_pid_stat(5)).
        let fields = stat
            .rsplit_once(')')
            .map_or("", |(_, rest)| rest)
            .split_whitespace();
        let ticks: u32 = fields
            .skip(11)
            .take(2)
            .filter_map(|field| field.parse::<u32>().ok())
            .sum();
        let per_second = sysconf(SysconfVar::CLK_TCK)?.unwrap_or(100);
        Ok(Duration::from_secs_f64(
            f64::from(ticks) / per_second as f64,
        ))
    }

    /// SIGTERM, then SIGKILL for one that does not listen.
    fn end(&mut self) -> io::Result<()> {
        if self.child.try_wait()?.is_some() {
            return Ok(());
        }
        let pid = i32::try_from(self.child.id()).map_err(io::Error::other)?;
        kill(Pid::from_raw(pid), Signal::SIGTERM)?;
        let begin = Instant::now();
        while self.child.try_wait()?.is_none() {
            if begin.elapsed() > PATIENCE {
                eprintln!("keyhatch-bench: a server did not end on SIGTERM and was killed");
                self.child.kill()?;
                self.child.wait()?;
                break;
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("keyhatch-bench: ending a server: {error}");
        }
    }
}
