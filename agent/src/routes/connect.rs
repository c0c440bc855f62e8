//! A connection to an upstream.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::client::conn::http1::{self, SendRequest};
use hyper::rt::{Read, Write};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

use super::Route;
use super::failure::Failure;
use super::identity::Identity;
use super::insert::{Inserting, Insertions};
use super::upload::Upload;
use super::way::Way;
use crate::http::{Pin, tls_words};

/// How long a connection may take, its name and TLS included.
const CONNECT: Duration = Duration::from_secs(10);

/// How large the buffers of a connection may grow; an answer's head has to fit.
const BUFFER: usize = 64 * 1024;

/// A connection.
pub struct Link {
    /// Sends requests on it.
    pub sender: SendRequest<Upload>,
    /// What the next head is written with.
    pub insertions: Insertions,
    /// Who is at the other end.
    pub remote: SocketAddr,
    /// The version of the secret whose certificate it was opened with, where it was.
    pub identity: Option<Arc<str>>,
}

impl Route {
    /// A new connection to the upstream.
    pub(super) async fn connect(&self, identity: Option<&Identity>) -> Result<Link, Failure> {
        timeout(CONNECT, self.connect_now(identity))
            .await
            .unwrap_or(Err(Failure::Timeout(CONNECT)))
    }

    async fn connect_now(&self, identity: Option<&Identity>) -> Result<Link, Failure> {
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
            let stream = tls
                .connect(name, stream)
                .await
                .map_err(|error| Failure::Tls(tls_words(&error)))?;
            self.check_pins(&stream)?;
            begin(TokioIo::new(Inserting::new(stream, insertions.clone()))).await?
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

async fn begin(
    io: impl Read + Write + Unpin + Send + 'static,
) -> Result<SendRequest<Upload>, Failure> {
    let (sender, connection) = http1::Builder::new()
        .max_buf_size(BUFFER)
        .handshake(io)
        .await
        .map_err(|_| Failure::NoAnswer)?;
    // It ends when the sender is dropped.
    tokio::spawn(connection.with_upgrades());
    Ok(sender)
}
