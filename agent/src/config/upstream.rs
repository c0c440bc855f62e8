//! `[[source]]` of kind `vault` and `aws`: where the upstream is, how to log in, and how to fetch.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::KeySource;
use crate::policy::Pattern;

/// What all upstream sources have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetching {
    /// Names to hold ready, without the source's prefix.
    pub prefetch: Vec<Pattern>,
    /// How often to look for changes; jittered by a tenth.
    pub refresh: Duration,
    /// How long one call may take.
    pub timeout: Duration,
    /// How long the last good values are served while the upstream is down.
    pub max_stale: Duration,
    /// Whether a sealed copy of the last good values is kept in `state_dir`.
    pub snapshot: bool,
}

/// `kind = "vault"`: Vault or OpenBao.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vault {
    /// `https://HOST:PORT` each, without a path; tried in turn.
    pub addresses: Vec<String>,
    /// PEM certificates that the server's must come from, instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// `X-Vault-Namespace`.
    pub namespace: Option<String>,
    /// A client certificate for TLS: PEM chain and PEM key.
    pub client: Option<ClientCert>,
    /// KV mounts and what their names begin with: empty, or ending in a slash.
    pub mounts: BTreeMap<String, String>,
    /// How to log in.
    pub auth: VaultAuth,
    /// Leased paths.
    pub leases: Vec<LeasedPath>,
}

/// A client certificate and its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCert {
    /// PEM certificate chain.
    pub cert: PathBuf,
    /// PEM private key; holds a secret.
    pub key: KeySource,
}

/// A path of an engine that lends values, read as `name`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeasedPath {
    /// The name without the source's prefix.
    pub name: String,
    /// The path that is read, such as `database/creds/ro`.
    pub path: String,
}

/// How an agent proves itself to Vault. `mount` is where the method is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VaultAuth {
    /// A token in a file, read again when it changes.
    TokenFile {
        /// The file.
        path: PathBuf,
    },
    /// A role id and a secret id.
    AppRole {
        /// `approle` unless given.
        mount: String,
        /// Not secret.
        role_id: String,
        /// Where the secret id, or the token that unwraps it, is.
        secret_id: KeySource,
        /// `secret_id` holds a response-wrapping token.
        wrapped: bool,
    },
    /// A JWT in a file, read anew for each login.
    Jwt {
        /// `jwt` unless given.
        mount: String,
        /// The role to log in as.
        role: String,
        /// The file.
        path: PathBuf,
    },
    /// The TLS client certificate.
    Cert {
        /// `cert` unless given.
        mount: String,
        /// The certificate role, where one is named.
        name: Option<String>,
    },
}

/// `kind = "aws"`: AWS Secrets Manager.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Aws {
    /// The region; the credential chain's own where not given.
    pub region: Option<String>,
    /// Another endpoint than AWS itself.
    pub endpoint_url: Option<String>,
    /// A profile of the shared configuration.
    pub profile: Option<String>,
    /// PEM certificates that the endpoint's must come from, instead of the system's.
    pub ca_file: Option<PathBuf>,
}
