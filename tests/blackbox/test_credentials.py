"""The credentials socket, asked as systemd asks: from a unit's cgroup, as root, from an address that names unit and id.

What a real systemd makes of the answers is in test_lab_credentials.py.
"""

import contextlib
import json
import os
import signal
import socket
import time

import pytest

from audit_log import failing_disk
from bots import Bot, cgroups
from harness import ALICE, CANARY, Agent, eventually
from peers import granted, stopped

UNIT, OTHER, SHELL = "/system.slice/kh-test.service", "/system.slice/kh-other.service", "/user.slice/kh-shell.scope"
TEMPLATE = "/system.slice/system-kh.slice/kh-bot@7.service"
# Past what systemd takes of a credential that it is to decrypt, too.
TOO_LONG = (1 << 20) + (128 << 10)
BYTES = b"CANARY-\x00\xff bytes\n" * 4
PAIR = json.dumps({"user": "bot", "password": "CANARY-pa\u00df\n", "port": 5432})
POLICY = f"""
[[bot]]
name = "tester"
match = {{ uid = {ALICE}, exe = "/nonexistent", unit = "kh-test.service" }}
roles = ["reader"]
[bot.credentials]
db = "app/key"
bytes = "app/bytes"
pair = "app/pair#password"
port = "app/pair#port"
"a b" = "app/empty"
largest = "app/largest"
field = "app/pair#absent"
text = "app/key#password"
none = "app/none"
hidden = "hidden/key"
denied = "app/denied"

[[bot]]
name = "template"
match = {{ uid = {ALICE}, unit = "kh-bot@*.service" }}
roles = ["reader"]
credentials = {{ db = "app/key" }}

[[bot]]
name = "shell"
match = {{ cgroup = "/user.slice/kh-shell.scope" }}
roles = ["reader"]
credentials = {{ db = "app/key" }}

[[bot]]
name = "without"
match = {{ unit = "kh-other.service" }}
roles = ["reader"]

[role.reader]
grants = [{{ secrets = ["app/**"] }}]
deny = [{{ secrets = ["app/denied"] }}]
"""
SECRETS = {
    "app/key": CANARY, "app/bytes": BYTES, "app/pair": PAIR, "app/empty": b"", "app/denied": CANARY, "hidden/key": CANARY,
    "app/largest": b"L" * 65536,
}


@pytest.fixture(scope="module")
def agent():
    with Agent(POLICY, secrets=SECRETS) as agent, cgroups(UNIT, OTHER, SHELL, TEMPLATE) as move:
        agent.move = move
        yield agent


def fetch(agent, where, unit, id="db", uid=0, address="{random}/unit/{unit}/{id}"):
    """All that comes until the end, for a process in that cgroup that says it asks for that unit."""
    with Bot(agent, uid, before=lambda: agent.move(os.getpid(), where)) as bot:
        name = address and "\0" + address.format(random=f"{time.monotonic_ns():x}", unit=unit, id=id)
        bot.do("connect", str(credentials_socket(agent)), name)
        return read(socket.socket(fileno=bot.fds[0]))


def credentials_socket(agent):
    return agent.socket.with_name("credentials.sock")


def read(connection):
    connection.settimeout(30)
    with connection, connection.makefile("rb") as file:
        return file.read()


def last(agent):
    return agent.records(surface="credential")[-1]


def refused(agent, answer, reason):
    assert len(answer) > TOO_LONG and not any(answer), (len(answer), answer[:200])
    record = last(agent)
    assert (record["event"], record["decision"], record["reason"]) == ("secret.read", "deny", reason), record
    assert record["version"] is None and "CANARY" not in json.dumps(record)
    return record


@pytest.mark.parametrize("id, value", [
    ("db", CANARY.encode()), ("bytes", BYTES), ("pair", json.loads(PAIR)["password"].encode()), ("port", b"5432"),
    ("a b", b""), ("largest", b"L" * 65536),
])
def test_a_unit_is_given_exactly_the_bytes_and_that_is_recorded(agent, id, value):
    assert fetch(agent, UNIT, "kh-test.service", id) == value
    record = last(agent)
    assert (record["event"], record["decision"], record["reason"]) == ("secret.read", "allow", "granted")
    assert (record["bot"], record["credential"], record["peer"]["unit"]) == ("tester", id, "kh-test.service")
    assert record["peer"]["uid"] == 0 and record["version"] and record["rule"].startswith(str(agent.config))


def test_a_unit_is_found_by_glob_and_by_cgroup_and_asking_twice_is_two_records(agent):
    before = len(agent.records(surface="credential"))
    for where, unit, bot in ((TEMPLATE, "kh-bot@7.service", "template"), (SHELL, "kh-shell.scope", "shell")):
        for _ in range(2):
            assert fetch(agent, where, unit) == CANARY.encode()
            assert last(agent)["bot"] == bot
    assert len(agent.records(surface="credential")) == before + 4


FORGED = {
    "another unit": (dict(where=OTHER, unit="kh-other.service"), "no_bot", "kh-test.service"),
    "another unit that claims to be it": (dict(where=OTHER, unit="kh-test.service"), "no_bot", '"kh-other.service"'),
    "root outside of all units": (dict(where="/", unit="kh-test.service"), "no_bot", "in no unit"),
    "the bot itself, in its unit": (dict(where=UNIT, unit="kh-test.service", uid=ALICE), "no_bot", "only root"),
    "the bot outside of it": (dict(where="/", unit="kh-test.service", uid=ALICE), "no_bot", "only root"),
    "root in the unit without an address": (
        dict(where=UNIT, unit="", address=None), "no_bot", "the source address names no unit"),
    "an address of another form": (
        dict(where=UNIT, unit="kh-test.service", address="{random}/user/{unit}/{id}"), "no_bot", "names no unit"),
    "an address with text for a terminal": (
        dict(where=UNIT, unit="\x1b[2J\n\"x"), "no_bot", r"\u{1b}[2J\n\"x"),
}


@pytest.mark.parametrize("who", FORGED)
def test_whoever_is_not_systemd_in_that_unit_is_refused(agent, who):
    asked, reason, why = FORGED[who]
    record = refused(agent, fetch(agent, **asked), reason)
    assert why in record["nearest"] and record["secret"] is None, record
    # Said to people, too.
    assert why[:10] in agent.verb("audit", "tail", "--dir", agent.audit_dir, "-n", "1").stdout


REFUSED = {
    "unknown": "no_grant", "hidden": "no_grant", "denied": "deny_rule", "none": "not_found", "field": "not_found",
    "text": "not_found", "": "no_grant", "app/key": "no_grant",
}


@pytest.mark.parametrize("id", REFUSED)
def test_what_is_not_granted_or_not_there_is_refused(agent, id):
    record = refused(agent, fetch(agent, UNIT, "kh-test.service", id), REFUSED[id])
    assert (record["bot"], record["credential"]) == ("tester", id)


def test_sealed_it_is_refused_until_it_is_unsealed(agent):
    agent.ops("seal")
    record = refused(agent, fetch(agent, UNIT, "kh-test.service"), "sealed")
    assert record["secret"] == "app/key"
    agent.ops("unseal")
    eventually(lambda: fetch(agent, UNIT, "kh-test.service") == CANARY.encode())


def test_without_a_source_it_is_refused(agent):
    with Agent(POLICY, secrets=SECRETS, start=False) as lame:
        lame.move = agent.move
        store = next(lame.store_dir.glob("*.khs"))
        store.write_bytes(store.read_bytes()[:-1])
        lame.start()
        refused(lame, fetch(lame, UNIT, "kh-test.service"), "upstream_unavailable")


def test_without_a_record_it_is_refused(agent):
    with Agent(POLICY, secrets=SECRETS, start=False) as lame, failing_disk(lame.audit_dir) as fail:
        lame.move = agent.move
        lame.start()
        assert fetch(lame, UNIT, "kh-test.service") == CANARY.encode()
        fail()
        eventually(lambda: lame.status()["audit"]["trouble"])
        answer = fetch(lame, UNIT, "kh-test.service")
        assert len(answer) > TOO_LONG and not any(answer)


def test_a_rotated_value_is_given_to_who_asks_next(agent):
    agent.put("app/key", "CANARY-rotated")
    assert fetch(agent, UNIT, "kh-test.service") == b"CANARY-rotated"
    agent.put("app/key", CANARY)


def test_the_socket_comes_with_the_first_credential_and_nothing_is_cut_short_as_the_daemon_stops(agent):
    with Agent(Agent.POLICY + Agent.SEES_PROGRAMS, start=False) as fresh:
        fresh.move = agent.move
        path = credentials_socket(fresh)
        fresh.start()
        assert not path.exists()
        fresh.write_policy(POLICY)
        path.write_text("not yours")
        done = fresh.ops("reload", check=False)
        assert done.returncode == 78 and str(path) in done.stderr
        granted(fresh.read("app/key", ALICE))
        path.unlink()
        fresh.ops("reload")
        assert fetch(fresh, UNIT, "kh-test.service") == CANARY.encode()
        # Those who were accepted get a whole answer; the others hear that nobody is there any more.
        with contextlib.ExitStack() as bots:
            bot = bots.enter_context(Bot(fresh, 0, before=lambda: fresh.move(os.getpid(), UNIT)))
            asked = []
            with stopped(fresh.pid):
                for number in range(50):
                    bot.do("connect", str(path), f"\0{number:x}/unit/kh-test.service/db")
                    asked.append(socket.socket(fileno=bot.fds[0]))
                fresh.process.send_signal(signal.SIGTERM)
            for connection in asked:
                try:
                    assert read(connection) == CANARY.encode()
                except ConnectionResetError:
                    pass
        assert fresh.process.wait(timeout=20) == 0
        fresh.process = None
        assert not path.exists()
