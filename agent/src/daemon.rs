//! Wiring: start, reload, drain, stop.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use serde_json::json;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::mpsc as channel;

use crate::api::admin::{AdminServer, Reload};
use crate::api::limits::Limits;
use crate::api::{Context, RequestIds, Server, ServerError, metrics_server};
use crate::audit::{self, Entry, Event, Log, extra};
use crate::cache::Cache;
use crate::config::{self, Config, Depth, Metrics, SourceKind, Stamps};
use crate::files::Trust;
use crate::identity::accounts::Lookup;
use crate::identity::{Images, Kernel};
use crate::policy::{Bot, Kind};
use crate::sources::engine::Rooms;
use crate::sources::{Asked, FileSource, Keeper, Names, Owners, States, platforms};
use crate::sys::arena::Arena;
use crate::sys::harden;
use crate::sys::secret::Protection;

/// The secret memory of a process that may lock as much as it likes. Pages are taken as they are written.
const UNLIMITED_ARENA: usize = 1 << 30;

/// What is left of a limit on locked memory for others in the process.
const SPARE: u64 = 64 * 1024;

/// How many events of the kernel are taken at a time: more than one user's connections can have, so that
/// they do not push the news of an exit to the next time.
const EVENTS: usize = 8 * 1024;

/// Why the daemon does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration cannot work on this host.
    #[error("{}", .0.join("\n"))]
    Config(Vec<String>),
    /// A file or folder.
    #[error("{what} {path}: {why}", path = path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        why: io::Error,
    },
    /// Another daemon.
    #[error("{0}: another keyhatchd uses this state_dir; stop it, or give each its own")]
    StateInUse(PathBuf),
    /// Another daemon.
    #[error("{0}: another process listens there; stop it first")]
    SocketInUse(PathBuf),
    /// No secret memory.
    #[error("no secret memory: {0}; raise LimitMEMLOCK= (ulimit -l)")]
    Memory(io::Error),
    /// No audit log.
    #[error(transparent)]
    Audit(#[from] audit::AuditError),
    /// The server.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// Anything else the kernel denies.
    #[error("{0}: {1}")]
    Other(&'static str, String),
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StartError {
    let path = path.to_owned();
    move |why| StartError::Io { what, path, why }
}

/// Why users cannot be told apart here, if so: then owners of files cannot be either.
#[must_use]
pub fn unseen_users() -> Option<String> {
    let why = "this process is in a user namespace that does not map all uids, so peers of other users cannot be \
               told apart; run it outside, without PrivateUsers=";
    (!harden::sees_all_uids()).then(|| why.to_owned())
}

/// What a valid configuration still needs of this host.
#[must_use]
pub fn preflight(config: &Config) -> Vec<String> {
    let mut problems = Vec::new();
    problems.extend(unseen_users());
    if !harden::has_capability(harden::CAP_SYS_PTRACE) {
        let by_image = |bot: &&Bot| {
            [Kind::Exe, Kind::ExeSha256]
                .into_iter()
                .any(|kind| bot.selectors().has(kind))
        };
        problems.extend(config.policy.bots().iter().filter(by_image).map(|bot| {
            format!(
                "{}: bot {:?} is selected by exe or exe_sha256, which needs CAP_SYS_PTRACE to see other users' \
                 programs, add AmbientCapabilities=CAP_SYS_PTRACE to the unit, or select by unit",
                bot.place, bot.name
            )
        }));
    }
    problems
}

/// Runs the daemon until it is told to stop. `ready` is called once it serves.
pub fn run(path: &Path, config: Config, ready: impl FnOnce()) -> Result<(), StartError> {
    let problems = preflight(&config);
    if !problems.is_empty() {
        return Err(StartError::Config(problems));
    }
    harden::deny_dumps()
        .map_err(|errno| StartError::Other("core dumps cannot be turned off", errno.to_string()))?;
    let files = harden::raise_open_files()
        .map_err(|errno| StartError::Other("the limit on open files", errno.to_string()))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(8)
        .max_io_events_per_tick(EVENTS)
        .build()
        .map_err(|error| StartError::Other("no runtime", error.to_string()))?;
    runtime.block_on(Daemon::start(path, config, files)?.serve(ready))
}

/// The wired rooms, before they serve.
struct Daemon {
    path: PathBuf,
    config: Config,
    context: Arc<Context>,
    keeper: mpsc::Sender<Asked>,
    _state: Flock<File>,
}

impl Daemon {
    fn start(path: &Path, config: Config, files: u64) -> Result<Self, StartError> {
        config
            .warnings
            .iter()
            .for_each(|warning| tracing::warn!("{warning}"));
        let state_dir = &config.agent.state_dir;
        make_folder(state_dir, 0o700)?;
        let state = lock_state(state_dir)?;
        let kernel = Kernel::probe();
        let arena = make_arena()?;
        let missing = missing(kernel, arena.protection());
        missing
            .iter()
            .for_each(|missing| tracing::warn!("{missing}"));
        let (audit, notes) = Log::open(audit_settings(&config.audit))?;
        notes.iter().for_each(|note| tracing::warn!("{note}"));
        let cache = Arc::new(Cache::new(arena));
        let states = Arc::new(States::default());
        let images = Images::open(state_dir);
        images.learn(&exe_paths(&config));
        record_start(&audit, path, &missing)?;
        let owners = Owners::new(config.sources.iter().map(|source| {
            let name: Arc<str> = source.name.as_str().into();
            (source.prefix.clone(), name)
        }));
        let keeper = start_keeper(&config, &owners, &cache, &audit, &states)?;
        let rooms = Rooms {
            cache: Arc::clone(&cache),
            audit: Arc::clone(&audit),
            states: Arc::clone(&states),
        };
        let upstreams = platforms::start(&config, &owners, rooms).map_err(StartError::Config)?;
        let context = Arc::new(Context {
            policy: ArcSwap::new(Arc::clone(&config.policy)),
            dropin: ArcSwap::new(Arc::new(config.dropin.clone())),
            numbers: crate::api::Numbers::default(),
            cache,
            sources: states,
            owners,
            upstreams,
            audit,
            limits: Limits::new(files),
            lookup: Lookup::default(),
            images,
            kernel,
            ids: RequestIds::new()
                .map_err(|error| StartError::Other("no random numbers", error.to_string()))?,
            health: crate::api::Health::default(),
            config_files: ArcSwap::new(Arc::new(Stamps::of(&config.files))),
            counts: crate::api::Counts::default(),
        });
        context.health.set_missing(missing);
        Ok(Self {
            path: path.to_owned(),
            config,
            context,
            keeper,
            _state: state,
        })
    }

    async fn serve(self, ready: impl FnOnce()) -> Result<(), StartError> {
        let server = Server::new(Arc::clone(&self.context))?;
        let bots = listen(&self.config.agent.socket)?;
        let ops = listen(&self.config.agent.admin_socket)?;
        let (reload, mut reloads) = channel::channel::<Reload>(4);
        let admin = Arc::new(AdminServer {
            context: Arc::clone(&self.context),
            server: Arc::clone(&server),
            keeper: std::sync::Mutex::new(self.keeper.clone()),
            reload,
            admins: ArcSwap::new(Arc::new(self.config.agent.admins.clone())),
            about: json!({
                "version": env!("CARGO_PKG_VERSION"),
                "pid": std::process::id(),
                "started": humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
                "config": self.path,
                "socket": self.config.agent.socket,
            }),
        });
        tokio::spawn(Arc::clone(&server).accept(bots));
        Server::sweep(&server)
            .map_err(|error| StartError::Other("no thread for the sweep", error.to_string()))?;
        tokio::spawn(Arc::clone(&admin).accept(ops));
        if let Some(at) = &self.config.agent.metrics {
            serve_metrics(&self.context, at).await?;
        }
        let mut signals = signals()?;
        ready();
        let mut exits = std::pin::pin!(Arc::clone(&server).watch_exits());
        loop {
            tokio::select! {
                never = &mut exits => match never {},
                signal = signals.recv() => match signal {
                    Some(SIGHUP) => drop(self.reload(&admin)),
                    _ => break,
                },
                Some(reply) = reloads.recv() => {
                    // The operator may have gone.
                    let _ = reply.send(self.reload(&admin));
                }
            }
        }
        tokio::select! {
            never = &mut exits => match never {},
            () = server.drain() => {}
        }
        self.context.upstreams.stop().await;
        self.stop();
        Ok(())
    }

    /// Reads the configuration anew: it takes effect whole, or not at all.
    fn reload(&self, admin: &AdminServer) -> Result<(), Vec<String>> {
        let loaded = config::load(&self.path, Depth::Full(Trust::own()))
            .map_err(|problems| problems.iter().map(ToString::to_string).collect::<Vec<_>>());
        let fresh = loaded.and_then(|fresh| match self.refuse_changes(&fresh) {
            problems if problems.is_empty() => Ok(fresh),
            problems => Err(problems),
        });
        let fresh = match fresh {
            Ok(fresh) => fresh,
            Err(problems) => {
                problems
                    .iter()
                    .for_each(|problem| tracing::error!("{problem}"));
                let members = extra(&[("problems", json!(problems))]);
                self.record(Event::PolicyRejected, &members);
                return Err(problems);
            }
        };
        fresh
            .warnings
            .iter()
            .for_each(|warning| tracing::warn!("{warning}"));
        self.context.images.learn(&exe_paths(&fresh));
        self.context
            .config_files
            .store(Arc::new(Stamps::of(&fresh.files)));
        admin.admins.store(Arc::new(fresh.agent.admins.clone()));
        self.context.dropin.store(Arc::new(fresh.dropin.clone()));
        self.context.set_policy(Arc::clone(&fresh.policy));
        self.record(Event::PolicyLoaded, &extra(&[("config", json!(self.path))]));
        tracing::info!("the configuration was loaded anew");
        Ok(())
    }

    /// What only a restart can change.
    fn refuse_changes(&self, fresh: &Config) -> Vec<String> {
        let mut problems = preflight(fresh);
        let (old, new) = (&self.config, fresh);
        let mut fixed = |same: bool, what: &str| {
            if !same {
                let path = self.path.display();
                problems.push(format!(
                    "{path}: {what} changed, which a reload cannot do; restart keyhatchd"
                ));
            }
        };
        fixed(old.agent.socket == new.agent.socket, "[agent].socket");
        fixed(
            old.agent.admin_socket == new.agent.admin_socket,
            "[agent].admin_socket",
        );
        fixed(
            old.agent.state_dir == new.agent.state_dir,
            "[agent].state_dir",
        );
        fixed(old.agent.metrics == new.agent.metrics, "[agent].metrics");
        fixed(
            old.agent.snapshot_key == new.agent.snapshot_key,
            "[agent].snapshot_key",
        );
        fixed(old.sources == new.sources, "[[source]]");
        fixed(old.audit == new.audit, "[audit]");
        problems
    }

    fn record(&self, event: Event, members: &str) {
        // The log itself says when it cannot be written.
        let _ = self.context.audit.keep(&Entry {
            extra: Some(members),
            ..Entry::of(event)
        });
    }

    fn stop(self) {
        let _ = self.context.audit.keep(&Entry::of(Event::AgentStopped));
        // The keeper may have ended already.
        let _ = self.keeper.send(Asked::Stop);
        self.context.cache.seal();
        self.context.audit.close();
        let metrics = match &self.config.agent.metrics {
            Some(Metrics::Unix(path)) => Some(path),
            _ => None,
        };
        for socket in [&self.config.agent.socket, &self.config.agent.admin_socket]
            .into_iter()
            .chain(metrics)
        {
            // Someone else may have removed it.
            let _ = fs::remove_file(socket);
        }
    }
}

fn audit_settings(config: &config::Audit) -> audit::Settings {
    audit::Settings {
        journald: config.journald,
        sync: match config.sync {
            config::SyncMode::Second => audit::Sync::Second,
            config::SyncMode::Always => audit::Sync::Always,
        },
        segment: config.segment,
        keep: config.keep,
        keep_for: config.keep_for,
        on_failure: match config.on_failure {
            config::OnFailure::Deny => audit::OnFailure::Deny,
            config::OnFailure::Allow => audit::OnFailure::Allow,
        },
        ..audit::Settings::new(&config.dir)
    }
}

fn exe_paths(config: &Config) -> Vec<PathBuf> {
    config
        .policy
        .exe_paths()
        .into_iter()
        .map(Path::to_owned)
        .collect()
}

fn record_start(audit: &Log, path: &Path, missing: &[String]) -> Result<(), StartError> {
    let members = extra(&[
        // `version` is a key of every record: the secret's.
        ("agent_version", env!("CARGO_PKG_VERSION").into()),
        ("config", json!(path)),
        ("missing", json!(missing)),
    ]);
    let unavailable =
        |error: audit::Unavailable| StartError::Other("the audit log", error.to_string());
    for event in [Event::AgentStarted, Event::PolicyLoaded] {
        let _ = audit
            .keep(&Entry {
                extra: Some(&members),
                ..Entry::of(event)
            })
            .map_err(unavailable)?;
    }
    Ok(())
}

fn start_keeper(
    config: &Config,
    owners: &Owners,
    cache: &Arc<Cache>,
    audit: &Arc<Log>,
    states: &Arc<States>,
) -> Result<mpsc::Sender<Asked>, StartError> {
    let files: Vec<FileSource> = config
        .sources
        .iter()
        .filter_map(|source| {
            let SourceKind::File { path, key } = &source.kind else {
                return None;
            };
            Some(FileSource::new(
                &source.name,
                path,
                key.clone(),
                Names::new(&source.prefix, owners.clone()),
                &config.agent.state_dir,
            ))
        })
        .collect();
    for source in &files {
        states.change(&source.name, |_| {});
    }
    Keeper::start(
        files,
        Arc::clone(cache),
        Arc::clone(audit),
        Arc::clone(states),
    )
    .map_err(|error| StartError::Other("no thread for the sources", error.to_string()))
}

/// An arena as large as this process may lock.
fn make_arena() -> Result<Arc<Arena>, StartError> {
    let size = match harden::lockable() {
        None => UNLIMITED_ARENA,
        Some(limit) => usize::try_from(limit.saturating_sub(SPARE))
            .unwrap_or(UNLIMITED_ARENA)
            .min(UNLIMITED_ARENA),
    };
    Arena::new(size).map_err(StartError::Memory)
}

/// The promises that this host does not let the agent keep.
fn missing(kernel: Kernel, protection: Protection) -> Vec<String> {
    let mut missing = kernel.missing();
    if protection == Protection::Locked {
        missing.push(
            "no memfd_secret (Linux 5.14; before 6.5 boot with secretmem.enable=1): values are in locked memory \
             that root can read"
                .to_owned(),
        );
    }
    missing
}

fn make_folder(path: &Path, mode: u32) -> Result<(), StartError> {
    match DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(io_error("make", path)(error))
        }
        _ => Ok(()),
    }
}

/// Two daemons never use one `state_dir`.
fn lock_state(state_dir: &Path) -> Result<Flock<File>, StartError> {
    let path = state_dir.join("lock");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(io_error("open", &path))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|_| StartError::StateInUse(state_dir.to_owned()))
}

/// Binds a socket that anyone may connect to: the policy decides, not the file's mode.
fn listen(path: &Path) -> Result<UnixListener, StartError> {
    if let Some(folder) = path.parent() {
        make_folder(folder, 0o755)?;
    }
    remove_dead(path)?;
    let listener = StdListener::bind(path).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => StartError::SocketInUse(path.to_owned()),
        _ => io_error("bind", path)(error),
    })?;
    fs::set_permissions(path, Permissions::from_mode(0o666)).map_err(io_error("chmod", path))?;
    nix::sys::socket::listen(&listener.as_fd(), nix::sys::socket::Backlog::MAXCONN)
        .map_err(|errno| io_error("listen on", path)(errno.into()))?;
    listener
        .set_nonblocking(true)
        .map_err(io_error("listen on", path))?;
    UnixListener::from_std(listener).map_err(io_error("listen on", path))
}

async fn serve_metrics(context: &Arc<Context>, at: &Metrics) -> Result<(), StartError> {
    match at {
        Metrics::Unix(path) => metrics_server::on_socket(Arc::clone(context), listen(path)?),
        Metrics::Tcp(address) => {
            let listener = TcpListener::bind(address).await.map_err(|why| {
                StartError::Other("the metrics address", format!("{address}: {why}"))
            })?;
            metrics_server::on_address(Arc::clone(context), listener);
        }
    }
    Ok(())
}

/// Removes a socket that a daemon left behind; one that is listened on is never stolen.
fn remove_dead(path: &Path) -> Result<(), StartError> {
    let Ok(meta) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    if !meta.file_type().is_socket() {
        return Err(StartError::SocketInUse(path.to_owned()));
    }
    if is_dead(path).map_err(|errno| io_error("connect to", path)(errno.into()))? {
        return fs::remove_file(path).map_err(io_error("remove", path));
    }
    Err(StartError::SocketInUse(path.to_owned()))
}

/// Whether nobody listens on a socket. Does not wait for a listener that is busy.
fn is_dead(path: &Path) -> nix::Result<bool> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let probe = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    Ok(connect(probe.as_raw_fd(), &UnixAddr::new(path)?) == Err(Errno::ECONNREFUSED))
}

/// Signals that end or reload the daemon, handed to the main loop.
fn signals() -> Result<channel::Receiver<i32>, StartError> {
    let (tell, told) = channel::channel(8);
    let mut signals = Signals::new([SIGHUP, SIGTERM, SIGINT])
        .map_err(|error| StartError::Other("signals", error.to_string()))?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for signal in signals.forever() {
                if tell.blocking_send(signal).is_err() {
                    return;
                }
            }
        })
        .map_err(|error| StartError::Other("no thread for signals", error.to_string()))?;
    Ok(told)
}

/// Whether systemd connected standard error to the journal: a child inherits the variable with any other
/// standard error, too (`JOURNAL_STREAM` of systemd.exec(5)).
fn stderr_is_journal() -> bool {
    let Ok(stat) = nix::sys::stat::fstat(io::stderr()) else {
        return false;
    };
    std::env::var("JOURNAL_STREAM")
        .is_ok_and(|stream| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// The daemon's own log: to journald where systemd has connected standard error to it, else to standard
/// error.
pub fn log_to_journald_or_stderr() {
    use tracing_subscriber::filter::LevelFilter;
    use tracing_subscriber::layer::SubscriberExt;
    use tracing_subscriber::util::SubscriberInitExt;
    let registry = tracing_subscriber::registry().with(LevelFilter::INFO);
    let journald = stderr_is_journal()
        .then(|| tracing_journald::layer().ok())
        .flatten();
    // A second call, as in a test, changes nothing.
    let _ = if let Some(journald) = journald {
        registry.with(journald).try_init()
    } else {
        let stderr = tracing_subscriber::fmt::layer()
            .with_writer(io::stderr)
            .with_ansi(io::stderr().is_terminal())
            .with_target(false);
        registry.with(stderr).try_init()
    };
}
