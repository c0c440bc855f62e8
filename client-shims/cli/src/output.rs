//! Standard output: bytes as they are for values, text that cannot drive a terminal for all else.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;

/// Standard output without a buffer: `std::io::stdout` would keep a copy of the value in one.
pub fn unbuffered() -> io::Result<File> {
    Ok(io::stdout().as_fd().try_clone_to_owned()?.into())
}

/// Writes one line at once, so that who reads the stream has it now.
pub fn line(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()
}

/// Text that a peer or an upstream chose, such as a path, with its control characters spelt out.
pub fn visible(text: &str) -> Cow<'_, str> {
    if !text.contains(char::is_control) {
        return text.into();
    }
    let spell = |c: char| {
        if c.is_control() {
            c.escape_default().to_string()
        } else {
            c.into()
        }
    };
    text.chars().map(spell).collect::<String>().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_drives_the_terminal() {
        assert_eq!(visible("/opt/b\u{f6}t"), "/opt/b\u{f6}t");
        assert_eq!(visible("a\n\u{1b}[2J\u{9b}1m"), "a\\n\\u{1b}[2J\\u{9b}1m");
    }
}
