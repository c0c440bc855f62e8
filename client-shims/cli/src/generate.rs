//! Completions and man pages, made from the command line's own definition.

use std::io;
use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;
use clap_mangen::Man;

use crate::failure::Failure;
use crate::options::Options;

pub fn completions(shell: Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Options::command(), "keyhatch", &mut script);
    Ok(io::Write::write_all(&mut io::stdout(), &script)?)
}

/// The main page on standard output, or all pages into `dir`.
pub fn man(dir: Option<&Path>) -> Result<(), Failure> {
    let command = Options::command();
    match dir {
        Some(dir) => Ok(clap_mangen::generate_to(command, dir)?),
        None => Ok(Man::new(command).render(&mut io::stdout())?),
    }
}
