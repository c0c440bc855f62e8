//! Keys of stores: from a file, or from a credential that systemd hands to the service.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use zeroize::Zeroizing;

use crate::config::KeySource;
use crate::files::{self, FileError, Holds, Trust};
use crate::store::{Key, StoreError};

/// A key is 32 bytes; a little more is read so that a longer file is told apart.
const LIMIT: u64 = 4096;

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file is not there or not to be trusted.
    #[error("the key: {0}")]
    File(#[from] FileError),
    /// It does not hold a key.
    #[error("the key {0}: {1}")]
    Content(String, StoreError),
    /// The service was started without the credential.
    #[error(
        "the key credential:{0}: this process has no credentials directory; start it by its systemd \
         unit with LoadCredentialEncrypted={0}, or configure key = \"file:PATH\""
    )]
    NoCredentials(String),
    /// systemd-creds cannot open it.
    #[error("the key credential:{name}: systemd-creds: {why}")]
    Creds {
        /// The credential's name.
        name: String,
        /// What systemd-creds said.
        why: String,
    },
}

/// Loads a key for the daemon. It is read anew for each use and never kept.
pub fn load_key(source: &KeySource, trust: Trust) -> Result<Key, KeyError> {
    match source {
        KeySource::File(path) => from_file(path, trust),
        KeySource::Credential(name) => {
            let folder = std::env::var_os("CREDENTIALS_DIRECTORY")
                .ok_or_else(|| KeyError::NoCredentials(name.clone()))?;
            from_file(&PathBuf::from(folder).join(name), trust)
        }
    }
}

/// Loads a key for a verb that works on the files, off the service: a credential is opened with
/// `systemd-creds` from the host's credential store.
pub fn credential_offline(source: &KeySource, trust: Trust) -> Result<Key, KeyError> {
    match source {
        KeySource::Credential(name) if std::env::var_os("CREDENTIALS_DIRECTORY").is_none() => {
            from_systemd(name)
        }
        other => load_key(other, trust),
    }
}

fn from_file(path: &Path, trust: Trust) -> Result<Key, KeyError> {
    let bytes = Zeroizing::new(files::read(path, Holds::Secrets, trust, LIMIT)?);
    Key::from_bytes(&bytes).map_err(|error| KeyError::Content(path.display().to_string(), error))
}

fn from_systemd(name: &str) -> Result<Key, KeyError> {
    let fail = |why: String| KeyError::Creds {
        name: name.to_owned(),
        why,
    };
    let sealed = [
        "/etc/credstore.encrypted",
        "/run/credstore.encrypted",
        "/usr/lib/credstore.encrypted",
    ]
    .iter()
    .map(|folder| Path::new(folder).join(name))
    .find(|path| path.exists())
    .ok_or_else(|| fail(format!("no file /etc/credstore.encrypted/{name}")))?;
    let done = Command::new("systemd-creds")
        .arg(format!("--name={name}"))
        .arg("decrypt")
        .arg(&sealed)
        .arg("-")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| fail(error.to_string()))?;
    let bytes = Zeroizing::new(done.stdout);
    if !done.status.success() {
        return Err(fail(
            String::from_utf8_lossy(&done.stderr).trim().to_owned(),
        ));
    }
    Key::from_bytes(&bytes).map_err(|error| KeyError::Content(format!("credential:{name}"), error))
}
