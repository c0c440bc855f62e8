//! Programs that a helper runs, tried with real processes: their bounds, what they find, what they leave.
//!
//! The helper is forked while this process has a single thread, so this is no test of the harness's.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use keyhatch_agent::exec::{ExecError, MOST_OUTPUT, Program, Runner};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{geteuid, seteuid};

/// A user that is nobody.
const OTHER: u32 = 20001;

/// What a script is called, and what it does.
const SCRIPTS: [(&str, &str); 13] = [
    ("echo", "cat; printf ' %s' \"$@\""),
    ("environment", "env; pwd; ls -l /proc/self/fd | wc -l"),
    ("user", "id -u; id -g; id -G"),
    ("other-user", "id -u; id -g; id -G"),
    ("nobody-there", "true"),
    (
        "fails",
        "echo CANARY-said; echo CANARY-complained >&2; exit 3",
    ),
    ("is-killed", "kill -9 $$"),
    ("reads-nothing", "exec <&-; printf done"),
    ("hangs", "sleep 600 & echo $$ $! > PIDS; sleep 600"),
    (
        "hides",
        "setsid sh -c 'echo $$ > PIDS; exec sleep 600' & until [ -s PIDS ]; do :; done; printf done",
    ),
    ("writes", "head -c 262144 /dev/zero"),
    ("writes-more", "head -c 262145 /dev/zero; sleep 600"),
    ("waits", "echo $$ > PIDS; sleep 600"),
];

/// How long a script may run; the one that hangs shall not hold up the rest.
const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(300);

struct Scene {
    dir: PathBuf,
    programs: Vec<Program>,
}

impl Scene {
    fn new() -> Self {
        let dir = std::env::temp_dir().join(format!("keyhatch-exec-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        fs::set_permissions(&dir, PermissionsExt::from_mode(0o755)).unwrap();
        let programs = SCRIPTS.map(|(name, body)| {
            let file = dir.join(name);
            let body = body.replace("PIDS", dir.join(format!("{name}.pids")).to_str().unwrap());
            fs::write(&file, format!("#!/bin/sh\n{body}\n")).unwrap();
            fs::set_permissions(&file, PermissionsExt::from_mode(0o755)).unwrap();
            Program {
                command: vec![file.to_str().unwrap().into(), "an argument".into()],
                user: match name {
                    "other-user" => Some("daemon".into()),
                    "nobody-there" => Some("no-such-user".into()),
                    _ => None,
                },
                timeout: if name == "hangs" { SHORT } else { LONG },
            }
        });
        Self {
            dir,
            programs: programs.into(),
        }
    }

    fn named(&self, name: &str) -> &Program {
        let file = self.dir.join(name);
        self.programs
            .iter()
            .find(|program| Path::new(&program.command[0]) == file)
            .unwrap()
    }

    /// The processes that a script wrote down, once they have ended; panics where they do not.
    fn all_ended(&self, name: &str) {
        let ids = fs::read_to_string(self.dir.join(format!("{name}.pids"))).unwrap();
        for id in ids.split_whitespace() {
            eventually(|| !Path::new("/proc").join(id).exists());
        }
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn eventually(holds: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < end, "not within a minute");
        thread::sleep(Duration::from_millis(10));
    }
}

fn main() {
    let scene = Scene::new();
    anothers_socket(&scene);
    let nowhere = scene.dir.join("exec.sock");
    let runner = Runner::start(&scene.programs, &nowhere).unwrap();
    assert!(runner.knows(&scene.programs) && !runner.knows(&[another()]));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        bounds(&scene, &runner).await;
        surroundings(&scene, &runner).await;
        refusals(&scene, &runner).await;
        several_at_once(&scene, &runner).await;
        nobody(&scene).await;
    });
    ends(runner);
    println!("exec: ok");
}

/// The socket of a service that this user may not ask does not stand in for the helper.
fn anothers_socket(scene: &Scene) {
    let path = scene.dir.join("service.sock");
    let _listener = UnixListener::bind(&path).unwrap();
    fs::set_permissions(&path, PermissionsExt::from_mode(0o0)).unwrap();
    let own = geteuid();
    if own.is_root() {
        assert!(
            Runner::start(&scene.programs, &path)
                .unwrap()
                .knows(&[another()])
        );
        seteuid(OTHER.into()).unwrap();
    }
    let runner = Runner::start(&scene.programs, &path).unwrap();
    assert!(runner.knows(&scene.programs) && !runner.knows(&[another()]));
    seteuid(own).unwrap();
    ends(runner);
}

async fn run(runner: &Runner, program: &Program, input: &[u8]) -> Result<String, ExecError> {
    let output = runner.run(program, input).await?;
    Ok(String::from_utf8(output.stdout.to_vec()).unwrap())
}

async fn bounds(scene: &Scene, runner: &Runner) {
    let large = vec![b'x'; 200_000];
    let echoed = run(runner, scene.named("echo"), &large).await.unwrap();
    assert_eq!(echoed.len(), large.len() + " an argument".len());
    let done = run(runner, scene.named("reads-nothing"), &large).await;
    assert_eq!(done.unwrap(), "done");
    assert_eq!(
        run(runner, scene.named("writes"), b"").await.unwrap().len(),
        MOST_OUTPUT
    );
    let more = run(runner, scene.named("writes-more"), b"").await;
    assert_eq!(more, Err(ExecError::TooMuch));
    let hung = run(runner, scene.named("hangs"), b"").await;
    assert_eq!(hung, Err(ExecError::Timeout(SHORT)));
    scene.all_ended("hangs");
    // A program that left its group and lost its parent does not outlive the run either.
    assert_eq!(
        run(runner, scene.named("hides"), b"").await.unwrap(),
        "done"
    );
    scene.all_ended("hides");
    let failed = run(runner, scene.named("fails"), b"CANARY-input")
        .await
        .unwrap_err();
    assert_eq!(failed, ExecError::Exit(3));
    assert!(!format!("{failed} {failed:?}").contains("CANARY"));
    assert_eq!(
        run(runner, scene.named("is-killed"), b"").await,
        Err(ExecError::Signal(9))
    );
    let huge = vec![b'x'; 1024 * 1024 + 1];
    assert_eq!(
        run(runner, scene.named("echo"), &huge).await,
        Err(ExecError::TooLarge)
    );
}

async fn surroundings(scene: &Scene, runner: &Runner) {
    let said = run(runner, scene.named("environment"), b"").await.unwrap();
    let mut lines: Vec<&str> = said.lines().collect();
    // Four descriptors, one of them of `ls` itself, under a heading.
    assert_eq!(lines.pop(), Some("5"), "{said}");
    // A shell sets these by itself.
    lines.retain(|line| {
        !["PWD=", "_=", "SHLVL=", "OLDPWD="]
            .iter()
            .any(|own| line.starts_with(own))
    });
    lines.sort_unstable();
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    assert_eq!(lines, ["/", "LANG=C.UTF-8", path]);
    let own = run(runner, scene.named("user"), b"").await.unwrap();
    assert_eq!(own.lines().next().unwrap(), geteuid().to_string());
    let other = run(runner, scene.named("other-user"), b"").await;
    if geteuid().is_root() {
        // Not root's groups either.
        assert_eq!(other.unwrap(), "1\n1\n1\n");
    } else {
        assert_eq!(other, Err(ExecError::NotRoot("daemon".into())));
    }
    let none = run(runner, scene.named("nobody-there"), b"").await;
    assert_eq!(none, Err(ExecError::NoUser("no-such-user".into())));
}

/// The helper knows what it may run, whatever the daemon asks for.
async fn refusals(scene: &Scene, runner: &Runner) {
    let named = scene.named("echo");
    let shell = vec!["/bin/sh".into(), "-c".into(), "echo".into()];
    for other in [
        Program {
            command: shell,
            ..named.clone()
        },
        Program {
            command: named.command[..1].to_vec(),
            ..named.clone()
        },
        another(),
        Program {
            user: Some("daemon".into()),
            ..named.clone()
        },
    ] {
        assert_eq!(run(runner, &other, b"").await, Err(ExecError::NotNamed));
    }
    // One that others can write is not run.
    let file = scene.dir.join("user");
    fs::set_permissions(&file, PermissionsExt::from_mode(0o757)).unwrap();
    let loose = run(runner, scene.named("user"), b"").await.unwrap_err();
    assert!(
        matches!(&loose, ExecError::Loose(why) if why.contains("others may write it")),
        "{loose}"
    );
    fs::remove_file(&file).unwrap();
    let absent = run(runner, scene.named("user"), b"").await;
    assert!(matches!(absent, Err(ExecError::Start(_))));
}

/// One that hangs holds up no other.
async fn several_at_once(scene: &Scene, runner: &Runner) {
    let slow = tokio::spawn({
        let (runner, program) = (runner.clone(), scene.named("waits").clone());
        async move { runner.run(&program, b"").await.map(drop) }
    });
    let pids = scene.dir.join("waits.pids");
    while fs::read_to_string(&pids).unwrap_or_default().is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(
        run(runner, scene.named("echo"), b"quick").await.unwrap(),
        "quick an argument"
    );
    assert!(!slow.is_finished());
    // Who asked does not wait any more.
    slow.abort();
    let _ = slow.await;
    scene.all_ended("waits");
}

/// The helper ends with who started it, as its socket closes.
fn ends(runner: Runner) {
    assert_eq!(
        waitpid(None, Some(WaitPidFlag::WNOHANG)),
        Ok(WaitStatus::StillAlive)
    );
    drop(runner);
    eventually(|| {
        matches!(
            waitpid(None, Some(WaitPidFlag::WNOHANG)),
            Ok(WaitStatus::Exited(_, 0))
        )
    });
}

/// One that the helper was not made for.
fn another() -> Program {
    Program {
        command: vec!["/bin/true".into()],
        user: None,
        timeout: LONG,
    }
}

async fn nobody(scene: &Scene) {
    let runner = Runner::start(&[], &scene.dir.join("none.sock")).unwrap();
    let asked = run(&runner, scene.named("echo"), b"").await;
    assert_eq!(asked, Err(ExecError::NoHelper));
}
