//! The verbs that ask the running daemon over its admin socket.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use nix::unistd::geteuid;
use serde_json::Value as Json;
use tokio::net::UnixStream;

use super::{exit, fail, paths, say, status};
use crate::config::{self, Depth};
use crate::sys::peer;

/// Which daemon is asked.
#[derive(clap::Args)]
pub struct Target {
    /// The daemon's admin socket
    #[arg(long, value_name = "PATH", conflicts_with = "config")]
    admin_socket: Option<PathBuf>,
    /// The daemon's configuration, which names the socket
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    target: Target,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

impl Args {
    /// Asks the daemon.
    pub fn ask(&self, method: Method, path: &str, body: Bytes) -> Result<Reply, AskError> {
        self.target.ask(method, path, body)
    }
}

/// What the daemon answered.
pub struct Reply {
    pub status: StatusCode,
    pub body: Json,
}

/// Why it did not.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error("{0}: {1}; is keyhatchd running?")]
    Unreachable(PathBuf, io::Error),
    #[error("{0}: another user (uid {1}) listens there, not the agent")]
    Refused(PathBuf, u32),
    #[error("{0}: the answer broke off: {1}")]
    Broken(PathBuf, String),
    #[error("{0}")]
    Config(String),
}

impl AskError {
    pub fn code(&self) -> u8 {
        match self {
            Self::Unreachable(..) | Self::Refused(..) => exit::UNREACHABLE,
            Self::Broken(..) => exit::FAILED,
            Self::Config(_) => exit::CONFIG,
        }
    }
}

impl Target {
    /// Asks the daemon; `body` may hold a value.
    pub fn ask(&self, method: Method, path: &str, body: Bytes) -> Result<Reply, AskError> {
        let (socket, guessed) = self.socket()?;
        let broken = |error: io::Error| AskError::Broken(socket.clone(), error.to_string());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .map_err(broken)?;
        runtime.block_on(ask(&socket, guessed, method, path, body))
    }

    /// The socket, and whether it was guessed: anyone may have made a folder in /tmp first.
    fn socket(&self) -> Result<(PathBuf, bool), AskError> {
        if let Some(socket) = &self.admin_socket {
            return Ok((socket.clone(), false));
        }
        let Some(config) = &self.config else {
            return Ok((paths::admin_socket(), true));
        };
        let config = config::load(config, Depth::ContentOnly).map_err(|problems| {
            let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
            AskError::Config(lines.join("\n"))
        })?;
        Ok((config.agent.admin_socket, false))
    }
}

async fn ask(
    socket: &Path,
    guessed: bool,
    method: Method,
    path: &str,
    body: Bytes,
) -> Result<Reply, AskError> {
    let unreachable = |error| AskError::Unreachable(socket.to_owned(), error);
    let broken = |error: hyper::Error| AskError::Broken(socket.to_owned(), error.to_string());
    let folder = File::open(socket.parent().unwrap_or(Path::new("/"))).map_err(unreachable)?;
    let stream = UnixStream::connect(socket).await.map_err(unreachable)?;
    let server = peer::credentials(&stream.as_fd()).map_err(unreachable)?.uid;
    let owner = folder.metadata().map_err(unreachable)?.uid();
    // The owner of a folder that was guessed is nobody to trust.
    let trusted = server == 0 || server == geteuid().as_raw() || server == owner && !guessed;
    if !trusted {
        return Err(AskError::Refused(socket.to_owned(), server));
    }
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(broken)?;
    // It ends with the runtime.
    tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "keyhatch")
        .body(Full::new(body))
        .map_err(|error| AskError::Broken(socket.to_owned(), error.to_string()))?;
    let answer = sender.send_request(request).await.map_err(broken)?;
    let status = answer.status();
    let bytes = answer
        .into_body()
        .collect()
        .await
        .map_err(broken)?
        .to_bytes();
    Ok(Reply {
        status,
        body: serde_json::from_slice(&bytes).unwrap_or_default(),
    })
}

/// Ends a verb that was answered: prints what `good` makes of it, or what went wrong.
pub fn finish(
    answer: Result<Reply, AskError>,
    json: bool,
    good: impl FnOnce(&Json) -> String,
) -> u8 {
    let reply = match answer {
        Ok(reply) => reply,
        Err(error) => return fail(error.code(), &error),
    };
    if reply.status.is_success() {
        let text = if json {
            reply.body.to_string()
        } else {
            good(&reply.body)
        };
        if !text.is_empty() {
            say(text);
        }
        return 0;
    }
    if let Some(refused) = reply.body.get("refused").and_then(Json::as_array) {
        refused
            .iter()
            .filter_map(Json::as_str)
            .for_each(|line| eprintln!("{line}"));
        return exit::CONFIG;
    }
    let word = |key: &str| {
        reply
            .body
            .get(key)
            .and_then(Json::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let detail = Some(word("detail"))
        .filter(|text| !text.is_empty())
        .unwrap_or_else(|| word("title"));
    let code = match reply.status {
        StatusCode::FORBIDDEN => exit::DENIED,
        StatusCode::SERVICE_UNAVAILABLE => exit::TRY_AGAIN,
        StatusCode::NOT_FOUND => exit::NOT_FOUND,
        _ => exit::FAILED,
    };
    fail(
        code,
        format_args!("{detail} (request {})", word("request_id")),
    )
}

pub fn status(args: &Args) -> u8 {
    let answer = args.target.ask(Method::GET, "/v1/status", Bytes::new());
    finish(answer, args.json, status::render)
}

pub fn reload(args: &Args) -> u8 {
    let answer = args.target.ask(Method::POST, "/v1/reload", Bytes::new());
    finish(answer, args.json, |_| "reloaded".into())
}

pub fn seal(args: &Args) -> u8 {
    let answer = args.target.ask(Method::POST, "/v1/seal", Bytes::new());
    let kept = kept(&answer);
    let code = finish(answer, args.json, |sealed| {
        let left = sealed
            .get("secret_memory_used")
            .and_then(Json::as_u64)
            .unwrap_or_default();
        format!("sealed; {left} bytes of secret memory are still in use")
    });
    match kept {
        Ok(()) => code,
        Err(why) => fail(
            exit::FAILED,
            format_args!("a restart would load all values again: {why}; stop keyhatchd, too"),
        ),
    }
}

/// Whether what was done to the seal outlives the daemon; the error says why not.
fn kept(answer: &Result<Reply, AskError>) -> Result<(), String> {
    let Ok(reply) = answer else { return Ok(()) };
    match reply.body.get("survives_restart").and_then(Json::as_bool) {
        Some(false) => Err(reply.body["why"].as_str().unwrap_or_default().to_owned()),
        _ => Ok(()),
    }
}

pub fn unseal(args: &Args) -> u8 {
    let answer = args.target.ask(Method::POST, "/v1/unseal", Bytes::new());
    let kept = kept(&answer);
    let code = finish(answer, args.json, |unsealed| {
        let reasons = unsealed
            .get("reasons")
            .and_then(Json::as_array)
            .cloned()
            .unwrap_or_default();
        let reasons: Vec<&str> = reasons.iter().filter_map(Json::as_str).collect();
        if reasons.is_empty() {
            "unsealed".into()
        } else {
            format!("unsealed, but: {}", reasons.join("; "))
        }
    });
    match kept {
        Ok(()) => code,
        Err(why) => fail(
            exit::FAILED,
            format_args!("it serves, but a restart would be sealed: {why}; remove that file"),
        ),
    }
}
