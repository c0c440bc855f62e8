//! Which run of its unit a process belongs to.
//!
//! The system manager keeps a link `invocation:UNIT` for each running unit, as journald reads it too. Only root can
//! write there. The extended attribute `user.invocation_id` of the cgroup says the same, but whoever a cgroup was
//! delegated to may set it.

use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Where the links are.
const UNITS: &str = "/run/systemd/units";

/// What is there where systemd is the system manager (`sd_booted(3)`).
const BOOTED: &str = "/run/systemd/system";

/// Whether a unit runs.
pub enum Run {
    /// It does, with this invocation id.
    Is(String),
    /// It does not.
    Not,
    /// Nobody tells, or it cannot be read.
    Unknown,
}

/// The run of a unit as it is now.
pub fn run(unit: &str) -> Run {
    match std::fs::read_link(format!("{UNITS}/invocation:{unit}")) {
        Ok(target) => parse(target.as_os_str().as_bytes()).map_or(Run::Unknown, Run::Is),
        Err(error) if error.kind() == ErrorKind::NotFound && Path::new(BOOTED).is_dir() => Run::Not,
        Err(_) => Run::Unknown,
    }
}

/// 128 bits in hexadecimal, as systemd writes them.
fn parse(text: &[u8]) -> Option<String> {
    let is_id = text.len() == 32 && text.iter().all(u8::is_ascii_hexdigit);
    let text = std::str::from_utf8(text).ok()?;
    is_id.then(|| text.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_id_is_one() {
        let id = "0123456789abcdef0123456789ABCDEF";
        assert_eq!(parse(id.as_bytes()), Some(id.to_lowercase()));
        for text in [
            "",
            "/etc/passwd",
            &id[1..],
            &format!("{id}0"),
            &id.replace('0', "g"),
        ] {
            assert_eq!(parse(text.as_bytes()), None, "{text}");
        }
    }
}
