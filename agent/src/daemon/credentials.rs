//! The credentials socket: beside that of the bots, and only where a bot has credentials or systemd passed it in.

use std::fs;
use std::os::unix::net::UnixListener as StdListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use tokio::net::UnixListener;

use super::error::StartError;
use super::sockets::{Bound, listen};
use crate::api::{Context, credentials};
use crate::policy::Policy;

/// The socket and who serves it.
pub(super) struct Credentials {
    server: Arc<credentials::Server>,
    path: PathBuf,
    serves: AtomicBool,
    /// The file is ours, to be removed at the end.
    bound: AtomicBool,
}

impl Credentials {
    pub(super) fn new(context: Arc<Context>, path: PathBuf) -> Self {
        Self {
            server: credentials::Server::new(context),
            path,
            serves: AtomicBool::new(false),
            bound: AtomicBool::new(false),
        }
    }

    fn serve(&self, listener: UnixListener) {
        self.serves.store(true, Relaxed);
        tokio::spawn(Arc::clone(&self.server).accept(listener));
    }

    /// Serves the socket that the service manager has bound; else binds one where a policy needs it and nothing is
    /// served yet.
    pub(super) fn open(
        &self,
        handed: Option<StdListener>,
        policy: &Policy,
    ) -> Result<(), StartError> {
        if handed.is_some() || policy.has_credentials() && !self.serves.load(Relaxed) {
            let mut bound = Bound::new();
            let listener = listen(handed, &self.path, &mut bound)?;
            self.bound.store(!bound.is_empty(), Relaxed);
            self.serve(listener);
        }
        Ok(())
    }

    pub(super) async fn drain(&self) {
        self.server.drain().await;
    }

    pub(super) fn remove(&self) {
        if self.bound.load(Relaxed) {
            // Someone else may have removed it.
            let _ = fs::remove_file(&self.path);
        }
    }
}
