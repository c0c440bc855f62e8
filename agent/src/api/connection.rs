//! One peer's connection: who it is, and the one way from what it asks to a kept decision.

use std::borrow::Cow;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use keyhatch_protocol::{Action, Code, Name};

use super::bind::{Door, bind};
use super::context::Context;
use super::id::RequestId;
use super::io::Stall;
use super::limits::Connected;
use super::surface::Surface;
use crate::audit::{Entry, Event, Phrase, Receipt, Verdict, Who, extra};
use crate::cache::Permit;
use crate::detect::{Pace, Seen};
use crate::identity::{Peer, Standing};
use crate::policy::{BotMatch, Changeable, Decision, Policy, Reason, Refusal};
use crate::sources::engine::Supply;
use crate::sys::map::wall_seconds_coarse;

/// A bot's connection. Only an accepted socket makes one, and a handler cannot be called without.
pub struct Connection {
    pub(super) context: Arc<Context>,
    pub(super) peer: Arc<Peer>,
    pub(super) stall: Arc<Stall>,
    pub(super) limits: Connected,
    door: Door,
    bound: Mutex<Arc<Bound>>,
}

/// A peer judged by one policy: which bot it is, and what its records have in common.
pub struct Bound {
    pub(super) policy: Arc<Policy>,
    pub(super) found: BotMatch,
    pub(super) changeable: Changeable,
    pub(super) who: Who,
    /// SHA-256 of its program in hex, where the agent sees it and detection wants it.
    pub(super) program: Option<Box<str>>,
    /// For the record of a peer that matches no bot: the nearest one and what differs.
    pub(super) nearest: Option<String>,
    pub(super) memo: Mutex<Vec<Memo>>,
}

/// A decision made before on this connection, under this policy.
pub(super) struct Memo {
    action: Action,
    name: Name,
    decision: Decision,
    /// The record of this request as it was made last, when it was allowed and nothing else was said.
    last: Option<Last>,
}

/// A record that is repeated for each read of the same version.
struct Last {
    surface: Surface,
    event: Event,
    version: Arc<str>,
    phrase: Phrase,
    /// By which it may be repeated without a look; `None` where nothing is learnt.
    pace: Option<Arc<Pace>>,
}

/// How many decisions a connection remembers.
const MEMO: usize = 16;

/// One thing that a peer wants to do.
pub struct Wish<'a> {
    /// The way it is asked.
    pub surface: Surface,
    /// The event to record.
    pub event: Event,
    /// The action that needs a grant.
    pub action: Action,
    /// On which secret.
    pub name: &'a Name,
    /// The version it would get; `None` where the secret or version does not exist.
    pub version: Option<&'a Arc<str>>,
    /// What the upstream said, where it was asked because there is no such version.
    pub supply: Option<Supply>,
    /// Where another version than the current one is asked for: when that was set.
    pub outdated: Option<Duration>,
    /// More members of the record.
    pub extra: Option<&'a str>,
}

impl Connection {
    /// Identifies who is at the other end and which bot that is.
    pub async fn new(
        context: Arc<Context>,
        peer: Arc<Peer>,
        stall: Arc<Stall>,
        limits: Connected,
        door: Door,
    ) -> Self {
        let bound = Mutex::new(Arc::new(bind(&context, &peer, &limits, &door).await));
        Self {
            context,
            peer,
            stall,
            limits,
            door,
            bound,
        }
    }

    /// The judgement under the running policy, if it stands already.
    pub fn bound_now(&self) -> Option<Arc<Bound>> {
        let bound = Arc::clone(&self.bound.lock().unwrap_or_else(PoisonError::into_inner));
        Arc::ptr_eq(&bound.policy, &self.context.policy.load()).then_some(bound)
    }

    /// The judgement under the running policy; looks names and programs up again after a reload.
    pub async fn bound(&self) -> Arc<Bound> {
        if let Some(bound) = self.bound_now() {
            return bound;
        }
        let fresh = Arc::new(bind(&self.context, &self.peer, &self.limits, &self.door).await);
        *self.bound.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&fresh);
        fresh
    }

    /// Decides one wish and keeps the record of it.
    ///
    /// # Errors
    /// The code to answer with, where it is not granted or no record can be kept.
    pub fn judge(&self, bound: &Bound, id: &RequestId, wish: &Wish<'_>) -> Result<Permit, Code> {
        if let Some(again) = self.judge_again(bound, id, wish) {
            return again;
        }
        let decision = self.decide(bound, wish);
        let receipt = self.keep(bound, id, wish, &decision)?;
        let code = code_of(decision.reason());
        Permit::new(&decision, receipt).ok_or(code)
    }

    /// The short way for a request that was allowed before on this connection: the decision is remembered
    /// and its record rendered, so only what may have changed is looked at.
    fn judge_again(
        &self,
        bound: &Bound,
        id: &RequestId,
        wish: &Wish<'_>,
    ) -> Option<Result<Permit, Code>> {
        let mut memo = bound.memo();
        let known = memo
            .iter_mut()
            .find(|m| m.name == *wish.name && m.action == wish.action)?;
        let last = known.last.as_mut()?;
        let same = last.surface == wish.surface
            && last.event == wish.event
            && wish.extra.is_none()
            && wish.version == Some(&last.version);
        if !same || self.context.cache.is_sealed() || self.standing(bound).is_some() {
            return None;
        }
        self.count(true);
        let kept = self.context.audit.keep_again(&last.phrase, id.as_str());
        let Ok(receipt) = kept else {
            return Some(Err(Code::AuditUnavailable));
        };
        if last
            .pace
            .as_ref()
            .is_some_and(|pace| !pace.keeps(wall_seconds_coarse()))
        {
            let entry = Entry {
                secret: Some(wish.name.as_str()),
                surface: last.surface.as_str(),
                ..Entry::of(last.event)
            };
            last.pace = self.tell(bound, id, Reason::Granted, &entry, None, &receipt);
        }
        Some(Permit::new(&known.decision, receipt).ok_or(Code::Denied))
    }

    /// Records a request that is over a limit.
    pub fn limited(&self, bound: &Bound, id: &RequestId, surface: Surface) {
        let entry = Entry {
            decision: Verdict::Deny,
            reason: Some(Reason::Limited.as_str()),
            who: Some(&bound.who),
            surface: surface.as_str(),
            request_id: Some(id.as_str()),
            ..Entry::of(Event::SecretRead)
        };
        self.context.counts.limited.fetch_add(1, Relaxed);
        // It is refused either way.
        let _ = self.context.audit.keep(&entry);
    }

    /// Records what was refused before it came to a secret.
    pub fn refuse(&self, bound: &Bound, id: &RequestId, decision: Decision, extra: &str) {
        let decision = self.standing(bound).map_or(decision, Decision::refused);
        let extra = with_nearest(bound, decision.reason(), Some(extra));
        let entry = Entry {
            decision: Verdict::Deny,
            reason: Some(decision.reason().as_str()),
            who: Some(&bound.who),
            surface: Surface::Credential.as_str(),
            request_id: Some(id.as_str()),
            extra: extra.as_deref(),
            ..Entry::of(Event::SecretRead)
        };
        self.count(false);
        // It is refused either way.
        let _ = self.context.audit.keep(&entry);
    }

    /// Whether what was allowed before still is: the same process, and a policy that allows it.
    pub fn may_still(&self, bound: &Bound, action: Action, name: &Name) -> bool {
        self.standing(bound).is_none() && bound.decide(action, name).allowed()
    }

    /// Decides and records a list: a bot may always ask, and sees what it may see.
    pub fn judge_list(
        &self,
        bound: &Bound,
        id: &RequestId,
        surface: Surface,
        prefix: &str,
    ) -> Result<(), Code> {
        let reason = match (self.standing(bound), &bound.found) {
            (Some(refusal), _) => refusal.into(),
            (None, BotMatch::NoBot { .. }) => Reason::NoBot,
            (None, BotMatch::Ambiguous(_)) => Reason::AmbiguousBot,
            (None, BotMatch::Bot(_)) if self.context.cache.is_sealed() => Reason::Sealed,
            (None, BotMatch::Bot(_)) => Reason::Granted,
        };
        let granted = reason == Reason::Granted;
        let nearest = with_nearest(bound, reason, None);
        let entry = Entry {
            decision: Verdict::of(granted),
            reason: Some(reason.as_str()),
            secret: Some(prefix),
            who: Some(&bound.who),
            surface: surface.as_str(),
            request_id: Some(id.as_str()),
            extra: nearest.as_deref(),
            ..Entry::of(Event::SecretList)
        };
        self.count(granted);
        let kept = self
            .context
            .audit
            .keep(&entry)
            .map_err(|_| Code::AuditUnavailable)?;
        self.tell(bound, id, reason, &entry, None, &kept);
        if granted {
            Ok(())
        } else {
            Err(code_of(reason))
        }
    }

    fn decide(&self, bound: &Bound, wish: &Wish<'_>) -> Decision {
        if let Some(refusal) = self.standing(bound) {
            return Decision::refused(refusal);
        }
        let decision = bound.decide(wish.action, wish.name);
        let may_see = decision.allowed() || wish.version.is_none() && bound.may_see(wish.name);
        if !may_see {
            return decision;
        }
        if self.context.cache.is_sealed() {
            return decision.but(Refusal::Sealed);
        }
        if wish.version.is_some() || wish.action == Action::Watch {
            return decision;
        }
        decision.but(self.context.why_missing(wish.name, wish.supply))
    }

    /// Why this peer is not who it was, if so. Costs what the bot's selectors ask for.
    pub(super) fn standing(&self, bound: &Bound) -> Option<Refusal> {
        // Nobody watches for the exit of who comes by the other door.
        let untold = self.stall.may_miss_exit() || matches!(self.door, Door::Credentials(_));
        if untold && self.peer.has_exited() {
            return Some(Refusal::PeerGone);
        }
        if let Some(bot) = bound.who.bot()
            && self.context.detect.quarantine().holds(bot)
        {
            return Some(Refusal::Quarantined);
        }
        let looked_at = bound.changeable;
        match self
            .peer
            .standing(looked_at.cgroup, looked_at.exe || looked_at.exe_sha256)
        {
            Standing::Same => None,
            Standing::Gone => Some(Refusal::PeerGone),
            Standing::Changed => Some(Refusal::PeerChanged),
        }
    }

    fn keep(
        &self,
        bound: &Bound,
        id: &RequestId,
        wish: &Wish<'_>,
        decision: &Decision,
    ) -> Result<Receipt, Code> {
        let allowed = decision.allowed();
        let extra = with_nearest(bound, decision.reason(), wish.extra);
        let entry = Entry {
            event: wish.event,
            decision: Verdict::of(allowed),
            reason: Some(decision.reason().as_str()),
            rule: decision.rule().map(|rule| &**rule),
            secret: Some(wish.name.as_str()),
            version: wish.version.filter(|_| allowed).map(|version| &**version),
            who: Some(&bound.who),
            surface: wish.surface.as_str(),
            request_id: Some(id.as_str()),
            extra: extra.as_deref(),
        };
        self.count(allowed);
        let kept = self
            .context
            .audit
            .keep(&entry)
            .map_err(|_| Code::AuditUnavailable)?;
        let pace = self.tell(bound, id, decision.reason(), &entry, wish.outdated, &kept);
        // Each read of a honeytoken, or of an outdated version, is looked at.
        let again = allowed
            && wish.outdated.is_none()
            && !self.context.detect.is_honeytoken(wish.name.as_str());
        if again && let (None, Some(version)) = (wish.extra, wish.version) {
            bound.remember(wish, version, Phrase::of(&entry), pace);
        }
        Ok(kept)
    }

    /// Has detection look at what was recorded; the pace by which it may be repeated without.
    fn tell(
        &self,
        bound: &Bound,
        id: &RequestId,
        reason: Reason,
        entry: &Entry<'_>,
        outdated: Option<Duration>,
        kept: &Receipt,
    ) -> Option<Arc<Pace>> {
        let is_read = entry.event == Event::SecretRead && reason == Reason::Granted;
        self.context.detect.saw(&Seen {
            event: entry.event,
            name: entry.secret.unwrap_or_default(),
            version: entry.version,
            outdated,
            reason,
            who: &bound.who,
            uid: self.peer.uid(),
            program: bound.program.as_deref(),
            outlived: is_read.then(|| self.peer.outlived()).flatten(),
            surface: entry.surface,
            request_id: id.as_str(),
            seq: kept.seq(),
        })
    }

    pub(super) fn count(&self, allowed: bool) {
        let counts = &self.context.counts;
        (if allowed {
            &counts.allowed
        } else {
            &counts.denied
        })
        .fetch_add(1, Relaxed);
    }
}

impl Bound {
    /// The policy's word, remembered for the next time.
    fn decide(&self, action: Action, name: &Name) -> Decision {
        let mut memo = self.memo();
        if let Some(known) = memo.iter().find(|m| m.action == action && m.name == *name) {
            return known.decision.clone();
        }
        let decision = self.policy.decide(&self.found, action, name);
        if memo.len() >= MEMO {
            memo.clear();
        }
        memo.push(Memo {
            action,
            name: name.clone(),
            decision: decision.clone(),
            last: None,
        });
        decision
    }

    fn remember(
        &self,
        wish: &Wish<'_>,
        version: &Arc<str>,
        phrase: Phrase,
        pace: Option<Arc<Pace>>,
    ) {
        let mut memo = self.memo();
        let known = memo
            .iter_mut()
            .find(|m| m.name == *wish.name && m.action == wish.action);
        if let Some(known) = known {
            known.last = Some(Last {
                surface: wish.surface,
                event: wish.event,
                version: Arc::clone(version),
                phrase,
                pace,
            });
        }
    }

    fn memo(&self) -> MutexGuard<'_, Vec<Memo>> {
        self.memo.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the peer may read or list the name, and so may learn that it is absent.
    pub fn may_see(&self, name: &Name) -> bool {
        self.policy.may_see(&self.found, name)
    }

    /// The action that lets the peer see a name and its versions: to list it, or else to read it.
    pub fn action_to_see(&self, name: &Name) -> Action {
        if self.may_list(name) {
            Action::List
        } else {
            Action::Read
        }
    }

    /// Whether the peer may see the name in a list.
    pub fn may_list(&self, name: &Name) -> bool {
        self.policy
            .decide(&self.found, Action::List, name)
            .allowed()
    }
}

/// More members of a record, with what that of a peer without a bot says about the nearest one.
pub(super) fn with_nearest<'a>(
    bound: &Bound,
    reason: Reason,
    more: Option<&'a str>,
) -> Option<Cow<'a, str>> {
    let Some(nearest) = bound.nearest.as_ref().filter(|_| reason == Reason::NoBot) else {
        return more.map(Cow::Borrowed);
    };
    let nearest = extra(&[("nearest", nearest.as_str().into())]);
    Some(Cow::Owned(match more {
        Some(more) => format!("{nearest},{more}"),
        None => nearest,
    }))
}

pub(super) fn code_of(reason: Reason) -> Code {
    match reason {
        Reason::NotFound => Code::NotFound,
        Reason::Quarantined => Code::Quarantined,
        Reason::Sealed => Code::Sealed,
        Reason::Limited => Code::RateLimited,
        Reason::UpstreamUnavailable => Code::UpstreamUnavailable,
        Reason::AuditUnavailable => Code::AuditUnavailable,
        _ => Code::Denied,
    }
}
