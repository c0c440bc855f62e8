//! Against a server that does what real ones cannot be made to do.

mod faults;
mod liar;
mod logins;
mod reading;
mod servers;

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use keyhatch_protocol::Name;

use super::Vault;
use crate::config::{self, KeySource, LeasedPath, VaultAuth};
use crate::files::Trust;
use crate::sources::upstream::{Answer, Fetched, Trouble, Upstream, VersionKey};
use crate::sys::arena::Arena;

/// A folder for token files.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("keyhatch-vault-{}-{count}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o700)).unwrap();
        Self(dir)
    }

    pub fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.0.join(name);
        // Renamed into place, so that it always is another file.
        let fresh = self.0.join("fresh");
        std::fs::write(&fresh, content).unwrap();
        std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::rename(fresh, &path).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub fn config(
    addresses: &[String],
    mounts: &[(&str, &str)],
    leases: &[(&str, &str)],
) -> config::Vault {
    let own = |(a, b): &(&str, &str)| ((*a).to_owned(), (*b).to_owned());
    let lent = |(name, path)| LeasedPath { name, path };
    config::Vault {
        addresses: addresses.to_vec(),
        ca_file: None,
        namespace: Some("team".into()),
        client: None,
        mounts: mounts.iter().map(own).collect::<BTreeMap<_, _>>(),
        auth: VaultAuth::Cert {
            mount: "cert".into(),
            name: None,
        },
        leases: leases.iter().map(own).map(lent).collect(),
    }
}

pub fn app_role(secret_id: &Path, wrapped: bool) -> VaultAuth {
    VaultAuth::AppRole {
        mount: "approle".into(),
        role_id: "role".into(),
        secret_id: KeySource::File(secret_id.into()),
        wrapped,
    }
}

pub fn vault(config: &config::Vault) -> (Vault, Arc<Arena>) {
    vault_within(config, Duration::from_secs(20))
}

pub fn vault_within(config: &config::Vault, timeout: Duration) -> (Vault, Arc<Arena>) {
    let arena = Arena::new(4 << 20).unwrap();
    let key = VersionKey::new(&[7; 32]);
    let vault = Vault::new(config, timeout, &arena, Trust::own(), key).unwrap();
    (vault, arena)
}

/// A vault that logs in by certificate and reads the mount `secret`.
pub fn simple(address: &str) -> (Vault, Arc<Arena>) {
    vault(&config(&[address.to_owned()], &[("secret", "")], &[]))
}

pub fn name(text: &str) -> Name {
    Name::parse(text).unwrap()
}

pub async fn fetch(vault: &Vault, text: &str) -> Result<Answer, Trouble> {
    vault.fetch(&[name(text)]).await.pop().unwrap()
}

pub async fn found(vault: &Vault, text: &str) -> Fetched {
    match fetch(vault, text).await {
        Ok(Answer::Found(fetched)) => fetched,
        Ok(Answer::Absent(why)) => panic!("{text} is absent: {why}"),
        Err(trouble) => panic!("{text}: {trouble}"),
    }
}

pub async fn absent(vault: &Vault, text: &str) -> String {
    match fetch(vault, text).await {
        Ok(Answer::Absent(why)) => why,
        Ok(Answer::Found(_)) => panic!("{text} is there"),
        Err(trouble) => panic!("{text}: {trouble}"),
    }
}

pub async fn trouble(vault: &Vault, text: &str) -> Trouble {
    match fetch(vault, text).await {
        Ok(_) => panic!("{text} was answered"),
        Err(trouble) => {
            assert!(!trouble.to_string().contains("CANARY"), "{trouble}");
            trouble
        }
    }
}
