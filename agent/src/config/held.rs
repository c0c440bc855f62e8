//! The files that a configuration points to: are they there, and does nobody else have a hand in them?
//!
//! Only with [`Depth::Full`]. A file that others could read or write may be known to them already, so that
//! nothing starts with it; one that is not there yet may still come.

use std::path::{Path, PathBuf};

use super::Depth;
use super::source::{KeySource, STORE_FILE};
use crate::files::{self, FileError, Holds};
use crate::policy::{Place, Report};

const MAKE: &str = "make it with `keyhatchd store init`";

/// The key and the file of a store.
pub(super) fn check_store(
    folder: &Path,
    key: &KeySource,
    [folder_place, key_place]: [&Place; 2],
    depth: Depth,
    report: &mut Report,
) {
    let Depth::Full(trust) = depth else { return };
    let store = folder.join(STORE_FILE);
    let found = files::open(&store, Holds::Secrets, trust).map(drop);
    tell("the store", &store, MAKE, found, folder_place, report);
    check_secret("the key", key, MAKE, key_place, depth, report);
}

/// A file with a key or another secret that is made elsewhere.
pub(super) fn check_key(
    what: &str,
    key: &KeySource,
    place: &Place,
    depth: Depth,
    report: &mut Report,
) {
    check_secret(what, key, "put it there", place, depth, report);
}

fn check_secret(
    what: &str,
    key: &KeySource,
    absent: &str,
    place: &Place,
    depth: Depth,
    report: &mut Report,
) {
    if let Some(path) = key_file(key) {
        check_file(what, &path, Holds::Secrets, absent, place, depth, report);
    }
}

/// Any other file that access or secrets depend on; `absent` says what to do where it is not there.
pub(super) fn check_file(
    what: &str,
    path: &Path,
    holds: Holds,
    absent: &str,
    place: &Place,
    depth: Depth,
    report: &mut Report,
) {
    let Depth::Full(trust) = depth else { return };
    let found = files::open(path, holds, trust).map(drop);
    tell(what, path, absent, found, place, report);
}

/// The folder in which the daemon remembers what it accepted.
pub(super) fn check_state_dir(folder: &Path, place: &Place, depth: Depth, report: &mut Report) {
    let Depth::Full(trust) = depth else { return };
    let found = files::open_folder(folder, Holds::Access, trust).map(drop);
    tell(
        "the state_dir",
        folder,
        "keyhatchd makes it",
        found,
        place,
        report,
    );
}

/// The folder of the records of truth.
pub(super) fn check_audit_dir(folder: &Path, place: &Place, depth: Depth, report: &mut Report) {
    let Depth::Full(trust) = depth else { return };
    let found = files::open_folder(folder, Holds::Access, trust).map(drop);
    // One that is not there yet is made, and not worth a word.
    if !matches!(&found, Err(error) if error.is_absent()) {
        let what = "the audit dir";
        tell(what, folder, "keyhatchd makes it", found, place, report);
    }
}

/// A credential is a file only within the unit that it was given to.
fn key_file(key: &KeySource) -> Option<PathBuf> {
    match key {
        KeySource::File(path) => Some(path.clone()),
        KeySource::Credential(name) => {
            std::env::var_os("CREDENTIALS_DIRECTORY").map(|folder| Path::new(&folder).join(name))
        }
    }
}

fn tell(
    what: &str,
    path: &Path,
    absent: &str,
    found: Result<(), FileError>,
    place: &Place,
    report: &mut Report,
) {
    let same = |at: &Path| at == path;
    let path = path.display();
    match found {
        Ok(()) => {}
        Err(FileError::Loose {
            path: at,
            what: why,
            remedy,
        }) if same(&at) => {
            report.error(place, format!("{what} {path}: {why}, {remedy}"));
        }
        Err(FileError::Loose {
            path: at,
            what: why,
            remedy,
        }) => {
            let at = at.display();
            report.error(
                place,
                format!("{what} {path} cannot be trusted, since {at}: {why}, {remedy}"),
            );
        }
        Err(error) if error.is_absent() => {
            report.warning(place, format!("{what} {path} is not there yet, {absent}"));
        }
        Err(error) => {
            let hint = "run this as root or as the daemon's user";
            report.warning(
                place,
                format!("{what} {path} was not checked, {error}, {hint}"),
            );
        }
    }
}
