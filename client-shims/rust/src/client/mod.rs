//! The client for programs on tokio. Like [`crate::blocking`], call for call.

mod connection;
mod follow;
mod watch;

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use keyhatch_protocol::{Health, Listed, MAX_BATCH, Whoami};

use crate::request::Request;
use crate::socket::Address;
use crate::wire::Reply;
use crate::{Batch, DEFAULT_TIMEOUT, Error, Secret, Wanted, poll_again, reply};
use connection::Connection;

pub use follow::Followed;
pub use watch::Watch;

/// Asks one agent for secrets.
///
/// It keeps a connection open between calls and may be shared between tasks. A clone asks the same agent over
/// a connection of its own. A call that is dropped half-way closes its connection and harms no other.
#[derive(Debug)]
pub struct Client {
    address: Address,
    timeout: Duration,
    kept: Mutex<Option<Connection>>,
}

impl Client {
    /// The agent at `$KEYHATCH_SOCKET`, else the host's, else the caller's own dev agent.
    #[must_use]
    pub fn new() -> Self {
        Self::of(Address::find())
    }

    /// The agent at the socket `path`.
    #[must_use]
    pub fn at(path: impl AsRef<Path>) -> Self {
        Self::of(Address::at(path.as_ref()))
    }

    fn of(address: Address) -> Self {
        Self {
            address,
            timeout: DEFAULT_TIMEOUT,
            kept: Mutex::new(None),
        }
    }

    /// Waits this long for an answer, instead of ten seconds.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Where the agent is asked.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The current value of `NAME`, or of one field of it: `NAME#field`.
    pub async fn get(&self, name: &str) -> Result<Secret, Error> {
        self.fetch(&Wanted::parse(name)?).await
    }

    /// The value before the current one, which is kept for the grace time of a rotation.
    pub async fn get_previous(&self, name: &str) -> Result<Secret, Error> {
        self.fetch(&Wanted::parse(name)?.previous()).await
    }

    /// The value that is wanted, exactly its bytes.
    pub async fn fetch(&self, wanted: &Wanted) -> Result<Secret, Error> {
        reply::value(wanted.name(), self.ask(&Request::value(wanted)).await?)
    }

    /// The agent's JSON document about the value: a secret whose value is that document.
    pub async fn fetch_json(&self, wanted: &Wanted) -> Result<Secret, Error> {
        reply::document(wanted.name(), self.ask(&Request::document(wanted)).await?)
    }

    /// What this process may see below `prefix`, in byte order of the names.
    pub async fn list(&self, prefix: &str) -> Result<Vec<Listed>, Error> {
        let mut listed = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let request = Request::list(prefix, after.as_deref());
            let page = reply::page(self.ask(&request).await?)?;
            listed.extend(page.secrets);
            let Some(next) = page.next else {
                return Ok(listed);
            };
            after = Some(reply::advanced(after.as_deref(), next)?);
        }
    }

    /// Many values at once. A name that is refused is in [`Batch::errors`] and does not fail the others.
    pub async fn batch(&self, names: &[&str]) -> Result<Batch, Error> {
        let mut batch = Batch::default();
        for names in names.chunks(MAX_BATCH) {
            reply::batch(&mut batch, self.ask(&Request::batch(names)?).await?)?;
        }
        Ok(batch)
    }

    /// Who the agent thinks this process is, and what it may have.
    pub async fn whoami(&self) -> Result<Whoami, Error> {
        reply::whoami(self.ask(&Request::whoami()).await?)
    }

    /// Whether the agent is ready, and why not.
    pub async fn health(&self) -> Result<Health, Error> {
        reply::health(self.ask(&Request::health()).await?)
    }

    /// The value of `name` once its version is another one than `version`; `None` where it still is after `wait`.
    pub async fn wait_for_change(
        &self,
        name: &str,
        version: &str,
        wait: Duration,
    ) -> Result<Option<Secret>, Error> {
        let wanted = Wanted::parse(name)?;
        let deadline = Instant::now() + wait;
        loop {
            let asked = Instant::now();
            let left = deadline.saturating_duration_since(asked);
            let answer = self.ask(&Request::change(&wanted, version, left)?).await?;
            let changed = reply::change(wanted.name(), answer)?;
            match poll_again(asked, deadline) {
                Some(pause) if changed.is_none() => tokio::time::sleep(pause).await,
                _ => return Ok(changed),
            }
        }
    }

    /// What happens to these secrets, from now on. It connects again by itself where the connection is lost.
    pub async fn watch(&self, names: &[&str]) -> Result<Watch, Error> {
        Watch::open(self.clone(), names).await
    }

    /// A handle that always gives the newest value of `name`, kept up to date by a task of its own.
    pub async fn follow(&self, name: &str) -> Result<Followed, Error> {
        Followed::start(self.clone(), name).await
    }

    /// Sends `request` on the kept connection, once more on a new one where that turns out closed.
    async fn ask(&self, request: &Request) -> Result<Reply, Error> {
        let timeout = self.timeout + request.wait;
        let kept = self.lock().take().filter(Connection::is_ours);
        if let Some(mut connection) = kept {
            match connection.exchange(&self.address, request, timeout).await {
                Ok(answer) => return Ok(self.keep(connection, answer.whole()?)),
                Err(failure) if failure.stale => {}
                Err(failure) => return Err(failure.error),
            }
        }
        let mut connection = Connection::open(&self.address, self.timeout).await?;
        let answer = connection.exchange(&self.address, request, timeout).await;
        let reply = answer.map_err(|failure| failure.error)?.whole()?;
        Ok(self.keep(connection, reply))
    }

    fn keep(&self, connection: Connection, reply: Reply) -> Reply {
        if !reply.head.close {
            *self.lock() = Some(connection);
        }
        reply
    }

    fn lock(&self) -> MutexGuard<'_, Option<Connection>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Client {
    fn default() -> Self {
        Self::new()
    }
}

impl Clone for Client {
    fn clone(&self) -> Self {
        Self::of(self.address.clone()).timeout(self.timeout)
    }
}
