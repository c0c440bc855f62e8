//! The agent's socket: whether it is there, who owns it, who listens.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;

use keyhatch::Address;
use nix::sys::socket::{getsockopt, sockopt};

use super::user;

/// What was found, or what is wrong and what to do. Whether who listens may be trusted, the client decides.
pub fn look(address: &Address) -> Result<String, (String, String)> {
    let path = address.path();
    let start = "is keyhatchd running? Another socket is given by --socket or KEYHATCH_SOCKET";
    let wrong = |what: String, advice: &str| (what, advice.to_owned());
    let found = fs::symlink_metadata(path).map_err(|cause| match cause.kind() {
        io::ErrorKind::NotFound => wrong(format!("there is no {address}"), start),
        io::ErrorKind::PermissionDenied => wrong(
            format!("{address} is in a folder that you may not enter"),
            "an operator opens the folders above the socket (mode 0755): the policy decides, not they",
        ),
        _ => wrong(format!("{address}: {cause}"), start),
    })?;
    let (owner, mode) = (user(found.uid()), found.mode() & 0o7777);
    if !found.file_type().is_socket() && !found.file_type().is_symlink() {
        let what = format!("{address} is no socket; its owner is uid {owner}");
        return Err(wrong(what, start));
    }
    let stream = UnixStream::connect(path).map_err(|cause| {
        let whose = format!("{address}, owner uid {owner}, mode {mode:04o}");
        match cause.kind() {
            io::ErrorKind::ConnectionRefused => wrong(format!("{whose}: nobody listens"), start),
            io::ErrorKind::PermissionDenied => wrong(
                format!("{whose}: you may not connect"),
                "an operator gives the socket back its mode 0666: restart keyhatchd",
            ),
            _ => wrong(format!("{whose}: {cause}"), start),
        }
    })?;
    let listener = match getsockopt(&stream, sockopt::PeerCredentials) {
        Ok(peer) => format!("uid {}, pid {}", user(peer.uid()), peer.pid()),
        Err(errno) => format!("unknown: {errno}"),
    };
    Ok(format!(
        "{address}, owner uid {owner}, mode {mode:04o}; who listens: {listener}"
    ))
}
