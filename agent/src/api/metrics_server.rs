//! The metrics address: read only, off unless configured.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::time::sleep;

use super::answer::{self, Answer};
use super::body::Body;
use super::context::Context;
use super::metrics;

/// How long to wait where no more connections can be taken for now.
const PAUSE: Duration = Duration::from_millis(50);

/// Serves `GET /metrics` on a TCP address.
pub fn on_address(context: Arc<Context>, listener: TcpListener) {
    tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => serve(&context, stream),
                Err(_) => sleep(PAUSE).await,
            }
        }
    });
}

/// Serves `GET /metrics` on a Unix socket.
pub fn on_socket(context: Arc<Context>, listener: UnixListener) {
    tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => serve(&context, stream),
                Err(_) => sleep(PAUSE).await,
            }
        }
    });
}

fn serve(context: &Arc<Context>, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
    let context = Arc::clone(context);
    tokio::spawn(async move {
        let service = service_fn(|request: Request<Incoming>| {
            let answer = answer(&context, &request);
            async move { Ok::<Answer, Infallible>(answer) }
        });
        // The reader's end says what went wrong.
        let _ = http1::Builder::new()
            .serve_connection(TokioIo::new(stream), service)
            .await;
    });
}

fn answer(context: &Context, request: &Request<Incoming>) -> Answer {
    if request.method() == Method::GET && request.uri().path() == "/metrics" {
        return answer::text(metrics::KIND, metrics::render(context));
    }
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = StatusCode::NOT_FOUND;
    answer
}
