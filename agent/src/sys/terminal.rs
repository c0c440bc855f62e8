//! A line typed on a terminal without being shown.

use std::io::{self, BufRead, Stdin};
use std::os::fd::AsFd;

use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};

/// Reads a line with echo off; the terminal is as before when it returns.
pub fn read_line_unseen(stdin: &Stdin, line: &mut Vec<u8>) -> io::Result<()> {
    let before = tcgetattr(stdin.as_fd())?;
    let mut unseen = before.clone();
    unseen.local_flags.remove(LocalFlags::ECHO);
    tcsetattr(stdin.as_fd(), SetArg::TCSAFLUSH, &unseen)?;
    let read = stdin.lock().read_until(b'\n', line);
    tcsetattr(stdin.as_fd(), SetArg::TCSAFLUSH, &before)?;
    read.map(drop)
}
