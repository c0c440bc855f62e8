"""Where values are while the daemon runs: in memory that root cannot read, and nowhere else.

The reader is root with /proc/PID/mem, pidfd_getfd, gdb and a core dump. A privileged tracer that runs code inside
the agent is outside the promise.
"""

import base64
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest

from harness import ALICE, BOB, Agent, UnixHTTP, as_user, eventually
from inside import LIBC, Scan, disguises, dumps_allowed, secret_descriptors, without_memfd_secret

# What is searched for begins each value, so that any piece of one counts.
OLD, NEW = "CANARY-old-5b8e21f7", "CANARY-new-c04d93aa"
FIELDS = "CANARY-field-71e6d2"
PASSED_BY = "CANARY-rotated-e8f1"
# Not a secret: the name of a bot, which the running policy holds in plain heap.
MARKER = "bot-marker-2f6b90"
READS = 5_000

POLICY = f"""
[[bot]]
name = "{MARKER}"
match = {{ uid = 0 }}
roles = ["reader"]
[[bot]]
name = "alice"
match = {{ uid = {ALICE} }}
roles = ["reader"]
[role.reader]
grants = [{{ secrets = ["app/**"] }}]
"""
LARGE = 65_536


def needles(agent, *texts):
    wanted = {"marker": MARKER.encode(), "key": agent.key.read_bytes()}
    for text in texts:
        wanted.update(disguises(text))
    return wanted


def assert_clean(agent, *texts, **more):
    """Nothing is found, by a search that read the daemon's whole memory and finds what is no secret."""
    scan = Scan(agent.pid, needles(agent, *texts) | more)
    rss = int(open(f"/proc/{agent.pid}/statm").read().split()[1]) * 4096
    assert scan.read > max(rss, 8 << 20), "the search read too little to prove anything"
    assert scan.secret_refused > 0, "no secret memory was there to be refused"
    assert scan.counts.pop("marker") > 0, "the search does not even find what is no secret"
    assert set(scan.counts.values()) == {0}, (scan.counts, scan.where)
    print(f"{scan.read} bytes read, {scan.secret_refused} refused")
    return scan


def pump(path, request, count, expect, at_once=50):
    """Asks the same `count` times on one connection, pipelined; each answer must hold `expect`."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(str(path))
        received, sent = b"", 0
        while sent < count:
            batch = min(at_once, count - sent)
            sock.sendall(request * batch)
            sent += batch
            answers = 0
            while answers < batch:
                received += sock.recv(1 << 18)
                *whole, received = split_answers(received)
                answers += len(whole)
                for answer in whole:
                    assert expect in answer, answer
    return sent


def split_answers(data):
    """Whole answers, then what is left; every answer here has a length or, as a 304, no body."""
    answers = []
    while b"\r\n\r\n" in data:
        head, rest = data.split(b"\r\n\r\n", 1)
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        size = int(fields.get(b"content-length", 0))
        if len(rest) < size:
            break
        answers.append(head + b"\r\n\r\n" + rest[:size])
        data = rest[size:]
    return [*answers, data]


def request(path, method="GET", body=b"", **headers):
    lines = [f"{method} {path} HTTP/1.1", "Host: keyhatch"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Waiters:
    """Connections that wait for the next version of app/live: long polls and watches."""

    def __init__(self, agent, count):
        self.agent = agent
        self.polls = [self.connect() for _ in range(count)]
        self.watches = [self.connect() for _ in range(count)]
        self.version = self.current()
        for sock in self.watches:
            sock.sendall(request("/v1/watch?name=app/live"))
        self.read_until(self.watches, b"event: current")

    def connect(self):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(20)
        sock.connect(str(self.agent.socket))
        return sock

    def current(self):
        return self.agent.read("app/live").json()["version"]

    def round(self, value):
        """One rotation, which every poll answers with the value and every watch tells."""
        poll = request("/v1/secrets/app/live", If_None_Match=f'"{self.version}"', Prefer="wait=60")
        for sock in self.polls:
            sock.sendall(poll)
        self.agent.put("app/live", value)
        self.read_until(self.polls, value.encode())
        self.read_until(self.watches, b"event: rotated")
        self.version = self.current()

    @staticmethod
    def read_until(socks, wanted):
        for sock in socks:
            data = b""
            while wanted not in data:
                piece = sock.recv(1 << 16)
                assert piece, f"closed after {data!r}"
                data += piece
            # The rest of the same answer: polls have a length, events end with an empty line.
            while not data.endswith((b"}", b"\n\n", b"\n\n\r\n")):
                data += sock.recv(1 << 16)

    def close(self):
        for sock in self.polls + self.watches:
            sock.close()


def test_after_5000_reads_of_each_kind_and_a_rotation_no_copy_is_in_readable_memory():
    secrets = {
        "app/key": OLD + "-value",
        "app/escaped": OLD + '-"quoted"\n',
        "app/bytes": OLD.encode() + bytes(range(256)),
        "app/object": f'{{"password": "{FIELDS}-value", "user": "u"}}',
        "app/live": OLD + "-live",
    }
    with Agent(policy=POLICY, secrets=secrets) as agent:
        agent.put("app/prev", OLD + "-first")
        agent.put("app/prev", OLD + "-second")
        version = agent.read("app/key").json()["version"]
        names = '{"names": ["app/key", "app/escaped", "app/bytes", "app/object"]}'.encode()
        kinds = [
            (request("/v1/secrets/app/key"), OLD.encode()),
            (request("/v1/secrets/app/escaped"), OLD.encode()),
            (request("/v1/secrets/app/bytes"), b"value_base64"),
            (request("/v1/secrets/app/key", Accept="application/octet-stream"), OLD.encode()),
            (request("/v1/secrets/app/bytes", Accept="application/octet-stream"), OLD.encode()),
            (request("/v1/secrets/app/object?field=password"), FIELDS.encode()),
            (request("/v1/secrets/app/object?field=password", Accept="application/octet-stream"), FIELDS.encode()),
            (request("/v1/secrets/app/prev?version=previous"), OLD.encode()),
            (request("/v1/secrets?prefix=app/"), b"app/key"),
            (request("/v1/secrets/app/key", If_None_Match=f'"{version}"'), b"304"),
            (request("/v1/batch", "POST", names), FIELDS.encode()),
        ]
        for ask, expect in kinds:
            # A batch has no length: its answers come one at a time, chunked.
            if b"batch" not in ask:
                assert pump(agent.socket, ask, READS, expect) == READS
        bot = agent.connect()
        for _ in range(READS):
            assert FIELDS.encode() in bot.ask("POST", "/v1/batch", body=names).body
        waiters = Waiters(agent, READS // 10)
        for turn in range(10):
            waiters.round(f"{PASSED_BY}-{turn}")
        assert_clean(agent, OLD, FIELDS, PASSED_BY)

        for name in secrets:
            agent.put(name, NEW + "-value")
        assert pump(agent.socket, request("/v1/secrets/app/key"), READS, NEW.encode()) == READS
        assert_clean(agent, OLD, NEW, FIELDS, PASSED_BY)
        waiters.close()
        assert_clean(agent, OLD, NEW, FIELDS, PASSED_BY)


def test_what_decrypts_the_store_is_not_in_readable_memory_either(agent):
    pytest.importorskip("cryptography", reason="not shown for the data key: that takes the package `cryptography`")
    agent.write_policy(POLICY)
    agent.ops("reload")
    agent.put("app/other", "x")
    keys = derived_keys((agent.store_dir / "store.khs").read_bytes(), agent.key.read_bytes())
    assert_clean(agent, **keys)
    agent.ops("store", "rekey")
    agent.ops("store", "verify")
    keys |= {f"{name} after": key for name, key in derived_keys(
        (agent.store_dir / "store.khs").read_bytes(), agent.key.read_bytes()
    ).items()}
    assert len(set(keys.values())) == 6
    assert_clean(agent, **keys)


def derived_keys(store, key):
    """The slot key, data key and write key of a store with one slot, as docs/store-format.md derives them."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    derive = lambda secret, salt, info: HKDF(hashes.SHA256(), 32, salt, b"keyhatch store 1 " + info).derive(secret)
    store_id, write_salt, slot = store[18:34], store[42:74], store[75:]
    label = slot[1 : 1 + slot[0]]
    slot_salt, wrapped = slot[1 + slot[0] + 8 :][:32], slot[1 + slot[0] + 40 :][:48]
    slot_key = derive(key, slot_salt, b"key slot")
    data_key = AESGCM(slot_key).decrypt(bytes(12), wrapped, b"keyhatch store 1 key slot" + store_id + label)
    return {"slot": slot_key, "data": data_key, "write": derive(data_key, write_salt, b"write key" + store_id)}


def test_the_search_finds_what_an_ordinary_program_keeps():
    """What the other tests rest on: the same search, on a program that takes no care."""
    held = OLD + "-held"
    program = f"""
import base64, ctypes, sys
value = {held!r}.encode()
copies = [bytearray(b"x" * n + value) for n in range(3)]
forms = [base64.b64encode(copy) for copy in copies] + [value.hex().encode(), value.hex().upper().encode()]
fd = ctypes.CDLL(None).syscall(447, 0)
print(fd, flush=True)
sys.stdin.read()
"""
    child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert int(child.stdout.readline()) > 0
        scan = Scan(child.pid, disguises(OLD))
        assert all(count > 0 for count in scan.counts.values()), scan.counts
        seen, secret = secret_descriptors(child.pid)
        assert len(secret) == 1 and seen >= 4
    finally:
        child.communicate(b"")


def test_the_secretmem_descriptor_is_gone_and_pidfd_getfd_finds_none(agent):
    idle = agent.connect()
    idle.get("/v1/health")
    agent.put("app/key", NEW)
    assert "secretmem" in open(f"/proc/{agent.pid}/maps").read()
    seen, secret = secret_descriptors(agent.pid)
    idle.close()
    assert seen > 10
    assert secret == []


def test_no_core_can_be_made_and_nobody_of_the_same_user_can_trace_it():
    with Agent(user=ALICE, popen={"preexec_fn": dumps_allowed}) as agent:
        limits = open(f"/proc/{agent.pid}/limits").read()
        core = next(line for line in limits.splitlines() if line.startswith("Max core file size"))
        assert core.split()[4:6] == ["0", "0"]
        # The kernel gives /proc/PID of what is not dumpable to root.
        assert os.stat(f"/proc/{agent.pid}/mem").st_uid == 0
        assert os.stat(f"/proc/{agent.pid}/status").st_uid == 0
        assert as_user(ALICE, pried_open, agent.pid) == []
        # The same user's ordinary program is open to it.
        control = subprocess.Popen(["sleep", "60"], user=ALICE, group=ALICE, extra_groups=[])
        try:
            assert as_user(ALICE, pried_open, control.pid) == ["mem", "environ", "maps", "exe", "ptrace"]
        finally:
            control.kill()
            control.wait()


def pried_open(pid):
    """What of another process this one can get at."""
    opened = []
    for name, look in [("mem", open), ("environ", open), ("maps", open), ("exe", os.readlink)]:
        try:
            look(f"/proc/{pid}/{name}")
            opened.append(name)
        except PermissionError:
            pass
    if LIBC.ptrace(0x4206, pid, 0, 0) == 0:  # PTRACE_SEIZE
        opened.append("ptrace")
    return opened


@pytest.mark.parametrize("deadly", [signal.SIGSEGV, signal.SIGABRT])
def test_a_crash_leaves_no_core_file(deadly, tmp_path):
    if open("/proc/sys/kernel/core_pattern").read().strip() != "core":
        pytest.skip("core files go elsewhere on this host: not shown that a crash leaves none")
    popen = {"preexec_fn": dumps_allowed, "cwd": tmp_path}
    control = subprocess.Popen(["sleep", "60"], **popen)
    control.send_signal(deadly)
    control.wait()
    assert [path.unlink() for path in tmp_path.iterdir()] == [None], "cores are not made here at all"
    with Agent(popen=popen) as agent:
        # Rust's own handler of SIGSEGV takes the first one for a check of its stack.
        eventually(lambda: agent.process.poll() is not None or agent.process.send_signal(deadly))
        assert agent.stop(deadly) == -deadly
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not shutil.which("gcore"), reason="gdb is not installed: not shown that gcore gets nothing")
def test_gcore_gets_none_of_the_values(tmp_path):
    # An ordinary user's arena is small: gdb tries to read all of it.
    with Agent(policy=POLICY, secrets={"app/key": OLD}, user=ALICE) as agent:
        assert agent.read("app/key").status == 200
        subprocess.run(["gcore", "-a", "-o", tmp_path / "core", str(agent.pid)], capture_output=True, timeout=60)
        cores = b"".join(path.read_bytes() for path in tmp_path.iterdir())
        assert agent.read("app/key").status == 200, "it serves on"
        wanted = needles(agent, OLD)
    assert len(cores) > 1 << 20 and cores.count(wanted.pop("marker")) > 0
    assert {name: cores.count(needle) for name, needle in wanted.items()} == dict.fromkeys(wanted, 0)


def stalled_reader(agent, name, answers=12):
    """A bot that asks for a large value again and again and never reads."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(20)
    sock.connect(str(agent.socket))
    sock.sendall(request(f"/v1/secrets/{name}") * answers)
    return sock


def used(agent):
    return agent.status()["secret_memory"]["used"]


def read_to_end(sock):
    data = b""
    try:
        while piece := sock.recv(1 << 18):
            data += piece
    except ConnectionResetError:
        pass
    return data


def test_a_client_that_never_reads_holds_one_old_value_and_no_longer_than_its_lease():
    with Agent(policy=POLICY, secrets={"app/large": OLD + "x" * (LARGE - len(OLD))}) as agent:
        one = used(agent)
        sock = stalled_reader(agent, "app/large")
        eventually(lambda: agent.records(event="secret.read"))
        agent.put("app/large", b"y")
        agent.put("app/large", b"z")
        # The old value left the store, previous included; only the lease still holds it.
        assert eventually(lambda: used(agent)) > LARGE
        assert used(agent) < one + 4096
        assert_clean(agent, OLD)
        sock.close()
        eventually(lambda: used(agent) < 4096)


def test_seal_wipes_everything_closes_what_holds_a_value_and_unseal_serves_again():
    with Agent(policy=POLICY, secrets={"app/key": OLD, "app/large": OLD + "x" * (LARGE - len(OLD))}) as agent:
        before = used(agent)
        holding, waiting, idle = stalled_reader(agent, "app/large"), agent.connect(), agent.connect()
        version = idle.get("/v1/secrets/app/key").json()["version"]
        waiting.putrequest("GET", "/v1/secrets/app/key", skip_host=True)
        for name, value in [("Host", "x"), ("If-None-Match", f'"{version}"'), ("Prefer", "wait=60")]:
            waiting.putheader(name, value)
        waiting.endheaders()
        eventually(lambda: len(agent.records(event="secret.read")) >= 3)

        assert agent.ops("seal").stdout == "sealed; 0 bytes of secret memory are still in use\n"
        assert used(agent) == 0 and agent.status()["sealed"]
        got = read_to_end(holding)
        assert got.count(b"HTTP/1.1 200") < 12 and not got.endswith(b"}"), "the answer under way was not cut off"
        woken = waiting.getresponse()
        assert (woken.status, b'"sealed"' in woken.read()) == (503, True)
        for reply in [idle.get("/v1/secrets/app/key"), agent.read("app/key"), agent.read("app/key", ALICE)]:
            assert (reply.status, reply.json()["code"]) == (503, "sealed")
        assert agent.read("app/key", BOB).json()["code"] == "denied"
        health = agent.get("/v1/health")
        assert (health.status, health.json()["reasons"]) == (503, ["sealed"])
        assert_clean(agent, OLD)
        # Nothing gets in by another door: not by a rotation, not by a write of the files.
        assert agent.put("app/key", NEW, check=False).returncode == 75
        agent.put_file("app/key", NEW)
        agent.ops("reload")
        assert agent.read("app/key").json()["code"] == "sealed" and used(agent) == 0

        assert agent.ops("unseal").stdout == "unsealed\n"
        assert agent.read("app/key").json()["value"] == NEW
        assert agent.read("app/key?version=previous").json()["value"] == OLD
        assert idle.get("/v1/secrets/app/large").json()["value"].startswith(OLD)
        assert used(agent) > before
        order = [r["event"] for r in agent.records() if "sealed" in r["event"]]
        assert order == ["admin.sealed", "agent.sealed", "admin.unsealed", "agent.unsealed"]
        assert agent.records(event="admin.sealed")[0]["peer"]["uid"] == 0


def test_without_memfd_secret_it_says_so_loudly_and_still_serves():
    with Agent(policy=POLICY, secrets={"app/key": OLD}, popen={"preexec_fn": without_memfd_secret}) as agent:
        assert agent.read("app/key").json()["value"] == OLD
        health = agent.get("/v1/health")
        assert health.status == 200
        assert "memfd_secret" in health.json()["missing"][0]
        assert "memfd_secret" in agent.status()["missing"][0]
        assert any("WARN" in line and "memfd_secret" in line for line in agent.log.read_text().splitlines())
        assert "memfd_secret" in agent.records(event="agent.started")[0]["missing"][0]
        maps = open(f"/proc/{agent.pid}/smaps").read()
        assert "secretmem" not in maps
        # Locked, and left out of core dumps and children.
        arena = next(flags for flags in maps.split("VmFlags:")[1:] if " lo " in flags).splitlines()[0]
        assert " dd " in arena and " dc " in arena
        # Locking is no reason to take the whole arena's memory from the host.
        assert int(open(f"/proc/{agent.pid}/statm").read().split()[1]) * 4096 < 64 << 20


def test_without_memfd_secret_old_values_are_wiped_all_the_same():
    popen = {"preexec_fn": without_memfd_secret}
    with Agent(policy=POLICY, secrets={"app/key": OLD}, popen=popen, user=ALICE) as agent:
        # Here root can read the value, and the same search says so.
        assert Scan(agent.pid, {"old": OLD.encode()}).counts["old"] > 0
        agent.put("app/key", NEW)
        agent.put("app/key", NEW + "2")
        assert Scan(agent.pid, {"old": OLD.encode()}).counts["old"] == 0


def test_with_memfd_secret_nothing_is_missing(agent):
    assert agent.get("/v1/health").json().get("missing", []) == []
    assert "memfd_secret" not in agent.log.read_text()


def test_no_value_or_key_is_written_anywhere_also_after_errors_of_all_kinds():
    secrets = {"app/key": OLD, "app/object": f'{{"password": "{FIELDS}"}}', "app/bytes": OLD.encode() + b"\xff"}
    with socket.create_server(("127.0.0.1", 0)) as free:
        metrics = f"127.0.0.1:{free.getsockname()[1]}"
    with Agent(policy=POLICY, secrets=secrets, agent=f'metrics = "{metrics}"') as agent:
        said = []
        # A request may be refused, and its connection closed, before all of it is sent.
        early = contextlib.suppress(BrokenPipeError, ConnectionResetError)

        def ask(*args, **more):
            with early:
                said.append(repr(agent.get(*args, **more)))

        # Good reads first, so that there is something to leak.
        for name in secrets:
            assert agent.read(name).status == 200
        version = agent.read("app/key").json()["version"]
        # Bots: refused, absent, malformed, too large, with a value where none belongs.
        for uid in [BOB, ALICE]:
            ask("/v1/secrets/other/x", uid)
        for path in ["app/none", "app/key?field=password", "app/object?field=none", "app/key?version=none", "..",
                     "app/key?colour=red", "%ff"]:
            ask(f"/v1/secrets/{path}")
        ask("/v1/secrets/app/key", If_None_Match=f'"{version}"')
        for body in [b'{"names": ["app/none", "other/x", ""]}', NEW.encode(), f'{{"names": "{NEW}"}}'.encode()]:
            ask("/v1/batch", method="POST", body=body)
        ask("/v1/secrets/app/key", method="PUT", body=NEW.encode())
        batch = b"POST /v1/batch HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s"
        for junk in [NEW.encode() + b"\r\n\r\n", batch % (99, NEW.encode()), batch % (76_000, NEW.encode() * 4_000)]:
            with socket.socket(socket.AF_UNIX) as sock, early:
                sock.connect(str(agent.socket))
                sock.sendall(junk)
                sock.shutdown(socket.SHUT_WR)
                said.append(repr(read_to_end(sock)))
        # Operators: values too large, in broken imports, with verbs that do not exist; keys that are none.
        key = agent.key.read_bytes()
        def ops(verb, body):
            with early:
                said.append(repr(UnixHTTP(agent.admin_socket).ask("POST", f"/v1/store/{verb}", body=body)))

        ops("put?name=app/key", NEW.encode() * 5_000)
        ops("put?name=", NEW.encode())
        ops("nothing", NEW.encode())
        ops("import", NEW.encode())
        ops("import", json.dumps({"values": [{"name": "a", "value_base64": NEW}]}).encode())
        ops("key-add?label=again", key)
        ops("key-add?label=short", key[:31])
        ops("rekey", key + b"x")
        for args, value in [(["put", "app/key"], NEW * 5_000), (["import", "--from", "dotenv"], f"A='{NEW}"),
                            (["import", "--from", "json"], f'{{"A": {NEW}}}'), (["key", "add", "x", f"file:{agent.log}"], "")]:
            done = agent.ops("store", *args, stdin=value.encode(), check=False)
            assert done.returncode == 1
            said += [done.stdout, done.stderr]
        # The source: a damaged store, a loose key, a wrong key; a policy that does not parse; a seal.
        store = agent.store_dir / "store.khs"
        good = store.read_bytes()
        for spoil in [lambda: store.write_bytes(good[:-1]), lambda: os.chmod(agent.key, 0o644),
                      lambda: agent.key.write_bytes(bytes(32)), lambda: agent.key.write_bytes(key[:31])]:
            spoil()
            said.append(agent.ops("store", "verify", check=False).stderr)
            agent.key.write_bytes(key)
            os.chmod(agent.key, 0o600)
            store.write_bytes(good)
        agent.write_policy("[[bot]]\nname = 1\n")
        said.append(agent.ops("reload", check=False).stderr)
        agent.write_policy(POLICY)
        agent.ops("reload")
        agent.ops("seal")
        ask("/v1/secrets/app/key")
        agent.ops("unseal")
        agent.put("app/key", NEW)
        assert agent.read("app/key").json()["value"] == NEW

        said += [agent.ops("status").stdout, json.dumps(agent.status()), agent.get("/v1/whoami").body.decode()]
        said.append(UnixHTTP(agent.admin_socket).get("/v1/metrics").body.decode())
        said.append(urllib.request.urlopen(f"http://{metrics}/metrics").read().decode())
        said += [open(f"/proc/{agent.pid}/{name}").read() for name in ["environ", "cmdline", "comm", "status"]]
        agent.restart()
        agent.stop()
        texts = {f"answer {n}": text.encode() for n, text in enumerate(said)}
        texts |= {str(path): data for path, data in agent.everything_written() if path != agent.key}
        assert len(said) > 40 and any(name.endswith(".jsonl") for name in texts) and str(agent.log) in texts
        wanted = needles(agent, OLD, NEW, FIELDS)
        assert any(MARKER.encode() in text for text in texts.values())
        del wanted["marker"]
        wanted |= {"key hex": key.hex().encode(), "key base64": base64.b64encode(key)[:40]}
        leaks = [(what, where) for where, text in texts.items() for what, needle in wanted.items() if needle in text]
        assert leaks == []
