//! Start: the rooms are made and wired, and the sources are read once.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use nix::fcntl::{Flock, FlockArg};
use serde_json::json;

use super::Daemon;
use super::credentials::Credentials;
use super::error::{StartError, io_error};
use super::preflight::missing;
use super::sockets::make_folder;
use crate::api::limits::Limits;
use crate::api::{Context, RequestIds, SealMark};
use crate::audit::{self, Entry, Event, Log, extra};
use crate::cache::Cache;
use crate::config::{self, Config, SourceKind, Stamps};
use crate::confine::{Needs, confine};
use crate::detect::Detect;
use crate::exec::Runner;
use crate::identity::accounts::Lookup;
use crate::identity::{Images, Kernel};
use crate::rotation;
use crate::routes::Routes;
use crate::sources::engine::Rooms;
use crate::sources::{Asked, FileSource, Keeper, Names, Owners, States, platforms};
use crate::sys::arena::Arena;
use crate::sys::harden;
use crate::sys::manager::Manager;

/// The secret memory of a process that may lock as much as it likes. Pages are taken as they are written.
const UNLIMITED_ARENA: usize = 1 << 30;

/// What is left of a limit on locked memory for others in the process.
const SPARE: u64 = 64 * 1024;

/// How long to wait for another daemon to let go of its `state_dir`.
const HANDOVER: Duration = Duration::from_secs(1);

impl Daemon {
    pub(super) fn start(
        path: &Path,
        config: Config,
        files: u64,
        manager: Arc<Manager>,
        runner: Runner,
    ) -> Result<Self, StartError> {
        config
            .warnings
            .iter()
            .for_each(|warning| tracing::warn!("{warning}"));
        let state_dir = &config.agent.state_dir;
        make_folder(state_dir, 0o700)?;
        let state = lock_state(state_dir)?;
        let kernel = Kernel::probe();
        let arena = make_arena()?;
        let (granted, unconfined) = shut_in(path, &config, &manager)?;
        let missing = [missing(kernel, arena.protection()), unconfined].concat();
        missing
            .iter()
            .for_each(|missing| tracing::warn!("{missing}"));
        let (audit, notes) = Log::open(audit_settings(&config.audit, state_dir))?;
        notes.iter().for_each(|note| tracing::warn!("{note}"));
        let cache = Arc::new(Cache::new(arena));
        let states = Arc::new(States::default());
        let images = Images::open(state_dir);
        images.learn(&exe_paths(&config));
        if SealMark::new(state_dir).stands() {
            tracing::warn!(
                "the agent was sealed before this start; `keyhatchd unseal` loads the values"
            );
            cache.seal();
        }
        record_start(&audit, path, &missing, cache.is_sealed())?;
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
        let routes = Routes::of(&config.routes, &Routes::default()).map_err(StartError::Config)?;
        let detect = Detect::open(&config, Arc::clone(&cache), Arc::clone(&audit))
            .map_err(|why| StartError::Other("what is remembered of bots", why.to_string()))?;
        let upstreams = Arc::new(upstreams);
        let ids = || {
            RequestIds::new()
                .map_err(|error| StartError::Other("no random numbers", error.to_string()))
        };
        let own_ids = ids()?;
        let (rotations, rotation) = rotation::Service::new(
            &config.rotations,
            state_dir,
            rotation::Rooms {
                cache: Arc::clone(&cache),
                audit: Arc::clone(&audit),
                keeper: keeper.clone(),
                owners: owners.clone(),
                upstreams: Arc::clone(&upstreams),
                runner: runner.clone(),
                ids: Box::new(move || own_ids.next().as_str().to_owned()),
            },
        )
        .map_err(|why| StartError::Other("what is remembered of rotations", why))?;
        let context = Arc::new(Context {
            detect,
            policy: ArcSwap::new(Arc::clone(&config.policy)),
            dropin: ArcSwap::new(Arc::new(config.dropin.clone())),
            routes: ArcSwap::new(Arc::new(routes)),
            numbers: crate::api::Numbers::default(),
            cache,
            sources: states,
            owners,
            upstreams,
            rotations,
            audit,
            limits: Limits::new(files),
            runner,
            lookup: Lookup::default(),
            images,
            kernel,
            ids: ids()?,
            health: crate::api::Health::default(),
            config_files: ArcSwap::new(Arc::new(Stamps::of(&config.files))),
            counts: crate::api::Counts::default(),
        });
        context.health.set_missing(missing);
        let credentials = Credentials::new(
            Arc::clone(&context),
            Arc::clone(&manager),
            config.agent.credentials_socket(),
        );
        Ok(Self {
            path: path.to_owned(),
            config,
            context,
            keeper,
            rotation: Some(rotation),
            granted,
            credentials,
            manager,
            _state: state,
        })
    }
}

/// Makes the folders that the configuration names, and gives up all that it does not: before the first thread,
/// since threads that run already keep the files they may open.
fn shut_in(
    path: &Path,
    config: &Config,
    manager: &Manager,
) -> Result<(Needs, Vec<String>), StartError> {
    audit::make_folder(&config.audit.dir)?;
    let mut needs = Needs::of(path, config, &|name| std::env::var_os(name));
    needs.abstract_sockets = manager.is_abstract();
    for folder in &needs.sockets {
        make_folder(folder, 0o755)?;
    }
    let missing = confine(&needs);
    Ok((needs, missing))
}

fn audit_settings(config: &config::Audit, state_dir: &Path) -> audit::Settings {
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
        key_file: Some(state_dir.join(audit::KEY_FILE)),
        ..audit::Settings::new(&config.dir)
    }
}

pub(super) fn exe_paths(config: &Config) -> Vec<PathBuf> {
    config
        .policy
        .exe_paths()
        .into_iter()
        .map(Path::to_owned)
        .collect()
}

fn record_start(
    audit: &Log,
    path: &Path,
    missing: &[String],
    sealed: bool,
) -> Result<(), StartError> {
    let members = extra(&[
        // `version` is a key of every record: the secret's.
        ("agent_version", env!("CARGO_PKG_VERSION").into()),
        ("config", json!(path)),
        ("missing", json!(missing)),
        ("sealed", json!(sealed)),
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

/// Two daemons never use one `state_dir`. One that has been told to stop has a moment to end.
fn lock_state(state_dir: &Path) -> Result<Flock<File>, StartError> {
    let path = state_dir.join("lock");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(io_error("open", &path))?;
    let start = Instant::now();
    loop {
        file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((file, _)) if start.elapsed() < HANDOVER => file,
            Err(_) => return Err(StartError::StateInUse(state_dir.to_owned())),
        };
        thread::sleep(Duration::from_millis(5));
    }
}
