//! `keyhatch run --proxy`: an HTTPS proxy on loopback for tools that know no base URL.
//!
//! A request to a route's host is taken out of TLS here and goes to the agent's socket, which adds the credential; any
//! other host is a plain tunnel, or refused. Only processes of our own user are answered, and only with the token that
//! the command's environment holds.

mod authority;
mod carry;
mod destinations;
mod trust;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use keyhatch::blocking::Client;
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use crate::bridge::{self, forward::Agent, serve, token::Token};
use crate::child::Variable;
use crate::failure::Failure;
use carry::Carrier;
use trust::Trust;

/// A proxy beside a command, for as long as this process lives.
pub struct Beside {
    /// What leads the command to it, and lets it trust it.
    variables: Vec<Variable>,
    _trust: Trust,
}

/// Starts a proxy for the routes of those names, for all that we may use where none is named. A bridge beside the same command
/// is reached by it always.
pub fn beside(
    client: &Client,
    named: &[String],
    only_routes: bool,
    bridge: Option<SocketAddr>,
) -> Result<Beside, Failure> {
    let me = client
        .whoami()
        .map_err(|error| Failure::Client("run: --proxy".into(), error))?;
    let routes = destinations::chosen(me.routes, named)?;
    let (certificate, routes) = authority::certify(routes)
        .map_err(|why| Failure::failed(format!("run: --proxy: no certificates: {why}")))?;
    let trust = Trust::write(&certificate)?;
    let (listener, address) = bridge::listen_at(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    let token = Token::fresh()?;
    let mut variables = leading(&token.proxy_url(address));
    variables.extend(trust.variables());
    let carrier = Arc::new(Carrier {
        agent: Agent::new(client.address().clone()),
        token,
        routes,
        only_routes,
        bridge,
        places: Arc::new(Semaphore::new(carry::MAX_HOSTS)),
    });
    bridge::start(move || {
        serve::serve(listener, address, move |stream| {
            carry::converse(stream, carrier.clone())
        })
    })?;
    Ok(Beside {
        variables,
        _trust: trust,
    })
}

impl Beside {
    /// Adds the variables to those there are, which stay.
    pub fn join(&self, others: &mut Vec<Variable>) {
        let new = self
            .variables
            .iter()
            .filter(|variable| others.iter().all(|other| other.name != variable.name));
        let new: Vec<_> = new.cloned().collect();
        others.extend(new);
    }
}

/// Programs read the one or the other; Node reads neither unless told. What was to go around a proxy comes to this one,
/// too, which passes it on: an exception for the bridge would be one for all of loopback, since not every program takes a port there.
fn leading(url: &Zeroizing<String>) -> Vec<Variable> {
    let proxies = ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"];
    let mut variables: Vec<_> = proxies.map(|name| Variable::plain(name, url)).into();
    variables.extend(["NO_PROXY", "no_proxy"].map(|name| Variable::plain(name, "")));
    variables.push(Variable::plain("NODE_USE_ENV_PROXY", "1"));
    variables
}
