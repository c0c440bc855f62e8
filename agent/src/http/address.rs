//! Where a server is: a URL without a path.

use std::fmt;
use std::net::IpAddr;

use hyper::Uri;
use hyper::http::uri::Scheme;
use tokio_rustls::rustls::pki_types::ServerName;

/// The scheme, host and port of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    tls: bool,
    host: String,
    port: u16,
}

/// Why a text is not an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an address; write https://HOST:PORT, without a path")]
pub struct AddressError(String);

impl Address {
    /// Reads `https://HOST:PORT` or `http://HOST:PORT`.
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        let uri: Uri = text.parse().map_err(|_| AddressError(text.into()))?;
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(AddressError(text.into()));
        }
        Self::of(&uri).ok_or_else(|| AddressError(text.into()))
    }

    /// The server that a URL leads to.
    #[must_use]
    pub fn of(uri: &Uri) -> Option<Self> {
        let tls = match uri.scheme()? {
            scheme if *scheme == Scheme::HTTPS => true,
            scheme if *scheme == Scheme::HTTP => false,
            _ => return None,
        };
        let authority = uri.authority()?;
        if authority.as_str().contains('@') {
            return None;
        }
        let host = authority.host();
        let host = host
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .unwrap_or(host)
            .to_ascii_lowercase();
        let port = match authority.port_u16() {
            Some(port) => port,
            // A port that is none is not told apart from none at all.
            None if authority.as_str() != authority.host() => return None,
            None if tls => 443,
            None => 80,
        };
        ServerName::try_from(host.as_str()).ok()?;
        Some(Self { tls, host, port })
    }

    /// Whether it is spoken to over TLS.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.tls
    }

    /// Whether what goes there stays on this host.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        match self.host.parse::<IpAddr>() {
            Ok(address) => address.is_loopback(),
            Err(_) => self.host == "localhost",
        }
    }

    /// Host and port, to connect to.
    #[must_use]
    pub fn target(&self) -> (&str, u16) {
        (&self.host, self.port)
    }

    /// Host and port, as `CONNECT` names them (RFC 9110 section 9.3.6).
    #[must_use]
    pub fn connect_target(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// The name that the server's certificate must be for.
    #[must_use]
    pub fn server_name(&self) -> Option<ServerName<'static>> {
        ServerName::try_from(self.host.clone()).ok()
    }

    /// For the `Host` header.
    #[must_use]
    pub fn authority(&self) -> String {
        let default = if self.tls { 443 } else { 80 };
        let host = if self.host.contains(':') {
            format!("[{}]", self.host)
        } else {
            self.host.clone()
        };
        if self.port == default {
            host
        } else {
            format!("{host}:{}", self.port)
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}", self.authority())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for (text, shown, loopback) in [
            (
                "https://Vault.internal:8200",
                "https://vault.internal:8200",
                false,
            ),
            (
                "https://vault.internal:443/",
                "https://vault.internal",
                false,
            ),
            ("http://127.0.0.1:8200", "http://127.0.0.1:8200", true),
            ("http://localhost", "http://localhost", true),
            ("https://[::1]:8200", "https://[::1]:8200", true),
            ("https://10.0.0.1", "https://10.0.0.1", false),
        ] {
            let address = Address::parse(text).unwrap();
            assert_eq!(
                (address.to_string().as_str(), address.is_loopback()),
                (shown, loopback)
            );
        }
        for text in [
            "",
            "vault:8200",
            "ftp://vault",
            "https://",
            "https://vault/v1",
            "https://vault?x",
            "https://user:pass@vault",
            "https://vault:99999",
            "unix:///run/x",
        ] {
            assert!(Address::parse(text).is_err(), "{text}");
        }
    }
}
