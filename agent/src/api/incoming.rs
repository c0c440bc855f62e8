//! The body of a request, within bounds of size and time.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use keyhatch_protocol::Code;

/// The largest body of a request: a batch of the longest names fits.
const LARGEST: usize = 64 * 1024;

/// How long a body may take to arrive.
const TIME: Duration = Duration::from_secs(10);

/// Reads a body whole, or says with which code and why not.
pub async fn read(body: Incoming) -> Result<Bytes, (Code, String)> {
    if body.size_hint().lower() > LARGEST as u64 {
        return Err(too_large());
    }
    let mut read = pin!(whole(body));
    match at_once(read.as_mut()).await {
        Some(read) => read,
        None => tokio::time::timeout(TIME, read)
            .await
            .unwrap_or_else(|_| Err((Code::Timeout, "the body did not arrive in time".into()))),
    }
}

async fn whole(mut body: Incoming) -> Result<Bytes, (Code, String)> {
    let mut read = Bytes::new();
    while let Some(frame) = body.frame().await {
        let frame =
            frame.map_err(|_| (Code::BadRequest, "the body did not arrive whole".to_owned()))?;
        let Ok(more) = frame.into_data() else {
            continue;
        };
        if read.len() + more.len() > LARGEST {
            return Err(too_large());
        }
        // Mostly there is one piece, which is taken as it is.
        read = if read.is_empty() {
            more
        } else {
            let mut longer = BytesMut::from(read);
            longer.extend_from_slice(&more);
            longer.freeze()
        };
    }
    Ok(read)
}

/// What a future gives without waiting for the peer: a body that came with its head needs no timer, which would
/// cost more than the request.
async fn at_once<F: Future>(mut future: Pin<&mut F>) -> Option<F::Output> {
    let mut asked = false;
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending if asked => Poll::Ready(None),
        Poll::Pending => {
            // The connection hands a body over once it has been asked for.
            asked = true;
            cx.waker().wake_by_ref();
            Poll::Pending
        }
    })
    .await
}

fn too_large() -> (Code, String) {
    let why = format!("a body has at most {LARGEST} bytes");
    (Code::TooLarge, why)
}
