"""What a record of the audit log says, and that nothing in it bites or is a value."""

import contextlib
import csv
import json
import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from audit_log import POLICY, SMALL, in_unit, line_of, nasty_read, packed, whole
from harness import ALICE, BOB, CANARY, CAROL, KEYHATCHD, Agent, UnixHTTP, as_user, eventually
from load import FIRST, OTHER, VALUES, Load, reads, plain_bytes, raw_records, read_many, segments

KEYS = (
    "seq time mono event decision reason rule secret version bot roles surface peer request_id".split()
)


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
        for name, answered, begun in [
            ("alice", bot.count(OTHER), bot.count(FIRST)),
            (None, nobody.count(OTHER) + many.count(OTHER), nobody.count(FIRST) + many.count(FIRST)),
        ]:
            single = [r for r in records if r["decision"] == "deny" and r["bot"] == name]
            counted = sum(flood["count"] for flood in floods if flood["bot"] == name)
            assert len(single) + counted >= answered, name
            assert len(single) + counted <= begun + 30, "at most one in flight for each connection"
            assert len(single) <= 200 + 100 * (took + 1), name
            assert counted > 500, name
        assert {reason for flood in floods for reason in flood["reasons"]} <= {"no_grant", "no_bot", "limited"}
        whole(agent)


@pytest.mark.xfail(strict=True, reason="the invocation id is not read yet: identity gives none to the record")
def test_the_invocation_id_of_the_unit_is_recorded():
    with Agent() as agent, in_unit("keyhatch-test-invoked.service", invocation="00112233445566778899aabbccddeeff") as enter:
        inside = lambda: (enter(), as_user(ALICE, lambda: agent.read("app/key").status))[1]
        assert as_user(0, inside, gid=0) == 200
        record = agent.records(event="secret.read")[-1]
        assert record["peer"]["invocation_id"] == "00112233445566778899aabbccddeeff"


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
