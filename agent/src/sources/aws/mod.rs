//! AWS Secrets Manager, through AWS's own SDK.
//!
//! Current values by `BatchGetSecretValue`, versions by `DescribeSecret`, names by `ListSecrets`. Only what is
//! staged `AWSCURRENT` or `AWSPREVIOUS` is ever asked for.

mod answers;
mod bounded;
mod client;
mod ids;
mod refusal;
mod session;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use keyhatch_protocol::Name;
use tokio::sync::OnceCell;
use tokio::time::Instant;
use tracing::instrument::WithSubscriber;
use tracing::subscriber::NoSubscriber;

use self::client::Settings;
use self::ids::Ids;
use self::refusal::{Absence, Refusal};
use self::session::{MAX_BATCH, Session, Stage};
use super::upstream::{Answer, Fetched, Lease, Listed, Standing, Trouble, Turn, Upstream};
use crate::config;
use crate::files::{self, FileError, Holds, Trust};
use crate::sys::arena::Arena;

/// More than any bundle of certificates.
const MAX_CA_FILE: u64 = 1 << 20;
/// 100,000 secrets: an endpoint that pages for ever is not followed for ever.
const MAX_PAGES: usize = 1000;

/// One account and region of AWS Secrets Manager, or what speaks its API.
pub struct Aws {
    settings: Settings,
    arena: Arc<Arena>,
    /// Made at the first call, and anew after a seal and when the credentials were not accepted.
    session: Mutex<Arc<OnceCell<Arc<Session>>>>,
    ids: Ids,
}

/// Why the source cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum AwsError {
    /// `ca_file` cannot be read or trusted.
    #[error("ca_file: {0}")]
    CaFile(#[from] FileError),
    /// `ca_file` holds something else.
    #[error("ca_file {path}: {what}; it must hold PEM certificates")]
    NotCertificates {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
}

impl Aws {
    /// Reads `ca_file` and nothing else: credentials are looked for at the first call.
    pub fn new(
        config: &config::Aws,
        timeout: Duration,
        arena: &Arc<Arena>,
    ) -> Result<Self, AwsError> {
        let roots = config.ca_file.as_ref().map(|path| {
            let pem = files::read(path, Holds::Access, Trust::own(), MAX_CA_FILE)?;
            client::check_roots(&pem).map_err(|what| AwsError::NotCertificates {
                path: path.clone(),
                what,
            })?;
            Ok::<_, AwsError>(pem)
        });
        Ok(Self {
            settings: Settings {
                region: config.region.clone(),
                // The SDK panics at an empty one.
                endpoint_url: config.endpoint_url.clone().filter(|url| !url.is_empty()),
                profile: config.profile.clone(),
                roots: roots.transpose()?,
                timeout,
            },
            arena: Arc::clone(arena),
            session: Mutex::default(),
            ids: Ids::default(),
        })
    }

    async fn session(&self) -> Result<Arc<Session>, Trouble> {
        let cell = Arc::clone(&self.session.lock().unwrap_or_else(PoisonError::into_inner));
        let session = cell
            .get_or_try_init(async || {
                let client = client::connect(&self.settings).await?;
                Ok(Arc::new(Session::new(client)))
            })
            .await?;
        Ok(Arc::clone(session))
    }

    /// What a refusal means for the one who asked.
    fn trouble(&self, session: &Arc<Session>, refusal: Refusal) -> Trouble {
        if matches!(refusal, Refusal::Login(_)) {
            self.leave(session);
        }
        refusal.into_trouble()
    }

    /// The chain is walked anew by the next call: what it finds may have changed since.
    fn leave(&self, session: &Arc<Session>) {
        let mut cell = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        if cell.get().is_some_and(|now| Arc::ptr_eq(now, session)) {
            *cell = Arc::default();
        }
    }

    /// Asks about a name by the id it is known to have, else by both that it may have.
    async fn ask<T>(
        &self,
        session: &Arc<Session>,
        name: &Name,
        call: impl AsyncFn(&str) -> Result<T, Refusal>,
    ) -> Result<Result<T, Absence>, Trouble> {
        let mut absence = Absence::Missing;
        for id in self.ids.candidates(name) {
            match call(&id).await {
                Ok(told) => {
                    self.ids.learn(name, &id);
                    return Ok(Ok(told));
                }
                Err(Refusal::Absent(Absence::Missing)) => {}
                Err(Refusal::Absent(other)) => absence = other,
                Err(refusal) => return Err(self.trouble(session, refusal)),
            }
        }
        self.ids.forget(name);
        Ok(Err(absence))
    }

    async fn fetch_one(&self, session: &Arc<Session>, name: &Name) -> Result<Answer, Trouble> {
        let value = self
            .ask(session, name, async |id| {
                session.value(id, Stage::Current, &self.arena).await
            })
            .await?;
        Ok(answer(value))
    }

    async fn fetch_all(
        &self,
        session: &Arc<Session>,
        names: &[Name],
        deadline: Instant,
    ) -> Vec<Result<Answer, Trouble>> {
        let mut told = match self.fetch_batch(session, names, deadline).await {
            Ok(told) => told,
            Err(trouble) => return same(names, &trouble),
        };
        let answers = names.iter().map(|name| {
            let first = told.remove(name);
            self.by(deadline, async move {
                match first {
                    Some(Ok(fetched)) => Ok(Answer::Found(fetched)),
                    Some(Err(Refusal::Absent(absence))) if self.ids.knows(name) => {
                        self.ids.forget(name);
                        Ok(answer(Err(absence)))
                    }
                    Some(Err(refusal @ (Refusal::Login(_) | Refusal::Trouble(_)))) => {
                        Err(self.trouble(session, refusal))
                    }
                    _ => self.fetch_one(session, name).await,
                }
            })
        });
        join_all(answers).await
    }

    /// What one call tells of these names. Those that it leaves out are asked for one by one.
    async fn fetch_batch<'a>(
        &self,
        session: &Arc<Session>,
        names: &'a [Name],
        deadline: Instant,
    ) -> Result<BTreeMap<&'a Name, Result<Fetched, Refusal>>, Trouble> {
        if names.len() < 2 || session.is_without_batch() {
            return Ok(BTreeMap::new());
        }
        let ids: Vec<String> = names.iter().map(|name| self.ids.likely(name)).collect();
        let call = async {
            match session.batch(&ids, &self.arena).await {
                Ok(told) => Ok(told),
                Err(refusal) if refusal.concerns_one_call() => Ok(BTreeMap::new()),
                Err(refusal) => Err(self.trouble(session, refusal)),
            }
        };
        let mut told = self.by(deadline, call).await?;
        let told = names.iter().zip(&ids).filter_map(|(name, id)| {
            let one = told.remove(id)?;
            if one.is_ok() {
                self.ids.learn(name, id);
            }
            Some((name, one))
        });
        Ok(told.collect())
    }

    async fn list_all(&self, folder: &str) -> Result<Vec<Listed>, Trouble> {
        let session = self.session().await?;
        let mut names = BTreeMap::new();
        let mut token = None;
        for _ in 0..MAX_PAGES {
            let page = session.page(folder, token).await;
            let page = page.map_err(|refusal| self.trouble(&session, refusal))?;
            for (id, version) in page.secrets {
                ids::sort(&mut names, &id, version);
            }
            token = page.next;
            if token.is_none() {
                break;
            }
        }
        names.retain(|name, _| name.starts_with(folder));
        self.ids.learn_all(&names);
        let listed = names.into_iter();
        Ok(listed
            .map(|(name, entry)| Listed {
                name,
                version: entry.version,
            })
            .collect())
    }

    async fn previous_value(&self, name: &Name) -> Result<Answer, Trouble> {
        let session = self.session().await?;
        // Of the secret that has the name now: the other one it may have is another secret.
        if !self.ids.knows(name)
            && let Answer::Absent(why) = self.fetch_one(&session, name).await?
        {
            return Ok(Answer::Absent(why));
        }
        let id = self.ids.likely(name);
        match session.value(&id, Stage::Previous, &self.arena).await {
            Ok(fetched) => Ok(Answer::Found(fetched)),
            Err(Refusal::Absent(Absence::Missing)) => {
                Ok(Answer::Absent("it has no previous value".into()))
            }
            Err(Refusal::Absent(absence)) => Ok(answer(Err(absence))),
            Err(refusal) => Err(self.trouble(&session, refusal)),
        }
    }

    /// Ends a question at its time, credentials included.
    async fn by<T>(
        &self,
        deadline: Instant,
        question: impl Future<Output = Result<T, Trouble>>,
    ) -> Result<T, Trouble> {
        match tokio::time::timeout_at(deadline, question).await {
            Ok(result) => result,
            Err(_) => Err(Trouble::outage(format!(
                "no answer within {}, the search for credentials included; raise `timeout` if it is slow",
                humantime::format_duration(self.settings.timeout)
            ))),
        }
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.settings.timeout
    }
}

impl Upstream for Aws {
    fn batch(&self) -> usize {
        MAX_BATCH
    }

    async fn list(&self, folder: &str) -> Result<Vec<Listed>, Trouble> {
        quietly(self.by(self.deadline(), self.list_all(folder))).await
    }

    async fn reach(&self) -> Result<(), Trouble> {
        // Any answer will do, also that it is not there or may not be seen.
        let nobodys = Name::parse("keyhatch/reach").into_iter();
        for standing in self.standings(&nobodys.collect::<Vec<_>>()).await {
            standing?;
        }
        Ok(())
    }

    /// Only reading a value would tell.
    async fn readable(&self, names: &[Name]) -> Result<Vec<bool>, Trouble> {
        Ok(vec![true; names.len()])
    }

    async fn standings(&self, names: &[Name]) -> Vec<Result<Standing, Trouble>> {
        let deadline = self.deadline();
        let questions = names.iter().map(|name| {
            self.by(deadline, async {
                let session = self.session().await?;
                let told = self
                    .ask(&session, name, async |id| session.standing(id).await)
                    .await?;
                Ok(match told {
                    Ok(standing) => standing,
                    // It may be readable all the same; GetSecretValue has the last word.
                    Err(Absence::Denied) => Standing::Unknown,
                    Err(Absence::Missing | Absence::Deleted) => Standing::Absent,
                })
            })
        });
        quietly(join_all(questions)).await
    }

    async fn fetch(&self, names: &[Name]) -> Vec<Result<Answer, Trouble>> {
        let deadline = self.deadline();
        quietly(async {
            match self.by(deadline, self.session()).await {
                Ok(session) => self.fetch_all(&session, names, deadline).await,
                Err(trouble) => same(names, &trouble),
            }
        })
        .await
    }

    async fn previous(&self, name: &Name) -> Result<Answer, Trouble> {
        quietly(self.by(self.deadline(), self.previous_value(name))).await
    }

    /// Nothing here is lent.
    async fn renew(&self, _lease: &Lease) -> Result<Option<Duration>, Trouble> {
        Ok(None)
    }

    async fn revoke(&self, _lease: &Lease) -> Result<(), Trouble> {
        Ok(())
    }

    async fn rotate(&self, name: &Name, turn: &Turn) -> Result<(), Trouble> {
        quietly(self.by(self.deadline(), async {
            let session = self.session().await?;
            let told = self
                .ask(&session, name, async |id| {
                    session.rotate(id, &turn.token).await
                })
                .await?;
            told.map_err(|absence| match absence {
                Absence::Denied => {
                    Trouble::unusable("access denied; allow secretsmanager:RotateSecret on it")
                }
                other => Trouble::unusable(other.to_string()),
            })
        }))
        .await
    }

    fn forget(&self) {
        *self.session.lock().unwrap_or_else(PoisonError::into_inner) = Arc::default();
    }
}

/// The SDK's own log lines go nowhere: one of them can hold a token.
fn quietly<F: Future>(question: F) -> impl Future<Output = F::Output> {
    question.with_subscriber(NoSubscriber::default())
}

fn answer(told: Result<Fetched, Absence>) -> Answer {
    match told {
        Ok(fetched) => Answer::Found(fetched),
        Err(absence) => Answer::Absent(absence.to_string()),
    }
}

fn same(names: &[Name], trouble: &Trouble) -> Vec<Result<Answer, Trouble>> {
    names.iter().map(|_| Err(trouble.clone())).collect()
}
