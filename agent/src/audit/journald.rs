//! The native protocol of journald (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL>): the bytes of an entry, and its socket.

use std::io::{self, IoSlice, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
use serde_json::Value;

use super::event::{Event, Verdict};
use super::format::{safe, sentence};
use super::record::Record;

/// How long one send may wait for room before the caller looks whether it should stop.
const PATIENCE: Duration = Duration::from_millis(200);

/// Several records told as one, where journald is far behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Together {
    pub count: u64,
    pub last: u64,
}

/// Renders one entry.
pub(super) fn encode(out: &mut Vec<u8>, record: &Record, together: Option<Together>) {
    out.clear();
    let event = Event::named(&record.event);
    let decision = Verdict::named(&record.decision).unwrap_or(Verdict::Info);
    let priority = event.map_or(6, |event| event.priority(decision));
    // Shown to people as it is; with a control character in it journalctl would hide it as a blob.
    field(out, "MESSAGE", &safe(&sentence(record)));
    if let Some(event) = event {
        field(out, "MESSAGE_ID", event.message_id());
    }
    field(out, "PRIORITY", &priority.to_string());
    field(out, "SYSLOG_IDENTIFIER", "keyhatch");
    field(out, "KEYHATCH_EVENT", &record.event);
    field(out, "KEYHATCH_DECISION", &record.decision);
    field(out, "KEYHATCH_SEQ", &record.seq.to_string());
    field(out, "KEYHATCH_TIME", &record.time);
    field(out, "KEYHATCH_HASH", &record.hash);
    field(out, "KEYHATCH_SURFACE", &record.surface);
    for (name, value) in [
        ("KEYHATCH_REASON", &record.reason),
        ("KEYHATCH_RULE", &record.rule),
        ("KEYHATCH_SECRET", &record.secret),
        ("KEYHATCH_VERSION", &record.version),
        ("KEYHATCH_BOT", &record.bot),
        ("KEYHATCH_REQUEST_ID", &record.request_id),
    ] {
        optional(out, name, value.as_deref());
    }
    if !record.roles.is_empty() {
        field(out, "KEYHATCH_ROLES", &record.roles.join(","));
    }
    peer(out, record);
    for (key, value) in record.extra() {
        let text = value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned);
        if value != Value::Null {
            field(out, &format!("KEYHATCH_{}", field_name(&key)), &text);
        }
    }
    if let Some(together) = together {
        field(out, "KEYHATCH_COUNT", &together.count.to_string());
        field(out, "KEYHATCH_SEQ_LAST", &together.last.to_string());
    }
}

fn peer(out: &mut Vec<u8>, record: &Record) {
    let Some(peer) = &record.peer else { return };
    for (name, value) in [
        ("KEYHATCH_PEER_PID", peer.pid),
        ("KEYHATCH_PEER_UID", peer.uid),
        ("KEYHATCH_PEER_GID", peer.gid),
    ] {
        optional(out, name, value.map(|value| value.to_string()).as_deref());
    }
    optional(out, "KEYHATCH_PEER_EXE", peer.exe.as_deref());
    optional(out, "KEYHATCH_PEER_UNIT", peer.unit.as_deref());
    optional(
        out,
        "KEYHATCH_PEER_INVOCATION_ID",
        peer.invocation_id.as_deref(),
    );
}

fn optional(out: &mut Vec<u8>, name: &str, value: Option<&str>) {
    if let Some(value) = value {
        field(out, name, value);
    }
}

/// journald takes upper-case letters, digits and underscores.
fn field_name(key: &str) -> String {
    let upper = |c: char| {
        if c.is_ascii_alphanumeric() {
            c.to_ascii_uppercase()
        } else {
            '_'
        }
    };
    key.chars().map(upper).collect()
}

/// `NAME=value`, or the form with a length for a value that could be taken for more than one field.
fn field(out: &mut Vec<u8>, name: &str, value: &str) {
    out.extend_from_slice(name.as_bytes());
    if value.chars().any(char::is_control) {
        out.push(b'\n');
        out.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        out.push(b'=');
    }
    out.extend_from_slice(value.as_bytes());
    out.push(b'\n');
}

/// What became of a send.
#[derive(Debug)]
pub(super) enum Sent {
    Yes,
    /// Its queue is full: try again.
    Busy,
    /// It is not there: try again later.
    Away(io::Error),
}

/// The way to journald.
pub(super) struct Socket {
    path: PathBuf,
    socket: Option<UnixDatagram>,
}

impl Socket {
    pub(super) fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            socket: None,
        }
    }

    /// Sends one entry, waiting a little for room. A journald that was restarted is found again.
    pub(super) fn send(&mut self, entry: &[u8]) -> Sent {
        match self.try_send(entry) {
            Ok(()) => Sent::Yes,
            Err(why) if why.kind() == io::ErrorKind::WouldBlock => Sent::Busy,
            Err(why) if why.kind() == io::ErrorKind::Interrupted => Sent::Busy,
            Err(why) => {
                self.socket = None;
                Sent::Away(why)
            }
        }
    }

    fn try_send(&mut self, entry: &[u8]) -> io::Result<()> {
        let socket = if let Some(socket) = &self.socket {
            socket
        } else {
            let socket = UnixDatagram::unbound()?;
            socket.connect(&self.path)?;
            socket.set_write_timeout(Some(PATIENCE))?;
            self.socket.insert(socket)
        };
        match socket.send(entry) {
            Err(why) if is_too_long(&why) => send_memfd(socket, entry),
            sent => sent.map(drop),
        }
    }
}

fn is_too_long(why: &io::Error) -> bool {
    matches!(
        why.raw_os_error(),
        Some(nix::libc::EMSGSIZE | nix::libc::ENOBUFS)
    )
}

/// An entry too long for a datagram goes as a sealed memory file whose descriptor is sent.
fn send_memfd(socket: &UnixDatagram, entry: &[u8]) -> io::Result<()> {
    let memfd: OwnedFd = memfd_create(
        c"keyhatch-journal",
        MFdFlags::MFD_ALLOW_SEALING | MFdFlags::MFD_CLOEXEC,
    )?;
    let mut file = std::fs::File::from(memfd);
    file.write_all(entry)?;
    let seals = SealFlag::F_SEAL_SHRINK
        | SealFlag::F_SEAL_GROW
        | SealFlag::F_SEAL_WRITE
        | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    let descriptors = [file.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&descriptors)];
    let empty: [IoSlice<'_>; 0] = [];
    sendmsg::<UnixAddr>(socket.as_raw_fd(), &empty, &rights, MsgFlags::empty(), None)?;
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Reads an entry back, as journald does.
    pub(in super::super) fn decode(mut entry: &[u8]) -> Vec<(String, Vec<u8>)> {
        let mut fields = Vec::new();
        while !entry.is_empty() {
            let end = entry.iter().position(|b| *b == b'\n').unwrap();
            let (line, rest) = entry.split_at(end);
            if let Some(at) = line.iter().position(|b| *b == b'=') {
                fields.push((
                    String::from_utf8(line[..at].to_vec()).unwrap(),
                    line[at + 1..].to_vec(),
                ));
                entry = &rest[1..];
            } else {
                let len =
                    usize::try_from(u64::from_le_bytes(rest[1..9].try_into().unwrap())).unwrap();
                fields.push((
                    String::from_utf8(line.to_vec()).unwrap(),
                    rest[9..9 + len].to_vec(),
                ));
                assert_eq!(rest[9 + len], b'\n');
                entry = &rest[10 + len..];
            }
        }
        fields
    }

    proptest! {
        #[test]
        fn any_text_comes_back(text in any::<String>(), next in any::<String>()) {
            let mut out = Vec::new();
            field(&mut out, "A", &text);
            field(&mut out, "B", &next);
            let want = vec![("A".to_owned(), text.into_bytes()), ("B".to_owned(), next.into_bytes())];
            prop_assert_eq!(decode(&out), want);
        }
    }

    #[test]
    fn a_value_cannot_forge_a_field() {
        let mut out = Vec::new();
        field(&mut out, "KEYHATCH_PEER_EXE", "/tmp/x\nPRIORITY=1");
        assert_eq!(decode(&out).len(), 1);
    }
}
