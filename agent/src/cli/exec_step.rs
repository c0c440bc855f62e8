//! `keyhatchd exec-step`: runs one program for the daemon, in the unit that systemd started for it.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;

use super::{ConfigAt, exit, fail};
use crate::config::{self, Config, Depth};
use crate::exec::{allowed_programs, serve_one};
use crate::files::{self, Holds, Trust};
use crate::sys::{harden, peer};

pub fn exec_step(at: &ConfigAt) -> u8 {
    // What passes through here is a secret.
    if let Err(errno) = harden::deny_dumps() {
        return fail(exit::FAILED, errno);
    }
    let config = match config::load(&at.config, Depth::ContentOnly) {
        Ok(config) => config,
        Err(problems) => {
            problems.iter().for_each(|problem| eprintln!("{problem}"));
            return exit::CONFIG;
        }
    };
    // The daemon may have been broken into, so what it could have written names no program.
    for file in &config.files {
        if let Err(error) = files::open(file, Holds::Access, Trust::own()) {
            return fail(exit::CONFIG, error);
        }
    }
    let stream = match io::stdin().as_fd().try_clone_to_owned() {
        Ok(socket) => UnixStream::from(socket),
        Err(error) => return fail(exit::FAILED, error),
    };
    if let Err(why) = check_peer(&stream, &config) {
        return fail(exit::DENIED, why);
    }
    match serve_one(stream, &allowed_programs(&config)) {
        Ok(()) => 0,
        Err(error) => fail(exit::FAILED, error),
    }
}

/// Only the daemon asks: whoever the state belongs to, or root.
fn check_peer(stream: &UnixStream, config: &Config) -> Result<(), String> {
    let asks = peer::credentials(stream).map_err(|error| {
        format!("standard input is no socket of keyhatch-exec.socket ({error}); only systemd starts this")
    })?;
    let state_dir = &config.agent.state_dir;
    let owner =
        fs::metadata(state_dir).map_err(|error| format!("{}: {error}", state_dir.display()))?;
    if asks.uid == 0 || asks.uid == owner.uid() {
        return Ok(());
    }
    Err(format!("uid {} is not the daemon's user", asks.uid))
}
