"""Bots as processes of their own, driven step by step, and the namespaces and cgroups they live in.

A `Bot` is a program at a path of the test's choice (a copy of Python) with a uid of its own. The test tells it what to
do next over a channel; a connection of its can be handed to the test, which then asks on it in the bot's name.
"""

import contextlib
import ctypes
import http.client
import json
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import traceback
from pathlib import Path

CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWPID = 0x20000, 0x10000000, 0x20000000
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000
LIBC = ctypes.CDLL(None, use_errno=True)


class Reply:
    """An answer as it came."""

    def __init__(self, response):
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self.body = response.read()

    def json(self):
        return json.loads(self.body)

    def __repr__(self):
        return f"<{self.status} {self.headers} {self.body!r}>"


def ask(sock, path, method="GET", headers=(), body=b""):
    """One request on a connection that is open already."""
    send(sock, path, method, headers, body)
    return answer(sock)


def send(sock, path, method="GET", headers=(), body=b""):
    lines = [f"{method} {path} HTTP/1.1", "Host: keyhatch", *(f"{k}: {v}" for k, v in dict(headers).items())]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    sock.sendall("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)


def answer(sock):
    response = http.client.HTTPResponse(sock)
    response.begin()
    return Reply(response)


def answers(sock, count):
    """Several answers, which may have come together."""
    stream = Stream(sock.makefile("rb"))
    return [answer(stream) for _ in range(count)]


class Stream:
    """A file that stays open, and stands for a socket, between two answers."""

    def __init__(self, file):
        self.file = file

    def makefile(self, _mode):
        return self

    def __getattr__(self, name):
        return getattr(self.file, name)

    def close(self):
        pass


def open_watch(sock, *names, headers=()):
    """Begins a watch; yields its events as (kind, data) until it ends."""
    send(sock, "/v1/watch?" + "&".join(f"name={name}" for name in names), headers=headers)
    response = http.client.HTTPResponse(sock)
    response.begin()
    assert response.status == 200, Reply(response)

    return events_of(response)


def events_of(response):
    kind = None
    for line in response:
        key, _, value = line.decode().rstrip("\n").partition(": ")
        if key == "event":
            kind = value
        elif key == "data":
            yield kind, json.loads(value)


def dial(path, timeout=20, address=None):
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(timeout)
    if address is not None:
        sock.bind(address.encode())
    sock.connect(str(path))
    return sock


class Bot:
    """A running bot. `before` runs in it as root, before its program starts."""

    def __init__(self, agent, uid, exe=None, groups=(), before=None):
        script = agent.dir / "bots.py"
        if not script.exists():
            shutil.copy(__file__, script)
        self.agent = agent
        self.channel, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channel.settimeout(30)
        exe = str(exe or Path(sys.executable).resolve())
        arguments = [far.fileno(), uid, ",".join(map(str, groups))]
        # A program that was copied elsewhere does not find its library by itself.
        env = os.environ | {"PYTHONHOME": sys.base_prefix}
        self.process = subprocess.Popen(
            [exe, "-S", str(script), *map(str, arguments)], pass_fds=[far.fileno()], preexec_fn=before, env=env
        )
        far.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        # A child that it left behind ends with the channel.
        self.channel.close()

    @property
    def pid(self):
        return self.process.pid

    def do(self, what, *args):
        """Has it run one of the functions below; returns what that returned."""
        self.channel.send(json.dumps([what, *args]).encode())
        data, self.fds, _, _ = socket.recv_fds(self.channel, 1 << 16, 4)
        assert data, "the bot has died"
        good, result = json.loads(data)
        assert good, result
        return result

    def connect(self):
        """Connects, and returns that connection: the bot's, in this process's hands."""
        self.do("connect", str(self.agent.socket))
        sock = socket.socket(fileno=self.fds[0])
        sock.settimeout(20)
        return sock

    def exec(self, program):
        """Has it become another program."""
        self.channel.send(json.dumps(["exec", str(program)]).encode())
        assert self.channel.recv(1) == b"", "exec failed"

    def exit(self):
        self.channel.send(json.dumps(["exit"]).encode())
        self.process.wait(timeout=20)


# What a bot does.

def connect(path, address=None):
    """Connects as whoever this process is now. The descriptor goes to the test along with the answer."""
    sock = dial(path, address=address)
    KEPT.append(sock)
    return {"fd": sock.fileno()}


def listen(path):
    """Listens as an agent would."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    os.chmod(path, 0o666)
    listener.listen()
    listener.settimeout(10)
    KEPT.append(listener)


def hear():
    """What the next one to connect says, to the end."""
    peer, _ = KEPT[-1].accept()
    peer.settimeout(10)
    return peer.makefile("rb").read().decode()


def unshare_user():
    check(LIBC.unshare(CLONE_NEWUSER))


def become(uid):
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def leave_to_a_child():
    """The child goes on in this process's place, which exits."""
    if os.fork():
        os._exit(0)


def exec(program):
    os.execv(program, [program, "1000"])


def exit():
    os._exit(0)


KEPT = []


def main(channel, uid, groups):
    os.setgroups([int(group) for group in groups.split(",") if group])
    become(int(uid))
    channel = socket.socket(fileno=int(channel))
    channel.set_inheritable(False)
    while data := channel.recv(1 << 16):
        what, *args = json.loads(data)
        try:
            result = (True, globals()[what](*args))
        except Exception:
            result = (False, traceback.format_exc())
        fds = [result[1]["fd"]] if what == "connect" and result[0] else []
        socket.send_fds(channel, [json.dumps(result).encode()], fds)


# Namespaces and cgroups.

def check(done):
    if done != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def bind_over(*pairs):
    """Shows, in a mount namespace of this process's own, another file at a path: for `before`."""

    def enter():
        check(LIBC.unshare(CLONE_NEWNS))
        check(LIBC.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None))
        for shown, at in pairs:
            check(LIBC.mount(os.fsencode(shown), os.fsencode(at), None, MS_BIND, None))

    return enter


def own_pid_namespace():
    """Makes the program process 1 of a pid namespace of its own, which ends with it: for a `preexec_fn`."""
    check(LIBC.unshare(CLONE_NEWPID | CLONE_NEWNS))
    first = os.fork()
    if first:
        os.closerange(3, 4096)
        signal.signal(signal.SIGTERM, lambda *_: os.kill(first, signal.SIGTERM))
        os._exit(os.waitstatus_to_exitcode(os.waitpid(first, 0)[1]) & 0xFF)
    check(LIBC.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None))
    check(LIBC.mount(b"proc", b"/proc", b"proc", 0, None))


def in_pid_namespace(act):
    """Runs `act()` as process 1 of a small pid namespace, with its own /proc; returns what it returned."""
    read, write = os.pipe()
    outer = os.fork()
    if outer == 0:
        os.close(read)
        check(LIBC.unshare(CLONE_NEWPID | CLONE_NEWNS))
        first = os.fork()
        if first:
            os.waitpid(first, 0)
            os._exit(0)
        try:
            check(LIBC.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None))
            check(LIBC.mount(b"proc", b"/proc", b"proc", 0, None))
            result = (True, act())
        except BaseException:
            result = (False, traceback.format_exc())
        with os.fdopen(write, "wb") as out:
            pickle.dump(result, out)
        os._exit(0)
    os.close(write)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(outer, signal.SIGKILL))
    signal.alarm(60)
    with os.fdopen(read, "rb") as pipe:
        data = pipe.read()
    signal.alarm(0)
    os.waitpid(outer, 0)
    assert data, "the namespace died or took too long"
    good, result = pickle.loads(data)
    assert good, result
    return result


@contextlib.contextmanager
def cgroups(*paths):
    """Makes cgroups in the unified hierarchy; yields a function that moves a process into one."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    root = Path(next(words[1] for words in mounts if words[2] == "cgroup2"))
    made = []

    def move(pid, path):
        (root / path.lstrip("/") / "cgroup.procs").write_text(str(pid))

    try:
        for path in paths:
            folder = root
            for part in path.strip("/").split("/"):
                folder /= part
                if not folder.exists():
                    folder.mkdir()
                    made.append(folder)
        yield move
    finally:
        for folder in reversed(made):
            # What a container made below goes, too.
            for below in sorted(folder.rglob("*/"), reverse=True):
                below.rmdir()
            for pid in (folder / "cgroup.procs").read_text().split():
                with contextlib.suppress(OSError):
                    move(pid, "/")
            folder.rmdir()


if __name__ == "__main__":
    main(*sys.argv[1:])
