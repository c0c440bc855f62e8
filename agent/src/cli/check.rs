//! `keyhatchd check`: everything the daemon would refuse at start, without starting.

use super::{ConfigAt, exit};
use crate::config::{self, Depth};
use crate::daemon;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    at: ConfigAt,
    /// Leave out owners, modes and users: for use off the host
    #[arg(long)]
    content_only: bool,
}

pub fn check(args: &Args) -> u8 {
    let depth = if args.content_only {
        Depth::ContentOnly
    } else {
        Depth::Full
    };
    let config = match config::load(&args.at.config, depth) {
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
        println!("{}: ok", args.at.config.display());
        return 0;
    }
    exit::CONFIG
}
