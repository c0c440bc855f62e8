//! The engine over an upstream that answers as a test tells it to.

#![allow(clippy::unwrap_used)]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::*;
use crate::audit::{Log, Settings};
use crate::cache::{Cache, Freshness};
use crate::policy::Pattern;
use crate::sources::States;
use crate::sources::upstream::{Answer, Fetched, Lease, Listed, Standing, Trouble, Turn, Upstream};
use crate::sys::arena::Arena;

/// What the upstream has and how it is.
#[derive(Default)]
struct Script {
    /// Name to version and value.
    values: BTreeMap<String, (u32, &'static str)>,
    down: bool,
    unusable: Option<&'static str>,
    lease: Option<Duration>,
    /// Lists tell versions, also of what may not be read.
    lists_versions: bool,
    forbidden: Option<&'static str>,
    /// Names that cannot be held.
    odd: Vec<String>,
    /// Every call: what, on which name.
    calls: Vec<(&'static str, String)>,
}

#[derive(Clone)]
struct Scripted {
    script: Arc<Mutex<Script>>,
    arena: Arc<Arena>,
    /// Like a real one it is of one thread.
    _thread: RefCell<()>,
}

impl Make for Scripted {
    type Upstream = Self;
    fn make(self) -> Result<Self, String> {
        Ok(self)
    }
}

impl Scripted {
    async fn call(
        &self,
        what: &'static str,
        name: &str,
    ) -> Result<MutexGuard<'_, Script>, Trouble> {
        tokio::time::sleep(Duration::from_millis(5)).await;
        let mut script = self.script.lock().unwrap();
        script.calls.push((what, name.to_owned()));
        if script.down {
            return Err(Trouble::outage("it is down"));
        }
        if script.unusable == Some(name) {
            return Err(Trouble::unusable("it is nonsense"));
        }
        Ok(script)
    }

    async fn answer(&self, what: &'static str, name: &Name) -> Result<Answer, Trouble> {
        let script = self.call(what, name.as_str()).await?;
        let found = script.values.get(name.as_str());
        let Some((version, value)) = found.filter(|_| script.forbidden != Some(name.as_str()))
        else {
            return Ok(Answer::Absent("404".into()));
        };
        let block = |bytes: &[u8]| {
            let mut draft = self.arena.draft(bytes.len()).unwrap();
            draft.copy_from_slice(bytes);
            draft.freeze()
        };
        let lease = script.lease.map(|time| Lease {
            id: block(b"lease"),
            time,
            renewable: false,
        });
        Ok(Answer::Found(Fetched {
            version: format!("{version}-x"),
            updated_at: "2026-01-01T00:00:00Z".into(),
            value: block(value.as_bytes()),
            lease,
        }))
    }
}

impl Upstream for Scripted {
    fn batch(&self) -> usize {
        1
    }

    async fn list(&self, folder: &str) -> Result<Vec<Listed>, Trouble> {
        let script = self.call("list", folder).await?;
        let names = script.values.keys().filter(|name| name.starts_with(folder));
        Ok(names
            .map(|name| Listed {
                name: name.clone(),
                version: script
                    .lists_versions
                    .then(|| format!("{}-x", script.values[name].0)),
            })
            .chain(script.odd.iter().map(|name| Listed {
                name: name.clone(),
                version: None,
            }))
            .collect())
    }

    async fn reach(&self) -> Result<(), Trouble> {
        self.call("reach", "").await.map(drop)
    }

    async fn readable(&self, names: &[Name]) -> Result<Vec<bool>, Trouble> {
        let script = self.call("readable", "").await?;
        let may = |name: &Name| script.forbidden != Some(name.as_str());
        Ok(names.iter().map(may).collect())
    }

    async fn standings(&self, names: &[Name]) -> Vec<Result<Standing, Trouble>> {
        let script = match self.call("standing", names[0].as_str()).await {
            Ok(script) => script,
            Err(trouble) => return vec![Err(trouble)],
        };
        let version = script
            .values
            .get(names[0].as_str())
            .map(|(version, _)| *version);
        vec![Ok(version.map_or(Standing::Absent, |version| {
            Standing::Version(format!("{version}-x"))
        }))]
    }

    async fn fetch(&self, names: &[Name]) -> Vec<Result<Answer, Trouble>> {
        vec![self.answer("fetch", &names[0]).await]
    }

    async fn previous(&self, name: &Name) -> Result<Answer, Trouble> {
        self.answer("previous", name).await
    }

    async fn renew(&self, _: &Lease) -> Result<Option<Duration>, Trouble> {
        Ok(None)
    }

    async fn revoke(&self, _: &Lease) -> Result<(), Trouble> {
        self.call("revoke", "").await.map(drop)
    }

    async fn rotate(&self, _name: &Name, _turn: &Turn) -> Result<(), Trouble> {
        Ok(())
    }

    fn forget(&self) {}
}

struct World {
    script: Arc<Mutex<Script>>,
    rooms: Rooms,
    dir: PathBuf,
    upstreams: Upstreams,
}

impl Drop for World {
    fn drop(&mut self) {
        self.rooms.audit.close();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl World {
    fn new(prefetch: &[&str], max_stale: Duration, script: Script) -> Self {
        Self::begin(prefetch, max_stale, script, false)
    }

    fn begin(prefetch: &[&str], max_stale: Duration, script: Script, sealed: bool) -> Self {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let dir =
            std::env::temp_dir().join(format!("keyhatch-engine-{}-{number}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let arena = Arena::new(4 << 20).unwrap();
        let settings = Settings {
            journald: false,
            segment: 1 << 20,
            ..Settings::new(&dir.join("audit"))
        };
        let rooms = Rooms {
            cache: Arc::new(Cache::new(Arc::clone(&arena))),
            audit: Log::open(settings).unwrap().0,
            states: Arc::new(States::default()),
        };
        if sealed {
            rooms.cache.seal();
        }
        let script = Arc::new(Mutex::new(script));
        let owners = Owners::new([(String::new(), "up".into())]);
        let mut builder = Builder::new(owners.clone());
        builder.add(Setup {
            name: "up".into(),
            names: Names::new("", owners),
            fetching: Fetching {
                prefetch: prefetch
                    .iter()
                    .map(|text| Pattern::of_names(text).unwrap())
                    .collect(),
                refresh: Duration::from_millis(50),
                timeout: Duration::from_secs(5),
                max_stale,
                snapshot: false,
            },
            copy: None,
            upstream: Scripted {
                script: Arc::clone(&script),
                arena,
                _thread: RefCell::new(()),
            },
        });
        let upstreams = builder.start(rooms.clone()).unwrap();
        Self {
            script,
            rooms,
            dir,
            upstreams,
        }
    }

    fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap()
    }

    fn eventually(&self, what: &str, check: impl Fn(&Self) -> bool) {
        let end = Instant::now() + Duration::from_secs(10);
        while !check(self) {
            assert!(Instant::now() < end, "{what}: {:?}", self.script().calls);
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// The version and freshness that is served.
    fn held(&self, name: &str) -> Option<(String, Freshness)> {
        let snapshot = self.rooms.cache.snapshot();
        let entry = snapshot.get(name)?;
        Some((entry.current.id().to_string(), entry.freshness()))
    }

    fn has(&self, name: &str, version: &str, freshness: Freshness) {
        self.eventually(&format!("{name} {version} {freshness:?}"), |world| {
            world.held(name) == Some((version.into(), freshness))
        });
    }

    fn calls(&self, what: &str, name: &str) -> usize {
        let script = self.script();
        script
            .calls
            .iter()
            .filter(|call| **call == (what, name.to_owned()))
            .count()
    }

    fn ask(&self, names: &[&str]) -> Vec<Supply> {
        self.ask_by(1, names)
    }

    fn ask_by(&self, uid: u32, names: &[&str]) -> Vec<Supply> {
        let ask = |name: &&str| {
            self.upstreams
                .ask(&Name::parse(name).unwrap(), Wanted::Current, Some(uid))
        };
        let pending: Vec<Pending> = names.iter().map(|name| ask(name).unwrap()).collect();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut all = Vec::new();
            for pending in pending {
                all.push(pending.wait().await);
            }
            all
        })
    }

    /// How often an event stands in the log.
    fn records(&self, event: &str) -> usize {
        let text = format!("\"event\":\"{event}\"");
        let files = std::fs::read_dir(self.dir.join("audit")).unwrap();
        files
            .map(|file| {
                String::from_utf8_lossy(&std::fs::read(file.unwrap().path()).unwrap()).into_owned()
            })
            .map(|log| log.matches(&text).count())
            .sum()
    }
}

fn with(values: &[(&'static str, u32, &'static str)]) -> Script {
    Script {
        values: values
            .iter()
            .map(|(name, version, value)| ((*name).into(), (*version, *value)))
            .collect(),
        ..Script::default()
    }
}

const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn what_is_prefetched_follows_the_upstream() {
    let world = World::new(
        &["app/**"],
        HOUR,
        with(&[("app/a", 1, "CANARY-1"), ("other/b", 1, "x")]),
    );
    world.has("app/a", "1-x", Freshness::Fresh);
    assert!(world.held("other/b").is_none());
    assert_eq!(world.records("secret.rotated"), 0);
    world
        .script()
        .values
        .insert("app/a".into(), (2, "CANARY-2"));
    world.has("app/a", "2-x", Freshness::Fresh);
    let previous = world
        .rooms
        .cache
        .snapshot()
        .get("app/a")
        .unwrap()
        .previous
        .clone();
    assert_eq!(&**previous.unwrap().id(), "1-x");
    world.eventually("a record", |world| world.records("secret.rotated") == 1);
    world.script().values.remove("app/a");
    world.eventually("gone", |world| world.held("app/a").is_none());
    world.eventually("a record", |world| world.records("secret.removed") == 1);
    assert_eq!(
        world.calls("fetch", "app/a"),
        2,
        "only a new version is fetched"
    );
}

#[test]
fn a_cold_name_is_one_call_however_many_ask_and_then_kept() {
    let world = World::new(&[], HOUR, with(&[("cold", 1, "CANARY-1")]));
    world.eventually("loaded", |world| {
        world.rooms.states.all_by_name()["up"].loaded
    });
    assert_eq!(world.ask(&["cold"; 200]), [Supply::Served; 200]);
    assert_eq!(world.calls("fetch", "cold"), 1);
    world.script().values.insert("cold".into(), (2, "CANARY-2"));
    world.has("cold", "2-x", Freshness::Fresh);
}

#[test]
fn absent_names_are_remembered_and_bounded() {
    let world = World::new(&[], HOUR, Script::default());
    world.eventually("loaded", |world| {
        world.rooms.states.all_by_name()["up"].loaded
    });
    for _ in 0..5 {
        assert_eq!(world.ask(&["none"]), [Supply::Absent]);
    }
    assert_eq!(world.calls("fetch", "none"), 1);
    let names: Vec<String> = (0..1000).map(|n| format!("none/{n}")).collect();
    let mut limited = 0;
    for name in &names {
        limited += usize::from(world.ask(&[name]) == [Supply::Limited]);
    }
    let calls = world
        .script()
        .calls
        .iter()
        .filter(|call| call.0 == "fetch")
        .count();
    assert!(
        limited > 0 && calls < 900,
        "{limited} limited, {calls} calls"
    );
}

#[test]
fn an_outage_is_stale_then_withheld_and_told_once() {
    let world = World::new(
        &["**"],
        Duration::from_secs(1),
        with(&[("a", 1, "CANARY-1")]),
    );
    world.has("a", "1-x", Freshness::Fresh);
    world.script().down = true;
    world.has("a", "1-x", Freshness::Stale);
    assert_eq!(world.ask(&["cold"]), [Supply::Unavailable]);
    world.has("a", "1-x", Freshness::Withheld);
    assert_eq!(world.ask(&["a"]), [Supply::Unavailable]);
    let asked = world.script().calls.len();
    world.script().down = false;
    world.has("a", "1-x", Freshness::Fresh);
    assert_eq!(world.records("source.degraded"), 1);
    world.eventually("a record", |world| world.records("source.recovered") == 1);
    assert_eq!(
        world.records("secret.rotated") + world.records("secret.removed"),
        0
    );
    assert!(asked < 60, "{asked} calls to one that is down");
}

#[test]
fn nonsense_about_one_secret_leaves_the_others_alone() {
    let world = World::new(
        &["**"],
        HOUR,
        with(&[("bad", 1, "CANARY-1"), ("good", 1, "CANARY-2")]),
    );
    world.has("bad", "1-x", Freshness::Fresh);
    world.script().unusable = Some("bad");
    world.has("bad", "1-x", Freshness::Stale);
    world.script().values.insert("good".into(), (2, "CANARY-3"));
    world.has("good", "2-x", Freshness::Fresh);
    assert_eq!(world.records("alert.source_rejected"), 1);
    assert_eq!(world.records("source.degraded"), 0);
}

#[test]
fn a_lease_is_replaced_ahead_and_never_served_past_its_end() {
    let script = Script {
        lease: Some(Duration::from_millis(600)),
        ..with(&[("db", 1, "CANARY-1")])
    };
    let world = World::new(&["db"], HOUR, script);
    world.has("db", "1-x", Freshness::Fresh);
    world.script().values.insert("db".into(), (2, "CANARY-2"));
    world.has("db", "2-x", Freshness::Fresh);
    world.eventually("the old lease ended", |world| world.calls("revoke", "") > 0);
    world.script().down = true;
    world.has("db", "2-x", Freshness::Withheld);
    assert_eq!(
        world.calls("standing", "db"),
        0,
        "what is lent is not polled"
    );
    assert!(
        world.calls("fetch", "db") < 20,
        "nor fetched but in its time"
    );
}

#[test]
fn sealing_leaves_nothing_in_memory_and_unsealing_fetches_anew() {
    let world = World::new(&["**"], HOUR, with(&[("a", 1, "CANARY-1")]));
    world.has("a", "1-x", Freshness::Fresh);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    world.rooms.cache.seal();
    runtime.block_on(world.upstreams.seal());
    world.eventually("wiped", |world| world.rooms.cache.arena().used() == 0);
    assert_eq!(world.ask(&["a"]), [Supply::Unavailable]);
    world.rooms.cache.unseal();
    runtime.block_on(world.upstreams.unseal());
    world.has("a", "1-x", Freshness::Fresh);
}

#[test]
fn what_starts_sealed_asks_nothing_until_it_is_unsealed() {
    let world = World::begin(&["**"], HOUR, with(&[("a", 1, "CANARY-1")]), true);
    assert_eq!(world.ask(&["a"]), [Supply::Unavailable]);
    assert!(world.script().calls.is_empty());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    world.rooms.cache.unseal();
    runtime.block_on(world.upstreams.unseal());
    world.has("a", "1-x", Freshness::Fresh);
}

#[test]
fn an_upstream_that_does_not_answer_shows_before_anybody_asks() {
    let script = Script {
        down: true,
        ..Script::default()
    };
    let world = World::new(&[], HOUR, script);
    world.eventually("a record", |world| world.records("source.degraded") == 1);
    assert!(!world.rooms.states.all_by_name()["up"].loaded);
    world.script().down = false;
    world.eventually("a record", |world| world.records("source.recovered") == 1);
}

#[test]
fn what_a_list_tells_and_may_no_longer_be_read_ends() {
    let script = Script {
        lists_versions: true,
        ..with(&[("a", 1, "CANARY-1"), ("b", 1, "CANARY-2")])
    };
    let world = World::new(&["**"], HOUR, script);
    world.has("a", "1-x", Freshness::Fresh);
    world.script().forbidden = Some("a");
    world.eventually("gone", |world| world.held("a").is_none());
    world.has("b", "1-x", Freshness::Fresh);
}

#[test]
fn who_asks_for_absent_names_keeps_nobody_else_from_what_is_there() {
    let world = World::new(&[], HOUR, with(&[("cold", 1, "CANARY-1")]));
    world.eventually("loaded", |world| {
        world.rooms.states.all_by_name()["up"].loaded
    });
    let names: Vec<String> = (0..400).map(|n| format!("none/{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    assert!(world.ask(&names).contains(&Supply::Limited));
    assert_eq!(world.ask_by(2, &["cold"]), [Supply::Served]);
}

#[test]
fn a_flood_of_odd_names_is_a_few_alerts_and_hides_no_other() {
    let mut script = with(&[("good", 1, "CANARY-1")]);
    for number in 0..500 {
        script.odd.push(format!("odd name\n{number}"));
    }
    let world = World::new(&["**"], HOUR, script);
    world.has("good", "1-x", Freshness::Fresh);
    world.eventually("alerts", |world| {
        world.records("alert.source_rejected") == 21
    });
    world.script().unusable = Some("good");
    world.eventually("one more", |world| {
        world.records("alert.source_rejected") == 22
    });
}
