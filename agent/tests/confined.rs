//! The sandbox of the daemon, tried from inside: a process that is confined as the daemon is, for a real
//! configuration, tries what somebody who has broken in would try.
//!
//! Each attempt has a process of its own, which is this program again: some end it.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{self, IoSliceMut};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::mpsc;
use std::thread;

use keyhatch_agent::config::{self, Depth};
use keyhatch_agent::confine::{Needs, confine};
use keyhatch_agent::sys::map::map_executable;
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::sys::{prctl, ptrace, signal};
use nix::unistd::{User, execv, setresgid, setresuid};

/// A user that is nobody.
const OTHER: u32 = 20001;

fn main() {
    let mut arguments = std::env::args().skip(1);
    match (arguments.next(), arguments.next(), arguments.next()) {
        (Some(dir), Some(attempt), target) if dir.starts_with('/') => {
            from_inside(Path::new(&dir), &attempt, &target.unwrap_or_default());
        }
        // Whatever else `cargo test` passes on.
        _ => all(),
    }
}

/// A folder with a configuration that names a Vault at `port`, and things that it does not name.
struct Scene {
    dir: PathBuf,
    inside: PathBuf,
    outside: PathBuf,
}

impl Scene {
    fn new(port: u16) -> Self {
        let dir = std::env::temp_dir().join(format!("keyhatch-confined-{}", std::process::id()));
        let (inside, outside) = (dir.join("agent"), dir.join("elsewhere"));
        for folder in ["state", "audit", "run", "store", "token", "conf.d"] {
            fs::create_dir_all(inside.join(folder)).unwrap();
        }
        fs::create_dir_all(&outside).unwrap();
        fs::write(outside.join("file"), "CANARY-elsewhere").unwrap();
        // Anyone may read it, so that only the sandbox can be in the way.
        fs::set_permissions(outside.join("file"), PermissionsExt::from_mode(0o666)).unwrap();
        fs::write(inside.join("token/token"), "CANARY-token").unwrap();
        let text = format!(
            r#"
[agent]
socket = "{dir}/run/keyhatch.sock"
admin_socket = "{dir}/run/admin.sock"
state_dir = "{dir}/state"
[audit]
dir = "{dir}/audit"
[[source]]
name = "local"
kind = "file"
path = "{dir}/store"
key = "file:{dir}/store.key"
[[source]]
name = "bao"
kind = "vault"
prefix = "bao/"
address = "http://127.0.0.1:{port}"
auth = {{ method = "token_file", path = "{dir}/token/token" }}
"#,
            dir = inside.display()
        );
        fs::write(inside.join("keyhatch.toml"), text).unwrap();
        Self {
            dir,
            inside,
            outside,
        }
    }

    fn attempt(&self, attempt: &str, target: &str) -> Output {
        Command::new(std::env::current_exe().unwrap())
            .args([self.inside.to_str().unwrap(), attempt, target])
            .output()
            .unwrap()
    }

    fn done(&self, attempt: &str, target: &str) {
        let output = self.attempt(attempt, target);
        assert!(output.status.success(), "{attempt} {target}: {output:?}");
    }

    fn refused(&self, attempt: &str, target: &str, errno: Errno) {
        let output = self.attempt(attempt, target);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(
            output.status.code(),
            Some(1),
            "{attempt} {target}: {output:?}"
        );
        assert!(
            said.contains(&format!("os error {}", errno as i32)),
            "{attempt} {target}: {said}"
        );
    }

    fn killed(&self, attempt: &str) {
        let output = self.attempt(attempt, "");
        assert_eq!(
            output.status.signal(),
            Some(signal::Signal::SIGSYS as i32),
            "{attempt}: {output:?}"
        );
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn all() {
    let named = TcpListener::bind("127.0.0.1:0").unwrap();
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let scene = Scene::new(named.local_addr().unwrap().port());
    let at = |listener: &TcpListener| listener.local_addr().unwrap().to_string();
    let path = |path: PathBuf| path.to_str().unwrap().to_owned();

    // All that it needs still works, also where a file was replaced by a rename.
    scene.done("read", &path(scene.inside.join("keyhatch.toml")));
    scene.done("read-replaced", &path(scene.inside.join("token/token")));
    for file in ["state/x", "audit/x", "store/x"] {
        scene.done("write", &path(scene.inside.join(file)));
    }
    scene.done("listen", &path(scene.inside.join("run/x.sock")));
    scene.done("connect", &at(&named));
    scene.done("read", "/etc/passwd");
    scene.done("read", "/proc/self/status");
    scene.done("user", "root");
    scene.done("thread", "");

    // Nothing else does.
    scene.refused("read", &path(scene.outside.join("file")), Errno::EACCES);
    scene.refused("write", &path(scene.outside.join("file")), Errno::EACCES);
    scene.refused("write", &path(scene.outside.join("new")), Errno::EACCES);
    scene.refused(
        "write",
        &path(scene.inside.join("token/token")),
        Errno::EACCES,
    );
    scene.refused(
        "write",
        &path(scene.inside.join("keyhatch.toml")),
        Errno::EACCES,
    );
    scene.refused("list", &path(scene.outside.clone()), Errno::EACCES);
    scene.refused("listen", &path(scene.outside.join("x.sock")), Errno::EACCES);
    scene.refused(
        "read-in-thread",
        &path(scene.outside.join("file")),
        Errno::EACCES,
    );
    scene.refused("connect", &at(&other), Errno::EACCES);
    scene.refused("bind", "127.0.0.1:0", Errno::EACCES);
    scene.refused("raw", "", Errno::ENOSYS);
    scene.refused("spawn", "", Errno::ENOSYS);
    scene.refused("dumpable", "", Errno::ENOSYS);
    scene.refused("signal", &std::process::id().to_string(), Errno::ENOSYS);
    scene.refused("executable", "", Errno::ENOSYS);
    // A daemon with a user of its own; root reads all of /etc.
    scene.refused("shadow", "", Errno::EACCES);
    for attempt in ["exec", "ptrace", "read-memory", "unshare"] {
        scene.killed(attempt);
    }
    println!("confined: ok");
}

/// Becomes as confined as the daemon, and tries.
fn from_inside(dir: &Path, attempt: &str, target: &str) {
    let path = dir.join("keyhatch.toml");
    let config = config::load(&path, Depth::ContentOnly).unwrap();
    let needs = Needs::of(&path, &config, &|_| None);
    // A thread that was there before may still write where the daemon may not.
    let (replace, asked) = mpsc::channel();
    let replaced = PathBuf::from(target);
    let outsider = thread::spawn(move || {
        if asked.recv().is_ok() {
            let fresh = replaced.with_extension("new");
            fs::write(&fresh, "CANARY-fresh")?;
            fs::rename(&fresh, &replaced)?;
        }
        Ok::<_, io::Error>(())
    });
    if attempt == "shadow" {
        setresgid(OTHER.into(), OTHER.into(), OTHER.into()).unwrap();
        setresuid(OTHER.into(), OTHER.into(), OTHER.into()).unwrap();
    }
    let missing = confine(&needs);
    assert!(
        missing.is_empty(),
        "this kernel cannot show it: {missing:?}"
    );
    if attempt == "read-replaced" {
        replace.send(()).unwrap();
        outsider.join().unwrap().unwrap();
    }
    if let Err(error) = attempt_from_inside(attempt, target) {
        eprintln!("{error}");
        std::process::exit(1);
    }
}

fn attempt_from_inside(attempt: &str, target: &str) -> io::Result<()> {
    let parent = nix::unistd::getppid();
    match attempt {
        "read" | "read-replaced" => fs::read(target).map(drop),
        "read-in-thread" => {
            let target = target.to_owned();
            thread::spawn(|| fs::read(target)).join().unwrap().map(drop)
        }
        "shadow" => fs::read("/etc/shadow").map(drop),
        "write" => {
            fs::write(target, "x")?;
            fs::rename(target, format!("{target}.renamed"))?;
            fs::remove_file(format!("{target}.renamed"))
        }
        "list" => fs::read_dir(target).map(drop),
        "listen" => UnixListener::bind(target).and_then(|_| fs::remove_file(target)),
        "connect" => TcpStream::connect(target).map(drop),
        "bind" => TcpListener::bind(target).map(drop),
        "raw" => socket(
            AddressFamily::Inet,
            SockType::Raw,
            SockFlag::empty(),
            SockProtocol::Icmp,
        )
        .map(drop)
        .map_err(Into::into),
        "user" => User::from_name(target)?
            .map(drop)
            .ok_or_else(|| io::Error::other("nobody")),
        "thread" => thread::spawn(|| ())
            .join()
            .map_err(|_| io::Error::other("it panicked")),
        "spawn" => Command::new("/bin/true").status().map(drop),
        "dumpable" => Ok(prctl::set_dumpable(true)?),
        "signal" => Ok(signal::kill(parent, None)?),
        "executable" => Ok(map_executable()?),
        "exec" => execv(c"/bin/true", &[c"true"])
            .map(|_| ())
            .map_err(Into::into),
        "ptrace" => Ok(ptrace::attach(parent)?),
        "read-memory" => {
            let mut byte = [0];
            let remote = [RemoteIoVec { base: 4096, len: 1 }];
            process_vm_readv(parent, &mut [IoSliceMut::new(&mut byte)], &remote)?;
            Ok(())
        }
        "unshare" => Ok(unshare(CloneFlags::CLONE_NEWUSER)?),
        other => panic!("no attempt {other:?}"),
    }
}
