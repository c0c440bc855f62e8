//! The far side: one process that reads one question from a stream, runs the program, answers, and ends.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use zeroize::Zeroizing;

use super::wire::{self, Answer, MOST_INPUT, Question};
use super::{ExecError, Program, run};

/// A question is written at once.
const PATIENCE: Duration = Duration::from_secs(10);

/// Answers one question, if it asks for one of the `allowed` programs. The process has no other children, and
/// ends after it.
pub fn serve_one(mut stream: UnixStream, allowed: &[Program]) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let (question, input) = wire::receive::<Question>(&mut stream, MOST_INPUT)?;
    let named =
        |program: &&Program| program.command == question.command && program.user == question.user;
    let done = match allowed.iter().find(named) {
        Some(program) => run::run(program, &input, stream.as_fd()),
        None => Err(ExecError::NotNamed),
    };
    let (answer, output): (Answer, _) = match done {
        Ok(output) => (Ok(()), output),
        Err(error) => (Err(error), Zeroizing::default()),
    };
    wire::send(&mut stream, &answer, &output)
}
