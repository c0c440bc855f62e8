//! The SDK's client: the credential chain, TLS with ring, and the bounds of a call.

use std::time::Duration;

use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_secretsmanager::Client;
use aws_sdk_secretsmanager::config::retry::RetryConfig;
use aws_sdk_secretsmanager::config::timeout::TimeoutConfig;
use aws_sdk_secretsmanager::config::{
    Builder, IdentityCache, SharedHttpClient, StalledStreamProtectionConfig,
};
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::bounded::Bounded;
use crate::sources::upstream::Trouble;

/// What a client is made from.
pub struct Settings {
    pub region: Option<String>,
    pub endpoint_url: Option<String>,
    pub profile: Option<String>,
    /// PEM certificates that the endpoint's must come from.
    pub roots: Option<Vec<u8>>,
    pub timeout: Duration,
}

/// Sets up the chain of credentials; they are fetched by the first call.
pub async fn connect(settings: &Settings) -> Result<Client, Trouble> {
    let http = https(None)?;
    let shared = shared(settings, http.clone()).await;
    client(settings, &shared, http)
}

/// The client of one endpoint. `http` is for the chain, which asks others.
pub fn client(
    settings: &Settings,
    shared: &SdkConfig,
    http: SharedHttpClient,
) -> Result<Client, Trouble> {
    if shared.region().is_none() {
        return Err(Trouble::outage(
            "no region: set `region` in the source, in the profile or in AWS_REGION",
        ));
    }
    let mut config = Builder::from(shared).interceptor(Bounded);
    match &settings.endpoint_url {
        Some(url) => {
            config.set_endpoint_url(Some(url.clone()));
        }
        None => refuse_empty_endpoints()?,
    }
    if let Some(roots) = &settings.roots {
        config.set_http_client(Some(https(Some(roots))?));
    }
    if let Some(profile) = &settings.profile {
        // Alone: in the chain, the environment would come before a profile that was asked for.
        let provider = ProviderConfig::without_region()
            .with_region(shared.region().cloned())
            .with_http_client(http);
        config = config.credentials_provider(
            ProfileFileCredentialsProvider::builder()
                .configure(&provider)
                .profile_name(profile)
                .build(),
        );
    }
    Ok(Client::from_conf(config.build()))
}

/// The SDK panics at an empty one.
fn refuse_empty_endpoints() -> Result<(), Trouble> {
    let empty = |name: &&str| std::env::var_os(name).is_some_and(|url| url.is_empty());
    let names = ["AWS_ENDPOINT_URL_SECRETS_MANAGER", "AWS_ENDPOINT_URL"];
    names.iter().copied().find(empty).map_or(Ok(()), |name| {
        Err(Trouble::outage(format!(
            "{name} is empty in the daemon's environment; unset it"
        )))
    })
}

/// What the chain of credentials and the client have in common.
pub async fn shared(settings: &Settings, http: SharedHttpClient) -> SdkConfig {
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(settings.timeout)
        .operation_timeout(settings.timeout);
    // A little less than the whole call has, so that what is missing can be named.
    let credentials = IdentityCache::lazy().load_timeout(settings.timeout * 4 / 5);
    let mut loader = aws_config::defaults(BehaviorVersion::v2026_01_12())
        .http_client(http)
        // The engine waits and tries again, the same for all upstreams.
        .retry_config(RetryConfig::disabled())
        .timeout_config(timeouts.build())
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        .identity_cache(credentials.build());
    if let Some(region) = &settings.region {
        loader = loader.region(Region::new(region.clone()));
    }
    if let Some(profile) = &settings.profile {
        loader = loader.profile_name(profile);
    }
    Box::pin(loader.load()).await
}

/// No proxy and no redirect is followed.
pub fn https(roots: Option<&[u8]>) -> Result<SharedHttpClient, Trouble> {
    let trust = match roots {
        Some(pem) => TrustStore::empty().with_pem_certificate(pem),
        None => TrustStore::default(),
    };
    let context = TlsContext::builder().with_trust_store(trust).build();
    let context = context.map_err(|error| Trouble::outage(format!("TLS: {error}")))?;
    Ok(aws_smithy_http_client::Builder::new()
        .tls_provider(Provider::Rustls(CryptoMode::Ring))
        .tls_context(context)
        .build_https())
}

/// Whether these are certificates: the SDK panics where they are not.
pub fn check_roots(pem: &[u8]) -> Result<(), &'static str> {
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|_| "is not PEM")?;
        store
            .add(certificate)
            .map_err(|_| "has a certificate that cannot be read")?;
    }
    if store.is_empty() {
        return Err("has no certificate");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_that_are_none_are_refused_before_the_sdk_sees_them() {
        assert_eq!(check_roots(b"").unwrap_err(), "has no certificate");
        assert_eq!(
            check_roots(b"some text\n").unwrap_err(),
            "has no certificate"
        );
        let not_base64 = b"-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n";
        assert_eq!(check_roots(not_base64).unwrap_err(), "is not PEM");
        let not_x509 = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(check_roots(not_x509).is_err());
    }
}
