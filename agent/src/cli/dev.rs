//! `keyhatchd dev`: a ready daemon on an encrypted store of the caller's own, with nothing to configure.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use keyhatch_protocol::Name;
use nix::unistd::geteuid;

use super::{exit, fail, paths, say, store_files};
use crate::config::{self, Agent, Depth, KeySource};
use crate::daemon::{self, StartError};
use crate::files::Trust;
use crate::store::{Actor, Edit, Folder, Previous, Value};
use crate::sys::manager::Manager;

#[derive(clap::Args)]
pub struct Args {
    /// Keep everything in this folder: store, key, log, configuration and sockets
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Where one dev agent keeps its things.
struct Home {
    state: PathBuf,
    sockets: PathBuf,
}

pub fn dev(args: &Args) -> u8 {
    daemon::log_to_journald_or_stderr();
    match Home::of(args).and_then(|home| home.prepare()) {
        Ok(config) => run(&config),
        Err(why) => fail(exit::FAILED, why),
    }
}

impl Home {
    fn of(args: &Args) -> Result<Self, String> {
        if let Some(dir) = &args.dir {
            let dir = std::path::absolute(dir).map_err(|error| error.to_string())?;
            return Ok(Self {
                state: dir.clone(),
                sockets: dir,
            });
        }
        let state =
            paths::dev_state().ok_or("neither HOME nor XDG_STATE_HOME is set; use --dir DIR")?;
        Ok(Self {
            state,
            sockets: paths::dev_sockets(),
        })
    }

    /// Makes what is missing; what is there already stays as it is.
    fn prepare(&self) -> Result<PathBuf, String> {
        make_own_folder(&self.state)?;
        make_own_folder(&self.sockets)?;
        let key = KeySource::File(self.state.join("store.key"));
        let store = self.state.join("store");
        if !store.join("store.khs").exists() {
            make_store(&store, &key)?;
        }
        let config = self.state.join("keyhatch.toml");
        let made = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&config);
        match made.and_then(|mut file| file.write_all(self.text().as_bytes())) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(format!("{}: {error}", config.display()))
            }
            _ => Ok(config),
        }
    }

    /// The configuration of a new dev agent.
    fn text(&self) -> String {
        let path = |path: PathBuf| toml_string(&path.display().to_string());
        let uid = geteuid();
        // A uid of the DynamicUser range may be given to another service later, so the policy wants a unit.
        format!(
            r#"# Made by `keyhatchd dev`. Change it as you like: `keyhatchd reload` makes it count.

[agent]
socket       = {socket}
admin_socket = {admin}
state_dir    = {state}

[[source]]
name = "local"
kind = "file"
path = {store}
key  = {key}

# Who: every process of your own user.
[[bot]]
name  = "me"
match = {{ uid = {uid} }}
roles = ["developer"]

# What: every secret of this store.
[role.developer]
grants = [{{ secrets = ["**"] }}]

[audit]
dir      = {audit}
journald = false
"#,
            socket = path(self.sockets.join("keyhatch.sock")),
            admin = path(self.sockets.join("admin.sock")),
            state = path(self.state.clone()),
            store = path(self.state.join("store")),
            key = toml_string(&format!("file:{}", self.state.join("store.key").display())),
            audit = path(self.state.join("audit")),
        )
    }
}

/// Runs the daemon on what was prepared, or on what the caller made of it.
fn run(path: &Path) -> u8 {
    let config = match config::load(path, Depth::Full(Trust::own())) {
        Ok(config) => config,
        Err(problems) => {
            problems.iter().for_each(|problem| eprintln!("{problem}"));
            return exit::CONFIG;
        }
    };
    let Agent {
        socket,
        admin_socket,
        ..
    } = config.agent.clone();
    // The configuration may be of an earlier start, whose folder somebody else has made anew since.
    for folder in [socket.parent(), admin_socket.parent()]
        .into_iter()
        .flatten()
    {
        if let Err(why) = make_own_folder(folder) {
            return fail(exit::FAILED, why);
        }
    }
    let taken = (Manager::default(), Vec::new());
    match daemon::run(path, config, taken, || greet(path, &socket, &admin_socket)) {
        Ok(()) => 0,
        Err(StartError::StateInUse(dir) | StartError::SocketInUse(dir)) => {
            let text = format_args!(
                "{}: another `keyhatchd dev` runs here; stop it, or use --dir DIR",
                dir.display()
            );
            fail(exit::FAILED, text)
        }
        Err(StartError::Config(problems)) => {
            problems.iter().for_each(|problem| eprintln!("{problem}"));
            exit::CONFIG
        }
        Err(error) => fail(exit::FAILED, error),
    }
}

/// Three commands that work as pasted in a second shell. They name a socket only where none would lead
/// elsewhere.
fn greet(config: &Path, bots: &Path, ops: &Path) {
    let (bold, plain) = if io::stdout().is_terminal() {
        ("\x1b[1;32m", "\x1b[0m")
    } else {
        ("", "")
    };
    let cargo = std::env::var_os("CARGO_MANIFEST_DIR").is_some();
    let run = |bin: &str| {
        if cargo {
            format!("cargo run -q --release --bin {bin} --")
        } else {
            bin.to_owned()
        }
    };
    let option = |name: &str, at: &Path, default: &Path| {
        if at == default {
            String::new()
        } else {
            format!(" --{name} {}", shell_quoted(&at.display().to_string()))
        }
    };
    let (client, daemon) = (run("keyhatch"), run("keyhatchd"));
    let bots = option("socket", bots, &paths::bot_socket());
    let ops = option("admin-socket", ops, &paths::admin_socket());
    say(format_args!(
        "keyhatchd is ready; {} is its configuration. In a second shell:\n\n\
         \x20 {bold}{client}{bots} get demo/api-key{plain}\n\
         \x20 {bold}printf %s my-value | {daemon} store put my/secret{ops}{plain}\n\
         \x20 {bold}{client}{bots} whoami{plain}\n",
        config.display()
    ));
}

/// A folder that only the caller can use, made where it is missing.
fn make_own_folder(path: &Path) -> Result<(), String> {
    // Not left to the umask: with a group of one's own it may be 002, and what others can write is refused.
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    // A folder that is not ours to use, or no folder at all, is named below.
    if let (Err(error), true) = (made, fs::symlink_metadata(path).is_err()) {
        return Err(format!("{}: {error}", path.display()));
    }
    // In a folder that all may write, such as /tmp, somebody else may have been first.
    let meta =
        fs::symlink_metadata(path).map_err(|error| format!("{}: {error}", path.display()))?;
    if !meta.is_dir() || meta.uid() != geteuid().as_raw() {
        return Err(format!(
            "{}: is not a folder of yours; remove it or use --dir DIR",
            path.display()
        ));
    }
    Ok(())
}

fn make_store(store: &Path, key: &KeySource) -> Result<(), String> {
    let key = store_files::make_or_read_key(key)?;
    let folder = Folder::init(store).map_err(|error| error.to_string())?;
    let guard = folder.lock().map_err(|error| error.to_string())?;
    let text = |error: crate::store::StoreError| error.to_string();
    let mut edit = Edit::create(&key).map_err(text)?;
    let sample = Name::parse("demo/api-key").map_err(|error| error.to_string())?;
    let value = Value::new(b"demo-value-from-keyhatch".to_vec()).map_err(text)?;
    edit.put(&sample, value, Previous::Keep).map_err(text)?;
    let sealed = edit
        .seal(Actor {
            uid: geteuid().as_raw(),
            login_uid: None,
        })
        .map_err(text)?;
    guard.create(&sealed).map_err(|error| error.to_string())
}

/// A TOML basic string (TOML 1.0, "String").
fn toml_string(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn shell_quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    if text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}
