//! stub

pub mod config;
pub mod policy;
