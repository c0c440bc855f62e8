//! `keyhatchd store`: the encrypted store, over the admin socket or on the files.

use std::io::{self, IsTerminal, Read, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hyper::Method;
use keyhatch_protocol::{MAX_VALUE, Name};
use serde_json::{Value as Json, json};
use zeroize::Zeroizing;

use super::admin::finish;
use super::store_options::{Args, At, From, Import, KeyVerb, Verb};
use super::{exit, fail, store_files};
use crate::config::KeySource;
use crate::files::Trust;
use crate::sources::credential_offline;
use crate::store::import::{self, Format};
use crate::store::{Key, Value};
use crate::sys::terminal;

/// The largest file that is imported.
const LARGEST_IMPORT: u64 = 64 << 20;

/// What a verb asks of a store, wherever it is.
pub enum Asked {
    Put {
        name: Name,
        value: Value,
        revoke: bool,
    },
    Generate {
        name: Name,
        length: usize,
    },
    Rm(Name),
    List,
    Verify,
    Import {
        values: Vec<(Name, Value)>,
        dry_run: bool,
    },
    Rekey(Vec<Key>),
    KeyAdd {
        label: String,
        key: Key,
    },
    KeyList,
    KeyRm(String),
    AcceptOlder,
}

pub fn store(args: Args) -> u8 {
    match args.verb {
        Verb::Init(init) => store_files::init(&init.store, &init.key),
        Verb::Get(get) => match (&get.at.store, &get.at.key) {
            (Some(store), Some(key)) => store_files::get(store, key, &get.name),
            _ => fail(
                exit::USAGE,
                "the daemon gives no value without a grant, to operators neither; add --store DIR --key KEY",
            ),
        },
        Verb::Put(put) => match read_value(put.trim) {
            Ok(value) => ask(
                &put.at,
                Asked::Put {
                    name: put.name,
                    value,
                    revoke: put.revoke_previous,
                },
            ),
            Err(why) => fail(exit::FAILED, why),
        },
        Verb::List(plain) => ask(&plain.at, Asked::List),
        Verb::Rm(rm) => ask(&rm.at, Asked::Rm(rm.name)),
        Verb::Import(args) => match read_import(&args) {
            Ok(values) => ask(
                &args.at,
                Asked::Import {
                    values,
                    dry_run: args.dry_run,
                },
            ),
            Err(why) => fail(exit::FAILED, why),
        },
        Verb::Generate(args) => ask(
            &args.at,
            Asked::Generate {
                name: args.name,
                length: args.length,
            },
        ),
        Verb::Rekey(args) => match args.keep_key.iter().map(store_files::key_of).collect() {
            Ok(keys) => ask(&args.at, Asked::Rekey(keys)),
            Err(why) => fail(exit::FAILED, why),
        },
        Verb::Verify(plain) => ask(&plain.at, Asked::Verify),
        Verb::AcceptOlder(plain) => ask(&plain.at, Asked::AcceptOlder),
        Verb::Key(KeyVerb::Add(args)) => match store_files::make_or_read_key(&args.new_key) {
            Ok(key) => ask(
                &args.at,
                Asked::KeyAdd {
                    label: args.label,
                    key,
                },
            ),
            Err(why) => fail(exit::FAILED, why),
        },
        Verb::Key(KeyVerb::List(plain)) => ask(&plain.at, Asked::KeyList),
        Verb::Key(KeyVerb::Rm(args)) => ask(&args.at, Asked::KeyRm(args.label)),
    }
}

fn ask(at: &At, asked: Asked) -> u8 {
    if let (Some(store), Some(key)) = (&at.store, &at.key) {
        return match store_files::act(store, key, asked) {
            Ok(done) => {
                show(&done, at.json);
                0
            }
            Err(why) => fail(exit::FAILED, why),
        };
    }
    let (path, body) = request(asked, at.source.as_deref());
    finish(at.target.ask(Method::POST, &path, body), at.json, told)
}

fn show(done: &Json, json: bool) {
    let text = if json { done.to_string() } else { told(done) };
    if !text.is_empty() {
        println!("{text}");
    }
}

/// What was done, for people.
fn told(done: &Json) -> String {
    let text = |row: &Json, key: &str| {
        row.get(key)
            .and_then(Json::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let rows = |key: &str| done.get(key).and_then(Json::as_array).cloned();
    if let Some(results) = rows("results") {
        // The contract's word for an import that changes nothing is `same`.
        let word = |row: &Json| text(row, "result").replace("unchanged", "same");
        let lines = results
            .iter()
            .map(|row| format!("{} {}", word(row), text(row, "name")));
        return lines.collect::<Vec<_>>().join("\n");
    }
    if let Some(secrets) = rows("secrets") {
        let bytes = |row: &Json| row.get("bytes").and_then(Json::as_u64).unwrap_or_default();
        let lines = secrets.iter().map(|row| {
            format!(
                "{}\t{}\t{}\t{} bytes",
                text(row, "name"),
                text(row, "version"),
                text(row, "updated_at"),
                bytes(row)
            )
        });
        return lines.collect::<Vec<_>>().join("\n");
    }
    if let Some(keys) = rows("keys") {
        let lines = keys
            .iter()
            .map(|row| format!("{}\t{}", text(row, "label"), text(row, "fingerprint")));
        return lines.collect::<Vec<_>>().join("\n");
    }
    if let Some(generation) = done.get("generation") {
        let count = done
            .get("secrets")
            .map(|count| format!("{count} secrets, "))
            .unwrap_or_default();
        return format!("{count}generation {generation}");
    }
    format!(
        "{} {} {}",
        text(done, "result"),
        text(done, "name"),
        text(done, "version")
    )
    .trim_end()
    .to_owned()
}

/// A verb as a request to the admin socket.
fn request(asked: Asked, source: Option<&str>) -> (String, Bytes) {
    let (verb, query, body) = match asked {
        Asked::Put {
            name,
            value,
            revoke,
        } => {
            let revoke = if revoke { "&revoke_previous=true" } else { "" };
            (
                "put",
                format!("name={}{revoke}", escaped(name.as_str())),
                Bytes::copy_from_slice(value.as_bytes()),
            )
        }
        Asked::Generate { name, length } => (
            "generate",
            format!("name={}&length={length}", escaped(name.as_str())),
            Bytes::new(),
        ),
        Asked::Rm(name) => (
            "rm",
            format!("name={}", escaped(name.as_str())),
            Bytes::new(),
        ),
        Asked::List => ("list", String::new(), Bytes::new()),
        Asked::Verify => ("verify", String::new(), Bytes::new()),
        Asked::Import { values, dry_run } => {
            ("import", String::new(), import_body(&values, dry_run))
        }
        Asked::Rekey(keys) => {
            let bytes: Vec<u8> = keys.iter().flat_map(|key| *key.as_bytes()).collect();
            ("rekey", String::new(), bytes.into())
        }
        Asked::KeyAdd { label, key } => (
            "key-add",
            format!("label={}", escaped(&label)),
            Bytes::copy_from_slice(key.as_bytes()),
        ),
        Asked::KeyList => ("key-list", String::new(), Bytes::new()),
        Asked::KeyRm(label) => ("key-rm", format!("label={}", escaped(&label)), Bytes::new()),
        Asked::AcceptOlder => ("accept-older", String::new(), Bytes::new()),
    };
    let source = source
        .map(|source| format!("&source={}", escaped(source)))
        .unwrap_or_default();
    (format!("/v1/store/{verb}?{query}{source}"), body)
}

fn import_body(values: &[(Name, Value)], dry_run: bool) -> Bytes {
    let values: Vec<Json> = values
        .iter()
        .map(|(name, value)| json!({ "name": name, "value_base64": STANDARD.encode(value.as_bytes()) }))
        .collect();
    json!({ "values": values, "dry_run": dry_run })
        .to_string()
        .into()
}

fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/@".contains(&byte);
    text.bytes()
        .map(|byte| {
            if plain(byte) {
                char::from(byte).to_string()
            } else {
                format!("%{byte:02X}")
            }
        })
        .collect()
}

/// The value on standard input to its end, or typed without echo on a terminal.
fn read_value(trim: bool) -> Result<Value, String> {
    let mut bytes = Vec::with_capacity(MAX_VALUE + 2);
    let stdin = io::stdin();
    if stdin.is_terminal() {
        eprint!("Value (not shown): ");
        let _ = io::stderr().flush();
        terminal::read_line_unseen(&stdin, &mut bytes).map_err(|error| error.to_string())?;
        eprintln!();
        bytes.pop_if(|last| *last == b'\n');
    } else {
        let limit = MAX_VALUE as u64 + 2;
        stdin
            .lock()
            .take(limit)
            .read_to_end(&mut bytes)
            .map_err(|error| error.to_string())?;
        if trim {
            bytes.pop_if(|last| *last == b'\n');
        } else if bytes.last() == Some(&b'\n') {
            eprintln!(
                "keyhatchd: warning: the value ends in a newline, which is kept; --trim drops it"
            );
        }
    }
    Value::new(bytes).map_err(|error| error.to_string())
}

fn read_import(args: &Import) -> Result<Vec<(Name, Value)>, String> {
    let mut bytes = Zeroizing::new(Vec::new());
    let (what, read) = match &args.file {
        Some(path) => {
            let file = std::fs::File::open(path)
                .map_err(|error| format!("{}: {error}", path.display()))?;
            (
                path.display().to_string(),
                file.take(LARGEST_IMPORT + 1).read_to_end(&mut bytes),
            )
        }
        None => (
            "standard input".into(),
            io::stdin()
                .lock()
                .take(LARGEST_IMPORT + 1)
                .read_to_end(&mut bytes),
        ),
    };
    read.map_err(|error| format!("{what}: {error}"))?;
    if bytes.len() as u64 > LARGEST_IMPORT {
        return Err(format!("{what}: larger than {LARGEST_IMPORT} bytes"));
    }
    let key = match &args.fernet_key {
        Some(path) => Zeroizing::new(
            std::fs::read_to_string(path)
                .map_err(|error| format!("{}: {error}", path.display()))?,
        ),
        None => Zeroizing::default(),
    };
    let format = match args.from {
        From::Dotenv => Format::Dotenv,
        From::Json => Format::Json,
        From::Fernet => Format::Fernet { key: &key },
    };
    import::parse(format, &bytes, &args.prefix).map_err(|error| format!("{what}: {error}"))
}

/// A key that a verb names besides the store's own.
pub fn other_key(key: &KeySource) -> Result<Key, String> {
    credential_offline(key, Trust::own()).map_err(|error| error.to_string())
}
