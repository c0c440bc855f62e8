//! The verbs of `keyhatchd`.

mod admin;
mod approve;
mod audit;
mod audit_report;
mod audit_verify;
mod check;
mod dev;
mod exec_step;
mod explain;
mod generate;
mod paths;
mod quarantine;
mod rotation;
mod route;
mod run;
mod status;
mod store;
mod store_files;
mod store_options;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Exit codes of the contract, as in sysexits.h where it has one.
mod exit {
    pub const FAILED: u8 = 1;
    pub const USAGE: u8 = 2;
    pub const NOT_FOUND: u8 = 66;
    pub const UNREACHABLE: u8 = 69;
    pub const TRY_AGAIN: u8 = 75;
    pub const DENIED: u8 = 77;
    pub const CONFIG: u8 = 78;
}

const EXITS: &str = "\
Exit codes:
  0 done, 1 failed, 2 usage, 66 no such secret, 69 agent not reachable, 75 try again, 77 denied, 78 bad configuration

Example:
  keyhatchd dev";

/// A per-host secrets agent for bots: the daemon and its ops verbs.
#[derive(Parser)]
#[command(name = "keyhatchd", version, max_term_width = 100, after_help = EXITS)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run the daemon in the foreground
    #[command(after_help = "Example: keyhatchd run --config /etc/keyhatch/keyhatch.toml")]
    Run(ConfigAt),
    /// Run a ready daemon on an encrypted store of your own; nothing to configure
    #[command(after_help = "Example: keyhatchd dev")]
    Dev(dev::Args),
    /// Parse and validate everything, start nothing; exit 0, or 78 with <file:line>
    #[command(after_help = "Example: keyhatchd check --config /etc/keyhatch/keyhatch.toml")]
    Check(check::Args),
    /// Say which rule decides, and why; exit 0 allowed, 77 denied
    #[command(after_help = "Example: keyhatchd explain --secret openai/api-key --bot support-bot")]
    Explain(explain::Args),
    /// Work on the encrypted store
    Store(store_options::Args),
    /// Read the audit log
    Audit(audit::Args),
    /// Show how the running daemon is
    #[command(after_help = "Example: keyhatchd status --json")]
    Status(admin::Args),
    /// Show how the rotations of the running daemon stand
    #[command(subcommand)]
    Rotation(rotation::Verb),
    /// Have the running daemon read its configuration anew; exit 78 where it is refused
    #[command(after_help = "Example: keyhatchd reload")]
    Reload(admin::Args),
    /// Show the calls that wait for an operator, or let one go on
    #[command(after_help = "Example: keyhatchd approve 7365e61e-00000000001f")]
    Approve(approve::Args),
    /// Look at what a route does
    #[command(subcommand)]
    Route(route::Verb),
    /// Bots that get nothing until they are released
    Quarantine(quarantine::Args),
    /// Wipe every value from memory at once
    #[command(after_help = "Example: keyhatchd seal")]
    Seal(admin::Args),
    /// Load all values again
    #[command(after_help = "Example: keyhatchd unseal")]
    Unseal(admin::Args),
    /// Run one program that the configuration names, for the daemon; for keyhatch-exec@.service
    #[command(hide = true, after_help = "Example: ExecStart=keyhatchd exec-step")]
    ExecStep(ConfigAt),
    /// Print a shell completion script
    #[command(
        hide = true,
        after_help = "Example: keyhatchd completions bash > /etc/bash_completion.d/keyhatchd"
    )]
    Completions(generate::Completions),
    /// Write man pages
    #[command(
        hide = true,
        after_help = "Example: keyhatchd man --dir /usr/share/man/man8"
    )]
    Man(generate::Man),
}

/// Where the configuration is.
#[derive(clap::Args)]
struct ConfigAt {
    /// The configuration file
    #[arg(long, value_name = "FILE", default_value = paths::CONFIG)]
    config: PathBuf,
}

/// Runs the verb of the command line.
#[must_use]
pub fn main() -> ExitCode {
    let code = match Cli::parse().verb {
        Verb::Run(at) => run::run(&at.config),
        Verb::Dev(args) => dev::dev(&args),
        Verb::Check(args) => check::check(&args),
        Verb::Explain(args) => explain::explain(&args),
        Verb::Store(args) => store::store(args),
        Verb::Audit(args) => audit::audit(args),
        Verb::Status(args) => admin::status(&args),
        Verb::Rotation(verb) => rotation::rotation(&verb),
        Verb::Reload(args) => admin::reload(&args),
        Verb::Approve(args) => approve::approve(&args),
        Verb::Route(verb) => route::route(verb),
        Verb::Quarantine(args) => quarantine::quarantine(&args),
        Verb::Seal(args) => admin::seal(&args),
        Verb::Unseal(args) => admin::unseal(&args),
        Verb::ExecStep(at) => exec_step::exec_step(&at),
        Verb::Completions(args) => generate::completions(&args),
        Verb::Man(args) => generate::man(&args),
    };
    ExitCode::from(code)
}

/// Prints a line. Who reads may have gone, as `head` does, which is no failure.
fn say(what: impl std::fmt::Display) {
    let _ = writeln!(std::io::stdout(), "{what}");
}

/// Tells what failed, and how the command ends.
fn fail(code: u8, what: impl std::fmt::Display) -> u8 {
    eprintln!("keyhatchd: {what}");
    code
}
