//! Rotation on schedule: when a secret gets a new value, what makes it, and how far that has come.
//!
//! [`schedule`] says when, as a pure function of what is remembered and what the clocks show. A rotation is four
//! steps, create, set, test and finish; what is remembered of the one under way is saved before each, so that it goes
//! on where a kill left it. A step may therefore be done twice, never left out. Bots read the old value until the last
//! step is done.

mod handle;
mod local;
mod program;
mod records;
pub mod schedule;
mod service;
mod state;
mod status;
mod unit;
mod upstream;

pub use handle::{Rooms, Rotations, Started};
pub use service::Service;
pub use state::Step;
pub use status::Status;

/// What came of one step.
pub enum Outcome {
    /// It is done, and the next one follows.
    Next,
    /// There is a pending value already, which ends in this; it is the one that goes on.
    Found(u64),
    /// The pending value is gone: from the start.
    Again,
    /// The rotation is done: the new version, and the one before.
    Done(String, Option<String>),
    /// The secret changed or went meanwhile, so that there is nothing to bring to an end.
    GivenUp(String),
    /// It failed. Why, for operators; never holds a value.
    Failed(String),
    /// The grace time is over, and the version before is gone.
    GraceOver,
    /// The agent was sealed meanwhile: the same again, once it is not.
    Sealed,
}
