//! The credentials socket: what a unit's `LoadCredential=ID:SOCKET` fetches (systemd.exec(5)).
//!
//! systemd connects as root from inside the unit's cgroup, names unit and id in the address that it binds, and
//! takes all that comes until the end for the credential: nothing at all would be an empty one. So whatever is
//! refused is answered with more than systemd takes, and the unit fails with `243/CREDENTIALS`. That goes for
//! anyone who asks: a user's own service manager reads in the same way.

use std::future::Future;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream as StdStream;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use nix::sys::socket::{Shutdown, UnixAddr, getpeername, shutdown};
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::bind::Door;
use super::connection::{Bound, Connection};
use super::context::Context;
use super::id::RequestId;
use super::io::Stall;
use super::limits::Connected;
use super::reading::{self, Granted, Reading};
use super::request::{Secret, Which};
use super::supply;
use super::surface::Surface;
use crate::audit::extra;
use crate::cache::{Form, Lease};
use crate::identity::Peer;
use crate::policy::Reason;
use crate::sources::engine::{Pending, Supply};
use crate::sys::manager::Manager;

/// systemd takes 1 MiB, and an eighth more where it is to decrypt what it gets.
const TOO_LONG: usize = 2 << 20;
static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

/// How long an upstream may take, and how long an answer may take to be read.
const SUPPLY: Duration = Duration::from_secs(15);
const WRITE: Duration = Duration::from_secs(10);

/// How long a drain waits for answers that are under way.
const DRAIN: Duration = Duration::from_secs(5);

/// What the service manager calls the connections that it holds for us.
pub const HELD: &str = "unanswered";

/// The server of the credentials socket.
pub struct Server {
    context: Arc<Context>,
    manager: Arc<Manager>,
    state: watch::Sender<State>,
}

#[derive(Default)]
struct State {
    /// Connections that have no whole answer yet.
    open: usize,
    stopping: bool,
}

impl Server {
    /// A server without a socket yet.
    pub fn new(context: Arc<Context>, manager: Arc<Manager>) -> Arc<Self> {
        Arc::new(Self {
            context,
            manager,
            state: watch::Sender::default(),
        })
    }

    /// Accepts until it is drained. Who has not been accepted by then is left to the socket, and to the next
    /// daemon where that outlives this one.
    pub async fn accept(self: Arc<Self>, listener: UnixListener) {
        while let Some(accepted) = self.unless_stopping(listener.accept()).await {
            match accepted {
                Ok((stream, _)) => self.welcome(stream),
                Err(error) => {
                    tracing::warn!(%error, "a connection for a credential was not accepted");
                    sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    /// Has those answered who were accepted; what waits for an upstream is refused. Nobody gets half an answer.
    pub async fn drain(&self) {
        self.state.send_modify(|state| state.stopping = true);
        let mut state = self.state.subscribe();
        // At the end of the time there are only those left who do not read.
        let _ = timeout(DRAIN, state.wait_for(|state| state.open == 0)).await;
    }

    /// Refuses whom a daemon before this one had accepted when it was killed. It may have sent the value already,
    /// so that sending it again could double it.
    pub fn refuse(self: &Arc<Self>, stream: StdStream) {
        tracing::warn!(
            "the agent was killed while it was asked for a credential, which is refused now"
        );
        let stream = stream
            .set_nonblocking(true)
            .and_then(|()| UnixStream::from_std(stream));
        if let Ok(stream) = stream {
            self.answer(stream, None);
        }
    }

    fn welcome(self: &Arc<Self>, stream: UnixStream) {
        let Some(asker) = self.identify(&stream) else {
            return;
        };
        if asker.0.uid() == Some(0) {
            // Were this process killed from here on, the end of the connection would pass for an empty answer.
            self.manager.hold(HELD, stream.as_fd());
        }
        self.answer(stream, Some(asker));
    }

    /// Answers whoever asks, if that may be.
    fn answer(self: &Arc<Self>, mut stream: UnixStream, asker: Option<(Peer, Connected)>) {
        let server = Arc::clone(self);
        self.state.send_modify(|state| state.open += 1);
        tokio::spawn(async move {
            let lease = match asker {
                Some(asker) => server.lease(&stream, asker).await,
                None => None,
            };
            let answer = async {
                match lease {
                    Some(lease) => stream.write_all(lease.as_ref()).await,
                    None => refuse(&mut stream).await,
                }
            };
            // Who has heard enough, or does not read, ends it.
            let _ = timeout(WRITE, answer).await;
            // Ends it also where someone else holds it.
            let _ = shutdown(stream.as_raw_fd(), Shutdown::Both);
            drop(stream);
            server.state.send_modify(|state| state.open -= 1);
        });
    }

    /// Who asks; nothing where that user has too many connections. Root never has: a unit that starts must not
    /// find an empty answer.
    fn identify(&self, stream: &UnixStream) -> Option<(Peer, Connected)> {
        let peer = Peer::identify(stream, self.context.kernel)
            .inspect_err(|error| tracing::warn!(%error, "who asks for a credential is unknown"))
            .ok()?;
        let limits = &self.context.limits;
        let connected = match peer.uid() {
            Some(0) => Some(limits.connect_always(0)),
            uid => limits.connect(uid.unwrap_or(u32::MAX)),
        };
        if connected.is_none() {
            self.context.counts.limited.fetch_add(1, Relaxed);
        }
        Some((peer, connected?))
    }

    /// Decides, and keeps the record; nothing where it is refused.
    async fn lease(&self, stream: &UnixStream, (peer, limits): (Peer, Connected)) -> Option<Lease> {
        let claim = Claim::of(stream);
        let (unit, credential) = claim.map(|claim| (claim.unit, claim.id)).unzip();
        let connection = Connection::new(
            Arc::clone(&self.context),
            Arc::new(peer),
            Arc::new(Stall::default()),
            limits,
            Door::Credentials(unit),
        )
        .await;
        let credential = credential.unwrap_or_default();
        self.read(&connection, &self.context.ids.next(), &credential)
            .await
    }

    async fn read(&self, connection: &Connection, id: &RequestId, asked: &str) -> Option<Lease> {
        let bound = connection.bound().await;
        let ask = wanted(connection, &bound, id, asked)?;
        let supply = match supply::ask(connection, &bound, &ask) {
            Some(pending) => Some(self.supply(connection, &ask, pending).await),
            None => None,
        };
        // The policy may have changed while an upstream was asked.
        let bound = connection.bound().await;
        let reading = Reading {
            extra: Some(&extra(&[("credential", asked.into())])),
            ..Reading::of(Surface::Credential, &ask, supply)
        };
        let granted = reading::read(connection, &bound, id, &reading).ok()?;
        lease_of(connection, &granted, ask.field.as_deref())
    }

    /// What an upstream says within the time that there is.
    async fn supply(&self, connection: &Connection, ask: &Secret, pending: Pending) -> Supply {
        let supplied = timeout(SUPPLY, supply::wait(connection, ask, pending));
        match self.unless_stopping(supplied).await {
            Some(Ok(supply)) => supply,
            _ => Supply::Unavailable,
        }
    }

    async fn unless_stopping<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        let mut state = self.state.subscribe();
        tokio::select! {
            biased;
            _ = state.wait_for(|state| state.stopping) => None,
            output = future => Some(output),
        }
    }
}

/// What the id stands for; where to nothing, that is recorded.
fn wanted(connection: &Connection, bound: &Bound, id: &RequestId, asked: &str) -> Option<Secret> {
    let decision = match bound.policy.credential(&bound.found, asked) {
        Ok(credential) => {
            return Some(Secret {
                name: credential.name.clone(),
                which: Which::Current,
                field: credential.field.clone(),
            });
        }
        Err(decision) => decision,
    };
    let mut members = vec![("credential", asked.into())];
    if decision.reason() == Reason::NoGrant {
        let why = format!("the bot has no credential {asked:?}");
        members.push(("message", why.into()));
    }
    connection.refuse(bound, id, decision, &extra(&members));
    None
}

fn lease_of(connection: &Connection, granted: &Granted, field: Option<&str>) -> Option<Lease> {
    let Granted {
        entry,
        version,
        permit,
        ..
    } = granted;
    let Some(field) = field else {
        return Some(version.lease(permit, Form::Raw));
    };
    let arena = connection.context.cache.arena();
    version
        .lease_field(permit, arena, entry, field, Form::Raw)
        .unwrap_or_else(|error| {
            tracing::warn!(%error, "a field could not be rendered");
            None
        })
}

/// Answers with more than systemd takes.
async fn refuse(stream: &mut UnixStream) -> std::io::Result<()> {
    for _ in 0..TOO_LONG / ZEROS.len() {
        stream.write_all(&ZEROS).await?;
    }
    Ok(())
}

/// What systemd says that it asks for, in the address that it binds: `\0RANDOM/unit/UNIT/ID`.
#[derive(Debug, PartialEq, Eq)]
struct Claim {
    unit: String,
    id: String,
}

impl Claim {
    fn of(stream: &UnixStream) -> Option<Self> {
        let address: UnixAddr = getpeername(stream.as_raw_fd()).ok()?;
        Self::parse(address.as_abstract()?)
    }

    fn parse(address: &[u8]) -> Option<Self> {
        let mut words = std::str::from_utf8(address).ok()?.splitn(4, '/');
        let random = words.next()?;
        let is_random =
            (1..=16).contains(&random.len()) && random.bytes().all(|byte| byte.is_ascii_hexdigit());
        let (kind, unit, id) = (words.next()?, words.next()?, words.next()?);
        (is_random && kind == "unit").then(|| Self {
            unit: unit.to_owned(),
            id: id.to_owned(),
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_systemd_binds_is_read_and_nothing_like_it() {
        let claim = |text: &str| Claim::parse(text.as_bytes());
        for (text, unit, id) in [
            (
                "a0b1c2d3e4f50617/unit/bot@1.service/db-password",
                "bot@1.service",
                "db-password",
            ),
            // The number is not padded, and an id may hold anything but a slash and a colon.
            ("f/unit/x.service/a b", "x.service", "a b"),
        ] {
            let found = claim(text).unwrap();
            assert_eq!((&*found.unit, &*found.id), (unit, id));
        }
        for text in [
            "",
            "f/unit/x.service",
            "/unit/x.service/db",
            "f/user/x.service/db",
            "g/unit/x.service/db",
            "00000000000000000/unit/x.service/db",
        ] {
            assert_eq!(claim(text), None, "{text}");
        }
        assert_eq!(Claim::parse(b"f/unit/\xff.service/db"), None);
    }
}
