//! The `keyhatch` command: asks the agent for secrets over its socket. It holds no keys.

mod failure;
mod generate;
mod options;
mod output;
mod verbs;

use std::process::ExitCode;

use clap::Parser;
use nix::sys::resource::{Resource, setrlimit};

use options::Options;

fn main() -> ExitCode {
    // A core file would hold the value. It stays possible to dump where the limit cannot be set.
    let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
    match verbs::run(Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
