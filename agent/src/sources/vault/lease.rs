//! Paths of engines that lend what they answer: database, cloud and other credentials.

use std::sync::Arc;
use std::time::Duration;

use keyhatch_protocol::Name;
use serde::Serialize;
use zeroize::Zeroizing;

use super::Inner;
use super::answer::{self, Ends, Envelope};
use super::kv::{answered, no, not_a_value};
use super::server::{Ask, Reply};
use super::session::Token;
use crate::http::Bound;
use crate::sources::upstream::{Answer, Lease, Trouble};
use crate::sys::arena::{Block, Full};

/// As for any value.
const LARGEST: usize = 1024 * 1024;

#[derive(Serialize)]
struct LeaseId<'a> {
    lease_id: &'a str,
}

impl Inner {
    /// Asks for a value on loan.
    pub(super) async fn borrow(&self, name: &Name, path: &str) -> Result<Answer, Trouble> {
        let ask = Ask::get(path, "", Bound::Secret(Arc::clone(&self.arena), LARGEST));
        let (reply, token) = self.session.ask(&ask, self.deadline()).await?;
        if let Some(no) = no(&reply)? {
            return Ok(no);
        }
        let envelope: Envelope<'_> = answer::parse(&reply.body).ok_or_else(not_a_value)?;
        let data = envelope.data.ok_or_else(not_a_value)?;
        // Each loan is a value of its own, the same credentials lent twice included.
        let unique = match envelope.lease_id {
            "" => data.get(),
            id => id,
        };
        let version = self.version_key.of(name.as_str(), unique.as_bytes());
        let lease = self.lease(&envelope, &token)?;
        let seen = self.first_sight(name, &version);
        match self.found(name, data, version, seen)? {
            Answer::Found(mut fetched) => {
                fetched.lease = lease;
                Ok(Answer::Found(fetched))
            }
            absent @ Answer::Absent(_) => Ok(absent),
        }
    }

    /// Extends a loan. One of an earlier login cannot be: it ends with the token that it was made with.
    pub(super) async fn renew(&self, lease: &Lease) -> Result<Option<Duration>, Trouble> {
        let Some((login, id)) = parts(&lease.id) else {
            return Ok(None);
        };
        if self.session.token().await?.login != login {
            return Ok(None);
        }
        let (reply, token) = self.post("sys/leases/renew", id).await?;
        if !reply.status.is_success() || token.login != login {
            return Ok(None);
        }
        let envelope: Envelope<'_> = answer::parse(&reply.body)
            .ok_or_else(|| Trouble::unusable("the answer to a renewal is not what Vault says"))?;
        let time = Duration::from_secs(envelope.lease_duration);
        Ok((!time.is_zero()).then(|| bounded(time, &token)))
    }

    /// Ends a loan.
    pub(super) async fn revoke(&self, lease: &Lease) -> Result<(), Trouble> {
        let Some((_, id)) = parts(&lease.id) else {
            return Ok(());
        };
        let (reply, _) = self.post("sys/leases/revoke", id).await?;
        match reply.status.as_u16() {
            // 400 and 404: there is no such lease any more.
            200..300 | 400 | 404 => Ok(()),
            403 => Err(Trouble::unusable(
                "a lease is left to its end: the policy lacks update on sys/leases/revoke",
            )),
            other => Err(answered(other)),
        }
    }

    async fn post(&self, path: &str, lease_id: &str) -> Result<(Reply, Arc<Token>), Trouble> {
        let body = serde_json::to_vec(&LeaseId { lease_id })
            .map_err(|_| Trouble::unusable("a lease id cannot be written as JSON"))?;
        let bound = Bound::Secret(Arc::clone(&self.arena), LARGEST);
        let ask = Ask::post(path, Zeroizing::new(body), bound);
        self.session.ask(&ask, self.deadline()).await
    }

    fn lease(&self, envelope: &Envelope<'_>, token: &Token) -> Result<Option<Lease>, Trouble> {
        let (time, renewable) = if envelope.lease_id.is_empty() {
            let ends: Option<Ends> = envelope
                .data
                .and_then(|data| answer::parse(data.get().as_bytes()));
            match ends.and_then(|ends| ends.time()) {
                Some(time) => (time, false),
                None => return Ok(None),
            }
        } else {
            let time = Duration::from_secs(envelope.lease_duration.max(1));
            (bounded(time, token), envelope.renewable)
        };
        let id = self.lease_id(envelope.lease_id, token)?;
        Ok(Some(Lease {
            id,
            time,
            renewable,
        }))
    }

    /// The lease id behind the login that it ends with; empty where there is no lease.
    fn lease_id(&self, id: &str, token: &Token) -> Result<Block, Trouble> {
        let login = format!("{} ", token.login);
        let parts: &[&[u8]] = match id {
            "" => &[],
            id => &[login.as_bytes(), id.as_bytes()],
        };
        let full = |full: Full| Trouble::unusable(full.to_string());
        let mut draft = self
            .arena
            .draft(parts.iter().map(|part| part.len()).sum())
            .map_err(full)?;
        let mut at = 0;
        for part in parts {
            draft[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        Ok(draft.freeze())
    }
}

/// A lease ends with the token that it was made with.
fn bounded(time: Duration, token: &Token) -> Duration {
    token.left().map_or(time, |left| time.min(left))
}

fn parts(id: &[u8]) -> Option<(u64, &str)> {
    let (login, id) = std::str::from_utf8(id).ok()?.split_once(' ')?;
    Some((login.parse().ok()?, id))
}
