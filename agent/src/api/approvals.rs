//! The operators' side of calls that wait for approval: what waits, and letting it go on.

use hyper::StatusCode;
use keyhatch_protocol::Code;
use serde_json::json;

use super::admin::{AdminServer, Operator};
use super::answer::{self, Answer};
use super::id::RequestId;
use crate::audit::{Entry, Event, Verdict, extra};

impl AdminServer {
    /// `GET /v1/approvals`
    pub(super) fn waiting(&self) -> Answer {
        let all = self.context.routes.load().approvals().all();
        let all: Vec<_> = all
            .iter()
            .map(|(id, call, waited)| {
                json!({
                    "id": id, "bot": call.bot, "route": call.route, "method": call.method, "path": call.path,
                    "query": call.query, "headers": call.headers, "body": call.body, "seconds": waited.as_secs(),
                })
            })
            .collect();
        answer::document(StatusCode::OK, &json!({ "waiting": all }))
    }

    /// `POST /v1/approvals/approve?id=ID`
    pub(super) fn approve(&self, operator: &Operator, id: RequestId, wanted: &str) -> Answer {
        let gone = || answer::problem(Code::NotFound, &id, Some("no such call waits"));
        let routes = self.context.routes.load_full();
        let Some(call) = routes.approvals().get(wanted) else {
            return gone();
        };
        let about = extra(&[
            ("approved", json!(wanted)),
            ("of", json!(call.bot)),
            ("route", json!(call.route)),
            ("method", json!(call.method)),
            ("path", json!(call.path)),
        ]);
        let entry = Entry {
            extra: Some(&about),
            ..operator.entry(Event::AdminApproved, Verdict::Allow, &id)
        };
        if self.context.audit.keep(&entry).is_err() {
            return answer::problem(Code::AuditUnavailable, &id, None);
        }
        if routes.approvals().approve(wanted, operator.actor.uid) {
            answer::document(StatusCode::OK, &json!({ "approved": wanted }))
        } else {
            gone()
        }
    }
}
