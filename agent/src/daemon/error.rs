//! Why the daemon does not start.

use std::io;
use std::path::{Path, PathBuf};

use crate::api::ServerError;
use crate::audit;

/// Why the daemon does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration cannot work on this host.
    #[error("{}", .0.join("\n"))]
    Config(Vec<String>),
    /// A file or folder.
    #[error("{what} {path}: {why}", path = path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        why: io::Error,
    },
    /// Another daemon.
    #[error("{0}: another keyhatchd uses this state_dir; stop it, or give each its own")]
    StateInUse(PathBuf),
    /// Another daemon.
    #[error("{0}: another process listens there; stop it first")]
    SocketInUse(PathBuf),
    /// No secret memory.
    #[error("no secret memory: {0}; raise LimitMEMLOCK= (ulimit -l)")]
    Memory(io::Error),
    /// No audit log.
    #[error(transparent)]
    Audit(#[from] audit::AuditError),
    /// The server.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// Anything else the kernel denies.
    #[error("{0}: {1}")]
    Other(&'static str, String),
}

pub(super) fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StartError {
    let path = path.to_owned();
    move |why| StartError::Io { what, path, why }
}
