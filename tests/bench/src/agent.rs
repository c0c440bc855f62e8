//! The agent under test: a store, a configuration with one bot, and rotations prepared ahead, so that nothing
//! but the rename happens while the clock runs.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::unistd::{User, geteuid};

use crate::cgroup;
use crate::openbao::OpenBao;
use crate::process::Server;

/// The secret that the load reads.
pub const READ: &str = "bench/s0000";
/// The secret that rotates.
pub const ROTATING: &str = "bench/rotating";

/// How the bot is selected.
#[derive(Clone, Copy)]
pub enum Selector {
    User,
    Unit,
    Exe,
}

/// A store in a folder of its own, and the daemon that serves it.
pub struct Site {
    daemon: PathBuf,
    folder: PathBuf,
}

impl Site {
    /// A store of `secrets` values of `length` bytes each, made by `keyhatchd store`.
    pub fn new(folder: &Path, secrets: usize, length: usize) -> io::Result<Self> {
        let daemon = std::env::current_exe()?.with_file_name("keyhatchd");
        if !daemon.exists() {
            let why = format!("{} is not built; or use --without-agent", daemon.display());
            return Err(io::Error::other(why));
        }
        make_private(folder)?;
        let site = Self {
            daemon,
            folder: folder.to_owned(),
        };
        site.store(&site.live(), &["init"], b"")?;
        let mut values: BTreeMap<String, String> = (0..secrets)
            .map(|number| (format!("bench/s{number:04}"), value(number, length)))
            .collect();
        values.insert(ROTATING.to_owned(), value(0, length));
        let json = serde_json::to_vec(&values)?;
        site.store(&site.live(), &["import", "--from", "json"], &json)?;
        Ok(site)
    }

    /// The program.
    pub fn daemon(&self) -> &Path {
        &self.daemon
    }

    fn live(&self) -> PathBuf {
        self.folder.join("store")
    }

    fn key(&self) -> String {
        format!("file:{}", self.folder.join("key").display())
    }

    /// One `keyhatchd store` verb on the files; how long it took from start to end.
    fn store(&self, store: &Path, verb: &[&str], input: &[u8]) -> io::Result<Duration> {
        let begin = Instant::now();
        let mut child = Command::new(&self.daemon)
            .arg("store")
            .args(verb)
            .arg("--store")
            .arg(store)
            .args(["--key", &self.key()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // A verb that reads no input may have closed it: its exit status tells.
            drop(stdin.write_all(input));
        }
        let output = child.wait_with_output()?;
        if output.status.success() {
            return Ok(begin.elapsed());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let what = format!(
            "keyhatchd store {}: {}: {}",
            verb.join(" "),
            output.status,
            said.trim()
        );
        Err(io::Error::other(what))
    }

    /// How long one `store put` takes, of a value that is new.
    pub fn time_put(&self, number: usize, length: usize) -> io::Result<Duration> {
        let value = value(usize::MAX - number, length);
        self.store(&self.live(), &["put", ROTATING], value.as_bytes())
    }

    /// How long `store verify` takes: it opens the store and decrypts every record.
    pub fn time_verify(&self) -> io::Result<Duration> {
        self.store(&self.live(), &["verify"], b"")
    }

    /// Starts the daemon with a state folder of its own, kept between starts under the same `name`.
    pub fn start(&self, name: &str, selector: Selector) -> io::Result<Server> {
        self.start_with(name, selector, "")
    }

    /// The same with more in its configuration.
    pub fn start_with(&self, name: &str, selector: Selector, more: &str) -> io::Result<Server> {
        let run = self.folder.join(name);
        make_private(&run)?;
        let config = run.join("keyhatch.toml");
        let text = self.config(&run, selector)? + more;
        let mut file = private_file(&config)?;
        file.write_all(text.as_bytes())?;
        let mut command = Command::new(&self.daemon);
        command.args(["run", "--config"]).arg(&config);
        Server::spawn(&mut command, &run.join("agent.sock"))
    }

    /// Starts a daemon whose only source is an upstream.
    pub fn start_on(&self, name: &str, bao: &OpenBao, prefetch: &str) -> io::Result<Server> {
        let run = self.folder.join(name);
        make_private(&run)?;
        let token = run.join("token");
        private_file(&token)?.write_all(OpenBao::token().as_bytes())?;
        let own = self.config(&run, Selector::User)?;
        let (before, rest) = own.split_once("kind = \"file\"").unwrap_or_default();
        let (_, after) = rest.split_once("[[bot]]").unwrap_or_default();
        let text = format!(
            "{before}{}prefetch = [\"{prefetch}\"]\n\n[[bot]]{after}",
            bao.source(&token)
        );
        let config = run.join("keyhatch.toml");
        private_file(&config)?.write_all(text.as_bytes())?;
        let mut command = Command::new(&self.daemon);
        command.args(["run", "--config"]).arg(&config);
        Server::spawn(&mut command, &run.join("agent.sock"))
    }

    /// Starts a daemon with a route `origin` that calls `upstream` with the secret that the load reads.
    pub fn start_with_route(&self, upstream: &str, authority: &Path) -> io::Result<Server> {
        let run = self.folder.join("routes");
        make_private(&run)?;
        let role = self
            .config(&run, Selector::User)?
            .replace("roles = [\"bench\"]", "roles = [\"bench\", \"caller\"]");
        let text = format!(
            r#"{role}
[role.caller]
grants = [{{ routes = ["origin"], actions = ["use"] }}]

[[route]]
name = "origin"
upstream = "{upstream}"
secret = "{READ}"
inject = {{ header = "authorization", value = "Bearer {{secret}}" }}
allow = ["* /**"]
allow_private = true
ca_file = "{}"
"#,
            authority.display()
        );
        let config = run.join("keyhatch.toml");
        private_file(&config)?.write_all(text.as_bytes())?;
        let mut command = Command::new(&self.daemon);
        command.args(["run", "--config"]).arg(&config);
        Server::spawn(&mut command, &run.join("agent.sock"))
    }

    /// Puts a value into the store.
    pub fn put(&self, name: &str, value: &[u8]) -> io::Result<()> {
        self.store(&self.live(), &["put", name], value).map(drop)
    }

    fn config(&self, run: &Path, selector: Selector) -> io::Result<String> {
        let own = std::env::current_exe()?;
        let matched = match selector {
            Selector::User => user()?,
            Selector::Unit => format!("unit = \"{}\"", cgroup::UNIT),
            Selector::Exe => format!("exe = \"{}\"", own.display()),
        };
        let (folder, run, key) = (self.folder.display(), run.display(), self.key());
        Ok(format!(
            r#"[agent]
socket = "{run}/agent.sock"
admin_socket = "{run}/admin.sock"
state_dir = "{run}/state"

[[source]]
name = "local"
kind = "file"
path = "{folder}/store"
key = "{key}"

[[bot]]
name = "bench"
match = {{ {matched} }}
roles = ["bench"]

[role.bench]
grants = [{{ secrets = ["bench/**"], actions = ["read", "list", "watch"] }}]

[audit]
dir = "{run}/audit"
journald = false
"#
        ))
    }

    /// The next `count` generations of the store, each made by a `store put` on a copy of it.
    pub fn rotations(&self, count: usize, length: usize) -> io::Result<Rotations> {
        let copy = self.folder.join("next");
        make_private(&copy)?;
        let mut before = contents(&self.live())?;
        for (name, bytes) in &before {
            private_file(&copy.join(name))?.write_all(bytes)?;
        }
        let mut steps = Vec::new();
        for number in 0..count {
            let put = value(1_000_000 + number, length);
            self.store(&copy, &["put", ROTATING], put.as_bytes())?;
            let after = contents(&copy)?;
            let mut step: Vec<_> = after
                .iter()
                .filter(|(name, bytes)| before.get(*name) != Some(bytes))
                .map(|(name, bytes)| (name.clone(), bytes.clone()))
                .collect();
            // Where a note is kept beside the store, the store itself comes last.
            step.sort_by_key(|(_, bytes)| bytes.len());
            steps.push(step);
            before = after;
        }
        Ok(Rotations {
            live: self.live(),
            staged: self.folder.join("staged"),
            steps: steps.into_iter(),
        })
    }
}

/// Stores that are ready to be renamed into place, oldest first.
pub struct Rotations {
    live: PathBuf,
    staged: PathBuf,
    steps: std::vec::IntoIter<Vec<(PathBuf, Vec<u8>)>>,
}

impl Rotations {
    /// Puts the next store in place; the instant just before its rename.
    pub fn next(&mut self) -> io::Result<Instant> {
        let step = self.steps.next().filter(|step| !step.is_empty());
        let step =
            step.ok_or_else(|| io::Error::other("no rotation is left, or a put changed no file"))?;
        let mut at = Instant::now();
        for (name, bytes) in step {
            let mut file = private_file(&self.staged)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            drop(file);
            at = Instant::now();
            fs::rename(&self.staged, self.live.join(name))?;
        }
        Ok(at)
    }
}

/// Every file of a store's folder.
fn contents(folder: &Path) -> io::Result<BTreeMap<PathBuf, Vec<u8>>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            files.insert(PathBuf::from(entry.file_name()), fs::read(entry.path())?);
        }
    }
    Ok(files)
}

/// The user that runs the benchmark, as a selector.
fn user() -> io::Result<String> {
    let uid = geteuid();
    let user = User::from_uid(uid)?;
    Ok(user.map_or_else(
        || format!("uid = {uid}"),
        |user| format!("user = \"{}\"", user.name),
    ))
}

/// `length` bytes that differ from number to number.
fn value(number: usize, length: usize) -> String {
    let mut value = format!("CANARY-bench-{number}-");
    value.extend(std::iter::repeat_n('v', length.saturating_sub(value.len())));
    value
}

fn make_private(folder: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).recursive(true).create(folder)
}

fn private_file(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
}
