"""Rotations that an upstream does: KV version 2 written by check-and-set, static roles, and AWS's own rotation."""

import json
import os
import subprocess
import threading

import pytest

import liar as lies
from fetching import AWS_KEYS, KV2, POLICY, aws, becomes, becomes_value, fetcher, field, token_file, value, vault
from harness import eventually
from liar import Liar

CANARY = "CANARY-rotated-5e0c2b71"
ROTATOR = POLICY + """
[[bot]]
name = "rotator"
match = { uid = 0, group = "root" }
roles = ["reader", "rotator"]
[role.rotator]
grants = [{ secrets = ["**"], actions = ["rotate"] }]
"""


def rotating(source, secret, driver, every="30d", more="", **kwargs):
    rotation = f'[[rotation]]\nsecret = "{secret}"\nevery = "{every}"\ngrace = "1s"\ndriver = {{ {driver} }}\n{more}'
    return fetcher(source, policy=ROTATOR + rotation, **kwargs)


def rotate(agent, name):
    reply = agent.get(f"/v1/rotate/{name}", method="POST", body=b"")
    assert reply.status == 202, reply
    return reply.json()


def writing(bao):
    """A source that may write what it rotates."""
    bao.policy("agent", KV2 + 'path "secret/data/app/*" { capabilities = ["read", "create", "update"] }')
    return vault(bao, auth={"method": "token_file", "path": token_file(bao, bao.new_token("agent"))})


def test_one_field_gets_a_new_value_and_the_others_stay(bao):
    bao.put("app/db", {"user": "app", "password": CANARY})
    with rotating(writing(bao), "bao/app/db", 'kind = "vault", field = "password", length = 24') as agent:
        eventually(lambda: field(agent, "bao/app/db", "password") == CANARY)
        before = agent.read("bao/app/db").json()["version"]
        assert rotate(agent, "bao/app/db")["version"] is None
        eventually(lambda: field(agent, "bao/app/db", "password") != CANARY)
        assert field(agent, "bao/app/db", "user") == "app" and len(field(agent, "bao/app/db", "password")) == 24
        assert agent.read("bao/app/db").json()["version"].startswith("2-") and before.startswith("1-")
        assert value(agent, "bao/app/db?version=previous&field=password") == CANARY


def test_two_hosts_rotate_once_and_what_the_policy_forbids_is_told(bao):
    bao.put("app/key", CANARY)
    source = writing(bao)
    driver = 'kind = "vault"'
    with rotating(source, "bao/app/key", driver) as one, rotating(source, "bao/app/key", driver) as two:
        for agent in [one, two]:
            becomes(agent, "bao/app/key", CANARY)
        asks = [threading.Thread(target=rotate, args=(agent, "bao/app/key")) for agent in [one, two]]
        for ask in asks:
            ask.start()
        for ask in asks:
            ask.join()
        eventually(lambda: field(one, "bao/app/key") == field(two, "bao/app/key") != CANARY)
        done = lambda agent: json.loads(agent.ops("rotation", "status", "--json").stdout)["rotations"][0]["result"] == "done"
        eventually(lambda: done(one) and done(two))
        assert bao.done("GET", "secret/metadata/app/key")["data"]["current_version"] in (2, 3)
        # Not by the agent's policy any more.
        bao.policy("agent", KV2)
        eventually(lambda: one.get("/v1/rotate/bao/app/key", method="POST", body=b"").status == 202)
        alert = eventually(lambda: one.records(event="alert.rotation_failed"))[-1]
        assert "permission denied" in alert["why"] and alert["step"] == "set"


def test_a_version_older_than_the_span_is_rotated_by_itself(bao):
    bao.put("app/key", CANARY)
    with rotating(writing(bao), "bao/app/key", 'kind = "vault"', every="3s") as agent:
        eventually(lambda: len(agent.records(event="secret.rotated", secret="bao/app/key")) >= 2, 30)
        assert agent.records(event="secret.rotate", surface="schedule")
        assert not agent.records(event="alert.rotation_failed")


def test_the_server_rotates_a_static_role(bao, postgres):
    bao.database(postgres, "1m", "1m")
    url = f"postgresql://{{{{username}}}}:{{{{password}}}}@127.0.0.1:{postgres.port}/postgres?sslmode=disable"
    bao.done("POST", "database/config/pg", {
        "plugin_name": "postgresql-database-plugin", "allowed_roles": "*", "connection_url": url,
        "username": postgres.user, "password": postgres.password,
    })
    subprocess.run(
        ["psql", "-qX", f"host=127.0.0.1 port={postgres.port} user={postgres.user} dbname=postgres", "-c",
         "DROP ROLE IF EXISTS fixed; CREATE ROLE fixed LOGIN"],
        check=True, env=os.environ | {"PGPASSWORD": postgres.password},
    )
    bao.done("POST", "database/static-roles/app", {"db_name": "pg", "username": "fixed", "rotation_period": "24h"})
    bao.policy("lender", 'path "database/static-creds/app" { capabilities = ["read"] }\n'
               'path "database/rotate-role/app" { capabilities = ["update"] }')
    source = vault(
        bao, lease=[{"name": "db/app", "path": "database/static-creds/app"}], prefetch=["db/*"],
        auth={"method": "token_file", "path": token_file(bao, bao.new_token("lender"))},
    )
    with rotating(source, "bao/db/app", 'kind = "vault"') as agent:
        before = eventually(lambda: (p := field(agent, "bao/db/app", "password")) != "not_found" and p)
        assert postgres.lets_in("fixed", before)
        rotate(agent, "bao/db/app")
        after = eventually(lambda: (p := field(agent, "bao/db/app", "password")) != before and p)
        assert postgres.lets_in("fixed", after) and not postgres.lets_in("fixed", before)


@pytest.fixture
def middle(moto):
    with Liar(moto) as middle:
        yield middle


def test_aws_rotates_by_its_function_and_one_that_it_lacks_is_told(moto, middle):
    """Moto runs no function: who stands before it does its work, a moment later."""
    moto.put("app/key", CANARY)
    source = aws(moto, prefetch=["app/**"], endpoint_url=middle.address)
    with rotating(source, "aws/app/key", 'kind = "aws"', env=AWS_KEYS) as agent:
        becomes_value(agent, "aws/app/key", CANARY)
        refusal = {"__type": "InvalidRequestException", "message": "No Lambda rotation function ARN is associated"}
        middle.tell(lies.answers(400, json.dumps(refusal).encode()), "RotateSecret")
        rotate(agent, "aws/app/key")
        alert = eventually(lambda: agent.records(event="alert.rotation_failed"))[0]
        assert "no rotation function" in alert["why"] and alert["step"] == "set"
        assert value(agent, "aws/app/key") == CANARY

        @lies.made_up
        def function(connection, _):
            threading.Timer(1, moto.put, ("app/key", "CANARY-new")).start()
            connection.say(200, json.dumps({"ARN": "arn:aws:x", "Name": "app/key", "VersionId": "x" * 32}).encode())

        middle.tell(function, "RotateSecret")
        rotate(agent, "aws/app/key")
        becomes_value(agent, "aws/app/key", "CANARY-new", 20)
        assert value(agent, "aws/app/key?version=previous") == CANARY
        eventually(lambda: json.loads(agent.ops("rotation", "status", "--json").stdout)["rotations"][0]["result"] == "done")
        assert len(middle.asked("RotateSecret")) == 1
