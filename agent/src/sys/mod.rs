//! Every `unsafe` and raw system call of the agent, each with its SAFETY line, and nothing else.

pub mod alloc;
pub mod arena;
pub mod exits;
pub mod harden;
pub mod image;
pub mod manager;
pub mod map;
pub mod peer;
pub mod process;
pub mod secret;
pub mod terminal;
