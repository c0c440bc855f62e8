//! The client for programs without an async runtime.

mod cache;
mod connection;
mod follow;
mod stop;
mod watch;

use std::path::Path;
use std::process;
use std::sync::{Arc, Mutex};
use std::thread;
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
pub use stop::Stop;
pub use watch::Watch;

/// Asks one agent for secrets, with calls that wait for the answer.
///
/// It keeps a connection open between calls and may be shared between threads. A clone asks the same agent over
/// a connection of its own, and caches nothing yet.
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
    pub fn get(&self, name: &str) -> Result<Secret, Error> {
        self.fetch(&Wanted::parse(name)?)
    }

    /// Like [`Client::get`], from this process's memory where a watch says that the value is still the current one.
    ///
    /// Each secret asked for in this way has a thread and a connection that watch it as long as the client lives.
    /// A forked child caches with a client of its own; with its parent's it always asks the agent.
    pub fn get_cached(&self, name: &str) -> Result<Arc<Secret>, Error> {
        cache::get(self, &Wanted::parse(name)?)
    }

    /// The value before the current one, which is kept for the grace time of a rotation.
    pub fn get_previous(&self, name: &str) -> Result<Secret, Error> {
        self.fetch(&Wanted::parse(name)?.previous())
    }

    /// The value that is wanted, exactly its bytes.
    pub fn fetch(&self, wanted: &Wanted) -> Result<Secret, Error> {
        reply::value(wanted.name(), self.ask(&Request::value(wanted))?)
    }

    /// The agent's JSON document about the value: a secret whose value is that document.
    pub fn fetch_json(&self, wanted: &Wanted) -> Result<Secret, Error> {
        reply::document(wanted.name(), self.ask(&Request::document(wanted))?)
    }

    /// What this process may see below `prefix`, in byte order of the names.
    pub fn list(&self, prefix: &str) -> Result<Vec<Listed>, Error> {
        let mut listed = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let page = reply::page(self.ask(&Request::list(prefix, after.as_deref()))?)?;
            listed.extend(page.secrets);
            let Some(next) = page.next else {
                return Ok(listed);
            };
            after = Some(reply::advanced(after.as_deref(), next)?);
        }
    }

    /// Many values at once. A name that is refused is in [`Batch::errors`] and does not fail the others.
    pub fn batch(&self, names: &[&str]) -> Result<Batch, Error> {
        let mut batch = Batch::default();
        for names in names.chunks(MAX_BATCH) {
            reply::batch(&mut batch, self.ask(&Request::batch(names)?)?)?;
        }
        Ok(batch)
    }

    /// Asks for a new value of `name`. It has begun where this answers; a watch tells when the new value is there.
    pub fn rotate(&self, name: &str) -> Result<RotateReply, Error> {
        reply::rotation(&self.ask(&Request::rotate(&parse_name(name)?))?)
    }

    /// Who the agent thinks this process is, and what it may have.
    pub fn whoami(&self) -> Result<Whoami, Error> {
        reply::whoami(self.ask(&Request::whoami())?)
    }

    /// Whether the agent is ready, and why not.
    pub fn health(&self) -> Result<Health, Error> {
        reply::health(self.ask(&Request::health())?)
    }

    /// The value of `name` once its version is another one than `version`; `None` where it still is after `wait`.
    pub fn wait_for_change(
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
            let answer = self.ask(&Request::change(&wanted, version, left)?)?;
            let changed = reply::change(wanted.name(), answer)?;
            match poll_again(asked, deadline) {
                Some(pause) if changed.is_none() => thread::sleep(pause),
                _ => return Ok(changed),
            }
        }
    }

    /// What happens to these secrets, from now on. It connects again by itself where the connection is lost.
    pub fn watch(&self, names: &[&str]) -> Result<Watch, Error> {
        Watch::open(self.clone(), names, Stop::default())
    }

    /// A handle that always gives the newest value of `name`, kept up to date by a thread of its own.
    pub fn follow(&self, name: &str) -> Result<Followed, Error> {
        Followed::start(self.clone(), name)
    }

    /// Calls `told` with each new value of `name`, on a thread of its own, until what it returns is dropped.
    pub fn on_rotate(
        &self,
        name: &str,
        told: impl FnMut(Arc<Secret>) + Send + 'static,
    ) -> Result<OnRotate, Error> {
        let wanted = Wanted::parse(name)?;
        let held = Arc::new(self.fetch(&wanted)?);
        OnRotate::start(self.clone(), wanted, held, told)
    }

    /// Sends `request` on the kept connection, else on a new one, as often as a restart of the agent takes.
    fn ask(&self, request: &Request) -> Result<Reply, Error> {
        let limit = Limit::of(self.timeout + request.wait);
        let mut tries = Tries::new(request, limit, self.patience);
        loop {
            let connection = self.take();
            let kept = connection.is_some();
            match tries.after(self.exchange(connection, request, limit), kept) {
                Next::Done(done) => return done,
                Next::Again(pause) => thread::sleep(pause),
            }
        }
    }

    fn exchange(
        &self,
        kept: Option<Connection>,
        request: &Request,
        limit: Limit,
    ) -> Result<Reply, Error> {
        let mut connection = match kept {
            Some(connection) => connection,
            None => Connection::open(&self.address, limit)?,
        };
        let answer = connection.exchange(&self.address, request, limit)?;
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    /// What a child sees after a fork: everything is there, and belongs to another process.
    #[test]
    fn a_forked_child_uses_nothing_of_its_parents() {
        let mut client = Client::at("/nowhere");
        client.owner = 0;
        let (ours, theirs) = UnixStream::pair().unwrap();
        *client.kept.lock().unwrap() = Some(Connection::of(ours, 0));
        assert!(!client.is_ours());
        assert!(client.take().is_none());
        drop(theirs);
        let held = client.kept.lock().unwrap();
        assert!(client.take().is_none(), "a lock that is never given back");
        drop(held);
    }
}
