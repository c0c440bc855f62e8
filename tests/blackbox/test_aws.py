"""The source `aws` against AWS's API as moto has it: values, versions, credentials, throttling, and what it costs."""

import base64
import contextlib
import datetime
import http.server
import json
import re
import threading
import time

import pytest

import liar as lies
from fetching import AWS_KEYS, aws, becomes_value, fetcher, is_stale, leaks, snapshot_key, state, told, trouble, value
from harness import BOB, CANARY as LOCAL, ROOT, eventually
from inside import Scan, disguises
from liar import LIE, Liar
from upstreams import REGION

CANARY = "CANARY-aws-2b96f1ce"


def served(agent, name, want, seconds=10):
    becomes_value(agent, f"aws/{name}", want, seconds)


@pytest.fixture
def agent(moto):
    """An agent that holds app/ ready."""
    moto.put("app/key", CANARY)
    with fetcher(aws(moto, prefetch=["app/**"]), env=AWS_KEYS) as agent:
        served(agent, "app/key", CANARY)
        yield agent


@pytest.fixture
def middle(moto):
    """Stands before moto and lies where it is told to."""
    with Liar(moto) as middle:
        yield middle


# Values and versions.


def test_strings_binaries_and_what_looks_like_neither(moto):
    values = {
        "app/text": "plain", "app/object": '{"user":"u","password":"p"}', "app/binary": bytes(range(256)),
        "app/unicode": 'ü "quoted" \\ \n 🔑', "app/large": "x" * 65_000, "/app/slash": "a leading slash is dropped",
        "app/a@b+c=d_e.f-g": "odd but allowed",
    }
    for name, each in values.items():
        moto.put(name, each)
    with fetcher(aws(moto, prefetch=["app/**"]), env=AWS_KEYS) as agent:
        for name, each in values.items():
            reply = eventually(lambda: (r := agent.read("aws/" + name.lstrip("/"))).status == 200 and r).json()
            got = reply["value"] if isinstance(each, str) else base64.b64decode(reply["value_base64"])
            assert got == each, name
            raw = agent.read("aws/" + name.lstrip("/"), Accept="application/octet-stream")
            assert raw.body == (each.encode() if isinstance(each, str) else each)
        assert value(agent, "aws/app/object?field=password") == "p"
        listed = {s["name"] for s in agent.get("/v1/secrets?prefix=aws/").json()["secrets"]}
        assert listed == {"aws/" + name.lstrip("/") for name in values}


def test_a_rotation_is_seen_and_the_previous_version_stays(agent, moto):
    first = agent.read("aws/app/key").json()
    assert (first["source"], first["stale"]) == ("aws", False)
    answers = []
    ask = lambda: answers.append(agent.read("aws/app/key", If_None_Match=f'"{first["version"]}"', Prefer="wait=60"))
    poll = threading.Thread(target=ask)
    poll.start()
    eventually(lambda: len(agent.records(event="secret.read", not_modified=True)) == 1)
    moto.put("app/key", "rotated")
    poll.join()
    assert [(a.status, a.json()["value"]) for a in answers] == [(200, "rotated")]
    before = agent.read("aws/app/key?version=previous").json()
    assert (before["value"], before["version"]) == (CANARY, first["version"])
    [record] = agent.records(event="secret.rotated")
    assert record["version"] == answers[0].json()["version"] != first["version"]


def test_the_previous_version_of_one_that_was_cold_comes_from_awsprevious(moto):
    for text in ["first", "second", "third"]:
        moto.put("app/key", text)
    with fetcher(aws(moto), env=AWS_KEYS) as agent:
        served(agent, "app/key", "third")
        assert value(agent, "aws/app/key?version=previous") == "second"


def test_awspending_is_never_served(agent, moto):
    moto.client.put_secret_value(SecretId="app/key", SecretString="CANARY-pending", VersionStages=["AWSPENDING"])
    moto.put("app/other", "so that a look has been taken since")
    served(agent, "app/other", "so that a look has been taken since")
    assert value(agent, "aws/app/key") == CANARY
    assert agent.read("aws/app/key?version=previous").status == 404
    moto.client.create_secret(Name="app/new")
    moto.client.put_secret_value(SecretId="app/new", SecretString="CANARY-pending", VersionStages=["AWSPENDING"])
    assert agent.read("aws/app/new").status == 404
    assert leaks(agent, "CANARY-pending") == []


def test_many_secrets_are_fetched_in_batches_and_asked_for_again_only_where_they_changed(moto, middle):
    for n in range(45):
        moto.put(f"app/{n}", f"value {n}")
    with fetcher(aws(middle, prefetch=["app/**"]), env=AWS_KEYS) as agent:
        eventually(lambda: state(agent, "aws")["secrets"] == 45)
        assert [value(agent, f"aws/app/{n}") for n in range(45)] == [f"value {n}" for n in range(45)]
        assert 3 <= len(middle.asked("BatchGetSecretValue")) <= 6
        assert len(middle.asked("GetSecretValue")) <= 6
        middle.requests.clear()
        for turn in range(3):
            moto.put("app/7", f"turn {turn}")
            served(agent, "app/7", f"turn {turn}")
        # Nothing but what changed was asked for.
        assert len(middle.asked("GetSecretValue")) <= 4, middle.requests


def test_what_is_deleted_ends_at_once_and_comes_back(agent, moto):
    moto.put("app/gone", "x")
    served(agent, "app/gone", "x")
    moto.delete("app/gone")
    # Marked for deletion, with 30 days to think better of it, is deleted all the same.
    moto.client.delete_secret(SecretId="app/key", RecoveryWindowInDays=30)
    for name in ["aws/app/gone", "aws/app/key"]:
        eventually(lambda: value(agent, name) == "not_found")
    assert {r["secret"] for r in agent.records(event="secret.removed")} == {"aws/app/gone", "aws/app/key"}
    assert trouble(agent, "aws") is None
    moto.client.restore_secret(SecretId="app/key")
    served(agent, "app/key", CANARY, seconds=15)


def test_cold_names_are_one_request_and_absent_ones_a_bounded_number(moto, middle):
    moto.put("cold/key", CANARY)
    with fetcher(aws(middle, timeout="30s"), env=AWS_KEYS) as agent:
        eventually(lambda: state(agent, "aws")["last_success"])
        gate = threading.Event()

        def after_the_gate(connection, truth):
            gate.wait(20)
            lies.tell_truth(connection, truth)

        middle.tell(after_the_gate, "SecretValue")
        bots = [agent.connect() for _ in range(200)]
        for bot in bots:
            bot.putrequest("GET", "/v1/secrets/aws/cold/key", skip_host=True)
            bot.putheader("Host", "x")
            bot.endheaders()
        eventually(lambda: agent.status()["connections"] == 200)
        gate.set()
        answers = [bot.getresponse() for bot in bots]
        assert {(a.status, a.read().count(CANARY.encode())) for a in answers} == {(200, 1)}
        assert len(middle.asked("SecretValue")) == 1
        middle.be_true()
        middle.requests.clear()
        bot = agent.connect()
        assert {bot.get(f"/v1/secrets/aws/absent/{n}").status for n in range(1_000)} <= {404, 429, 503}
        assert len(middle.requests) < 400
        assert value(agent, "aws/cold/key", BOB) == "denied"


def test_two_upstream_names_that_would_be_one_here_are_told_of(moto):
    moto.put("app/key", "without")
    moto.put("/app/key", "with a slash")
    with fetcher(aws(moto, prefetch=["app/**"]), env=AWS_KEYS) as agent:
        eventually(lambda: value(agent, "aws/app/key") in ("without", "with a slash"))
        eventually(lambda: told(agent, "alert.source_rejected", "aws"))
        first = value(agent, "aws/app/key")
        for turn in range(2):
            moto.put("app/other", str(turn))
            served(agent, "app/other", str(turn))
            assert value(agent, "aws/app/key") == first
        assert agent.records(event="secret.rotated", secret="aws/app/key") == []
        assert len(told(agent, "alert.source_rejected", "aws")) == 1


# Trouble.

TROUBLE = {
    "throttling": lies.answers(400, b'{"__type":"ThrottlingException","message":"CANARY-lie-3e55d0b2"}'),
    "an internal error": lies.answers(500, b'{"__type":"InternalServiceError","message":"CANARY-lie-3e55d0b2"}'),
    "unavailable": lies.answers(503, b"CANARY-lie-3e55d0b2"),
    "expired credentials": lies.answers(400, b'{"__type":"ExpiredTokenException","message":"CANARY-lie-3e55d0b2"}'),
    "unknown credentials": lies.answers(400, b'{"__type":"UnrecognizedClientException","message":"CANARY-lie-3e55d0b2"}'),
    "a clock that is wrong": lies.answers(
        400, b'{"__type":"InvalidSignatureException","message":"Signature not yet current: CANARY-lie-3e55d0b2"}'),
    "no HTTP": lies.no_http,
    "silence": lies.silence,
    "an end before the answer": lies.hang_up,
    "a reset amid the body": lies.reset_amid_body,
    "a drip": lies.drip,
}


@pytest.mark.parametrize("what", TROUBLE)
def test_trouble_is_stale_values_one_record_each_and_no_storm(moto, middle, what):
    moto.put("app/key", CANARY)
    with fetcher(aws(middle, prefetch=["app/**"]), env=AWS_KEYS) as agent:
        served(agent, "app/key", CANARY)
        middle.tell(TROUBLE[what])
        eventually(lambda: trouble(agent, "aws"), seconds=20)
        middle.requests.clear()
        time.sleep(3)
        assert len(middle.requests) < 40, "retries upon retries"
        assert value(agent, "aws/app/key") == CANARY and is_stale(agent, "aws/app/key")
        assert value(agent, "aws/cold/key") == "upstream_unavailable"
        assert value(agent, "app/key") == LOCAL
        middle.be_true()
        eventually(lambda: trouble(agent, "aws") is None, seconds=30)
        assert len(told(agent, "source.degraded", "aws")) == len(told(agent, "source.recovered", "aws")) == 1
        assert leaks(agent, LIE, *AWS_KEYS.values()) == []


LIES = {
    "10 MiB": lies.answers(200, json.dumps({"SecretValues": [], "SecretString": LIE * 550_000}).encode()),
    "no end": lies.endless,
    "deep": lies.answers(200, b'{"SecretValues":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "no JSON": lies.answers(200, b'{"SecretString": "' + LIE.encode()),
    "wrong types": lies.answers(200, json.dumps({"SecretString": [LIE], "SecretValues": LIE, "VersionId": 1}).encode()),
    "nothing asked for": lies.answers(200, json.dumps({"Name": "other", "SecretString": LIE}).encode()),
    "a redirect": lies.answers(302, b"", Location="http://127.0.0.1:1/CANARY-lie-3e55d0b2"),
}


@pytest.mark.parametrize("what", LIES)
def test_a_lie_about_values_changes_nothing_that_is_served(moto, middle, what):
    moto.put("app/key", CANARY)
    with fetcher(aws(middle, prefetch=["app/**"]), env=AWS_KEYS) as agent:
        served(agent, "app/key", CANARY)
        resident = lambda: int(open(f"/proc/{agent.pid}/statm").read().split()[1]) * 4096
        before = resident()
        middle.tell(LIES[what], "SecretValue")
        moto.put("app/key", "the truth")
        eventually(lambda: len(middle.asked("SecretValue")) >= 2, seconds=30)
        assert value(agent, "aws/app/key") == CANARY
        assert resident() - before < 24 << 20
        middle.be_true()
        served(agent, "app/key", "the truth", seconds=30)
        assert leaks(agent, LIE) == []


def test_what_the_credentials_may_not_read_is_a_definite_no(moto, middle):
    moto.put("app/key", CANARY)
    moto.put("app/other", "other")
    with fetcher(aws(middle, prefetch=["app/other"]), env=AWS_KEYS) as agent:
        served(agent, "app/key", CANARY)
        served(agent, "app/other", "other")
        forbidden = lies.answers(400, b'{"__type":"AccessDeniedException","message":"CANARY-lie-3e55d0b2"}')
        middle.tell(forbidden)
        eventually(lambda: value(agent, "aws/app/key") == "not_found", seconds=20)
        middle.be_true()
        served(agent, "app/key", CANARY, seconds=30)
        assert leaks(agent, LIE) == []


def test_a_host_starts_from_the_snapshot_with_aws_away(moto, middle, tmp_path):
    moto.put("app/key", CANARY)
    moto.put("app/binary", bytes(range(256)))
    config = aws(middle, prefetch=["app/**"], snapshot=True)
    with fetcher(config, env=AWS_KEYS, agent=snapshot_key(tmp_path)) as agent:
        served(agent, "app/key", CANARY)
        eventually(lambda: agent.read("aws/app/binary").status == 200)
        version = agent.read("aws/app/key").json()["version"]
        agent.stop()
        middle.tell(lies.hang_up)
        agent.start()
        reply = agent.read("aws/app/key").json()
        assert (reply["value"], reply["version"], reply["stale"]) == (CANARY, version, True)
        assert agent.read("aws/app/binary", Accept="application/octet-stream").body == bytes(range(256))
        assert leaks(agent, CANARY) == []


# Credentials.


class Container:
    """Where a container finds its credentials, which end soon and are others each time."""

    def __init__(self, life):
        container, self.given = self, []

        class Answer(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                key = f"AKIAMADE{len(container.given):04}"
                container.given.append(key)
                end = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=life)
                body = json.dumps({
                    "AccessKeyId": key, "SecretAccessKey": f"CANARY-made-{key}", "Token": f"CANARY-session-{key}",
                    "Expiration": end.strftime("%Y-%m-%dT%H:%M:%SZ"),
                }).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self.env = {"AWS_CONTAINER_CREDENTIALS_FULL_URI": f"http://127.0.0.1:{self.server.server_port}/creds"}

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


def test_credentials_that_expire_are_fetched_anew_before_they_do(moto, middle):
    moto.put("app/key", "0")
    with Container(life=14) as container:
        with fetcher(aws(middle, prefetch=["app/**"]), env=container.env) as agent:
            served(agent, "app/key", "0")
            turn = 0
            while len(container.given) < 4:
                turn += 1
                moto.put("app/key", str(turn))
                served(agent, "app/key", str(turn))
            assert told(agent, "source.degraded", "aws") == []
            # Not one for each request either.
            assert len(container.given) < len(middle.requests) / 2
            assert leaks(agent, "CANARY-made", "CANARY-session") == []


def test_credentials_of_a_profile(moto, middle, tmp_path):
    moto.put("app/key", CANARY)
    (tmp_path / "credentials").write_text(
        "[default]\naws_access_key_id = AKIADEFAULT\naws_secret_access_key = x\n"
        "[bots]\naws_access_key_id = AKIABOTS\naws_secret_access_key = CANARY-profile-key\n")
    env = {"AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials"), "AWS_CONFIG_FILE": str(tmp_path / "config")}
    (tmp_path / "config").write_text(f"[profile bots]\nregion = {REGION}\n")
    with fetcher(aws(middle, profile="bots"), env=env) as agent:
        eventually(lambda: state(agent, "aws")["last_success"])
        assert value(agent, "aws/app/key") == CANARY
        assert middle.keys == {"AKIABOTS"}
        assert leaks(agent, "CANARY-profile-key") == []


def test_without_credentials_it_says_so_and_the_other_sources_serve(moto, tmp_path):
    env = {"AWS_EC2_METADATA_DISABLED": "true", "HOME": str(tmp_path)}
    with fetcher(aws(moto), env=env) as agent:
        assert "credential" in eventually(lambda: trouble(agent, "aws"), seconds=20).lower()
        assert value(agent, "aws/app/key") == "upstream_unavailable"
        assert value(agent, "app/key") == LOCAL


# What is kept where, and what is needed.


def test_a_second_after_a_fetch_no_readable_copy_is_left(agent, moto):
    for n in range(0, 4_000, 200):
        moto.put(f"app/{n}", f"{CANARY}-{n}-{'x' * n}")
    moto.put("app/binary", CANARY.encode() + bytes(range(256)))
    moto.put("cold/key", CANARY)
    served(agent, "app/3800", f"{CANARY}-3800-{'x' * 3800}")
    served(agent, "cold/key", CANARY)
    eventually(lambda: agent.read("aws/app/binary").status == 200)
    # What is promised is a second after the fetch.
    time.sleep(1)
    scan = Scan(agent.pid, disguises(CANARY) | {"no secret": b"/var/lib/keyhatch"})
    assert scan.counts.pop("no secret") > 0 and scan.secret_refused > 0, "the search proves nothing"
    assert set(scan.counts.values()) == {0}, (scan.counts, scan.where)


def test_seal_forgets_and_unseal_serves_again(agent, moto):
    agent.ops("seal")
    assert value(agent, "aws/app/key") == "sealed" and agent.status()["secret_memory"]["used"] == 0
    moto.put("app/key", "while sealed")
    agent.ops("unseal")
    served(agent, "app/key", "while sealed")


@contextlib.contextmanager
def enforced(moto):
    """From here on moto checks signatures and policies."""
    assert moto.post("moto-api/reset-auth", "0") == 200
    try:
        yield
    finally:
        assert moto.post("moto-api/reset-auth", "inf") == 200


def test_the_policy_in_the_docs_is_all_that_every_feature_needs(moto):
    page = (ROOT / "docs" / "sources" / "aws.md").read_text()
    policy = json.loads(re.search(r"```json\n(.*?)```", page, re.S)[1])
    for statement in policy["Statement"]:
        # moto decides by action alone: it takes every secret for `*`.
        statement["Resource"] = "*"
        statement.pop("Condition", None)
    iam = moto.boto("iam")
    iam.create_user(UserName="agent")
    iam.put_user_policy(UserName="agent", PolicyName="docs", PolicyDocument=json.dumps(policy))
    key = iam.create_access_key(UserName="agent")["AccessKey"]
    for text in ["first", "second"]:
        moto.put("app/key", text)
    moto.put("cold/key", "cold")
    env = {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}
    with enforced(moto):
        with fetcher(aws(moto, prefetch=["app/**"]), env=env) as agent:
            served(agent, "app/key", "second")
            assert value(agent, "aws/app/key?version=previous") == "first"
            assert value(agent, "aws/cold/key") == "cold"
            eventually(lambda: state(agent, "aws")["secrets"] == 2)
            assert told(agent, "source.degraded", "aws") == []
        # And it is really checked: with a wrong secret key nothing is to be had.
        with fetcher(aws(moto), env=env | {"AWS_SECRET_ACCESS_KEY": "wrong"}) as agent:
            assert eventually(lambda: trouble(agent, "aws"), seconds=20)
            assert value(agent, "aws/app/key") == "upstream_unavailable"
