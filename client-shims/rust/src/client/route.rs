//! A route as an HTTP client: what is sent goes to the route's upstream, with a secret that this process never sees.

use std::fmt;
use std::process;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{self, HeaderValue};
use hyper::http::uri::PathAndQuery;
use hyper::{Request, Response, Uri};
use hyper_util::rt::TokioIo;
use tokio::time::{sleep, timeout};

use crate::{Address, DEFAULT_TIMEOUT, Error};

/// On each answer of an upstream, and on none of the agent's own.
const ROUTE: &str = "keyhatch-route";

/// No problem document is longer.
const MAX_PROBLEM: usize = 64 * 1024;

/// Connections kept open for tasks that ask at the same time.
const MAX_KEPT: usize = 4;

/// Before an agent that is away is looked for again.
const PAUSE: Duration = Duration::from_millis(50);

/// What the upstream answered; the body comes as it is sent.
pub type Answer = Response<Incoming>;

/// Why a body that is to be sent has failed.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

type Outgoing = UnsyncBoxBody<Bytes, BoxError>;

/// One route of an agent. It keeps connections open between calls, and may be shared between tasks.
///
/// ```no_run
/// # async fn ask() -> Result<(), Box<dyn std::error::Error>> {
/// use hyper::Request;
/// let openai = keyhatch::Client::new().route("openai");
/// let request = Request::get("/v1/models").body(String::new())?;
/// let answer = openai.send(request).await?;
/// # Ok(())
/// # }
/// ```
pub struct Route {
    address: Address,
    patience: Duration,
    name: String,
    kept: Mutex<Vec<Kept>>,
}

/// A connection that only the process which made it may use.
struct Kept {
    sender: SendRequest<Outgoing>,
    owner: u32,
}

impl Route {
    pub(super) fn new(address: Address, patience: Duration, name: &str) -> Self {
        Self {
            address,
            patience,
            name: name.to_owned(),
            kept: Mutex::default(),
        }
    }

    /// Sends a request; of its URI the path and the query count, wherever else it leads.
    ///
    /// An answer of the upstream is an answer, whatever its status. What the agent itself refuses is an error. There is no time
    /// limit but the agent's own, which is about an upstream that is silent.
    pub async fn send<B>(&self, request: Request<B>) -> Result<Answer, Error>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let mut request = self.addressed(request)?;
        let mut until = None;
        loop {
            let (mut kept, is_new) = match self.take() {
                Some(kept) => (kept, false),
                None => match self.connect().await {
                    Ok(kept) => (kept, true),
                    // An agent that restarts comes back.
                    Err(error) if error.is_restart() && self.is_patient(&mut until) => {
                        sleep(PAUSE).await;
                        continue;
                    }
                    Err(error) => return Err(error),
                },
            };
            match kept.sender.try_send_request(request).await {
                Ok(answer) => {
                    self.keep(kept);
                    return told(answer).await;
                }
                Err(mut failed) => match failed.take_message() {
                    Some(unsent) if !is_new || self.is_patient(&mut until) => request = unsent,
                    _ => return Err(self.address.unreachable(broken(failed.into_error()))),
                },
            }
        }
    }

    /// The request as the agent wants it.
    fn addressed<B>(&self, request: Request<B>) -> Result<Request<Outgoing>, Error>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let (mut head, body) = request.into_parts();
        head.uri = self.target(&head.uri)?;
        let host = HeaderValue::from_static("keyhatch");
        head.headers.insert(header::HOST, host);
        // How a body ends is said by who sends it; a length that is announced counts only where none is known.
        for name in [
            header::TRANSFER_ENCODING,
            header::CONNECTION,
            header::UPGRADE,
        ] {
            head.headers.remove(name);
        }
        if head.headers.contains_key(header::CONTENT_LENGTH)
            && let Some(length) = body.size_hint().exact()
        {
            head.headers.insert(header::CONTENT_LENGTH, length.into());
        }
        let body = body.map_err(Into::into).boxed_unsync();
        Ok(Request::from_parts(head, body))
    }

    fn target(&self, uri: &Uri) -> Result<Uri, Error> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._@+-".contains(&byte);
        if matches!(&*self.name, "" | "." | "..") || !self.name.bytes().all(plain) {
            return Err(Error::Input("no route has such a name"));
        }
        let path = uri.path_and_query().map_or("/", PathAndQuery::as_str);
        format!("/v1/use/{}{path}", self.name)
            .parse()
            .ok()
            .filter(|_| path.starts_with('/'))
            .ok_or(Error::Input("a request by a route needs a path"))
    }

    async fn connect(&self) -> Result<Kept, Error> {
        let connecting = timeout(DEFAULT_TIMEOUT, self.address.connect_async());
        let stream = connecting.await.map_err(|_| Error::TimedOut {
            socket: self.address.clone(),
            after: DEFAULT_TIMEOUT,
        })??;
        let (sender, connection) = handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.address.unreachable(broken(error)))?;
        // It ends with the sender, and tells it of its errors.
        tokio::spawn(connection);
        Ok(Kept {
            sender,
            owner: process::id(),
        })
    }

    /// A kept connection on which nothing is on its way.
    fn take(&self) -> Option<Kept> {
        let mut all = self.kept();
        all.retain(|kept| !kept.sender.is_closed() && kept.owner == process::id());
        let free = all.iter().position(|kept| kept.sender.is_ready())?;
        Some(all.swap_remove(free))
    }

    fn keep(&self, one: Kept) {
        let mut all = self.kept();
        if all.len() < MAX_KEPT {
            all.push(one);
        }
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Vec<Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_patient(&self, until: &mut Option<Instant>) -> bool {
        let now = Instant::now();
        now + PAUSE < *until.get_or_insert(now + self.patience)
    }
}

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Route({:?})", self.name)
    }
}

/// The upstream's answer, or the error that the agent's own tells of.
async fn told(answer: Answer) -> Result<Answer, Error> {
    if answer.headers().contains_key(ROUTE) {
        return Ok(answer);
    }
    let (head, body) = answer.into_parts();
    let after = head.headers.get(header::RETRY_AFTER);
    let after = after.and_then(|after| after.to_str().ok()?.parse().ok());
    let body = Limited::new(body, MAX_PROBLEM).collect().await;
    let body = body.map_or_else(|_| Bytes::new(), http_body_util::Collected::to_bytes);
    let after = after.map(Duration::from_secs);
    Err(Error::from_answer(head.status.as_u16(), after, &body))
}

fn broken(error: hyper::Error) -> std::io::Error {
    std::io::Error::other(error)
}
