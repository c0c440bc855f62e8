//! Shell completions and man pages, from the command line's own description.

use std::path::PathBuf;

use clap::CommandFactory;

use super::{Cli, exit, fail};

#[derive(clap::Args)]
pub struct Completions {
    /// bash, elvish, fish, powershell or zsh
    shell: clap_complete::Shell,
}

#[derive(clap::Args)]
pub struct Man {
    /// The folder to write them to
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
}

pub fn completions(args: &Completions) -> u8 {
    clap_complete::generate(
        args.shell,
        &mut Cli::command(),
        "keyhatchd",
        &mut std::io::stdout(),
    );
    0
}

pub fn man(args: &Man) -> u8 {
    match clap_mangen::generate_to(Cli::command(), &args.dir) {
        Ok(()) => 0,
        Err(error) => fail(
            exit::FAILED,
            format_args!("{}: {error}", args.dir.display()),
        ),
    }
}
