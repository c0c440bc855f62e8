//! `[agent]`: the sockets, the state, who administers.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use keyhatch_protocol::{DEFAULT_ADMIN_SOCKET, DEFAULT_SOCKET};

use super::section::{Section, shown};
use super::source::read_key;
use super::{Depth, KeySource, held, host};
use crate::policy::{At, Report};

/// `sun_path` of unix(7), less the final zero.
const MAX_SOCKET_PATH: usize = 107;

/// `[agent]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agent {
    /// Where bots ask.
    pub socket: PathBuf,
    /// Where ops ask.
    pub admin_socket: PathBuf,
    /// What the daemon keeps between runs.
    pub state_dir: PathBuf,
    /// Who is answered on the admin socket besides root and the daemon's user.
    pub admins: Vec<Admin>,
    /// Where metrics are served; off unless given.
    pub metrics: Option<Metrics>,
    /// What the copies of upstream values are sealed with.
    pub snapshot_key: Option<KeySource>,
}

impl Agent {
    /// Where systemd asks for the credentials of units: beside the bots' socket.
    #[must_use]
    pub fn credentials_socket(&self) -> PathBuf {
        self.socket.with_file_name("credentials.sock")
    }
}

/// One entry of `admins`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admin {
    /// A user's name.
    User(String),
    /// A group's name, written `group:NAME`.
    Group(String),
}

/// Where metrics are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Metrics {
    /// A TCP address.
    Tcp(SocketAddr),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

pub(super) fn read(section: &Section<'_>, depth: Depth, report: &mut Report) -> Agent {
    let keys = [
        "socket",
        "admin_socket",
        "state_dir",
        "admins",
        "metrics",
        "snapshot_key",
    ];
    section.check_keys(&keys, report);
    let snapshot_key = read_key(section, "snapshot_key", report);
    if let Some(key) = &snapshot_key {
        let place = section.place_of("snapshot_key");
        held::check_key("the snapshot_key", key, &place, depth, report);
    }
    let metrics = read_metrics(section, report);
    let socket = section.path("socket", report);
    let admin_socket = section.path("admin_socket", report);
    let socket_or = |given: &Option<At<PathBuf>>, default: &str| {
        given
            .as_ref()
            .map_or_else(|| default.into(), |at| at.value.clone())
    };
    let agent = Agent {
        socket: socket_or(&socket, DEFAULT_SOCKET),
        admin_socket: socket_or(&admin_socket, DEFAULT_ADMIN_SOCKET),
        state_dir: section
            .path("state_dir", report)
            .map_or_else(|| "/var/lib/keyhatch".into(), |at| at.value),
        admins: read_admins(section, depth, report),
        metrics: metrics.as_ref().map(|at| at.value.clone()),
        snapshot_key,
    };
    for At { value: path, place } in [&socket, &admin_socket].into_iter().flatten() {
        if path.as_os_str().len() > MAX_SOCKET_PATH {
            let text = format!(
                "{} is too long, a socket's path has at most {MAX_SOCKET_PATH} bytes, shorten it",
                shown(path)
            );
            report.error(place, text);
        }
    }
    check_distinct(&agent, section, report);
    agent
}

fn check_distinct(agent: &Agent, section: &Section<'_>, report: &mut Report) {
    let metrics: Option<&Path> = match &agent.metrics {
        Some(Metrics::Unix(path)) => Some(path),
        _ => None,
    };
    let credentials = agent.credentials_socket();
    let sockets = [
        ("credentials socket", Some(credentials.as_path())),
        ("metrics", metrics),
        ("admin_socket", Some(agent.admin_socket.as_path())),
        ("socket", Some(agent.socket.as_path())),
    ];
    for (index, (key, path)) in sockets.iter().enumerate() {
        for (other, twin) in &sockets[index + 1..] {
            if let (Some(path), true) = (path, path == twin) {
                // The default may be what the given one collides with.
                let given = section.get(key).or_else(|| section.get(other));
                let place = given.map_or_else(|| section.place(), |value| value.place());
                let text = format!(
                    "`{key}` and `{other}` are both {}, each needs its own, change one",
                    shown(path)
                );
                report.error(&place, text);
            }
        }
    }
}

fn read_metrics(section: &Section<'_>, report: &mut Report) -> Option<At<Metrics>> {
    let text = section.string("metrics", report)?;
    let value = if text.value.starts_with('/') {
        Metrics::Unix(section.path("metrics", report)?.value)
    } else if let Ok(address) = text.value.parse() {
        Metrics::Tcp(address)
    } else {
        let why = "it must be an address with a port or an absolute socket path";
        let text_ = format!(
            "`metrics` is {:?}, {why}, write \"127.0.0.1:9464\"",
            text.value
        );
        report.error(&text.place, text_);
        return None;
    };
    Some(At {
        value,
        place: text.place,
    })
}

fn read_admins(section: &Section<'_>, depth: Depth, report: &mut Report) -> Vec<Admin> {
    let Some(list) = section
        .get("admins")
        .and_then(|value| value.strings(report))
    else {
        return Vec::new();
    };
    let mut admins = Vec::new();
    for At { value: text, place } in list {
        let admin = match text.strip_prefix("group:") {
            Some(group) => {
                host::checked_account("group", group, &place, depth, report).map(Admin::Group)
            }
            None => host::checked_account("user", text, &place, depth, report).map(Admin::User),
        };
        admins.extend(admin);
    }
    admins
}
