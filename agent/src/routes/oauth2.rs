//! Access tokens: asked for where a route's secret says who asks, kept in secret memory, renewed ahead of their end.
//!
//! One request for a token is under way at a time, and it is finished even where the bot that waits for it leaves: a
//! refresh token may count once only. A token belongs to one version of the secret.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Mutex as Turns, OwnedMutexGuard};
use tokio::task::{AbortHandle, JoinHandle};

use super::failure::Failure;
use super::token_request::{Given, TokenRequest};
use crate::sys::arena::Block;

/// A token is renewed this long before its end, or at four fifths of its time where that is later.
const AHEAD: Duration = Duration::from_secs(60);

/// It is not used so close to its end, or in the last tenth of its time.
const TOO_LATE: Duration = Duration::from_secs(10);

/// After a refusal nothing is asked for as long as this.
const PAUSE: Duration = Duration::from_secs(1);

const SEALED: &str = "the agent was sealed";

/// The token that came, or why there is none, for all who wait.
type Told = Result<Arc<Block>, Arc<str>>;

/// The access token of one route.
#[derive(Default)]
pub struct Tokens {
    turns: Arc<Turns<()>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    held: Option<Held>,
    /// The refresh token that came with the last access token, for the version of the secret that it stands for.
    refresh: Option<(Arc<str>, Arc<Block>)>,
    /// When the last request for a token failed, and why.
    failed: Option<(Instant, Arc<str>)>,
    /// The request that is under way.
    asking: Option<AbortHandle>,
}

struct Held {
    version: Arc<str>,
    token: Arc<Block>,
    since: Instant,
    /// Until it ends; `None` where the server did not say.
    time: Option<Duration>,
}

/// A token as it is used for one request.
pub struct Token {
    /// In secret memory.
    pub value: Arc<Block>,
    /// Whether it was asked for by this request.
    is_new: bool,
}

impl Held {
    fn has(&self, ahead: Duration, parts: u32) -> bool {
        let ends = |time: Duration| time.saturating_sub(ahead.min(time / parts));
        self.time
            .is_none_or(|time| self.since.elapsed() < ends(time))
    }

    fn is_fresh(&self) -> bool {
        self.has(AHEAD, 5)
    }

    fn is_good(&self) -> bool {
        self.has(TOO_LATE, 10)
    }
}

impl Tokens {
    /// The token for `version` of the secret, asked for by `request` where there is none, or soon none.
    pub async fn get(
        self: &Arc<Self>,
        version: &Arc<str>,
        request: impl FnOnce(Option<Arc<Block>>) -> Result<TokenRequest, Failure>,
    ) -> Result<Token, Failure> {
        let began = Instant::now();
        let old = |value| Token {
            value,
            is_new: false,
        };
        if let Some(fresh) = self.held(version, Held::is_fresh) {
            return Ok(old(fresh));
        }
        let good = self.held(version, Held::is_good);
        let turns = Arc::clone(&self.turns);
        let turn = match &good {
            None => turns.lock_owned().await,
            // Another renews it already.
            Some(good) => match turns.try_lock_owned() {
                Ok(turn) => turn,
                Err(_) => return Ok(old(Arc::clone(good))),
            },
        };
        // Somebody else's turn may have answered this one, too.
        if let Some(fresh) = self.held(version, Held::is_fresh) {
            return Ok(old(fresh));
        }
        let asking = match self.failed_after(began) {
            Some(why) => Err(Failure::Token(why)),
            None => self.ask(version, turn, request),
        };
        if let Some(good) = good {
            return Ok(old(good));
        }
        let told = asking?.await.unwrap_or_else(|_| Err(SEALED.into()));
        let value = told.map_err(Failure::Token)?;
        Ok(Token {
            value,
            is_new: true,
        })
    }

    /// Forgets a token that the upstream refused. Whether another is worth a try.
    pub fn refused(&self, token: &Token) -> bool {
        let mut state = self.state();
        let is_held = |held: &Held| Arc::ptr_eq(&held.token, &token.value);
        if !token.is_new && state.held.as_ref().is_some_and(is_held) {
            state.held = None;
        }
        !token.is_new
    }

    /// The refresh token that stands for the one in `version` of the secret.
    pub fn refresh(&self, version: &Arc<str>) -> Option<Arc<Block>> {
        let state = self.state();
        let (of, token) = state.refresh.as_ref()?;
        (of == version).then(|| Arc::clone(token))
    }

    /// Forgets everything, what is being asked for included, for a seal. Who waits for a turn has it fail as well.
    pub fn clear(&self) {
        let sealed = State {
            failed: Some((Instant::now(), SEALED.into())),
            ..State::default()
        };
        let state = std::mem::replace(&mut *self.state(), sealed);
        if let Some(asking) = state.asking {
            asking.abort();
        }
    }

    /// Has a token asked for, whoever waits for it.
    fn ask(
        self: &Arc<Self>,
        version: &Arc<str>,
        turn: OwnedMutexGuard<()>,
        request: impl FnOnce(Option<Arc<Block>>) -> Result<TokenRequest, Failure>,
    ) -> Result<JoinHandle<Told>, Failure> {
        let request = request(self.refresh(version))?;
        let (tokens, of) = (Arc::clone(self), Arc::clone(version));
        // Under the lock, so that it is known before it can end, and before a seal.
        let mut state = self.state();
        let asking = tokio::spawn(async move {
            let _turn = turn;
            let given = request.send().await;
            tokens.took(of, given)
        });
        state.asking = Some(asking.abort_handle());
        Ok(asking)
    }

    /// Keeps what was given.
    fn took(&self, version: Arc<str>, given: Result<Given, Failure>) -> Told {
        let mut state = self.state();
        // Sealed meanwhile: nothing is kept.
        if state.asking.take().is_none() {
            return Err(SEALED.into());
        }
        match given {
            Ok(given) => {
                let token = Arc::new(given.access_token);
                if let Some(refresh) = given.refresh_token {
                    state.refresh = Some((Arc::clone(&version), Arc::new(refresh)));
                }
                state.failed = None;
                state.held = Some(Held {
                    version,
                    token: Arc::clone(&token),
                    since: Instant::now(),
                    time: given.time,
                });
                Ok(token)
            }
            Err(failure) => {
                let why: Arc<str> = failure.to_string().into();
                state.failed = Some((Instant::now(), Arc::clone(&why)));
                Err(why)
            }
        }
    }

    fn held(&self, version: &Arc<str>, is: impl Fn(&Held) -> bool) -> Option<Arc<Block>> {
        let state = self.state();
        let held = state.held.as_ref()?;
        (held.version == *version && is(held)).then(|| Arc::clone(&held.token))
    }

    /// Why there was none, where that was told while this one waited, or just before.
    fn failed_after(&self, began: Instant) -> Option<Arc<str>> {
        let state = self.state();
        let (when, why) = state.failed.as_ref()?;
        (*when + PAUSE > began).then(|| Arc::clone(why))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
