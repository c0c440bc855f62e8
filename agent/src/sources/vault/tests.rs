//! Against servers that real ones cannot be made to be.

use std::collections::BTreeMap;

use crate::config::{LeasedPath, Vault, VaultAuth};

pub fn config(addresses: &[String], mounts: &[(&str, &str)], leases: &[(&str, &str)]) -> Vault {
    let own = |(a, b): &(&str, &str)| ((*a).to_owned(), (*b).to_owned());
    Vault {
        addresses: addresses.to_vec(),
        ca_file: None,
        namespace: None,
        client: None,
        mounts: mounts.iter().map(own).collect::<BTreeMap<_, _>>(),
        auth: VaultAuth::TokenFile {
            path: "/nonexistent".into(),
        },
        leases: leases
            .iter()
            .map(own)
            .map(|(name, path)| LeasedPath { name, path })
            .collect(),
    }
}
