//! Where things are unless told otherwise: a service's paths, and those of `keyhatchd dev`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use keyhatch_protocol::{DEFAULT_ADMIN_SOCKET, DEFAULT_SOCKET};
use nix::unistd::geteuid;

/// The configuration of the service.
pub const CONFIG: &str = "/etc/keyhatch/keyhatch.toml";

/// The folder of the sockets of the caller's own `keyhatchd dev`.
pub fn dev_sockets() -> PathBuf {
    match absolute("XDG_RUNTIME_DIR") {
        Some(runtime) => PathBuf::from(runtime).join("keyhatch"),
        None => PathBuf::from(format!("/tmp/keyhatch-{}", geteuid())),
    }
}

/// The folder in which the caller's own `keyhatchd dev` keeps its store.
pub fn dev_state() -> Option<PathBuf> {
    let state = absolute("XDG_STATE_HOME").map(PathBuf::from);
    let home = || Some(PathBuf::from(absolute("HOME")?).join(".local/state"));
    Some(state.or_else(home)?.join("keyhatch"))
}

/// The bots' socket that a client asks where none is named.
pub fn bot_socket() -> PathBuf {
    let named = std::env::var_os("KEYHATCH_SOCKET").filter(|path| !path.is_empty());
    let service = Path::new(DEFAULT_SOCKET);
    match named {
        Some(path) => path.into(),
        None if service.exists() => service.to_owned(),
        None => dev_sockets().join("keyhatch.sock"),
    }
}

/// The admin socket that is meant where none is named: the service's, else the caller's own.
pub fn admin_socket() -> PathBuf {
    let service = Path::new(DEFAULT_ADMIN_SOCKET);
    if service.exists() {
        service.to_owned()
    } else {
        dev_sockets().join("admin.sock")
    }
}

/// The XDG base directory specification: a relative path is ignored.
fn absolute(variable: &str) -> Option<OsString> {
    std::env::var_os(variable).filter(|path| Path::new(path).is_absolute())
}
