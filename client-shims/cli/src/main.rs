//! The `keyhatch` command: asks the agent for secrets over its socket. It holds no keys.

mod bridge;
mod child;
mod doctor;
mod failure;
mod generate;
mod mcp;
mod options;
mod output;
mod proxy;
mod run;
mod verbs;

use std::process::ExitCode;

use clap::Parser;
use nix::sys::prctl::set_dumpable;
use nix::sys::resource::{Resource, setrlimit};

use options::{Options, Verb};

fn main() -> ExitCode {
    let options = Options::parse();
    // A core file would hold the value. It stays possible to dump where that cannot be set.
    let _ = match options.verb {
        // A command that is run has the limits it would have without us.
        Verb::Run(_) | Verb::Bridge(_) => set_dumpable(false),
        _ => setrlimit(Resource::RLIMIT_CORE, 0, 0),
    };
    match verbs::run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
