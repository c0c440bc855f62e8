"""What systemd does for a service, in a few lines: binds its sockets, hands them over, hears how it is.

See sd_listen_fds(3) and sd_notify(3). The sockets are bound once and outlive every daemon that is started on them.
"""

import fcntl
import os
import shutil
import socket
import subprocess
import time

from harness import KEYHATCHD, Agent, eventually

# The variables are for one pid, which is known only in the child; bash keeps it through `exec`, and moves descriptors.
HAND_OVER = 'export LISTEN_PID=${PID:-$$} LISTEN_FDS=$1; shift; eval "exec $1"; shift; unset PID; exec "$@"'


def listening(path, mode=0o666, kind=socket.SOCK_STREAM, listen=True):
    """A socket as a .socket unit makes it."""
    path.parent.mkdir(mode=0o755, exist_ok=True)
    made = socket.socket(socket.AF_UNIX, kind)
    made.bind(str(path))
    os.chmod(path, mode)
    if listen:
        made.listen(4096)
    return made


class Activated(Agent):
    """An agent whose sockets belong to the one who starts it."""

    def __init__(self, *args, sockets=("bots", "admin"), watchdog=None, start=True, **kwargs):
        super().__init__(*args, start=False, **kwargs)
        paths = {"bots": self.socket, "admin": self.admin_socket}
        self.sockets = [(name, listening(paths.get(name, self.dir / "run" / name))) for name in sockets]
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.bind(str(self.dir / "notify"))
        os.chmod(self.dir / "notify", 0o777)
        self.watchdog, self.told = watchdog, []
        if start:
            self.start()

    def start(self, ready=True, pid=None):
        handed = [(name, fcntl.fcntl(one.fileno(), fcntl.F_DUPFD, 100)) for name, one in self.sockets]
        fds = [fd for _, fd in handed]
        moves = " ".join(f"{3 + at}<&{fd}-" for at, fd in enumerate(fds))
        env = dict(self.env or os.environ, NOTIFY_SOCKET=str(self.dir / "notify"))
        env["LISTEN_FDNAMES"] = ":".join(name for name, _ in handed)
        if pid:
            env["PID"] = str(pid)
        if self.watchdog:
            env["WATCHDOG_USEC"] = str(int(self.watchdog * 1e6))
        user = {"user": self.user, "group": self.user, "extra_groups": []} if self.user else {}
        with open(self.log, "ab") as out:
            self.process = subprocess.Popen(
                ["/bin/bash", "-c", HAND_OVER, "bash", str(len(fds)), moves, KEYHATCHD, "run", "--config", str(self.config)],
                stdout=out, stderr=out, env=env, pass_fds=fds, **user, **self.popen,
            )
        for fd in fds:
            os.close(fd)
        if ready:
            self.await_told("READY=1")
        return self

    def __exit__(self, *args):
        super().__exit__(*args)
        for one in [*(one for _, one in self.sockets), self.notify]:
            one.close()
        shutil.rmtree(self.dir, ignore_errors=True)

    def hear(self):
        """What was told since the last time, line by line."""
        news = []
        while True:
            try:
                news += self.notify.recv(65536, socket.MSG_DONTWAIT).decode().splitlines()
            except BlockingIOError:
                self.told += news
                return news

    def await_told(self, line, seconds=20):
        """Waits until a line that begins so is told; returns all of that meanwhile."""
        news = []

        def heard():
            assert self.process.poll() is None, f"the daemon ended:\n{self.log.read_text()}"
            news.extend(self.hear())
            return any(one.startswith(line) for one in news)

        eventually(heard, seconds, pause=0.001)
        return news


class Supervisor:
    """Starts the daemon again as soon as it ends, as `Restart=always` does."""

    def __init__(self, agent):
        self.agent, self.took = agent, []

    def restart(self, signal):
        begin = time.monotonic()
        self.agent.process.send_signal(signal)
        code = self.agent.process.wait(timeout=20)
        ended = time.monotonic()
        self.agent.hear()
        self.agent.start()
        self.took.append((ended - begin, time.monotonic() - ended))
        return code
