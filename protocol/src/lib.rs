//! The words of the Keyhatch socket API: names, actions, requests, replies, problem codes and events.
//!
//! This crate does no I/O and knows no other room. The agent and every Rust client share it, so that a
//! word is spelt in one place.

mod action;
mod message;
mod name;
mod problem;

pub use action::Action;
pub use message::{
    BatchError, BatchRequest, Change, ChangeKind, Health, ListReply, Listed, RotateReply,
    SourceHealth, UsableRoute, Whoami,
};
pub use name::{Name, NameError, percent_decode, split_field};
pub use problem::{Code, Problem};

/// The largest secret value, in bytes.
pub const MAX_VALUE: usize = 65_536;

/// The longest secret name, in bytes.
pub const MAX_NAME: usize = 512;

/// The most names one batch request may ask for.
pub const MAX_BATCH: usize = 100;

/// The media type that asks for, and marks, the exact bytes of a value.
pub const OCTET_STREAM: &str = "application/octet-stream";

/// The response header that names the version of a raw value.
pub const VERSION_HEADER: &str = "keyhatch-version";

/// `true` where raw bytes are the last good value of a source in trouble.
pub const STALE_HEADER: &str = "keyhatch-stale";

/// The socket that bots ask unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/keyhatch/keyhatch.sock";

/// The socket that ops verbs ask unless told otherwise.
pub const DEFAULT_ADMIN_SOCKET: &str = "/run/keyhatch-admin/admin.sock";
