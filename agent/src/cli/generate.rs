//! Shell completions and man pages, from the command line's own description.

use std::io;
use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory};

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
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    match page_of(&command, &args.dir) {
        Ok(()) => 0,
        Err(error) => fail(
            exit::FAILED,
            format_args!("{}: {error}", args.dir.display()),
        ),
    }
}

/// A page for a command and each of its verbs, where those of administrators are.
fn page_of(command: &Command, dir: &Path) -> io::Result<()> {
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        page_of(verb, dir)?;
    }
    let page = clap_mangen::Man::new(command.clone()).section("8");
    page.generate_to(dir).map(drop)
}
