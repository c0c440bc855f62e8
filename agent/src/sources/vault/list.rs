//! All names below a folder: one request a folder, a few at once, with their versions where the server tells.

use std::collections::VecDeque;
use std::sync::Arc;

use hyper::StatusCode;
use keyhatch_protocol::Name;
use serde_json::value::RawValue;
use tokio::task::JoinSet;

use super::Inner;
use super::answer::{self, Keys, Metadata};
use super::kv::answered;
use super::names::Folder;
use super::server::{Ask, Reply};
use crate::http::Bound;
use crate::sources::upstream::{Listed, Standing, Trouble};

/// A folder's list is never larger.
const LARGEST: usize = 16 * 1024 * 1024;
/// How many folders are asked for at once.
const AT_ONCE: usize = 4;
/// More names than any agent holds; more folders than these cannot be walked in a useful time.
const MOST: usize = 100_000;

/// What one folder holds.
#[derive(Default)]
struct Found {
    names: Vec<Listed>,
    folders: Vec<Folder>,
}

/// Every secret whose name begins with `folder`.
pub async fn list(inner: &Arc<Inner>, folder: &str) -> Result<Vec<Listed>, Trouble> {
    let mut names: Vec<Listed> = inner
        .names
        .leased_below(folder)
        .map(|name| Listed {
            name: name.to_owned(),
            version: None,
        })
        .collect();
    let mut todo: VecDeque<(Folder, bool)> = inner
        .names
        .folders(folder)
        .into_iter()
        .map(|f| (f, true))
        .collect();
    let mut running = JoinSet::new();
    let mut seen = 0;
    loop {
        while running.len() < AT_ONCE
            && let Some((folder, top)) = todo.pop_front()
        {
            let inner = Arc::clone(inner);
            running.spawn(async move { inner.timed(inner.folder(&folder, top)).await });
        }
        let Some(done) = running.join_next().await else {
            break;
        };
        let found = done.unwrap_or_else(|_| Err(Trouble::outage("a list was cut short")))?;
        seen += found.names.len() + found.folders.len();
        if seen > MOST {
            return Err(Trouble::unusable(format!(
                "more than {MOST} names and folders; list a smaller part"
            )));
        }
        names.extend(
            found
                .names
                .into_iter()
                .filter(|listed| listed.name.starts_with(folder)),
        );
        todo.extend(found.folders.into_iter().map(|folder| (folder, false)));
    }
    Ok(names)
}

impl Inner {
    /// One folder. A no is trouble where it is all that was asked for, else the folder has nothing for us.
    async fn folder(&self, folder: &Folder, top: bool) -> Result<Found, Trouble> {
        let known = self.mount(folder.mount).await?;
        if known.versioned && known.detailed != Some(false) {
            let reply = self.keys(folder, "/detailed-metadata/").await?;
            if reply.status == StatusCode::OK {
                self.lists_versions(folder.mount, true);
                return self.found_in(folder, &reply);
            }
            if reply.status == StatusCode::NOT_FOUND && known.detailed == Some(true) {
                return Ok(Found::default());
            }
        }
        let between = if known.versioned { "/metadata/" } else { "/" };
        let reply = self.keys(folder, between).await?;
        match reply.status.as_u16() {
            200 => {
                if known.detailed.is_none() {
                    self.lists_versions(folder.mount, false);
                }
                self.found_in(folder, &reply)
            }
            403 if top => Err(Trouble::unusable(format!(
                "the policy lacks list on {}{between}{}",
                self.names.mount(folder.mount),
                folder.path
            ))),
            403 | 404 => Ok(Found::default()),
            other => Err(answered(other)),
        }
    }

    async fn keys(&self, folder: &Folder, between: &str) -> Result<Reply, Trouble> {
        let path = format!("{}{between}{}", self.names.mount(folder.mount), folder.path);
        let ask = Ask::get(&path, "?list=true", Bound::Plain(LARGEST));
        Ok(self.session.ask(&ask, self.deadline()).await?.0)
    }

    fn found_in(&self, folder: &Folder, reply: &Reply) -> Result<Found, Trouble> {
        let keys: Keys<'_> = answer::data(&reply.body)
            .ok_or_else(|| Trouble::unusable("a list is not what Vault says"))?;
        let mut found = Found::default();
        for key in keys.keys {
            let path = format!("{}{key}", folder.path);
            let Some(name) = self.names.name(folder.mount, &path) else {
                continue;
            };
            if is_folder(&name) {
                found.folders.push(Folder {
                    mount: folder.mount,
                    path,
                });
                continue;
            }
            let version = match keys
                .key_info
                .get(&key)
                .map_or(Standing::Unknown, |info| standing(info))
            {
                Standing::Absent => continue,
                Standing::Version(version) => Some(version),
                Standing::Unknown => None,
            };
            found.names.push(Listed { name, version });
        }
        Ok(found)
    }
}

/// Whether names can be in it. One that no name can begin with is told as if it were a secret, once.
fn is_folder(name: &str) -> bool {
    name.strip_suffix('/')
        .is_some_and(|folder| Name::parse(folder).is_ok())
}

fn standing(info: &RawValue) -> Standing {
    answer::parse(info.get().as_bytes()).map_or(Standing::Unknown, |metadata: Metadata<'_>| {
        metadata.standing()
    })
}
