"""Detection: honeytokens on each surface, scans of names, and the quarantine, by real users."""

import http.server
import json
import os
import re
import threading

import pytest

from harness import ALICE, BOB, CANARY, CAROL, Agent, UnixHTTP, as_user, eventually

STRANGER = 20011
TOKEN, OTHER = "prod/master-key", "prod/admin-key"
POLICY = f"""
[[bot]]
name = "alice"
match = {{ uid = {ALICE} }}
roles = ["reader"]

[[bot]]
name = "carol"
match = {{ uid = {CAROL} }}
roles = ["reader"]

[role.reader]
grants = [{{ secrets = ["app/*", "prod/*"] }}]

[[honeytoken]]
secret = "{TOKEN}"

[[honeytoken]]
secret = "{OTHER}"
"""
QUARANTINE = POLICY + """
[detect]
quarantine = ["honeytoken", "name_scan"]
"""
NATIVE = f"/v1/secrets/{TOKEN}"
AWS = {"X_Amz_Target": "secretsmanager.GetSecretValue", "Content_Type": "application/x-amz-json-1.1"}
SURFACES = {
    "native": lambda agent, uid: agent.get(NATIVE, uid),
    "batch": lambda agent, uid: agent.get("/v1/batch", uid, "POST", json.dumps({"names": [TOKEN]}).encode()),
    "aws_agent": lambda agent, uid: agent.get(f"/secretsmanager/get?secretId={TOKEN}", uid),
    "aws": lambda agent, uid: agent.get("/", uid, "POST", json.dumps({"SecretId": TOKEN}).encode(), **AWS),
    "vault": lambda agent, uid: agent.get(f"/v1/secret/data/{TOKEN}", uid),
}


@pytest.fixture(scope="module")
def telling():
    with Agent(POLICY) as agent:
        yield agent


@pytest.fixture
def holding():
    with Agent(QUARANTINE) as agent:
        yield agent


def value(agent, name=TOKEN, uid=ALICE):
    reply = agent.read(name, uid)
    assert reply.status == 200, reply
    return reply.json()


def test_a_grant_gets_a_value_like_any_other_that_is_its_own_per_name_and_stays(telling):
    told, real = value(telling), value(telling, "app/key")
    assert told.keys() == real.keys() and told["source"] == real["source"] == "local" and told["stale"] is False
    assert re.fullmatch(r"[0-9A-Za-z]{40}", told["value"])
    assert re.fullmatch(r"1-[0-9a-f]{16}", told["version"])
    assert value(telling, OTHER)["value"] != told["value"]
    listed = telling.get("/v1/secrets?prefix=", ALICE).json()["secrets"]
    assert {secret["name"] for secret in listed} == {"app/key", TOKEN, OTHER}
    telling.put("app/more", CANARY)
    assert value(telling) == told
    telling.ops("seal")
    assert telling.read(TOKEN, ALICE).status == 503
    telling.ops("unseal")
    assert value(telling) == told
    telling.restart()
    assert eventually(lambda: value(telling, "app/key")) and value(telling) == told
    with Agent(POLICY) as elsewhere:
        assert value(elsewhere)["value"] != told["value"]


@pytest.mark.parametrize("surface", SURFACES)
def test_on_each_surface_whoever_asks_is_told_of_with_the_record_as_evidence(surface):
    with Agent(POLICY) as agent:
        ask = SURFACES[surface]
        granted, denied = ask(agent, ALICE), ask(agent, BOB)
        held = value(agent)["value"]
        assert held in granted.body.decode() and held not in denied.body.decode()
        mine, others = agent.records(event="alert.honeytoken")
        assert (mine["bot"], mine["peer"]["uid"], others["bot"], others["peer"]["uid"]) == ("alice", ALICE, None, BOB)
        for alert, decision in [(mine, "allow"), (others, "deny")]:
            (seq,) = alert["evidence"]
            (read,) = [r for r in agent.records(event="secret.read") if r["seq"] == seq]
            assert (read["decision"], read["secret"], read["request_id"]) == (decision, TOKEN, alert["request_id"])
            assert (alert["secret"], alert["surface"], alert["quarantined"]) == (TOKEN, read["surface"], False)
        assert not any(held in json.dumps(record) for record in agent.records())


def test_without_a_grant_it_is_the_same_refusal_as_for_any_name(telling):
    without_id = lambda reply: {key: held for key, held in reply.json().items() if key != "request_id"}
    trap, real, absent = (telling.read(name, BOB) for name in [TOKEN, "app/key", "prod/none-here"])
    assert trap.status == 403 and without_id(trap) == without_id(real) == without_id(absent)
    assert trap.headers.keys() == real.headers.keys() and len(trap.body) == len(real.body)


def test_repeated_reads_of_one_connection_are_counted_and_told_once_a_minute():
    with Agent(POLICY) as agent:
        def ask():
            connection = UnixHTTP(agent.socket)
            return [connection.get(NATIVE).status for _ in range(20)]

        assert as_user(ALICE, ask) == [200] * 20
        assert len(agent.records(event="alert.honeytoken")) == 1
        assert len(agent.records(event="secret.read", secret=TOKEN)) == 20


def test_a_secret_of_a_source_with_that_name_is_given_to_nobody():
    with Agent(POLICY, secrets={"app/key": CANARY, TOKEN: "CANARY-real"}) as agent:
        agent.put(TOKEN, "CANARY-real-too")
        assert "CANARY" not in value(agent)["value"]
        assert eventually(lambda: f"{TOKEN} is a honeytoken and a secret of local" in agent.log.read_text())


def test_fifty_denied_names_are_a_scan_and_fortynine_are_none(telling):
    def scan(names):
        connection = UnixHTTP(telling.socket)
        return {connection.get(f"/v1/secrets/{name}").status for name in names}

    assert as_user(STRANGER, scan, [f"x/{n % 49}" for n in range(150)]) == {403}
    assert not telling.records(event="alert.name_scan")
    assert as_user(CAROL, scan, [f"x/{n}" for n in range(50)]) == {403}
    (alert,) = telling.records(event="alert.name_scan")
    assert (alert["peer"]["uid"], alert["bot"], len(alert["evidence"])) == (CAROL, "carol", 50)
    denied = {r["seq"]: r["secret"] for r in telling.records(decision="deny") if r["peer"]["uid"] == CAROL}
    assert {denied[seq] for seq in alert["evidence"]} == {f"x/{n}" for n in range(50)}
    assert value(telling, "app/key", CAROL), "it is only told"


def reads_until_refused(socket):
    """A connection that was there before, a watch and a long poll: how each of them ends."""
    before, watch, poll = (UnixHTTP(socket) for _ in range(3))
    current = before.get("/v1/secrets/app/key")
    watch.request("GET", "/v1/watch?name=app/key")
    stream = watch.getresponse()
    assert b"current" in b"".join(stream.readline() for _ in range(4))
    ends = {}
    wait = {"If-None-Match": current.headers["etag"], "Prefer": "wait=60"}
    polling = threading.Thread(target=lambda: ends.update(poll=poll.ask("GET", "/v1/secrets/app/key", wait).json()["code"]))
    polling.start()
    trap = UnixHTTP(socket).get(NATIVE)
    assert trap.status == 200
    ends["before"] = before.get("/v1/secrets/app/key").json()["code"]
    ends["list"] = before.get("/v1/secrets?prefix=").json()["code"]
    ends["watch"] = stream.read().decode()
    polling.join(30)
    return ends


def test_a_quarantined_bot_gets_nothing_on_any_connection_until_it_is_released(holding):
    ends = as_user(ALICE, reads_until_refused, holding.socket)
    assert (ends["before"], ends["list"], ends["poll"]) == ("quarantined", "quarantined", "quarantined")
    assert "event: closed" in ends["watch"] and "quarantined" in ends["watch"]
    (alert,) = holding.records(event="alert.honeytoken")
    assert alert["quarantined"] is True
    assert {r["reason"] for r in holding.records(bot="alice", decision="deny")} == {"quarantined"}
    assert value(holding, "app/key", CAROL), "another bot with the same role"
    (listed,) = json.loads(holding.ops("quarantine", "list", "--json").stdout)["quarantined"]
    assert (listed["bot"], listed["rule"], [listed["seq"]]) == ("alice", "honeytoken", alert["evidence"])
    holding.restart()
    refused = eventually(lambda: holding.read("app/key", ALICE))
    assert (refused.status, refused.json()["code"]) == (403, "quarantined")
    for surface in ["vault", "aws"]:
        assert SURFACES[surface](holding, ALICE).status in (400, 403)
    assert "alice since " in holding.ops("quarantine", "list").stdout
    assert holding.ops("quarantine", "release", "bob", check=False).returncode == 66
    assert holding.ops("quarantine", "release", "alice").stdout == "released alice\n"
    (released,) = holding.records(event="admin.released", released="alice")
    assert (released["peer"]["uid"], released["decision"]) == (0, "allow")
    assert value(holding, "app/key", ALICE)
    assert json.loads(holding.ops("quarantine", "list", "--json").stdout)["quarantined"] == []
    holding.restart()
    assert eventually(lambda: value(holding, "app/key"))
    alerts = len(holding.records(event="alert.honeytoken", quarantined=True))
    assert holding.read(TOKEN, ALICE).status == 200 and holding.read("app/key", ALICE).status == 403
    assert len(holding.records(event="alert.honeytoken", quarantined=True)) == alerts + 1, "it does it again"


def test_who_is_no_bot_is_told_of_and_nothing_is_quarantined(holding):
    assert holding.read(TOKEN, BOB).status == 403
    (alert,) = holding.records(event="alert.honeytoken")
    assert (alert["bot"], alert["quarantined"]) == (None, False)
    assert json.loads(holding.ops("quarantine", "list", "--json").stdout)["quarantined"] == []


def test_only_operators_release(holding):
    assert holding.read(TOKEN, ALICE).status == 200
    ask = lambda: UnixHTTP(holding.admin_socket).ask("POST", "/v1/quarantine/release?bot=alice")
    assert as_user(ALICE, ask).status == 403
    assert holding.read("app/key", ALICE).status == 403
    assert not holding.records(event="admin.released")


# Telling somebody.


@pytest.fixture
def webhook():
    """A server that fails at first; what was posted to it."""
    posted = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            posted.append((self.path, self.headers["Content-Type"], json.loads(body)))
            self.send_response(503 if len(posted) == 1 else 204)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port, posted
    server.shutdown()
    server.server_close()


def notifying(notify):
    return f"{POLICY}\n[detect]\nnotify = {{ {notify} }}\n"


def test_a_webhook_gets_the_record_again_after_it_failed(webhook):
    port, posted = webhook
    with Agent(notifying(f'webhook = "http://127.0.0.1:{port}/hook?token=CANARY-hook"')) as agent:
        held = value(agent)["value"]
        eventually(lambda: len(posted) == 2)
        (alert,) = agent.records(event="alert.honeytoken")
        assert posted == [("/hook?token=CANARY-hook", "application/json", alert)] * 2
        assert held not in json.dumps(posted)
        log = agent.log.read_text()
        assert "another try" in log and "503" in log and "CANARY" not in log
        metrics = UnixHTTP(agent.admin_socket).get("/v1/metrics").body.decode()
        assert 'keyhatch_alerts_total{alert="honeytoken"} 1' in metrics
        assert 'keyhatch_notifications_total{result="sent"} 1' in metrics


def test_a_program_gets_each_record_on_its_standard_input_outside_of_the_daemon():
    with Agent(start=False) as agent:
        page, paged = agent.dir / "page", agent.dir / "paged"
        page.write_text(f"#!/bin/sh\ncat >> {paged}\necho >> {paged}\n")
        os.chmod(page, 0o777)
        agent.write_policy(notifying(f'exec = ["{page}"]'))
        done = agent.verb("check", "--config", agent.config, check=False)
        assert done.returncode == 78 and str(page) in done.stderr, "anyone may write it"
        os.chmod(page, 0o755)
        agent.start()
        assert agent.read(TOKEN, ALICE).status == 200 and agent.read(OTHER, BOB).status == 403
        eventually(lambda: paged.exists() and paged.read_text().count("\n") == 2)
        assert [json.loads(line) for line in paged.read_text().splitlines()] == agent.records(event="alert.honeytoken")


def test_a_bot_that_is_released_and_does_it_again_on_its_old_connection_is_quarantined_again():
    root = '[[bot]]\nname = "root"\nmatch = { uid = 0 }\nroles = ["reader"]\n'
    with Agent(QUARANTINE + root) as agent:
        connection = agent.connect()
        for alerts in [1, 2]:
            assert [connection.get(path).status for path in [NATIVE, NATIVE, "/v1/secrets/app/key"]] == [200, 403, 403]
            assert len(agent.records(event="alert.honeytoken", quarantined=True)) == alerts
            agent.ops("quarantine", "release", "root")
