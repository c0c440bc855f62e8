//! A connection to an upstream.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper::rt::{Read, Write};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
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

/// How much of an answer over HTTP/2 may be on its way to a bot that does not read, and of all of a connection's.
const WINDOW: u32 = 64 * 1024;
const WINDOW_OF_ALL: u32 = 1 << 20;

/// A connection.
pub struct Link {
    /// Sends requests on it.
    pub sender: Sender,
    /// What the next head is written with.
    pub insertions: Insertions,
    /// Who is at the other end.
    pub remote: SocketAddr,
    /// The version of the secret whose certificate it was opened with, where it was.
    pub identity: Option<Arc<str>>,
}

/// Sends requests: one after the other, or several at once.
pub enum Sender {
    /// By HTTP/1.1.
    Http1(http1::SendRequest<Upload>),
    /// By HTTP/2.
    Http2(http2::SendRequest<Upload>),
}

impl Sender {
    /// Whether a request may be sent now.
    pub fn is_ready(&self) -> bool {
        match self {
            Self::Http1(sender) => sender.is_ready(),
            Self::Http2(sender) => sender.is_ready(),
        }
    }

    /// Whether the connection is at its end.
    pub fn is_closed(&self) -> bool {
        match self {
            Self::Http1(sender) => sender.is_closed(),
            Self::Http2(sender) => sender.is_closed(),
        }
    }

    /// Whether it is HTTP/2.
    pub fn is_http2(&self) -> bool {
        matches!(self, Self::Http2(_))
    }

    /// Sends a request.
    ///
    /// # Errors
    /// Why there is no answer, with the request where nothing of it has left.
    pub async fn send(
        &mut self,
        request: Request<Upload>,
    ) -> Result<Response<Incoming>, TrySendError<Request<Upload>>> {
        match self {
            Self::Http1(sender) => sender.try_send_request(request).await,
            Self::Http2(sender) => sender.try_send_request(request).await,
        }
    }
}

impl Link {
    /// The same connection once more, where several requests may share it.
    pub fn share(&self) -> Option<Self> {
        let Sender::Http2(sender) = &self.sender else {
            return None;
        };
        Some(Self {
            sender: Sender::Http2(sender.clone()),
            insertions: self.insertions.clone(),
            remote: self.remote,
            identity: self.identity.clone(),
        })
    }

    /// Whether it is the same connection.
    pub fn is_same(&self, other: &Self) -> bool {
        self.insertions.is_same(&other.insertions)
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
                begin_http2(InsertingH2::new(stream, insertions.clone())).await?
            } else {
                begin(TokioIo::new(Inserting::new(stream, insertions.clone()))).await?
            }
        } else {
            begin(TokioIo::new(Inserting::new(stream, insertions.clone()))).await?
        };
        Ok(Link {
            sender,
            insertions,
            remote,
            identity: identity.map(|identity| Arc::clone(&identity.version)),
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

async fn begin(io: impl Read + Write + Unpin + Send + 'static) -> Result<Sender, Failure> {
    let (sender, connection) = http1::Builder::new()
        .max_buf_size(BUFFER)
        .handshake(io)
        .await
        .map_err(|_| Failure::NoAnswer)?;
    // It ends when the sender is dropped.
    tokio::spawn(connection.with_upgrades());
    Ok(Sender::Http1(sender))
}

async fn begin_http2(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> Result<Sender, Failure> {
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW_OF_ALL)
        .max_send_buf_size(BUFFER)
        .max_header_list_size(LARGEST_HEAD)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|_| Failure::NoAnswer)?;
    // It ends when the last sender is dropped.
    tokio::spawn(connection);
    Ok(Sender::Http2(sender))
}
