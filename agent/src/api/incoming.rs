//! The body of a request, within bounds of size and time.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
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
    let read = Limited::new(body, LARGEST).collect();
    let Ok(read) = tokio::time::timeout(TIME, read).await else {
        return Err((Code::Timeout, "the body did not arrive in time".into()));
    };
    match read {
        Ok(read) => Ok(read.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(too_large()),
        Err(_) => Err((Code::BadRequest, "the body did not arrive whole".into())),
    }
}

fn too_large() -> (Code, String) {
    let why = format!("a body has at most {LARGEST} bytes");
    (Code::TooLarge, why)
}
