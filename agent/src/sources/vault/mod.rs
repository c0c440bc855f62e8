//! `kind = "vault"`: Vault and OpenBao over their HTTP API, one code path for both.
//!
//! `sys/events/subscribe` exists in one paid edition of one of the two, so changes are seen by asking.

mod answer;
mod capabilities;
mod held;
mod kv;
mod lease;
mod list;
mod login;
mod names;
mod rotate;
mod server;
mod session;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper::header::HeaderValue;
use keyhatch_protocol::Name;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use zeroize::Zeroizing;

use self::kv::Mount;
use self::login::Login;
use self::names::{Names, Place};
use self::server::Servers;
use self::session::Session;
use super::upstream::{Answer, Lease, Listed, Standing, Trouble, Turn, Upstream, VersionKey};
use crate::config;
use crate::files::{self, FileError, Holds, Trust};
use crate::http::{self, Address, AddressError, Client, Identity, TlsError};
use crate::sys::arena::Arena;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// No server is named.
    #[error("no address is given")]
    NoAddress,
    /// One cannot be read.
    #[error("{0}")]
    Address(#[from] AddressError),
    /// A mount or a leased path.
    #[error("{0:?} is no path of Vault's; write it as in `bao read`, without /v1/")]
    Path(String),
    /// It cannot be a header.
    #[error("the namespace has bytes that a header cannot have")]
    Namespace,
    /// A file of the configuration.
    #[error("{0}")]
    File(#[from] FileError),
    /// The client's key.
    #[error(
        "credential:{0}: this process has no credentials directory; start it by its systemd unit with \
         LoadCredential={0}, or configure \"file:PATH\""
    )]
    NoCredentials(String),
    /// The authorities or the client certificate.
    #[error("{path}: {source}")]
    Tls {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: TlsError,
    },
    /// TLS with what the system has.
    #[error("{0}")]
    SystemTls(TlsError),
}

/// One Vault or OpenBao.
pub struct Vault {
    inner: Arc<Inner>,
}

/// What the calls share.
struct Inner {
    session: Arc<Session>,
    names: Names,
    /// What is known of each mount.
    mounts: Mutex<HashMap<usize, Mount>>,
    /// When a value without a time upstream was first seen: its version, and then.
    sights: Mutex<HashMap<Name, (String, String)>>,
    version_key: VersionKey,
    /// The policy lets this agent ask what it may do; taken for granted until it says no.
    tells_capabilities: AtomicBool,
    timeout: Duration,
    arena: Arc<Arena>,
}

impl Vault {
    /// Reads the files of the configuration; nothing is asked yet. `version_key` makes the versions of what has
    /// none upstream.
    pub fn new(
        config: &config::Vault,
        timeout: Duration,
        arena: &Arc<Arena>,
        trust: Trust,
        version_key: VersionKey,
    ) -> Result<Self, VaultError> {
        let addresses = addresses(config)?;
        let needs_tls = addresses.iter().any(Address::is_tls);
        let tls = needs_tls.then(|| connector(config, trust)).transpose()?;
        let namespace = config
            .namespace
            .as_deref()
            .map(HeaderValue::from_str)
            .transpose();
        let servers = Servers::new(
            Client::new(addresses, tls),
            namespace.map_err(|_| VaultError::Namespace)?,
        );
        let login = Login {
            auth: config.auth.clone(),
            trust,
            arena: Arc::clone(arena),
        };
        Ok(Self {
            inner: Arc::new(Inner {
                session: Session::new(servers, login, timeout),
                names: Names::new(config).map_err(VaultError::Path)?,
                mounts: Mutex::default(),
                sights: Mutex::default(),
                version_key,
                tells_capabilities: AtomicBool::new(true),
                timeout,
                arena: Arc::clone(arena),
            }),
        })
    }
}

impl Upstream for Vault {
    /// Vault has no request for several values.
    fn batch(&self) -> usize {
        1
    }

    async fn list(&self, folder: &str) -> Result<Vec<Listed>, Trouble> {
        list::list(&self.inner, folder).await
    }

    async fn reach(&self) -> Result<(), Trouble> {
        self.inner.timed(self.inner.reach()).await
    }

    async fn readable(&self, names: &[Name]) -> Result<Vec<bool>, Trouble> {
        self.inner.readable(names).await
    }

    async fn standings(&self, names: &[Name]) -> Vec<Result<Standing, Trouble>> {
        let mut out = Vec::with_capacity(names.len());
        for name in names {
            out.push(self.inner.timed(self.inner.standing(name)).await);
        }
        out
    }

    async fn fetch(&self, names: &[Name]) -> Vec<Result<Answer, Trouble>> {
        let mut out = Vec::with_capacity(names.len());
        for name in names {
            out.push(self.inner.timed(self.inner.fetch(name)).await);
        }
        out
    }

    async fn previous(&self, name: &Name) -> Result<Answer, Trouble> {
        self.inner.timed(self.inner.previous(name)).await
    }

    async fn renew(&self, lease: &Lease) -> Result<Option<Duration>, Trouble> {
        self.inner.timed(self.inner.renew(lease)).await
    }

    async fn revoke(&self, lease: &Lease) -> Result<(), Trouble> {
        self.inner.timed(self.inner.revoke(lease)).await
    }

    async fn rotate(&self, name: &Name, turn: &Turn) -> Result<(), Trouble> {
        self.inner.timed(self.inner.rotate(name, turn)).await
    }

    fn forget(&self) {
        self.inner.session.forget();
    }
}

impl Inner {
    async fn fetch(&self, name: &Name) -> Result<Answer, Trouble> {
        match self.names.place(name.as_str()) {
            Some(Place::Kv(mount, path)) => self.kv(name, mount, path).await,
            Some(Place::Leased(path)) => self.borrow(name, path).await,
            None => Ok(no_mount()),
        }
    }

    async fn standing(&self, name: &Name) -> Result<Standing, Trouble> {
        match self.names.place(name.as_str()) {
            Some(Place::Kv(mount, path)) => self.kv_standing(mount, path).await,
            Some(Place::Leased(_)) => Ok(Standing::Unknown),
            None => Ok(Standing::Absent),
        }
    }

    async fn previous(&self, name: &Name) -> Result<Answer, Trouble> {
        match self.names.place(name.as_str()) {
            Some(Place::Kv(mount, path)) => self.kv_previous(name, mount, path).await,
            Some(Place::Leased(_)) => Ok(Answer::Absent(
                "a leased value has no version before it".into(),
            )),
            None => Ok(no_mount()),
        }
    }

    /// One call, within the source's time.
    async fn timed<T>(&self, call: impl Future<Output = Result<T, Trouble>>) -> Result<T, Trouble> {
        timeout(self.timeout, call).await.unwrap_or_else(|_| {
            let seconds = self.timeout.as_secs_f32();
            Err(Trouble::outage(format!("no answer within {seconds:.1} s")))
        })
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.timeout
    }
}

fn no_mount() -> Answer {
    Answer::Absent("no mount of the configuration has this name".into())
}

fn addresses(config: &config::Vault) -> Result<Vec<Address>, VaultError> {
    let addresses = config
        .addresses
        .iter()
        .map(|text| Address::parse(text))
        .collect::<Result<Vec<_>, _>>()?;
    if addresses.is_empty() {
        return Err(VaultError::NoAddress);
    }
    let open = |address: &&Address| !address.is_tls() && !address.is_loopback();
    for address in addresses.iter().filter(open) {
        tracing::warn!(
            "{address}: tokens and values travel there unencrypted, for anyone on the way to read; use https"
        );
    }
    Ok(addresses)
}

fn connector(config: &config::Vault, trust: Trust) -> Result<TlsConnector, VaultError> {
    let read = |path: &Path, holds| files::read(path, holds, trust, held::LARGEST * 16);
    let ca = config.ca_file.as_deref();
    let authorities = ca.map(|path| read(path, Holds::Access)).transpose()?;
    let pair = match &config.client {
        None => None,
        Some(client) => {
            let place = held::place(&client.key).map_err(VaultError::NoCredentials)?;
            let key = Zeroizing::new(read(&place, Holds::Secrets)?);
            Some((read(&client.cert, Holds::Access)?, key, place))
        }
    };
    let identity = pair.as_ref().map(|(chain, key, _)| Identity { chain, key });
    http::tls(authorities.as_deref(), identity.as_ref()).map_err(|source| {
        let path = match source {
            TlsError::Authorities => ca,
            TlsError::Chain | TlsError::Pair => {
                config.client.as_ref().map(|client| client.cert.as_path())
            }
            TlsError::Key => pair.as_ref().map(|(_, _, place)| place.as_path()),
            TlsError::NoSystemAuthorities | TlsError::Setup(_) => None,
        };
        match path {
            Some(path) => VaultError::Tls {
                path: path.into(),
                source,
            },
            None => VaultError::SystemTls(source),
        }
    })
}
