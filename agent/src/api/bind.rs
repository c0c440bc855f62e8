//! Finding the bot that a peer is, under the running policy and by the socket that it came by.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::connection::Bound;
use super::context::Context;
use super::limits::Connected;
use crate::audit::{Facts as RecordFacts, Who};
use crate::identity::{Peer, hex};
use crate::policy::{BotMatch, Changeable, Facts, Policy};

/// The socket that a peer came by: what its bot is found by.
pub enum Door {
    /// That of the bots.
    Bots,
    /// That of systemd, which says that it asks for this unit.
    Credentials(Option<String>),
}

/// Finds the bot that a peer is under the running policy.
pub async fn bind(
    context: &Arc<Context>,
    peer: &Arc<Peer>,
    limits: &Connected,
    door: &Door,
) -> Bound {
    let policy = context.policy.load_full();
    let found = match door {
        Door::Bots => {
            let accounts = context.lookup.accounts(&policy).await;
            let facts = facts(context, peer, limits, &policy).await;
            policy.match_bot(&facts, &accounts)
        }
        Door::Credentials(unit) => policy.match_unit(&peer.facts(), unit.as_deref()),
    };
    let bot = match &found {
        BotMatch::Bot(id) => policy.bot(*id),
        _ => None,
    };
    let roles: Vec<&str> = bot
        .map(|bot| bot.roles.iter().map(|role| &**role).collect())
        .unwrap_or_default();
    let who = Who::new(&RecordFacts {
        bot: bot.map(|bot| &*bot.name),
        roles: &roles,
        pid: Some(peer.pid()),
        uid: peer.uid(),
        gid: peer.gid(),
        exe: peer.exe().map(|exe| exe.as_bytes()),
        unit: peer.unit(),
        invocation_id: peer.invocation_id(),
    });
    let changeable = match (door, &found) {
        (Door::Bots, BotMatch::Bot(id)) => policy.changeable(*id),
        (Door::Bots, _) => Changeable::default(),
        (Door::Credentials(_), _) => Changeable::of_unit(),
    };
    let nearest = match &found {
        BotMatch::NoBot { nearest } => nearest.clone(),
        _ => None,
    };
    let program = match (door, &found) {
        (Door::Bots, BotMatch::Bot(_)) if context.detect.learns() => {
            program(context, peer, limits).await
        }
        _ => None,
    };
    Bound {
        policy,
        found,
        changeable,
        who,
        program,
        nearest,
        memo: Mutex::default(),
    }
}

/// What the kernel says of the peer, in the policy's words.
async fn facts(
    context: &Arc<Context>,
    peer: &Arc<Peer>,
    limits: &Connected,
    policy: &Arc<Policy>,
) -> Facts {
    let mut facts = peer.facts();
    let paths: Vec<PathBuf> = policy.exe_paths().into_iter().map(Path::to_owned).collect();
    let wants_hash = policy.needs_exe_sha256();
    let Some(image) = peer.image().filter(|_| !paths.is_empty() || wants_hash) else {
        return facts;
    };
    let at_once = context.images.proven_at_once(image, &paths);
    let hash = context.images.known_content(image);
    if let Some(proven) = at_once.filter(|_| !wants_hash || hash.is_some()) {
        facts.exe = proven;
        facts.exe_sha256 = hash;
        return facts;
    }
    // Files have to be read and hashed, so off the request loop.
    let _turn = limits.turn_to_read().await;
    let (context, peer) = (Arc::clone(context), Arc::clone(peer));
    let read = tokio::task::spawn_blocking(move || {
        let (proc_dir, image) = (peer.proc_dir()?, peer.image()?);
        let proven = context.images.proven(proc_dir, image, &paths);
        Some((proven, context.images.running_content(proc_dir, image)))
    });
    if let Ok(Some((proven, hash))) = read.await {
        facts.exe = proven;
        facts.exe_sha256 = hash;
    }
    facts
}

/// SHA-256 of the program that a bot runs, in hex; `None` where the agent does not see it.
async fn program(context: &Arc<Context>, peer: &Arc<Peer>, limits: &Connected) -> Option<Box<str>> {
    let image = peer.image()?;
    let text = |hash| hex(&hash).into_boxed_str();
    if let Some(hash) = context.images.known_content(image) {
        return Some(text(hash));
    }
    let _turn = limits.turn_to_read().await;
    let (context, peer) = (Arc::clone(context), Arc::clone(peer));
    let read = tokio::task::spawn_blocking(move || {
        let (proc_dir, image) = (peer.proc_dir()?, peer.image()?);
        context.images.running_content(proc_dir, image)
    });
    read.await.ok().flatten().map(text)
}
