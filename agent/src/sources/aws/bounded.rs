//! Answers are read no longer and no deeper than they may be: the SDK's parser takes any length, and ends the
//! process where values nest too deep for its stack.

use std::pin::Pin;
use std::task::{Context, Poll};

use aws_sdk_secretsmanager::config::interceptors::BeforeDeserializationInterceptorContextMut;
use aws_sdk_secretsmanager::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_secretsmanager::error::BoxError;
use aws_smithy_types::body::SdkBody;
use hyper::body::{Body, Bytes, Frame};

/// Twenty values, each byte of them escaped, and what comes with them.
const MAX_LENGTH: usize = 8 << 20;
/// Real answers nest four deep.
const MAX_DEPTH: usize = 32;

/// An answer goes beyond its bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Beyond {
    /// Too many bytes.
    #[error("the answer has more than {MAX_LENGTH} bytes")]
    Length,
    /// Values within values.
    #[error("the answer nests deeper than {MAX_DEPTH} values")]
    Depth,
}

/// Puts the bounds on every answer.
#[derive(Debug)]
pub struct Bounded;

impl Intercept for Bounded {
    fn name(&self) -> &'static str {
        "Bounded"
    }

    fn modify_before_deserialization(
        &self,
        context: &mut BeforeDeserializationInterceptorContextMut<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let body = context.response_mut().body_mut();
        let inner = Box::pin(std::mem::replace(body, SdkBody::taken()));
        *body = SdkBody::from_body_1_x(BoundedBody {
            inner,
            scan: Scan::default(),
        });
        Ok(())
    }
}

struct BoundedBody {
    inner: Pin<Box<SdkBody>>,
    scan: Scan,
}

impl Body for BoundedBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.inner.as_mut().poll_frame(context).map(|frame| {
            let frame = frame?;
            if let Ok(frame) = &frame
                && let Some(bytes) = frame.data_ref()
                && let Err(beyond) = self.scan.take(bytes)
            {
                return Some(Err(beyond.into()));
            }
            Some(frame)
        })
    }
}

/// How far into a JSON text it is.
#[derive(Default)]
struct Scan {
    length: usize,
    depth: usize,
    in_text: bool,
    escaped: bool,
}

impl Scan {
    fn take(&mut self, bytes: &[u8]) -> Result<(), Beyond> {
        self.length += bytes.len();
        if self.length > MAX_LENGTH {
            return Err(Beyond::Length);
        }
        for byte in bytes {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' if self.in_text => self.escaped = true,
                b'"' => self.in_text = !self.in_text,
                b'{' | b'[' if !self.in_text => self.depth += 1,
                b'}' | b']' if !self.in_text => self.depth = self.depth.saturating_sub(1),
                _ => {}
            }
            if self.depth > MAX_DEPTH {
                return Err(Beyond::Depth);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(text: &str) -> Result<(), Beyond> {
        let mut whole = Scan::default();
        let mut bytewise = Scan::default();
        let told = whole.take(text.as_bytes());
        let same = text.bytes().try_for_each(|byte| bytewise.take(&[byte]));
        assert_eq!(told, same, "the answer may come in any pieces");
        told
    }

    #[test]
    fn brackets_count_where_they_nest_and_not_in_texts() {
        assert_eq!(scan(&"[{}]".repeat(1000)), Ok(()));
        assert_eq!(scan(&"[".repeat(32)), Ok(()));
        assert_eq!(scan(&"[".repeat(33)), Err(Beyond::Depth));
        assert_eq!(scan(&"{\"a\":".repeat(33)), Err(Beyond::Depth));
        assert_eq!(scan(&format!("\"\\\"{}\"", "[".repeat(100))), Ok(()));
        assert_eq!(
            scan(&format!("\"\\\\\"{}", "[".repeat(100))),
            Err(Beyond::Depth)
        );
    }

    #[test]
    fn the_length_counts_over_all_pieces() {
        let mut scan = Scan::default();
        let piece = vec![b'x'; MAX_LENGTH / 2];
        assert_eq!(scan.take(&piece), Ok(()));
        assert_eq!(scan.take(&piece), Ok(()));
        assert_eq!(scan.take(b"x"), Err(Beyond::Length));
    }
}
