//! stub

pub mod audit;
pub mod sys;
