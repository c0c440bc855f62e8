//! Every `unsafe` block and raw system call of the agent, and nothing else.

pub mod map;
