//! One request to a route's upstream, up to the head of its answer.

use std::error::Error as _;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::{Body as _, Incoming};
use hyper::header::{CONNECTION, CONTENT_LENGTH, HOST, HeaderName, HeaderValue, TRANSFER_ENCODING};
use hyper::http::response;
use hyper::upgrade::OnUpgrade;
use hyper::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use tokio::time::{Instant, timeout};

use super::Route;
use super::connect::{Asked, Link};
use super::credential::Credential;
use super::failure::Failure;
use super::headers;
use super::insert::Insertions;
use super::path::{Target, escape_reserved};
use super::pool::{Pool, Wanted};
use super::tunnel;
use super::upload::{Progress, Upload};
use crate::http;

/// An upstream that says nothing for so long may be gone.
const SILENT: Duration = Duration::from_secs(1);

/// What a bot asks of a route.
pub struct Outgoing {
    /// The method.
    pub method: Method,
    /// Path and query.
    pub target: Target,
    /// The bot's headers, as they came.
    pub headers: HeaderMap,
    /// Whether it asks for a WebSocket.
    pub websocket: bool,
}

/// An answer, of which the head is here.
pub struct Answered {
    /// Its head, cleaned but not yet searched.
    pub head: response::Parts,
    pub(super) body: Incoming,
    pub(super) link: Link,
    /// Who answered: address and port.
    pub remote: Arc<str>,
    /// The connection, once it speaks another protocol.
    pub(super) upgrade: Option<OnUpgrade>,
}

impl Route {
    /// How long the upstream may be silent.
    #[must_use]
    pub fn patience(&self) -> Duration {
        self.config.timeout
    }

    /// Sends a request with the credential in it.
    ///
    /// # Errors
    /// Why there is no answer, or none that may be given on.
    pub async fn send(
        &self,
        bot: &str,
        outgoing: &Outgoing,
        credential: &Credential,
        mut upload: Upload,
        progress: &Arc<Progress>,
    ) -> Result<Answered, Failure> {
        let identity = credential.identity.as_ref();
        let mut waited = self.pool.take(&Wanted {
            identity: identity.map(|identity| &identity.version),
            bot,
            http1: outgoing.websocket,
        });
        loop {
            let is_fresh = waited.is_none();
            let mut link = match waited.take() {
                Some(link) => link,
                // Seldom, and much larger than all else that a request carries about.
                None => Box::pin(self.connect(identity, outgoing.websocket)).await?,
            };
            if is_fresh {
                self.pool.share(&link, bot);
            }
            let again = upload.again();
            let is_http2 = link.sender.is_http2();
            let request = self.request(outgoing, credential, upload, is_http2)?;
            let insertions = link.insertions.clone();
            let asking = Asking::on(&self.pool, &insertions);
            let added = insertions.add(&credential.insertions);
            let sent = link.sender.send(request);
            let sent = within(self.patience(), progress, sent).await;
            drop((added, asking));
            if !matches!(sent, Ok(Ok(_))) {
                self.pool.close(&insertions);
            }
            match sent? {
                Ok(answer) => return self.answered(outgoing, answer, link),
                Err(mut error) => {
                    if let Some(trouble) = progress.trouble() {
                        return Err(trouble);
                    }
                    let unsent = error.take_message().map(|asked| *asked.into_body());
                    // A server may close a waiting connection at any time.
                    let is_repeatable =
                        outgoing.method.is_idempotent() || is_unprocessed(error.error());
                    let again = unsent.or(again.filter(|_| is_repeatable));
                    match again.filter(|_| !is_fresh) {
                        Some(same) => upload = same,
                        None => return Err(unanswered(error.error())),
                    }
                }
            }
        }
    }

    fn answered(
        &self,
        outgoing: &Outgoing,
        mut answer: Response<Incoming>,
        link: Link,
    ) -> Result<Answered, Failure> {
        let switches = answer.status() == StatusCode::SWITCHING_PROTOCOLS;
        if switches && !(outgoing.websocket && tunnel::is_agreed(answer.headers())) {
            return Err(Failure::Switched);
        }
        let upgrade = switches.then(|| hyper::upgrade::on(&mut answer));
        let (mut head, body) = answer.into_parts();
        if !body.is_end_stream() && headers::is_encoded(&head.headers) {
            return Err(Failure::Encoded);
        }
        if body.size_hint().lower() > self.largest_answer() {
            return Err(Failure::AnswerTooLarge);
        }
        headers::from_upstream(&mut head.headers);
        Ok(Answered {
            head,
            body,
            remote: Arc::clone(&link.remote),
            link,
            upgrade,
        })
    }

    fn request(
        &self,
        outgoing: &Outgoing,
        credential: &Credential,
        upload: Upload,
        is_http2: bool,
    ) -> Result<Asked, Failure> {
        let injected = credential.headers.iter().map(|(name, _)| name);
        let injected: Vec<HeaderName> = injected.chain(credential.replaced).cloned().collect();
        let framing = framing(&outgoing.method, &upload);
        let mut request = Request::new(Box::new(upload));
        *request.method_mut() = outgoing.method.clone();
        let target = uri(&outgoing.target, credential);
        let target = if is_http2 {
            target.and_then(|target| self.absolute(&target))
        } else {
            target
        };
        *request.uri_mut() = target.ok_or(Failure::NoAnswer)?;
        let headers = request.headers_mut();
        *headers = headers::to_upstream(&outgoing.headers, &injected);
        if is_http2 {
            // The frames say where the body ends, and the connection is nobody's own.
            headers.remove(CONNECTION);
        } else {
            headers.insert(HOST, self.host.clone());
            headers.extend(framing);
        }
        headers.extend(credential.headers.iter().cloned());
        if outgoing.websocket {
            tunnel::switch(headers);
        }
        Ok(request)
    }

    /// As HTTP/2 has it, with scheme and authority.
    fn absolute(&self, target: &Uri) -> Option<Uri> {
        let path = target.path_and_query()?.clone();
        Uri::builder()
            .scheme("https")
            .authority(self.config.upstream.authority())
            .path_and_query(path)
            .build()
            .ok()
    }
}

/// A request without an answer. Where the bot gives it up, and nothing has come from the upstream meanwhile or not even
/// the head is out, what it was sent on is used for no other.
struct Asking<'a> {
    pool: &'a Pool,
    on: &'a Insertions,
    since: Instant,
    read: u64,
}

impl<'a> Asking<'a> {
    fn on(pool: &'a Pool, on: &'a Insertions) -> Self {
        Self {
            pool,
            on,
            since: Instant::now(),
            read: on.read(),
        }
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        let is_silent = self.on.read() == self.read && self.since.elapsed() >= SILENT;
        if is_silent || self.on.has_left() {
            self.pool.close(self.on);
        }
    }
}

/// Whether an upstream says over HTTP/2 that it has done nothing for a request (RFC 9113 section 8.7): then any may be
/// made once more. On the daemon's one thread the library tells the end of a connection only to requests that the upstream
/// leaves out.
fn is_unprocessed(error: &hyper::Error) -> bool {
    let cause = error.source().and_then(|cause| cause.downcast_ref());
    cause.is_some_and(|cause: &h2::Error| {
        let is_refused = cause.is_reset() && cause.reason() == Some(h2::Reason::REFUSED_STREAM);
        cause.is_remote() && (cause.is_go_away() || is_refused)
    })
}

/// What the HTTP library does not say by itself: that a body of unknown length comes with any method, and that an
/// empty one does with methods that have one (RFC 9110 section 8.6).
fn framing(method: &Method, upload: &Upload) -> Option<(HeaderName, HeaderValue)> {
    if upload.is_end_stream() {
        let has_body = [Method::POST, Method::PUT, Method::PATCH].contains(method);
        return has_body.then_some((CONTENT_LENGTH, HeaderValue::from_static("0")));
    }
    let unknown = upload.size_hint().exact().is_none();
    unknown.then_some((TRANSFER_ENCODING, HeaderValue::from_static("chunked")))
}

/// Path and query in the form that is sent, with the credential's parameters last.
fn uri(target: &Target, credential: &Credential) -> Option<Uri> {
    if let Some(signed) = &credential.target {
        return signed.parse().ok();
    }
    let mut text = target.encoded();
    let names = |name: &str| credential.query.iter().any(|(own, _)| own == name);
    let own = target.query_without(names);
    let mut before = '?';
    if target.query.is_some() && (!own.is_empty() || credential.query.is_empty()) {
        text.push('?');
        text.push_str(&own);
        before = '&';
    }
    for (name, token) in &credential.query {
        text.push(before);
        name.bytes()
            .for_each(|byte| escape_reserved(byte, &mut text));
        text.push('=');
        text.push_str(token);
        before = '&';
    }
    text.parse().ok()
}

/// Waits for as long as the bot's body moves on, and `patience` more.
async fn within<T>(
    patience: Duration,
    progress: &Progress,
    future: impl Future<Output = T>,
) -> Result<T, Failure> {
    let mut future = pin!(future);
    loop {
        let before = progress.bytes();
        match timeout(patience, future.as_mut()).await {
            Ok(done) => return Ok(done),
            Err(_) if progress.bytes() != before => {}
            Err(_) => return Err(Failure::Timeout(patience)),
        }
    }
}

/// TLS 1.3 tells only after the handshake that the server wants a client certificate.
fn unanswered(error: &hyper::Error) -> Failure {
    match http::unanswered(error) {
        http::Failure::Tls(why) => Failure::Tls(why),
        _ => Failure::NoAnswer,
    }
}
