//! The metrics address: read only, off unless configured.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};

use super::answer::{self, Answer};
use super::body::Body;
use super::context::Context;
use super::metrics;
use crate::config::Metrics;

/// Binds the address and serves `GET /metrics` there.
pub async fn start(context: Arc<Context>, at: &Metrics) -> io::Result<()> {
    match at {
        Metrics::Tcp(address) => {
            let listener = TcpListener::bind(address).await?;
            tokio::spawn(async move {
                loop {
                    match listener.accept().await {
                        Ok((stream, _)) => serve(&context, stream),
                        Err(_) => tokio::time::sleep(std::time::Duration::from_millis(50)).await,
                    }
                }
            });
        }
        Metrics::Unix(path) => {
            // Left behind by a daemon that was killed; nobody listens on it.
            if std::os::unix::net::UnixStream::connect(path).is_err() {
                let _ = std::fs::remove_file(path);
            }
            let listener = UnixListener::bind(path)?;
            tokio::spawn(async move {
                loop {
                    match listener.accept().await {
                        Ok((stream, _)) => serve(&context, stream),
                        Err(_) => tokio::time::sleep(std::time::Duration::from_millis(50)).await,
                    }
                }
            });
        }
    }
    Ok(())
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
