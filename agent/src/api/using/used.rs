//! One use of a secret: decided and recorded before the request leaves, recorded again when it has ended.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use hyper::StatusCode;
use keyhatch_protocol::{Code, Name};

use super::Asked;
use super::gate::Found;
use super::refused::Refused;
use crate::api::connection::{Bound, Connection, code_of, with_nearest};
use crate::api::id::RequestId;
use crate::api::io::Using;
use crate::api::supply;
use crate::api::surface::Surface;
use crate::audit::{self, Event, Members, Verdict};
use crate::cache::{Entry, Freshness, Permit, Version};
use crate::policy::{Decision, Refusal};
use crate::routes::{
    Answered, Credential, Failure, Granted, Limit, Outgoing, Progress, Route, Summary, Turn,
};
use crate::sources::engine::Supply;

/// A use that was allowed and recorded. Its end is recorded once, however it comes.
pub struct Used {
    /// The route.
    pub route: Arc<Route>,
    /// How far the bot's body is.
    pub progress: Option<Arc<Progress>>,
    connection: Arc<Connection>,
    bound: Arc<Bound>,
    id: RequestId,
    entry: Arc<Entry>,
    version: Arc<Version>,
    permit: Permit,
    started: Instant,
    status: Option<StatusCode>,
    remote: Option<Arc<str>>,
    is_ended: bool,
    turn: Turn,
    _using: Using,
}

/// What a decision is made about.
struct Facts<'a> {
    bound: &'a Arc<Bound>,
    asked: &'a Asked,
    secret: Option<Name>,
    supply: Option<Supply>,
    found: Found,
}

impl Used {
    /// Decides a call and keeps the record of it, by the policy and by what was found before.
    pub async fn begin(
        connection: &Arc<Connection>,
        id: &RequestId,
        asked: &Asked,
        found: Found,
    ) -> Result<Self, Refused> {
        let bound = connection.bound().await;
        let pending = bound
            .policy
            .secret_of(&asked.route)
            .filter(|_| decide(connection, &bound, asked).allowed())
            .and_then(|secret| supply::to_use(connection, secret));
        let supply = match pending {
            Some(pending) => Some(pending.wait().await),
            None => None,
        };
        let bound = connection.bound().await;
        let mut facts = Facts {
            secret: bound.policy.secret_of(&asked.route).cloned(),
            bound: &bound,
            asked,
            supply,
            found,
        };
        facts.judge(connection, id)
    }

    /// The secret, as the upstream wants it for this request.
    pub async fn credential(
        &self,
        outgoing: &Outgoing,
        body: Option<&[u8]>,
    ) -> Result<Arc<Credential>, Failure> {
        let granted = Granted {
            permit: &self.permit,
            arena: self.connection.context.cache.arena(),
            entry: &self.entry,
            version: &self.version,
        };
        self.route.credential(&granted, outgoing, body).await
    }

    /// The bot whose use it is.
    pub fn bot(&self) -> &str {
        self.bound.who.bot().unwrap_or_default()
    }

    /// Whether another version is served by now.
    pub fn is_rotated(&self) -> bool {
        let snapshot = self.connection.context.cache.snapshot();
        let now = snapshot.get(self.entry.name.as_str());
        now.is_some_and(|entry| entry.current.id() != self.version.id())
    }

    /// Notes who answers, and how.
    pub fn answers(&mut self, answered: &Answered) {
        self.status = Some(answered.head.status);
        self.remote = Some(Arc::clone(&answered.remote));
    }

    /// Records that there is no answer.
    pub fn failed(&mut self, failure: &Failure) -> Refused {
        if let Failure::Address(address, _) = failure {
            self.remote = Some(address.to_string().into());
        }
        self.ends(None, Some(&failure.to_string()));
        Refused::from(failure)
    }

    /// Records the end: with the answer's `summary`, or with a note why there is none.
    pub fn ends(&mut self, summary: Option<&Summary>, note: Option<&str>) {
        if std::mem::replace(&mut self.is_ended, true) {
            return;
        }
        let summary = summary.copied().unwrap_or_default();
        let sent = self
            .progress
            .as_ref()
            .map_or(0, |progress| progress.bytes());
        let counters = self.route.counters();
        counters.sent.fetch_add(sent, Relaxed);
        counters.received.fetch_add(summary.received, Relaxed);
        if !summary.complete {
            counters.failed.fetch_add(1, Relaxed);
        }
        let mut members = Members::default();
        members
            .add("route", self.route.name())
            .add("status", self.status.map(|status| status.as_u16()))
            .add("sent", sent)
            .add("received", summary.received)
            .add("ms", self.started.elapsed().as_millis())
            .add("upstream", self.remote.as_deref())
            .add("complete", summary.complete);
        // A WebSocket says nothing of what it costs, nor does an answer that the bot never saw.
        let has_answer = |status| status != StatusCode::SWITCHING_PROTOCOLS && note.is_none();
        if self.status.is_some_and(has_answer) {
            self.turn.charge(summary.cost, summary.complete);
        }
        if let Some(cost) = summary.cost {
            members.add("cost", cost);
        }
        if summary.masked > 0 {
            members.add("masked", summary.masked);
        }
        if let Some(note) = note {
            members.add("note", note);
        }
        self.keep(Event::SecretUsed, members.as_str());
        if summary.masked > 0 {
            counters.masked.fetch_add(1, Relaxed);
            self.keep(Event::AlertMasked, members.as_str());
        }
    }

    fn keep(&self, event: Event, members: &str) {
        let entry = audit::Entry {
            secret: Some(self.entry.name.as_str()),
            version: Some(self.version.id()),
            who: Some(&self.bound.who),
            surface: Surface::Route.as_str(),
            request_id: Some(self.id.as_str()),
            extra: Some(members),
            ..audit::Entry::of(event)
        };
        // What has happened has; the log itself says when it cannot be written.
        let _ = self.connection.context.audit.keep(&entry);
    }
}

impl Drop for Used {
    fn drop(&mut self) {
        self.ends(None, Some("the bot left before there was an answer"));
    }
}

impl Facts<'_> {
    fn judge(&mut self, connection: &Arc<Connection>, id: &RequestId) -> Result<Used, Refused> {
        let context = &connection.context;
        let mut decision = decide(connection, self.bound, self.asked);
        let snapshot = context.cache.snapshot();
        let held = self
            .secret
            .as_ref()
            .and_then(|name| snapshot.get(name.as_str()));
        let entry = held.filter(|entry| entry.freshness() != Freshness::Withheld);
        if decision.allowed()
            && let Some(refusal) = self.why_not(connection, held.is_some(), entry.is_some())
        {
            decision = decision.but(refusal);
        }
        let routes = context.routes.load();
        let route = routes.get(&self.asked.route).filter(|_| decision.allowed());
        let bot = self.bound.who.bot().unwrap_or_default();
        let turn = route.map(|route| self.found.turn(route, bot));
        let limit = turn.as_ref().and_then(|turn| turn.as_ref().err());
        if limit.is_some() {
            decision = decision.but(Refusal::Limited);
        }
        let entry = entry.filter(|_| decision.allowed());
        let permit = self.keep(
            connection,
            id,
            &decision,
            entry.map(|entry| &*entry.current),
            limit,
        )?;
        let (Some(route), Some(Ok(turn)), Some(entry)) = (route, turn, entry) else {
            return Err(Refused::because(Code::NotFound));
        };
        Ok(Used {
            route: Arc::clone(route),
            progress: None,
            connection: Arc::clone(connection),
            bound: Arc::clone(self.bound),
            id: *id,
            version: Arc::clone(&entry.current),
            entry: Arc::clone(entry),
            permit,
            started: Instant::now(),
            status: None,
            remote: None,
            is_ended: false,
            turn,
            _using: Using::of(&connection.stall),
        })
    }

    /// What stands against a use that the policy allows.
    fn why_not(&self, connection: &Connection, is_held: bool, is_served: bool) -> Option<Refusal> {
        if connection.context.cache.is_sealed() {
            return Some(Refusal::Sealed);
        }
        let name = self.secret.as_ref().filter(|_| !is_served)?;
        // What is held but too old is as good as not answered for.
        let supply = self.supply.or(is_held.then_some(Supply::Unavailable));
        Some(connection.context.why_missing(name, supply))
    }

    /// Keeps the record, and says what the bot is told where it is refused.
    fn keep(
        &self,
        connection: &Connection,
        id: &RequestId,
        decision: &Decision,
        version: Option<&Version>,
        limit: Option<&Limit>,
    ) -> Result<Permit, Refused> {
        let allowed = decision.allowed();
        let call = self.asked.call();
        let mut members = Members::default();
        members
            .add("route", call.route)
            .add("method", call.method)
            .add("path", call.path);
        if let Some(limit) = limit {
            members.add("limit", limit.name);
        }
        if let Some(uid) = self.found.approved_by {
            members.add("approved_by", uid);
        }
        let members = with_nearest(self.bound, decision.reason(), Some(members.as_str()));
        let entry = audit::Entry {
            decision: Verdict::of(allowed),
            reason: Some(decision.reason().as_str()),
            rule: decision.rule().map(|rule| &**rule),
            secret: self.secret.as_ref().map(Name::as_str),
            version: version.map(|version| &**version.id()),
            who: Some(&self.bound.who),
            surface: Surface::Route.as_str(),
            request_id: Some(id.as_str()),
            extra: members.as_deref(),
            ..audit::Entry::of(Event::SecretUse)
        };
        connection.count(allowed);
        let receipt = connection
            .context
            .audit
            .keep(&entry)
            .map_err(|_| Refused::because(Code::AuditUnavailable))?;
        Permit::new(decision, receipt).ok_or_else(|| self.refused(decision, limit))
    }

    /// A bot that may use the route learns what of its call is not allowed; any other learns nothing.
    fn refused(&self, decision: &Decision, limit: Option<&Limit>) -> Refused {
        let call = self.asked.call();
        let code = match limit {
            // To come back is of no use.
            Some(limit) if limit.retry_after.is_none() => Code::Denied,
            _ => code_of(decision.reason()),
        };
        let knows = self.bound.policy.may_use(&self.bound.found, call.route);
        let detail = match (code, limit) {
            (_, Some(limit)) => Some(limit.detail.clone()),
            (Code::Denied, _) if knows => Some(format!(
                "the route {} does not allow {} {}",
                call.route, call.method, call.path
            )),
            (Code::NotFound, _) if self.secret.is_none() => Some("there is no such route".into()),
            (Code::NotFound, _) => Some("the secret of this route does not exist".into()),
            _ => None,
        };
        Refused {
            code,
            detail,
            retry_after: limit.and_then(|limit| limit.retry_after),
        }
    }
}

/// The policy's word on a call, for the process that connected.
pub fn decide(connection: &Connection, bound: &Bound, asked: &Asked) -> Decision {
    match connection.standing(bound) {
        Some(refusal) => Decision::refused(refusal),
        None => bound.policy.decide_use(&bound.found, &asked.call()),
    }
}
