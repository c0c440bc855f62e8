//! The agent's sockets: routing, answers, limits. HTTP on all but that of the credentials.
//!
//! Every request of a bot takes one way: a [`Connection`] that only the kernel's word made, a parsed
//! request, a decision, a kept record, a lease.

pub mod admin;
mod answer;
mod approvals;
mod bind;
mod body;
mod connection;
mod context;
pub mod credentials;
mod dropin;
mod id;
mod incoming;
mod io;
pub mod limits;
mod metrics;
pub mod metrics_server;
mod native;
mod quarantine;
mod reading;
mod request;
mod rotate;
mod route;
mod sealing;
mod server;
mod store_verbs;
mod supply;
mod surface;
mod using;
mod watch;

pub use connection::Connection;
pub use context::{Context, Counts, Health};
pub use dropin::Numbers;
pub use id::{RequestId, RequestIds};
pub use sealing::SealMark;
pub use server::{Server, ServerError};
