"""The source `vault` against a real OpenBao: logins, engines, versions, rotations, leases, and whose a name is."""

import base64
import json
import re
import threading
import time

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from fetching import KV2, becomes, but_not, fetcher, field, leaks, state, told, token_file, trouble, value, vault, write_secret
from harness import ALICE, BOB, ROOT, UnixHTTP, eventually
from inside import Scan, disguises

CANARY = "CANARY-vault-9d41c7e0"


@pytest.fixture
def agent(bao):
    """An agent that holds app/ of the mount secret/ ready."""
    bao.put("app/key", CANARY)
    with fetcher(vault(bao, prefetch=["app/**"])) as agent:
        becomes(agent, "bao/app/key", CANARY)
        yield agent


# Logins.


def test_a_token_from_a_file_logs_in_and_is_read_again_when_the_file_changes(bao):
    bao.policy("agent", KV2)
    old = bao.new_token("agent")
    path = token_file(bao, old)
    bao.put("app/key", CANARY)
    with fetcher(vault(bao, auth={"method": "token_file", "path": path})) as agent:
        becomes(agent, "bao/app/key", CANARY)
        new = bao.new_token("agent")
        token_file(bao, new)
        bao.done("POST", "auth/token/revoke", {"token": old})
        bao.put("app/key", "after")
        becomes(agent, "bao/app/key", "after")
        eventually(lambda: trouble(agent) is None)
        assert leaks(agent, old, new, CANARY) == []


def test_a_token_is_renewed_ahead_of_its_end(bao):
    bao.policy("agent", KV2)
    bao.put("app/key", "0")
    token = bao.new_token("agent", ttl="3s", period="3s")
    auth = {"method": "token_file", "path": token_file(bao, token)}
    with fetcher(vault(bao, auth=auth)) as agent:
        becomes(agent, "bao/app/key", "0")
        # Three lives of the token.
        for turn in range(1, 10):
            bao.put("app/key", str(turn))
            becomes(agent, "bao/app/key", str(turn))
        assert told(agent, "source.degraded") == []
        renewed = [ask for ask in bao.requests() if "renew-self" in ask]
        # Not at every look either.
        assert 3 <= len(renewed) <= 30, bao.requests()


def test_approle_logs_in_once_and_keeps_its_token(bao):
    bao.policy("agent", KV2)
    role_id = bao.approle("agent")
    secret_id = bao.secret_id()
    path = write_secret(bao.dir / "secret-id", secret_id + "\n")
    bao.put("app/key", CANARY)
    auth = {"method": "approle", "role_id": role_id, "secret_id": f"file:{path}"}
    with fetcher(vault(bao, auth=auth)) as agent:
        becomes(agent, "bao/app/key", CANARY)
        bao.put("app/key", "after")
        becomes(agent, "bao/app/key", "after")
        assert len(bao.requests("auth/approle/login")) == 1
        assert leaks(agent, secret_id, CANARY) == []


def test_approle_takes_a_wrapped_secret_id_once(bao):
    bao.policy("agent", KV2)
    role_id = bao.approle("agent")
    wrapping = bao.secret_id(wrapped=True)
    path = write_secret(bao.dir / "wrapped", wrapping)
    bao.put("app/key", CANARY)
    auth = {"method": "approle", "role_id": role_id, "secret_id": f"file:{path}", "wrapped": True}
    with fetcher(vault(bao, auth=auth)) as agent:
        becomes(agent, "bao/app/key", CANARY)
        # Its token is taken from it: it still has the secret id that was in the wrapping.
        bao.revoke_logins("approle")
        bao.put("app/key", "after")
        becomes(agent, "bao/app/key", "after")
        assert len(bao.requests("sys/wrapping/unwrap")) == 1
        assert leaks(agent, wrapping, CANARY) == []


def test_a_wrapped_secret_id_that_somebody_else_unwrapped_is_told_loudly(bao):
    bao.policy("agent", KV2)
    role_id = bao.approle("agent")
    wrapping = bao.secret_id(wrapped=True)
    bao.done("POST", "sys/wrapping/unwrap", {"token": wrapping})
    path = write_secret(bao.dir / "wrapped", wrapping)
    auth = {"method": "approle", "role_id": role_id, "secret_id": f"file:{path}", "wrapped": True}
    with fetcher(vault(bao, auth=auth, prefetch=["app/**"])) as agent:
        assert "wrap" in eventually(lambda: trouble(agent))
        assert value(agent, "bao/app/key") == "upstream_unavailable"
        # A fresh one is taken up without a restart.
        write_secret(path, bao.secret_id(wrapped=True))
        bao.put("app/key", CANARY)
        becomes(agent, "bao/app/key", CANARY, seconds=20)


def jwt(key, **claims):
    """A JWT signed with ES256."""
    part = lambda data: base64.urlsafe_b64encode(data).rstrip(b"=")
    signed = part(b'{"alg":"ES256","typ":"JWT"}') + b"." + part(json.dumps(claims).encode())
    r, s = decode_dss_signature(key.sign(signed, ec.ECDSA(hashes.SHA256())))
    return (signed + b"." + part(r.to_bytes(32, "big") + s.to_bytes(32, "big"))).decode()


def test_a_jwt_from_a_file_logs_in_and_is_read_anew_for_each_login(bao):
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    ).decode()
    bao.policy("agent", KV2)
    bao.auth("jwt")
    bao.done("POST", "auth/jwt/config", {"jwt_validation_pubkeys": [pem]})
    bao.done("POST", "auth/jwt/role/host", {
        "role_type": "jwt", "user_claim": "sub", "bound_audiences": ["bao"], "token_policies": "agent",
        "clock_skew_leeway": -1, "expiration_leeway": -1,
    })
    token = lambda life: jwt(key, sub="host-1", aud="bao", iat=int(time.time()), exp=int(time.time()) + life)
    first = token(600)
    path = write_secret(bao.dir / "jwt", first)
    bao.put("app/key", CANARY)
    with fetcher(vault(bao, auth={"method": "jwt", "role": "host", "path": path})) as agent:
        becomes(agent, "bao/app/key", CANARY)
        second = token(600)
        write_secret(path, second)
        bao.revoke_logins("jwt")
        bao.put("app/key", "after")
        becomes(agent, "bao/app/key", "after")
        assert leaks(agent, first, second, CANARY) == []


def test_a_client_certificate_logs_in(bao):
    mine = bao.authority.client("host-1")
    bao.policy("agent", KV2)
    bao.auth("cert")
    bao.done("POST", "auth/cert/certs/hosts", {
        "certificate": bao.authority.file.read_text(), "allowed_common_names": ["host-1"], "token_policies": "agent",
    })
    bao.put("app/key", CANARY)
    keys = {"client_cert": mine.certificate, "client_key": f"file:{mine.key}", "auth": {"method": "cert", "name": "hosts"},
            "prefetch": ["app/**"]}
    with fetcher(vault(bao, **keys)) as agent:
        becomes(agent, "bao/app/key", CANARY)
        assert leaks(agent, mine.key.read_text()[40:80], CANARY) == []
    other = bao.authority.client("host-2")
    keys |= {"client_cert": other.certificate, "client_key": f"file:{other.key}"}
    with fetcher(vault(bao, **keys)) as agent:
        assert "cert" in eventually(lambda: trouble(agent))
        assert value(agent, "bao/app/key") == "upstream_unavailable"


def test_a_login_mounted_elsewhere_and_a_namespace(bao):
    team = {"X_Vault_Namespace": "team"}
    bao.done("POST", "sys/namespaces/team")
    bao.kv(**team)
    bao.put("app/key", CANARY, **team)
    bao.done("PUT", "sys/policies/acl/agent", {"policy": KV2}, **team)
    bao.done("POST", "sys/auth/machines", {"type": "approle"}, **team)
    bao.done("POST", "auth/machines/role/agent", {"token_policies": "agent"}, **team)
    role_id = bao.done("GET", "auth/machines/role/agent/role-id", **team)["data"]["role_id"]
    secret_id = bao.done("POST", "auth/machines/role/agent/secret-id", {}, **team)["data"]["secret_id"]
    path = write_secret(bao.dir / "secret-id", secret_id)
    auth = {"method": "approle", "mount": "machines", "role_id": role_id, "secret_id": f"file:{path}"}
    with fetcher(vault(bao, namespace="team", auth=auth)) as agent:
        becomes(agent, "bao/app/key", CANARY)


# Engines, versions, rotations.


def test_kv2_is_served_with_its_versions(agent, bao):
    first = agent.read("bao/app/key")
    assert first.json()["version"].startswith("1-") and first.json()["source"] == "bao"
    assert first.json()["stale"] is False
    assert json.loads(first.json()["value"]) == {"value": CANARY}
    assert agent.read("bao/app/key?version=previous").status == 404
    bao.put("app/key", {"user": "u", "password": "p"})
    eventually(lambda: field(agent, "bao/app/key", "password") == "p")
    second = agent.read("bao/app/key").json()
    assert second["version"].startswith("2-")
    assert field(agent, "bao/app/key", "user") == "u"
    previous = agent.read("bao/app/key?version=previous").json()
    assert (previous["version"], json.loads(previous["value"])) == (first.json()["version"], {"value": CANARY})
    assert [r["version"] for r in agent.records(event="secret.rotated")] == [second["version"]]


def test_the_previous_version_of_one_that_was_cold_is_fetched_from_the_upstream(bao):
    bao.put("app/key", "first")
    bao.put("app/key", "second")
    with fetcher(vault(bao)) as agent:
        becomes(agent, "bao/app/key", "second")
        assert json.loads(value(agent, "bao/app/key?version=previous")) == {"value": "first"}
        assert agent.read("bao/app/key?version=previous").json()["version"].startswith("1-")


def test_values_of_every_shape_come_back_as_they_are(bao):
    shapes = {
        "numbers": {"a": 1, "b": -1.5, "big": 2**53}, "nested": {"a": {"b": [1, None, True, "x"]}},
        "unicode": {"k": 'ü "quoted" \\ \n \u0000 🔑'}, "empty": {}, "large": {"value": "x" * 60_000},
    }
    for name, data in shapes.items():
        bao.put(f"app/{name}", data)
    with fetcher(vault(bao)) as agent:
        eventually(lambda: value(agent, "bao/app/empty") == "{}")
        for name, data in shapes.items():
            assert json.loads(value(agent, f"bao/app/{name}")) == data
        assert field(agent, "bao/app/numbers", "big") == str(2**53)


def test_a_value_larger_than_a_secret_can_be_is_refused_and_others_are_served(bao):
    bao.put("app/large", "x" * 70_000)
    bao.put("app/key", CANARY)
    with fetcher(vault(bao, prefetch=["app/**"])) as agent:
        becomes(agent, "bao/app/key", CANARY)
        assert agent.read("bao/app/large").status in (404, 503)
        bao.put("app/large", "fits")
        becomes(agent, "bao/app/large", "fits")


def test_several_mounts_of_both_kinds_under_one_login(bao):
    bao.kv("old", version=1)
    bao.kv("team/kv")
    bao.put("app/key", "of secret")
    bao.put1("app/key", "of old", "old")
    bao.put("app/key", "of team", "team/kv")
    bao.policy("agent", KV2 + KV2.replace("secret/", "team/kv/") + 'path "old/*" { capabilities = ["read", "list"] }')
    auth = {"method": "token_file", "path": token_file(bao, bao.new_token("agent"))}
    mounts = {"secret": "", "old": "old/", "team/kv": "team/"}
    with fetcher(vault(bao, auth=auth, mounts=mounts, prefetch=["**"])) as agent:
        names = {"bao/app/key": "of secret", "bao/old/app/key": "of old", "bao/team/app/key": "of team"}
        for name, want in names.items():
            becomes(agent, name, want)
        listed = [s["name"] for s in agent.get("/v1/secrets?prefix=bao/").json()["secrets"]]
        assert sorted(listed) == sorted(names)
        # KV v1 counts no versions and keeps none: what it had before is what the agent saw.
        first = agent.read("bao/old/app/key").json()["version"]
        bao.put1("app/key", "next of old", "old")
        becomes(agent, "bao/old/app/key", "next of old")
        assert agent.read("bao/old/app/key").json()["version"] != first
        assert json.loads(value(agent, "bao/old/app/key?version=previous")) == {"value": "of old"}
        bao.done("DELETE", "old/app/key")
        eventually(lambda: value(agent, "bao/old/app/key") == "not_found")
        assert field(agent, "bao/app/key") == "of secret"


def test_a_rotation_wakes_a_long_poll_that_waits(agent, bao):
    version = agent.read("bao/app/key").json()["version"]
    answers = []
    ask = lambda: answers.append(agent.read("bao/app/key", If_None_Match=f'"{version}"', Prefer="wait=60"))
    poll = threading.Thread(target=ask)
    poll.start()
    eventually(lambda: len(agent.records(event="secret.read", not_modified=True)) == 1)
    bao.put("app/key", "rotated")
    poll.join()
    assert [(a.status, json.loads(a.json()["value"])) for a in answers] == [(200, {"value": "rotated"})]
    [told] = agent.records(event="secret.rotated")
    assert told["secret"] == "bao/app/key" and told["version"] == answers[0].json()["version"]


def test_unchanged_secrets_are_not_fetched_again(agent, bao):
    # What the start may still ask for has been asked when the next sweep has found something.
    bao.put("app/other", "first")
    becomes(agent, "bao/app/other", "first")
    bao.forget_requests()
    for turn in range(3):
        bao.put("app/other", str(turn))
        becomes(agent, "bao/app/other", str(turn))
    assert bao.requests("secret/data/app/key") == []


def test_new_names_of_prefetched_folders_appear_and_deep_ones_too(agent, bao):
    bao.put("app/a/b/c", "deep")
    bao.put("elsewhere/x", "cold")
    eventually(lambda: "bao/app/a/b/c" in agent.get("/v1/secrets?prefix=bao/").body.decode())
    names = [s["name"] for s in agent.get("/v1/secrets?prefix=bao/").json()["secrets"]]
    assert names == ["bao/app/a/b/c", "bao/app/key"]
    assert bao.requests("elsewhere") == []
    assert field(agent, "bao/elsewhere/x") == "cold"


def test_a_cold_name_is_fetched_once_and_then_kept(agent, bao):
    bao.put("cold/key", "cold")
    assert field(agent, "bao/cold/key") == "cold"
    asked = lambda: bao.requests("secret/data/cold/key")
    assert len(asked()) == 1
    for _ in range(50):
        assert field(agent, "bao/cold/key") == "cold"
    assert len(asked()) == 1
    bao.put("cold/key", "colder")
    becomes(agent, "bao/cold/key", "colder")


def test_200_bots_that_ask_for_one_cold_name_at_once_are_one_request(bao):
    bao.put("cold/key", CANARY)
    with fetcher(vault(bao, timeout="30s")) as agent:
        eventually(lambda: state(agent)["last_success"])
        bao.forget_requests()
        bao.pause()
        bots = [agent.connect() for _ in range(200)]
        for bot in bots:
            bot.putrequest("GET", "/v1/secrets/bao/cold/key", skip_host=True)
            bot.putheader("Host", "x")
            bot.endheaders()
        eventually(lambda: agent.status()["connections"] == 200)
        # While they wait, others are answered.
        assert value(agent, "app/key").startswith("CANARY")
        bao.resume()
        answers = [bot.getresponse() for bot in bots]
        assert {(a.status, a.read().count(CANARY.encode())) for a in answers} == {(200, 1)}
        assert len(bao.requests("secret/data/cold/key")) == 1


def test_1000_absent_names_are_a_bounded_number_of_requests(agent, bao):
    bao.forget_requests()
    bot = agent.connect()
    for _ in range(20):
        assert bot.get("/v1/secrets/bao/absent/same").status == 404
    assert len(bao.requests("absent/same")) <= 3
    codes = {bot.get(f"/v1/secrets/bao/absent/{n}").status for n in range(1_000)}
    assert codes <= {404, 429, 503}
    # Far fewer than names: what is left over in a burst, and the rate since.
    assert len(bao.requests("absent/")) < 400
    # Who has real work is not in the way of it.
    assert field(agent, "bao/app/key") == CANARY
    bao.put("app/key", "after")
    becomes(agent, "bao/app/key", "after")


def test_a_name_that_was_absent_is_there_once_the_upstream_has_it(agent, bao):
    assert value(agent, "bao/app/late") == value(agent, "bao/cold/late") == "not_found"
    bao.put("app/late", "here")
    bao.put("cold/late", "here")
    for name in ["bao/app/late", "bao/cold/late"]:
        becomes(agent, name, "here", seconds=15)


@pytest.mark.parametrize("how", ["deleted", "purged", "destroyed"])
def test_what_is_deleted_upstream_ends_at_once_and_comes_back(agent, bao, how):
    bao.put("cold/key", "cold")
    becomes(agent, "bao/cold/key", "cold")
    for path in ["app/key", "cold/key"]:
        match how:
            case "deleted":
                bao.delete(path)
            case "purged":
                bao.purge(path)
            case "destroyed":
                bao.done("POST", f"secret/destroy/{path}", {"versions": [1]})
    for name in ["bao/app/key", "bao/cold/key"]:
        eventually(lambda: value(agent, name) == "not_found")
    assert {r["secret"] for r in agent.records(event="secret.removed")} == {"bao/app/key", "bao/cold/key"}
    assert trouble(agent) is None, "an answer is no trouble"
    assert agent.read("bao/app/key?version=previous").status == 404
    bao.put("app/key", "back")
    becomes(agent, "bao/app/key", "back")


def test_what_the_login_may_no_longer_read_ends_at_once_and_is_no_trouble_of_others(agent, bao):
    bao.put("app/other", "other")
    becomes(agent, "bao/app/other", "other")
    bao.policy("agent", but_not(KV2, "app/key"))
    eventually(lambda: value(agent, "bao/app/key") == "not_found")
    assert field(agent, "bao/app/other") == "other"
    bao.policy("agent", KV2)
    becomes(agent, "bao/app/key", CANARY)


def test_bots_without_a_grant_cause_no_request_at_all(agent, bao):
    bao.forget_requests()
    for name in ["bao/app/key", "bao/cold/x", "bao/absent"]:
        assert value(agent, name, BOB) == "denied"
    assert value(agent, "bao/cold/asked", ALICE) == "not_found"
    assert len(bao.requests("cold/asked")) >= 1
    assert bao.requests("cold/x") == bao.requests("absent") == []


# Leases.


def leased(bao, **keys):
    bao.policy("lender", 'path "database/creds/ro" { capabilities = ["read"] }\n'
               'path "sys/leases/renew" { capabilities = ["update"] }\npath "sys/leases/revoke" { capabilities = ["update"] }')
    auth = {"method": "token_file", "path": token_file(bao, bao.new_token("lender"), "lender")}
    lease = [{"name": "db/ro", "path": "database/creds/ro"}]
    return vault(bao, "pg", auth=auth, mounts={}, lease=lease, **keys)


def credential(agent):
    reply = agent.read("pg/db/ro")
    assert reply.status == 200, reply
    return json.loads(reply.json()["value"])


def test_a_database_credential_works_over_three_lease_times_without_a_failed_read(bao, postgres):
    bao.database(postgres, "6s", "10s")
    with fetcher(leased(bao)) as agent:
        eventually(lambda: agent.read("pg/db/ro").status == 200)
        users, end = [], time.monotonic() + 3 * 10 + 2
        while time.monotonic() < end:
            got = credential(agent)
            assert postgres.lets_in(got["username"], got["password"]), (users, got["username"])
            if got["username"] not in users:
                users.append(got["username"])
        assert len(users) >= 3
        # Readers were told of each, and the old ones are given back.
        assert len(agent.records(event="secret.rotated", secret="pg/db/ro")) >= len(users) - 1
        eventually(lambda: len(bao.listed("sys/leases/lookup/database/creds/ro")) <= 2)
        assert leaks(agent, got["password"]) == []


def test_a_leased_value_is_never_served_past_its_lease(bao, postgres):
    bao.database(postgres, "3s", "3s")
    bao.put("app/key", CANARY)
    with fetcher(leased(bao, max_stale="1h"), vault(bao)) as agent:
        eventually(lambda: agent.read("pg/db/ro").status == 200)
        becomes(agent, "bao/app/key", CANARY)
        bao.pause()
        eventually(lambda: value(agent, "pg/db/ro") == "upstream_unavailable", seconds=20)
        # The lease is over; what is not leased is served on.
        assert field(agent, "bao/app/key") == CANARY
        bao.resume()
        eventually(lambda: agent.read("pg/db/ro").status == 200, seconds=20)
        got = credential(agent)
        assert postgres.lets_in(got["username"], got["password"])


def test_a_lease_that_is_revoked_upstream_is_replaced(bao, postgres):
    bao.database(postgres, "3s", "1h")
    with fetcher(leased(bao)) as agent:
        eventually(lambda: agent.read("pg/db/ro").status == 200)
        old = credential(agent)["username"]
        bao.done("PUT", "sys/leases/revoke-prefix/database/creds/ro")
        eventually(lambda: credential(agent)["username"] != old)
        got = credential(agent)
        assert postgres.lets_in(got["username"], got["password"])


# Whose a name is.


def test_the_longest_prefix_owns_a_name_and_what_is_under_anothers_is_refused_with_an_alert(bao):
    bao.put("app/key", "of bao")
    secrets = {"app/key": "of the store", "bao/app/key": "an impostor"}
    with fetcher(vault(bao, prefetch=["**"]), secrets=secrets) as agent:
        becomes(agent, "bao/app/key", "of bao")
        assert value(agent, "app/key") == "of the store"
        [alert] = told(agent, "alert.source_rejected", "local")
        assert "bao/app/key" in json.dumps(alert)


def test_of_two_upstreams_the_inner_prefix_wins_and_the_outer_is_told_of(bao):
    bao.kv("inner")
    bao.put("team/key", "of the outer", "secret")
    bao.put("other", "of the outer", "secret")
    bao.put("key", "of the inner", "inner")
    bao.policy("agent", KV2 + KV2.replace("secret/", "inner/"))
    auth = {"method": "token_file", "path": token_file(bao, bao.new_token("agent"))}
    outer = vault(bao, "outer", prefix="bao/", auth=auth, prefetch=["**"])
    inner = vault(bao, "inner", prefix="bao/team/", auth=auth, mounts={"inner": ""}, prefetch=["**"])
    with fetcher(outer, inner) as agent:
        becomes(agent, "bao/team/key", "of the inner")
        becomes(agent, "bao/other", "of the outer")
        eventually(lambda: told(agent, "alert.source_rejected", "outer"))
        assert "bao/team/key" in json.dumps(told(agent, "alert.source_rejected", "outer"))
        assert field(agent, "bao/team/key") == "of the inner"


def test_a_name_that_cannot_be_held_is_skipped_with_one_alert(bao):
    bao.put("app/with space", "x")
    bao.put("app/key", CANARY)
    with fetcher(vault(bao, prefetch=["app/**"])) as agent:
        becomes(agent, "bao/app/key", CANARY)
        for turn in range(3):
            bao.put("app/key", str(turn))
            becomes(agent, "bao/app/key", str(turn))
        [alert] = told(agent, "alert.source_rejected")
        assert "with space" in json.dumps(alert)
        assert trouble(agent) is None


# What is kept where.


def test_a_second_after_a_fetch_no_readable_copy_is_left(bao):
    secrets = {f"app/{n}": f"{CANARY}-{n}-{'x' * n}" for n in range(0, 4_000, 200)}
    for path, text in [*secrets.items(), ("cold/key", CANARY)]:
        bao.put(path, text)
    # While a connection is open its buffers hold the token: so it looks once, and not each second.
    with fetcher(vault(bao, prefetch=["app/**"], refresh="1h")) as agent:
        for path, text in secrets.items():
            becomes(agent, f"bao/{path}", text)
        becomes(agent, "bao/cold/key", CANARY)
        token = (bao.dir / "token").read_bytes()
        # What is promised is a second after the fetch.
        time.sleep(1)
        scan = Scan(agent.pid, disguises(CANARY) | {"token": token, "no secret": b"/var/lib/keyhatch"})
        assert scan.counts.pop("no secret") > 0 and scan.secret_refused > 0, "the search proves nothing"
        assert set(scan.counts.values()) == {0}, (scan.counts, scan.where)


def test_seal_forgets_values_and_token_and_unseal_logs_in_anew(agent, bao):
    bao.forget_requests()
    agent.ops("seal")
    assert value(agent, "bao/app/key") == "sealed" and agent.status()["secret_memory"]["used"] == 0
    bao.put("app/key", "while sealed")
    wanted = {"canary": CANARY.encode(), "token": (bao.dir / "token").read_bytes()}
    assert Scan(agent.pid, wanted).counts == {"canary": 0, "token": 0}
    assert value(agent, "bao/app/key") == value(agent, "bao/cold/key") == "sealed"
    assert bao.requests("cold/key") == []
    agent.ops("unseal")
    becomes(agent, "bao/app/key", "while sealed")
    # Twice more, quickly, and it still serves.
    for _ in range(2):
        agent.ops("seal")
        agent.ops("unseal")
    becomes(agent, "bao/app/key", "while sealed")


def test_the_store_verbs_refuse_an_upstreams_names(agent):
    for name in ["bao/app/key", "bao/new"]:
        done = agent.put(name, "x", check=False)
        assert done.returncode == 1 and "bao" in done.stderr
    assert field(agent, "bao/app/key") == CANARY


# How it stands.


def test_status_health_and_metrics_tell_how_the_source_is(agent, bao):
    eventually(lambda: state(agent)["last_success"])
    well = state(agent)
    assert well["secrets"] == 1 and well["trouble"] is None and well["loaded"]
    assert agent.get("/v1/health").status == 200
    bao.stop()
    eventually(lambda: trouble(agent))
    metrics = UnixHTTP(agent.admin_socket).get("/v1/metrics").body.decode()
    assert re.search(r'^keyhatch_source_[a-z_]+\{.*source="bao".*\} ', metrics, re.M)
    assert bao.address.removeprefix("https://") in trouble(agent)
    assert agent.ops("status").stdout.count("bao") >= 1
    bao.start()
    eventually(lambda: trouble(agent) is None, seconds=20)


# The docs.


def pasted(page, kind):
    """The first block of that kind on a page of docs/sources."""
    return re.search(rf"```{kind}\n(.*?)```", (ROOT / "docs" / "sources" / page).read_text(), re.S)[1]


def test_the_policy_in_the_docs_is_all_that_every_feature_needs(bao, postgres):
    bao.database(postgres, "4s", "6s")
    bao.kv("kv1", version=1)
    bao.put1("app/old", "of KV v1", "kv1")
    bao.put("app/key", "first")
    bao.put("app/key", "second")
    bao.policy("docs", pasted("vault.md", "hcl"))
    # Without the policy `default`: that page and no more.
    token = bao.new_token("docs", ttl="20s", period="20s", no_default_policy=True)
    auth = {"method": "token_file", "path": token_file(bao, token)}
    lease = [{"name": "db/ro", "path": "database/creds/ro"}]
    mounts = {"secret": "", "kv1": "old/"}
    with fetcher(vault(bao, auth=auth, lease=lease, mounts=mounts, prefetch=["app/**", "old/app/**"])) as agent:
        becomes(agent, "bao/app/key", "second")
        becomes(agent, "bao/old/app/old", "of KV v1")
        assert json.loads(value(agent, "bao/app/key?version=previous")) == {"value": "first"}
        users, end = set(), time.monotonic() + 10
        while time.monotonic() < end:
            got = json.loads(value(agent, "bao/db/ro"))
            assert postgres.lets_in(got["username"], got["password"])
            users.add(got["username"])
        assert len(users) >= 2
        bao.put("app/key", "third")
        becomes(agent, "bao/app/key", "third")
        bao.delete("app/key")
        eventually(lambda: value(agent, "bao/app/key") == "not_found")
        assert told(agent, "source.degraded") == []
        assert bao.requests(refused=True) == []
