"""The native API: values, lists, batches, watches, and what is refused."""

import json

from harness import ALICE, BOB, CANARY


def test_exact_bytes_for_one_and_the_same_refusal_for_the_other(agent):
    reply = agent.read("app/key", ALICE)
    assert reply.status == 200
    assert reply.json()["value"] == CANARY
    raw = agent.read("app/key", ALICE, Accept="application/octet-stream")
    assert raw.body == CANARY.encode()
    assert raw.headers["keyhatch-version"] == reply.json()["version"]
    denied, absent = agent.read("app/key", BOB), agent.read("app/none", BOB)
    assert denied.status == absent.status == 403
    without_id = lambda reply: {k: v for k, v in reply.json().items() if k != "request_id"}
    assert without_id(denied) == without_id(absent)
    assert len(denied.body) == len(absent.body)
    assert {k for k in denied.headers} == {k for k in absent.headers}
    assert CANARY not in json.dumps(denied.json())


def test_root_gets_nothing_without_a_grant(agent):
    assert agent.read("app/key").status == 403
    record = agent.records(event="secret.read", decision="deny")[-1]
    assert record["reason"] == "no_bot"
    assert record["peer"]["uid"] == 0


def test_absent_is_told_to_those_who_may_know(agent):
    reply = agent.read("app/none", ALICE)
    assert (reply.status, reply.json()["code"]) == (404, "not_found")
    assert agent.read("other/none", ALICE).status == 403
