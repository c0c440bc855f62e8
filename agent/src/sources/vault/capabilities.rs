//! What this agent may read, asked for many paths at once: a list goes on telling the versions of secrets that a
//! policy has withdrawn since.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use keyhatch_protocol::Name;
use serde::Serialize;
use zeroize::Zeroizing;

use super::Inner;
use super::answer;
use super::names::Place;
use super::server::Ask;
use crate::http::Bound;
use crate::sources::upstream::Trouble;

/// How many paths are asked for at once.
const AT_ONCE: usize = 500;
/// The answer to that is never larger.
const LARGEST: usize = 1024 * 1024;

#[derive(Serialize)]
struct Paths {
    paths: Vec<String>,
}

impl Inner {
    /// Logs in if need be, and hears from a server.
    pub(super) async fn reach(&self) -> Result<(), Trouble> {
        self.session.token().await?;
        let ask = Ask::get("sys/seal-status", "", Bound::Plain(LARGEST));
        self.session.ask_anyone(&ask, self.deadline()).await
    }

    /// Whether each of these may be read. Without `update` on `sys/capabilities-self` all are taken to be.
    pub(super) async fn readable(&self, names: &[Name]) -> Result<Vec<bool>, Trouble> {
        let mut all = Vec::with_capacity(names.len());
        for names in names.chunks(AT_ONCE) {
            let told = if self.tells_capabilities.load(Ordering::Relaxed) {
                self.timed(self.capabilities(names)).await?
            } else {
                None
            };
            all.extend(told.unwrap_or_else(|| vec![true; names.len()]));
        }
        Ok(all)
    }

    async fn capabilities(&self, names: &[Name]) -> Result<Option<Vec<bool>>, Trouble> {
        let mut paths = Vec::with_capacity(names.len());
        for name in names {
            paths.push(self.path_of(name).await?);
        }
        let body = serde_json::to_vec(&Paths {
            paths: paths.clone(),
        });
        let body = body.map_err(|_| Trouble::unusable("the paths cannot be written as JSON"))?;
        let bound = Bound::Plain(LARGEST);
        let ask = Ask::post("sys/capabilities-self", Zeroizing::new(body), bound);
        let (reply, _) = self.session.ask(&ask, self.deadline()).await?;
        if !reply.status.is_success() {
            tracing::warn!(
                "the policy lacks update on sys/capabilities-self: a secret that may no longer be read is served \
                 until its version changes"
            );
            self.tells_capabilities.store(false, Ordering::Relaxed);
            return Ok(None);
        }
        let told: HashMap<String, Vec<String>> = answer::data(&reply.body)
            .ok_or_else(|| Trouble::unusable("capabilities are not what Vault says"))?;
        let may_read = |path: &String| {
            let told = told.get(path);
            // What is not told of is asked for itself.
            told.is_some_and(|can| can.iter().any(|can| can == "read" || can == "root"))
        };
        Ok(Some(paths.iter().map(may_read).collect()))
    }

    /// What is read for a name.
    async fn path_of(&self, name: &Name) -> Result<String, Trouble> {
        Ok(match self.names.place(name.as_str()) {
            Some(Place::Kv(mount, path)) => {
                let between = if self.mount(mount).await?.versioned {
                    "/data/"
                } else {
                    "/"
                };
                format!("{}{between}{path}", self.names.mount(mount))
            }
            Some(Place::Leased(path)) => path.to_owned(),
            None => name.to_string(),
        })
    }
}
