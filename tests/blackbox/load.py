"""Bots under load, and an audit log read without the agent: for tests of what is recorded."""

import collections
import json
import mmap
import os
import signal
import socket
import subprocess
import time

from harness import ALICE

# Answers whose first byte came; of whole ones: those with a value, 503, 429, and any other.
FIRST, VALUES, REFUSED, LIMITED, OTHER = range(5)


class Bots:
    """Bots in processes of their own, each with its uid, that count in shared memory: it stands when an agent is killed
    under them, and they end when it says so. A kind of bot says how many it counts, and what `bot` does.
    """

    COUNTS = 0

    def __init__(self, agent, uids):
        self.socket, self.uids = str(agent.socket), list(uids)
        self.memory = mmap.mmap(-1, 8 * (self.COUNTS * len(self.uids) + 1))
        self.cells = memoryview(self.memory).cast("Q")
        self.pids = []

    def __enter__(self):
        for at, uid in enumerate(self.uids):
            pid = os.fork()
            if pid == 0:
                try:
                    os.setgroups([])
                    os.setresgid(uid, uid, uid)
                    os.setresuid(uid, uid, uid)
                    self.bot(uid, self.cells[self.COUNTS * at : self.COUNTS * (at + 1)])
                finally:
                    os._exit(0)
            self.pids.append(pid)
        return self

    def __exit__(self, *_):
        self.cells[-1] = 1
        end = time.monotonic() + 20
        for pid in self.pids:
            while os.waitpid(pid, os.WNOHANG) == (0, 0):
                if time.monotonic() > end:
                    os.kill(pid, signal.SIGKILL)
                time.sleep(0.005)

    def ends(self):
        return bool(self.cells[-1])

    def each(self, what):
        return [self.cells[self.COUNTS * at + what] for at in range(len(self.uids))]

    def count(self, what):
        return sum(self.each(what))


class Load(Bots):
    """Bots that ask the same over and over, each on one connection, in a process and so with a pid of its own.

    What they were answered is counted in shared memory: it stands when the agent is killed under them.
    """

    COUNTS = 5

    def __init__(self, agent, connections=8, uid=ALICE, path="/v1/secrets/app/key", most=None, reconnect=False):
        super().__init__(agent, [uid] * connections if isinstance(uid, int) else uid)
        self.path, self.most, self.reconnect = path, most, reconnect

    def wait(self):
        """Waits until every bot has asked `most` times."""
        for pid in self.pids:
            os.waitpid(pid, 0)
        self.pids, done = [], self.pids
        return done

    def bot(self, _, counts):
        while self.going(counts):
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.settimeout(20)
                connection.connect(self.socket)
                while self.going(counts):
                    self.ask(connection, counts)
            except OSError:
                if not self.reconnect:
                    return
                time.sleep(0.01)
            finally:
                connection.close()

    def going(self, counts):
        return not self.ends() and (self.most is None or counts[FIRST] < self.most)

    def ask(self, connection, counts):
        connection.sendall(f"GET {self.path} HTTP/1.1\r\nHost: keyhatch\r\n\r\n".encode())
        data = connection.recv(1)
        if not data:
            raise ConnectionError
        counts[FIRST] += 1
        length = None
        while length is None or len(data) < length:
            more = connection.recv(65536)
            if not more:
                raise ConnectionError
            data += more
            head, end, _ = data.partition(b"\r\n\r\n")
            if length is None and end:
                sizes = [line[15:] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
                length = len(head) + 4 + int(sizes[0])
        status = data[9:12]
        counts[{b"200": VALUES, b"503": REFUSED, b"429": LIMITED}.get(status, OTHER)] += 1
        if status == b"503":
            time.sleep(0.001)

    def by_pid(self, what, pids=None):
        return collections.Counter(dict(zip(pids or self.pids, self.each(what))))


def read_many(agent, number, uid=ALICE, **kwargs):
    """Reads the secret `number` times on one connection."""
    with Load(agent, 1, uid, most=number, **kwargs) as load:
        load.wait()
    assert load.count(FIRST) == number


def segments(directory):
    """The log's files in the order of their records, as docs/audit-format.md says."""
    names = sorted(n for n in os.listdir(directory) if n.startswith("audit-") and n.endswith((".jsonl", ".jsonl.zst")))
    return [os.path.join(directory, n) for n in names if not (n.endswith(".zst") and n[:-4] in names)]


def plain_bytes(path):
    """A segment's bytes, uncompressed, without the zeros that are reserved at its end."""
    if path.endswith(".zst"):
        return subprocess.run(["zstd", "-dcq", path], capture_output=True, check=True).stdout
    with open(path, "rb") as file:
        # A record that is being written shows its first byte last.
        return file.read().split(b"\0", 1)[0]


def raw_records(directory):
    """All records, read by nobody's code but this."""
    records = []
    for path in segments(directory):
        records += [json.loads(line) for line in plain_bytes(path).splitlines()]
    return records


def unplain(path, data):
    """Writes a segment's bytes back in the form that its name says."""
    with open(path, "wb") as file:
        if path.endswith(".zst"):
            data = subprocess.run(["zstd", "-cq"], input=data, capture_output=True, check=True).stdout
        file.write(data)


def reads(records, *decisions):
    """How many reads each pid has on record, of those decisions."""
    wanted = [r for r in records if r["event"] == "secret.read" and r["decision"] in decisions]
    return collections.Counter(r["peer"]["pid"] for r in wanted)


class Tmpfs:
    """A small file system over a folder, away again at the end."""

    def __init__(self, path, size):
        self.path, self.size = str(path), size

    def __enter__(self):
        os.makedirs(self.path, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={self.size},mode=750", "tmpfs", self.path], check=True)
        return self

    def __exit__(self, *_):
        subprocess.run(["umount", "-l", self.path], check=True)
