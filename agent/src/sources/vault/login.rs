//! How the agent proves itself: one login by one method. When, and how often, is the session's business.

use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper::header::HeaderValue;
use serde::Serialize;
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::answer::{self, Envelope, OwnToken, SecretId};
use super::held;
use super::server::{Ask, Reply, Servers};
use crate::config::{KeySource, VaultAuth};
use crate::files::Trust;
use crate::http::Bound;
use crate::sources::upstream::Trouble;
use crate::sys::arena::{Arena, Block};

/// An answer with a token in it is never larger.
const LARGEST: usize = 256 * 1024;

/// What a login needs.
pub struct Login {
    pub auth: VaultAuth,
    pub trust: Trust,
    pub arena: Arc<Arena>,
}

/// A token, as it was given.
pub struct Given {
    pub header: HeaderValue,
    /// `None` where it never ends.
    pub time: Option<Duration>,
    pub renewable: bool,
}

/// What a login leaves for the next one.
#[derive(Default)]
pub struct Kept {
    /// The secret id that was unwrapped.
    secret_id: Option<Block>,
    /// The token that it was wrapped in, which works once.
    spent: Option<Block>,
}

/// Whether a token still counts.
pub enum Own {
    Good {
        time: Option<Duration>,
        renewable: bool,
    },
    /// Revoked, expired, or not allowed to look itself up.
    Denied,
}

#[derive(Serialize)]
struct AppRole<'a> {
    role_id: &'a str,
    secret_id: &'a str,
}

#[derive(Serialize)]
struct Jwt<'a> {
    role: &'a str,
    jwt: &'a str,
}

#[derive(Serialize)]
struct Cert<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
}

/// Why a login gave no token.
enum NoToken {
    /// The server does not accept what it was shown.
    Refused(u16),
    Trouble(Trouble),
}

impl Login {
    /// Logs in.
    pub async fn run(
        &self,
        servers: &Servers,
        kept: &mut Kept,
        deadline: Instant,
    ) -> Result<Given, Trouble> {
        match &self.auth {
            VaultAuth::TokenFile { path } => self.token_file(servers, path, deadline).await,
            VaultAuth::AppRole {
                mount,
                role_id,
                secret_id,
                wrapped,
            } => {
                let path = format!("auth/{mount}/login");
                let place = place(secret_id)?;
                if *wrapped {
                    return self
                        .wrapped(servers, &path, role_id, &place, kept, deadline)
                        .await;
                }
                let secret = self.read(&place)?;
                let outcome = self
                    .app_role(servers, &path, role_id, &secret, deadline)
                    .await;
                told(
                    outcome,
                    &path,
                    "the role id or the secret id is wrong, used up or expired",
                )
            }
            VaultAuth::Jwt { mount, role, path } => {
                let login = format!("auth/{mount}/login");
                let jwt = self.read(path)?;
                let body = json(&Jwt {
                    role,
                    jwt: text(&jwt),
                })?;
                let outcome = self.post(servers, &login, body, deadline).await;
                told(outcome, &login, "the JWT is expired or not for this role")
            }
            VaultAuth::Cert { mount, name } => {
                let login = format!("auth/{mount}/login");
                let body = json(&Cert {
                    name: name.as_deref(),
                })?;
                let outcome = self.post(servers, &login, body, deadline).await;
                told(
                    outcome,
                    &login,
                    "it knows no role for this client certificate",
                )
            }
        }
    }

    /// Asks whether a token still counts, and for how long.
    pub async fn look_up(
        &self,
        servers: &Servers,
        token: &HeaderValue,
        deadline: Instant,
    ) -> Result<Own, Trouble> {
        let ask = Ask::get("auth/token/lookup-self", "", self.bound());
        let reply = servers.ask(&ask, Some(token), deadline).await?;
        match reply.status.as_u16() {
            200 => {
                let own: OwnToken =
                    answer::data(&reply.body).ok_or_else(|| not_json("a token's lookup"))?;
                Ok(Own::Good {
                    time: lasting(own.ttl),
                    renewable: own.renewable,
                })
            }
            403 => Ok(Own::Denied),
            other => Err(Trouble::outage(format!(
                "a token's lookup was answered with {other}"
            ))),
        }
    }

    /// Extends a token; `None` where it cannot be any more.
    pub async fn renew(
        &self,
        servers: &Servers,
        token: &HeaderValue,
        deadline: Instant,
    ) -> Result<Option<Given>, Trouble> {
        let ask = Ask::post(
            "auth/token/renew-self",
            json(&serde_json::Map::new())?,
            self.bound(),
        );
        let reply = servers.ask(&ask, Some(token), deadline).await?;
        if !reply.status.is_success() {
            return Ok(None);
        }
        let auth = parsed(&reply)?
            .auth
            .ok_or_else(|| not_json("a token's renewal"))?;
        Ok(Some(Given {
            header: token.clone(),
            time: lasting(auth.lease_duration),
            renewable: auth.renewable,
        }))
    }

    async fn token_file(
        &self,
        servers: &Servers,
        path: &Path,
        deadline: Instant,
    ) -> Result<Given, Trouble> {
        let header = held::header(self.read(path)?)
            .ok_or_else(|| failed(path.display(), "it does not hold a token"))?;
        match self.look_up(servers, &header, deadline).await? {
            Own::Good { time, renewable } => Ok(Given {
                header,
                time,
                renewable,
            }),
            Own::Denied => Err(failed(
                path.display(),
                "its token is expired, revoked, or may not read auth/token/lookup-self; put a good one there",
            )),
        }
    }

    /// The secret id that was unwrapped before, else the one in the wrapping token, which works once.
    async fn wrapped(
        &self,
        servers: &Servers,
        path: &str,
        role: &str,
        place: &Path,
        kept: &mut Kept,
        deadline: Instant,
    ) -> Result<Given, Trouble> {
        if let Some(secret) = &kept.secret_id {
            match self.app_role(servers, path, role, secret, deadline).await {
                Err(NoToken::Refused(_)) => kept.secret_id = None,
                other => return told(other, path, ""),
            }
        }
        let wrapping = self.read(place)?;
        let spent = || {
            failed(
                place.display(),
                "its wrapping token was used already or has expired; if this agent did not unwrap it, someone \
                 else has; put a new one there",
            )
        };
        if kept.spent.as_deref() == Some(&*wrapping) {
            return Err(spent());
        }
        let header = held::header(self.copied(&wrapping)?).ok_or_else(spent)?;
        let ask = Ask::post(
            "sys/wrapping/unwrap",
            json(&serde_json::Map::new())?,
            self.bound(),
        );
        let reply = servers.ask(&ask, Some(&header), deadline).await?;
        kept.spent = Some(wrapping);
        if !reply.status.is_success() {
            return Err(spent());
        }
        let unwrapped: SecretId<'_> = answer::data(&reply.body)
            .ok_or_else(|| failed(place.display(), "what its token unwraps is not a secret id"))?;
        let secret = self.copied(unwrapped.secret_id.as_bytes())?;
        let outcome = self.app_role(servers, path, role, &secret, deadline).await;
        // Kept whatever the outcome: there is no second way to it.
        kept.secret_id = Some(secret);
        told(
            outcome,
            path,
            "the role id or the secret id is wrong, used up or expired",
        )
    }

    async fn app_role(
        &self,
        servers: &Servers,
        path: &str,
        role_id: &str,
        secret: &Block,
        deadline: Instant,
    ) -> Result<Given, NoToken> {
        let body = json(&AppRole {
            role_id,
            secret_id: text(secret),
        });
        self.post(servers, path, body.map_err(NoToken::Trouble)?, deadline)
            .await
    }

    async fn post(
        &self,
        servers: &Servers,
        path: &str,
        body: Zeroizing<Vec<u8>>,
        deadline: Instant,
    ) -> Result<Given, NoToken> {
        let ask = Ask::post(path, body, self.bound());
        let reply = servers
            .ask(&ask, None, deadline)
            .await
            .map_err(NoToken::Trouble)?;
        if !reply.status.is_success() {
            return Err(NoToken::Refused(reply.status.as_u16()));
        }
        self.given(&reply).map_err(NoToken::Trouble)
    }

    fn given(&self, reply: &Reply) -> Result<Given, Trouble> {
        let auth = parsed(reply)?.auth.ok_or_else(|| not_json("the login"))?;
        let token = self.copied(auth.client_token.as_bytes())?;
        Ok(Given {
            header: held::header(token).ok_or_else(|| not_json("the login"))?,
            time: lasting(auth.lease_duration),
            renewable: auth.renewable,
        })
    }

    fn read(&self, path: &Path) -> Result<Block, Trouble> {
        held::read(path, self.trust, &self.arena)
            .map_err(|why| Trouble::outage(format!("login: {why}")))
    }

    fn copied(&self, bytes: &[u8]) -> Result<Block, Trouble> {
        held::copied(bytes, &self.arena).map_err(|full| Trouble::outage(format!("login: {full}")))
    }

    fn bound(&self) -> Bound {
        Bound::Secret(Arc::clone(&self.arena), LARGEST)
    }
}

fn place(source: &KeySource) -> Result<std::path::PathBuf, Trouble> {
    held::place(source).map_err(|name| {
        failed(
            format!("credential:{name}"),
            "this process has no credentials directory; start it by its systemd unit with LoadCredential=",
        )
    })
}

fn told(outcome: Result<Given, NoToken>, path: &str, refused: &str) -> Result<Given, Trouble> {
    outcome.map_err(|error| match error {
        NoToken::Refused(status) => failed(path, format!("refused ({status}): {refused}")),
        NoToken::Trouble(Trouble::Outage { why, retry_after }) => Trouble::Outage {
            why: format!("login: {why}"),
            retry_after,
        },
        // Without a token nothing is answered, so it is no trouble of one secret.
        NoToken::Trouble(Trouble::Unusable { why }) => Trouble::outage(format!("login: {why}")),
    })
}

fn parsed(reply: &Reply) -> Result<Envelope<'_>, Trouble> {
    answer::parse(&reply.body).ok_or_else(|| not_json("the login"))
}

fn failed(what: impl Display, why: impl Display) -> Trouble {
    Trouble::outage(format!("login: {what}: {why}"))
}

fn not_json(what: &str) -> Trouble {
    Trouble::outage(format!("the answer to {what} is not what Vault says"))
}

fn json(body: &impl Serialize) -> Result<Zeroizing<Vec<u8>>, Trouble> {
    serde_json::to_vec(body)
        .map(Zeroizing::new)
        .map_err(|_| Trouble::outage("login: what it sends cannot be written as JSON"))
}

/// What was read is ASCII.
fn text(secret: &Block) -> &str {
    std::str::from_utf8(secret).unwrap_or_default()
}

fn lasting(seconds: u64) -> Option<Duration> {
    (seconds > 0).then(|| Duration::from_secs(seconds))
}
