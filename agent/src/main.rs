//! `keyhatchd`: the daemon and every ops verb.

use std::process::ExitCode;

use keyhatch_agent::cli;
use keyhatch_agent::sys::alloc::Zeroizing;

#[global_allocator]
static WIPED: Zeroizing = Zeroizing;

fn main() -> ExitCode {
    cli::main()
}
