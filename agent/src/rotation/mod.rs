//! Rotation on schedule: when a secret gets a new value, what makes it, and how far that has come.
//!
//! [`schedule`] says when, as a pure function of what is remembered and what the clocks show. A rotation is four
//! steps, create, set, test and finish; [`state`] remembers the one that is under way, so that a rotation goes on
//! where a kill left it. Bots read the old value until the last step is done.

mod exec;
mod local;
pub mod schedule;
mod service;
mod state;
mod status;

pub use state::Step;
