"""Upstreams that are down, slow, wrong or lying: the last good value serves on, the state is told once, and all of it passes."""

import datetime
import json
import time

import pytest

import liar as lies
from fetching import KV2, becomes, fetcher, field, is_stale, leaks, state, told, token_file, trouble, value, vault, write_secret
from harness import CANARY as LOCAL
from harness import eventually
from liar import LIE, Liar
from load import OTHER, REFUSED, VALUES, Load
from upstreams import BaoCluster

CANARY = "CANARY-outage-6a0f83d5"
DAY = datetime.timedelta(days=1)


def degraded(agent):
    return bool(trouble(agent))


def one_outage(agent, source="bao"):
    """It was told once that it began, and once that it ended."""
    return (len(told(agent, "source.degraded", source)), len(told(agent, "source.recovered", source))) == (1, 1)


@pytest.fixture
def agent(bao, liar):
    """An agent that fetches through the liar, which tells the truth so far."""
    bao.put("app/key", CANARY)
    bao.put("app/other", "other")
    with fetcher(vault(bao, address=liar.address, prefetch=["app/**"], max_stale="1h")) as agent:
        becomes(agent, "bao/app/key", CANARY)
        becomes(agent, "bao/app/other", "other")
        yield agent


# Outages of the real ones.


@pytest.fixture(scope="module")
def cluster():
    with BaoCluster() as cluster:
        leader = cluster.leader()
        leader.kv()
        leader.policy("agent", KV2)
        yield cluster


def of_cluster(cluster, **keys):
    leader = cluster.leader()
    token = token_file(leader, leader.new_token("agent"))
    keys = {"prefetch": ["app/**"], "auth": {"method": "token_file", "path": token}} | keys
    return vault(leader, address=cluster.addresses, ca_file=cluster.authority.file, **keys)


def test_the_leader_killed_under_load_fails_no_read_and_rotations_resume(cluster):
    cluster.start()
    cluster.leader().put("app/key", CANARY)
    with fetcher(of_cluster(cluster)) as agent:
        becomes(agent, "bao/app/key", CANARY)
        with Load(agent, 8, uid=0, path="/v1/secrets/bao/app/key") as load:
            eventually(lambda: load.count(VALUES) > 500)
            old = cluster.leader()
            old.kill()
            new = cluster.leader()
            assert new is not old
            new.put("app/key", "after the election")
            becomes(agent, "bao/app/key", "after the election", seconds=30)
            before = load.count(VALUES)
            eventually(lambda: load.count(VALUES) > before + 500)
        assert load.count(REFUSED) == load.count(OTHER) == 0
        # A cold name, too, is found by way of who leads now.
        new.put("cold/key", "cold")
        assert field(agent, "bao/cold/key") == "cold"
        eventually(lambda: not trouble(agent))
        old.start()


def test_all_three_down_is_stale_then_unavailable_and_one_record_each(cluster):
    cluster.start()
    cluster.leader().put("app/key", CANARY)
    with fetcher(of_cluster(cluster, max_stale="6s")) as agent:
        becomes(agent, "bao/app/key", CANARY)
        assert not is_stale(agent, "bao/app/key")
        for node in cluster.nodes:
            node.kill()
        eventually(lambda: is_stale(agent, "bao/app/key"))
        assert field(agent, "bao/app/key") == CANARY
        assert state(agent)["secrets"] == 1
        eventually(lambda: value(agent, "bao/app/key") == "upstream_unavailable", seconds=20)
        late = agent.read("bao/app/key")
        assert (late.status, late.json()["code"]) == (503, "upstream_unavailable")
        denied = agent.records(event="secret.read", reason="upstream_unavailable")
        assert denied and {r["secret"] for r in denied} == {"bao/app/key"}
        # The other source has nothing to do with it.
        local = agent.read("app/key").json()
        assert (local["value"], local["stale"]) == (LOCAL, False)
        assert value(agent, "bao/cold/key") == "upstream_unavailable"
        cluster.start()
        becomes(agent, "bao/app/key", CANARY, seconds=60)
        eventually(lambda: not is_stale(agent, "bao/app/key"))
        assert one_outage(agent)
        # It was the same value all the time.
        assert agent.records(event="secret.rotated") == []


def test_an_upstream_that_hangs_makes_nobody_wait_for_what_is_held(bao):
    bao.put("app/key", CANARY)
    with fetcher(vault(bao, prefetch=["app/**"], max_stale="1h")) as agent:
        becomes(agent, "bao/app/key", CANARY)
        bao.pause()
        eventually(lambda: is_stale(agent, "bao/app/key"))
        with Load(agent, 4, uid=0, path="/v1/secrets/bao/app/key", most=200) as load:
            load.wait()
        assert load.count(VALUES) == 800
        assert value(agent, "bao/cold/key") == "upstream_unavailable"
        bao.resume()
        eventually(lambda: not is_stale(agent, "bao/app/key"), seconds=20)
        assert one_outage(agent)


def test_an_upstream_that_flaps_is_one_record_each_time_and_not_hundreds(bao):
    bao.put("app/key", CANARY)
    with fetcher(vault(bao, prefetch=["app/**"])) as agent:
        becomes(agent, "bao/app/key", CANARY)
        for _ in range(3):
            bao.kill()
            eventually(lambda: degraded(agent))
            for _ in range(100):
                assert field(agent, "bao/app/key") == CANARY
            bao.start()
            eventually(lambda: not degraded(agent), seconds=20)
        assert len(told(agent, "source.degraded")) == len(told(agent, "source.recovered")) == 3


def test_a_start_with_the_upstream_down_serves_the_others_and_heals_by_itself(bao):
    bao.put("app/key", CANARY)
    config = vault(bao, prefetch=["app/**"])
    bao.kill()
    with fetcher(config) as agent:
        assert value(agent, "app/key") == LOCAL
        assert value(agent, "bao/app/key") == value(agent, "bao/cold/x") == "upstream_unavailable"
        health = agent.get("/v1/health")
        assert health.status == 503 and "bao" in json.dumps(health.json()["reasons"])
        bao.start()
        becomes(agent, "bao/app/key", CANARY, seconds=20)
        eventually(lambda: agent.get("/v1/health").status == 200)


# Logins that end.


def test_a_revoked_token_is_an_outage_until_there_is_another(bao):
    bao.policy("agent", KV2)
    token = bao.new_token("agent")
    path = token_file(bao, token)
    bao.put("app/key", CANARY)
    with fetcher(vault(bao, auth={"method": "token_file", "path": path}, prefetch=["app/**"])) as agent:
        becomes(agent, "bao/app/key", CANARY)
        bao.forget_requests()
        bao.done("POST", "auth/token/revoke", {"token": token})
        eventually(lambda: degraded(agent))
        assert field(agent, "bao/app/key") == CANARY and is_stale(agent, "bao/app/key")
        # No storm against the upstream while it stays so.
        before = len(bao.requests())
        time.sleep(3)
        assert len(bao.requests()) - before < 30
        token_file(bao, bao.new_token("agent"))
        eventually(lambda: not degraded(agent), seconds=20)
        assert one_outage(agent)
        assert leaks(agent, token) == []


def test_an_approle_whose_token_is_revoked_logs_in_anew_and_nobody_notices(bao):
    bao.policy("agent", KV2)
    path = write_secret(bao.dir / "secret-id", "")
    auth = {"method": "approle", "role_id": bao.approle("agent"), "secret_id": f"file:{path}"}
    write_secret(path, bao.secret_id())
    bao.put("app/key", "0")
    with fetcher(vault(bao, auth=auth, prefetch=["app/**"])) as agent:
        becomes(agent, "bao/app/key", "0")
        for turn in range(1, 4):
            bao.revoke_logins("approle")
            bao.put("app/key", str(turn))
            becomes(agent, "bao/app/key", str(turn))
        assert told(agent, "source.degraded") == told(agent, "secret.removed") == []
        assert len(bao.requests("auth/approle/login")) == 4


def test_a_secret_id_that_expired_is_an_outage_until_there_is_another(bao):
    bao.policy("agent", KV2)
    path = write_secret(bao.dir / "secret-id", "")
    role_id = bao.approle("agent", token_ttl="3s", token_max_ttl="3s")
    auth = {"method": "approle", "role_id": role_id, "secret_id": f"file:{path}"}
    secret_id = bao.secret_id(num_uses=1)
    write_secret(path, secret_id)
    bao.put("app/key", CANARY)
    with fetcher(vault(bao, auth=auth, prefetch=["app/**"])) as agent:
        becomes(agent, "bao/app/key", CANARY)
        # The token ends for good, and the secret id was good for one login only.
        eventually(lambda: degraded(agent), seconds=20)
        assert "login" in trouble(agent) or "log in" in trouble(agent)
        assert field(agent, "bao/app/key") == CANARY and is_stale(agent, "bao/app/key")
        write_secret(path, bao.secret_id())
        eventually(lambda: not degraded(agent), seconds=30)
        assert leaks(agent, secret_id, CANARY) == []


# Lies.

# Each about one secret: whether the whole upstream counts as down by it.
ABOUT_ONE = {
    "10 MiB": (lies.answers(200, lies.HUGE), False),
    "no end": (lies.endless, False),
    "JSON 100,000 deep": (lies.answers(200, lies.DEEP), False),
    "no JSON": (lies.answers(200, lies.NOT_JSON), False),
    "nothing": (lies.answers(200, b""), False),
    **{f"wrong types {n}": (lies.answers(200, wrong), False) for n, wrong in enumerate(lies.WRONG_TYPES)},
    "a reset amid the body": (lies.reset_amid_body, True),
    "a drip": (lies.drip, True),
    "silence": (lies.silence, True),
    "an end before the answer": (lies.hang_up, True),
    "no HTTP": (lies.no_http, True),
    "500": (lies.answers(500, LIE.encode()), True),
    "502 with HTML": (lies.answers(502, b"<html>" + LIE.encode(), Content_Type="text/html"), True),
    "429": (lies.answers(429, LIE.encode(), Retry_After="1"), True),
    "429 that wants a century": (lies.answers(429, b"", Retry_After="3153600000"), True),
    "400": (lies.answers(400, LIE.encode()), None),
    "204": (lies.answers(204, b""), None),
    "302": (lies.answers(302, b"", Location="https://127.0.0.1:1/CANARY-lie-3e55d0b2"), None),
}


@pytest.mark.parametrize("what", ABOUT_ONE)
def test_a_lie_about_a_value_changes_nothing_that_is_served(bao, liar, agent, what):
    lie, outage = ABOUT_ONE[what]
    resident = lambda: int(open(f"/proc/{agent.pid}/statm").read().split()[1]) * 4096
    before = resident()
    bao.put("app/key", "the truth")
    liar.tell(lie, "/data/app/key")
    bao.put("app/key", "still the truth")
    eventually(lambda: len(liar.asked("/data/app/key")) >= 2, seconds=20)
    for _ in range(20):
        assert field(agent, "bao/app/key") in (CANARY, "the truth")
        assert field(agent, "bao/app/other") == "other"
    if outage is not None:
        # Either way it is told, and told once.
        kind = "source.degraded" if outage else "alert.source_rejected"
        eventually(lambda: told(agent, kind))
        assert trouble(agent) if outage else True
    assert resident() - before < 16 << 20
    # A bot that asks for what is not held is told to come again.
    liar.tell(lie, "/data/cold/key")
    bao.put("cold/key", "cold")
    assert value(agent, "bao/cold/key") == "upstream_unavailable"
    assert len(told(agent, "source.degraded")) <= 3 and len(told(agent, "alert.source_rejected")) <= 2
    liar.be_true()
    if "century" not in what:
        becomes(agent, "bao/app/key", "still the truth", seconds=30)
        becomes(agent, "bao/cold/key", "cold", seconds=30)
        eventually(lambda: not degraded(agent), seconds=20)
    assert leaks(agent, LIE) == []


@pytest.mark.parametrize("what", ["10 MiB", "JSON 100,000 deep", "no JSON", "wrong types 1", "500", "no HTTP", "a drip"])
@pytest.mark.parametrize("about", ["/metadata/", "LIST ", "list=true", "/sys/internal/ui/mounts/", "/auth/token/"])
def test_a_lie_about_anything_else_changes_nothing_that_is_served(bao, liar, agent, what, about):
    liar.tell(ABOUT_ONE[what][0], about)
    agent.restart() if about.startswith("/sys") or about.startswith("/auth") else None
    bao.put("app/key", "the truth")
    time.sleep(2.5)
    assert value(agent, "app/key") == LOCAL
    assert field(agent, "bao/app/key") in (CANARY, "the truth", "upstream_unavailable")
    liar.be_true()
    becomes(agent, "bao/app/key", "the truth", seconds=30)
    eventually(lambda: not degraded(agent), seconds=20)
    assert leaks(agent, LIE) == []


def test_a_redirect_to_another_host_is_not_followed_and_nothing_is_sent_there(bao, liar, agent):
    with Liar(bao) as elsewhere:
        for status in [301, 302, 303, 307, 308]:
            liar.tell(lies.answers(status, b"", Location=f"{elsewhere.address}/v1/secret/data/app/key"), "/v1/")
            agent.restart()
            eventually(lambda: degraded(agent), seconds=20)
            assert value(agent, "bao/app/key") == "upstream_unavailable"
            assert elsewhere.requests == []
        liar.be_true()
        becomes(agent, "bao/app/key", CANARY, seconds=30)


def test_a_standbys_redirect_to_a_configured_address_is_followed(bao, liar):
    bao.put("app/key", CANARY)
    with Liar(bao) as leader:

        @lies.made_up
        def to_the_leader(connection, _):
            connection.say(307, b"", {"Location": f"{leader.address}{connection.path}"})

        liar.tell(to_the_leader)
        with fetcher(vault(bao, address=[liar.address, leader.address], prefetch=["app/**"])) as agent:
            becomes(agent, "bao/app/key", CANARY, seconds=20)
            assert leader.asked("/data/app/key")


def test_an_upstream_that_wants_to_be_left_alone_is_left_alone(bao, liar, agent):
    liar.tell(lies.answers(429, b"{}", Retry_After="6"))
    eventually(lambda: degraded(agent))
    before = len(liar.requests)
    time.sleep(3)
    assert len(liar.requests) - before <= 1
    # Bots are answered meanwhile, and what is cold costs no request either.
    for n in range(50):
        assert field(agent, "bao/app/key") == CANARY
        assert value(agent, f"bao/cold/{n}") == "upstream_unavailable"
    assert len(liar.requests) - before <= 3
    liar.be_true()
    eventually(lambda: not degraded(agent), seconds=20)


# Certificates.

CERTIFICATES = {
    "expired": lambda bao: bao.authority.server("expired", starts=-3 * DAY, ends=-DAY),
    "not valid yet, as for a host whose clock is behind": lambda bao: bao.authority.server("early", starts=DAY, ends=3 * DAY),
    "for another name": lambda bao: bao.authority.server("other-name", host="vault.example.org"),
    "for another address": lambda bao: bao.authority.server("other-address", host="127.0.0.2"),
    "of another authority": lambda bao: type(bao.authority)(bao.dir, "stranger").server("strange"),
    "that is for clients": lambda bao: bao.authority.client("client-only"),
}


@pytest.mark.parametrize("what", CERTIFICATES)
def test_a_wrong_certificate_is_an_outage_and_nothing_is_sent(bao, liar, agent, what):
    liar.tell(lies.tell_truth)
    liar.show(CERTIFICATES[what](bao))
    eventually(lambda: degraded(agent))
    liar.requests.clear()
    assert field(agent, "bao/app/key") == CANARY and is_stale(agent, "bao/app/key")
    assert value(agent, "bao/cold/key") == "upstream_unavailable"
    assert "certificate" in trouble(agent).lower() and liar.address.split("//")[1] in trouble(agent)
    assert liar.requests == []
    liar.show(bao.own)
    eventually(lambda: not degraded(agent), seconds=20)
    assert one_outage(agent)


def test_a_server_without_tls_is_not_spoken_to(bao, agent, liar):
    liar.tls = False
    liar.hang_up()
    eventually(lambda: degraded(agent))
    liar.tls = True
    eventually(lambda: not degraded(agent), seconds=20)
    assert [r for r in liar.requests if "v1" not in r] == []


def test_several_addresses_are_tried_in_turn(bao, liar):
    bao.put("app/key", CANARY)
    with Liar(bao) as second:
        with fetcher(vault(bao, address=[liar.address, second.address], prefetch=["app/**"])) as agent:
            becomes(agent, "bao/app/key", CANARY)
            liar.tell(lies.hang_up)
            bao.put("app/key", "by the second")
            becomes(agent, "bao/app/key", "by the second")
            liar.be_true()
            second.tell(lies.answers(503, b"{}"))
            bao.put("app/key", "by the first again")
            becomes(agent, "bao/app/key", "by the first again")
            assert told(agent, "source.degraded") == []


# Definite answers during trouble.


def test_a_definite_no_is_not_covered_by_staleness(bao, liar, agent):
    liar.tell(lies.answers(500, b""), "/data/app/other")
    bao.put("app/other", "next")
    bao.delete("app/key")
    eventually(lambda: value(agent, "bao/app/key") == "not_found", seconds=20)
    assert field(agent, "bao/app/other") == "other"


def test_403_is_believed_only_after_a_fresh_login(bao, liar):
    bao.policy("agent", KV2)
    path = write_secret(bao.dir / "secret-id", "")
    auth = {"method": "approle", "role_id": bao.approle("agent"), "secret_id": f"file:{path}"}
    write_secret(path, bao.secret_id())
    bao.put("app/key", CANARY)
    forbidden = lies.answers(403, b'{"errors":["permission denied"]}')
    with fetcher(vault(bao, address=liar.address, auth=auth, prefetch=["app/**"])) as agent:
        becomes(agent, "bao/app/key", CANARY)
        bao.put("app/key", "next")
        liar.tell(forbidden, "/app/key")
        eventually(lambda: value(agent, "bao/app/key") == "not_found", seconds=20)
        assert len(liar.asked("/auth/approle/login")) >= 1
        assert len(liar.asked("/auth/approle/login")) <= 5, "a login for each 403 would be a storm"
        liar.be_true()
        becomes(agent, "bao/app/key", "next", seconds=20)
