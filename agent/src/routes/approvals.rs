//! Calls that wait until an operator approves of them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hyper::header::HeaderName;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::exchange::Outgoing;
use super::{Route, headers};
use crate::config::Inject;

/// How many calls of one bot wait at most, and how many in all.
const OF_BOT: usize = 16;
const IN_ALL: usize = 256;

/// What waits.
#[derive(Default)]
pub struct Approvals(Mutex<BTreeMap<String, Waiting>>);

/// A call, as an operator is shown it.
#[derive(Clone, Debug)]
pub struct ToApprove {
    /// Who asks.
    pub bot: String,
    /// The route.
    pub route: String,
    /// The method.
    pub method: String,
    /// The path, decoded.
    pub path: String,
    /// The query, as it was written.
    pub query: Option<String>,
    /// The bot's headers that go on, by name.
    pub headers: Vec<(String, String)>,
    /// The body, where it is here already.
    pub body: Option<String>,
}

impl Route {
    /// A call of a bot's, with `body` where it is here.
    #[must_use]
    pub fn to_approve(&self, bot: &str, outgoing: &Outgoing, body: Option<&[u8]>) -> ToApprove {
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        let injected: Vec<HeaderName> = self
            .config
            .inject
            .iter()
            .flat_map(Inject::headers)
            .collect();
        let headers = headers::to_upstream(&outgoing.headers, &injected);
        let headers = headers.iter();
        ToApprove {
            bot: bot.to_owned(),
            route: self.name().to_owned(),
            method: outgoing.method.to_string(),
            path: outgoing.target.path.clone(),
            query: outgoing.target.query.clone(),
            headers: headers
                .map(|(name, value)| (name.to_string(), text(value.as_bytes())))
                .collect(),
            body: body.map(text),
        }
    }
}

struct Waiting {
    call: ToApprove,
    since: Instant,
    answer: oneshot::Sender<u32>,
}

/// A call that waits, for as long as this is held.
pub struct Held {
    board: Arc<Approvals>,
    id: String,
    answer: oneshot::Receiver<u32>,
}

impl Approvals {
    /// Has a call wait; `None` where too many do.
    #[must_use]
    pub fn hold(self: &Arc<Self>, id: &str, call: ToApprove) -> Option<Held> {
        let mut waiting = self.waiting();
        let of_bot = waiting.values().filter(|other| other.call.bot == call.bot);
        if waiting.len() >= IN_ALL || of_bot.count() >= OF_BOT {
            return None;
        }
        let (answer, answered) = oneshot::channel();
        let since = Instant::now();
        let one = Waiting {
            call,
            since,
            answer,
        };
        waiting.insert(id.to_owned(), one);
        Some(Held {
            board: Arc::clone(self),
            id: id.to_owned(),
            answer: answered,
        })
    }

    /// All that wait: their ids, what they are, and for how long they have waited.
    #[must_use]
    pub fn all(&self) -> Vec<(String, ToApprove, Duration)> {
        let waiting = self.waiting();
        let one =
            |(id, one): (&String, &Waiting)| (id.clone(), one.call.clone(), one.since.elapsed());
        waiting.iter().map(one).collect()
    }

    /// What waits under that id.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<ToApprove> {
        self.waiting().get(id).map(|one| one.call.clone())
    }

    /// Lets a call go on, in the name of the user `by`; whether it still waited.
    #[must_use]
    pub fn approve(&self, id: &str, by: u32) -> bool {
        let one = self.waiting().remove(id);
        one.is_some_and(|one| one.answer.send(by).is_ok())
    }

    fn waiting(&self) -> MutexGuard<'_, BTreeMap<String, Waiting>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    /// Who approved; `None` where nobody did in time.
    pub async fn answer(mut self, patience: Duration) -> Option<u32> {
        timeout(patience, &mut self.answer).await.ok()?.ok()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.board.waiting().remove(&self.id);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn call(bot: &str) -> ToApprove {
        ToApprove {
            bot: bot.into(),
            route: "r".into(),
            method: "POST".into(),
            path: "/".into(),
            query: None,
            headers: Vec::new(),
            body: None,
        }
    }

    #[tokio::test]
    async fn a_call_waits_for_its_own_approval_and_leaves_no_trace() {
        let board = Arc::new(Approvals::default());
        let (one, two) = (
            board.hold("1", call("b")).unwrap(),
            board.hold("2", call("b")).unwrap(),
        );
        assert!(board.approve("2", 7) && !board.approve("2", 7) && !board.approve("3", 7));
        assert_eq!(two.answer(Duration::from_secs(60)).await, Some(7));
        assert_eq!(one.answer(Duration::ZERO).await, None);
        assert!(board.all().is_empty() && !board.approve("1", 7));
    }

    #[test]
    fn no_bot_fills_the_board() {
        let board = Arc::new(Approvals::default());
        let held: Vec<_> = (0..20)
            .map(|n| board.hold(&n.to_string(), call("b")))
            .collect();
        assert_eq!(held.iter().flatten().count(), OF_BOT);
        assert!(board.hold("x", call("other")).is_some());
        drop(held);
        assert!(board.hold("y", call("b")).is_some());
    }
}
