//! Every key that a configuration may have, and what becomes of it.

use super::*;

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
    let catalogue = include_str!("../presets.toml");
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
