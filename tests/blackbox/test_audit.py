"""The audit log over the real daemon: no record, no secret; and what is recorded stays, or shows that it does not."""

import collections
import contextlib
import csv
import grp
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from harness import ALICE, BOB, CANARY, CAROL, KEYHATCH, KEYHATCHD, ROOT, Agent, UnixHTTP, as_user, eventually
from load import (
    FIRST, LIMITED, OTHER, REFUSED, VALUES, Load, Tmpfs, reads, plain_bytes, raw_records, read_many, segments, unplain,
)

KEYS = (
    "seq time mono event decision reason rule secret version bot roles surface peer request_id".split()
)
SMALL = 'journald = false\nsegment = "64KiB"'
VERIFIER = ROOT / "tests" / "vectors" / "verify_audit.py"

POLICY = """
[[bot]]
name = "alice"
match = { uid = 20001 }
roles = ["reader", "helper"]

[[bot]]
name = "twin-a"
match = { uid = 20004 }
roles = ["reader"]

[role.reader]
grants = [
  { secrets = ["app/**"] },
]
deny = [
  { secrets = ["app/denied"] },
]

[role.helper]
grants = [{ secrets = ["help/*"] }]

[[bot]]
name = "carol"
match = { uid = 20003 }
roles = ["reader"]
"""


def line_of(agent, text):
    """Where the configuration says this, as `file:line`."""
    lines = agent.config.read_text().splitlines()
    return f"{agent.config}:{1 + next(at for at, line in enumerate(lines) if text in line)}"


def whole(agent, *args):
    """The log verifies, both by the agent and by the verifier that shares no code with it."""
    assert "whole" in agent.verify(*args).stdout
    assert python_verify(agent.audit_dir)[0] == 0


def python_verify(directory, head=None):
    """The independent verifier's exit code and output for a folder."""
    copies = []
    unpacked = Path(f"{directory}-unpacked")
    shutil.rmtree(unpacked, ignore_errors=True)
    unpacked.mkdir()
    for path in segments(directory):
        copies.append(unpacked / os.path.basename(path).removesuffix(".zst"))
        copies[-1].write_bytes(plain_bytes(path))
    args = ["--head", head] if head else []
    done = subprocess.run([sys.executable, VERIFIER, *args, *copies], capture_output=True, text=True)
    return done.returncode, done.stdout


def packed(agent):
    """Waits until every closed segment is compressed."""
    eventually(lambda: [p for p in segments(agent.audit_dir) if not p.endswith(".zst")][1:] == [])
    return segments(agent.audit_dir)


def head_of(agent):
    return json.loads(agent.verify("--json").stdout)["head"]


# What a record says.


def test_every_read_has_exactly_one_record_that_says_all():
    secrets = {"app/key": CANARY, "app/denied": CANARY, "app/gone": CANARY}
    with Agent(POLICY + Agent.SEES_PROGRAMS, secrets=secrets) as agent:
        grant, deny = line_of(agent, 'secrets = ["app/**"]'), line_of(agent, 'secrets = ["app/denied"]')
        for name, uid, status, reason, rule in [
            ("app/key", ALICE, 200, "granted", grant),
            ("app/denied", ALICE, 403, "deny_rule", deny),
            ("other/key", ALICE, 403, "no_grant", None),
            ("app/none", ALICE, 404, "not_found", grant),
            ("app/key", BOB, 403, "no_bot", None),
            ("app/key", None, 403, "no_bot", None),
        ]:
            before = len(agent.records())
            pid, reply = pid_and(agent.read, name, uid)
            new = agent.records()[before:]
            assert reply.status == status and len(new) == 1, (name, uid, reply, new)
            record, who = new[0], uid or 0
            assert list(record)[: len(KEYS)] == KEYS and list(record)[-2:] == ["prev", "hash"]
            assert (record["event"], record["surface"], record["secret"]) == ("secret.read", "native", name)
            assert (record["decision"] == "allow") == (status == 200)
            assert (record["reason"], record["rule"]) == (reason, rule)
            bot, roles = ("alice", ["reader", "helper"]) if uid == ALICE else (None, [])
            assert (record["bot"], record["roles"]) == (bot, roles)
            exe = os.readlink("/proc/self/exe")
            assert record["peer"] == {
                "pid": pid, "uid": who, "gid": who, "exe": exe, "unit": None, "invocation_id": None
            }
            if status == 200:
                assert record["version"] == reply.json()["version"]
            else:
                assert record["version"] is None
                assert record["request_id"] == reply.json()["request_id"]
            if reason == "no_bot":
                assert "the nearest bot is" in record["nearest"] and "uid =" in record["nearest"]


def pid_and(act, name, uid):
    """The pid of whoever asked, and the answer."""
    ask = lambda: (os.getpid(), act(name))
    return ask() if uid is None else as_user(uid, ask)


def test_each_name_of_a_batch_has_its_record_under_the_request_id_of_the_batch():
    with Agent(POLICY) as agent:
        names = ["app/key", "app/none", "app/denied", "other/x", "app/key"]
        reply = agent.get("/v1/batch", ALICE, "POST", json.dumps({"names": names}).encode())
        assert [e["code"] for e in reply.json()["errors"]] == ["not_found", "denied", "denied"]
        records = agent.records(event="secret.read")
        assert [r["secret"] for r in records] == names
        assert [r["reason"] for r in records] == ["granted", "not_found", "deny_rule", "no_grant", "granted"]
        assert len({r["request_id"] for r in records}) == 1


def test_each_list_has_one_record_whoever_asks():
    with Agent(POLICY) as agent:
        assert agent.get("/v1/secrets?prefix=app/", ALICE).status == 200
        refused = agent.get("/v1/secrets?prefix=x", BOB)
        one, two = agent.records(event="secret.list")
        assert (one["decision"], one["reason"], one["bot"], one["secret"]) == ("allow", "granted", "alice", "app/")
        assert (two["decision"], two["reason"], two["secret"]) == ("deny", "no_bot", "x")
        assert two["request_id"] == refused.json()["request_id"]


def test_a_watch_is_recorded_when_it_begins_and_when_it_wakes():
    with Agent(POLICY) as agent:
        denied = agent.get("/v1/watch?name=app/key&name=app/denied", ALICE)
        assert denied.status == 403
        assert [r["decision"] for r in agent.records(event="secret.watch")] == ["allow", "deny"]
        assert {r["request_id"] for r in agent.records(event="secret.watch")} == {denied.json()["request_id"]}
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as watch:
            before = len(agent.records())
            as_user_connect(agent, watch, "app/key")
            first = read_event(watch)
            assert b"event: current" in first
            (begun,) = agent.records()[before:]
            assert begun["event"] == "secret.watch" and begun["version"].encode() in first
            agent.put("app/key", "CANARY-second")
            woken = read_event(watch)
            assert b"event: rotated" in woken
            (told,) = agent.records(event="secret.watch")[3:]
            assert told["version"].encode() in woken and told["request_id"] == begun["request_id"]


def as_user_connect(agent, sock, name):
    """Begins a watch as a peer that stays: this process, which for the connect alone is another user."""
    os.setresgid(ALICE, ALICE, 0)
    os.setresuid(ALICE, ALICE, 0)
    try:
        sock.settimeout(10)
        sock.connect(str(agent.socket))
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)
    sock.sendall(f"GET /v1/watch?name={name} HTTP/1.1\r\nHost: k\r\n\r\n".encode())


def read_event(sock):
    data = b""
    while b"\n\n\r\n" not in data:
        more = sock.recv(4096)
        assert more, data
        data += more
    return data


def test_what_the_agent_does_is_recorded_with_who_asked():
    with Agent(POLICY) as agent:
        good = agent.config.read_text()
        agent.config.write_text(good + "\n[nonsense]\n")
        assert agent.ops("reload", check=False).returncode == 78
        agent.config.write_text(good)
        agent.ops("reload")
        agent.process.send_signal(signal.SIGHUP)
        eventually(lambda: len(agent.records(event="policy.loaded")) == 3)
        agent.ops("seal")
        sealed = agent.read("app/key", ALICE)
        assert sealed.status == 503 and sealed.json()["code"] == "sealed"
        agent.ops("unseal")
        assert agent.read("app/key", ALICE).status == 200
        agent.put("app/new", CANARY)
        agent.stop()
        events = [r["event"] for r in raw_records(agent.audit_dir)]
        assert events[:2] == ["agent.started", "policy.loaded"] and events[-1] == "agent.stopped"
        wanted = "admin.reloaded policy.rejected admin.reloaded policy.loaded policy.loaded".split()
        wanted += "admin.sealed agent.sealed secret.read admin.unsealed agent.unsealed secret.read store.changed".split()
        at = iter(events)
        assert all(event in at for event in wanted), events
        assert str(agent.config) in json.dumps(agent.records(event="policy.rejected"))
        assert agent.records(event="secret.read")[0]["reason"] == "sealed"
        for record in agent.records(surface="admin"):
            assert (record["decision"], record["peer"]["uid"]) == ("allow", 0) and record["request_id"]
        changed = agent.records(event="store.changed")[-1]["change"]
        assert (changed["uid"], changed["names"], changed["verb"]) == (0, ["app/new"], "put")


def test_who_is_no_admin_is_recorded():
    with Agent() as agent:
        reply = as_user(BOB, lambda: UnixHTTP(agent.admin_socket).get("/v1/status"))
        (record,) = agent.records(event="admin.denied")
        assert reply.status == 403 and record["request_id"] == reply.json()["request_id"]
        assert (record["decision"], record["peer"]["uid"], record["surface"]) == ("deny", BOB, "admin")


def test_query_and_tail_leave_out_no_record():
    with Agent() as agent:
        agent.read("app/key", ALICE)
        agent.restart()
        agent.stop()
        raw = raw_records(agent.audit_dir)
        assert agent.records() == raw
        assert [r["event"] for r in raw if r["event"].startswith("agent.")] == [
            "agent.started", "agent.stopped", "agent.started", "agent.stopped"
        ]
        tail = agent.verb("audit", "tail", "-n", "1000", "--json", "--dir", agent.audit_dir).stdout
        assert [json.loads(line) for line in tail.splitlines()] == raw


# No record, no secret: kills.


def test_killed_after_the_first_byte_of_an_answer_its_record_is_there_and_the_chain_goes_on():
    with Agent(POLICY, audit='journald = false\nsegment = "256KiB"') as agent:
        acknowledged = collections.Counter()
        for kill in range(8):
            with Load(agent, 8) as load:
                seen = eventually(lambda: load.count(FIRST) > 30 * kill and load.count(FIRST), pause=0)
                while load.count(FIRST) == seen:
                    pass
                agent.stop(signal.SIGKILL)
                acknowledged += load.by_pid(FIRST)
                assert load.count(REFUSED) + load.count(OTHER) == 0
            on_disk = reads(raw_records(agent.audit_dir), "allow", "deny")
            for pid, answers in acknowledged.items():
                assert answers <= on_disk[pid] <= answers + 1, (kill, pid)
            agent.start()
            whole(agent)
        assert [r["seq"] for r in agent.records()] == list(range(1, len(agent.records()) + 1))
        assert len(agent.records(event="agent.started")) == 9
        assert agent.records(event="agent.stopped") == []
        assert agent.records(event="alert.chain_broken") == []
        assert sum(acknowledged.values()) > 300


def test_a_closed_segment_that_a_kill_left_with_its_reserved_zeros_is_cut_before_it_is_compressed():
    with Agent(audit=SMALL) as agent:
        read_many(agent, 600)
        packed(agent)
        agent.stop(signal.SIGKILL)
        first = segments(agent.audit_dir)[0]
        data = plain_bytes(first)
        with open(first.removesuffix(".zst"), "wb") as plain:
            plain.write(data + bytes(5000))
        os.unlink(first)
        agent.start()
        eventually(lambda: os.path.exists(first) and not os.path.exists(first.removesuffix(".zst")))
        assert plain_bytes(first) == data
        whole(agent)


def test_a_record_torn_by_a_power_cut_is_removed_and_the_chain_goes_on():
    with Agent() as agent:
        agent.read("app/key", ALICE)
        agent.stop(signal.SIGKILL)
        (path,) = segments(agent.audit_dir)
        records = len(raw_records(agent.audit_dir))
        with open(path, "r+b") as file:
            file.truncate(len(plain_bytes(path)))
            file.seek(0, os.SEEK_END)
            file.write(b'{"seq":%d,"time":"2026' % (records + 1))
        agent.start()
        agent.read("app/key", ALICE)
        whole(agent)
        assert agent.records(event="alert.chain_broken") == []
        assert b"was removed" in agent.log.read_bytes()


# Whoever changes a record is found out.


@pytest.fixture(scope="module")
def old_log():
    """A stopped log of several compressed segments and a plain one; its pinned head."""
    with Agent(audit=SMALL) as agent:
        read_many(agent, 420)
        packed(agent)
        head = head_of(agent)
        agent.stop()
        head = head_of(agent)
        assert len(segments(agent.audit_dir)) >= 4
        whole(agent)
        assert python_verify(agent.audit_dir, head)[0] == 0
        agent.head_pin = head
        yield agent


def edit(lines, at):
    assert b'"granted"' in lines[at]
    lines[at] = lines[at].replace(b'"granted"', b'"sealed!"')


def edit_hash(lines, at):
    lines[at] = lines[at][:-3] + (b"0" if lines[at][-3:-2] != b"0" else b"1") + lines[at][-2:]


def remove(lines, at):
    del lines[at]


def swap(lines, at):
    lines[at], lines[at + 1] = lines[at + 1], lines[at]


def duplicate(lines, at):
    lines.insert(at, lines[at - 1])


def forge(lines, at):
    lines.insert(at, b"nothing of ours")


def rewrite(lines, at):
    """Edited by someone who knows how, up to its own hash."""
    body = lines[at].replace(b'"granted"', b'"sealed!"')
    body = body[: body.rindex(b',"hash":"')]
    lines[at] = body + b',"hash":"' + hashlib.sha256(body).hexdigest().encode() + b'"}'


@pytest.mark.parametrize("kind", ["plain", "zst"])
@pytest.mark.parametrize("tamper", [edit, edit_hash, remove, swap, duplicate, forge, rewrite])
def test_audit_verify_names_file_and_line_of_what_someone_changed(old_log, tmp_path, kind, tamper):
    copy, path = copied(old_log, tmp_path, -1 if kind == "plain" else 1)
    lines = plain_bytes(path).splitlines()
    at = 5
    record = json.loads(lines[at])["seq"]
    tamper(lines, at)
    unplain(path, b"".join(line + b"\n" for line in lines))
    done = old_log.verb("audit", "verify", "--dir", copy, check=False)
    assert done.returncode == 1
    first = done.stderr.splitlines()[0]
    named = record - 1 if tamper is duplicate else record
    assert first.startswith(f"{os.path.basename(path)} line {at + 1}, record {named}: "), done.stderr
    code, said = python_verify(copy)
    assert code == 1 and os.path.basename(path).removesuffix(".zst") in said
    assert f"line {at + 1}:" in said or f"record {named} " in said, said


@pytest.mark.parametrize("which", [0, 1, -1])
def test_a_missing_segment_shows(old_log, tmp_path, which):
    copy, path = copied(old_log, tmp_path, which)
    os.remove(path)
    head = [] if which != -1 else ["--head", old_log.head_pin]
    done = old_log.verb("audit", "verify", "--dir", copy, *head, check=False)
    assert done.returncode == 1, done.stdout
    missing = int(re.search(r"\d{20}", path)[0])
    assert f"record {missing}" in done.stderr or which == 0
    assert python_verify(copy, *head[1:])[0] == 1


@pytest.mark.parametrize("cut", ["one", "half", "file"])
def test_a_cut_tail_shows_by_the_pinned_head_alone(old_log, tmp_path, cut):
    copy, path = copied(old_log, tmp_path, -1)
    lines = plain_bytes(path).splitlines(keepends=True)
    keep = {"one": len(lines) - 1, "half": len(lines) // 2, "file": 0}[cut]
    next_record = json.loads(lines[keep])["seq"]
    unplain(path, b"".join(lines[:keep]))
    assert "whole" in old_log.verb("audit", "verify", "--dir", copy).stdout
    done = old_log.verb("audit", "verify", "--dir", copy, "--head", old_log.head_pin, check=False)
    assert done.returncode == 1 and f"record {next_record}: cut" in done.stderr
    assert python_verify(copy)[0] == 0
    assert python_verify(copy, old_log.head_pin)[0] == 1


def test_bytes_changed_inside_a_compressed_segment_show_with_its_name(old_log, tmp_path):
    copy, path = copied(old_log, tmp_path, 1)
    good = Path(path).read_bytes()
    for at in [0, 5, len(good) // 2, len(good) - 10]:
        bad = bytearray(good)
        bad[at] ^= 0x41
        Path(path).write_bytes(bad)
        done = old_log.verb("audit", "verify", "--dir", copy, check=False)
        assert done.returncode == 1
        assert re.search(rf"{os.path.basename(path)} line \d+, record \d+: ", done.stderr), (at, done.stderr)
    Path(path).write_bytes(good[:-20])
    done = old_log.verb("audit", "verify", "--dir", copy, check=False)
    assert done.returncode == 1 and f"{os.path.basename(path)} line " in done.stderr


def copied(agent, tmp_path, which):
    copy = tmp_path / "audit"
    shutil.copytree(agent.audit_dir, copy)
    path = segments(copy)[which]
    assert path.endswith(".jsonl" if which == -1 else ".zst")
    return copy, path


# The disk.


def test_a_full_disk_refuses_and_goes_on_by_itself_once_there_is_space():
    with Agent(POLICY, start=False) as agent, Tmpfs(agent.audit_dir, "512k"):
        (agent.audit_dir / "ballast").write_bytes(b"x" * (256 << 10))
        agent.start()
        with Load(agent, 4) as load:
            eventually(lambda: load.count(REFUSED) > 20)
            refused = agent.read("app/key", ALICE)
            assert (refused.status, refused.json()["code"]) == (503, "audit_unavailable")
            assert CANARY.encode() not in refused.body
            assert agent.get("/v1/secrets", ALICE).status == 503
            assert agent.read("app/key", BOB).status == 503, "a denial needs its record, too"
            assert agent.get("/v1/health").status == 503
            assert "full" in agent.status()["audit"]["trouble"]
            values = load.count(VALUES)
            assert values > 100
            (agent.audit_dir / "ballast").unlink()
            eventually(lambda: load.count(VALUES) > values)
            eventually(lambda: agent.get("/v1/health").status == 200)
            pids = load.pids
        assert load.count(OTHER) == 0
        assert agent.stop() == 0
        assert reads(raw_records(agent.audit_dir), "allow") == load.by_pid(VALUES, pids)
        whole(agent)


def test_on_failure_allow_serves_without_a_record_and_says_so():
    audit = 'journald = false\non_failure = "allow"'
    with Agent(POLICY, audit=audit, start=False) as agent, Tmpfs(agent.audit_dir, "256k"):
        (agent.audit_dir / "ballast").write_bytes(b"x" * (128 << 10))
        agent.start()
        with Load(agent, 2) as load:
            eventually(lambda: load.count(VALUES) > 2000)
            eventually(lambda: agent.status()["audit"]["trouble"])
            pids = load.pids
        assert load.count(REFUSED) == 0
        assert "no audit record can be kept" in agent.get("/v1/health").json()["reasons"]
        unrecorded = agent.status()["audit"]["unrecorded"]
        recorded = reads(raw_records(agent.audit_dir), "allow")
        without = load.count(VALUES) - sum(recorded[pid] for pid in pids)
        assert 0 < without <= unrecorded <= without + load.count(LIMITED)
        (agent.audit_dir / "ballast").unlink()
        eventually(lambda: agent.status()["audit"]["trouble"] is None)
        assert agent.read("app/key", ALICE).status == 200
        whole(agent)


@contextlib.contextmanager
def failing_disk(path):
    """An ext4 over the folder that turns read-only at the call of what this gives, as after an I/O error."""
    image = f"{path}.image"
    with open(image, "wb") as file:
        file.truncate(16 << 20)
    os.makedirs(path, exist_ok=True)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    mounted = subprocess.run(["mount", "-o", "loop,errors=remount-ro", image, path], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a disk that fails is NOT shown: no loop device: {mounted.stderr}")
    os.rmdir(f"{path}/lost+found")
    try:
        yield lambda: subprocess.run(["mount", "-o", "remount,abort", path], check=True)
    finally:
        subprocess.run(["umount", "-l", path], check=False)


def with_log_in_state_dir(agent):
    """As by default. What is mounted over a folder is another one to Landlock, whose rule is on the one around it."""
    agent.state.mkdir(mode=0o700)
    agent.audit_dir = agent.state / "audit"
    agent.head = agent.head.replace(f"{agent.dir}/audit", str(agent.audit_dir))
    agent.write_policy(POLICY)
    return agent


def test_a_disk_that_turned_read_only_refuses_and_a_good_one_in_its_place_is_taken_up():
    with with_log_in_state_dir(Agent(POLICY, start=False)) as agent, failing_disk(agent.audit_dir) as fail:
        agent.start()
        with Load(agent, 4) as load:
            eventually(lambda: load.count(VALUES) > 100)
            fail()
            eventually(lambda: load.count(REFUSED) > 20)
            assert agent.status()["audit"]["trouble"]
            values, good = load.count(VALUES), agent.dir / "good"
            shutil.copytree(agent.audit_dir, good)
            eventually(lambda: load.count(REFUSED) > 200)
            assert load.count(VALUES) == values, "nothing is served in between"
            subprocess.run(["mount", "--bind", good, agent.audit_dir], check=True)
            try:
                eventually(lambda: load.count(VALUES) > values)
                eventually(lambda: agent.get("/v1/health").status == 200)
                pids = load.pids
                load.cells[-1] = 1
                load.wait()
                agent.stop()
                assert reads(raw_records(agent.audit_dir), "allow") == load.by_pid(VALUES, pids)
                whole(agent)
            finally:
                subprocess.run(["umount", "-l", agent.audit_dir], check=True)


def test_sync_always_gives_out_nothing_that_is_not_synced():
    audit = 'journald = false\nsync = "always"'
    with Agent(POLICY, audit=audit, start=False) as agent, failing_disk(agent.audit_dir) as fail:
        agent.start()
        assert agent.read("app/key", ALICE).status == 200
        fail()
        for _ in range(3):
            refused = agent.read("app/key", ALICE)
            assert (refused.status, refused.json()["code"]) == (503, "audit_unavailable")


def overwrite(path):
    with open(path, "r+b") as file:
        file.seek(150)
        file.write(b"XXXX")


def append(path):
    with open(path, "ab") as file:
        file.write(b'{"seq":1}\n')


def truncate(path):
    os.truncate(path, 100)


def empty(path):
    os.truncate(path, 0)


def rename(path):
    os.rename(path, path.parent / "elsewhere")


def replace(path):
    (path.parent / "fake").write_bytes(b"fake\n")
    os.rename(path.parent / "fake", path)


@pytest.mark.parametrize("touch", [append, overwrite, rename, os.remove, replace])
def test_a_segment_that_someone_else_touched_is_left_for_a_new_one_with_an_alert(touch):
    with Agent(POLICY) as agent:
        with Load(agent, 4) as load:
            eventually(lambda: load.count(VALUES) > 500)
            (path,) = [Path(p) for p in segments(agent.audit_dir)]
            touch(path)
            eventually(lambda: agent.records(event="alert.chain_broken"))
            values = load.count(VALUES)
            eventually(lambda: load.count(VALUES) > values + 100)
            pids = load.pids
        assert load.count(OTHER) == 0
        (alert,) = agent.records(event="alert.chain_broken")
        assert alert["segment"] == path.name and alert["what"] and alert["lost"] is None or touch is overwrite
        assert agent.stop() == 0
        records = agent.records()
        verified = agent.verify(check=False)
        if touch is not overwrite:
            assert reads(records, "allow") == load.by_pid(VALUES, pids), "no record of an answer is lost"
            assert [r["seq"] for r in records] == list(range(1, len(records) + 1))
        if touch in (rename, os.remove):
            assert verified.returncode == 0
        if touch in (overwrite, replace):
            assert verified.returncode == 1 and f"record {alert['seq']}, alert.chain_broken" in verified.stderr
        # A number that no record has any more is one that someone else destroyed.
        kept = reads(records, "allow").total()
        gone = records[-1]["seq"] - len({r["seq"] for r in records})
        assert kept <= load.count(VALUES) <= kept + gone


@pytest.mark.parametrize("touch", [truncate, empty])
def test_a_truncated_segment_is_left_for_a_new_one_with_an_alert_of_what_is_lost(touch):
    with Agent(POLICY) as agent:
        read_many(agent, 50)
        path = Path(segments(agent.audit_dir)[0])
        touch(path)
        (alert,) = eventually(lambda: agent.records(event="alert.chain_broken"))
        assert alert["segment"] == path.name and "size was changed" in alert["what"]
        assert agent.read("app/key", ALICE).status == 200
        assert agent.stop() == 0
        verified = agent.verify(check=False)
        lost = "record 1: " if touch is truncate else f"record {alert['seq']}: the records before are missing"
        assert verified.returncode == 1 and lost in verified.stderr
        assert [r["seq"] for r in agent.records()][-3:] == [alert["seq"], alert["seq"] + 1, alert["seq"] + 2]


@pytest.mark.xfail(
    strict=True,
    reason="a copy into a page past the new end is SIGBUS, which ends the daemon, as the design has it",
)
@pytest.mark.parametrize("touch", [truncate, empty])
def test_a_segment_truncated_under_load_does_not_end_the_daemon(touch):
    # Whether a record or the keeper comes first is a race: several times, so that the record does once.
    for _ in range(6):
        with Agent(POLICY) as agent, Load(agent, 4) as load:
            eventually(lambda: load.count(VALUES) > 500)
            touch(Path(segments(agent.audit_dir)[0]))
            eventually(lambda: agent.process.poll() is not None or agent.records(event="alert.chain_broken"))
            code = agent.process.poll()
            if code is not None:
                agent.process = None
            assert code is None


# Space and time.


def test_segments_rotate_by_size_are_compressed_and_belong_to_adm():
    with Agent(audit=SMALL) as agent:
        read_many(agent, 500)
        paths = packed(agent)
        assert len(paths) >= 4
        for path in paths:
            info = os.stat(path)
            assert (info.st_mode & 0o7777, grp.getgrgid(info.st_gid).gr_name) == (0o640, "adm"), path
            assert len(plain_bytes(path)) <= 64 << 10
            first = json.loads(plain_bytes(path).splitlines()[0])["seq"]
            assert os.path.basename(path).startswith(f"audit-{first:020}.")
        assert os.stat(agent.audit_dir).st_mode & 0o7777 == 0o750
        for path in agent.audit_dir.iterdir():
            assert path.stat().st_mode & 0o007 == 0, path
        whole(agent)


def test_keep_is_a_hard_bound_on_the_folder_under_load_and_says_what_went():
    keep = 512 << 10
    with Agent(POLICY, audit=f'{SMALL}\nkeep = "512KiB"') as agent:
        most = 0
        with Load(agent, 8) as load:
            end = time.monotonic() + 4
            while time.monotonic() < end:
                most = max(most, folder_size(agent.audit_dir))
                time.sleep(0.001)
            pids = load.pids
        assert load.count(VALUES) > 2000 and load.count(REFUSED) + load.count(OTHER) == 0
        assert keep // 2 < most <= keep, f"{most} bytes with keep = {keep}"
        agent.stop()
        records = agent.records()
        gone = [r for r in records if r["event"] == "audit.expired"]
        assert gone and gone[-1]["last_seq"] == records[0]["seq"] - 1
        assert gone[-1]["last_hash"] == records[0]["prev"]
        assert [r for r in records if r["event"] == "alert.audit_short"], "it was younger than keep_for"
        assert [r["seq"] for r in records] == list(range(records[0]["seq"], records[-1]["seq"] + 1))
        whole(agent)


def folder_size(path):
    """The bytes of all files; 0 where one came or went meanwhile, so that none counts after it is gone."""
    names, sizes = sorted(os.listdir(path)), []
    with contextlib.suppress(FileNotFoundError):
        sizes = [os.stat(path / name).st_size for name in names]
    return sum(sizes) if sorted(os.listdir(path)) == names else 0


def test_reading_the_log_works_while_segments_come_and_go():
    with Agent(POLICY, audit=f'{SMALL}\nkeep = "512KiB"') as agent:
        with Load(agent, 4):
            eventually(lambda: agent.records(event="audit.expired"))
            for _ in range(15):
                agent.verb("audit", "query", "--dir", agent.audit_dir, "--limit", "1")
                agent.verb("audit", "tail", "--dir", agent.audit_dir)
                agent.verify()


def test_tail_follows_over_the_change_of_segments():
    with Agent(audit=SMALL) as agent:
        args = [KEYHATCHD, "audit", "tail", "-f", "-n", "1000", "--json", "--dir", str(agent.audit_dir)]
        with subprocess.Popen(args, stdout=subprocess.PIPE) as tail:
            try:
                assert json.loads(tail.stdout.readline())["seq"] == 1
                read_many(agent, 600)
                packed(agent)
                read_many(agent, 10)
                assert len(segments(agent.audit_dir)) > 4
                for want in range(2, agent.records()[-1]["seq"] + 1):
                    assert json.loads(tail.stdout.readline())["seq"] == want
            finally:
                tail.kill()


def test_a_second_daemon_does_not_write_the_same_log():
    with Agent() as agent, Agent(start=False) as other:
        other.head = other.head.replace(str(other.audit_dir), str(agent.audit_dir))
        other.write_policy(Agent.POLICY)
        before = len(raw_records(agent.audit_dir))
        other.start(ready=False)
        assert other.process.wait(timeout=10) != 0
        assert f"another process writes the audit log in {agent.audit_dir}" in other.log.read_text()
        other.process = None
        assert len(raw_records(agent.audit_dir)) == before


# Floods.


def test_floods_of_denials_are_counted_while_an_allowed_bot_has_every_read_recorded():
    crowd = list(range(20100, 20120))
    with Agent(POLICY) as agent:
        began = time.monotonic()
        with (
            Load(agent, uid=[ALICE, ALICE], path="/v1/secrets/other/x") as bot,
            Load(agent, uid=[BOB, 0], path="/v1/secrets/app/key") as nobody,
            Load(agent, uid=crowd, path="/v1/secrets?prefix=") as many,
            Load(agent, uid=[CAROL], most=300) as allowed,
        ):
            loads = [bot, nobody, many]
            eventually(lambda: bot.count(OTHER) > 2000 and nobody.count(OTHER) + many.count(OTHER) > 2000, 30)
            eventually(lambda: allowed.count(VALUES) == 300)
        took = time.monotonic() - began
        agent.stop()
        records = raw_records(agent.audit_dir)
        assert sum(reads(records, "allow").values()) == 300
        floods = [flood for r in records if r["event"] == "alert.flood" for flood in r["floods"]]
        assert len([r for r in records if r["event"] == "alert.flood"]) <= took + 2
        for name, answered in [("alice", bot.count(OTHER)), (None, nobody.count(OTHER) + many.count(OTHER))]:
            single = [r for r in records if r["decision"] == "deny" and r["bot"] == name]
            counted = sum(flood["count"] for flood in floods if flood["bot"] == name)
            assert len(single) + counted >= answered, name
            assert len(single) + counted <= answered + 30, "at most one in flight for each connection"
            assert len(single) <= 200 + 100 * (took + 1), name
            assert counted > 500, name
        assert {reason for flood in floods for reason in flood["reasons"]} <= {"no_grant", "no_bot", "limited"}
        whole(agent)


# Reading it.


def test_query_filters_by_each_of_its_options():
    with Agent(POLICY, secrets={"app/key": CANARY, "app/deep/key": CANARY, "app/denied": CANARY}) as agent:
        agent.read("app/key", ALICE)
        middle = datetime.utcnow()
        agent.read("app/deep/key", CAROL)
        agent.read("app/denied", ALICE)
        agent.read("app/key", BOB)
        agent.get("/v1/secrets", ALICE)
        agent.ops("seal")
        everything = raw_records(agent.audit_dir)
        query = lambda *args: [
            json.loads(line)
            for line in agent.verb("audit", "query", "--dir", agent.audit_dir, "--json", *args).stdout.splitlines()
        ]
        want = lambda keep: [r for r in everything if keep(r)]
        when = lambda r: datetime.fromisoformat(r["time"][:-1])
        stamp = middle.isoformat(timespec="microseconds") + "Z"
        for args, keep in [
            ([], lambda r: True),
            (["--bot", "alice"], lambda r: r["bot"] == "alice"),
            (["--bot", "*ar*"], lambda r: r["bot"] == "carol"),
            (["--secret", "app/key"], lambda r: r["secret"] == "app/key"),
            (["--secret", "app/**"], lambda r: (r["secret"] or "").startswith("app/")),
            (["--event", "secret.*"], lambda r: r["event"].startswith("secret.")),
            (["--event", "admin.sealed"], lambda r: r["event"] == "admin.sealed"),
            (["--decision", "deny"], lambda r: r["decision"] == "deny"),
            (["--uid", str(BOB)], lambda r: (r["peer"] or {}).get("uid") == BOB),
            (["--since", stamp], lambda r: when(r) >= middle),
            (["--until", stamp], lambda r: when(r) < middle),
            (["--since", "1h"], lambda r: True),
            (["--until", "1h"], lambda r: False),
            (["--seq", "3-5"], lambda r: 3 <= r["seq"] <= 5),
            (["--seq", "4"], lambda r: r["seq"] == 4),
            (["--limit", "2"], lambda r: r["seq"] > everything[-1]["seq"] - 2),
            (["--bot", "alice", "--decision", "allow"], lambda r: r["bot"] == "alice" and r["decision"] == "allow"),
            (["--unit", "*"], lambda r: (r["peer"] or {}).get("unit")),
        ]:
            assert query(*args) == want(keep), args


def test_a_star_in_a_querys_secret_stays_within_a_segment_as_in_grants():
    with Agent(secrets={"app/key": CANARY, "app/deep/key": CANARY}) as agent:
        agent.read("app/key", ALICE)
        agent.read("app/deep/key", ALICE)
        query = lambda pattern: agent.verb(
            "audit", "query", "--dir", agent.audit_dir, "--json", "--secret", pattern
        ).stdout.splitlines()
        assert len(query("app/*")) == 1 and len(query("app/**")) == 2


def test_query_by_unit_finds_what_a_unit_asked():
    unit = "keyhatch-test-audit.service"
    with Agent() as agent, in_unit(unit) as enter:
        as_user_in = lambda: (enter(), as_user(ALICE, lambda: agent.read("app/key").status))[1]
        assert as_user(0, as_user_in, gid=0) == 200
        agent.read("app/key", ALICE)
        done = agent.verb("audit", "query", "--dir", agent.audit_dir, "--json", "--unit", "keyhatch-test-*")
        (record,) = [json.loads(line) for line in done.stdout.splitlines()]
        assert record["peer"]["unit"] == unit


@pytest.mark.xfail(strict=True, reason="the invocation id is not read yet: identity gives none to the record")
def test_the_invocation_id_of_the_unit_is_recorded():
    with Agent() as agent, in_unit("keyhatch-test-invoked.service", invocation="00112233445566778899aabbccddeeff") as enter:
        inside = lambda: (enter(), as_user(ALICE, lambda: agent.read("app/key").status))[1]
        assert as_user(0, inside, gid=0) == 200
        record = agent.records(event="secret.read")[-1]
        assert record["peer"]["invocation_id"] == "00112233445566778899aabbccddeeff"


@contextlib.contextmanager
def in_unit(name, invocation=None):
    """A cgroup as systemd makes one for a system unit; gives what moves the caller into it."""
    root = next((p for p in ("/sys/fs/cgroup/unified", "/sys/fs/cgroup") if os.path.exists(f"{p}/cgroup.procs")), None)
    if root is None:
        pytest.skip("units are NOT shown: no cgroup2 here")
    folder = Path(root) / "system.slice" / name
    folder.mkdir(parents=True)
    try:
        if invocation:
            for attribute in ("user.invocation_id", "trusted.invocation_id"):
                os.setxattr(folder, attribute, invocation.encode())
        yield lambda: (folder / "cgroup.procs").write_text("0")
    finally:
        eventually(lambda: not (folder / "cgroup.procs").read_text())
        folder.rmdir()
        with contextlib.suppress(OSError):
            folder.parent.rmdir()


# Names that bite.

NASTY = (
    b"x\n\r\x1b]0;owned\x07\x1b[2J\nPRIORITY=0\nKEYHATCH_SECRET=forged\n"
    b"<script>alert(1)<img src=x>,\",=cmd|'\x7f \xe2\x80\xae \xc2\x9b31m \xff\\x41"
)


def nasty_read(agent):
    """Reads a secret by a program with such a name."""
    os.chmod(agent.dir, 0o755)
    path = os.path.join(os.fsencode(agent.dir), NASTY)
    shutil.copy(KEYHATCH, path)
    args = [path, "--socket", str(agent.socket), "get", "app/key"]
    done = subprocess.run(args, user=ALICE, group=ALICE, extra_groups=[], capture_output=True)
    assert done.stdout == CANARY.encode(), done.stderr
    return path


def test_a_programs_path_with_escapes_and_newlines_stays_escaped_everywhere():
    with Agent(Agent.POLICY + Agent.SEES_PROGRAMS) as agent:
        path = nasty_read(agent)
        raw = Path(segments(agent.audit_dir)[0]).read_bytes().rstrip(b"\0")
        read = [line for line in raw.splitlines() if b'"secret.read"' in line]
        assert len(read) == 1
        assert unescape(json.loads(read[0])["peer"]["exe"]) == path, "the exact bytes come back"
        verb = lambda *args: subprocess.run(
            [KEYHATCHD, "audit", *args, "--dir", agent.audit_dir], capture_output=True, check=True
        ).stdout
        for out in [raw, verb("query"), verb("query", "--json"), verb("query", "--csv"), verb("tail"), verb("tail", "--json")]:
            assert not re.search(rb"[\x00-\x09\x0b-\x1f\x7f]", out)
            assert not re.search("[\u0080-\u009f]", out.decode()), "C1 controls are escapes, too"
        for out in [verb("query"), verb("tail")]:
            assert "\u202e" not in out.decode(), "the reading direction stays"
            assert len(out.splitlines()) == len(agent.records())
        assert len(verb("query", "--json").splitlines()) == len(agent.records())
        rows = list(csv.DictReader(verb("query", "--csv").decode().splitlines()))
        assert len(rows) == len(agent.records())
        (row,) = [row for row in rows if row["event"] == "secret.read"]
        assert (row["secret"], row["bot"], row["uid"]) == ("app/key", "alice", str(ALICE))
        assert "KEYHATCH_SECRET=forged" in row["exe"] and row["request_id"]
        assert not [cell for row in rows for cell in row.values() if cell[:1] in tuple("=+-@")]
        whole(agent)


def unescape(text):
    """An `exe` as bytes, as docs/audit-format.md says."""
    part = lambda m: b"\\" if m[0] == "\\\\" else bytes.fromhex(m[0][2:])
    out, at = b"", 0
    for match in re.finditer(r"\\\\|\\x[0-9a-f]{2}", text):
        out += text[at : match.start()].encode() + part(match)
        at = match.end()
    return out + text[at:].encode()


def test_no_value_is_ever_in_the_log():
    with Agent(POLICY, audit=SMALL, secrets={"app/key": CANARY, "app/json": '{"f":"CANARY-field"}'}) as agent:
        read_many(agent, 300)
        agent.get("/v1/secrets/app/json?field=f", ALICE)
        agent.get("/v1/batch", ALICE, "POST", json.dumps({"names": ["app/key", "app/json"]}).encode())
        agent.put("app/key", "CANARY-new")
        agent.read(CANARY.replace("CANARY", "x"), ALICE)
        agent.ops("reload")
        agent.ops("seal")
        packed(agent)
        agent.stop()
        for path in segments(agent.audit_dir):
            assert b"CANARY" not in plain_bytes(path)
        for path, data in agent.everything_written():
            assert b"CANARY" not in data or path == agent.config, path
