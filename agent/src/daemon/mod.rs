//! Wiring: start, reload, drain, stop.

mod credentials;
mod error;
mod handed;
mod log;
mod preflight;
mod pulse;
mod reload;
mod serve;
mod sockets;
mod start;
mod stop;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;

use nix::fcntl::Flock;

use crate::api::Context;
use crate::config::Config;
use crate::confine::Needs;
use crate::exec::{self, Runner, allowed_programs};
use crate::rotation;
use crate::sources::Asked;
use crate::sys::harden;
use crate::sys::manager::{Handed, Manager};
use handed::HandedSockets;

pub use error::StartError;
pub use log::log_to_journald_or_stderr;
pub use preflight::{preflight, unseen_users};

/// How many events of the kernel are taken at a time: more than one user's connections can have, so that
/// they do not push the news of an exit to the next time.
const EVENTS: usize = 8 * 1024;

/// Runs the daemon until it is told to stop. `taken` is what the service manager handed over; `ready` is
/// called once it serves.
pub fn run(
    path: &Path,
    config: Config,
    taken: (Manager, Vec<Handed>),
    ready: impl FnOnce(),
) -> Result<(), StartError> {
    let problems = preflight(&config);
    if !problems.is_empty() {
        return Err(StartError::Config(problems));
    }
    let (manager, handed) = (Arc::new(taken.0), HandedSockets::sort(taken.1)?);
    harden::deny_dumps()
        .map_err(|errno| StartError::Other("core dumps cannot be turned off", errno.to_string()))?;
    // Before the first thread, the first secret, and the sandbox, which it has no part in.
    let runner = Runner::start(&allowed_programs(&config), Path::new(exec::SOCKET))
        .map_err(|error| StartError::Other("no helper to run programs", error.to_string()))?;
    let files = harden::raise_open_files()
        .map_err(|errno| StartError::Other("the limit on open files", errno.to_string()))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(8)
        .max_io_events_per_tick(EVENTS)
        .build()
        .map_err(|error| StartError::Other("no runtime", error.to_string()))?;
    let daemon = Daemon::start(path, config, files, manager, runner)?;
    runtime.block_on(daemon.serve(handed, ready))
}

/// The wired rooms, before they serve.
struct Daemon {
    path: PathBuf,
    config: Config,
    context: Arc<Context>,
    keeper: mpsc::Sender<Asked>,
    /// The loop of the rotations, until it runs.
    rotation: Option<rotation::Service>,
    /// What the process can still do.
    granted: Needs,
    credentials: credentials::Credentials,
    manager: Arc<Manager>,
    _state: Flock<File>,
}
