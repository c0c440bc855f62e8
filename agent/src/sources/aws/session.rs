//! The four calls of the API that the source makes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use aws_sdk_secretsmanager::Client;
use aws_sdk_secretsmanager::error::ProvideErrorMetadata;
use aws_sdk_secretsmanager::types::{Filter, FilterNameStringType, SecretListEntry};
use tokio::sync::Semaphore;

use super::answers::{Value, staged};
use super::refusal::{Absence, Refusal};
use crate::sources::upstream::{Fetched, Standing, Trouble};
use crate::sys::arena::Arena;

/// What `BatchGetSecretValue` takes at once.
pub const MAX_BATCH: usize = 20;
/// What `ListSecrets` gives at once.
const PAGE: i32 = 100;
/// Calls under way at once: each is a connection, and an idle one is kept for the next.
const MAX_CALLS: usize = 16;

/// A client with its credentials, and what it has found out since.
pub struct Session {
    client: Client,
    without_batch: AtomicBool,
    room: Semaphore,
}

/// Which of a secret's values. A pending one is never asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The one to use.
    Current,
    /// The one before.
    Previous,
}

impl Stage {
    /// As AWS writes it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Current => "AWSCURRENT",
            Self::Previous => "AWSPREVIOUS",
        }
    }
}

/// A part of a list: ids with their current versions.
pub struct Page {
    pub secrets: Vec<(String, Option<String>)>,
    pub next: Option<String>,
}

impl Session {
    pub fn new(client: Client) -> Self {
        Self {
            client,
            without_batch: AtomicBool::new(false),
            room: Semaphore::new(MAX_CALLS),
        }
    }

    /// Whether `BatchGetSecretValue` has been refused as such.
    pub fn is_without_batch(&self) -> bool {
        self.without_batch.load(Ordering::Relaxed)
    }

    /// `GetSecretValue`.
    pub async fn value(
        &self,
        id: &str,
        stage: Stage,
        arena: &Arc<Arena>,
    ) -> Result<Fetched, Refusal> {
        let call = self.client.get_secret_value();
        let call = call.secret_id(id).version_stage(stage.label());
        let value = match self.call(Box::pin(call.send())).await {
            Ok(told) => Value {
                version: told.version_id,
                created: told.created_date,
                text: told.secret_string,
                binary: told.secret_binary,
            },
            Err(error) => {
                return Err(match Refusal::of("GetSecretValue", &error) {
                    Refusal::State => self.state(id).await,
                    refusal => refusal,
                });
            }
        };
        value.keep(arena).map_err(Refusal::Trouble)
    }

    /// `BatchGetSecretValue` of current values, by id. AWS may leave some out.
    pub async fn batch(
        &self,
        ids: &[String],
        arena: &Arc<Arena>,
    ) -> Result<BTreeMap<String, Result<Fetched, Refusal>>, Refusal> {
        let call = self.client.batch_get_secret_value();
        let call = call.set_secret_id_list(Some(ids.to_vec()));
        let told = self.call(Box::pin(call.send())).await.map_err(|error| {
            let refusal = Refusal::of("BatchGetSecretValue", &error);
            if matches!(refusal, Refusal::Absent(_) | Refusal::Unsupported(_)) {
                self.without_batch.store(true, Ordering::Relaxed);
            }
            refusal
        })?;
        let errors = told.errors.unwrap_or_default().into_iter();
        let mut all: BTreeMap<_, _> = errors
            .filter_map(|error| {
                let refusal = Refusal::of_code(
                    "BatchGetSecretValue",
                    error.error_code.as_deref(),
                    None,
                    None,
                );
                Some((error.secret_id?, Err(refusal)))
            })
            .collect();
        for secret in told.secret_values.unwrap_or_default() {
            let value = Value {
                version: secret.version_id,
                created: secret.created_date,
                text: secret.secret_string,
                binary: secret.secret_binary,
            };
            if let Some(id) = secret.name {
                all.insert(id, value.keep(arena).map_err(Refusal::Trouble));
            }
        }
        Ok(all)
    }

    /// `DescribeSecret`.
    pub async fn standing(&self, id: &str) -> Result<Standing, Refusal> {
        let call = self.client.describe_secret().secret_id(id);
        let told = self.call(Box::pin(call.send())).await;
        let told = told.map_err(|error| Refusal::of("DescribeSecret", &error))?;
        if told.deleted_date.is_some() {
            return Err(Refusal::Absent(Absence::Deleted));
        }
        let stages = told.version_ids_to_stages.unwrap_or_default();
        Ok(staged(&stages, Stage::Current).map_or(Standing::Absent, Standing::Version))
    }

    /// `RotateSecret`. A rotation that is under way already is as good.
    pub async fn rotate(&self, id: &str, token: &str) -> Result<(), Refusal> {
        let call = self.client.rotate_secret().secret_id(id);
        let call = call.client_request_token(token);
        match self.call(Box::pin(call.send())).await {
            Ok(_) => Ok(()),
            Err(error) => Err(match Refusal::of("RotateSecret", &error) {
                Refusal::State if under_way(error.message()) => return Ok(()),
                Refusal::State => Refusal::Trouble(Trouble::unusable(
                    "AWS does not rotate it: it has no rotation function, or is marked for deletion; set one up with \
                     `aws secretsmanager rotate-secret --rotation-lambda-arn`",
                )),
                refusal => refusal,
            }),
        }
    }

    /// One page of `ListSecrets`, of those that may begin with `folder`.
    pub async fn page(&self, folder: &str, token: Option<String>) -> Result<Page, Refusal> {
        let mut call = self.client.list_secrets().max_results(PAGE);
        if !folder.is_empty() {
            let named = Filter::builder().key(FilterNameStringType::Name);
            let named = named.values(folder).values(format!("/{folder}"));
            call = call.filters(named.build());
        }
        let told = self.call(Box::pin(call.set_next_token(token).send())).await;
        let told = told.map_err(|error| Refusal::of("ListSecrets", &error))?;
        let secrets = told.secret_list.unwrap_or_default().into_iter();
        Ok(Page {
            secrets: secrets.filter_map(listed).collect(),
            next: told.next_token.filter(|token| !token.is_empty()),
        })
    }

    /// Waits for room and makes a call.
    async fn call<T>(&self, call: impl Future<Output = T>) -> T {
        // Nobody closes it.
        let _room = self.room.acquire().await;
        call.await
    }

    /// Why a request about a secret is invalid: it is marked for deletion, or something else.
    async fn state(&self, id: &str) -> Refusal {
        match self.standing(id).await {
            // Who may not look has AWS's word that something is in the way of reading; this is what it names first.
            Err(Refusal::Absent(Absence::Denied)) => Refusal::Absent(Absence::Deleted),
            Err(refusal) => refusal,
            Ok(Standing::Absent) => Refusal::Absent(Absence::Missing),
            Ok(_) => Refusal::Trouble(Trouble::unusable(
                "GetSecretValue: AWS refuses it in the secret's present state (InvalidRequestException)",
            )),
        }
    }
}

/// Whether AWS refuses because it is rotating already.
fn under_way(message: Option<&str>) -> bool {
    message.is_some_and(|message| message.contains("previous rotation"))
}

fn listed(secret: SecretListEntry) -> Option<(String, Option<String>)> {
    if secret.deleted_date.is_some() {
        return None;
    }
    let stages = secret.secret_versions_to_stages.unwrap_or_default();
    Some((secret.name?, staged(&stages, Stage::Current)))
}
