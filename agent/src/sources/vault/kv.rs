//! Secrets of KV mounts, version 1 and 2.

use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use hyper::StatusCode;
use keyhatch_protocol::{MAX_VALUE, Name};
use serde_json::value::RawValue;
use tokio::time::Instant;

use super::answer::{self, Envelope, Metadata, MountInfo, Versioned};
use super::server::{Ask, Reply};
use super::{Inner, held};
use crate::http::Bound;
use crate::sources::upstream::{Answer, Fetched, Standing, Trouble};

/// A value's answer is never larger: the value itself in the widest JSON, and its metadata.
const LARGEST: usize = 1024 * 1024;
/// What is known of a mount is looked at again when a path is not found after this time.
const KNOWN: Duration = Duration::from_secs(60);

/// What is known of a mount.
#[derive(Clone, Copy, Debug)]
pub struct Mount {
    /// Whether it is KV version 2.
    pub versioned: bool,
    /// Whether its lists tell versions; not known before the first one.
    pub detailed: Option<bool>,
    /// `None` where it is to be looked at again.
    at: Option<Instant>,
}

impl Inner {
    /// The current value.
    pub(super) async fn kv(
        &self,
        name: &Name,
        mount: usize,
        path: &str,
    ) -> Result<Answer, Trouble> {
        loop {
            let known = self.mount(mount).await?;
            let reply = self.read_kv(known, mount, path, "").await?;
            // The mount may have become another one.
            if reply.status == StatusCode::NOT_FOUND && self.outdated(mount, known) {
                continue;
            }
            let answer = if known.versioned {
                self.versioned(name, &reply)
            } else {
                self.unversioned(name, &reply)
            };
            if let Ok(Answer::Absent(_)) = answer {
                self.sights().remove(name);
            }
            return answer;
        }
    }

    /// How a secret stands, without its value.
    pub(super) async fn kv_standing(&self, mount: usize, path: &str) -> Result<Standing, Trouble> {
        if !self.mount(mount).await?.versioned {
            return Ok(Standing::Unknown);
        }
        let reply = self.metadata(mount, path).await?;
        match reply.status.as_u16() {
            200 => {
                let metadata: Metadata<'_> = answer::data(&reply.body).ok_or_else(not_metadata)?;
                Ok(metadata.standing())
            }
            // A policy may allow the value and not its metadata.
            403 => Ok(Standing::Unknown),
            404 => Ok(Standing::Absent),
            other => Err(answered(other)),
        }
    }

    /// The newest value before the current one that is still there.
    pub(super) async fn kv_previous(
        &self,
        name: &Name,
        mount: usize,
        path: &str,
    ) -> Result<Answer, Trouble> {
        let known = self.mount(mount).await?;
        if !known.versioned {
            return Ok(Answer::Absent("KV version 1 keeps one version only".into()));
        }
        let reply = self.metadata(mount, path).await?;
        match reply.status.as_u16() {
            200 => {}
            403 => return Ok(Answer::Absent("permission denied for the metadata".into())),
            404 => return Ok(Answer::Absent("not there".into())),
            other => return Err(answered(other)),
        }
        let metadata: Metadata<'_> = answer::data(&reply.body).ok_or_else(not_metadata)?;
        let Some(number) = metadata.previous() else {
            return Ok(Answer::Absent(
                "no version before the current one is left".into(),
            ));
        };
        let reply = self
            .read_kv(known, mount, path, &format!("?version={number}"))
            .await?;
        self.versioned(name, &reply)
    }

    /// What is known of a mount, asked for at first use.
    pub(super) async fn mount(&self, mount: usize) -> Result<Mount, Trouble> {
        let before = self.mounts().get(&mount).copied();
        if let Some(known) = before.filter(|known| known.at.is_some()) {
            return Ok(known);
        }
        let path = self.names.mount(mount);
        let ask = Ask::get(
            &format!("sys/internal/ui/mounts/{path}"),
            "",
            Bound::Plain(LARGEST),
        );
        let (reply, _) = self.session.ask(&ask, self.deadline()).await?;
        let status = reply.status.as_u16();
        let versioned = if status == 200 {
            is_versioned(path, &reply)?
        } else {
            if before.is_none() {
                tracing::warn!(
                    "vault: {path} is taken for a KV mount of version 2: asked what it is, the server \
                     answered {status}; is it mounted, and does the policy allow anything below it?"
                );
            }
            true
        };
        let known = Mount {
            versioned,
            detailed: None,
            at: Some(Instant::now()),
        };
        self.mounts().insert(mount, known);
        Ok(known)
    }

    /// Remembers whether a mount's lists tell versions.
    pub(super) fn lists_versions(&self, mount: usize, detailed: bool) {
        if let Some(known) = self.mounts().get_mut(&mount) {
            known.detailed = Some(detailed);
        }
    }

    /// Whether what is known of a mount is old, so that it is looked at again.
    fn outdated(&self, mount: usize, known: Mount) -> bool {
        let old = known.at.is_none_or(|at| at.elapsed() >= KNOWN);
        if old {
            self.mounts().insert(mount, Mount { at: None, ..known });
        }
        old
    }

    pub(super) async fn read_kv(
        &self,
        known: Mount,
        mount: usize,
        path: &str,
        query: &str,
    ) -> Result<Reply, Trouble> {
        let at = self.names.mount(mount);
        let path = if known.versioned {
            format!("{at}/data/{path}")
        } else {
            format!("{at}/{path}")
        };
        let ask = Ask::get(
            &path,
            query,
            Bound::Secret(Arc::clone(&self.arena), LARGEST),
        );
        Ok(self.session.ask(&ask, self.deadline()).await?.0)
    }

    async fn metadata(&self, mount: usize, path: &str) -> Result<Reply, Trouble> {
        let path = format!("{}/metadata/{path}", self.names.mount(mount));
        let ask = Ask::get(&path, "", Bound::Plain(LARGEST));
        Ok(self.session.ask(&ask, self.deadline()).await?.0)
    }

    fn versioned(&self, name: &Name, reply: &Reply) -> Result<Answer, Trouble> {
        if let Some(no) = no(reply)? {
            return Ok(no);
        }
        let read: Versioned<'_> = answer::data(&reply.body).ok_or_else(not_a_value)?;
        let Some(data) = read.data else {
            return Ok(Answer::Absent("deleted".into()));
        };
        let made = read.metadata.created_time;
        let version = answer::version(read.metadata.version, made).ok_or_else(not_a_value)?;
        self.found(name, data, version, made.to_owned())
    }

    fn unversioned(&self, name: &Name, reply: &Reply) -> Result<Answer, Trouble> {
        if let Some(no) = no(reply)? {
            return Ok(no);
        }
        let envelope: Envelope<'_> = answer::parse(&reply.body).ok_or_else(not_a_value)?;
        let data = envelope.data.ok_or_else(not_a_value)?;
        let version = self.version_key.of(name.as_str(), data.get().as_bytes());
        let seen = self.first_sight(name, &version);
        self.found(name, data, version, seen)
    }

    /// A value in secret memory.
    pub(super) fn found(
        &self,
        name: &Name,
        data: &RawValue,
        version: String,
        updated_at: String,
    ) -> Result<Answer, Trouble> {
        let text = answer::object(data).ok_or_else(not_a_value)?;
        if text.len() > MAX_VALUE {
            return Err(Trouble::unusable(format!(
                "{name} is {} bytes as JSON; a value has at most {MAX_VALUE}",
                text.len()
            )));
        }
        let value =
            held::copied(text, &self.arena).map_err(|full| Trouble::unusable(full.to_string()))?;
        Ok(Answer::Found(Fetched {
            version,
            updated_at,
            value,
            lease: None,
        }))
    }

    /// When this version was seen first, for a value that has no time upstream.
    pub(super) fn first_sight(&self, name: &Name, version: &str) -> String {
        let mut sights = self.sights();
        if let Some((known, at)) = sights.get(name)
            && known == version
        {
            return at.clone();
        }
        let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        sights.insert(name.clone(), (version.to_owned(), now.clone()));
        now
    }

    fn mounts(&self) -> MutexGuard<'_, std::collections::HashMap<usize, Mount>> {
        self.mounts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sights(&self) -> MutexGuard<'_, std::collections::HashMap<Name, (String, String)>> {
        self.sights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The definite noes; an answer that is neither one nor a value is an error.
pub(super) fn no(reply: &Reply) -> Result<Option<Answer>, Trouble> {
    match reply.status.as_u16() {
        200 => Ok(None),
        403 => Ok(Some(Answer::Absent("permission denied".into()))),
        404 => Ok(Some(Answer::Absent("not there, or deleted".into()))),
        other => Err(answered(other)),
    }
}

/// Whether the mount at `path` keeps versions.
fn is_versioned(path: &str, reply: &Reply) -> Result<bool, Trouble> {
    let info: MountInfo<'_> = answer::data(&reply.body).ok_or_else(|| {
        Trouble::unusable(format!(
            "what Vault says of the mount {path} is not what it should be"
        ))
    })?;
    if info.path.trim_end_matches('/') != path {
        return Err(Trouble::unusable(format!(
            "nothing is mounted at {path} itself; correct it in mounts"
        )));
    }
    Ok(info.options.and_then(|options| options.version) == Some("2"))
}

pub(super) fn answered(status: u16) -> Trouble {
    Trouble::unusable(format!("Vault answered {status}"))
}

pub(super) fn not_a_value() -> Trouble {
    Trouble::unusable("the answer is not a JSON object of Vault's, or nests too deep")
}

fn not_metadata() -> Trouble {
    Trouble::unusable("the answer is not the metadata of a secret")
}
