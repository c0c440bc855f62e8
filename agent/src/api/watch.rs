//! A stream of server-sent events (WHATWG HTML section 9.2) about some secrets, never with values.
//!
//! Nothing is queued: an event is made when the peer has room for it, from what differs then between what
//! it was told last and what is served. A watcher that never reads holds one event and is cut off after
//! its write deadline. The event id carries the versions told, so that a watch resumes across a restart.

use std::fmt::Write;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use keyhatch_protocol::{Action, Change, ChangeKind, Code, Name};
use tokio::sync::watch::Receiver;

use super::connection::{Connection, Wish};
use super::id::RequestId;
use super::limits::Watching;
use super::surface::Surface;
use crate::audit::Event;

/// How often a silent stream says that it lives.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// What an event id says of a secret that does not exist.
const ABSENT: &str = "-";

/// One watch.
pub struct Watch {
    next: Pin<Box<dyn Future<Output = (State, Option<Bytes>)> + Send>>,
}

/// What a watch knows between two events.
struct State {
    connection: Arc<Connection>,
    id: RequestId,
    names: Vec<Name>,
    /// The version each name was told with; `None` before its first event.
    told: Vec<Option<String>>,
    /// The version each name was recorded with when the watch began, until its first event.
    begun: Vec<Option<String>>,
    swaps: Receiver<u64>,
    ended: bool,
    _watching: Watching,
}

impl Watch {
    /// A watch that was allowed and recorded with the versions `begun`, absent where there is none; `last` is the id of the last event that the peer has seen.
    pub fn new(
        connection: Arc<Connection>,
        id: RequestId,
        names: Vec<Name>,
        begun: Vec<Option<String>>,
        last: Option<&str>,
        watching: Watching,
    ) -> Self {
        let told = resume(last, names.len());
        let swaps = connection.context.cache.subscribe();
        let begun = begun
            .into_iter()
            .map(|version| Some(version.unwrap_or_else(|| ABSENT.to_owned())));
        let begun = begun.collect();
        let state = State {
            connection,
            id,
            names,
            told,
            begun,
            swaps,
            ended: false,
            _watching: watching,
        };
        Self {
            next: Box::pin(state.next()),
        }
    }

    /// The next piece of the stream; `None` at its end.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        self.next.as_mut().poll(cx).map(|(state, piece)| {
            self.next = Box::pin(state.next());
            piece
        })
    }
}

/// The versions in an event id, where it is one of this watch.
fn resume(last: Option<&str>, names: usize) -> Vec<Option<String>> {
    let told: Vec<Option<String>> = last
        .unwrap_or_default()
        .split(',')
        .map(|v| Some(v.to_owned()).filter(|v| !v.is_empty()))
        .collect();
    if told.len() == names {
        told
    } else {
        vec![None; names]
    }
}

impl State {
    async fn next(mut self) -> (Self, Option<Bytes>) {
        if self.ended {
            return (self, None);
        }
        loop {
            self.swaps.mark_unchanged();
            if self.connection.context.health.draining.load(Relaxed) {
                return self.close("restarting");
            }
            let mut text = String::new();
            for at in 0..self.names.len() {
                if let Err(code) = self.tell(at, &mut text).await {
                    return self.close(code.as_str());
                }
            }
            if !text.is_empty() {
                return (self, Some(text.into()));
            }
            if tokio::time::timeout(KEEP_ALIVE, self.swaps.changed())
                .await
                .is_err()
            {
                return (self, Some(Bytes::from_static(b": still here\n\n")));
            }
        }
    }

    /// Adds the event of one name, if there is news. It is decided and recorded like the first.
    async fn tell(&mut self, at: usize, text: &mut String) -> Result<(), Code> {
        let bound = self.connection.bound().await;
        let context = &self.connection.context;
        if context.cache.is_sealed() {
            return Err(Code::Sealed);
        }
        let name = &self.names[at];
        let version = context
            .cache
            .snapshot()
            .get(name.as_str())
            .map(|e| Arc::clone(e.current.id()));
        let now = version.as_deref().unwrap_or(ABSENT);
        let told = self.told[at].as_deref();
        let news = told != Some(now);
        let allowed = self.connection.may_still(&bound, Action::Watch, name);
        // What the record of the beginning says is not recorded twice.
        let recorded = self.begun[at].take().as_deref() == Some(now);
        if !news && allowed {
            return Ok(());
        }
        let kind = match (told, &version) {
            (None, _) => ChangeKind::Current,
            (Some(_), Some(_)) => ChangeKind::Rotated,
            (Some(_), None) => ChangeKind::Removed,
        };
        let wish = Wish {
            surface: Surface::Native,
            event: Event::SecretWatch,
            action: Action::Watch,
            name,
            version: version.as_ref(),
            supply: None,
            outdated: None,
            extra: None,
        };
        if !(recorded && allowed) {
            self.connection.judge(&bound, &self.id, &wish)?;
        }
        let change = Change {
            name: name.clone(),
            version: version.as_deref().map(str::to_owned),
        };
        self.told[at] = Some(now.to_owned());
        self.write(kind.as_str(), &change, text);
        Ok(())
    }

    fn write(&self, event: &str, data: &impl serde::Serialize, text: &mut String) {
        let told: Vec<&str> = self
            .told
            .iter()
            .map(|v| v.as_deref().unwrap_or_default())
            .collect();
        let data = serde_json::to_string(data).unwrap_or_default();
        // Writing to a string does not fail.
        let _ = write!(
            text,
            "id: {}\nevent: {event}\ndata: {data}\n\n",
            told.join(",")
        );
    }

    /// Ends the stream with a last event that says why.
    fn close(mut self, reason: &str) -> (Self, Option<Bytes>) {
        self.ended = true;
        let mut text = String::new();
        self.write(
            "closed",
            &serde_json::json!({ "reason": reason }),
            &mut text,
        );
        (self, Some(text.into()))
    }
}
