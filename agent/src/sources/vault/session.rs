//! The token that the agent asks with: got when needed, renewed ahead of its end, got anew when it no longer
//! counts. One login at a time, whoever waits for it shares its outcome, and a failed one is not repeated at once.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::StatusCode;
use hyper::header::HeaderValue;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};
use tokio::time::Instant;

use super::held::{self, Stamp};
use super::login::{Given, Kept, Login, Own};
use super::server::{Ask, Reply, Servers};
use crate::config::VaultAuth;
use crate::sources::upstream::Trouble;

/// A no to a token younger than this is definite, if the token counts.
const FRESH: Duration = Duration::from_secs(60);
/// After a failed login the next one waits this long, unless the server wants longer.
const AFTER_FAILURE: Duration = Duration::from_secs(1);
/// How often a token file is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Who the agent is to one Vault.
pub struct Session {
    servers: Servers,
    login: Login,
    timeout: Duration,
    token: Mutex<Option<Arc<Token>>>,
    /// What a login needs and leaves; held by the one that runs.
    flight: Arc<AsyncMutex<Flight>>,
    logins: AtomicU64,
    file: Mutex<Seen>,
}

/// A token that counts, as far as is known.
pub struct Token {
    header: HeaderValue,
    /// Which login it comes from. What it borrowed ends with it.
    pub login: u64,
    since: Instant,
    life: Option<Life>,
    /// It cannot look itself up.
    mute: bool,
}

#[derive(Clone, Copy)]
struct Life {
    /// How long it lasted at first.
    whole: Duration,
    ends: Instant,
    renewable: bool,
}

#[derive(Default)]
struct Flight {
    kept: Kept,
    failed: Option<(Trouble, Instant)>,
    /// The token of this login counted then.
    vouched: Option<(u64, Instant)>,
}

#[derive(Default)]
struct Seen {
    stamp: Option<Stamp>,
    at: Option<Instant>,
}

impl Session {
    pub fn new(servers: Servers, login: Login, timeout: Duration) -> Arc<Self> {
        Arc::new(Self {
            servers,
            login,
            timeout,
            token: Mutex::default(),
            flight: Arc::default(),
            logins: AtomicU64::new(0),
            file: Mutex::default(),
        })
    }

    /// Asks as who the agent is, and once more after a fresh login where the answer is 403. An answer that
    /// is 403 still is a definite no.
    pub async fn ask(
        self: &Arc<Self>,
        ask: &Ask,
        deadline: Instant,
    ) -> Result<(Reply, Arc<Token>), Trouble> {
        let token = self.token().await?;
        let reply = self.servers.ask(ask, Some(&token.header), deadline).await?;
        if reply.status != StatusCode::FORBIDDEN {
            return Ok((reply, token));
        }
        let Some(fresh) = self.doubt(&token, deadline).await? else {
            return Ok((reply, token));
        };
        let reply = self.servers.ask(ask, Some(&fresh.header), deadline).await?;
        Ok((reply, fresh))
    }

    /// Asks what needs no token; any answer will do.
    pub async fn ask_anyone(&self, ask: &Ask, deadline: Instant) -> Result<(), Trouble> {
        self.servers.ask(ask, None, deadline).await.map(drop)
    }

    /// The token that counts now, after a login if there is none.
    pub async fn token(self: &Arc<Self>) -> Result<Arc<Token>, Trouble> {
        match self.current() {
            Some(token) if !self.file_changed() => Ok(token),
            // What is new in the file may not work, and the old token still does.
            Some(token) => Ok(self.log_in(token.login, false).await.unwrap_or(token)),
            None => self.log_in(0, false).await,
        }
    }

    /// Forgets all that could be asked with.
    pub fn forget(self: &Arc<Self>) {
        *self.token_slot() = None;
        self.servers.close_idle();
        if let Ok(mut flight) = self.flight.try_lock() {
            *flight = Flight::default();
            return;
        }
        // A login that runs is let end, and what it brought is forgotten then.
        let session = Arc::clone(self);
        tokio::spawn(async move {
            *session.flight.lock().await = Flight::default();
            *session.token_slot() = None;
            session.servers.close_idle();
        });
    }

    fn current(&self) -> Option<Arc<Token>> {
        self.token_slot().clone().filter(|token| !token.has_ended())
    }

    fn token_slot(&self) -> MutexGuard<'_, Option<Arc<Token>>> {
        self.token.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// After a 403: the token to ask again with, or `None` where this one counts, so that the no is definite.
    async fn doubt(
        self: &Arc<Self>,
        token: &Token,
        deadline: Instant,
    ) -> Result<Option<Arc<Token>>, Trouble> {
        let denied = Instant::now();
        if token.since.elapsed() < FRESH && self.counts(token, denied, deadline).await? {
            return Ok(None);
        }
        self.log_in(token.login, true).await.map(Some)
    }

    /// Whether the token counted after `denied`. One look answers all that wait for it.
    async fn counts(
        &self,
        token: &Token,
        denied: Instant,
        deadline: Instant,
    ) -> Result<bool, Trouble> {
        let mut flight = self.flight.lock().await;
        if self.current().is_none_or(|now| now.login != token.login) {
            return Ok(false);
        }
        let vouched = flight
            .vouched
            .is_some_and(|(login, at)| login == token.login && at >= denied);
        if token.mute || vouched {
            return Ok(true);
        }
        let at = Instant::now();
        let own = self
            .login
            .look_up(&self.servers, &token.header, deadline)
            .await?;
        if let Own::Denied = own {
            return Ok(false);
        }
        flight.vouched = Some((token.login, at));
        Ok(true)
    }

    /// A token of a later login than `than`. `doubt`: the one before got a no.
    async fn log_in(self: &Arc<Self>, than: u64, doubt: bool) -> Result<Arc<Token>, Trouble> {
        let asked = Instant::now();
        let flight = Arc::clone(&self.flight).lock_owned().await;
        if let Some(token) = self.current()
            && (token.login > than || token.since >= asked)
        {
            return Ok(token);
        }
        if let Some((trouble, until)) = &flight.failed
            && *until > asked
        {
            return Err(trouble.clone());
        }
        // A task of its own: a caller that gives up must not cut a login short that used up a wrapped secret.
        let session = Arc::clone(self);
        tokio::spawn(async move { session.fly(flight, doubt).await })
            .await
            .unwrap_or_else(|_| Err(Trouble::outage("login: it was cut short")))
    }

    async fn fly(
        self: &Arc<Self>,
        mut flight: OwnedMutexGuard<Flight>,
        doubt: bool,
    ) -> Result<Arc<Token>, Trouble> {
        let deadline = Instant::now() + self.timeout;
        self.remember_file();
        let outcome = self
            .login
            .run(&self.servers, &mut flight.kept, deadline)
            .await;
        let given = match outcome {
            Ok(given) => given,
            Err(trouble) => {
                let pause = match &trouble {
                    Trouble::Outage {
                        retry_after: Some(pause),
                        ..
                    } => AFTER_FAILURE.max(*pause),
                    _ => AFTER_FAILURE,
                };
                flight.failed = Some((trouble.clone(), Instant::now() + pause));
                return Err(trouble);
            }
        };
        flight.failed = None;
        let mute = doubt
            && matches!(
                self.login
                    .look_up(&self.servers, &given.header, deadline)
                    .await,
                Ok(Own::Denied)
            );
        Ok(self.adopt(given, mute))
    }

    fn adopt(self: &Arc<Self>, given: Given, mute: bool) -> Arc<Token> {
        // A token file that was read again may hold the same token still.
        let same = self.current().filter(|token| token.header == given.header);
        let login = match &same {
            Some(token) => token.login,
            None => self.logins.fetch_add(1, Ordering::Relaxed) + 1,
        };
        let token = Arc::new(Token {
            life: given.time.map(|time| Life {
                whole: time,
                ends: Instant::now() + time,
                renewable: given.renewable,
            }),
            header: given.header,
            login,
            since: Instant::now(),
            mute,
        });
        *self.token_slot() = Some(Arc::clone(&token));
        if same.is_none() {
            self.keep_alive(&token);
        }
        token
    }

    /// Renews the token ahead of its end, for as long as it is the current one.
    fn keep_alive(self: &Arc<Self>, token: &Token) {
        let Some(mut pause) = token.renew_in() else {
            return;
        };
        let (session, login) = (Arc::downgrade(self), token.login);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(pause).await;
                let Some(session) = session.upgrade() else {
                    return;
                };
                match session.tend(login).await {
                    Some(next) => pause = next,
                    None => return,
                }
            }
        });
    }

    /// Renews the token of `login`, or logs in afresh; when to come again, if it still is the current one.
    async fn tend(self: &Arc<Self>, login: u64) -> Option<Duration> {
        let token = self.current().filter(|token| token.login == login)?;
        let life = token.life?;
        if life.renewable {
            let deadline = Instant::now() + self.timeout;
            match self
                .login
                .renew(&self.servers, &token.header, deadline)
                .await
            {
                // What is near its longest life is given less and less.
                Ok(Some(Given {
                    time: Some(time),
                    renewable,
                    ..
                })) if time >= life.whole / 2 => {
                    return self.extend(
                        &token,
                        Life {
                            ends: Instant::now() + time,
                            renewable,
                            ..life
                        },
                    );
                }
                Ok(_) => {}
                Err(_) => return Some(token.retry_in()),
            }
        }
        match self.log_in(login, false).await {
            Ok(now) if now.login == login => now.renew_in(),
            Ok(_) => None,
            Err(_) => Some(token.retry_in()),
        }
    }

    fn extend(&self, token: &Token, life: Life) -> Option<Duration> {
        let mut slot = self.token_slot();
        slot.as_ref().filter(|now| now.login == token.login)?;
        let token = Arc::new(Token {
            header: token.header.clone(),
            login: token.login,
            since: token.since,
            life: Some(life),
            mute: token.mute,
        });
        *slot = Some(Arc::clone(&token));
        token.renew_in()
    }

    /// Whether the token file is another one than the token came from.
    fn file_changed(&self) -> bool {
        let VaultAuth::TokenFile { path } = &self.login.auth else {
            return false;
        };
        let mut seen = self.seen();
        if seen.at.is_some_and(|at| at.elapsed() < LOOK) {
            return false;
        }
        seen.at = Some(Instant::now());
        self.stamp(path).is_some_and(|now| seen.stamp != Some(now))
    }

    fn remember_file(&self) {
        if let VaultAuth::TokenFile { path } = &self.login.auth {
            let stamp = self.stamp(path);
            *self.seen() = Seen {
                stamp,
                at: Some(Instant::now()),
            };
        }
    }

    fn stamp(&self, path: &Path) -> Option<Stamp> {
        held::stamp(path, self.login.trust).ok()
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Token {
    /// How long it still counts; `None` where it never ends.
    pub fn left(&self) -> Option<Duration> {
        let life = self.life?;
        Some(life.ends.saturating_duration_since(Instant::now()))
    }

    fn has_ended(&self) -> bool {
        self.left().is_some_and(|left| left.is_zero())
    }

    /// Two thirds of what is left.
    fn renew_in(&self) -> Option<Duration> {
        Some((self.left()? * 2 / 3).max(AFTER_FAILURE))
    }

    /// After a renewal that was not answered.
    fn retry_in(&self) -> Duration {
        (self.left().unwrap_or_default() / 3).max(AFTER_FAILURE)
    }
}
