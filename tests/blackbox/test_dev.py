"""`keyhatchd dev`: a ready agent for whoever calls it, and three commands that work as they are pasted."""

import contextlib
import os
import pty
import re
import select
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest

from harness import BIN, BOB, KEYHATCHD, eventually

# A uid of these tests alone: what `dev` makes in /tmp has the caller's uid in its name.
USER = 20017
DEMO = b"demo-value-from-keyhatch"


@pytest.fixture(params=[USER, 0], ids=["ordinary user", "root"])
def home(request):
    with Home(request.param) as home:
        yield home


@pytest.fixture
def own():
    with Home(USER) as home:
        yield home


class Home:
    """A user's folder and environment, in which dev agents run."""

    def __init__(self, uid):
        self.uid = uid
        self.dir = Path(tempfile.mkdtemp(prefix="keyhatch-test-dev-", dir="/tmp"))
        self.shared = Path(f"/tmp/keyhatch-{uid}")
        os.chown(self.dir, uid, uid)
        self.env = {"PATH": f"{BIN}:/usr/bin:/bin", "HOME": str(self.dir / "home")}
        self.make("home")
        self.running = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for dev in list(self.running):
            dev.end(signal.SIGKILL)
        shutil.rmtree(self.dir, ignore_errors=True)
        if self.shared.is_dir() and not self.shared.is_symlink():
            shutil.rmtree(self.shared)
        else:
            self.shared.unlink(missing_ok=True)

    def make(self, name, mode=0o700):
        path = self.dir / name
        path.mkdir(mode=mode)
        os.chown(path, self.uid, self.uid)
        return path

    @property
    def user(self):
        return {"user": self.uid, "group": self.uid, "extra_groups": []}

    def xdg(self):
        self.env["XDG_STATE_HOME"] = str(self.make("state"))
        self.env["XDG_RUNTIME_DIR"] = str(self.make("runtime"))

    def start(self, *args, **kwargs):
        return Dev(self, [KEYHATCHD, "dev", *map(str, args)], **kwargs)

    def refused(self, *args):
        """What a dev agent says that does not come up."""
        done = subprocess.run([KEYHATCHD, "dev", *map(str, args)], env=self.env, capture_output=True, text=True,
                              timeout=20, **self.user)
        assert done.returncode == 1 and "panicked" not in done.stderr, done
        return done.stderr

    def paste(self, command, env=None):
        """Types `command` into a second shell."""
        done = subprocess.run(["sh"], input=command.encode() + b"\n", env=env or self.env, capture_output=True,
                              timeout=30, cwd="/", **self.user)
        assert done.returncode == 0, (command, done)
        return done.stdout


class Dev:
    """A running dev agent, its greeting read."""

    def __init__(self, home, command, **kwargs):
        self.home, self.text = home, ""
        self.process = subprocess.Popen(command, env=home.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                        **{**home.user, **kwargs})
        home.running.append(self)
        eventually(self.greeted)
        self.get, self.put, self.whoami = (
            line.strip() for line in self.text.splitlines() if re.match(r"  \S", line))

    def greeted(self):
        assert self.process.poll() is None, self.process.stderr.read()
        if select.select([self.process.stdout], [], [], 0)[0]:
            self.text += os.read(self.process.stdout.fileno(), 65536).decode()
        return self.text.endswith("whoami\n\n")

    def end(self, sig=signal.SIGTERM):
        """Ends it; returns its exit code and its log."""
        self.home.running.remove(self)
        self.process.send_signal(sig)
        log = self.process.communicate(timeout=20)[1].decode()
        assert "panicked" not in log
        return self.process.returncode, log


def try_all(home, dev):
    """The three commands, exactly as printed."""
    assert home.paste(dev.get) == DEMO
    home.paste(dev.put)
    assert home.paste(dev.get.replace("demo/api-key", "my/secret")) == b"my-value"
    assert re.search(rb"^bot +me\n", home.paste(dev.whoami))


@pytest.mark.parametrize("place", ["dir", "xdg", "home"])
def test_the_three_printed_commands_work_in_a_second_shell(home, place):
    if place == "xdg":
        home.xdg()
    elif home.shared.exists() and place == "home":
        pytest.skip(f"{home.shared} is somebody's own agent")
    args = ["--dir", home.dir / "all here"] if place == "dir" else []
    dev = home.start(*args)
    assert dev.put.startswith("printf %s my-value | keyhatchd store put my/secret")
    named = any("socket" in command for command in [dev.get, dev.put, dev.whoami])
    assert named == (place == "dir"), "commands are short where they can be"
    try_all(home, dev)
    folder = {"dir": home.dir / "all here", "xdg": home.dir / "runtime" / "keyhatch", "home": home.shared}[place]
    assert (folder / "keyhatch.sock").is_socket() and folder.stat().st_uid == home.uid
    assert folder.stat().st_mode & 0o777 == 0o700
    assert dev.end() == (0, "")
    assert not list(folder.glob("*.sock"))


def test_a_second_start_keeps_the_store(own):
    own.xdg()
    dev = own.start()
    own.paste(dev.put)
    state = own.dir / "state" / "keyhatch"
    config, key = (state / "keyhatch.toml"), (state / "store.key").read_bytes()
    config.write_text(config.read_text() + "# mine\n")
    dev.end()
    dev = own.start()
    assert own.paste("keyhatch get my/secret") == b"my-value"
    assert (state / "store.key").read_bytes() == key and config.read_text().endswith("# mine\n")
    for path in state.rglob("*"):
        assert path.stat().st_mode & 0o007 == 0 or path.stat().st_size == 0, path
    assert b"my-value" not in b"".join(path.read_bytes() for path in state.rglob("*") if path.is_file())


def test_commands_name_the_socket_where_none_would_lead_elsewhere(own):
    own.xdg()
    own.start().end()
    # The sockets stay where the configuration has them, whatever the environment says later.
    own.env["XDG_RUNTIME_DIR"] = str(own.make("elsewhere"))
    dev = own.start()
    assert "--socket" in dev.get and "--admin-socket" in dev.put and "--socket" in dev.whoami
    try_all(own, dev)
    dev.end()
    own.env["XDG_RUNTIME_DIR"] = str(own.dir / "runtime")
    own.env["KEYHATCH_SOCKET"] = "/nowhere"
    try_all(own, own.start())


def test_a_folder_with_odd_characters_is_quoted(own):
    try_all(own, own.start("--dir", own.dir / "it's \"here\" $HOME \\ now; é"))


def test_from_a_clone_the_commands_are_cargo_s(own):
    shims = own.make("shims")
    cargo = shims / "cargo"
    cargo.write_text('#!/bin/sh\n[ "$1 $2 $3 $4 $6" = "run -q --release --bin --" ] || exit 9\n'
                     f'bin=$5; shift 6; exec {BIN}/$bin "$@"\n')
    cargo.chmod(0o755)
    own.env = {**own.env, "PATH": f"{shims}:/usr/bin:/bin", "CARGO_MANIFEST_DIR": "/somewhere"}
    dev = own.start("--dir", own.dir / "d")
    assert all("cargo run -q --release --bin keyhatch" in command for command in [dev.get, dev.put, dev.whoami])
    try_all(own, dev)


def test_no_printed_command_leaves_a_value_in_the_process_list(own):
    shims = own.make("shims")
    for name in ["keyhatch", "keyhatchd", "printf"]:
        (shims / name).write_text(
            f'#!/bin/sh\ncat /proc/[0-9]*/cmdline /proc/[0-9]*/environ >> {shims}/seen 2>/dev/null\nexec {BIN}/{name} "$@"\n')
        (shims / name).chmod(0o755)
    dev = own.start("--dir", own.dir / "d")
    env = {**own.env, "PATH": f"{shims}:/usr/bin:/bin"}
    for command in [dev.get, dev.put, dev.whoami]:
        own.paste(command, env=env)
    seen = (shims / "seen").read_bytes()
    assert b"keyhatchd" in seen and b"my-value" not in seen and DEMO not in seen


def test_a_second_dev_on_the_same_folder_says_so(own):
    dev = own.start("--dir", own.dir / "d")
    said = own.refused("--dir", own.dir / "d")
    assert f"{own.dir}/d: another `keyhatchd dev` runs here" in said
    assert own.paste(dev.get) == DEMO, "the first one goes on"
    own.start("--dir", own.dir / "other")


def test_a_shared_folder_of_somebody_else_is_refused(own):
    os.mkdir(own.shared)
    os.chown(own.shared, BOB, BOB)
    assert f"{own.shared}: is not a folder of yours" in own.refused()
    os.rmdir(own.shared)
    own.shared.symlink_to(own.make("mine"))
    assert f"{own.shared}: is not a folder of yours" in own.refused()
    own.shared.unlink()
    own.shared.touch()
    assert f"{own.shared}: is not a folder of yours" in own.refused()


def test_without_a_home_it_asks_for_a_folder(own):
    del own.env["HOME"]
    assert "use --dir DIR" in own.refused()


def test_folders_that_it_makes_are_tight_whatever_the_umask(own):
    dev = own.start(umask=0o002)
    try_all(own, dev)
    assert (own.dir / "home" / ".local").stat().st_mode & 0o777 == 0o700
    assert dev.end()[0] == 0
    dev = own.start("--dir", own.dir / "a" / "b", umask=0)
    try_all(own, dev)


def test_a_loose_folder_above_is_named(own):
    own.make("home/.local").chmod(0o777)
    done = subprocess.run([KEYHATCHD, "dev"], env=own.env, capture_output=True, text=True, timeout=20, **own.user)
    assert done.returncode == 78 and f"chmod go-w {own.dir}/home/.local" in done.stderr


@contextlib.contextmanager
def on_terminal(home, *args):
    """A dev agent on a terminal of its own: its process and the terminal's other end."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.setgroups([])
        os.setresgid(home.uid, home.uid, home.uid)
        os.setresuid(home.uid, home.uid, home.uid)
        os.execve(KEYHATCHD, [KEYHATCHD, "dev", *map(str, args)], home.env)
    try:
        yield pid, terminal
    finally:
        with contextlib.suppress(OSError):  # it may have been waited for
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        os.close(terminal)


def test_commands_are_coloured_on_a_terminal_and_ctrl_c_ends_it_cleanly(own):
    folder = own.dir / "d"
    with on_terminal(own, "--dir", folder) as (pid, terminal):
        seen = b""

        def greeted():
            nonlocal seen
            if select.select([terminal], [], [], 0)[0]:
                seen += os.read(terminal, 65536)
            return seen.endswith(b"whoami\x1b[0m\r\n\r\n")

        eventually(greeted)
        assert seen.count(b"\x1b[1;32m") == seen.count(b"\x1b[0m") == 3
        os.write(terminal, b"\x03")
        status = eventually(lambda: [status for ended, status in [os.waitpid(pid, os.WNOHANG)] if ended])
        assert status == [0], "exit 0, not a signal"
    assert not list(folder.glob("*.sock"))
    dev = own.start("--dir", folder)
    assert "\x1b" not in dev.text, "no colours in a pipe"


def test_it_goes_on_where_nobody_reads_what_it_prints(own):
    read, write = os.pipe()
    os.close(read)
    process = subprocess.Popen([KEYHATCHD, "dev", "--dir", str(own.dir / "d")], env=own.env, stdout=write,
                               stderr=subprocess.PIPE, **own.user)
    os.close(write)
    try:
        eventually(lambda: (own.dir / "d" / "keyhatch.sock").is_socket())
        assert own.paste(f"keyhatch --socket {own.dir}/d/keyhatch.sock get demo/api-key") == DEMO
    finally:
        process.send_signal(signal.SIGTERM)
        log = process.communicate(timeout=20)[1]
    assert process.returncode == 0 and b"panicked" not in log


def test_it_leaves_journald_alone():
    """A socket of the test's stands where journald's is, in a mount namespace of the agent's own."""
    with Home(0) as root:
        journal = root.make("journal")
        heard = []
        for name in ["socket", "stdout"]:
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            listener.bind(str(journal / name))
            listener.setblocking(False)
            heard.append(listener)
        root.env["JOURNAL_STREAM"] = "8:1"  # inherited from a service, but another standard error
        script = ('mount -t tmpfs none /run && mkdir -p /run/systemd/journal && '
                  f'mount --bind {journal} /run/systemd/journal && exec "$@"')
        command = ["unshare", "-m", "sh", "-c", script, "sh", KEYHATCHD, "dev", "--dir", str(root.dir / "d")]
        dev = Dev(root, command)
        assert root.paste(dev.get) == DEMO
        dev.process.send_signal(signal.SIGHUP)
        probe = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        probe.sendto(b"the sockets work", str(journal / "socket"))
        assert heard[0].recv(100) == b"the sockets work"
        status = f"keyhatchd audit query --event policy.loaded --json --dir '{root.dir}/d/audit'"
        eventually(lambda: root.paste(status).count(b"\n") == 2)
        code, log = dev.end()
        assert code == 0 and "loaded anew" in log, "its own log is on standard error"
        for listener in heard:
            with pytest.raises(BlockingIOError):
                listener.recv(100)
            listener.close()
        probe.close()
