//! Running the operator's programs, which the daemon itself cannot do once it has given up execve.
//!
//! A program gets its input on standard input and answers on standard output. It runs in a process that was
//! there before: under systemd a unit that is started for each run, elsewhere a helper that was forked before
//! the daemon held a secret. Either runs only what the configuration names, whatever it is asked.

mod helper;
mod run;
mod runner;
mod step;
mod wire;

use std::time::Duration;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::config::{self, Config, Driver, Notify};

pub use runner::Runner;
pub use step::serve_one;

/// The most that a program may answer.
pub const MOST_OUTPUT: usize = 256 * 1024;

/// How long a program that tells somebody of an alert may run.
const NOTIFY_TIME: Duration = Duration::from_secs(30);

/// Where systemd starts `keyhatch-exec@.service` for each connection.
pub const SOCKET: &str = "/run/keyhatch-exec/exec.sock";

/// What a driver program is called with, one after the other, as its last argument.
pub const STEPS: [&str; 4] = ["create", "set", "test", "finish"];

/// One command line that the configuration names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// The program, an absolute path, and its arguments. They hold no secret.
    pub command: Vec<String>,
    /// Whom it runs as; the helper's own user where nobody is named.
    pub user: Option<String>,
    /// How long it may run.
    pub timeout: Duration,
}

/// What a program that ended well wrote to standard output. Cannot be printed.
pub struct Output {
    /// At most [`MOST_OUTPUT`] bytes, wiped when dropped.
    pub stdout: Zeroizing<Vec<u8>>,
}

/// Why a program did not run, or not well. Never holds anything that it wrote.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum ExecError {
    /// The configuration that the helper knows does not name it.
    #[error("the configuration does not name this program; restart keyhatchd after a change")]
    NotNamed,
    /// Somebody else could change the program.
    #[error("{0}")]
    Loose(String),
    /// Its user.
    #[error("there is no user {0:?} here")]
    NoUser(String),
    /// Its user is another than the helper's, which is not root.
    #[error("it cannot run as {0:?}, since what runs it is not root")]
    NotRoot(String),
    /// The kernel does not start it.
    #[error("it cannot be started: {0}")]
    Start(String),
    /// It failed.
    #[error("it ended with exit code {0}")]
    Exit(i32),
    /// It was ended.
    #[error("it was ended by signal {0}")]
    Signal(i32),
    /// It took too long, and was ended with all that it started.
    #[error("it did not end within {:.1} s", .0.as_secs_f32())]
    Timeout(Duration),
    /// It wrote too much, and was ended likewise.
    #[error("it wrote more than {MOST_OUTPUT} bytes to standard output")]
    TooMuch,
    /// The input is larger than it may be.
    #[error("its input is larger than {} bytes", wire::MOST_INPUT)]
    TooLarge,
    /// Nobody runs programs.
    #[error(
        "nothing runs programs here: start keyhatch-exec.socket, or restart keyhatchd so that it makes a helper"
    )]
    NoHelper,
    /// Who runs them did not answer.
    #[error("what runs programs did not answer: {0}")]
    Helper(String),
}

/// Every program that a configuration names: a driver's once for each step.
#[must_use]
pub fn allowed_programs(config: &Config) -> Vec<Program> {
    let drivers = config
        .rotations
        .iter()
        .filter_map(|rotation| match &rotation.driver {
            Driver::Exec(program) => Some(program),
            _ => None,
        });
    let steps = drivers.flat_map(|program| STEPS.map(|step| of_step(program, step)));
    let notify = match &config.detect.notify {
        Some(Notify::Exec(command)) => Some(notify_program(command)),
        _ => None,
    };
    steps.chain(notify).collect()
}

/// A driver program as it is run for one step.
#[must_use]
pub fn of_step(program: &config::Program, step: &str) -> Program {
    let mut command = program.command.clone();
    command.push(step.to_owned());
    Program {
        command,
        user: program.user.clone(),
        timeout: program.timeout,
    }
}

/// The program of `[detect].notify` as it is run.
#[must_use]
pub fn notify_program(command: &[String]) -> Program {
    Program {
        command: command.to_owned(),
        user: None,
        timeout: NOTIFY_TIME,
    }
}
