//! The Keyhatch agent: who asks, what it may have, where the value lives, and the record that it happened.
//!
//! A request goes one way, and each step hands the next a type that only it can make:
//! `identity::Peer`, `policy::Decision`, `audit::Receipt`, `cache::Lease`.

pub mod api;
pub mod audit;
pub mod cache;
pub mod calendar;
pub mod cli;
pub mod config;
pub mod confine;
pub mod daemon;
pub mod detect;
pub mod exec;
pub mod files;
pub mod http;
pub mod identity;
pub mod policy;
pub mod review;
pub mod rotation;
pub mod routes;
pub mod sources;
pub mod store;
pub mod sys;
