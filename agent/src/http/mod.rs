//! An HTTPS client for what the agent asks of others: HTTP/1.1 over rustls, for secrets.
//!
//! What travels here holds plaintext and tokens, so little is kept: a connection lives for one burst of
//! requests, its buffers are freed (and so wiped) with it, bodies are read into memory of known size, and
//! every answer is bounded. No proxies, no redirects, no compression.

mod address;
mod client;
mod pin;
mod pool;
mod read;
#[cfg(test)]
mod tests;
mod tls;

pub use address::{Address, AddressError};
pub use client::{Client, Failure, Request, Response, once};
pub(crate) use client::{tls_words, unanswered};
pub use pin::{Pin, PinError};
pub use read::{Bound, Content};
pub use tls::{Identity, TlsError, offering_http2, tls};
