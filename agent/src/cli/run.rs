//! `keyhatchd run`: the daemon in the foreground.

use std::path::Path;

use super::{exit, fail};
use crate::config::{self, Depth};
use crate::daemon::{self, StartError};
use crate::files::Trust;
use crate::sys::manager::Manager;

pub fn run(config: &Path) -> u8 {
    daemon::log_to_journald_or_stderr();
    let taken = match Manager::take() {
        Ok(taken) => taken,
        Err(error) => return fail(exit::CONFIG, error),
    };
    if let Some(problem) = daemon::unseen_users() {
        return fail(exit::CONFIG, problem);
    }
    let loaded = match config::load(config, Depth::Full(Trust::own())) {
        Ok(loaded) => loaded,
        Err(problems) => {
            problems.iter().for_each(|problem| eprintln!("{problem}"));
            return exit::CONFIG;
        }
    };
    match daemon::run(config, loaded, taken, || {}) {
        Ok(()) => 0,
        Err(StartError::Config(problems)) => {
            problems.iter().for_each(|problem| eprintln!("{problem}"));
            exit::CONFIG
        }
        Err(error) => fail(exit::FAILED, error),
    }
}
