//! What a configuration makes the daemon need of the host. Pure: nothing is looked at but the configuration
//! and the environment.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::config::{
    Aws, Config, Driver, KeySource, Metrics, Notify, Platform, Source, SourceKind, Vault, VaultAuth,
};
use crate::http::Address;
use crate::policy::Kind;

/// Queries that do not fit a datagram.
const DNS: u16 = 53;
const HTTP: u16 = 80;
const HTTPS: u16 = 443;

/// Where variables of the environment name files or folders that the SDK of AWS reads.
const AWS_FILES: [&str; 4] = [
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
];

/// Where they name URLs that it asks.
const AWS_URLS: [&str; 5] = [
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_SECRETS_MANAGER",
    "AWS_ENDPOINT_URL_STS",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_EC2_METADATA_SERVICE_ENDPOINT",
];

/// What the daemon needs besides what every daemon does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Folders below which files are read. A file is replaced by a rename, so its folder stands for it.
    pub read: BTreeSet<PathBuf>,
    /// Folders below which files are made, written and removed, too.
    pub write: BTreeSet<PathBuf>,
    /// Folders in which sockets are made and removed.
    pub sockets: BTreeSet<PathBuf>,
    /// TCP ports that it connects to.
    pub connect: BTreeSet<u16>,
    /// TCP ports that it listens on.
    pub bind: BTreeSet<u16>,
    /// Whether it uses any network.
    pub network: bool,
    /// Whether it sends to sockets of others in the abstract namespace.
    pub abstract_sockets: bool,
    /// Whether it must see which programs other processes run.
    pub programs: bool,
}

/// A variable of the environment.
type Variable<'a> = &'a dyn Fn(&str) -> Option<OsString>;

impl Needs {
    /// What the daemon with the configuration `config`, which was read from `path`, needs.
    #[must_use]
    pub fn of(path: &Path, config: &Config, variable: Variable<'_>) -> Self {
        let mut needs = Self::default();
        let folder = needs.read_beside(path);
        needs.read.insert(folder.join("conf.d"));
        let agent = &config.agent;
        needs.write.insert(agent.state_dir.clone());
        needs.write.insert(config.audit.dir.clone());
        needs.socket(&agent.socket);
        needs.socket(&agent.admin_socket);
        match &agent.metrics {
            Some(Metrics::Unix(path)) => needs.socket(path),
            Some(Metrics::Tcp(address)) => {
                needs.bind.insert(address.port());
                needs.network = true;
            }
            None => {}
        }
        needs
            .read
            .extend(variable("CREDENTIALS_DIRECTORY").map(PathBuf::from));
        if let Some(key) = &agent.snapshot_key {
            needs.key(key);
        }
        for source in &config.sources {
            needs.source(source, variable);
        }
        for route in &config.routes {
            needs.upstream(variable);
            needs.connect.extend(route.ports());
            if let Some(file) = &route.ca_file {
                needs.read_beside(file);
            }
        }
        match &config.detect.notify {
            Some(Notify::Webhook(webhook)) => {
                needs.upstream(variable);
                needs.connect.insert(webhook.address.target().1);
            }
            // A reload looks at whose it is.
            Some(Notify::Exec(command)) => {
                if let Some(program) = command.first() {
                    needs.read_beside(Path::new(program));
                }
            }
            None => {}
        }
        for rotation in &config.rotations {
            // A reload looks at whose it is.
            if let Driver::Exec(program) = &rotation.driver
                && let Some(program) = program.command.first()
            {
                needs.read_beside(Path::new(program));
            }
        }
        needs.programs = config.policy.bots().iter().any(|bot| {
            let selectors = bot.selectors();
            selectors.has(Kind::Exe) || selectors.has(Kind::ExeSha256)
        });
        needs
    }

    /// What `self` has and `granted` has not, for people.
    #[must_use]
    pub fn beyond(&self, granted: &Self) -> Vec<String> {
        let inside = |path: &Path, sets: &[&BTreeSet<PathBuf>]| {
            let mut all = sets.iter().copied().flatten();
            all.any(|folder| path.starts_with(folder))
        };
        let mut more = Vec::new();
        for path in &self.read {
            if !inside(path, &[&granted.read, &granted.write]) {
                more.push(format!("to read files in {}", path.display()));
            }
        }
        for path in &self.write {
            if !inside(path, &[&granted.write]) {
                more.push(format!("to write files in {}", path.display()));
            }
        }
        for path in &self.sockets {
            if !inside(path, &[&granted.sockets]) {
                more.push(format!("to make a socket in {}", path.display()));
            }
        }
        for port in self.connect.difference(&granted.connect) {
            more.push(format!("to connect to TCP port {port}"));
        }
        for port in self.bind.difference(&granted.bind) {
            more.push(format!("to listen on TCP port {port}"));
        }
        if self.network && !granted.network {
            more.push("to use the network".to_owned());
        }
        if self.programs && !granted.programs {
            more.push(
                "to see the programs of bots, since one is selected by exe or exe_sha256"
                    .to_owned(),
            );
        }
        more
    }

    fn source(&mut self, source: &Source, variable: Variable<'_>) {
        match &source.kind {
            SourceKind::File { path, key } => {
                self.write.insert(path.clone());
                self.key(key);
            }
            SourceKind::Upstream { platform, .. } => {
                self.upstream(variable);
                match platform {
                    Platform::Vault(vault) => self.vault(vault),
                    Platform::Aws(aws) => self.aws(aws, variable),
                }
            }
        }
    }

    /// What it takes to find and to trust any upstream.
    fn upstream(&mut self, variable: Variable<'_>) {
        self.network = true;
        self.connect.insert(DNS);
        // The system's certificate authorities, where they are named.
        self.read
            .extend(variable("SSL_CERT_DIR").map(PathBuf::from));
        if let Some(file) = variable("SSL_CERT_FILE") {
            self.read_beside(Path::new(&file));
        }
    }

    fn vault(&mut self, vault: &Vault) {
        for address in &vault.addresses {
            self.url(address);
        }
        if let Some(file) = &vault.ca_file {
            self.read_beside(file);
        }
        if let Some(client) = &vault.client {
            self.read_beside(&client.cert);
            self.key(&client.key);
        }
        match &vault.auth {
            VaultAuth::TokenFile { path } | VaultAuth::Jwt { path, .. } => {
                self.read_beside(path);
            }
            VaultAuth::AppRole { secret_id, .. } => self.key(secret_id),
            VaultAuth::Cert { .. } => {}
        }
    }

    fn aws(&mut self, aws: &Aws, variable: Variable<'_>) {
        // AWS itself, and the metadata services of its machines and containers.
        self.connect.extend([HTTPS, HTTP]);
        if let Some(url) = &aws.endpoint_url {
            self.url(url);
        }
        if let Some(file) = &aws.ca_file {
            self.read_beside(file);
        }
        let urls = AWS_URLS.iter().filter_map(|name| variable(name));
        for url in urls {
            self.url(&url.to_string_lossy());
        }
        let files = AWS_FILES.iter().filter_map(|name| variable(name));
        for file in files {
            self.read_beside(Path::new(&file));
        }
        self.read
            .extend(variable("HOME").map(|home| PathBuf::from(home).join(".aws")));
    }

    fn url(&mut self, url: &str) {
        let server = url.parse().ok().and_then(|url| Address::of(&url));
        self.connect.extend(server.map(|server| server.target().1));
    }

    fn key(&mut self, key: &KeySource) {
        // A credential is in the folder of all credentials.
        if let KeySource::File(path) = key {
            self.read_beside(path);
        }
    }

    fn socket(&mut self, path: &Path) {
        self.sockets.extend(path.parent().map(Path::to_owned));
    }

    fn read_beside(&mut self, file: &Path) -> PathBuf {
        let absolute = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
        let folder = absolute.parent().unwrap_or(Path::new("/")).to_owned();
        self.read.insert(folder.clone());
        folder
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths<const N: usize>(all: [&str; N]) -> BTreeSet<PathBuf> {
        all.into_iter().map(PathBuf::from).collect()
    }

    #[test]
    fn what_lies_inside_of_what_was_granted_is_not_beyond_it() {
        let granted = Needs {
            read: paths(["/etc/keyhatch"]),
            write: paths(["/var/lib/keyhatch"]),
            sockets: paths(["/run/keyhatch"]),
            connect: [53, 8200].into(),
            network: true,
            ..Needs::default()
        };
        let within = Needs {
            read: paths(["/etc/keyhatch/conf.d", "/var/lib/keyhatch/token"]),
            write: paths(["/var/lib/keyhatch/store"]),
            connect: [8200].into(),
            ..granted.clone()
        };
        assert_eq!(within.beyond(&granted), Vec::<String>::new());
        let more = Needs {
            read: paths(["/etc/keyhatch2"]),
            write: paths(["/etc/keyhatch"]),
            sockets: paths(["/run"]),
            connect: [443].into(),
            bind: [9464].into(),
            programs: true,
            ..granted.clone()
        };
        assert_eq!(
            more.beyond(&granted),
            [
                "to read files in /etc/keyhatch2",
                "to write files in /etc/keyhatch",
                "to make a socket in /run",
                "to connect to TCP port 443",
                "to listen on TCP port 9464",
                "to see the programs of bots, since one is selected by exe or exe_sha256",
            ]
        );
        let offline = Needs::default();
        assert_eq!(
            Needs {
                network: true,
                ..Needs::default()
            }
            .beyond(&offline),
            ["to use the network"]
        );
    }

    #[test]
    fn what_the_environment_says_to_the_sdk_of_aws_counts() {
        let variable = |name: &str| match name {
            "HOME" => Some("/home/bot".into()),
            "AWS_CONTAINER_CREDENTIALS_FULL_URI" => Some("http://127.0.0.1:1338/role".into()),
            "AWS_WEB_IDENTITY_TOKEN_FILE" => Some("/run/tokens/aws".into()),
            _ => None,
        };
        let aws = Aws {
            region: None,
            endpoint_url: Some("http://127.0.0.1:5055".into()),
            profile: None,
            ca_file: Some("/etc/pki/own.pem".into()),
        };
        let mut needs = Needs::default();
        needs.aws(&aws, &variable);
        assert_eq!(needs.connect, [80, 443, 1338, 5055].into());
        assert_eq!(
            needs.read,
            paths(["/etc/pki", "/home/bot/.aws", "/run/tokens"])
        );
    }
}
