//! Whom to trust, and who we are, in TLS.

use std::sync::Arc;

use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{ClientConfig, Error, RootCertStore};

/// A client certificate and its key, both PEM.
pub struct Identity<'a> {
    /// The certificate and what it was signed by.
    pub chain: &'a [u8],
    /// The private key.
    pub key: &'a [u8],
}

/// Why TLS cannot be set up. Holds nothing of a key.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum TlsError {
    /// The file of authorities.
    #[error(
        "it holds no usable PEM certificate; it needs the authority's, from BEGIN to END CERTIFICATE"
    )]
    Authorities,
    /// The system has none.
    #[error(
        "this system has no certificate authorities; install the package ca-certificates, or give ca_file"
    )]
    NoSystemAuthorities,
    /// The client certificate.
    #[error("the client certificate holds no usable PEM certificate")]
    Chain,
    /// The key.
    #[error("the client key is not an unencrypted PEM private key")]
    Key,
    /// They do not belong together, or rustls refuses them.
    #[error("the client certificate and its key do not go together")]
    Pair,
    /// The library is not set up.
    #[error("TLS cannot be set up: {0}")]
    Setup(Error),
}

impl Identity<'_> {
    fn parse(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
        let key = PrivateKeyDer::from_pem_slice(self.key).map_err(|_| TlsError::Key)?;
        let chain = certificates(self.chain).ok_or(TlsError::Chain)?;
        Ok((chain, key))
    }

    /// Both as rustls signs with them.
    pub fn certified(&self) -> Result<CertifiedKey, TlsError> {
        let (chain, key) = self.parse()?;
        CertifiedKey::from_der(chain, key, &ring::default_provider()).map_err(|_| TlsError::Pair)
    }
}

/// TLS 1.2 and 1.3 with these authorities (PEM) instead of the system's, and this identity.
pub fn tls(
    authorities: Option<&[u8]>,
    identity: Option<&Identity<'_>>,
) -> Result<TlsConnector, TlsError> {
    let roots = match authorities {
        Some(pem) => given(pem)?,
        None => of_system()?,
    };
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Setup)?
        .with_root_certificates(roots);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let (chain, key) = identity.parse()?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|_| TlsError::Pair)?
        }
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

/// The same, offering HTTP/2 besides.
#[must_use]
pub fn offering_http2(base: &TlsConnector) -> TlsConnector {
    let mut config = base.config().as_ref().clone();
    config.alpn_protocols.insert(0, b"h2".to_vec());
    TlsConnector::from(Arc::new(config))
}

fn given(pem: &[u8]) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem).ok_or(TlsError::Authorities)? {
        roots.add(certificate).map_err(|_| TlsError::Authorities)?;
    }
    Ok(roots)
}

fn of_system() -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    // One that does not parse is passed over, as everywhere on the system.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err(TlsError::NoSystemAuthorities);
    }
    Ok(roots)
}

/// At least one.
fn certificates(pem: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let all: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .ok()?;
    (!all.is_empty()).then_some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_certificate_is_refused() {
        let broken = b"-----BEGIN CERTIFICATE-----\nCANARY-cert\n-----END CERTIFICATE-----\n";
        for pem in [&b""[..], b"CANARY", broken] {
            let error = tls(Some(pem), None).map(drop).unwrap_err();
            assert_eq!(error, TlsError::Authorities);
            assert!(!error.to_string().contains("CANARY"));
        }
    }
}
