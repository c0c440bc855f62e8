"""Detection by what was learnt of bots: first reads, other programs, outdated versions, over restarts; by real processes.

The learning time is a second here. Hours and rates take days to learn: their tests are the simulated month of tests/bench.
"""

import hashlib
import itertools
import json
import json
import os
import shutil
import sys
import time
from pathlib import Path

import pytest

from bots import Bot, ask
from harness import ALICE, BOB, CANARY, Agent, UnixHTTP, eventually

SECRETS = {f"app/{name}": f"{CANARY}-{name}" for name in ["key", "other", "third", "fourth"]}
POLICY = f"""
[[bot]]
name = "alice"
match = {{ uid = {ALICE} }}
roles = ["reader"]

[[bot]]
name = "bob"
match = {{ uid = {BOB} }}
roles = ["reader"]

[role.reader]
grants = [{{ secrets = ["app/*"] }}]
"""
KEY = "/v1/secrets/app/key"
DETECT = '\n[detect]\nlearning = "1s"\n'


def learn(agent, read):
    """Reads until what comes next is no longer part of the learning time."""
    read()
    began = time.time()
    eventually(lambda: time.time() > began + 2)


def alerts(agent):
    return [record for record in agent.records() if record["event"].startswith("alert.")]


def evidence(agent, alert):
    """The record that the alert names."""
    (seq,) = alert["evidence"]
    (record,) = [record for record in agent.records() if record["seq"] == seq]
    assert (record["bot"], record["peer"], record["request_id"]) == (alert["bot"], alert["peer"], alert["request_id"])
    return record


def read_by(agent, exe, name, uid=ALICE):
    with Bot(agent, uid, exe) as bot, bot.connect() as connection:
        reply = ask(connection, f"/v1/secrets/{name}")
        assert reply.status == 200, reply


def test_a_first_read_and_another_program_are_told_of_once_and_what_was_learnt_survives_a_restart():
    with Agent(POLICY + Agent.SEES_PROGRAMS + DETECT, secrets=SECRETS, start=False) as agent:
        mine, other = agent.dir / "bot", agent.dir / "other"
        shutil.copy(Path(sys.executable).resolve(), mine)
        shutil.copy(mine, other)
        with other.open("ab") as changed:
            changed.write(b"another program")
        agent.start()
        learn(agent, lambda: read_by(agent, mine, "app/key"))
        read_by(agent, mine, "app/key")
        assert alerts(agent) == []

        read_by(agent, mine, "app/other")
        (first,) = alerts(agent)
        assert (first["event"], first["secret"], first["bot"]) == ("alert.first_read", "app/other", "alice")
        assert evidence(agent, first)["secret"] == "app/other" and first["quarantined"] is False
        assert "bot alice read app/other, which it never did before" == first["message"]

        read_by(agent, other, "app/key")
        (_, changed) = alerts(agent)
        assert (changed["event"], changed["bot"]) == ("alert.exe_changed", "alice")
        assert changed["exe_sha256"] == hashlib.sha256(other.read_bytes()).hexdigest()
        assert evidence(agent, changed)["peer"]["exe"] == str(other)

        agent.restart()
        for exe, name in itertools.product([mine, other], ["app/key", "app/other"]):
            read_by(agent, exe, name)
        assert alerts(agent) == [first, changed]
        read_by(agent, mine, "app/third")
        (_, _, third) = alerts(agent)
        assert (third["event"], third["secret"]) == ("alert.first_read", "app/third")
        memory = agent.state / "learnt.json"
        assert os.stat(memory).st_mode & 0o777 == 0o600 and CANARY not in memory.read_text()
        metrics = UnixHTTP(agent.admin_socket).get("/v1/metrics").body.decode()
        assert 'keyhatch_alerts_total{alert="first_read"} 1' in metrics

        ignore = 'ignore = [{ rule = "first_read", bots = ["alice"] }]\n'
        agent.write_policy(POLICY + Agent.SEES_PROGRAMS + DETECT + ignore)
        agent.ops("reload")
        read_by(agent, mine, "app/fourth")
        assert alerts(agent) == [first, changed, third]


def test_a_version_is_outdated_once_its_grace_time_is_over_whether_it_is_held_or_gone():
    rotation = '[[rotation]]\nsecret = "app/key"\nevery = "1h"\ngrace = "1s"\ndriver = { kind = "generate" }\n'
    with Agent(POLICY + rotation, secrets=SECRETS) as agent:
        old = agent.read("app/key", ALICE).json()["version"]
        for name in ["app/key", "app/other"]:
            agent.put(name, f"{CANARY}-next")
        previous = lambda name, uid: agent.read(f"{name}?version=previous", uid)
        assert previous("app/other", ALICE).status == 200, "within a day of its rotation"
        eventually(lambda: previous("app/key", ALICE).status == 200 and agent.records(event="alert.stale_version"))
        (alert,) = alerts(agent)
        assert (alert["bot"], alert["secret"]) == ("alice", "app/key") and alert["outdated_for"] >= 1
        assert evidence(agent, alert)["version"] == old
        assert agent.read(f"app/key?version={old}", ALICE).status == 200
        assert alerts(agent) == [alert], "once a day"
        assert agent.read("app/key?version=1-0123456789abcdef", BOB).status == 404
        (_, gone) = alerts(agent)
        assert (gone["event"], gone["bot"]) == ("alert.stale_version", "bob")
        assert evidence(agent, gone)["reason"] == "not_found"
        assert agent.read("app/key?version=1-0123456789abcdef", BOB).status == 404
        current = agent.read("app/key", ALICE).json()["version"]
        assert agent.read(f"app/key?version={current}&field=none", ALICE).status == 404
        assert alerts(agent) == [alert, gone], "once a day, and the current version never"
        assert agent.read("app/key?version=previous", 20011).status == 403
        assert len(alerts(agent)) == 2, "who may not read it is told nothing, and nothing of them"


def test_reads_far_above_a_bots_habit_are_told_of_with_the_first_and_the_last():
    day = 86_400
    with Agent(POLICY, secrets=SECRETS) as agent:
        agent.read("app/key", ALICE)
        agent.stop()
        # As after two months of three reads in ten minutes.
        memory = agent.state / "learnt.json"
        kept = json.loads(memory.read_text())
        alice = kept["bots"]["alice"]
        for watched in (alice, *alice["secrets"].values()):
            watched["since"] -= 60 * day
        alice["peaks"] = {"day": int(time.time()) // day, "counts": [3] * len(alice["peaks"]["counts"])}
        memory.write_text(json.dumps(kept))
        agent.start()
        with Bot(agent, ALICE) as bot, bot.connect() as connection:
            for _ in range(100):
                assert ask(connection, KEY).status == 200
        (alert,) = alerts(agent)
        assert (alert["event"], alert["bot"]) == ("alert.unusual_rate", "alice") and 3 < alert["level"] < alert["reads"] < 100
        first, last = alert["evidence"]
        assert last - first >= alert["reads"] - 1


def test_where_programs_are_not_seen_nothing_is_said_of_them():
    with Agent(POLICY + DETECT, secrets=SECRETS, start=False) as agent:
        other = agent.dir / "other"
        shutil.copy(Path(sys.executable).resolve(), other)
        with other.open("ab") as changed:
            changed.write(b"another program")
        agent.start()
        learn(agent, lambda: read_by(agent, None, "app/key"))
        read_by(agent, other, "app/key")
        reads = agent.records(event="secret.read")
        if any(read["peer"]["exe"] for read in reads):
            pytest.skip("this kernel has no Landlock, so programs are seen")
        assert alerts(agent) == []


@pytest.mark.parametrize("spoilt", ["garbage", "loose"])
def test_a_memory_that_cannot_be_trusted_is_told_of_and_learning_begins_anew(spoilt):
    quarantine = DETECT + 'quarantine = ["first_read"]\n'
    with Agent(POLICY + quarantine, secrets=SECRETS) as agent:
        learn(agent, lambda: agent.read("app/key", ALICE))
        agent.stop()
        memory = agent.state / "learnt.json"
        assert json.loads(memory.read_text())["bots"]["alice"]["secrets"].keys() == {"app/key"}
        if spoilt == "garbage":
            memory.write_bytes(b"\xff{" * 100)
        else:
            os.chmod(memory, 0o666)
        agent.start()
        assert "learning begins anew" in agent.log.read_text() and str(memory) in agent.log.read_text()
        learn(agent, lambda: agent.read("app/other", ALICE))
        assert alerts(agent) == []
        assert agent.read("app/third", ALICE).status == 200
        assert agent.read("app/third", ALICE).json()["code"] == "quarantined"
        agent.stop()
        assert json.loads(memory.read_text())["bots"]["alice"]["secrets"].keys() == {"app/other", "app/third"}
