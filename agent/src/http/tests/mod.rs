//! TLS against servers with right and wrong certificates. The certificates beside this file last a hundred
//! years, but for the expired one; their keys guard nothing.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::{HeaderMap, Method};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use super::{Address, Bound, Client, Identity, Request, TlsError, tls};

const CA: &[u8] = include_bytes!("ca.pem");
const OTHER_CA: &[u8] = include_bytes!("other-ca.pem");
const SERVER: &[u8] = include_bytes!("server.pem");
const OTHER_NAME: &[u8] = include_bytes!("other-name.pem");
const EXPIRED: &[u8] = include_bytes!("expired.pem");
const CLIENT: &[u8] = include_bytes!("client.pem");
const KEY: &[u8] = include_bytes!("key.pem");
const OTHER_KEY: &[u8] = include_bytes!("other-key.pem");

/// A server that answers one request, to clients with a certificate of the CA only.
async fn server(certificate: &'static [u8]) -> Address {
    let provider = Arc::new(ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(CA).unwrap())
        .unwrap();
    let clients =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(clients.build().unwrap())
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(certificate).unwrap()],
            PrivateKeyDer::from_pem_slice(KEY).unwrap(),
        )
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("https://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let Ok(mut stream) = TlsAcceptor::from(Arc::new(config)).accept(stream).await else {
            return;
        };
        let _ = stream.read(&mut [0; 4096]).await;
        let _ = stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
            .await;
        let _ = stream.flush().await;
        let _ = stream.read(&mut [0; 1]).await;
    });
    Address::parse(&address).unwrap()
}

async fn ask(
    address: Address,
    authority: &[u8],
    identity: Option<&Identity<'_>>,
) -> Result<Vec<u8>, String> {
    let client = Client::new(vec![address], Some(tls(Some(authority), identity).unwrap()));
    let request = Request {
        method: Method::GET,
        path: "/v1/x".into(),
        headers: HeaderMap::new(),
        body: Bytes::new(),
    };
    let answer = client.send(0, &request, &Bound::Plain(100), Duration::from_secs(20));
    answer
        .await
        .map(|answer| answer.body.to_vec())
        .map_err(|why| why.to_string())
}

#[tokio::test]
async fn both_sides_prove_themselves() {
    let identity = Identity {
        chain: CLIENT,
        key: KEY,
    };
    assert_eq!(
        ask(server(SERVER).await, CA, Some(&identity)).await,
        Ok(b"ok".to_vec())
    );
    let why = ask(server(SERVER).await, CA, None).await.unwrap_err();
    assert_eq!(why, "TLS: the server wants a client certificate");
}

#[tokio::test]
async fn a_server_with_a_wrong_certificate_is_not_asked() {
    let identity = Identity {
        chain: CLIENT,
        key: KEY,
    };
    for (certificate, authority, words) in [
        (SERVER, OTHER_CA, "an authority that is not trusted"),
        (OTHER_NAME, CA, "for another name"),
        (EXPIRED, CA, "has expired"),
    ] {
        let why = ask(server(certificate).await, authority, Some(&identity))
            .await
            .unwrap_err();
        assert!(why.contains(words), "{why}");
        assert!(!why.contains("other.example"), "{why}");
    }
}

#[tokio::test]
async fn a_server_without_tls_is_told_apart() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("https://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        let _ = stream.read(&mut [0; 4096]).await;
    });
    let why = ask(Address::parse(&address).unwrap(), CA, None)
        .await
        .unwrap_err();
    assert!(why.contains("does not speak TLS"), "{why}");
}

#[test]
fn an_identity_that_does_not_fit_is_refused() {
    let refused = |chain, key| {
        tls(Some(CA), Some(&Identity { chain, key }))
            .map(drop)
            .unwrap_err()
    };
    assert_eq!(refused(CLIENT, OTHER_KEY), TlsError::Pair);
    assert_eq!(refused(CLIENT, CLIENT), TlsError::Key);
    assert_eq!(refused(KEY, KEY), TlsError::Chain);
}
