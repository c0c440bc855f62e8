//! The upstream sources of a configuration, each made by its kind and given to the engine.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use zeroize::Zeroizing;

use super::engine::{Builder, CopyPlace, Make, Rooms, Setup, Upstreams};
use super::names::{Names, Owners};
use super::upstream::VersionKey;
use super::vault::Vault;
use crate::config::{self, Config, Platform, SourceKind};
use crate::files::{self, Holds, Trust};
use crate::sys::arena::Arena;

/// Makes and starts all upstream sources.
///
/// # Errors
/// What cannot be used of the configuration on this host.
pub fn start(config: &Config, owners: &Owners, rooms: Rooms) -> Result<Upstreams, Vec<String>> {
    let mut builder = Builder::new(owners.clone());
    for source in &config.sources {
        let SourceKind::Upstream { fetching, platform } = &source.kind else {
            continue;
        };
        let state_dir = &config.agent.state_dir;
        let key = config.agent.snapshot_key.clone();
        let copy = key.filter(|_| fetching.snapshot).map(|key| {
            let bound = bound_to(&source.prefix, platform);
            CopyPlace::new(state_dir, &source.name, key, &bound)
        });
        let setup = Setup {
            name: source.name.as_str().into(),
            names: Names::new(&source.prefix, owners.clone()),
            fetching: fetching.clone(),
            copy,
            upstream: (),
        };
        let (timeout, arena) = (fetching.timeout, Arc::clone(rooms.cache.arena()));
        match platform {
            Platform::Vault(vault) => builder.add(setup.of(VaultMaker {
                config: (**vault).clone(),
                timeout,
                arena,
                version_key: version_key(state_dir).map_err(|why| vec![why])?,
            })),
            #[cfg(feature = "aws")]
            Platform::Aws(aws) => builder.add(setup.of(AwsMaker {
                config: aws.clone(),
                timeout,
                arena,
            })),
            // Refused with the configuration.
            #[cfg(not(feature = "aws"))]
            Platform::Aws(_) => {}
        }
    }
    builder.start(rooms)
}

/// What of a source's configuration its values depend on.
fn bound_to(prefix: &str, platform: &Platform) -> String {
    match platform {
        Platform::Vault(vault) => format!(
            "{prefix}\0vault\0{:?}\0{:?}\0{:?}",
            vault.addresses, vault.namespace, vault.mounts
        ),
        Platform::Aws(aws) => format!("{prefix}\0aws\0{:?}\0{:?}", aws.region, aws.endpoint_url),
    }
}

/// The key of versions that the agent itself makes: 32 random bytes, made at the first start.
fn version_key(state_dir: &Path) -> Result<VersionKey, String> {
    let path = state_dir.join("version.key");
    let mut key = Zeroizing::new([0; 32]);
    match files::read(&path, Holds::Secrets, Trust::own(), 32) {
        Ok(bytes) => match bytes.first_chunk::<32>() {
            Some(found) => key.copy_from_slice(found),
            None => {
                return Err(format!(
                    "{}: is shorter than 32 bytes; remove it",
                    path.display()
                ));
            }
        },
        Err(why) if why.is_absent() => {
            getrandom::fill(&mut key[..]).map_err(|why| format!("no random numbers: {why}"))?;
            files::replace(&path, &key[..]).map_err(|why| format!("{}: {why}", path.display()))?;
        }
        Err(why) => return Err(why.to_string()),
    }
    Ok(VersionKey::new(&key))
}

struct VaultMaker {
    config: config::Vault,
    timeout: Duration,
    arena: Arc<Arena>,
    version_key: VersionKey,
}

impl Make for VaultMaker {
    type Upstream = Vault;

    fn make(self) -> Result<Vault, String> {
        let (arena, trust) = (&self.arena, Trust::own());
        Vault::new(&self.config, self.timeout, arena, trust, self.version_key)
            .map_err(|why| why.to_string())
    }
}

#[cfg(feature = "aws")]
struct AwsMaker {
    config: config::Aws,
    timeout: Duration,
    arena: Arc<Arena>,
}

#[cfg(feature = "aws")]
impl Make for AwsMaker {
    type Upstream = super::aws::Aws;

    fn make(self) -> Result<Self::Upstream, String> {
        super::aws::Aws::new(&self.config, self.timeout, &self.arena).map_err(|why| why.to_string())
    }
}
