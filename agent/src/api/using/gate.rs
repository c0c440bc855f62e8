//! What a call passes after the policy allowed it and before anything is used: conditions on its body, and an operator's
//! approval where the route says so.

use std::sync::Arc;

use hyper::Method;
use hyper::body::Incoming;
use keyhatch_protocol::Code;
use serde_json::json;

use super::Asked;
use super::refused::Refused;
use super::used::decide;
use crate::api::connection::{Bound, Connection};
use crate::api::id::RequestId;
use crate::api::io::Using;
use crate::api::surface::Surface;
use crate::audit::{self, Event, extra};
use crate::routes::{Failure, Limit, Outgoing, Progress, Route, Turn, Upload};

/// A body, and what was found about the call.
pub struct Gate {
    body: Body,
    /// For the decision.
    pub found: Found,
}

/// What was found about a call before it is decided for good.
#[derive(Default)]
pub struct Found {
    /// The route, as it was then.
    pub route: Option<Arc<Route>>,
    /// The turn that the call has taken already.
    pub turn: Option<Turn>,
    /// What stands against the call.
    pub barred: Option<Limit>,
    /// The user who approved of it.
    pub approved_by: Option<u32>,
}

enum Body {
    Untouched(Incoming),
    Taken(Result<(Upload, Arc<Progress>), Failure>),
}

impl Gate {
    /// Takes a call through.
    ///
    /// # Errors
    /// Where no record can be kept.
    pub async fn pass(
        connection: &Arc<Connection>,
        id: &RequestId,
        asked: &Asked,
        body: Incoming,
    ) -> Result<Self, Refused> {
        let mut gate = Self {
            body: Body::Untouched(body),
            found: Found::default(),
        };
        let bound = connection.bound().await;
        let is_allowed =
            decide(connection, &bound, asked).allowed() && !connection.context.cache.is_sealed();
        let routes = connection.context.routes.load_full();
        let Some(route) = routes.get(&asked.route).filter(|_| is_allowed) else {
            return Ok(gate);
        };
        gate.found.route = Some(Arc::clone(route));
        if route.looks_at_bodies() {
            let bot = bound.who.bot().unwrap_or_default();
            gate.meet(route, asked, bot).await;
        }
        let call = asked.call();
        if gate.found.barred.is_none() && route.asks_operator(call.method, call.path) {
            gate.ask(connection, &bound, route, id, asked).await?;
        }
        Ok(gate)
    }

    /// The body, to be sent.
    pub async fn upload(
        self,
        route: &Route,
        outgoing: &Outgoing,
        bot: &str,
    ) -> Result<(Upload, Arc<Progress>), Failure> {
        match self.body {
            Body::Untouched(body) => route.take(outgoing, bot, body).await,
            Body::Taken(taken) => taken,
        }
    }

    /// Reads the body, which has conditions to meet. That is work, so it counts as a request whatever comes of it.
    async fn meet(&mut self, route: &Arc<Route>, asked: &Asked, bot: &str) {
        match route.turn(bot) {
            Ok(turn) => self.found.turn = Some(turn),
            Err(limit) => {
                self.found.barred = Some(limit);
                return;
            }
        }
        self.take(|body| route.take_whole(bot, body)).await;
        let Body::Taken(Ok((Upload::Whole(body), _))) = &self.body else {
            return;
        };
        let outgoing = &asked.outgoing;
        let has_none = [Method::GET, Method::HEAD, Method::OPTIONS, Method::DELETE];
        if body.is_empty() && has_none.contains(&outgoing.method) {
            return;
        }
        let met = route.check_body(&outgoing.headers, body.clone()).await;
        if let Err(unmet) = met {
            self.found.barred = Some(Limit::never("require", unmet.to_string()));
        }
    }

    /// Waits for an operator.
    async fn ask(
        &mut self,
        connection: &Arc<Connection>,
        bound: &Bound,
        route: &Route,
        id: &RequestId,
        asked: &Asked,
    ) -> Result<(), Refused> {
        // What is approved is what is shown, as far as it is small.
        let bot = bound.who.bot().unwrap_or_default();
        self.take(|body| route.take(&asked.outgoing, bot, body))
            .await;
        let body = match &self.body {
            Body::Taken(Ok((upload, _))) => upload.whole(),
            // It is refused for that.
            _ => return Ok(()),
        };
        let shown = route.to_approve(bot, &asked.outgoing, body);
        let approvals = Arc::clone(connection.context.routes.load().approvals());
        let Some(held) = approvals.hold(id.as_str(), shown) else {
            self.found.barred = Some(Limit::waits());
            return Ok(());
        };
        record(connection, bound, id, asked)?;
        tracing::info!(
            id = id.as_str(),
            route = route.name(),
            "a call waits for keyhatchd approve"
        );
        let patience = route.patience();
        // A bot that leaves is seen to.
        let _using = Using::of(&connection.stall);
        self.found.approved_by = held.answer(patience).await;
        if self.found.approved_by.is_none() {
            let why = format!("no operator approved of it within {} s", patience.as_secs());
            self.found.barred = Some(Limit::never("approve", why));
        }
        Ok(())
    }

    async fn take<F>(&mut self, read: impl FnOnce(Incoming) -> F)
    where
        F: Future<Output = Result<(Upload, Arc<Progress>), Failure>>,
    {
        // In its place stands what a body is that was cut, should this wait be given up.
        let body = std::mem::replace(&mut self.body, Body::Taken(Err(Failure::BodyCut)));
        self.body = match body {
            Body::Untouched(body) => Body::Taken(read(body).await),
            taken @ Body::Taken(_) => taken,
        };
    }
}

impl Found {
    /// The turn of the call, or what stands against it.
    pub fn turn(&mut self, route: &Arc<Route>, bot: &str) -> Result<Turn, Limit> {
        if let Some(limit) = self.barred.take() {
            return Err(limit);
        }
        if !self
            .route
            .as_ref()
            .is_some_and(|judged| judged.is_same(route))
        {
            return Err(Limit::changed());
        }
        match self.turn.take() {
            Some(turn) => Ok(turn),
            None => route.turn(bot),
        }
    }
}

/// Records that a call waits.
fn record(
    connection: &Connection,
    bound: &Bound,
    id: &RequestId,
    asked: &Asked,
) -> Result<(), Refused> {
    let call = asked.call();
    let members = extra(&[
        ("route", json!(call.route)),
        ("method", json!(call.method)),
        ("path", json!(call.path)),
        ("waits_for", json!("approve")),
    ]);
    let entry = audit::Entry {
        who: Some(&bound.who),
        surface: Surface::Route.as_str(),
        request_id: Some(id.as_str()),
        extra: Some(&members),
        ..audit::Entry::of(Event::SecretUse)
    };
    let kept = connection.context.audit.keep(&entry);
    kept.map(drop)
        .map_err(|_| Refused::because(Code::AuditUnavailable))
}
