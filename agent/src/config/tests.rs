//! What a configuration says, and every message about what it should not say.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use keyhatch_protocol::{Action, Name};
use proptest::prelude::*;

use super::*;
use crate::policy::{Accounts, BotMatch, Facts, Pattern};

const BOT: &str = r#"
[[bot]]
name = "b"
match = { uid = 1000 }
roles = ["r"]
[role.r]
grants = [{ secrets = ["a/*"] }]
"#;

fn read(files: &[(&str, &str)]) -> Result<Config, Vec<Diagnostic>> {
    let document = |(name, text): &(&str, &str)| Document::new(name.into(), (*text).to_owned());
    let documents: Vec<Document> = files.iter().map(document).collect();
    assemble(&documents, Depth::ContentOnly, Report::default())
}

fn full() -> Depth {
    Depth::Full(Trust::own())
}

fn lines(found: &[Diagnostic]) -> Vec<String> {
    found.iter().map(ToString::to_string).collect()
}

fn errors(text: &str) -> Vec<String> {
    lines(&read(&[("k.toml", text)]).unwrap_err())
}

/// A folder of the test's own, removed at its end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path =
            std::env::temp_dir().join(format!("keyhatch-config-{}-{number}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn bots_and_roles_are_a_complete_configuration() {
    let config = read(&[("k.toml", BOT)]).unwrap();
    assert_eq!(
        config.agent,
        Agent {
            socket: "/run/keyhatch/keyhatch.sock".into(),
            admin_socket: "/run/keyhatch-admin/admin.sock".into(),
            state_dir: "/var/lib/keyhatch".into(),
            admins: vec![],
            metrics: None,
            snapshot_key: None,
        }
    );
    assert_eq!(
        config.sources,
        [Source {
            name: "local".into(),
            prefix: String::new(),
            kind: SourceKind::File {
                path: "/var/lib/keyhatch/store".into(),
                key: KeySource::Credential("keyhatch.key".into()),
            },
        }]
    );
    assert_eq!(
        config.audit,
        Audit {
            dir: "/var/lib/keyhatch/audit".into(),
            journald: true,
            on_failure: OnFailure::Deny,
            sync: SyncMode::Second,
            segment: 64 << 20,
            keep: 4 << 30,
            keep_for: Duration::from_secs(90 * 86400),
        }
    );
    assert_eq!(config.dropin.aws_prefix, "");
    assert_eq!(
        config.dropin.vault_mounts,
        [("secret".to_owned(), String::new())].into()
    );
    assert!(config.warnings.is_empty());
}

#[test]
fn a_preset_fills_what_a_route_leaves_out() {
    let routes = |text: &str| {
        let text = format!("[[route]]\nname = \"r\"\nsecret = \"a\"\nallow = [\"GET /\"]\n{text}");
        read(&[("k.toml", &text)]).unwrap().routes
    };
    let openai = &routes("preset = \"openai\"")[0];
    assert_eq!(openai.upstream.to_string(), "https://api.openai.com");
    assert_eq!(openai.inject.len(), 1);
    let own = &routes("preset = \"openai\"\nupstream = \"https://gateway.test\"")[0];
    assert_eq!(own.upstream.to_string(), "https://gateway.test");
    assert_eq!(own.inject, openai.inject);
    // Each of the catalogue is a route that works.
    let catalogue = include_str!("presets.toml");
    let names = catalogue
        .lines()
        .filter_map(|line| line.strip_prefix('[')?.strip_suffix(']'));
    let count = names
        .map(|name| assert_eq!(routes(&format!("preset = \"{name}\"")).len(), 1))
        .count();
    assert!(count > 20, "{count}");
}

#[test]
fn drop_in_names_are_read() {
    let config = read(&[(
        "k.toml",
        "[dropin]\naws_prefix = \"aws/\"\nvault_mounts = { secret = \"\", \"kv/two/\" = \"other/\" }\n",
    )])
    .unwrap();
    assert_eq!(config.dropin.aws_prefix, "aws/");
    let mounts: Vec<(&str, &str)> = config
        .dropin
        .vault_mounts
        .iter()
        .map(|(mount, prefix)| (&**mount, &**prefix))
        .collect();
    assert_eq!(mounts, [("kv/two", "other/"), ("secret", "")]);
}

#[test]
fn every_key_of_an_upstream_is_read() {
    let config = read(&[(
        "k.toml",
        r#"
[agent]
snapshot_key = "file:/snap"
[[source]]
name = "bao"
kind = "vault"
address = ["https://a:8200/", "https://b:8200"]
ca_file = "/ca"
namespace = "team/"
client_cert = "/cert"
client_key = "file:/key"
mounts = { secret = "", "kv/two" = "other/" }
prefix = "bao/"
auth = { method = "approle", role_id = "r", secret_id = "credential:s", wrapped = true }
lease = [{ name = "db/ro", path = "database/creds/ro" }]
prefetch = ["app/**"]
refresh = "5s"
timeout = "3s"
max_stale = "2h"
snapshot = true
"#,
    )])
    .unwrap();
    let SourceKind::Upstream { fetching, platform } = &config.sources[0].kind else {
        panic!("{:?}", config.sources);
    };
    let pattern = |text| Pattern::of_names(text).unwrap();
    assert_eq!(
        *fetching,
        Fetching {
            prefetch: vec![pattern("app/**"), pattern("db/ro")],
            refresh: Duration::from_secs(5),
            timeout: Duration::from_secs(3),
            max_stale: Duration::from_secs(7200),
            snapshot: true,
        }
    );
    let vault = Vault {
        addresses: vec!["https://a:8200".into(), "https://b:8200".into()],
        ca_file: Some("/ca".into()),
        namespace: Some("team".into()),
        client: Some(ClientCert {
            cert: "/cert".into(),
            key: KeySource::File("/key".into()),
        }),
        mounts: [("secret", ""), ("kv/two", "other/")]
            .map(|(mount, prefix)| (mount.into(), prefix.into()))
            .into(),
        auth: VaultAuth::AppRole {
            mount: "approle".into(),
            role_id: "r".into(),
            secret_id: KeySource::Credential("s".into()),
            wrapped: true,
        },
        leases: vec![LeasedPath {
            name: "db/ro".into(),
            path: "database/creds/ro".into(),
        }],
    };
    assert_eq!(*platform, Platform::Vault(Box::new(vault)));
}

#[test]
fn every_key_is_read() {
    let config = read(&[(
        "k.toml",
        r#"
[agent]
socket = "/s"
admin_socket = "/a"
state_dir = "/d"
admins = ["root", "group:ops"]
metrics = "[::1]:9464"
snapshot_key = "credential:snap"
[[source]]
name = "main"
kind = "file"
path = "/store"
key = "file:/key"
prefix = "app/"
[audit]
dir = "/audit"
journald = false
on_failure = "allow"
sync = "always"
segment = "128KiB"
keep = "1GiB"
keep_for = "36h"
"#,
    )])
    .unwrap();
    assert_eq!(
        config.agent,
        Agent {
            socket: "/s".into(),
            admin_socket: "/a".into(),
            state_dir: "/d".into(),
            admins: vec![Admin::User("root".into()), Admin::Group("ops".into())],
            metrics: Some(Metrics::Tcp("[::1]:9464".parse().unwrap())),
            snapshot_key: Some(KeySource::Credential("snap".into())),
        }
    );
    assert_eq!(config.sources[0].prefix, "app/");
    assert_eq!(
        config.sources[0].kind,
        SourceKind::File {
            path: "/store".into(),
            key: KeySource::File("/key".into())
        }
    );
    let audit = config.audit;
    assert_eq!(
        (audit.on_failure, audit.sync),
        (OnFailure::Allow, SyncMode::Always)
    );
    assert_eq!(
        (audit.segment, audit.keep, audit.journald),
        (128 << 10, 1 << 30, false)
    );
    assert_eq!(audit.keep_for, Duration::from_secs(36 * 3600));
    let unix = read(&[("k.toml", "[agent]\nmetrics = \"/m\"\n")]).unwrap();
    assert_eq!(unix.agent.metrics, Some(Metrics::Unix("/m".into())));
}

#[test]
fn selectors_rules_and_their_lines_reach_the_policy() {
    let config = read(&[(
        "k.toml",
        r#"[[bot]]
name = "b"
match = { user = "u", group = "g", uid = 0x3e9, gid = 5, unit = "b.service", user_unit = "a.scope", cgroup = "/x/**", exe = "/bin/b", exe_sha256 = "00000000000000000000000000000000000000000000000000000000000000Ff" }
roles = ["r"]
[role.r]
grants = [
  { secrets = ["a/*"] },
  { secrets = ["c"], actions = ["rotate"] },
]
deny = [
  { secrets = ["a/x"] },
]
"#,
    )])
    .unwrap();
    let policy = &config.policy;
    let mut digest = [0; 32];
    digest[31] = 255;
    let facts = Facts {
        uid: Some(1001),
        gid: Some(5),
        groups: vec![6],
        unit: Some("b.service".into()),
        user_unit: Some("a.scope".into()),
        cgroup: Some("/x/y/z".into()),
        exe: vec!["/bin/b".into()],
        exe_sha256: Some(digest),
    };
    let accounts = Accounts {
        users: [("u".into(), 1001)].into(),
        groups: [("g".into(), 6)].into(),
    };
    let who = policy.match_bot(&facts, &accounts);
    assert_eq!(who, BotMatch::Bot(policy.bot_by_name("b").unwrap()));
    for (action, name, rule) in [
        (Action::Read, "a/b", Some("k.toml:7")),
        (Action::Watch, "a/b", Some("k.toml:7")),
        (Action::Rotate, "a/b", None),
        (Action::Rotate, "c", Some("k.toml:8")),
        (Action::Read, "a/x", Some("k.toml:11")),
        (Action::Rotate, "a/x", Some("k.toml:11")),
    ] {
        let decision = policy.decide(&who, action, &Name::parse(name).unwrap());
        assert_eq!(decision.rule().map(AsRef::as_ref), rule, "{action} {name}");
        assert_eq!(
            decision.allowed(),
            matches!(rule, Some("k.toml:7" | "k.toml:8"))
        );
    }
}

/// `wrong.txt` has texts, each followed by every line that it must lead to. A text that begins with `match:`,
/// `credentials:`, `rule:`, `source:`, `route:`, `rotation:` or `driver:` is that part of a file that is right otherwise.
fn expand(text: &str) -> String {
    /// What a text that gives one of these keys itself leaves out.
    const ROUTE: [&str; 5] = [
        "name = \"x\"",
        "upstream = \"https://h\"",
        "secret = \"a\"",
        "inject = { header = \"x\", value = \"{secret}\" }",
        "allow = [\"GET /v1\"]",
    ];
    const BOT: &str = "[[bot]]\nname = \"b\"\n";
    const ROTATION: &str = "[[rotation]]\nsecret = \"app/x\"\n";
    let (part, rest) = text.split_once(": ").unwrap_or_default();
    match part {
        "match" => format!("{BOT}match = {{ {} }}\nroles = []\n", rest.trim_end()),
        "rule" => format!(
            "{BOT}match = {{ uid = 1 }}\nroles = [\"r\"]\n[role.r]\ngrants = [\n  {{ {} }},\n]\n",
            rest.trim_end()
        ),
        "rotation" => format!("{ROTATION}driver = {{ kind = \"generate\" }}\n{rest}"),
        "driver" => format!(
            "{ROTATION}every = \"1d\"\ndriver = {{ {} }}\n",
            rest.trim_end()
        ),
        "credentials" => {
            let (selectors, credentials) = rest.trim_end().split_once(" | ").unwrap();
            format!(
                "{BOT}match = {{ {selectors} }}\nroles = []\ncredentials = {{ {credentials} }}\n"
            )
        }
        "source" => format!("[[source]]\nname = \"s\"\nkind = \"file\"\n{rest}"),
        "route" => {
            let given = |line: &&&str| {
                rest.starts_with(line.split('=').next().unwrap())
                    || rest.contains(&format!("\n{}", line.split('=').next().unwrap()))
            };
            let base: Vec<&str> = ROUTE.iter().filter(|line| !given(line)).copied().collect();
            format!("[[route]]\n{}\n{rest}", base.join("\n"))
        }
        _ => text.into(),
    }
}

#[test]
fn every_message_has_its_line_and_stands_alone() {
    let mut text = String::new();
    let mut wanted = Vec::new();
    let mut lines = include_str!("wrong.txt").lines().peekable();
    while let Some(line) = lines.next() {
        match line.strip_prefix("> ") {
            Some(message) => wanted.push(message),
            None => text.extend([line, "\n"]),
        }
        let ends = lines.peek().is_none_or(|next| !next.starts_with("> "));
        if ends && !wanted.is_empty() {
            let found = errors(&expand(&text));
            assert_eq!(found, wanted, "{text}");
            assert!(found.iter().all(|line| !line.contains("CANARY")));
            text.clear();
            wanted.clear();
        }
    }
    assert!(text.is_empty());
}

#[test]
fn every_key_of_a_rotation_is_read() {
    let text = r#"
[[source]]
name = "local"
kind = "file"
[[source]]
name = "bao"
kind = "vault"
prefix = "bao/"
address = "https://h"
auth = { method = "token_file", path = "/t" }
[[rotation]]
secret = "app/key"
every = "Mon *-*-* 03:00"
jitter = "1h"
grace = "2d"
driver = { kind = "exec", command = ["/opt/rotate-pg", "app"], user = "pg", timeout = "5s" }
host = "db-1"
on_rotated = { unit = "bot.service", do = "try-restart" }
[[rotation]]
secret = "app/pin"
every = "20h"
driver = { kind = "generate", length = 6, alphabet = "0123456789" }
[[rotation]]
secret = "bao/key"
every = "30d"
driver = { kind = "vault", field = "password", length = 20 }
"#;
    let config = read(&[("k.toml", text)]).unwrap();
    assert!(config.warnings.is_empty());
    let [exec, pin, bao] = &config.rotations[..] else {
        panic!("{:?}", config.rotations);
    };
    assert_eq!(exec.every.text(), "Mon *-*-* 03:00");
    let hours = |hours: u64| Duration::from_secs(hours * 3600);
    assert_eq!((exec.jitter, exec.grace), (hours(1), hours(48)));
    let program = Program {
        command: vec!["/opt/rotate-pg".into(), "app".into()],
        user: Some("pg".into()),
        timeout: Duration::from_secs(5),
    };
    assert_eq!(exec.driver, Driver::Exec(program));
    assert_eq!(exec.host.as_deref(), Some("db-1"));
    let on = exec.on_rotated.as_ref().unwrap();
    assert_eq!((on.unit.as_str(), on.job), ("bot.service", Job::TryRestart));
    let alphabet = Alphabet {
        characters: b"0123456789".to_vec(),
        length: 6,
    };
    assert_eq!(pin.driver, Driver::Generate(alphabet));
    // A day of grace would be more than half.
    assert_eq!(
        (pin.grace, pin.every.clone()),
        (hours(10), Every::Span(hours(20)))
    );
    let Driver::Vault(driver) = &bao.driver else {
        panic!("{bao:?}");
    };
    assert_eq!(
        (driver.field.as_deref(), driver.alphabet.length),
        (Some("password"), 20)
    );
    assert_eq!(
        (driver.alphabet.characters.len(), bao.grace),
        (62, hours(24))
    );
}

#[test]
fn what_a_rotation_names_is_there_and_its_program_is_nobody_elses() {
    let one =
        |driver: &str| format!("[[rotation]]\nsecret = \"a\"\nevery = \"1d\"\ndriver = {driver}\n");
    let exec = one("{ kind = \"exec\", command = [\"/r\"] }");
    let config = read(&[("k.toml", &exec)]).unwrap();
    assert_eq!(
        lines(&config.warnings),
        [
            "k.toml:1: the rotation of \"a\" runs a program and has no `host`, each host with this configuration would do it, name one"
        ]
    );
    let twice = one("{ kind = \"generate\" }").repeat(2);
    assert_eq!(
        errors(&twice),
        ["k.toml:6: the rotation of \"a\" is already at k.toml:1, remove one"]
    );
    let folder = Folder::new();
    let program = folder.write("rotate", "#!/bin/sh\n");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o777)).unwrap();
    let exec = one(&format!("{{ kind = \"exec\", command = [{program:?}] }}"));
    let path = folder.write("k.toml", &exec);
    let found = lines(&load(&path, full()).unwrap_err());
    assert!(
        found[0].contains("the driver program") && found[0].contains("k.toml:4"),
        "{found:?}"
    );
}

#[test]
fn everything_wrong_is_told_at_once_and_in_order() {
    let text = "[audit]\nsync = 1\n[agent]\nx = 1\n[[bot]]\nname = \"b\"\nmatch = { uid = 1, user = 5 }\nroles = []\n";
    let places: Vec<String> = errors(text)
        .iter()
        .map(|line| line[..8].to_owned())
        .collect();
    assert_eq!(places, ["k.toml:2", "k.toml:4", "k.toml:7"]);
}

#[test]
fn the_same_thing_in_two_files_names_both_places() {
    let more = |text: &str| lines(&read(&[("k.toml", BOT), ("conf.d/a.toml", text)]).unwrap_err());
    assert_eq!(
        more("[[bot]]\nname = \"b\"\nmatch = { uid = 2 }\nroles = []\n"),
        [
            "conf.d/a.toml:2: bot \"b\" is already at k.toml:3, each is given once, rename or remove one"
        ]
    );
    assert_eq!(
        more("[role.r]\ndeny = []\n"),
        [
            "conf.d/a.toml:1: role \"r\" is already at k.toml:6, each is given once, rename or remove one"
        ]
    );
    let agents = [
        ("k.toml", "[agent]\nsocket = \"/a\"\n"),
        ("conf.d/a.toml", "[agent]\n\nsocket = \"/a\"\n"),
    ];
    assert_eq!(
        lines(&read(&agents).unwrap_err()),
        [
            "conf.d/a.toml:3: `socket` of [agent] is already at k.toml:2, each key is given once, remove one"
        ]
    );
}

#[test]
fn sources_that_cannot_be_told_apart() {
    let source = |name: &str, path: &str, prefix: &str| {
        format!(
            "[[source]]\nname = \"{name}\"\nkind = \"file\"\npath = \"{path}\"\nprefix = \"{prefix}\"\n"
        )
    };
    let pair = |second: String| errors(&(source("a", "/a", "a/") + &second));
    assert_eq!(
        pair(source("a", "/b", "b/")),
        ["k.toml:7: source \"a\" is already at k.toml:1, rename or remove one"]
    );
    assert!(
        pair(source("b", "/a", "b/"))[0]
            .starts_with("k.toml:9: source \"b\" has the same store \"/a\"")
    );
    assert!(
        pair(source("b", "/b", "a/"))[0]
            .starts_with("k.toml:10: source \"b\" has the same prefix \"a/\"")
    );
    let apart = source("a", "/a", "a/") + &source("b", "/b", "a/b/") + &source("c", "/c", "");
    assert_eq!(read(&[("k.toml", &apart)]).unwrap().sources.len(), 3);
}

#[test]
fn tables_of_several_files_add_up() {
    let config = read(&[
        ("k.toml", "[agent]\nsocket = \"/s\"\n"),
        (
            "conf.d/a.toml",
            "[agent]\nstate_dir = \"/d\"\n[role.r]\ngrants = [{ secrets = [\"x\"] }]\n",
        ),
        (
            "conf.d/b.toml",
            "[[bot]]\nname = \"b\"\nmatch = { uid = 1 }\nroles = [\"r\"]\n",
        ),
    ])
    .unwrap();
    assert_eq!(config.agent.socket, Path::new("/s"));
    assert_eq!(config.agent.state_dir, Path::new("/d"));
    assert!(config.policy.bot_by_name("b").is_some());
    assert!(config.warnings.is_empty());
}

#[test]
fn warnings_do_not_refuse() {
    let text = "[[bot]]\nname = \"b\"\nmatch = { uid = 1 }\nroles = []\n[role.r]\n";
    let found = read(&[("k.toml", text)]).unwrap().warnings;
    assert_eq!(
        lines(&found),
        [
            "k.toml:2: bot \"b\" has no roles, so that it is denied everything",
            "k.toml:5: no bot has role \"r\", so that it grants nothing",
        ]
    );
    let text = r#"
[[bot]]
name = "b"
match = { unit = "b.service" }
roles = ["r"]
credentials = { aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa = "app/a#x", b = "app/b", c = "app/c" }
[role.r]
grants = [{ secrets = ["app/a"] }, { secrets = ["app/c"], actions = ["list"] }]
deny = [{ secrets = ["app/b"] }]
"#;
    assert_eq!(
        lines(&read(&[("k.toml", text)]).unwrap().warnings),
        [
            &format!(
                "k.toml:6: credential {:?} and unit \"b.service\" have 84 bytes together, systemd asks for at most 83, \
                 shorten one",
                "a".repeat(75)
            ),
            "k.toml:6: credential \"b\" is app/b, and the deny at k.toml:9 keeps bot \"b\" from it: it would be refused",
            "k.toml:6: credential \"c\" is app/c, and no role of bot \"b\" grants to read it: it would be refused",
        ]
    );
}

#[test]
fn files_are_read_in_name_order() {
    let folder = Folder::new();
    let main = folder.write("keyhatch.toml", BOT);
    folder.write("conf.d/b.toml", "");
    folder.write("conf.d/a.toml", "");
    folder.write("conf.d/.#a.toml", "not toml");
    folder.write("conf.d/a.toml~", "not toml");
    let files = load(&main, Depth::ContentOnly).unwrap().files;
    let names: Vec<_> = files
        .iter()
        .map(|file| file.strip_prefix(&folder.0).unwrap())
        .collect();
    assert_eq!(
        names,
        ["keyhatch.toml", "conf.d/a.toml", "conf.d/b.toml"].map(Path::new)
    );
}

#[test]
fn a_file_that_cannot_be_read_is_the_only_error() {
    let folder = Folder::new();
    let missing = folder.0.join("none.toml");
    let found = lines(&load(&missing, full()).unwrap_err());
    assert!(found[0].starts_with(&format!(
        "{}: cannot be read, No such file",
        missing.display()
    )));
    assert_eq!(found.len(), 1);

    // The role is in the file that cannot be read: the bot that names it is not to blame.
    let main = folder.write(
        "k.toml",
        "[[bot]]\nname = \"b\"\nmatch = { uid = 1 }\nroles = [\"r\"]\n",
    );
    fs::create_dir(folder.0.join("conf.d")).unwrap();
    fs::write(folder.0.join("conf.d/x.toml"), b"\xff").unwrap();
    let found = lines(&load(&main, Depth::ContentOnly).unwrap_err());
    assert!(
        found[0].contains("conf.d/x.toml:1: cannot be read"),
        "{found:?}"
    );
    assert_eq!(found.len(), 1);
}

#[test]
fn the_example_loads() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd/keyhatch.toml");
    let text = fs::read_to_string(&example).unwrap();
    let config = load(&example, Depth::ContentOnly).unwrap();
    assert!(config.warnings.is_empty());
    // What is commented out must be valid too, and say the defaults.
    let uncommented: String = text
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(rest) if rest.starts_with('[') || rest.contains(" = ") => format!("{rest}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    let mut full = read(&[("k.toml", &uncommented)]).unwrap();
    full.agent.admins.clear();
    full.agent.metrics = None;
    assert_eq!((full.agent, full.audit), (config.agent, config.audit));
    assert_eq!(full.sources, config.sources);
}

fn on_host(exe: &Path, uid: u32) -> Result<Vec<String>, Vec<String>> {
    let text =
        format!("[[bot]]\nname = \"b\"\nmatch = {{ uid = {uid}, exe = {exe:?} }}\nroles = []\n");
    let documents = [Document::new("k.toml".into(), text)];
    match assemble(&documents, full(), Report::default()) {
        Ok(config) => {
            let mut found = lines(&config.warnings);
            found.retain(|line| {
                !line.contains("has no roles") && !line.contains("is not there yet")
            });
            Ok(found)
        }
        Err(errors) => Err(lines(&errors)),
    }
}

#[test]
fn an_exe_that_the_bot_can_change_is_refused() {
    const STRANGER: u32 = 54321;
    let folder = Folder::new();
    let own = nix::unistd::getuid().as_raw();
    let file = folder.write("bin/bot", "\x7fELF");
    let mode =
        |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    mode(&file, 0o755);
    assert_eq!(on_host(&file, STRANGER), Ok(vec![]));
    if own != 0 {
        assert!(on_host(&file, own).unwrap_err()[0].contains("proves nothing"));
    }
    mode(&file, 0o757);
    let shown = format!("{:?}", file.to_string_lossy());
    assert_eq!(
        on_host(&file, STRANGER).unwrap_err(),
        [format!(
            "k.toml:2: exe {shown} proves nothing, since the bot \"b\" can change {shown}, move it to where only root can write"
        )]
    );
    mode(&file, 0o755);
    mode(&folder.0.join("bin"), 0o777);
    assert!(on_host(&file, STRANGER).unwrap_err()[0].contains("can change"));
    // The link is in a safe place, what it leads through is not.
    symlink(&file, folder.0.join("link")).unwrap();
    assert!(on_host(&folder.0.join("link"), STRANGER).is_err());
    mode(&folder.0.join("bin"), 0o1777);
    assert_eq!(on_host(&folder.0.join("link"), STRANGER), Ok(vec![]));
    assert!(on_host(&folder.0, STRANGER).unwrap_err()[0].contains("is not a file"));
    symlink("loop", folder.0.join("loop")).unwrap();
    assert!(on_host(&folder.0.join("loop"), STRANGER).unwrap()[0].contains("cannot be found"));
}

#[test]
fn an_exe_that_says_little_is_warned_of() {
    let folder = Folder::new();
    let warning = |exe: &Path| on_host(exe, 54321).unwrap().join("\n");
    assert!(warning(&folder.write("bot", "#!/bin/sh\n")).contains("is a script"));
    assert!(warning(&folder.write("python3.12", "\x7fELF")).contains("is an interpreter"));
    assert!(warning(&folder.0.join("missing")).contains("cannot be found"));
    symlink("python3.12", folder.0.join("tool")).unwrap();
    assert!(warning(&folder.0.join("tool")).contains("is an interpreter"));
    assert_eq!(warning(&folder.write("bot2", "x")), "");
}

#[test]
fn accounts_are_looked_up_on_the_host_only() {
    let text = "[agent]\nadmins = [\"no-such-user-here\"]\n[[bot]]\nname = \"b\"\n\
                match = { user = \"root\", group = \"no-such-group-here\" }\nroles = [\"r\"]\n[role.r]\n";
    let documents = [Document::new("k.toml".into(), text.into())];
    let warnings = |depth| {
        let config = assemble(&documents, depth, Report::default()).unwrap();
        let mut found = lines(&config.warnings);
        found.retain(|line| !line.contains("is not there yet"));
        found
    };
    assert_eq!(
        warnings(full()),
        [
            "k.toml:2: there is no user \"no-such-user-here\" on this host yet, nobody matches it until there is",
            "k.toml:5: there is no group \"no-such-group-here\" on this host yet, nobody matches it until there is",
        ]
    );
    assert!(warnings(Depth::ContentOnly).is_empty());
}

proptest! {
    #[test]
    fn any_text_is_a_configuration_or_errors_with_lines(text in ".{0,200}") {
        let _ = read(&[("k.toml", &text)]);
    }

    #[test]
    fn shuffled_words_of_configurations_too(
        words in proptest::collection::vec(
            proptest::sample::select(vec![
                "[agent]", "[[bot]]", "[role.r]", "[[source]]", "[audit]", "[role]", "[[role.r]]", "name", "match",
                "roles", "grants", "deny", "secrets", "actions", "kind", "\"file\"", "uid", "unit", "keep", "=", "=",
                "=", "{", "}", "[", "]", ",", "\"a\"", "\"**/\"", "1", "-1", "true", "1.5", "1979-05-27", "\n", "\n",
                "\n", ".", "'''", "\\u0000", "\u{feff}",
            ]),
            0..40,
        )
    ) {
        let text = words.concat();
        if let Err(errors) = read(&[("k.toml", &text)]) {
            prop_assert!(!errors.is_empty());
            let last = text.matches('\n').count() + 1;
            prop_assert!(errors.iter().all(|error| (1..=last).contains(&error.place.line)), "{errors:?}");
        }
    }
}
