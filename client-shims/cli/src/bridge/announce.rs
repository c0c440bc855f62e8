//! How the base URL becomes known: on standard output, in a file, or to the command alone. Never in the journal.

use std::env;
use std::fs;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process;

use nix::sys::stat::fstat;

use crate::failure::Failure;
use crate::output::line;

/// Where the URL was put.
pub struct Announced {
    file: Option<PathBuf>,
}

pub fn announce(url: &str, file: Option<&Path>, has_child: bool) -> Result<Announced, Failure> {
    if let Some(file) = file {
        write(file, url).map_err(|cause| {
            Failure::failed(format!("bridge: cannot write {}: {cause}", file.display()))
        })?;
    }
    let announced = Announced {
        file: file.map(Path::to_owned),
    };
    if has_child {
        return Ok(announced);
    }
    if is_journal() {
        if file.is_none() {
            return Err(Failure::usage(
                "bridge: standard output is the journal, which must not hold the URL: use --url-file FILE or -- CMD",
            ));
        }
        return Ok(announced);
    }
    line(url)?;
    Ok(announced)
}

impl Announced {
    /// The URL leads nowhere any more.
    pub fn withdraw(self) {
        if let Some(file) = self.file {
            // Somebody may have taken it away.
            let _ = fs::remove_file(file);
        }
    }
}

/// systemd says which device and inode its journal's stream is (`systemd.exec(5)`, `$JOURNAL_STREAM`).
fn is_journal() -> bool {
    let Some(stream) = env::var_os("JOURNAL_STREAM") else {
        return false;
    };
    let own = fstat(io::stdout().as_fd()).map(|own| format!("{}:{}", own.st_dev, own.st_ino));
    own.is_ok_and(|own| *own == *stream)
}

/// A new file takes the place of whatever is there, so that nobody else has it open.
fn write(file: &Path, url: &str) -> io::Result<()> {
    let mut name = file.as_os_str().to_owned();
    name.push(format!(".{}", process::id()));
    let new = PathBuf::from(name);
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let written = options
        .open(&new)
        .and_then(|mut out| writeln!(out, "{url}"))
        .and_then(|()| fs::rename(&new, file));
    if written.is_err() {
        let _ = fs::remove_file(&new);
    }
    written
}
