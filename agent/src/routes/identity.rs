//! The client certificate that a connection to the upstream is opened with.
//!
//! The key is read from secret memory for one handshake and forgotten after it: neither the connection that stays nor
//! the configuration of TLS holds it. No session is resumed, since that would go on as who began it.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::SignatureScheme;
use tokio_rustls::rustls::client::{ResolvesClientCert, Resumption};
use tokio_rustls::rustls::sign::CertifiedKey;

use super::failure::Failure;
use crate::cache::Lease;
use crate::http;

/// A certificate and its key, of one version of the secret.
pub struct Identity {
    /// Which connections are of the same.
    pub version: Arc<str>,
    /// PEM.
    pub certificate: Lease,
    /// PEM.
    pub private_key: Lease,
}

/// What signs in one handshake.
#[derive(Clone)]
struct OneHandshake(Arc<Mutex<Option<Arc<CertifiedKey>>>>);

impl Identity {
    /// As `base` connects, with this identity until what comes with it is dropped.
    pub fn connector(&self, base: &TlsConnector) -> Result<(TlsConnector, Handshake), Failure> {
        let pem = http::Identity {
            chain: self.certificate.as_ref(),
            key: self.private_key.as_ref(),
        };
        let key = pem
            .certified()
            .map_err(|error| Failure::Identity(error.to_string()))?;
        let signs = OneHandshake(Arc::new(Mutex::new(Some(Arc::new(key)))));
        let mut config = base.config().as_ref().clone();
        config.client_auth_cert_resolver = Arc::new(signs.clone());
        config.resumption = Resumption::disabled();
        Ok((Arc::new(config).into(), Handshake(signs)))
    }
}

impl OneHandshake {
    fn key(&self) -> MutexGuard<'_, Option<Arc<CertifiedKey>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A handshake. Its end, whatever it is, is the end of the key.
pub struct Handshake(OneHandshake);

impl Drop for Handshake {
    fn drop(&mut self) {
        *self.0.key() = None;
    }
}

impl ResolvesClientCert for OneHandshake {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.key().clone()
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl fmt::Debug for OneHandshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OneHandshake")
    }
}
