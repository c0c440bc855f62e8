//! The operators' side of the quarantine: who is in it, and letting a bot out.

use hyper::StatusCode;
use serde_json::json;

use keyhatch_protocol::Code;

use super::admin::AdminServer;
use super::answer::{self, Answer};
use super::id::RequestId;

impl AdminServer {
    /// `GET /v1/quarantine`
    pub(super) fn quarantined(&self) -> Answer {
        let bots = self.context.detect.quarantine().all();
        let bots: Vec<_> = bots
            .iter()
            .map(|(bot, held)| json!({ "bot": bot, "since": held.since, "rule": held.rule, "seq": held.seq }))
            .collect();
        answer::document(StatusCode::OK, &json!({ "quarantined": bots }))
    }

    /// `POST /v1/quarantine/release?bot=BOT`
    pub(super) fn release(&self, id: RequestId, bot: &str) -> Answer {
        match self.context.detect.quarantine().release(bot) {
            Ok(true) => {
                self.context.cache.wake();
                answer::document(StatusCode::OK, &json!({ "released": bot }))
            }
            Ok(false) => answer::problem(Code::NotFound, &id, Some("no such bot is quarantined")),
            Err(error) => {
                let why = format!("it stays in quarantine, since that cannot be written: {error}");
                answer::problem(Code::Internal, &id, Some(&why))
            }
        }
    }
}
