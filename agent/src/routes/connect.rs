//! A connection to an upstream.

use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper::rt::Executor;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::client::TlsStream;

use super::Route;
use super::failure::Failure;
use super::identity::Identity;
use super::insert::{Inserting, Insertions};
use super::insert_h2::InsertingH2;
use super::upload::Upload;
use super::way::Way;
use crate::http::{self, Pin, tls_words};

/// How long a connection may take, its name and TLS included.
const CONNECT: Duration = Duration::from_secs(10);

/// How large the buffers of a connection may grow; an answer's head has to fit.
const BUFFER: usize = 64 * 1024;
const LARGEST_HEAD: u32 = 64 * 1024;

/// How long nothing may go out on a connection that is to end by itself.
const QUIET: Duration = Duration::from_secs(5);

/// How much of an answer over HTTP/2 may be on its way to a bot that does not read.
const WINDOW: u32 = 64 * 1024;
/// The same of all answers of a connection. The library ends one where what small frames that nobody reads cost beyond
/// their bytes comes to half of it: several event streams that are left unread are no reason for that.
const WINDOW_OF_ALL: u32 = 1 << 25;

/// A connection.
pub struct Link {
    /// Sends requests on it.
    pub sender: Sender,
    /// What the next head is written with.
    pub insertions: Insertions,
    /// Who is at the other end: address and port.
    pub remote: Arc<str>,
    /// The version of the secret whose certificate it was opened with, where it was.
    pub identity: Option<Arc<str>>,
    tasks: Arc<Tasks>,
}

/// What drives a connection. It ends with the last link, whatever the upstream does not read or say; after [`Link::leave`]
/// it ends by itself.
struct Tasks(Spawning);

#[derive(Clone, Default)]
struct Spawning(Arc<Mutex<JoinSet<()>>>);

impl Drop for Tasks {
    fn drop(&mut self) {
        self.0.lock().abort_all();
    }
}

impl Tasks {
    /// Until they have ended, or nothing goes out any more.
    async fn end(self, insertions: Insertions) {
        loop {
            let before = insertions.written();
            sleep(QUIET).await;
            if self.0.reaped().is_empty() || insertions.written() == before {
                return;
            }
        }
    }
}

impl Spawning {
    fn reaped(&self) -> MutexGuard<'_, JoinSet<()>> {
        let mut tasks = self.lock();
        while tasks.try_join_next().is_some() {}
        tasks
    }

    fn lock(&self) -> MutexGuard<'_, JoinSet<()>> {
        held(&self.0)
    }
}

fn held<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<F: Future<Output: Send> + Send + 'static> Executor<F> for Spawning {
    fn execute(&self, future: F) {
        // A block that awaits it would have room for it twice.
        let mut future = Box::pin(future);
        self.reaped()
            .spawn(poll_fn(move |cx| future.as_mut().poll(cx).map(drop)));
    }
}

/// What is sent. The library keeps room for 32 requests with each connection, so a body is only pointed to.
pub type Asked = Request<Box<Upload>>;

/// Sends requests: one after the other, or several at once.
pub enum Sender {
    /// By HTTP/1.1.
    Http1(http1::SendRequest<Box<Upload>>),
    /// By HTTP/2, and how many at once the upstream takes.
    Http2(
        http2::SendRequest<Box<Upload>>,
        Arc<dyn Fn() -> usize + Send + Sync>,
    ),
}

impl Sender {
    /// Whether a request may be sent now.
    pub fn is_ready(&self) -> bool {
        match self {
            Self::Http1(sender) => sender.is_ready(),
            Self::Http2(sender, _) => sender.is_ready(),
        }
    }

    /// Whether the connection is at its end.
    pub fn is_closed(&self) -> bool {
        match self {
            Self::Http1(sender) => sender.is_closed(),
            Self::Http2(sender, _) => sender.is_closed(),
        }
    }

    /// Whether it is HTTP/2.
    pub fn is_http2(&self) -> bool {
        matches!(self, Self::Http2(..))
    }

    /// Sends a request.
    ///
    /// # Errors
    /// Why there is no answer, with the request where nothing of it has left.
    pub async fn send(
        &mut self,
        request: Asked,
    ) -> Result<Response<Incoming>, TrySendError<Asked>> {
        match self {
            Self::Http1(sender) => sender.try_send_request(request).await,
            Self::Http2(sender, _) => sender.try_send_request(request).await,
        }
    }
}

impl Link {
    /// The same connection once more, where several requests may share it.
    pub fn share(&self) -> Option<Self> {
        let Sender::Http2(sender, most) = &self.sender else {
            return None;
        };
        Some(Self {
            sender: Sender::Http2(sender.clone(), Arc::clone(most)),
            insertions: self.insertions.clone(),
            remote: Arc::clone(&self.remote),
            identity: self.identity.clone(),
            tasks: Arc::clone(&self.tasks),
        })
    }

    /// Has the connection say that it ends, and go on until then with a body that is still being sent.
    pub fn leave(self) {
        let Self {
            sender,
            insertions,
            tasks,
            ..
        } = self;
        drop(sender);
        // It is the last one's to end it.
        if let Some(tasks) = Arc::into_inner(tasks) {
            tokio::spawn(tasks.end(insertions));
        }
    }

    /// Whether one more request may be under way on it, where several share it.
    pub fn has_room(&self) -> bool {
        let Sender::Http2(_, most) = &self.sender else {
            return false;
        };
        // One is that of the pool.
        Arc::strong_count(&self.tasks) <= most()
    }
}

impl Route {
    /// A new connection to the upstream; one that speaks HTTP/1.1 where that is wanted, or the route has no other.
    pub(super) async fn connect(
        &self,
        identity: Option<&Identity>,
        http1: bool,
    ) -> Result<Link, Failure> {
        timeout(
            CONNECT,
            self.connect_now(identity, http1 || !self.config.http2),
        )
        .await
        .unwrap_or(Err(Failure::Timeout(CONNECT)))
    }

    async fn connect_now(&self, identity: Option<&Identity>, http1: bool) -> Result<Link, Failure> {
        let stream = Way::of(&self.config).tcp(&self.config.upstream).await?;
        let remote = stream.peer_addr().map_err(Failure::Connect)?;
        // A small request must not wait for the answer to the one before.
        stream.set_nodelay(true).map_err(Failure::Connect)?;
        let insertions = Insertions::default();
        let tasks = Spawning::default();
        let upstream = &self.config.upstream;
        let sender = if upstream.is_tls() {
            let name = upstream.server_name().ok_or(Failure::NoAnswer)?;
            let shown = identity.map(|identity| identity.connector(self.tls()?));
            let shown = shown.transpose()?;
            let tls = match &shown {
                Some((tls, _)) => tls,
                None => self.tls()?,
            };
            let both = (!http1).then(|| http::offering_http2(tls));
            let tls = both.as_ref().unwrap_or(tls);
            let stream = tls
                .connect(name, stream)
                .await
                .map_err(|error| Failure::Tls(tls_words(&error)))?;
            self.check_pins(&stream)?;
            if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
                begin_http2(InsertingH2::new(stream, insertions.clone()), &tasks).await?
            } else {
                begin(Inserting::new(stream, insertions.clone()), &tasks).await?
            }
        } else {
            begin(Inserting::new(stream, insertions.clone()), &tasks).await?
        };
        Ok(Link {
            sender,
            insertions,
            remote: remote.to_string().into(),
            identity: identity.map(|identity| Arc::clone(&identity.version)),
            tasks: Arc::new(Tasks(tasks)),
        })
    }

    /// Whether the server that was trusted has one of the keys that this route wants. Nothing was sent yet.
    fn check_pins(&self, stream: &TlsStream<TcpStream>) -> Result<(), Failure> {
        let pins = &self.config.pins;
        if pins.is_empty() {
            return Ok(());
        }
        let shown = stream.get_ref().1.peer_certificates();
        let own = shown.and_then(|chain| Pin::of(chain.first()?));
        if own.is_some_and(|own| pins.contains(&own)) {
            return Ok(());
        }
        let own = own.map_or_else(|| "unreadable".to_owned(), |own| own.to_string());
        Err(Failure::Pin(own))
    }
}

/// Forgets a connection at the end of what drives it, however that comes: its senders learn from that that it has ended.
struct Ended<T>(Arc<Mutex<Option<T>>>);

impl<T> Drop for Ended<T> {
    fn drop(&mut self) {
        *held(&self.0) = None;
    }
}

async fn begin(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    tasks: &Spawning,
) -> Result<Sender, Failure> {
    let (sender, connection) = http1::Builder::new()
        .max_buf_size(BUFFER)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|_| Failure::NoAnswer)?;
    tasks.execute(connection.with_upgrades());
    Ok(Sender::Http1(sender))
}

async fn begin_http2(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    tasks: &Spawning,
) -> Result<Sender, Failure> {
    let (sender, connection) = http2::Builder::new(tasks.clone())
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW_OF_ALL)
        .max_send_buf_size(BUFFER)
        .max_header_list_size(LARGEST_HEAD)
        // What an answer's head says of the credential is in no table that stays.
        .header_table_size(0)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|_| Failure::NoAnswer)?;
    let connection = Arc::new(Mutex::new(Some(connection)));
    let driven = Arc::clone(&connection);
    tasks.execute(async move {
        let drive = |cx: &mut Context<'_>| match &mut *held(&driven) {
            Some(connection) => std::pin::Pin::new(connection).poll(cx).map(drop),
            None => Poll::Ready(()),
        };
        let _ended = Ended(Arc::clone(&driven));
        poll_fn(drive).await;
    });
    let most = move || {
        held(&connection)
            .as_ref()
            .map_or(0, http2::Connection::current_max_send_streams)
    };
    Ok(Sender::Http2(sender, Arc::new(most)))
}
