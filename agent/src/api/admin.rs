//! The operators' socket: status, reload, seal, unseal, metrics and the store verbs.
//!
//! Anyone may connect; the kernel says who asks, and only root, the daemon's own user and the configured
//! admins are answered. No request here ever gives a value out.

use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use keyhatch_protocol::{Code, percent_decode};
use nix::unistd::{Group, User, geteuid};
use serde_json::{Value as Json, json};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::answer::{self, Answer};
use super::context::Context;
use super::id::RequestId;
use super::sealing::SealMark;
use super::server::{DRAIN, Server};
use super::{metrics, store_verbs};
use crate::audit::{Entry, Event, Facts, Verdict, Who, extra};
use crate::config::Admin;
use crate::identity::Peer;
use crate::sources::{Asked, ByOperator, KeeperError};
use crate::store::Actor;

/// The largest body: an import of many values.
const LARGEST_BODY: usize = 256 << 20;

/// How long a request may take to arrive whole.
const BODY_TIME: Duration = Duration::from_secs(30);

/// Asks the daemon to read its configuration anew; the answer is what was refused.
pub type Reload = oneshot::Sender<Result<(), Vec<String>>>;

/// The operators' side of the daemon.
pub struct AdminServer {
    /// What the bots' side shares.
    pub context: Arc<Context>,
    /// The bots' server.
    pub server: Arc<Server>,
    /// The keeper of the sources.
    pub keeper: Mutex<Sender<Asked>>,
    /// The daemon's main loop.
    pub reload: mpsc::Sender<Reload>,
    /// Who is answered besides root and the daemon's user.
    pub admins: ArcSwap<Vec<Admin>>,
    /// What `status` says about the daemon itself.
    pub about: Json,
    /// What makes a seal survive a restart.
    pub mark: SealMark,
    /// Held by who seals or unseals, so that the mark says what was done last.
    pub sealing: tokio::sync::Mutex<()>,
    /// Requests that are being answered.
    pub busy: AtomicU32,
}

/// A request that was allowed, and who made it.
pub struct Operator {
    /// For the record of a store.
    pub actor: Actor,
    who: Arc<Who>,
}

impl Operator {
    pub(super) fn entry<'a>(
        &'a self,
        event: Event,
        decision: Verdict,
        id: &'a RequestId,
    ) -> Entry<'a> {
        Entry {
            decision,
            who: Some(&*self.who),
            surface: "admin",
            request_id: Some(id.as_str()),
            ..Entry::of(event)
        }
    }
}

/// A request that is being answered; also where its peer goes before the end.
struct Busy<'a>(&'a AtomicU32);

impl<'a> Busy<'a> {
    fn count(busy: &'a AtomicU32) -> Self {
        busy.fetch_add(1, Relaxed);
        Self(busy)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl AdminServer {
    /// Accepts until the process ends.
    pub async fn accept(self: Arc<Self>, listener: UnixListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    tokio::spawn(Arc::clone(&self).serve(stream));
                }
                Err(error) => {
                    tracing::warn!(%error, "an admin connection was not accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    /// Returns once every request is answered or time is up. Whoever accepts must have stopped.
    pub async fn drain(&self) {
        let answered = async {
            while self.busy.load(Relaxed) > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        // One that has not come in whole by then has changed nothing.
        let _ = timeout(DRAIN, answered).await;
    }

    /// Others than root and the daemon's user are counted with their connections to the bots' socket, so that
    /// the panic button is never out of reach.
    async fn serve(self: Arc<Self>, stream: UnixStream) {
        let Ok(peer) = Peer::identify(&stream, self.context.kernel) else {
            return;
        };
        let uid = peer.uid().unwrap_or(u32::MAX);
        let ours = uid == 0 || uid == geteuid().as_raw();
        let counted = if ours {
            None
        } else {
            match self.context.limits.connect(uid) {
                None => return,
                counted => counted,
            }
        };
        let admins = self.admins.load_full();
        let peer = Arc::new(peer);
        let asked = Arc::clone(&peer);
        let allowed = tokio::task::spawn_blocking(move || is_admin(&asked, &admins)).await;
        let allowed = allowed.unwrap_or(false);
        let operator = Arc::new(operator(&peer));
        let service = service_fn(|request| {
            let (admin, operator, peer) =
                (Arc::clone(&self), Arc::clone(&operator), Arc::clone(&peer));
            // An operator who does not wait for the answer has it done whole all the same: a seal above all.
            tokio::spawn(async move {
                let _busy = Busy::count(&admin.busy);
                let id = admin.context.ids.next();
                let allowed = allowed && !peer.has_exited();
                admin.answer(&operator, allowed, id, request).await
            })
        });
        let http = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        // The operator's end of the connection says what went wrong.
        let _ = http.await;
        drop(counted);
    }

    async fn answer(
        &self,
        operator: &Operator,
        allowed: bool,
        id: RequestId,
        request: Request<Incoming>,
    ) -> Answer {
        if !allowed {
            let refused = self.record(Event::AdminDenied, Verdict::Deny, operator, &id);
            let code = if refused {
                Code::Denied
            } else {
                Code::AuditUnavailable
            };
            return answer::problem(
                code,
                &id,
                Some("only root, the daemon's user and [agent].admins may ask here"),
            );
        }
        let path = request.uri().path().to_owned();
        match (request.method(), path.as_str()) {
            (&Method::GET, "/v1/status") => answer::document(StatusCode::OK, &self.status()),
            (&Method::GET, "/v1/rotation") => {
                let rotations = self.context.rotations.all();
                answer::document(StatusCode::OK, &json!({ "rotations": rotations }))
            }
            (&Method::GET, "/v1/metrics") => {
                answer::text(metrics::KIND, metrics::render(&self.context))
            }
            (&Method::POST, "/v1/reload") => {
                self.recorded(Event::AdminReloaded, operator, id, self.reload(id))
                    .await
            }
            (&Method::POST, "/v1/seal") => {
                self.recorded(Event::AdminSealed, operator, id, self.seal())
                    .await
            }
            (&Method::POST, "/v1/unseal") => {
                self.recorded(Event::AdminUnsealed, operator, id, self.unseal())
                    .await
            }
            (&Method::GET, "/v1/quarantine") => self.quarantined(),
            (&Method::POST, "/v1/quarantine/release") => {
                let query = parameters(request.uri().query().unwrap_or_default());
                let bot = query.iter().find(|(key, _)| key == "bot");
                let bot = bot.map(|(_, bot)| bot.clone()).unwrap_or_default();
                let about = extra(&[("released", bot.as_str().into())]);
                let entry = Entry {
                    extra: Some(&about),
                    ..operator.entry(Event::AdminReleased, Verdict::Allow, &id)
                };
                if self.context.audit.keep(&entry).is_err() {
                    return answer::problem(Code::AuditUnavailable, &id, None);
                }
                self.release(id, &bot)
            }
            (&Method::GET, "/v1/approvals") => self.waiting(),
            (&Method::POST, "/v1/approvals/approve") => {
                let query = parameters(request.uri().query().unwrap_or_default());
                let wanted = query.iter().find(|(key, _)| key == "id");
                self.approve(operator, id, wanted.map_or("", |(_, wanted)| wanted))
            }
            (_, path) if path.starts_with("/v1/store/") => {
                let act = self.store(operator, id, request);
                self.recorded(Event::AdminStore, operator, id, act).await
            }
            _ => answer::problem(Code::BadRequest, &id, Some("no such admin request")),
        }
    }

    /// Does what an operator asked, once the record of it is kept.
    async fn recorded(
        &self,
        event: Event,
        operator: &Operator,
        id: RequestId,
        act: impl Future<Output = Answer>,
    ) -> Answer {
        if self.record(event, Verdict::Allow, operator, &id) {
            return act.await;
        }
        if event != Event::AdminSealed {
            return answer::problem(Code::AuditUnavailable, &id, None);
        }
        // Sealing is the panic button: it works without a record, too, and is recorded once one can be kept.
        let (audit, who) = (Arc::clone(&self.context.audit), Arc::clone(&operator.who));
        tokio::spawn(async move {
            let entry = Entry {
                decision: Verdict::Allow,
                who: Some(&*who),
                surface: "admin",
                request_id: Some(id.as_str()),
                ..Entry::of(event)
            };
            while audit.keep(&entry).is_err() {
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        });
        act.await
    }

    fn record(&self, event: Event, decision: Verdict, operator: &Operator, id: &RequestId) -> bool {
        let entry = operator.entry(event, decision, id);
        self.context.audit.keep(&entry).is_ok()
    }

    fn status(&self) -> Json {
        let context = &self.context;
        let arena = context.cache.arena();
        let audit = context.audit.stats();
        let rotations = context.rotations.all();
        let sources: Vec<Json> = context.sources.all_by_name().iter().map(|(name, state)| json!({
            "name": &**name, "state": state.word(), "loaded": state.loaded, "trouble": state.trouble,
            "secrets": state.secrets, "generation": state.generation, "last_success": state.last_success,
            "upstream": state.upstream.map(|upstream| json!({
                "oldest_age": upstream.oldest_age(), "next_try": upstream.next_try(),
                "withheld": upstream.withheld,
            })),
        })).collect();
        json!({
            "agent": self.about,
            "ready": context.status().reasons.is_empty(),
            "reasons": context.status().reasons,
            "missing": context.health.missing(),
            "sealed": context.cache.is_sealed(),
            "config_changed_on_disk": context.config_files.load().changed(),
            "connections": context.limits.connections(),
            "bots": context.policy.load().bots().len(),
            "requests": {
                "allowed": context.counts.allowed.load(Relaxed), "denied": context.counts.denied.load(Relaxed),
                "limited": context.counts.limited.load(Relaxed), "bad": context.counts.bad.load(Relaxed),
            },
            "rotations": { "failing": rotations.iter().filter(|one| one.state == "failing").count(), "all": rotations.len() },
            "secret_memory": { "used": arena.used(), "size": arena.size() },
            "sources": sources,
            "audit": {
                "seq": audit.seq, "trouble": context.audit.available().err(), "bytes": audit.bytes,
                "journald_behind": audit.journal_behind, "journald_error": audit.journal_error,
                "flooded": audit.flooded, "refused": audit.refused, "unrecorded": audit.unrecorded,
                "last_error": audit.last_error,
            },
        })
    }

    async fn reload(&self, id: RequestId) -> Answer {
        let (reply, done) = oneshot::channel();
        if self.reload.send(reply).await.is_err() {
            return answer::problem(Code::Internal, &id, Some("the agent is stopping"));
        }
        match done.await {
            Ok(Ok(())) => answer::document(StatusCode::OK, &json!({ "reloaded": true })),
            Ok(Err(refused)) => answer::document(
                StatusCode::UNPROCESSABLE_ENTITY,
                &json!({ "refused": refused }),
            ),
            Err(_) => answer::problem(Code::Internal, &id, Some("the agent is stopping")),
        }
    }

    async fn store(
        &self,
        operator: &Operator,
        id: RequestId,
        request: Request<Incoming>,
    ) -> Answer {
        let verb = request
            .uri()
            .path()
            .trim_start_matches("/v1/store/")
            .to_owned();
        let query = parameters(request.uri().query().unwrap_or_default());
        let body = Limited::new(request.into_body(), LARGEST_BODY).collect();
        let Ok(Ok(body)) = timeout(BODY_TIME, body).await else {
            return answer::problem(
                Code::BadRequest,
                &id,
                Some("the body is too large or did not arrive"),
            );
        };
        let asked = match store_verbs::parse(&verb, &query, &body.to_bytes()) {
            Ok(asked) => asked,
            Err(why) => return answer::problem(Code::BadRequest, &id, Some(&why)),
        };
        let (reply, done) = oneshot::channel();
        let by = ByOperator {
            who: Arc::clone(&operator.who),
            request_id: id.as_str().to_owned(),
        };
        self.ask(asked.into_command(operator.actor, by, reply));
        match done.await {
            Ok(Ok(done)) => answer::document(StatusCode::OK, &done),
            Ok(Err(KeeperError::NotServing)) | Err(_) => answer::problem(Code::Sealed, &id, None),
            Ok(Err(KeeperError::NoRecord)) => answer::problem(Code::AuditUnavailable, &id, None),
            Ok(Err(error)) => answer::problem(Code::BadRequest, &id, Some(&error.to_string())),
        }
    }

    pub(super) fn ask(&self, asked: Asked) {
        // Where the keeper has ended, the reply's other end is dropped and the asker learns of it.
        let _ = self
            .keeper
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .send(asked);
    }
}

fn parameters(query: &str) -> Vec<(String, String)> {
    query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .filter_map(|(key, value)| {
            let value = percent_decode(value)?;
            Some((key.to_owned(), String::from_utf8(value.into_owned()).ok()?))
        })
        .collect()
}

fn operator(peer: &Peer) -> Operator {
    let facts = Facts {
        pid: Some(peer.pid()),
        uid: peer.uid(),
        gid: peer.gid(),
        exe: peer.exe().map(|exe| exe.as_os_str().as_bytes()),
        unit: peer.unit(),
        invocation_id: peer.invocation_id(),
        ..Facts::default()
    };
    let actor = Actor {
        uid: peer.uid().unwrap_or(u32::MAX),
        login_uid: peer.login_uid(),
    };
    Operator {
        actor,
        who: Arc::new(Who::new(&facts)),
    }
}

/// Whether the peer is root, runs as the daemon's user, or is a configured admin.
fn is_admin(peer: &Peer, admins: &[Admin]) -> bool {
    let Some(uid) = peer.uid() else { return false };
    if uid == 0 || uid == geteuid().as_raw() {
        return true;
    }
    admins.iter().any(|admin| match admin {
        Admin::User(name) => User::from_name(name)
            .ok()
            .flatten()
            .is_some_and(|user| user.uid.as_raw() == uid),
        Admin::Group(name) => Group::from_name(name).ok().flatten().is_some_and(|group| {
            let gid = group.gid.as_raw();
            peer.gid() == Some(gid) || peer.groups().contains(&gid)
        }),
    })
}
