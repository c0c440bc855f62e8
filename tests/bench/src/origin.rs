//! What stands behind the TLS upstream of routes: event streams that go on, and large bodies.

use std::convert::Infallible;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Either, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::time::{Interval, interval};

/// The size of a large body.
pub const LARGE: u64 = 1 << 30;

const PIECE: &[u8] = &[b'x'; 64 * 1024];

const EVENT: &[u8] = b"data: {\"n\": 1}\n\n";

/// Either endless events, one a second, or so many bytes.
enum Long {
    Events(Interval),
    Bytes(u64),
}

type Answer = Either<Full<Bytes>, Long>;

/// `/events`, `/download` and, for all else, how many bytes the request's body had.
pub fn serve(socket: &Path) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async move {
        let listener = tokio::net::UnixListener::bind(socket)?;
        loop {
            let (stream, _) = listener.accept().await?;
            let connection =
                http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer));
            tokio::spawn(async move {
                // A client that hangs up is the end of its connection, and none of our concern.
                drop(connection.await);
            });
        }
    })
}

async fn answer(request: Request<Incoming>) -> Result<Response<Answer>, Infallible> {
    let long = match request.uri().path() {
        "/events" => Long::Events(interval(Duration::from_secs(1))),
        "/download" => Long::Bytes(LARGE),
        _ => {
            let counted = count(request.into_body()).await.to_string();
            return Ok(Response::new(Either::Left(Full::from(counted))));
        }
    };
    let mut response = Response::new(Either::Right(long));
    let kind = HeaderValue::from_static("text/event-stream");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    Ok(response)
}

async fn count(mut body: Incoming) -> usize {
    let mut bytes = 0;
    while let Some(Ok(frame)) = body.frame().await {
        bytes += frame.data_ref().map_or(0, Bytes::len);
    }
    bytes
}

impl Body for Long {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Events(interval) => interval
                .poll_tick(cx)
                .map(|_| Some(Ok(Frame::data(Bytes::from_static(EVENT))))),
            Self::Bytes(0) => Poll::Ready(None),
            Self::Bytes(left) => {
                *left -= PIECE.len() as u64;
                Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(PIECE)))))
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Events(_) => SizeHint::default(),
            Self::Bytes(left) => SizeHint::with_exact(*left),
        }
    }
}
