"""Real daemons, real users, real sockets: what every black-box test stands on.

A test makes an `Agent`: a temporary folder with a configuration, a store and a running keyhatchd. Bots are forked
children that really have another uid. Values are canaries, so that they can be searched for.
"""

import http.client
import json
import os
import pickle
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(os.environ.get("KEYHATCH_BIN", ROOT / "target" / "release"))
KEYHATCHD = str(BIN / "keyhatchd")
KEYHATCH = str(BIN / "keyhatch")

# Uids that no account has: real to the kernel, and nobody's home to spoil.
ALICE, BOB, CAROL = 20001, 20002, 20003
CANARY = "CANARY-7f3a9c51-value"

ROOT_AND_ALICE = """
[[bot]]
name = "root"
match = { uid = 0 }
roles = ["reader"]
[[bot]]
name = "alice"
match = { uid = 20001 }
roles = ["reader"]
[role.reader]
grants = [{ secrets = ["app/**"] }]
"""


def eventually(check, seconds=10.0, pause=0.02):
    """Waits until `check()` is truthy and returns that; its last answer, or error, is told on failure."""
    end = time.monotonic() + seconds
    while True:
        try:
            answer, error = check(), None
        except (AssertionError, OSError, http.client.HTTPException) as caught:
            answer, error = None, caught
        if answer:
            return answer
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds} s: {error or answer!r}")
        time.sleep(pause)


class Reply:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    def json(self):
        return json.loads(self.body)

    def __repr__(self):
        return f"<{self.status} {self.headers} {self.body!r}>"


class UnixHTTP(http.client.HTTPConnection):
    """HTTP over a Unix socket; keeps its connection."""

    def __init__(self, path, timeout=20):
        super().__init__("keyhatch", timeout=timeout)
        self.path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)

    def ask(self, method, path, headers=None, body=None):
        self.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        self.putheader("Host", "keyhatch")
        for name, value in (headers or {}).items():
            self.putheader(name, value)
        if body is not None:
            self.putheader("Content-Length", str(len(body)))
        self.endheaders(body)
        reply = self.getresponse()
        return Reply(reply.status, dict((k.lower(), v) for k, v in reply.getheaders()), reply.read())

    def get(self, path, **headers):
        return self.ask("GET", path, {name.replace("_", "-"): value for name, value in headers.items()})


def open_to_others(folder):
    """Lets other users into a folder of pytest's, which makes each for its own user alone."""
    for above in [folder, *folder.parents]:
        if above == Path(tempfile.gettempdir()):
            return
        above.chmod(0o755)


def as_user(uid, act, *args, gid=None, groups=(), timeout=60):
    """Runs `act(*args)` in a forked child that has really become `uid`; returns what it returned."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(read)
            if os.geteuid() == 0:
                os.setgroups(list(groups))
                os.setresgid(gid or uid, gid or uid, gid or uid)
                os.setresuid(uid, uid, uid)
            answer = (True, act(*args))
        except BaseException:
            answer = (False, traceback.format_exc())
        with os.fdopen(write, "wb") as out:
            pickle.dump(answer, out)
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        signal.signal(signal.SIGALRM, lambda *_: os.kill(pid, signal.SIGKILL))
        signal.alarm(timeout)
        data = pipe.read()
        signal.alarm(0)
    os.waitpid(pid, 0)
    assert data, "the child died or took too long"
    good, answer = pickle.loads(data)
    assert good, answer
    return answer


class Agent:
    """A keyhatchd of its own, with everything it needs in a temporary folder."""

    POLICY = """
[[bot]]
name = "alice"
match = { uid = 20001 }
roles = ["reader"]

[role.reader]
grants = [{ secrets = ["app/**"] }]
"""

    # With it the daemon sees which programs its peers run: that, and Landlock, exclude each other.
    SEES_PROGRAMS = """
[[bot]]
name = "by-program"
match = { uid = 20009, exe = "/usr/bin/sleep" }
roles = ["reader"]
"""

    def __init__(
        self, policy=POLICY, audit="journald = false", agent="", secrets=None, user=0, start=True, env=None,
        popen=None, sources="",
    ):
        self.dir = Path(tempfile.mkdtemp(prefix="keyhatch-test-", dir="/tmp"))
        os.chmod(self.dir, 0o711)
        self.user, self.env, self.process = user, env, None
        self.popen = popen or {}
        self.socket = self.dir / "run" / "keyhatch.sock"
        self.admin_socket = self.dir / "run" / "admin.sock"
        self.config = self.dir / "keyhatch.toml"
        self.store_dir, self.key = self.dir / "store", self.dir / "store.key"
        self.state, self.audit_dir = self.dir / "state", self.dir / "audit"
        self.log = self.dir / "log"
        self.head = f"""
[agent]
socket = "{self.socket}"
admin_socket = "{self.admin_socket}"
state_dir = "{self.state}"
{agent}
[[source]]
name = "local"
kind = "file"
path = "{self.store_dir}"
key = "file:{self.key}"
{sources.format(dir=self.dir)}
[audit]
dir = "{self.audit_dir}"
{audit}
"""
        (self.dir / "run").mkdir(mode=0o755)
        self.write_policy(policy)
        self.verb("store", "init", *self.files())
        for name, value in (secrets or {"app/key": CANARY}).items():
            self.put_file(name, value)
        if user:
            for path in [self.dir, *self.dir.rglob("*")]:
                os.chown(path, user, user)
        if start:
            self.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()
        shutil.rmtree(self.dir, ignore_errors=True)

    def files(self):
        return ["--store", str(self.store_dir), "--key", f"file:{self.key}"]

    def write_policy(self, policy):
        self.config.write_text(self.head + policy)
        os.chmod(self.config, 0o644)

    def start(self, ready=True):
        out = open(self.log, "ab")
        user = {"user": self.user, "group": self.user, "extra_groups": []} if self.user else {}
        self.process = subprocess.Popen(
            [KEYHATCHD, "run", "--config", str(self.config)],
            stdout=out, stderr=out, env=self.env, **user, **self.popen,
        )
        if ready:
            eventually(self.answers)
        return self

    def answers(self):
        assert self.process.poll() is None, f"the daemon ended:\n{self.log.read_text()}"
        return UnixHTTP(self.socket).get("/v1/health")

    @property
    def pid(self):
        return self.process.pid

    def stop(self, sig=signal.SIGTERM):
        """Ends the daemon; returns its exit code."""
        if self.process is None:
            return None
        self.process.send_signal(sig)
        code = self.process.wait(timeout=20)
        self.process = None
        return code

    def restart(self):
        self.stop()
        return self.start()

    # What bots do.

    def connect(self):
        return UnixHTTP(self.socket)

    def get(self, path, uid=None, method="GET", body=None, **headers):
        """One request on a new connection, by `uid` (this process itself where none is given)."""
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        ask = lambda: UnixHTTP(self.socket).ask(method, path, headers, body)
        return ask() if uid is None else as_user(uid, ask)

    def read(self, name, uid=None, **headers):
        return self.get(f"/v1/secrets/{name}", uid, **headers)

    # What operators do.

    def verb(self, *args, stdin=b"", check=True, **kwargs):
        """A keyhatchd verb as it is typed; its output as text."""
        done = subprocess.run([KEYHATCHD, *map(str, args)], input=stdin, capture_output=True, timeout=120, **kwargs)
        done.stdout, done.stderr = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        assert not check or done.returncode == 0, f"{args}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def ops(self, *args, **kwargs):
        """A verb that asks this running daemon."""
        return self.verb(*args, "--admin-socket", self.admin_socket, **kwargs)

    def put(self, name, value, **kwargs):
        """Sets a secret through the daemon."""
        return self.ops("store", "put", name, stdin=as_bytes(value), **kwargs)

    def put_file(self, name, value, **kwargs):
        """Sets a secret in the files, as if the daemon did not run."""
        return self.verb("store", "put", name, *self.files(), stdin=as_bytes(value), **kwargs)

    def status(self):
        return json.loads(self.ops("status", "--json").stdout)

    def records(self, **want):
        """All audit records in order, or those whose members are as wanted."""
        done = self.verb("audit", "query", "--dir", self.audit_dir, "--json")
        records = [json.loads(line) for line in done.stdout.splitlines()]
        return [r for r in records if all(r.get(key) == value for key, value in want.items())]

    def verify(self, *args, check=True):
        return self.verb("audit", "verify", "--dir", self.audit_dir, *args, check=check)

    def everything_written(self):
        """The bytes of every file the agent may write, the log of this daemon included."""
        for path in self.dir.rglob("*"):
            if path.is_file():
                yield path, path.read_bytes()


def as_bytes(value):
    return value.encode() if isinstance(value, str) else value
