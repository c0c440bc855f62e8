//! Routes: an upstream is called with a secret that the caller never sees.
//!
//! What goes out is built here and not passed on: the path in one normal form, end-to-end headers alone, and the
//! credential, which is written from secret memory as the head leaves (`insert`). What comes back is searched for
//! the secret as it streams by (`mask`). Who may call what is the policy's to say, and `api::using` asks it.

mod address;
mod approvals;
mod compose;
mod conditions;
mod connect;
mod credential;
mod download;
mod escapes;
mod exchange;
mod failure;
mod forms;
mod frames;
mod headers;
mod hmac;
mod hpack;
mod identity;
mod insert;
mod insert_h2;
mod mask;
mod oauth2;
mod path;
mod pool;
mod preview;
mod sigv4;
mod tally;
mod token_request;
mod tunnel;
mod upload;
mod usage;
mod way;
mod whole;

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use hyper::HeaderMap;
use hyper::header::HeaderValue;
use tokio_rustls::TlsConnector;

pub use approvals::{Approvals, ToApprove};
pub use conditions::Unmet;
pub use credential::{Credential, Granted};
pub use download::{Download, Summary, Told};
pub use exchange::{Answered, Outgoing};
pub use failure::Failure;
pub use path::{BadPath, Target};
pub use preview::{Preview, preview};
pub use tunnel::is_websocket;
pub use upload::{Progress, Upload};
pub use usage::{Counters, Limit, Turn};

use crate::config;
use crate::files::{self, Holds, Trust};
use crate::http::{self, Address};
use credential::Shared;
use oauth2::Tokens;
use pool::Pool;
use usage::Usage;
use whole::Shares;

/// A file of authorities larger than this is none.
const LARGEST_CA: u64 = 1 << 20;

/// How much of a body is read before it leaves, where it is looked at.
const LARGEST_READ: u64 = 4 << 20;

/// One upstream, as it is called.
pub struct Route {
    config: config::Route,
    /// Its name and its upstream's, as headers say them.
    named: HeaderValue,
    host: HeaderValue,
    tls: Tls,
    pool: Arc<Pool>,
    shared: Shared,
    tokens: Arc<Tokens>,
    shares: Arc<Shares>,
    usage: Arc<Usage>,
}

/// Whom a route trusts.
enum Tls {
    /// Its own authorities.
    Own(TlsConnector),
    /// The system's, read once it is needed: they are a hundred and more.
    System(Arc<OnceLock<TlsConnector>>),
}

/// All routes by name.
#[derive(Default)]
pub struct Routes {
    by_name: HashMap<Arc<str>, Arc<Route>>,
    system: Arc<OnceLock<TlsConnector>>,
    shares: Arc<Shares>,
    approvals: Arc<Approvals>,
}

impl Routes {
    /// The routes of a configuration; those that are as they were `before` keep their connections and counts.
    ///
    /// # Errors
    /// Each `ca_file` that cannot be used.
    pub fn of(configs: &[config::Route], before: &Self) -> Result<Self, Vec<String>> {
        let mut problems = Vec::new();
        let mut routes = Self {
            by_name: HashMap::new(),
            system: Arc::clone(&before.system),
            shares: Arc::clone(&before.shares),
            approvals: Arc::clone(&before.approvals),
        };
        for config in configs {
            let before = before.get(&config.name);
            let same = before.filter(|old| {
                // What is in a file may be another.
                old.config == *config && config.ca_file.is_none()
            });
            let route = match same {
                Some(route) => Ok(Arc::clone(route)),
                None => Route::new(config, before.map(|old| &**old), &routes).map(Arc::new),
            };
            match route {
                Ok(route) => drop(routes.by_name.insert(config.name.as_str().into(), route)),
                Err(problem) => problems.push(format!("route {:?}: {problem}", config.name)),
            }
        }
        if problems.is_empty() {
            Ok(routes)
        } else {
            Err(problems)
        }
    }

    /// The route of that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Arc<Route>> {
        self.by_name.get(name)
    }

    /// Calls that wait for an operator; a reload leaves them waiting.
    #[must_use]
    pub fn approvals(&self) -> &Arc<Approvals> {
        &self.approvals
    }

    /// All of them, by name.
    #[must_use]
    pub fn all(&self) -> Vec<&Arc<Route>> {
        let mut all: Vec<_> = self.by_name.values().collect();
        all.sort_by_key(|route| route.name());
        all
    }

    /// Closes the connections that wait, whose buffers hold what they carried last, and forgets access tokens.
    pub fn close_idle(&self) {
        for route in self.by_name.values() {
            route.pool.clear();
            route.tokens.clear();
        }
    }
}

impl Route {
    fn new(config: &config::Route, before: Option<&Self>, all: &Routes) -> Result<Self, String> {
        let tls = match &config.ca_file {
            Some(path) => Tls::Own(own_authorities(path)?),
            None => Tls::System(Arc::clone(&all.system)),
        };
        // A refresh token may have come that the secret does not have.
        let kept = before.filter(|old| {
            (&old.config.secret, &old.config.inject) == (&config.secret, &config.inject)
        });
        // What a bot has used of the same limits, it has used.
        let counted = before.filter(|old| old.config.limits == config.limits);
        let header = |text: &str| HeaderValue::from_str(text).map_err(|error| error.to_string());
        Ok(Self {
            config: config.clone(),
            named: header(&config.name)?,
            host: header(&config.upstream.authority())?,
            tls,
            pool: Arc::default(),
            shared: Shared::default(),
            tokens: kept.map_or_else(Arc::default, |old| Arc::clone(&old.tokens)),
            shares: Arc::clone(&all.shares),
            usage: counted.map_or_else(
                || Arc::new(Usage::new(config.limits.clone())),
                |old| Arc::clone(&old.usage),
            ),
        })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// Its name, as a header says it.
    #[must_use]
    pub fn named(&self) -> HeaderValue {
        self.named.clone()
    }

    /// Whether the other is configured in the same way.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        std::ptr::eq(self, other) || self.config == other.config
    }

    /// Where its requests go.
    #[must_use]
    pub fn upstream(&self) -> &Address {
        &self.config.upstream
    }

    /// How often it was used, and how.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        self.usage.counters()
    }

    /// Takes a turn for a bot, or says which limit it is over.
    ///
    /// # Errors
    /// The limit.
    pub fn turn(&self, bot: &str) -> Result<Turn, Limit> {
        Usage::turn(&self.usage, bot)
    }

    /// How large a request's body may be.
    #[must_use]
    pub fn largest_body(&self) -> Option<u64> {
        self.config.limits.body
    }

    /// Whether bodies have conditions to meet.
    #[must_use]
    pub fn looks_at_bodies(&self) -> bool {
        !self.config.require.is_empty()
    }

    /// How large a body may be that has conditions to meet: it is read whole before it leaves.
    fn largest_looked_at(&self) -> u64 {
        self.largest_body()
            .map_or(LARGEST_READ, |most| most.min(LARGEST_READ))
    }

    /// Whether a body says what it has to. A large one is looked at beside the loop that serves everybody.
    ///
    /// # Errors
    /// What it does not say.
    pub async fn check_body(
        self: &Arc<Self>,
        headers: &HeaderMap,
        body: Bytes,
    ) -> Result<(), Unmet> {
        conditions::check_kind(headers)?;
        if body.len() <= conditions::AT_ONCE {
            return conditions::check(&self.config.require, &body);
        }
        // It is held by the work, which goes on where the bot leaves.
        let turn = conditions::LARGE.acquire().await;
        let route = Arc::clone(self);
        let look = move || {
            let _turn = turn;
            conditions::check(&route.config.require, &body)
        };
        tokio::task::spawn_blocking(look)
            .await
            .unwrap_or(Err(Unmet::Json))
    }

    /// Whether a call waits for an operator.
    #[must_use]
    pub fn asks_operator(&self, method: &str, path: &str) -> bool {
        let mut calls = self.config.approve.iter();
        calls.any(|call| call.may_mean(method, path))
    }

    /// Forgets the access token that the upstream refused, if any. Whether another is worth a try.
    #[must_use]
    pub fn refused(&self, credential: &Credential) -> bool {
        let token = credential.token.as_ref();
        token.is_some_and(|token| self.tokens.refused(token))
    }

    fn tls(&self) -> Result<&TlsConnector, Failure> {
        match &self.tls {
            Tls::Own(tls) => Ok(tls),
            Tls::System(cell) => {
                if cell.get().is_none() {
                    let tls = http::tls(None, None).map_err(|e| Failure::Tls(e.to_string()))?;
                    let _ = cell.set(tls);
                }
                cell.get()
                    .ok_or_else(|| Failure::Tls("is not set up".into()))
            }
        }
    }
}

fn own_authorities(path: &Path) -> Result<TlsConnector, String> {
    let pem = files::read(path, Holds::Access, Trust::own(), LARGEST_CA)
        .map_err(|error| format!("ca_file: {error}"))?;
    http::tls(Some(&pem), None).map_err(|error| format!("ca_file {}: {error}", path.display()))
}
