//! The client for programs on tokio. Like [`crate::blocking`], call for call.

mod cache;
mod connection;
mod follow;
#[cfg(feature = "route")]
mod route;
mod watch;

use std::path::Path;
use std::process;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use keyhatch_protocol::{Health, Listed, MAX_BATCH, RotateReply, Whoami};

use crate::exchange::Limit;
use crate::request::{Request, parse_name};
use crate::restart::{Next, PATIENCE, Tries};
use crate::socket::Address;
use crate::wire::Reply;
use crate::{Batch, DEFAULT_TIMEOUT, Error, Secret, Wanted, poll_again, reply};
use cache::Cache;
use connection::Connection;

pub use follow::{Followed, OnRotate};
#[cfg(feature = "route")]
pub use route::{Answer, BoxError, Route};
pub use watch::Watch;

/// Asks one agent for secrets.
///
/// It keeps a connection open between calls and may be shared between tasks. A clone asks the same agent over
/// a connection of its own, and caches nothing yet. A call that is dropped half-way closes its connection and
/// harms no other.
#[derive(Debug)]
pub struct Client {
    address: Address,
    timeout: Duration,
    patience: Duration,
    kept: Mutex<Option<Connection>>,
    owner: u32,
    cache: Mutex<Cache>,
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
            patience: PATIENCE,
            kept: Mutex::new(None),
            owner: process::id(),
            cache: Mutex::default(),
        }
    }

    /// Waits this long for an answer, instead of ten seconds.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Waits this long for an agent that is away, instead of five seconds: one that restarts comes back.
    #[must_use]
    pub fn patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
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

    /// Like [`Client::get`], from this process's memory where a watch says that the value is still the current one.
    ///
    /// Each secret asked for in this way has a task and a connection that watch it as long as the client lives;
    /// while nothing drives the runtime, that task hears of no rotation. A forked child caches with a client of its own; with its parent's it always asks the agent.
    pub async fn get_cached(&self, name: &str) -> Result<Arc<Secret>, Error> {
        cache::get(self, &Wanted::parse(name)?).await
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

    /// Asks for a new value of `name`. It has begun where this answers; a watch tells when the new value is there.
    pub async fn rotate(&self, name: &str) -> Result<RotateReply, Error> {
        reply::rotation(&self.ask(&Request::rotate(&parse_name(name)?)).await?)
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

    /// Calls `told` with each new value of `name`, on a task of its own, until what it returns is dropped.
    pub async fn on_rotate(
        &self,
        name: &str,
        told: impl FnMut(Arc<Secret>) + Send + 'static,
    ) -> Result<OnRotate, Error> {
        let wanted = Wanted::parse(name)?;
        let held = Arc::new(self.fetch(&wanted).await?);
        Ok(OnRotate::start(self.clone(), wanted, held, told))
    }

    /// A route, to call its upstream with a secret that this process does not see.
    #[cfg(feature = "route")]
    #[must_use]
    pub fn route(&self, name: &str) -> Route {
        Route::new(self.address.clone(), self.patience, name)
    }

    /// Sends `request` on the kept connection, else on a new one, as often as a restart of the agent takes.
    async fn ask(&self, request: &Request) -> Result<Reply, Error> {
        let limit = Limit::of(self.timeout + request.wait);
        let mut tries = Tries::new(request, limit, self.patience);
        loop {
            let connection = self.take();
            let kept = connection.is_some();
            match tries.after(self.exchange(connection, request, limit).await, kept) {
                Next::Done(done) => return done,
                Next::Again(pause) => tokio::time::sleep(pause).await,
            }
        }
    }

    async fn exchange(
        &self,
        kept: Option<Connection>,
        request: &Request,
        limit: Limit,
    ) -> Result<Reply, Error> {
        let mut connection = match kept {
            Some(connection) => connection,
            None => Connection::open(&self.address, limit).await?,
        };
        let answer = connection.exchange(&self.address, request, limit).await?;
        let reply = answer.whole()?;
        if !reply.head.close
            && let Ok(mut place) = self.kept.try_lock()
        {
            *place = Some(connection);
        }
        Ok(reply)
    }

    /// The kept connection. A lock that is taken is not waited for: after a fork, nobody might give it back.
    fn take(&self) -> Option<Connection> {
        let kept = self.kept.try_lock().ok()?.take();
        kept.filter(Connection::is_ours)
    }

    /// False in a child that was forked from the process which made this client.
    fn is_ours(&self) -> bool {
        self.owner == process::id()
    }
}

impl Default for Client {
    fn default() -> Self {
        Self::new()
    }
}

impl Clone for Client {
    fn clone(&self) -> Self {
        Self::of(self.address.clone())
            .timeout(self.timeout)
            .patience(self.patience)
    }
}
