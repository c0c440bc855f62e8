//! One connection to the proxy: whose it is is known, the token is asked for, and then it goes to a route or a host.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::http::uri::{Authority, PathAndQuery};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::{self, OnUpgrade};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::authority::Certified;
use super::destinations::Server;
use crate::bridge::forward::{Agent, Body, Way, closing, is_last, passed_back, passed_on, said};
use crate::bridge::serve::{HEAD, MAX_BUFFER, MAX_CONNECTIONS};
use crate::bridge::strict::Strict;
use crate::bridge::token::Token;

/// How long a host may take to be connected to, and a client for its side of TLS.
const CONNECT: Duration = Duration::from_secs(30);

/// So many connections to hosts at once, which is fewer than there may be in all: what does not end leaves room for routes.
pub const MAX_HOSTS: usize = MAX_CONNECTIONS * 3 / 4;

const NO_TOKEN: &str = "this proxy is for one command, which has the token in HTTPS_PROXY\n";
const NO_ROUTE: &str = "no route leads there, and this proxy was started with --only-routes\n";
const NO_PROXY_REQUEST: &str = "this is a proxy: ask for http://HOST/PATH, or CONNECT\n";
const FULL: &str = "too many connections to hosts are open: close some\n";
const UNREACHABLE: &str = "the host cannot be connected to\n";

type Refused = (StatusCode, &'static str);

/// What all connections share.
pub struct Carrier {
    pub agent: Agent,
    pub token: Token,
    pub routes: HashMap<Server, Certified>,
    pub only_routes: bool,
    /// Where routes are reached by base URL.
    pub bridge: Option<SocketAddr>,
    /// One is taken for as long as a connection to a host lasts.
    pub places: Arc<Semaphore>,
}

/// What a connection becomes after `CONNECT`.
enum Tunnel {
    Route(Certified),
    Host(Host),
}

/// A connection to a host that no route leads to; the bridge needs no place.
struct Host {
    stream: TcpStream,
    place: Option<OwnedSemaphorePermit>,
}

type Next = Mutex<Option<(OnUpgrade, Tunnel)>>;

pub async fn converse(stream: TcpStream, carrier: Arc<Carrier>) {
    let _ = stream.set_nodelay(true);
    let next = Arc::new(Next::default());
    let asked = next.clone();
    let proxy = carrier.clone();
    serve(stream, move |way, request| {
        let (proxy, next) = (proxy.clone(), asked.clone());
        async move { proxy.answer(&way, request, &next).await }
    })
    .await;
    let next = next.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some((upgrade, tunnel)) = next else {
        return;
    };
    let Ok(client) = upgrade.await else {
        return;
    };
    let mut client = TokioIo::new(client);
    match tunnel {
        Tunnel::Route(certified) => carrier.speak_as(certified, client).await,
        // How it ends, both sides know.
        Tunnel::Host(mut host) => drop(copy_bidirectional(&mut client, &mut host.stream).await),
    }
}

/// Answers requests until the connection ends, or becomes something else.
async fn serve<S, A, F>(stream: S, answer: A)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    A: Fn(Arc<Way>, Request<Incoming>) -> F,
    F: Future<Output = Response<Body>> + Send,
{
    let way = Arc::new(Way::default());
    let service = service_fn(|request| {
        let answered = answer(way.clone(), request);
        async move { Ok::<_, Infallible>(answered.await) }
    });
    let _ = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(MAX_BUFFER)
        .serve_connection(TokioIo::new(Strict::new(stream)), service)
        .with_upgrades()
        .await;
    way.go_on().await;
}

impl Carrier {
    async fn answer(&self, way: &Way, request: Request<Incoming>, next: &Next) -> Response<Body> {
        let given = request.headers().get(header::PROXY_AUTHORIZATION);
        if !given.is_some_and(|given| self.token.is_password(given.as_bytes())) {
            let basic = HeaderValue::from_static("Basic realm=\"keyhatch\"");
            let mut refusal = refused((StatusCode::PROXY_AUTHENTICATION_REQUIRED, NO_TOKEN));
            let headers = refusal.headers_mut();
            headers.insert(header::PROXY_AUTHENTICATE, basic);
            return refusal;
        }
        let answered = if request.method() == Method::CONNECT {
            self.connect(request, next).await
        } else {
            self.pass(way, request).await
        };
        answered.unwrap_or_else(refused)
    }

    /// The beginning of a tunnel, which the connection becomes once this is answered.
    async fn connect(
        &self,
        mut request: Request<Incoming>,
        next: &Next,
    ) -> Result<Response<Body>, Refused> {
        let authority = request.uri().authority();
        let server = authority
            .and_then(|authority| Server::at(authority, true))
            .ok_or((StatusCode::BAD_REQUEST, NO_PROXY_REQUEST))?;
        // Some ask for a tunnel where they speak in clear, too.
        let clear = Server {
            tls: false,
            ..server.clone()
        };
        let route = self.routes.get(&server).or(self.routes.get(&clear));
        let tunnel = match route {
            Some(certified) => Tunnel::Route(certified.clone()),
            None => Tunnel::Host(self.reach(&server).await?),
        };
        let upgrade = upgrade::on(&mut request);
        *next.lock().unwrap_or_else(PoisonError::into_inner) = Some((upgrade, tunnel));
        Ok(said(StatusCode::OK, ""))
    }

    /// A request that is not in TLS.
    async fn pass(&self, way: &Way, request: Request<Incoming>) -> Result<Response<Body>, Refused> {
        let bad = (StatusCode::BAD_REQUEST, NO_PROXY_REQUEST);
        let server = Server::of(request.uri()).filter(|server| !server.tls);
        let server = server.ok_or(bad)?;
        if let Some(certified) = self.routes.get(&server) {
            return self.by_route(&certified.route, way, request).await;
        }
        let last = is_last(&request);
        let (mut head, body) = request.into_parts();
        let host = head.uri.authority().map(Authority::as_str);
        let host = HeaderValue::from_str(host.unwrap_or_default()).map_err(|_| bad)?;
        head.headers = passed_on(&head.headers, false);
        head.headers.insert(header::HOST, host);
        head.uri = head
            .uri
            .path_and_query()
            .map_or_else(|| Uri::from_static("/"), |path| Uri::from(path.clone()));
        let host = self.reach(&server).await?;
        let answer = ask(host, Request::from_parts(head, body)).await;
        let answer = answer.map_err(|_| (StatusCode::BAD_GATEWAY, "the host did not answer\n"))?;
        Ok(if last { closing(answer) } else { answer })
    }

    async fn reach(&self, server: &Server) -> Result<Host, Refused> {
        let is_bridge = self.bridge.is_some_and(|bridge| {
            server.host == bridge.ip().to_string() && server.port == bridge.port()
        });
        let place = if is_bridge {
            None
        } else if self.only_routes {
            return Err((StatusCode::FORBIDDEN, NO_ROUTE));
        } else {
            let place = self.places.clone().try_acquire_owned();
            Some(place.map_err(|_| (StatusCode::SERVICE_UNAVAILABLE, FULL))?)
        };
        let connecting = TcpStream::connect((server.host.as_str(), server.port));
        match timeout(CONNECT, connecting).await {
            Ok(Ok(stream)) => {
                let _ = stream.set_nodelay(true);
                Ok(Host { stream, place })
            }
            Ok(Err(_)) => Err((StatusCode::BAD_GATEWAY, UNREACHABLE)),
            Err(_) => Err((StatusCode::GATEWAY_TIMEOUT, UNREACHABLE)),
        }
    }

    /// Answers what is asked of a route's server, inside TLS where that server speaks it.
    async fn speak_as<S>(&self, certified: Certified, client: S)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let route = certified.route.as_str();
        let answer = |way: Arc<Way>, request| async move {
            let answered = self.by_route(route, &way, request).await;
            answered.unwrap_or_else(refused)
        };
        let Some(acceptor) = certified.acceptor else {
            return serve(client, answer).await;
        };
        if let Ok(Ok(stream)) = timeout(CONNECT, acceptor.accept(client)).await {
            serve(stream, answer).await;
        }
    }

    async fn by_route(
        &self,
        route: &str,
        way: &Way,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Refused> {
        let path = request
            .uri()
            .path_and_query()
            .map_or("/", PathAndQuery::as_str);
        let target = format!("/v1/use/{route}{path}");
        let target = target
            .parse()
            .map_err(|_| (StatusCode::BAD_REQUEST, "this path cannot be asked for\n"))?;
        Ok(self.agent.forward(way, request, target).await)
    }
}

/// One request on a connection of its own.
async fn ask(host: Host, request: Request<Incoming>) -> hyper::Result<Response<Body>> {
    let stream = TokioIo::new(host.stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
    tokio::spawn(async move {
        // How it ends, the answer tells.
        let _ = connection.await;
        drop(host.place);
    });
    sender.send_request(request).await.map(passed_back)
}

fn refused((status, why): Refused) -> Response<Body> {
    closing(said(status, why))
}
