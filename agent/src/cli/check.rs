//! `keyhatchd check`: everything the daemon would refuse at start, without starting.

use std::path::Path;

use super::{ConfigAt, exit, say};
use crate::config::{self, Depth};
use crate::daemon;
use crate::files::Trust;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    at: ConfigAt,
    /// Leave out owners, modes and users: for use off the host
    #[arg(long)]
    content_only: bool,
}

pub fn check(args: &Args) -> u8 {
    let path = &args.at.config;
    let depth = if args.content_only {
        Depth::ContentOnly
    } else {
        Depth::Full(daemon_of(path))
    };
    let config = match config::load(path, depth) {
        Ok(config) => config,
        Err(problems) => {
            problems.iter().for_each(|problem| eprintln!("{problem}"));
            return exit::CONFIG;
        }
    };
    config
        .warnings
        .iter()
        .for_each(|warning| eprintln!("warning: {warning}"));
    let problems = if args.content_only {
        Vec::new()
    } else {
        daemon::preflight(&config)
    };
    problems.iter().for_each(|problem| eprintln!("{problem}"));
    if problems.is_empty() {
        say(format_args!("{}: ok", path.display()));
        return 0;
    }
    exit::CONFIG
}

/// Whose files the daemon trusts, which may run as another user than the root who checks.
fn daemon_of(config: &Path) -> Trust {
    match config::load(config, Depth::ContentOnly) {
        Ok(config) => Trust::of_daemon(&config.agent.state_dir),
        // What is wrong is found again, and told.
        Err(_) => Trust::own(),
    }
}
