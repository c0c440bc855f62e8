//! The panic button: every value is wiped at once, and a restart does not bring them back.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::StatusCode;
use serde_json::{Value as Json, json};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::admin::AdminServer;
use super::answer::{self, Answer};
use crate::audit::{Entry, Event};
use crate::sources::Asked;

/// How long the last answers that hold a value may take to end when the agent is sealed.
const WIPE_TIME: Duration = Duration::from_secs(1);

/// How long the disk may take to keep the mark.
const MARK_TIME: Duration = Duration::from_secs(5);

/// The file in `state_dir` that says that the agent was sealed. A daemon that finds it loads no value.
#[derive(Clone)]
pub struct SealMark {
    path: PathBuf,
}

impl SealMark {
    /// The one in `state_dir`.
    #[must_use]
    pub fn new(state_dir: &Path) -> Self {
        Self {
            path: state_dir.join("sealed"),
        }
    }

    /// Whether it stands. Where that cannot be seen, it does: to serve is what has to be certain.
    #[must_use]
    pub fn stands(&self) -> bool {
        !matches!(fs::symlink_metadata(&self.path), Err(error) if error.kind() == io::ErrorKind::NotFound)
    }

    /// Sets it, synced to disk before it returns. An empty file, for which a full disk has room.
    fn set(&self) -> io::Result<()> {
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(nix::libc::O_NOFOLLOW)
            .open(&self.path)?
            .sync_all()?;
        self.sync_folder()
    }

    fn clear(&self) -> io::Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => self.sync_folder(),
        }
    }

    fn sync_folder(&self) -> io::Result<()> {
        match self.path.parent() {
            Some(folder) => File::open(folder)?.sync_all(),
            None => Ok(()),
        }
    }

    /// Changes it off the request loop; the error is for the operator.
    async fn change(&self, act: fn(&Self) -> io::Result<()>) -> Result<(), String> {
        let mark = self.clone();
        let changed = timeout(MARK_TIME, tokio::task::spawn_blocking(move || act(&mark))).await;
        let why = match changed {
            Ok(Ok(Ok(()))) => return Ok(()),
            Ok(Ok(Err(error))) => error.to_string(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the disk does not answer".to_owned(),
        };
        let why = format!("{}: {why}", self.path.display());
        tracing::error!(%why, "whether the agent is sealed does not survive a restart");
        Err(why)
    }
}

impl AdminServer {
    pub(super) async fn seal(&self) -> Answer {
        // Before all else, and whatever comes of the rest.
        self.context.cache.seal();
        let _turn = self.sealing.lock().await;
        self.context.cache.seal();
        let (reply, done) = oneshot::channel();
        self.ask(Asked::Seal(reply));
        let (marked, ()) = tokio::join!(self.mark.change(SealMark::set), async {
            let _ = done.await;
            self.context.upstreams.seal().await;
            self.wipe().await;
        });
        // The panic button has done its work, recorded or not.
        let _ = self.context.audit.keep(&Entry::of(Event::AgentSealed));
        let used = self.context.cache.arena().used();
        let sealed = json!({ "sealed": true, "secret_memory_used": used });
        answer::document(StatusCode::OK, &kept(sealed, marked))
    }

    /// Answers that wait for their reader still hold a value: ends them, then it is wiped.
    async fn wipe(&self) {
        self.server.close_writers();
        self.context.routes.load().close_idle();
        let wiped = async {
            while self.context.cache.arena().used() > 0 {
                tokio::time::sleep(Duration::from_millis(2)).await;
                self.server.close_writers();
                // Another that waited for an access token may have had its turn since.
                self.context.routes.load().close_idle();
            }
        };
        let _ = timeout(WIPE_TIME, wiped).await;
    }

    pub(super) async fn unseal(&self) -> Answer {
        let _turn = self.sealing.lock().await;
        let cleared = self.mark.change(SealMark::clear).await;
        let (reply, done) = oneshot::channel();
        self.ask(Asked::Unseal(reply));
        let _ = done.await;
        self.context.upstreams.unseal().await;
        self.context.detect.serve();
        let _ = self.context.audit.keep(&Entry::of(Event::AgentUnsealed));
        let reasons = self.context.status().reasons;
        let unsealed = json!({ "sealed": false, "reasons": reasons });
        answer::document(StatusCode::OK, &kept(unsealed, cleared))
    }
}

/// Adds whether it stays so over a restart.
fn kept(mut document: Json, mark: Result<(), String>) -> Json {
    document["survives_restart"] = mark.is_ok().into();
    if let Err(why) = mark {
        document["why"] = why.into();
    }
    document
}
