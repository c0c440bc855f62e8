//! The bots' socket: accepting, identifying, serving, and ending what stalls.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::{Future, Ready, pending, ready};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context as TaskContext, Poll};
use std::thread;
use std::time::{Duration, Instant};

use hyper::Request;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::Service;
use keyhatch_protocol::{Code, Problem};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{Shutdown, shutdown};
use tokio::io::unix::AsyncFd;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc::Receiver;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use super::answer::Answer;
use super::bind::Door;
use super::connection::Connection;
use super::context::Context;
use super::id::RequestId;
use super::io::{Io, Seconds, Stall};
use super::route::{self, Reply};
use crate::identity::Peer;
use crate::sys::exits::ExitSet;

/// A request's head has this many seconds to arrive, and an answer this many to be read.
const HEAD_SECONDS: u32 = 10;
const WRITE_SECONDS: u32 = 30;

/// The largest head of a request, and how many headers it may have.
const HEAD_BYTES: usize = 16 * 1024;
const HEADERS: usize = 64;

/// How long a drain waits: for answers that are being made, for peers that do not read theirs, and for those
/// that have connected and not asked yet.
pub(super) const DRAIN: Duration = Duration::from_secs(5);
const UNREAD: Duration = Duration::from_secs(1);
const UNASKED: Duration = Duration::from_millis(50);

/// How long what was cut may take to end.
const ENDING: Duration = Duration::from_secs(1);

/// Why the server cannot serve.
#[derive(Debug, thiserror::Error)]
#[error("cannot watch peers for their exit: {0}")]
pub struct ServerError(#[from] io::Error);

/// The server of the bots' socket.
pub struct Server {
    context: Arc<Context>,
    clock: Arc<Seconds>,
    open: Mutex<HashMap<u64, Open>>,
    next: AtomicU64,
    exits: AsyncFd<ExitSet>,
}

/// An open connection, as the sweep sees it.
struct Open {
    /// A second descriptor of the socket, to shut it down from outside.
    socket: OwnedFd,
    stall: Arc<Stall>,
    peer: Weak<Peer>,
    /// Watches and long polls that wait on it.
    waits: Arc<AtomicU32>,
    /// Serves it.
    task: Option<AbortHandle>,
}

impl Open {
    /// Whether a request is on its way or being answered, `after` so long a drain.
    fn is_under_way(&self, after: Duration) -> bool {
        self.waits.load(Relaxed) > 0
            || self.stall.is_answering()
            || self.stall.is_using()
            || after < UNREAD && self.stall.is_writing()
            || after < UNASKED && (self.stall.is_asking() || has_more(&self.socket))
    }
}

/// Whether the bot has closed its end. The HTTP library does not see that while bytes wait that it has no use for yet.
fn is_left(socket: &OwnedFd) -> bool {
    let mut asked = [PollFd::new(socket.as_fd(), PollFlags::empty())];
    poll(&mut asked, PollTimeout::ZERO) == Ok(1)
}

/// Whether a request has come in that was not looked at yet.
fn has_more(socket: &OwnedFd) -> bool {
    let mut asked = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    poll(&mut asked, PollTimeout::ZERO) == Ok(1)
}

impl Server {
    /// A server without a socket yet. Must be made inside the runtime.
    pub fn new(context: Arc<Context>) -> Result<Arc<Self>, ServerError> {
        let clock = Arc::new(Seconds::default());
        clock.set(1);
        Ok(Arc::new(Self {
            context,
            clock,
            open: Mutex::default(),
            next: AtomicU64::new(1),
            exits: ExitSet::new()?.into_async()?,
        }))
    }

    /// Accepts until it is dropped. Each of `rings` is answered by `beat`: this loop lives.
    pub async fn accept(
        self: Arc<Self>,
        listener: UnixListener,
        mut rings: Receiver<()>,
        mut beat: impl FnMut(),
    ) {
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => self.welcome(stream),
                    Err(error) => {
                        // Out of descriptors or memory: give the others time to end.
                        tracing::warn!(%error, "a connection was not accepted");
                        sleep(Duration::from_millis(50)).await;
                    }
                },
                Some(()) = rings.recv() => beat(),
            }
        }
    }

    /// Ends stalled connections, once a second, on a thread of its own: a timer in the request loop would
    /// have the kernel set one up each time the loop waits.
    pub fn sweep(server: &Arc<Self>) -> io::Result<()> {
        let server = Arc::downgrade(server);
        let start = Instant::now();
        let sweep = move || {
            while let Some(server) = server.upgrade() {
                let now = u32::try_from(start.elapsed().as_secs())
                    .unwrap_or(u32::MAX)
                    .saturating_add(1);
                server.clock.set(now);
                server.close_where(|open| open.stall.is_overdue(now, HEAD_SECONDS, WRITE_SECONDS));
                server.end_left();
                drop(server);
                thread::sleep(Duration::from_secs(1));
            }
        };
        thread::Builder::new()
            .name("sweep".into())
            .spawn(sweep)
            .map(drop)
    }

    /// Marks peers that have exited, for as long as the process lives.
    ///
    /// To be awaited by the runtime's main task, which runs before all others after each look at the
    /// kernel's events: an exit told along with a request then counts for that request.
    pub async fn watch_exits(self: Arc<Self>) -> Infallible {
        loop {
            // It fails only as the runtime ends.
            let Ok(mut ready) = self.exits.readable().await else {
                return pending().await;
            };
            match ready.get_inner().take() {
                Ok(tokens) if tokens.is_empty() => ready.clear_ready(),
                Ok(tokens) => tokens.into_iter().for_each(|token| self.peer_exited(token)),
                Err(error) => {
                    tracing::error!(%error, "exits of peers are not told");
                    ready.clear_ready();
                }
            }
        }
    }

    /// Ends the connections whose answers still hold a value, or on which one is used.
    pub fn close_writers(&self) {
        self.close_where(|open| open.stall.is_writing() || open.stall.is_using());
    }

    /// Lets requests under way finish and ends all else; returns when nothing is open or time is up.
    /// Whoever accepts must have stopped.
    pub async fn drain(&self) {
        self.context.health.draining.store(true, Relaxed);
        // What waits for a change answers at once.
        self.context.cache.wake();
        let start = Instant::now();
        while !self.open().is_empty() && start.elapsed() < DRAIN {
            self.close_where(|open| !open.is_under_way(start.elapsed()));
            sleep(Duration::from_millis(5)).await;
        }
        self.close_where(|_| true);
        let ended = async {
            while !self.open().is_empty() {
                sleep(Duration::from_millis(5)).await;
            }
        };
        // Uses of routes that were cut have their ends recorded.
        let _ = timeout(ENDING, ended).await;
    }

    fn welcome(self: &Arc<Self>, stream: UnixStream) {
        let peer = match Peer::identify(&stream, self.context.kernel) {
            Ok(peer) => Arc::new(peer),
            Err(error) => {
                tracing::debug!(%error, "a peer could not be identified");
                return;
            }
        };
        let Some(limits) = self.context.limits.connect(peer.uid().unwrap_or(u32::MAX)) else {
            self.context.counts.limited.fetch_add(1, Relaxed);
            refuse(&stream, &self.context.ids.next());
            return;
        };
        let Ok(socket) = stream.as_fd().try_clone_to_owned() else {
            return;
        };
        let token = self.next.fetch_add(1, Relaxed);
        let stall = Arc::new(Stall::default());
        let open = Open {
            socket,
            stall: Arc::clone(&stall),
            peer: Arc::downgrade(&peer),
            waits: limits.waits(),
            task: None,
        };
        self.open().insert(token, open);
        if let Some(pidfd) = peer.pidfd()
            && self.exits.get_ref().watch(pidfd, token).is_err()
        {
            // Without that its exit would go unseen.
            peer.set_gone();
        }
        let server = Arc::clone(self);
        let task = tokio::spawn(async move {
            let io = Io::new(stream, Arc::clone(&stall), Arc::clone(&server.clock));
            let context = Arc::clone(&server.context);
            let connection = Connection::new(context, peer, stall, limits, Door::Bots).await;
            serve(io, Arc::new(connection)).await;
            server.open().remove(&token);
        });
        if let Some(open) = self.open().get_mut(&token) {
            open.task = Some(task.abort_handle());
        }
    }

    fn peer_exited(&self, token: u64) {
        let open = self.open();
        let Some(open) = open.get(&token) else { return };
        if let Some(peer) = open.peer.upgrade() {
            peer.set_gone();
        }
        // What waits for this peer is judged again, and refused; the connection itself stays, so that
        // whoever holds it now gets an answer that says why.
        if open.waits.load(Relaxed) > 0 || open.stall.is_using() {
            self.context.cache.wake();
        }
    }

    /// Ends the uses of routes whose bots have left: an upstream may be silent for long, and each takes a turn.
    fn end_left(&self) {
        self.open().retain(|_, open| {
            let left = open.stall.is_using() && is_left(&open.socket);
            if let Some(task) = open.task.as_ref().filter(|_| left) {
                task.abort();
            }
            !left
        });
    }

    fn close_where(&self, condition: impl Fn(&Open) -> bool) {
        for open in self.open().values().filter(|open| condition(open)) {
            // It may have ended by itself meanwhile.
            let _ = shutdown(open.socket.as_raw_fd(), Shutdown::Both);
        }
    }

    fn open(&self) -> MutexGuard<'_, HashMap<u64, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Answers a connection that is over the limit, without waiting for a request.
fn refuse(stream: &UnixStream, id: &RequestId) {
    let why = "too many connections of this user, or in all";
    let problem = Problem::new(
        Code::RateLimited,
        Some(why.to_owned()),
        id.as_str().to_owned(),
    );
    // Our documents have text keys and no type that fails to serialise.
    let body = serde_json::to_string(&problem).unwrap_or_default();
    let answer = format!(
        "HTTP/1.1 429 Too Many Requests\r\nretry-after: 1\r\ncache-control: no-store\r\n\
         content-type: application/problem+json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    // A peer that does not read gets nothing.
    let _ = stream.try_write(answer.as_bytes());
}

/// Serves HTTP/1.1 until the peer ends or the socket is shut down.
async fn serve(io: Io, connection: Arc<Connection>) {
    let mut http = http1::Builder::new();
    http.max_headers(HEADERS)
        .max_buf_size(HEAD_BYTES)
        .writev(true);
    let stall = Arc::clone(&connection.stall);
    let served = http
        .serve_connection(io, Handler(connection))
        .with_upgrades();
    if let Err(error) = served.await {
        tracing::debug!(%error, "a connection ended");
    }
    stall.until_unused().await;
}

/// Hands each request of a connection to the surface that answers it.
struct Handler(Arc<Connection>);

impl Service<Request<Incoming>> for Handler {
    type Response = Answer;
    type Error = Infallible;
    type Future = Answering;

    fn call(&self, request: Request<Incoming>) -> Answering {
        self.0.stall.head_is_whole();
        match route::reply(&self.0, request) {
            Reply::Now(answer) => Answering::Now(ready(Ok(last_in_a_drain(&self.0, answer)))),
            Reply::Later(future) => {
                self.0.stall.answer_begins();
                Answering::Later(future, Arc::clone(&self.0))
            }
        }
    }
}

/// An answer that is there, or one that has to wait.
enum Answering {
    Now(Ready<Result<Answer, Infallible>>),
    Later(
        Pin<Box<dyn Future<Output = Answer> + Send>>,
        Arc<Connection>,
    ),
}

/// Tells a peer whose connection is about to be closed to ask on a new one.
fn last_in_a_drain(connection: &Connection, mut answer: Answer) -> Answer {
    if connection.context.health.draining.load(Relaxed) {
        let close = HeaderValue::from_static("close");
        answer.headers_mut().insert(CONNECTION, close);
    }
    answer
}

impl Future for Answering {
    type Output = Result<Answer, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Self::Output> {
        match self.get_mut() {
            Self::Now(ready) => Pin::new(ready).poll(cx),
            Self::Later(future, connection) => {
                let answer = std::task::ready!(future.as_mut().poll(cx));
                connection.stall.answer_is_made();
                Poll::Ready(Ok(last_in_a_drain(connection, answer)))
            }
        }
    }
}
