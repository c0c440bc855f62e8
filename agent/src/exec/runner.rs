//! The daemon's side: asks for a run, and waits for what became of it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::{AccessFlags, faccessat};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::helper::Helper;
use super::wire::{self, Answer, LENGTHS, MOST_INPUT, Question};
use super::{ExecError, MOST_OUTPUT, Output, Program};

/// What the far side may take longer than the program: its start, and to end what the program left behind.
const LONGER: Duration = Duration::from_secs(10);

/// Runs programs elsewhere. Cheap to clone.
#[derive(Clone)]
pub struct Runner {
    helper: Option<Arc<Helper>>,
    /// What the helper was made for.
    named: Arc<[Program]>,
    socket: PathBuf,
}

impl Runner {
    /// A runner that connects to `socket`, where systemd starts a process for each connection. Where there is none
    /// for this user, and there are `programs`, a helper is forked: before any thread, any secret and the sandbox.
    pub fn start(programs: &[Program], socket: &Path) -> io::Result<Self> {
        let helper = if programs.is_empty() || is_open(socket) {
            None
        } else {
            Some(Arc::new(Helper::start(programs)?))
        };
        Ok(Self {
            helper,
            named: programs.into(),
            socket: socket.to_owned(),
        })
    }

    /// Whether it can run all these. A helper knows what the configuration named as it was forked; what systemd
    /// starts reads it anew.
    #[must_use]
    pub fn knows(&self, programs: &[Program]) -> bool {
        let by_systemd = self.helper.is_none() && is_open(&self.socket);
        by_systemd || programs.iter().all(|program| self.named.contains(program))
    }

    /// Runs a program that the configuration names, with `input` on its standard input. It is ended when what
    /// this returns is dropped.
    pub async fn run(&self, program: &Program, input: &[u8]) -> Result<Output, ExecError> {
        if input.len() > MOST_INPUT {
            return Err(ExecError::TooLarge);
        }
        let within = program.timeout + LONGER;
        let done = timeout(within, self.ask(program, input)).await;
        done.unwrap_or_else(|_| {
            let error = format!("nothing within {:.1} s", within.as_secs_f32());
            Err(ExecError::Helper(error))
        })
    }

    async fn ask(&self, program: &Program, input: &[u8]) -> Result<Output, ExecError> {
        let mut stream = self.connect().await?;
        let question = Question {
            command: program.command.clone(),
            user: program.user.clone(),
        };
        let exchange = async {
            stream.write_all(&wire::start(&question, input)?).await?;
            stream.write_all(input).await?;
            receive(&mut stream).await
        };
        let (answer, stdout) = exchange
            .await
            .map_err(|error: io::Error| ExecError::Helper(error.to_string()))?;
        answer.map(|()| Output { stdout })
    }

    async fn connect(&self) -> Result<UnixStream, ExecError> {
        let asked = |error: io::Error| ExecError::Helper(error.to_string());
        if let Some(helper) = &self.helper {
            let stream = helper.connect().map_err(asked)?;
            stream.set_nonblocking(true).map_err(asked)?;
            return UnixStream::from_std(stream).map_err(asked);
        }
        UnixStream::connect(&self.socket)
            .await
            .map_err(|error| match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ExecError::NoHelper,
                _ => asked(error),
            })
    }
}

/// Whether there is a socket that this user may connect to. That of a service's daemon is for its user alone.
fn is_open(socket: &Path) -> bool {
    faccessat(AT_FDCWD, socket, AccessFlags::W_OK, AtFlags::AT_EACCESS).is_ok()
}

async fn receive(stream: &mut UnixStream) -> io::Result<(Answer, Zeroizing<Vec<u8>>)> {
    let mut bytes = [0; LENGTHS];
    stream.read_exact(&mut bytes).await?;
    let (head_len, body_len) = wire::lengths(bytes, MOST_OUTPUT)?;
    let mut head = vec![0; head_len];
    stream.read_exact(&mut head).await?;
    let mut body = Zeroizing::new(vec![0; body_len]);
    stream.read_exact(&mut body).await?;
    Ok((wire::head(&head)?, body))
}
