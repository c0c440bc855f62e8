//! What Vault's clients ask around secrets: which mount a path is in, who they are, how the server is.

use hyper::StatusCode;
use keyhatch_protocol::percent_decode;
use serde_json::{Map, Value as Json, json};

use super::vault_answer;
use crate::api::answer::Answer;
use crate::api::connection::{Bound, Connection};
use crate::api::id::RequestId;
use crate::api::request::pairs;
use crate::policy::BotMatch;

/// What the answers call this server.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "+keyhatch");

/// What stands for a token, where clients do not go on without one.
const NO_TOKEN: &str = "keyhatch";

/// Answers a path under `sys` or `auth`.
pub fn answer(
    connection: &Connection,
    bound: &Bound,
    id: &RequestId,
    path: &str,
    query: Option<&str>,
) -> Answer {
    match path {
        "sys/health" => health(connection, query),
        "sys/seal-status" => seal_status(connection),
        "sys/init" => vault_answer::document(StatusCode::OK, &json!({ "initialized": true })),
        "sys/leader" => vault_answer::document(
            StatusCode::OK,
            &json!({ "ha_enabled": false, "is_self": false, "leader_address": "", "leader_cluster_address": "" }),
        ),
        "auth/token/lookup-self" => lookup_self(bound, id),
        "sys/internal/ui/mounts" => mounts(connection, id),
        _ => {
            let Some(path) = path.strip_prefix("sys/internal/ui/mounts/") else {
                let why = "1 error occurred:\n\t* unsupported path\n\n";
                return vault_answer::errors(404, &[why], id);
            };
            mount_of(connection, id, path)
        }
    }
}

fn health(connection: &Connection, query: Option<&str>) -> Answer {
    let context = &connection.context;
    let sealed = context.cache.is_sealed();
    let code = |wanted: &str| {
        let (_, value) = pairs(query).find(|(key, _)| *key == wanted)?;
        StatusCode::from_bytes(value.as_bytes()).ok()
    };
    let status = if sealed {
        code("sealedcode").unwrap_or(StatusCode::SERVICE_UNAVAILABLE)
    } else if context.status().reasons.is_empty() {
        code("activecode").unwrap_or(StatusCode::OK)
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    vault_answer::document(
        status,
        &json!({
            "initialized": true,
            "sealed": sealed,
            "standby": false,
            "replication_performance_mode": "disabled",
            "replication_dr_mode": "disabled",
            "server_time_utc": now.unwrap_or_default().as_secs(),
            "version": VERSION,
            "cluster_name": "keyhatch",
            "cluster_id": "",
        }),
    )
}

fn seal_status(connection: &Connection) -> Answer {
    vault_answer::document(
        StatusCode::OK,
        &json!({
            "type": "keyhatch",
            "initialized": true,
            "sealed": connection.context.cache.is_sealed(),
            "t": 1,
            "n": 1,
            "progress": 0,
            "nonce": "",
            "recovery_seal": false,
            "version": VERSION,
            "commit_date": "",
            "migration": false,
            "cluster_name": "keyhatch",
            "cluster_id": "",
            "storage_type": "keyhatch",
        }),
    )
}

/// Whatever token was sent: the kernel has said who asks.
fn lookup_self(bound: &Bound, id: &RequestId) -> Answer {
    let bot = match &bound.found {
        BotMatch::Bot(id) => bound.policy.bot(*id),
        _ => None,
    };
    let Some(bot) = bot else {
        return vault_answer::errors(403, &["permission denied"], id);
    };
    let roles: Vec<&str> = bot.roles.iter().map(|role| &**role).collect();
    vault_answer::data(
        id,
        &json!({
            "accessor": NO_TOKEN,
            "creation_time": 0,
            "creation_ttl": 0,
            "display_name": &*bot.name,
            "entity_id": "",
            "expire_time": null,
            "explicit_max_ttl": 0,
            "id": NO_TOKEN,
            "issue_time": "1970-01-01T00:00:00Z",
            "meta": null,
            "num_uses": 0,
            "orphan": true,
            "path": "auth/keyhatch",
            "policies": roles,
            "renewable": false,
            "ttl": 0,
            "type": "service",
        }),
    )
}

fn mounts(connection: &Connection, id: &RequestId) -> Answer {
    let dropin = connection.context.dropin.load();
    let mounts: Map<String, Json> = dropin
        .vault_mounts
        .keys()
        .map(|mount| (format!("{mount}/"), Json::Object(about())))
        .collect();
    vault_answer::data(id, &json!({ "auth": {}, "secret": mounts }))
}

/// The mount that a path is in. It says nothing of what is there.
fn mount_of(connection: &Connection, id: &RequestId, path: &str) -> Answer {
    let path = String::from_utf8_lossy(&percent_decode(path).unwrap_or_default()).into_owned();
    let dropin = connection.context.dropin.load();
    let mut mounts = dropin.vault_mounts.keys();
    let Some(mount) = mounts.find(|mount| crate::config::is_under(&path, mount)) else {
        let why = format!(
            "preflight capability check returned 403, please ensure client's policies grant access to path {:?}",
            format!("{}/", path.trim_end_matches('/'))
        );
        return vault_answer::errors(403, &[why], id);
    };
    let mut about = about();
    about.insert("path".into(), format!("{mount}/").into());
    vault_answer::data(id, &about.into())
}

fn about() -> Map<String, Json> {
    let about = json!({
        "accessor": "",
        "config": { "default_lease_ttl": 0, "force_no_cache": false, "max_lease_ttl": 0 },
        "deprecation_status": "supported",
        "description": "secrets of this host's agent",
        "external_entropy_access": false,
        "local": false,
        "options": { "version": "2" },
        "plugin_version": "",
        "running_plugin_version": VERSION,
        "running_sha256": "",
        "seal_wrap": false,
        "type": "kv",
        "uuid": "",
    });
    match about {
        Json::Object(about) => about,
        _ => Map::new(),
    }
}
