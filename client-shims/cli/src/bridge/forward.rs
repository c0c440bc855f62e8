//! One request on its way to the agent and the answer back. Bodies stream in both directions, each no faster than the
//! other side takes it.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{Either, Empty, Full};
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use keyhatch::{Address, Error};
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};

use super::switch::{self, Switch};
use super::token::Token;

/// The headers in which AWS's agent and Vault expect a token. The agent needs none: it knows who asks.
static TOKEN_HEADERS: [HeaderName; 2] = [
    HeaderName::from_static("x-aws-parameters-secrets-token"),
    HeaderName::from_static("x-vault-token"),
];

/// What ends at this connection (RFC 9110, section 7.6.1), and what is said anew to the agent.
static NOT_PASSED_ON: [HeaderName; 11] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::EXPECT,
    header::HOST,
];

/// How long an agent that is away is waited for: one that restarts comes back.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(50);

/// How long a connection to the agent may take.
const CONNECT: Duration = Duration::from_secs(10);

const AWAY: &str = "the agent cannot be reached\n";

/// An agent that takes no more of a body ends the connection, and its answer may be lost with it.
const UNANSWERED: &str = "the agent ended the connection before it answered: but by a route, it takes bodies of up to 64 KiB\n";

pub type Body = Either<Incoming, Full<Bytes>>;
type Outgoing = Either<Incoming, Empty<Bytes>>;

/// The connection to the agent that belongs to one connection of a client.
#[derive(Default)]
pub struct Way {
    kept: Mutex<Option<SendRequest<Outgoing>>>,
    /// What both become after the last answer.
    switch: Mutex<Option<Switch>>,
}

impl Way {
    /// Goes on as a WebSocket, where that was agreed.
    pub async fn go_on(&self) {
        let switch = self.switch.lock().await.take();
        if let Some(switch) = switch {
            switch.join().await;
        }
    }
}

/// Where requests go.
pub struct Agent(Address);

/// What all connections share.
pub struct Front {
    agent: Agent,
    token: Token,
    aws_agent: bool,
}

impl Front {
    pub fn new(agent: Address, token: Token, aws_agent: bool) -> Self {
        Self {
            agent: Agent::new(agent),
            token,
            aws_agent,
        }
    }

    pub async fn answer(&self, way: &Way, request: Request<Incoming>) -> Response<Body> {
        match self.admit(&request) {
            Ok(target) => self.agent.forward(way, request, target).await,
            Err((status, why)) => closing(said(status, why)),
        }
    }

    /// The agent's path for a request with the token, or why there is none.
    fn admit(&self, request: &Request<Incoming>) -> Result<Uri, (StatusCode, &'static str)> {
        let uri = request.uri();
        let asked = uri.path_and_query().map_or("", |path| path.as_str());
        let Some(target) = self.target(asked, request.headers()) else {
            return Err((StatusCode::FORBIDDEN, ""));
        };
        let proxied = uri.scheme().is_some() || uri.authority().is_some();
        if proxied || request.method() == Method::CONNECT || !target.starts_with('/') {
            return Err((StatusCode::BAD_REQUEST, "this is not a proxy\n"));
        }
        if self.aws_agent && request.headers().contains_key("x-forwarded-for") {
            return Err((StatusCode::BAD_REQUEST, "Forwarded\n"));
        }
        let target = if self.aws_agent {
            of_aws_agent(target)
        } else {
            native(target)
        };
        target
            .parse()
            .map_err(|_| (StatusCode::BAD_REQUEST, "this path cannot be asked for\n"))
    }

    /// What is asked for without the token, which is the first segment of the path or in a header.
    fn target(&self, asked: &str, headers: &HeaderMap) -> Option<String> {
        let rest = asked.strip_prefix('/').unwrap_or(asked);
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (first, rest) = rest.split_at(end);
        if self.token.is(first.as_bytes()) {
            let slash = if rest.starts_with('/') { "" } else { "/" };
            return Some(format!("{slash}{rest}"));
        }
        let mut given = TOKEN_HEADERS.iter().flat_map(|name| headers.get_all(name));
        given
            .any(|value| self.token.is(value.as_bytes()))
            .then(|| asked.to_owned())
    }
}

impl Agent {
    pub fn new(address: Address) -> Self {
        Self(address)
    }

    /// Passes a request on to that path of the agent's.
    pub async fn forward(
        &self,
        way: &Way,
        request: Request<Incoming>,
        target: Uri,
    ) -> Response<Body> {
        let last = is_last(&request);
        let answer = self.pass(way, request, target).await;
        if last && answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            return closing(answer);
        }
        answer
    }

    async fn pass(&self, way: &Way, mut request: Request<Incoming>, target: Uri) -> Response<Body> {
        let client = switch::asked(&mut request);
        let (mut head, body) = request.into_parts();
        let named = named_by_connection(&head.headers);
        head.headers = passed_on(&head.headers, true);
        if client.is_some() {
            switch::mark(&mut head.headers);
        }
        for name in named {
            // The agent drops these itself where they go no further: some it refuses on sight.
            head.headers.append(header::CONNECTION, name.into());
        }
        let host = HeaderValue::from_static("keyhatch");
        head.headers.insert(header::HOST, host);
        let mut body = Some(body).filter(|body| !body.is_end_stream());
        let repeatable = body.is_none() && is_read(&head.method);
        let mut until = None;
        let mut kept = way.kept.lock().await;
        loop {
            let mut request = Request::new(
                body.take()
                    .map_or_else(|| Either::Right(Empty::new()), Either::Left),
            );
            *request.method_mut() = head.method.clone();
            *request.uri_mut() = target.clone();
            request.headers_mut().clone_from(&head.headers);
            let failed = match self.send(&mut kept, request).await {
                Ok(mut answer) => {
                    let Some(agreed) = Switch::agreed(client, &mut answer) else {
                        return passed_back(answer);
                    };
                    *way.switch.lock().await = Some(agreed);
                    let mut answer = passed_back(answer);
                    switch::mark(answer.headers_mut());
                    return answer;
                }
                Err(failed) => failed,
            };
            *kept = None;
            match failed {
                Failed::Unsent(request) => {
                    body = match request.into_body() {
                        Either::Left(body) => Some(body),
                        Either::Right(_) => None,
                    };
                }
                Failed::Unanswered if repeatable => {}
                Failed::Unanswered => return said(StatusCode::BAD_GATEWAY, UNANSWERED),
                Failed::Untrusted => return said(StatusCode::BAD_GATEWAY, AWAY),
            }
            let until = *until.get_or_insert_with(|| Instant::now() + PATIENCE);
            if Instant::now() + PAUSE > until {
                return said(StatusCode::BAD_GATEWAY, AWAY);
            }
            sleep(PAUSE).await;
        }
    }

    async fn send(
        &self,
        kept: &mut Option<SendRequest<Outgoing>>,
        request: Request<Outgoing>,
    ) -> Result<Response<Incoming>, Failed> {
        let mut sender = match ready(kept.take()).await {
            Some(sender) => sender,
            None => match self.connect().await {
                Ok(sender) => sender,
                Err(Some(Error::Refused { .. })) => return Err(Failed::Untrusted),
                Err(_) => return Err(Failed::Unsent(Box::new(request))),
            },
        };
        let answer = sender.try_send_request(request).await;
        match answer {
            Ok(answer) => {
                *kept = Some(sender);
                Ok(answer)
            }
            Err(mut error) => Err(match error.take_message() {
                Some(request) => Failed::Unsent(Box::new(request)),
                None => Failed::Unanswered,
            }),
        }
    }

    async fn connect(&self) -> Result<SendRequest<Outgoing>, Option<Error>> {
        let connected = timeout(CONNECT, self.0.connect_async()).await;
        let stream = connected.map_err(|_| None)?.map_err(Some)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|_| None)?;
        // It ends with the sender, and tells it of its errors.
        tokio::spawn(connection.with_upgrades());
        Ok(sender)
    }
}

/// A kept connection that the agent has not closed meanwhile.
async fn ready(kept: Option<SendRequest<Outgoing>>) -> Option<SendRequest<Outgoing>> {
    let mut sender = kept?;
    sender.ready().await.ok()?;
    Some(sender)
}

/// Why the agent gave no answer.
enum Failed {
    /// It was never asked.
    Unsent(Box<Request<Outgoing>>),
    /// It may have been.
    Unanswered,
    /// Somebody else listens there.
    Untrusted,
}

/// Whether what follows a request was not looked at, so that its answer has to be the last.
pub fn is_last(request: &Request<Incoming>) -> bool {
    let unseen = [header::TRANSFER_ENCODING, header::UPGRADE];
    request.method() == Method::CONNECT
        || unseen
            .iter()
            .any(|name| request.headers().contains_key(name))
}

/// An answer that is the last of its connection.
pub fn closing<B>(mut answer: Response<B>) -> Response<B> {
    let close = HeaderValue::from_static("close");
    answer.headers_mut().insert(header::CONNECTION, close);
    answer
}

fn is_read(method: &Method) -> bool {
    matches!(method.as_str(), "GET" | "HEAD" | "LIST")
}

/// A route's base URL is `use/ROUTE` below ours.
fn native(target: String) -> String {
    if target.starts_with("/use/") {
        return format!("/v1{target}");
    }
    target
}

/// `/v1/ID` is another way to ask AWS's agent for `/secretsmanager/get?secretId=ID`.
fn of_aws_agent(target: String) -> String {
    let Some(rest) = target.strip_prefix("/v1/") else {
        return target;
    };
    let (id, query) = rest.split_once('?').unwrap_or((rest, ""));
    let mut mapped = String::from("/secretsmanager/get?secretId=");
    for c in id.chars() {
        match c {
            // What means something else in a query than in a path.
            '+' => mapped.push_str("%2B"),
            '&' => mapped.push_str("%26"),
            '=' => mapped.push_str("%3D"),
            ';' => mapped.push_str("%3B"),
            c => mapped.push(c),
        }
    }
    if !query.is_empty() {
        mapped.push('&');
        mapped.push_str(query);
    }
    mapped
}

/// The headers that do not end here; to the agent those, too, that it is told of as named by `Connection`.
pub fn passed_on(headers: &HeaderMap, to_agent: bool) -> HeaderMap {
    let named = named_by_connection(headers);
    let stays = |name: &&HeaderName| {
        let more: &[HeaderName] = if to_agent { &TOKEN_HEADERS } else { &named };
        NOT_PASSED_ON.contains(name) || more.contains(name)
    };
    headers
        .iter()
        .filter(|(name, _)| !stays(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

/// The headers that `Connection` says are for this connection alone.
fn named_by_connection(headers: &HeaderMap) -> Vec<HeaderName> {
    let lists = headers.get_all(header::CONNECTION).iter();
    lists
        .filter_map(|list| list.to_str().ok())
        .flat_map(|list| list.split(','))
        .filter_map(|word| word.trim().parse().ok())
        .filter(|name: &HeaderName| *name != "close" && !NOT_PASSED_ON.contains(name))
        // Nothing that says what the body is can be made to vanish.
        .filter(|name| !name.as_str().starts_with("content-"))
        .collect()
}

pub fn passed_back(answer: Response<Incoming>) -> Response<Body> {
    let (mut head, body) = answer.into_parts();
    head.headers = passed_on(&head.headers, false);
    Response::from_parts(head, Either::Left(body))
}

pub fn said(status: StatusCode, why: &'static str) -> Response<Body> {
    let mut answer = Response::new(Either::Right(Full::from(why)));
    *answer.status_mut() = status;
    let no_store = HeaderValue::from_static("no-store");
    answer.headers_mut().insert(header::CACHE_CONTROL, no_store);
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_aws_agents_become_queries() {
        for (target, expected) in [
            ("/v1/MySecretId", "/secretsmanager/get?secretId=MySecretId"),
            (
                "/v1/app/db%20x?versionStage=AWSPREVIOUS",
                "/secretsmanager/get?secretId=app/db%20x&versionStage=AWSPREVIOUS",
            ),
            (
                "/v1/a+b&c=d;e",
                "/secretsmanager/get?secretId=a%2Bb%26c%3Dd%3Be",
            ),
            (
                "/secretsmanager/get?secretId=a",
                "/secretsmanager/get?secretId=a",
            ),
            ("/ping", "/ping"),
        ] {
            assert_eq!(of_aws_agent(target.into()), expected);
        }
    }

    #[test]
    fn a_route_is_below_the_base_url() {
        assert_eq!(
            native("/use/openai/v1/models".into()),
            "/v1/use/openai/v1/models"
        );
        assert_eq!(native("/v1/secrets/use".into()), "/v1/secrets/use");
    }
}
