//! Which run of its unit a process belongs to.
//!
//! The system manager keeps a link `invocation:UNIT` for each running unit, as journald reads it too. Only root can
//! write there. The extended attribute `user.invocation_id` of the cgroup says the same, but whoever a cgroup was
//! delegated to may set it.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Where the links are.
const UNITS: &str = "/run/systemd/units";

/// Whether a system manager tells of its units.
pub fn is_told() -> bool {
    Path::new(UNITS).is_dir()
}

/// The invocation id of a unit as it runs now; nothing where it does not run, or no system manager tells.
pub fn id(unit: &str) -> Option<String> {
    let target = std::fs::read_link(format!("{UNITS}/invocation:{unit}")).ok()?;
    parse(target.as_os_str().as_bytes())
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
