//! One request to one of several servers that count as the same upstream.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper::header::{HOST, HeaderValue};
use hyper::rt::{Read, Write};
use hyper::{HeaderMap, Method, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::{AlertDescription, CertificateError, Error as RustlsError};

use super::address::Address;
use super::pool::{Pool, Sender};
use super::read::{Bound, Content};
use crate::sys::arena::Full as ArenaFull;

/// How many connections there are at most, those that wait included.
const CONNECTIONS: usize = 8;
/// How large an answer's head may be.
const HEAD: usize = 64 * 1024;

/// The client of one upstream.
pub struct Client {
    addresses: Vec<Address>,
    tls: Option<TlsConnector>,
    pool: Arc<Pool>,
    slots: Semaphore,
}

/// What is asked. Cloning it copies no secret.
#[derive(Clone)]
pub struct Request {
    /// The method.
    pub method: Method,
    /// Path and query, percent-encoded.
    pub path: String,
    /// All but `Host` and the length.
    pub headers: HeaderMap,
    /// Empty where there is none.
    pub body: Bytes,
}

/// What was answered, whole.
pub struct Response {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Content,
}

/// Why there is no answer. Never holds what the server sent.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The name is not known, or nobody listens.
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    /// No TLS.
    #[error("TLS: {0}")]
    Tls(String),
    /// Not HTTP, or the connection ended before the answer began.
    #[error("the connection ended before an answer, or what came is not HTTP")]
    NoAnswer,
    /// The connection ended within the body.
    #[error("the answer is cut short")]
    CutShort,
    /// No whole answer in time.
    #[error("no answer within {:.1} s", .0.as_secs_f32())]
    Timeout(Duration),
    /// The path cannot be asked for.
    #[error("the path cannot be written in a request")]
    Path,
    /// Larger than it may be.
    #[error("the answer is larger than {0} bytes")]
    TooLarge(usize),
    /// Secret memory is full.
    #[error("{0}")]
    Full(#[from] ArenaFull),
}

impl Client {
    /// A client of these servers. `tls` may be left out where none is `https`.
    #[must_use]
    pub fn new(addresses: Vec<Address>, tls: Option<TlsConnector>) -> Self {
        Self {
            addresses,
            tls,
            pool: Arc::default(),
            slots: Semaphore::new(CONNECTIONS),
        }
    }

    /// The servers.
    #[must_use]
    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// Asks server `to` and reads the answer, `within` this time once a connection may be used.
    pub async fn send(
        &self,
        to: usize,
        request: &Request,
        bound: &Bound,
        within: Duration,
    ) -> Result<Response, Failure> {
        let _slot = self.slots.acquire().await.map_err(|_| Failure::NoAnswer)?;
        timeout(within, self.exchange(to, request, bound))
            .await
            .unwrap_or(Err(Failure::Timeout(within)))
    }

    /// Closes the connections that wait.
    pub fn close_idle(&self) {
        self.pool.keep(0);
    }

    async fn exchange(
        &self,
        to: usize,
        request: &Request,
        bound: &Bound,
    ) -> Result<Response, Failure> {
        // A server may close a waiting connection at any time. Only what may be asked twice is sent on one.
        if request.method == Method::GET
            && let Some(sender) = self.pool.take(to)
        {
            match self.on(sender, to, request, bound).await {
                Err(Failure::NoAnswer) => {}
                other => return other,
            }
        }
        self.pool.keep(self.slots.available_permits());
        let sender = self.connect(to).await?;
        self.on(sender, to, request, bound).await
    }

    async fn on(
        &self,
        mut sender: Sender,
        to: usize,
        request: &Request,
        bound: &Bound,
    ) -> Result<Response, Failure> {
        let response = ask(&mut sender, &self.addresses[to], request, bound).await?;
        if sender.ready().await.is_ok() {
            self.pool.put(to, sender);
        }
        Ok(response)
    }

    async fn connect(&self, to: usize) -> Result<Sender, Failure> {
        let address = &self.addresses[to];
        let stream = TcpStream::connect(address.target())
            .await
            .map_err(Failure::Connect)?;
        begin(stream, address, self.tls.as_ref()).await
    }
}

/// Asks `address` on a connection of the caller's own, which ends with the answer.
pub async fn once(
    stream: TcpStream,
    address: &Address,
    tls: Option<&TlsConnector>,
    request: &Request,
    bound: &Bound,
) -> Result<Response, Failure> {
    let mut sender = begin(stream, address, tls).await?;
    ask(&mut sender, address, request, bound).await
}

async fn ask(
    sender: &mut Sender,
    address: &Address,
    request: &Request,
    bound: &Bound,
) -> Result<Response, Failure> {
    let mut message = hyper::Request::new(Full::new(request.body.clone()));
    *message.method_mut() = request.method.clone();
    *message.uri_mut() = request.path.parse().map_err(|_| Failure::Path)?;
    *message.headers_mut() = request.headers.clone();
    let host = HeaderValue::from_str(&address.authority()).map_err(|_| Failure::Path)?;
    message.headers_mut().insert(HOST, host);
    let answer = sender
        .send_request(message)
        .await
        .map_err(|error| unanswered(&error))?;
    let (head, body) = answer.into_parts();
    let body = Content::read(body, bound).await?;
    Ok(Response {
        status: head.status,
        headers: head.headers,
        body,
    })
}

async fn begin(
    stream: TcpStream,
    address: &Address,
    tls: Option<&TlsConnector>,
) -> Result<Sender, Failure> {
    // A small request must not wait for the answer to the one before.
    stream.set_nodelay(true).map_err(Failure::Connect)?;
    if !address.is_tls() {
        return handshake(TokioIo::new(stream)).await;
    }
    let (Some(tls), Some(name)) = (tls, address.server_name()) else {
        return Err(Failure::Tls("is not set up".into()));
    };
    let stream = tls
        .connect(name, stream)
        .await
        .map_err(|error| Failure::Tls(tls_words(&error)))?;
    handshake(TokioIo::new(stream)).await
}

async fn handshake(io: impl Read + Write + Unpin + Send + 'static) -> Result<Sender, Failure> {
    let (sender, connection) = http1::Builder::new()
        .max_buf_size(HEAD)
        .handshake(io)
        .await
        .map_err(|_| Failure::NoAnswer)?;
    // It ends when the sender is dropped.
    tokio::spawn(connection);
    Ok(sender)
}

/// TLS 1.3 tells only after the handshake that the server wants a client certificate.
pub(crate) fn unanswered(error: &hyper::Error) -> Failure {
    let cause = error
        .source()
        .and_then(|cause| cause.downcast_ref::<io::Error>());
    match cause {
        Some(cause) if rustls_error(cause).is_some() => Failure::Tls(tls_words(cause)),
        _ => Failure::NoAnswer,
    }
}

fn rustls_error(error: &io::Error) -> Option<&RustlsError> {
    error.get_ref()?.downcast_ref()
}

/// A certificate's names are the server's own words, so they are left out.
pub(crate) fn tls_words(error: &io::Error) -> String {
    match rustls_error(error) {
        Some(RustlsError::InvalidCertificate(why)) => {
            format!("the server's certificate {}", certificate_words(why))
        }
        Some(RustlsError::AlertReceived(AlertDescription::CertificateRequired)) => {
            "the server wants a client certificate".into()
        }
        Some(RustlsError::AlertReceived(alert)) => format!("the server refused: {alert:?}"),
        Some(RustlsError::InvalidMessage(_)) => "the server does not speak TLS".into(),
        Some(other) => format!("the handshake failed: {other}"),
        None => format!("the handshake failed: {}", error.kind()),
    }
}

fn certificate_words(why: &CertificateError) -> &'static str {
    match why {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "has expired (is the clock right?)"
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "is not valid yet (is the clock right?)"
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "is for another name than the address has"
        }
        CertificateError::UnknownIssuer => {
            "comes from an authority that is not trusted; see ca_file"
        }
        CertificateError::Revoked => "is revoked",
        _ => "is not valid",
    }
}
