//! Files, TCP ports, signals and abstract sockets (`landlock(7)`).
//!
//! Rules stand on open folders, so what is put in place of a file is seen, and what is put in place of a
//! folder is not. Looking up a path, `stat` and watches are no access to Landlock; opening is.

use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, LandlockStatus, NetPort, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, RulesetError, Scope, path_beneath_rules,
};

use super::Needs;

/// The Landlock that these rules were tried with.
const TRIED: ABI = ABI::V6;

/// What the C library reads as it looks up users, groups and hosts, and the authorities of TLS. Files of /etc
/// are replaced by renames, so all of it stands here; modes keep a daemon with a user of its own from the rest.
const SYSTEM: [&str; 16] = [
    "/etc",
    "/usr",
    "/lib",
    "/lib32",
    "/lib64",
    "/nix/store",
    "/proc",
    "/sys/fs/cgroup",
    "/dev/null",
    "/dev/random",
    "/dev/urandom",
    "/run/systemd",
    "/run/NetworkManager",
    "/run/resolvconf",
    "/var/lib/extrausers",
    "/var/lib/sss",
];

/// What each later Landlock added.
const ADDED: [(ABI, &str); 5] = [
    (ABI::V2, "moves between folders (5.19)"),
    (ABI::V3, "truncation (6.2)"),
    (ABI::V4, "TCP ports (6.7)"),
    (ABI::V5, "device controls (6.10)"),
    (ABI::V6, "signals and abstract sockets (6.12)"),
];

/// Takes from this thread and those it starts what is not in `needs`; returns what could not be taken.
pub(super) fn restrict(needs: &Needs) -> Vec<String> {
    if needs.programs {
        return vec![
            "no Landlock, since a bot is selected by exe or exe_sha256 and the kernel shows a process under \
             Landlock no program of others: a daemon that is broken into can open any file of its user"
                .to_owned(),
        ];
    }
    let restricted = rules(needs).and_then(RulesetCreated::restrict_self);
    match restricted.map(|status| status.landlock) {
        Ok(LandlockStatus::Available { effective_abi, .. }) => lacking(effective_abi),
        Ok(LandlockStatus::NotEnabled) => vec![none("it is turned off: add it to lsm=")],
        Ok(LandlockStatus::NotImplemented) => vec![none("Linux 5.13")],
        Err(error) => vec![none(&error.to_string())],
    }
}

fn none(why: &str) -> String {
    format!(
        "no Landlock ({why}): a daemon that is broken into can open any file of its user and connect anywhere"
    )
}

fn lacking(abi: ABI) -> Vec<String> {
    let later = ADDED.iter().filter(|(since, _)| abi < *since);
    let later: Vec<&str> = later.map(|(_, what)| *what).collect();
    if later.is_empty() {
        return Vec::new();
    }
    vec![format!(
        "an older Landlock that leaves to a daemon that is broken into: {}",
        later.join(", ")
    )]
}

fn rules(needs: &Needs) -> Result<RulesetCreated, RulesetError> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let write =
        read | AccessFs::WriteFile | AccessFs::Truncate | AccessFs::MakeReg | AccessFs::RemoveFile;
    let sockets = AccessFs::MakeSock | AccessFs::RemoveFile;
    let read_in = needs.read.iter().filter_map(|folder| nearest(folder));
    let written_in = needs.write.iter().filter_map(|folder| nearest(folder));
    let connect = needs
        .connect
        .iter()
        .map(|port| NetPort::new(*port, AccessNet::ConnectTcp));
    let bind = needs
        .bind
        .iter()
        .map(|port| NetPort::new(*port, AccessNet::BindTcp));
    Ruleset::default()
        .handle_access(AccessFs::from_all(TRIED))?
        .handle_access(AccessNet::from_all(TRIED))?
        .scope(scopes(needs))?
        .create()?
        .add_rules(path_beneath_rules(SYSTEM, read))?
        .add_rules(path_beneath_rules(["/dev/null"], AccessFs::WriteFile))?
        .add_rules(path_beneath_rules(read_in, read))?
        .add_rules(path_beneath_rules(written_in, write))?
        .add_rules(path_beneath_rules(&needs.sockets, sockets))?
        .add_rules(connect.map(Ok::<_, RulesetError>))?
        .add_rules(bind.map(Ok::<_, RulesetError>))
}

/// The folder, or the nearest one above it where it is not there yet. All of the host is never meant.
fn nearest(folder: &Path) -> Option<&Path> {
    let there = folder.ancestors().find(|above| above.exists())?;
    if there.parent().is_none() {
        tracing::warn!(folder = %folder.display(), "is not there yet; restart keyhatchd once it is");
        return None;
    }
    Some(there)
}

fn scopes(needs: &Needs) -> BitFlags<Scope> {
    if needs.abstract_sockets {
        Scope::Signal.into()
    } else {
        Scope::from_all(TRIED)
    }
}
