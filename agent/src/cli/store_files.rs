//! The store verbs on the files themselves, for a store whose daemon does not run here.
//!
//! Owner and mode of the files stay as they are. What was done stands in the store, from which the daemon
//! records it when it next loads.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use keyhatch_protocol::Name;
use nix::unistd::getuid;
use serde_json::{Value as Json, json};

use super::store::{Asked, other_key};
use super::{exit, fail};
use crate::config::KeySource;
use crate::files::{self, Holds, Trust};
use crate::sources::credential_offline;
use crate::store::{Actor, Edit, Folder, Key, Put};

/// Makes a folder with an empty store, and its key.
pub fn init(store: &Path, key: &KeySource) -> u8 {
    let made = make_or_read_key(key).and_then(|key| {
        let folder = Folder::init(store).map_err(|error| error.to_string())?;
        let guard = folder.lock().map_err(|error| error.to_string())?;
        let sealed = Edit::create(&key)
            .and_then(|edit| edit.seal(actor()))
            .map_err(|e| e.to_string())?;
        guard.create(&sealed).map_err(|error| error.to_string())
    });
    match made {
        Ok(()) => {
            println!("an empty store in {}", store.display());
            0
        }
        Err(why) => fail(exit::FAILED, why),
    }
}

/// Prints a value, exactly its bytes.
pub fn get(store: &Path, key: &KeySource, name: &Name) -> u8 {
    let edit = match open(store, key) {
        Ok((_, edit)) => edit,
        Err(why) => return fail(exit::FAILED, why),
    };
    match edit.value(name) {
        Some(value) => match io::stdout().lock().write_all(value.as_bytes()) {
            Ok(()) => 0,
            Err(error) => fail(exit::FAILED, error),
        },
        None => fail(exit::NOT_FOUND, format_args!("there is no secret {name}")),
    }
}

/// Does what a verb asks.
pub fn act(store: &Path, key: &KeySource, asked: Asked) -> Result<Json, String> {
    let (folder, _) = open_folder(store)?;
    let guard = folder.lock().map_err(|error| error.to_string())?;
    // Under the lock: what is changed is what was read.
    let (own, mut edit) = open(store, key)?;
    let done = change(&mut edit, &own, asked)?;
    if edit.is_changed() {
        let sealed = edit.seal(actor()).map_err(|error| error.to_string())?;
        guard.replace(&sealed).map_err(|error| error.to_string())?;
    }
    Ok(done)
}

fn change(edit: &mut Edit, own: &Key, asked: Asked) -> Result<Json, String> {
    let failed = |error: crate::store::StoreError| error.to_string();
    match asked {
        Asked::Put {
            name,
            value,
            revoke,
        } => {
            let previous = if revoke {
                crate::store::Previous::Revoke
            } else {
                crate::store::Previous::Keep
            };
            Ok(told(
                &name,
                &edit.put(&name, value, previous).map_err(failed)?,
            ))
        }
        Asked::Generate { name, length } => {
            Ok(told(&name, &edit.generate(&name, length).map_err(failed)?))
        }
        Asked::Rm(name) if edit.remove(&name) => Ok(json!({ "name": name, "result": "removed" })),
        Asked::Rm(name) => Err(format!("there is no secret {name}")),
        Asked::List => Ok(json!({ "secrets": edit.list() })),
        Asked::Verify => {
            Ok(json!({ "secrets": edit.list().len(), "generation": edit.generation() }))
        }
        Asked::Import { values, dry_run } => {
            let plan = if dry_run {
                edit.plan(&values)
            } else {
                edit.import(values).map_err(failed)?
            };
            Ok(
                json!({ "results": plan.iter().map(|(name, put)| told(name, put)).collect::<Vec<_>>() }),
            )
        }
        Asked::Rekey(others) => {
            let keys: Vec<&Key> = std::iter::once(own).chain(&others).collect();
            edit.rekey(&keys).map_err(failed)?;
            Ok(json!({ "keys": edit.keys() }))
        }
        Asked::KeyAdd { label, key } => {
            edit.add_key(&label, &key).map_err(failed)?;
            Ok(json!({ "keys": edit.keys() }))
        }
        Asked::KeyList => Ok(json!({ "keys": edit.keys() })),
        Asked::KeyRm(label) => {
            edit.remove_key(&label).map_err(failed)?;
            Ok(json!({ "keys": edit.keys() }))
        }
        Asked::AcceptOlder => {
            edit.accept_older().map_err(failed)?;
            Ok(json!({ "generation": edit.generation() + 1 }))
        }
    }
}

fn told(name: &Name, put: &Put) -> Json {
    json!({ "name": name, "result": put.as_str(), "version": put.version() })
}

/// The key of a file, or of a credential of this host.
pub fn key_of(key: &KeySource) -> Result<Key, String> {
    other_key(key)
}

/// The key of a file, which is made (0600) where it does not exist.
pub fn make_or_read_key(source: &KeySource) -> Result<Key, String> {
    let KeySource::File(path) = source else {
        return key_of(source);
    };
    let made = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    match made {
        Ok(mut file) => {
            let key = Key::generate().map_err(|error| error.to_string())?;
            let kept = file
                .write_all(key.as_bytes())
                .and_then(|()| file.sync_all());
            kept.map_err(|error| format!("{}: {error}", path.display()))?;
            Ok(key)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => key_of(source),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

fn open(store: &Path, key: &KeySource) -> Result<(Key, Edit), String> {
    let (folder, trust) = open_folder(store)?;
    let key = credential_offline(key, trust).map_err(|error| error.to_string())?;
    let bytes = folder.read().map_err(|error| error.to_string())?;
    let edit = Edit::open(&bytes, &key).map_err(|error| format!("{}: {error}", store.display()))?;
    Ok((key, edit))
}

/// The folder, if nobody but root and its owner can write it.
fn open_folder(store: &Path) -> Result<(Folder, Trust), String> {
    let trust = Trust::of_daemon(store);
    files::open_folder(store, Holds::Access, trust).map_err(|error| error.to_string())?;
    Ok((
        Folder::open(store).map_err(|error| error.to_string())?,
        trust,
    ))
}

/// Who runs this verb, for the daemon's record.
fn actor() -> Actor {
    let login = std::fs::read_to_string("/proc/self/loginuid").ok();
    let login_uid = login
        .and_then(|text| text.trim().parse().ok())
        .filter(|uid| *uid != u32::MAX);
    Actor {
        uid: getuid().as_raw(),
        login_uid,
    }
}
