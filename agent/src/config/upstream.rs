//! `[[source]]` of kind `vault` and `aws`: where the upstream is, how to log in, and how to fetch.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use keyhatch_protocol::Name;

use super::section::{Section, duration, one_of};
use super::source::{Platform, SourceKind, checked_prefix, read_key};
use super::{Depth, KeySource, held};
use crate::files::Holds;
use crate::policy::{At, Pattern, Place, Report};

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

const SECOND: Duration = Duration::from_secs(1);

/// The keys that every upstream source has.
const COMMON: [&str; 8] = [
    "name",
    "kind",
    "prefix",
    "prefetch",
    "refresh",
    "timeout",
    "max_stale",
    "snapshot",
];

/// Where methods and engines are mounted: segments without a slash at either end.
pub(super) fn checked_path(key: &str, at: &At<&str>, report: &mut Report) -> Option<String> {
    let fits = |segment: &str| {
        !matches!(segment, "" | "." | "..")
            && segment
                .bytes()
                .all(|byte| byte.is_ascii_graphic() && !b"?#%\\\"<>".contains(&byte))
    };
    let path = at.value.trim_end_matches('/');
    if path.split('/').all(fits) {
        return Some(path.to_owned());
    }
    let text = format!(
        "`{key}` is {:?}, it must be a path without empty segments, write it as \"secret\"",
        at.value
    );
    report.error(&at.place, text);
    None
}

pub(super) fn read_vault(section: &Section<'_>, report: &mut Report) -> Option<SourceKind> {
    let own = [
        "address",
        "ca_file",
        "namespace",
        "mounts",
        "auth",
        "client_cert",
        "client_key",
        "lease",
    ];
    section.check_keys(&[&COMMON[..], &own].concat(), report);
    let client = read_client(section, report);
    let leases = read_leases(section, report);
    let vault = Vault {
        addresses: read_addresses(section, report),
        ca_file: section.path("ca_file", report).map(|at| at.value),
        namespace: section
            .string("namespace", report)
            .and_then(|at| checked_path("namespace", &at, report)),
        mounts: read_mounts(section, report),
        auth: read_auth(section, client.is_some(), report)?,
        client,
        leases,
    };
    let mut fetching = read_fetching(section, report);
    // What is leased is lent ahead, so that nobody waits for it.
    let lent = vault.leases.iter();
    fetching
        .prefetch
        .extend(lent.filter_map(|lease| Pattern::of_names(&lease.name).ok()));
    Some(SourceKind::Upstream {
        fetching,
        platform: Platform::Vault(Box::new(vault)),
    })
}

pub(super) fn read_aws(section: &Section<'_>, report: &mut Report) -> Option<SourceKind> {
    let own = ["region", "endpoint_url", "profile", "ca_file"];
    section.check_keys(&[&COMMON[..], &own].concat(), report);
    if !cfg!(feature = "aws") {
        let text =
            "this keyhatchd was built without AWS Secrets Manager, build it with --features aws";
        report.error(&section.place_of("kind"), text);
        return None;
    }
    let text = |key: &str, report: &mut Report| section.string(key, report);
    let aws = Aws {
        region: text("region", report).map(|at| at.value.to_owned()),
        endpoint_url: text("endpoint_url", report)
            .and_then(|at| checked_url("endpoint_url", &at, report)),
        profile: text("profile", report).map(|at| at.value.to_owned()),
        ca_file: section.path("ca_file", report).map(|at| at.value),
    };
    Some(SourceKind::Upstream {
        fetching: read_fetching(section, report),
        platform: Platform::Aws(aws),
    })
}

fn read_fetching(section: &Section<'_>, report: &mut Report) -> Fetching {
    let snapshot = section.boolean("snapshot", report).unwrap_or(false);
    Fetching {
        prefetch: read_prefetch(section, report),
        refresh: duration(section, "refresh", report).unwrap_or(30 * SECOND),
        timeout: duration(section, "timeout", report).unwrap_or(10 * SECOND),
        max_stale: duration(section, "max_stale", report).unwrap_or(3600 * SECOND),
        snapshot,
    }
}

fn read_prefetch(section: &Section<'_>, report: &mut Report) -> Vec<Pattern> {
    let list = section
        .get("prefetch")
        .and_then(|value| value.strings(report))
        .unwrap_or_default();
    let mut patterns = Vec::new();
    for At { value: text, place } in list {
        match Pattern::of_names(text) {
            Ok(pattern) => patterns.push(pattern),
            Err(why) => report.error(&place, format!("`prefetch` has {text:?}, {why}")),
        }
    }
    patterns
}

fn read_addresses(section: &Section<'_>, report: &mut Report) -> Vec<String> {
    let example = "\"https://vault.internal:8200\"";
    let Some(value) = section.required("address", example, report) else {
        return Vec::new();
    };
    let texts = if value.is_list() {
        value.strings(report).unwrap_or_default()
    } else {
        value.string(report).into_iter().collect()
    };
    if texts.is_empty() {
        report.error(
            &value.place(),
            format!("`address` is empty, write {example}"),
        );
    }
    texts
        .iter()
        .filter_map(|at| checked_url("address", at, report))
        .collect()
}

/// `http(s)://HOST[:PORT]`, without a path, a query or a user.
fn checked_url(key: &str, at: &At<&str>, report: &mut Report) -> Option<String> {
    let plain = at.value.trim_end_matches('/');
    let found = plain.parse::<hyper::Uri>().ok().filter(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.authority().is_some_and(|a| !a.as_str().contains('@'))
            && uri.path_and_query().is_none_or(|path| path == "/")
    });
    if found.is_some() {
        return Some(plain.to_owned());
    }
    let text = format!(
        "`{key}` is {:?}, it must be a scheme, a host and a port alone, write it as \"https://vault.internal:8200\"",
        at.value
    );
    report.error(&at.place, text);
    None
}

fn read_mounts(section: &Section<'_>, report: &mut Report) -> BTreeMap<String, String> {
    let Some(value) = section.get("mounts") else {
        return BTreeMap::from([("secret".into(), String::new())]);
    };
    let mut mounts: BTreeMap<String, String> = BTreeMap::new();
    let table = value.section("mounts", report);
    for value in table.iter().flat_map(Section::values) {
        let at = At {
            value: value.key,
            place: value.place(),
        };
        let Some(prefix) = value.string(report) else {
            continue;
        };
        let prefix = checked_prefix("mounts", &prefix, report);
        if let Some(other) = mounts.iter().find(|(_, known)| **known == prefix) {
            let text = format!(
                "mounts {:?} and {:?} both begin names with {prefix:?}, so that no one could tell whose a \
                 name is, give one another",
                other.0, value.key
            );
            report.error(&at.place, text);
        }
        if let Some(mount) = checked_path("mounts", &at, report) {
            mounts.insert(mount, prefix);
        }
    }
    mounts
}

fn read_client(section: &Section<'_>, report: &mut Report) -> Option<ClientCert> {
    let cert = section.path("client_cert", report).map(|at| at.value);
    let key = read_key(section, "client_key", report);
    match (cert, key) {
        (Some(cert), Some(key)) => Some(ClientCert { cert, key }),
        (None, None) => None,
        (Some(_), None) => {
            missing_half(section, "client_cert", "client_key = \"file:PATH\"", report);
            None
        }
        (None, Some(_)) => {
            missing_half(section, "client_key", "client_cert = \"PATH\"", report);
            None
        }
    }
}

fn missing_half(section: &Section<'_>, given: &str, wanted: &str, report: &mut Report) {
    // A half that was given wrongly has its error already.
    let other = wanted.split(' ').next().unwrap_or_default();
    if section.get(other).is_none() {
        let text = format!("`{given}` is not enough, also write {wanted}");
        report.error(&section.place_of(given), text);
    }
}

fn read_leases(section: &Section<'_>, report: &mut Report) -> Vec<LeasedPath> {
    let list = section.get("lease").and_then(|value| value.list(report));
    let mut leases: Vec<LeasedPath> = Vec::new();
    for value in list.unwrap_or_default() {
        let Some(one) = value.section("lease", report) else {
            continue;
        };
        one.check_keys(&["name", "path"], report);
        let name = one
            .required("name", "\"db/ro\"", report)
            .and_then(|name| name.string(report));
        let path = one
            .required("path", "\"database/creds/ro\"", report)
            .and_then(|path| path.string(report))
            .and_then(|path| checked_path("path", &path, report));
        let (Some(name), Some(path)) = (name, path) else {
            continue;
        };
        if let Err(why) = Name::parse(name.value) {
            report.error(&name.place, format!("`name` is {:?}, {why}", name.value));
        } else if leases.iter().any(|lease| lease.name == name.value) {
            let text = format!("`lease` has {:?} twice, remove one", name.value);
            report.error(&name.place, text);
        } else {
            leases.push(LeasedPath {
                name: name.value.into(),
                path,
            });
        }
    }
    leases
}

/// The methods by the names that they have in Vault.
#[derive(Clone, Copy)]
enum Method {
    TokenFile,
    AppRole,
    Jwt,
    Cert,
}

fn read_auth(section: &Section<'_>, has_cert: bool, report: &mut Report) -> Option<VaultAuth> {
    let example = "{ method = \"token_file\", path = \"/run/vault/token\" }";
    let value = section.required("auth", example, report)?;
    let auth = value.section("auth", report)?;
    let methods = [
        ("token_file", Method::TokenFile),
        ("approle", Method::AppRole),
        ("jwt", Method::Jwt),
        ("cert", Method::Cert),
    ];
    let word = auth
        .required("method", "\"token_file\"", report)?
        .string(report)?;
    let method = one_of(&word, "method", &methods, report)?;
    let (known, default): (&[&str], _) = match method {
        Method::TokenFile => (&["method", "path"], ""),
        Method::AppRole => (
            &["method", "mount", "role_id", "secret_id", "wrapped"],
            "approle",
        ),
        Method::Jwt => (&["method", "mount", "role", "path"], "jwt"),
        Method::Cert => (&["method", "mount", "name"], "cert"),
    };
    auth.check_keys(known, report);
    let mount = match auth.string("mount", report) {
        Some(at) => checked_path("mount", &at, report)?,
        None => default.to_owned(),
    };
    let text = |key: &str, example: &str, report: &mut Report| {
        let at = auth.required(key, example, report)?.string(report)?;
        Some(at.value.to_owned())
    };
    let path = |report: &mut Report| {
        auth.required("path", "\"/run/vault/token\"", report)?;
        Some(auth.path("path", report)?.value)
    };
    match method {
        Method::TokenFile => Some(VaultAuth::TokenFile {
            path: path(report)?,
        }),
        Method::AppRole => {
            let role_id = text("role_id", "\"ROLE-ID\"", report);
            auth.required("secret_id", "\"credential:bao-secret-id\"", report)?;
            Some(VaultAuth::AppRole {
                mount,
                role_id: role_id?,
                secret_id: read_key(&auth, "secret_id", report)?,
                wrapped: auth.boolean("wrapped", report).unwrap_or(false),
            })
        }
        Method::Jwt => {
            let role = text("role", "\"bots\"", report);
            Some(VaultAuth::Jwt {
                mount,
                role: role?,
                path: path(report)?,
            })
        }
        Method::Cert if !has_cert => {
            let text =
                "the method \"cert\" needs a certificate, also write client_cert and client_key";
            report.error(&word.place, text);
            None
        }
        Method::Cert => Some(VaultAuth::Cert {
            mount,
            name: auth.string("name", report).map(|at| at.value.to_owned()),
        }),
    }
}

/// The files that a source points to.
pub(super) fn check_files(
    platform: &Platform,
    section: &Section<'_>,
    depth: Depth,
    report: &mut Report,
) {
    let ca_file = match platform {
        Platform::Vault(vault) => &vault.ca_file,
        Platform::Aws(aws) => &aws.ca_file,
    };
    let mut check = |key: &str, path: &Path, holds: Holds, place: &Place| {
        let what = format!("the {key}");
        held::check_file(&what, path, holds, "put it there", place, depth, report);
    };
    if let Some(path) = ca_file {
        check("ca_file", path, Holds::Access, &section.place_of("ca_file"));
    }
    let Platform::Vault(vault) = platform else {
        return;
    };
    let auth = section.place_of("auth");
    match &vault.auth {
        VaultAuth::TokenFile { path } => check("token", path, Holds::Secrets, &auth),
        VaultAuth::Jwt { path, .. } => check("JWT", path, Holds::Secrets, &auth),
        VaultAuth::AppRole { .. } | VaultAuth::Cert { .. } => {}
    }
    if let Some(client) = &vault.client {
        let place = section.place_of("client_cert");
        check("client_cert", &client.cert, Holds::Access, &place);
        let place = section.place_of("client_key");
        held::check_key("the client_key", &client.key, &place, depth, report);
    }
    if let VaultAuth::AppRole { secret_id, .. } = &vault.auth {
        held::check_key("the secret_id", secret_id, &auth, depth, report);
    }
}
