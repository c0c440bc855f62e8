//! Which servers routes lead to.

use std::collections::HashMap;

use hyper::Uri;
use hyper::http::uri::{Authority, Scheme};
use keyhatch::UsableRoute;

use crate::failure::Failure;

/// A server as a client names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Server {
    pub tls: bool,
    /// In lower case, an IPv6 address without its brackets.
    pub host: String,
    pub port: u16,
}

impl Server {
    /// The server that a URL leads to.
    pub fn of(uri: &Uri) -> Option<Self> {
        let tls = match uri.scheme()? {
            scheme if *scheme == Scheme::HTTPS => true,
            scheme if *scheme == Scheme::HTTP => false,
            _ => return None,
        };
        Self::at(uri.authority()?, tls)
    }

    /// The server of an authority, which names no user.
    pub fn at(authority: &Authority, tls: bool) -> Option<Self> {
        if authority.as_str().contains('@') {
            return None;
        }
        let host = authority
            .host()
            .trim_start_matches('[')
            .trim_end_matches([']', '.']);
        let port = match authority.port_u16() {
            Some(port) => port,
            None if authority.as_str() != authority.host() => return None,
            None if tls => 443,
            None => 80,
        };
        (!host.is_empty()).then(|| Self {
            tls,
            host: host.to_ascii_lowercase(),
            port,
        })
    }
}

/// The name of the route that leads to each server: of all routes those that are named; of none named, all of them.
pub fn chosen(
    routes: Vec<UsableRoute>,
    named: &[String],
) -> Result<HashMap<Server, String>, Failure> {
    if let Some(missing) = named
        .iter()
        .find(|name| !routes.iter().any(|route| route.name == **name))
    {
        return Err(Failure::denied(format!(
            "run: --proxy: you may not use a route {missing:?}: keyhatch whoami names those you may"
        )));
    }
    let mut leads = HashMap::new();
    for route in routes {
        if !named.is_empty() && !named.contains(&route.name) {
            continue;
        }
        let server = route.upstream.parse().ok().as_ref().and_then(Server::of);
        let Some(server) = server else {
            return Err(Failure::failed(format!(
                "run: --proxy: the agent says of the route {:?} that it leads to {:?}",
                route.name, route.upstream
            )));
        };
        if let Some(other) = leads.insert(server, route.name.clone()) {
            return Err(Failure::usage(format!(
                "run: --proxy: the routes {other:?} and {:?} both lead to {}: say which, as --proxy={other}",
                route.name, route.upstream
            )));
        }
    }
    if leads.is_empty() {
        return Err(Failure::denied(
            "run: --proxy: there is no route that you may use: see keyhatch whoami",
        ));
    }
    Ok(leads)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn routes(all: &[(&str, &str)]) -> Vec<UsableRoute> {
        let route = |(name, upstream): &(&str, &str)| UsableRoute {
            name: (*name).into(),
            upstream: (*upstream).into(),
        };
        all.iter().map(route).collect()
    }

    #[test]
    fn a_server_is_known_however_it_is_written() {
        let all = routes(&[
            ("a", "https://api.test"),
            ("b", "http://[::1]:8080"),
            ("c", "https://10.0.0.1:8443"),
        ]);
        let all = chosen(all, &[]).map_err(|_| ()).unwrap();
        for (text, tls, route) in [
            ("API.test:443", true, Some("a")),
            ("api.test.:443", true, Some("a")),
            ("api.test:80", true, None),
            ("api.test:443", false, None),
            ("x.api.test:443", true, None),
            ("user@api.test:443", true, None),
            ("[::1]:8080", false, Some("b")),
            ("10.0.0.1:8443", true, Some("c")),
        ] {
            let server = Server::at(&text.parse().unwrap(), tls);
            let found = server.and_then(|server| all.get(&server).cloned());
            assert_eq!(found.as_deref(), route, "{text}");
        }
    }

    #[test]
    fn two_routes_to_one_server_must_be_told_apart() {
        let all = || routes(&[("read", "https://a.test"), ("write", "https://a.test")]);
        assert!(chosen(all(), &[]).is_err());
        assert!(chosen(all(), &["other".into()]).is_err());
        let one = chosen(all(), &["write".into()]).map_err(|_| ()).unwrap();
        let server = Server::of(&"https://a.test".parse().unwrap()).unwrap();
        assert_eq!(one.get(&server).unwrap(), "write");
    }
}
