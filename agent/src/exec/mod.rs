//! Programs of the operator's, run for one question each.

use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

/// The most that a program may answer.
const LARGEST: u64 = 256 << 10;

/// A program and how it is run.
#[derive(Clone, Debug)]
pub struct Program {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Who it runs as.
    pub user: Option<String>,
    /// How long it may take.
    pub timeout: Duration,
}

/// What it answered.
pub struct Output {
    /// Its standard output.
    pub stdout: Zeroizing<Vec<u8>>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ExecError(String);

/// Runs programs.
#[derive(Clone, Default)]
pub struct Runner;

impl Runner {
    /// Runs a program with `input` on its standard input.
    pub async fn run(&self, program: &Program, input: &[u8]) -> Result<Output, ExecError> {
        let (program, input) = (program.clone(), Zeroizing::new(input.to_vec()));
        tokio::task::spawn_blocking(move || run(&program, &input))
            .await
            .map_err(|error| ExecError(error.to_string()))?
    }
}

fn run(program: &Program, input: &[u8]) -> Result<Output, ExecError> {
    let failed = |error: std::io::Error| ExecError(format!("{}: {error}", program.command[0]));
    let mut command = Command::new(&program.command[0]);
    command
        .args(&program.command[1..])
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = command.spawn().map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that reads nothing is fine.
        let _ = stdin.write_all(input);
    }
    let end = Instant::now() + program.timeout;
    let status = loop {
        match child.try_wait().map_err(failed)? {
            Some(status) => break status,
            None if Instant::now() > end => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(ExecError(format!("{}: took too long", program.command[0])));
            }
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    let mut stdout = Zeroizing::new(Vec::new());
    if let Some(out) = child.stdout.take() {
        let _ = out.take(LARGEST).read_to_end(&mut stdout);
    }
    if status.success() {
        Ok(Output { stdout })
    } else {
        Err(ExecError(format!("{}: {status}", program.command[0])))
    }
}
