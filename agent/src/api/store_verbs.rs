//! The store verbs as they come over the operators' socket.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use keyhatch_protocol::Name;
use serde::Deserialize;
use serde_json::{Value as Json, json};
use tokio::sync::oneshot;

use crate::sources::{Asked, ByOperator, FileSource, KeeperError, StoreEdit};
use crate::store::{Actor, Edit, Key, Previous, Put, Value};

/// The length of a generated value where none is given.
const GENERATED: usize = 40;

/// A store verb, ready for the keeper.
pub struct StoreVerb {
    source: Option<String>,
    what: What,
}

enum What {
    Edit(StoreEdit),
    AcceptOlder,
}

/// An import, parsed by the operator's own command.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Import {
    values: Vec<ImportValue>,
    #[serde(default)]
    dry_run: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ImportValue {
    name: String,
    value_base64: String,
}

impl StoreVerb {
    /// The command for the keeper.
    pub fn into_command(
        self,
        actor: Actor,
        by: ByOperator,
        reply: oneshot::Sender<Result<Json, KeeperError>>,
    ) -> Asked {
        match self.what {
            What::Edit(edit) => Asked::Edit {
                source: self.source,
                edit,
                by: actor,
                reply,
            },
            What::AcceptOlder => Asked::AcceptOlder {
                source: self.source,
                by,
                reply,
            },
        }
    }
}

/// Parses a verb; the message of an error is for the operator and holds no value.
pub fn parse(verb: &str, query: &[(String, String)], body: &[u8]) -> Result<StoreVerb, String> {
    let get = |key: &str| {
        query
            .iter()
            .find(|(k, _)| k == key)
            .map(|(_, value)| value.as_str())
    };
    let name = || {
        let text = get("name").ok_or("the request names no secret")?;
        Name::parse(text).map_err(|why| format!("{text:?}: {why}"))
    };
    let label = || {
        get("label")
            .map(str::to_owned)
            .ok_or("the request names no label".to_owned())
    };
    let what = match verb {
        "put" => put(name()?, body, get("revoke_previous") == Some("true"))?,
        "generate" => {
            let length = get("length")
                .map_or(Ok(GENERATED), str::parse)
                .map_err(|_| "length is a number")?;
            generate(name()?, length)
        }
        "rm" => remove(name()?),
        "list" => edit(|edit, _| Ok(json!({ "secrets": edit.list() }))),
        "import" => import(body)?,
        "verify" => edit(|edit, _| {
            Ok(json!({ "secrets": edit.list().len(), "generation": edit.generation() }))
        }),
        "rekey" => rekey(keys(body)?),
        "key-list" => edit(|edit, _| Ok(json!({ "keys": edit.keys() }))),
        "key-add" => key_add(label()?, keys(body)?)?,
        "key-rm" => key_remove(label()?),
        "accept-older" => What::AcceptOlder,
        _ => return Err("no such store verb".into()),
    };
    Ok(StoreVerb {
        source: get("source").map(str::to_owned),
        what,
    })
}

fn edit(
    act: impl FnOnce(&mut Edit, &FileSource) -> Result<Json, KeeperError> + Send + 'static,
) -> What {
    What::Edit(Box::new(act))
}

/// What would never be served is not written: whoever put it would wait for it in vain.
fn served(source: &FileSource, name: &Name) -> Result<(), KeeperError> {
    source
        .names
        .served(name.as_str())
        .map(drop)
        .map_err(KeeperError::Asked)
}

fn put(name: Name, body: &[u8], revoke: bool) -> Result<What, String> {
    let value = Value::new(body.to_vec()).map_err(|why| why.to_string())?;
    let previous = if revoke {
        Previous::Revoke
    } else {
        Previous::Keep
    };
    Ok(edit(move |edit, source| {
        served(source, &name)?;
        Ok(told(&name, &edit.put(&name, value, previous)?))
    }))
}

fn generate(name: Name, length: usize) -> What {
    edit(move |edit, source| {
        served(source, &name)?;
        Ok(told(&name, &edit.generate(&name, length)?))
    })
}

fn remove(name: Name) -> What {
    edit(move |edit, _| {
        if edit.remove(&name) {
            return Ok(json!({ "name": name, "result": "removed" }));
        }
        Err(KeeperError::Asked(format!("there is no secret {name}")))
    })
}

fn import(body: &[u8]) -> Result<What, String> {
    let import: Import = serde_json::from_slice(body)
        .map_err(|_| "the import is not the expected JSON".to_owned())?;
    let mut values = Vec::new();
    for value in import.values {
        let name = Name::parse(&value.name).map_err(|why| format!("{:?}: {why}", value.name))?;
        let bytes = STANDARD
            .decode(value.value_base64)
            .map_err(|_| format!("the value of {name} is not base64"))?;
        values.push((name, Value::new(bytes).map_err(|why| why.to_string())?));
    }
    let dry_run = import.dry_run;
    Ok(edit(move |edit, source| {
        for (name, _) in &values {
            served(source, name)?;
        }
        let plan = if dry_run {
            edit.plan(&values)
        } else {
            edit.import(values)?
        };
        Ok(json!({ "results": plan.iter().map(|(name, put)| told(name, put)).collect::<Vec<_>>() }))
    }))
}

fn rekey(others: Vec<Key>) -> What {
    edit(move |edit, source| {
        let own = source
            .load_key()
            .map_err(|error| KeeperError::Asked(error.to_string()))?;
        let keys: Vec<&Key> = std::iter::once(&own).chain(&others).collect();
        edit.rekey(&keys)?;
        Ok(json!({ "keys": edit.keys() }))
    })
}

fn key_add(label: String, keys: Vec<Key>) -> Result<What, String> {
    let [key] = <[Key; 1]>::try_from(keys).map_err(|_| "give one key")?;
    Ok(edit(move |edit, _| {
        edit.add_key(&label, &key)?;
        Ok(json!({ "keys": edit.keys() }))
    }))
}

fn key_remove(label: String) -> What {
    edit(move |edit, _| {
        edit.remove_key(&label)?;
        Ok(json!({ "keys": edit.keys() }))
    })
}

/// Keys stand in a body one after the other, 32 bytes each.
fn keys(body: &[u8]) -> Result<Vec<Key>, String> {
    if !body.len().is_multiple_of(32) {
        return Err("a key is 32 bytes".into());
    }
    body.chunks(32)
        .map(|bytes| Key::from_bytes(bytes).map_err(|why| why.to_string()))
        .collect()
}

fn told(name: &Name, put: &Put) -> Json {
    json!({ "name": name, "result": put.as_str(), "version": put.version() })
}
