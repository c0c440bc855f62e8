//! A certificate authority for one run, which vouches for the routes' hosts and for nothing else.
//!
//! Its key signs one certificate for each host and is gone before the command starts: it is never on disk, and nobody can sign
//! with it later. What it may vouch for stands in its own certificate besides (RFC 5280, section 4.2.1.10).

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertifiedIssuer, CidrSubnet,
    DistinguishedName, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, KeyPair,
    KeyUsagePurpose, NameConstraints, date_time_ymd,
};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::destinations::Server;

/// A run may go on for long; when it ends, the keys that these certificates are about are gone.
const VALID: Duration = Duration::from_secs(5 * 365 * 86_400);

/// Clocks differ.
const BEFORE: Duration = Duration::from_secs(86_400);

/// A domain that nobody has (RFC 2606).
const NOWHERE: &str = "invalid";

type Failed = Box<dyn std::error::Error>;

/// A route, and how to speak as its server.
#[derive(Clone)]
pub struct Certified {
    pub route: String,
    /// Absent where no TLS is spoken.
    pub acceptor: Option<TlsAcceptor>,
}

/// The authority's certificate, and the routes with certificates for their hosts.
pub fn certify(
    routes: HashMap<Server, String>,
) -> Result<(CertificateDer<'static>, HashMap<Server, Certified>), Failed> {
    let over_tls = routes.keys().filter(|server| server.tls);
    let hosts = over_tls.map(|server| server.host.as_str()).collect();
    let authority = authority(&hosts)?;
    let mut certified = HashMap::new();
    for (server, route) in routes {
        let acceptor = if server.tls {
            Some(acceptor(&server.host, &authority)?)
        } else {
            None
        };
        certified.insert(server, Certified { route, acceptor });
    }
    Ok((authority.der().clone(), certified))
}

fn authority(hosts: &BTreeSet<&str>) -> Result<CertifiedIssuer<'static, KeyPair>, Failed> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.distinguished_name = named("Keyhatch proxy of one run");
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.name_constraints = Some(constraints(hosts));
    valid(&mut params)?;
    Ok(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?)
}

/// Names of these hosts and below them, these addresses, and no others. Of a kind of name that nothing is said about, all
/// would be permitted.
fn constraints(hosts: &BTreeSet<&str>) -> NameConstraints {
    let addresses = hosts.iter().filter_map(|host| host.parse::<IpAddr>().ok());
    let (v4, v6): (Vec<_>, Vec<_>) = addresses.partition(IpAddr::is_ipv4);
    let names = hosts.iter().filter(|host| host.parse::<IpAddr>().is_err());
    let mut permitted: Vec<_> = names
        .map(|name| GeneralSubtree::DnsName((*name).to_owned()))
        .collect();
    if permitted.is_empty() {
        permitted.push(GeneralSubtree::DnsName(NOWHERE.into()));
    }
    let mut excluded = Vec::new();
    for (addresses, bits, all) in [
        (v4, 32, CidrSubnet::V4([0; 4], [0; 4])),
        (v6, 128, CidrSubnet::V6([0; 16], [0; 16])),
    ] {
        if addresses.is_empty() {
            excluded.push(GeneralSubtree::IpAddress(all));
        }
        let one = |address| CidrSubnet::from_addr_prefix(address, bits);
        permitted.extend(
            addresses
                .into_iter()
                .map(one)
                .map(GeneralSubtree::IpAddress),
        );
    }
    NameConstraints {
        permitted_subtrees: permitted,
        excluded_subtrees: excluded,
    }
}

fn acceptor(host: &str, authority: &CertifiedIssuer<'_, KeyPair>) -> Result<TlsAcceptor, Failed> {
    let key = KeyPair::generate()?;
    let certificate = certificate(host, &key, authority)?;
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn certificate(
    host: &str,
    key: &KeyPair,
    authority: &CertifiedIssuer<'_, KeyPair>,
) -> Result<Certificate, Failed> {
    let mut params = CertificateParams::new(vec![host.to_owned()])?;
    params.distinguished_name = named("Keyhatch proxy");
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    valid(&mut params)?;
    Ok(params.signed_by(key, authority)?)
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn valid(params: &mut CertificateParams) -> Result<(), Failed> {
    let now = date_time_ymd(1970, 1, 1) + SystemTime::now().duration_since(UNIX_EPOCH)?;
    params.not_before = now - BEFORE;
    params.not_after = now + VALID;
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::proxy::trust::pem;
    use std::fs;
    use std::process::Command;

    /// Whether OpenSSL takes a certificate for `host` that an authority for `hosts` signed.
    fn is_taken(hosts: &[&str], host: &str) -> bool {
        let authority = authority(&hosts.iter().copied().collect()).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = certificate(host, &key, &authority).unwrap();
        let folder = nix::unistd::mkdtemp(&std::env::temp_dir().join("keyhatch-XXXXXX")).unwrap();
        let (own, other) = (folder.join("own"), folder.join("other"));
        fs::write(&own, pem(authority.der())).unwrap();
        fs::write(&other, pem(certificate.der())).unwrap();
        let verified = Command::new("openssl")
            .args(["verify", "-x509_strict", "-purpose", "sslserver", "-CAfile"])
            .args([&own, &other])
            .output()
            .unwrap();
        fs::remove_dir_all(&folder).unwrap();
        let said = String::from_utf8_lossy(&verified.stderr).into_owned();
        assert!(
            verified.status.success() || said.contains("subtree violation"),
            "{said}"
        );
        verified.status.success()
    }

    #[test]
    fn the_authority_vouches_for_the_routes_hosts_alone() {
        for (hosts, host, good) in [
            (&["a.test", "b.test"][..], "a.test", true),
            (&["a.test"], "b.test", false),
            (&["a.test"], "xa.test", false),
            (&["a.test"], "test", false),
            (&["a.test"], "127.0.0.1", false),
            (&["a.test"], "::1", false),
            (&["127.0.0.1"], "127.0.0.1", true),
            (&["127.0.0.1"], "127.0.0.2", false),
            (&["127.0.0.1"], "a.test", false),
            (&["127.0.0.1"], "::1", false),
            (&["::1", "a.test"], "::1", true),
            (&[], "a.test", false),
        ] {
            assert_eq!(is_taken(hosts, host), good, "{hosts:?} {host}");
        }
    }
}
