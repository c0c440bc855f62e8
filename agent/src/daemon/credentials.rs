//! The credentials socket: beside that of the bots, and only where a bot has credentials or systemd passed it in.

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use super::error::StartError;
use super::sockets::{Bound, listen};
use crate::api::{Context, credentials};
use crate::policy::Policy;
use crate::sys::manager::Manager;

/// The socket and who serves it.
pub(super) struct Credentials {
    server: Arc<credentials::Server>,
    path: PathBuf,
    /// Set once it is served: what of it is ours to be removed at the end.
    bound: OnceLock<Bound>,
}

impl Credentials {
    pub fn new(context: Arc<Context>, manager: Arc<Manager>, path: PathBuf) -> Self {
        Self {
            server: credentials::Server::new(context, manager),
            path,
            bound: OnceLock::new(),
        }
    }

    /// Serves the socket that was handed over, or one of our own where a policy needs it; at a reload, too.
    pub fn open(&self, handed: Option<UnixListener>, policy: &Policy) -> Result<(), StartError> {
        let wanted = handed.is_some() || policy.has_credentials();
        if wanted && self.bound.get().is_none() {
            let mut bound = Bound::new();
            let listener = listen(handed, &self.path, &mut bound)?;
            self.bound.get_or_init(|| bound);
            tokio::spawn(Arc::clone(&self.server).accept(listener));
        }
        Ok(())
    }

    /// Has those refused whom the daemon before left without a whole answer.
    pub fn refuse(&self, unanswered: Vec<UnixStream>) {
        for stream in unanswered {
            self.server.refuse(stream);
        }
    }

    pub async fn drain(&self) {
        self.server.drain().await;
    }

    /// The files of the sockets that this process has made.
    pub fn bound(&self) -> impl Iterator<Item = &PathBuf> {
        self.bound.get().into_iter().flatten()
    }
}
