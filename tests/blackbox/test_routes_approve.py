"""Routes: calls that wait for an operator, conditions on bodies, and limits on answers and spending."""

import contextlib
import json
import socket
import subprocess
import threading

import pytest

from harness import KEYHATCHD, Agent, UnixHTTP, eventually
from hostile import Hostile
from test_routes import KEY, route
from test_routes_websocket import POLICY

BOTS = POLICY + """
[[bot]]
name = "alice"
match = { uid = 20001 }
roles = ["caller"]
"""


class Billed(Hostile):
    """Answers that say what they cost."""

    def do_cost(self, request, answer, _):
        answer.whole(json.dumps({"usage": {"total": int(request.query["is"])}, "total": 9}).encode(),
                     **{"x-cost": request.query["is"], "content-type": "application/json"})

    def do_events(self, request, answer, _):
        answer.begin(kind="text/event-stream", **{"transfer-encoding": "chunked"})
        for total in (1, 2, 70):
            answer.chunk(b'data: {"usage": {"tot')
            answer.chunk(b'al": %d}}\n\n' % total)
        answer.end()

    def do_endless(self, request, answer, _):
        answer.begin(**{"transfer-encoding": "chunked"})
        while True:
            answer.chunk(b"x" * 1000)


@pytest.fixture(scope="module")
def agent():
    with Billed() as upstream:
        more = lambda text: f"allow_private = true\n{text}"
        routes = "".join([
            route("pay", upstream.address, more=more('approve = ["POST /payouts/**"]')),
            route("hasty", upstream.address, more=more('approve = ["* /**"]\ntimeout = "1s"')),
            route("small", upstream.address, more=more(
                'require = { "/model" = ["small", "tiny"], "/n" = [1] }\nlimits = { body = "1KiB" }')),
            route("bulky", upstream.address, more=more(
                'require = { "/n" = [1] }\nlimits = { requests_per_minute = 10 }')),
            route("short", upstream.address, more=more('limits = { answer = "2KiB" }')),
            route("frugal", upstream.address, more=more(
                'limits = { spend = { pointer = "/usage/total", per_hour = 100 } }')),
            route("metered", upstream.address, more=more('limits = { spend = { header = "x-cost", per_hour = 100 } }')),
        ])
        with Agent(policy=routes + BOTS, secrets={"app/key": KEY}) as agent:
            agent.upstream = upstream
            yield agent


def use(agent, path, method="GET", body=None, **headers):
    return agent.get("/v1/use/" + path, None, method, body, **headers)


def connected(agent):
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(20)
    sock.connect(str(agent.socket))
    return sock


def waiting(agent):
    return json.loads(agent.ops("approve", "--json").stdout)["waiting"]


def later(act):
    """Does `act` on a thread; `join()` gives what it gave."""
    out = []
    thread = threading.Thread(target=lambda: out.append(act()))
    thread.start()
    return lambda: (thread.join(60), out[0])[1]


def test_a_call_goes_on_once_an_operator_approves_of_it(agent):
    upstream = agent.upstream
    assert use(agent, "pay/balance").status == 200, "only what the route says waits"
    before = len(upstream.seen)
    one = later(lambda: use(agent, "pay/payouts/1%3Fa?x=2", "POST", b'{"amount": 7}', X_Account="acct\x9b1", Cookie="mine"))
    two = later(lambda: use(agent, "pay/payouts/2", "POST", b"second\x1b[2J"))
    held = eventually(lambda: len(all := waiting(agent)) == 2 and all)
    by_path = {call["path"]: call for call in held}
    first = by_path["/payouts/1?a"]
    assert first["query"] == "x=2" and ["x-account", "acct\ufffd1"] in first["headers"]
    assert not {"cookie", "authorization", "host"} & {name for name, _ in first["headers"]}
    assert (first["bot"], first["route"], first["method"], first["body"]) == ("caller", "pay", "POST", '{"amount": 7}')
    listed = agent.ops("approve").stdout
    assert f'{first["id"]}  caller wants POST of pay: /payouts/1?a, ' in listed and "\n    ?x=2\n" in listed and '{"amount": 7}' in listed
    assert "\x1b" not in listed and "second\\u{1b}[2J" in listed
    assert len(upstream.seen) == before, "nothing has left"
    assert agent.ops("approve", first["id"]).stdout.strip() == f'approved {first["id"]}'
    assert one().status == 200 and upstream.last().body == b'{"amount": 7}'
    assert [call["path"] for call in waiting(agent)] == ["/payouts/2"], "the other still waits"
    # The same one twice, one that never was, and who is no operator.
    assert agent.ops("approve", first["id"], check=False).returncode == 66
    assert agent.ops("approve", "../seal", check=False).returncode == 66
    denied = subprocess.run([KEYHATCHD, "approve", by_path["/payouts/2"]["id"], "--admin-socket", str(agent.admin_socket)],
                            user=20001, group=20001, capture_output=True)
    assert denied.returncode != 0 and len(waiting(agent)) == 1
    agent.ops("approve", by_path["/payouts/2"]["id"])
    assert two().status == 200
    # Who approved of what is in the log, and what waited.
    waits, used = agent.records(event="secret.use", request_id=first["id"])
    assert (waits["decision"], waits["waits_for"]) == ("info", "approve")
    assert (used["decision"], used["approved_by"]) == ("allow", 0)
    approved = agent.records(event="admin.approved")[-2]
    assert (approved["approved"], approved["of"], approved["path"]) == (first["id"], "caller", "/payouts/1?a")
    assert waits["seq"] < approved["seq"] < used["seq"] and approved["peer"]["uid"] == 0


def test_what_nobody_approves_of_is_denied_and_who_leaves_waits_no_more(agent):
    before = len(agent.upstream.seen)
    reply = use(agent, "hasty/x", "POST", b"1")
    assert (reply.status, reply.json()["code"]) == (403, "denied") and "no operator approved" in reply.json()["detail"]
    record = agent.records(event="secret.use", decision="deny")[-1]
    assert (record["reason"], record["limit"]) == ("limited", "approve")
    # However it writes the path.
    with connected(agent) as sock:
        sock.sendall(b"POST /v1/use/pay/Payouts%20/3/ HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        eventually(lambda: waiting(agent))
    eventually(lambda: not waiting(agent))
    # A bot that leaves, also one that has sent more than the call that waits.
    for more in (b"", b"GET /v1/use/pay/x HTTP/1.1\r\nHost: x\r\n\r\n"):
        with connected(agent) as sock:
            sock.sendall(b"POST /v1/use/pay/payouts/3 HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n1" + more)
            eventually(lambda: waiting(agent))
        eventually(lambda: not waiting(agent))
    # A reload that has the route want more while it waits.
    config = agent.config.read_text()
    one = later(lambda: use(agent, "pay/payouts/4", "POST", b"1"))
    [call] = eventually(lambda: waiting(agent))
    agent.config.write_text(config.replace('approve = ["POST /payouts/**"]', 'approve = ["* /payouts/**"]\nrequire = { "/n" = [1] }'))
    try:
        agent.ops("reload")
        agent.ops("approve", call["id"])
        reply = one()
        assert reply.status == 429 and "a reload changed" in reply.json()["detail"]
    finally:
        agent.config.write_text(config)
        agent.ops("reload")
    # One that takes the grant away.
    one = later(lambda: use(agent, "pay/payouts/4", "POST", b"1"))
    [call] = eventually(lambda: waiting(agent))
    config = agent.config.read_text()
    agent.config.write_text(config.replace('allow = ["* /**"]', 'allow = ["GET /**"]'))
    try:
        agent.ops("reload")
        agent.ops("approve", call["id"])
        assert one().status == 403
    finally:
        agent.config.write_text(config)
        agent.ops("reload")
    assert len(agent.upstream.seen) == before


def test_no_bot_has_more_than_16_calls_wait(agent):
    calls = []
    try:
        for _ in range(16):
            sock = connected(agent)
            calls.append(sock)
            sock.sendall(b"POST /v1/use/pay/payouts/n HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        eventually(lambda: len(waiting(agent)) == 16)
        reply = use(agent, "pay/payouts/17", "POST", b"")
        assert (reply.status, reply.headers["retry-after"]) == (429, "30")
    finally:
        for sock in calls:
            sock.close()
    eventually(lambda: not waiting(agent))


def test_a_body_has_to_say_what_the_route_requires(agent):
    upstream, kind = agent.upstream, {"Content_Type": "application/json"}
    good = b'{"n": 1, "model": "small", "x": "' + b"y" * 200 + b'"}'
    assert use(agent, "small/chat", "POST", good, **kind).status == 200 and upstream.last().body == good
    assert use(agent, "small/models").status == 200, "what has no body has nothing to say"
    before = len(upstream.seen)
    for body, headers, says in [
        (b'{"n": 1, "model": "large"}', kind, "/model"),
        (b'{"n": 1}', kind, "/model"),
        (b'{"n": 2, "model": "small"}', kind, "/n"),
        (b'{"n": 1, "model": "small", "MODEL": "large"}', kind, "twice"),
        (b"", kind, "no JSON"),
        (good, {}, "content-type"),
        (good, {**kind, "Content_Encoding": "gzip"}, "content-encoding"),
    ]:
        reply = use(agent, "small/chat", "POST", body, **headers)
        assert (reply.status, reply.json()["code"]) == (403, "denied"), (body, reply)
        assert says in reply.json()["detail"]
    reply = use(agent, "small/chat", "POST", good.replace(b"y", b"y" * 10), **kind)
    assert reply.status == 413
    record = agent.records(event="secret.use", decision="deny")[-1]
    assert (record["reason"], record["limit"]) == ("limited", "require")
    chunks = b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    with connected(agent) as sock:
        sock.sendall(b"POST /v1/use/small/x HTTP/1.1\r\nHost: x\r\n" + chunks + b"12\r\n{\"model\": \"large\"}\r\n0\r\n\r\n")
        assert sock.recv(100).startswith(b"HTTP/1.1 403 ")
    assert len(upstream.seen) == before


def test_bodies_are_looked_at_within_the_bots_share_and_its_limits(agent):
    kind = {"Content_Type": "application/json"}
    large = b'{"n": 2, "x": "' + b"y" * 100_000 + b'"}'
    for _ in range(2):
        assert "/n" in use(agent, "bulky/x", "POST", large, **kind).json()["detail"]
    good = b'{"n": 1, "model": "tiny"}'
    metrics = lambda: UnixHTTP(agent.admin_socket).get("/v1/metrics").body
    with contextlib.ExitStack() as held:
        for _ in range(8):
            sock = held.enter_context(connected(agent))
            sock.sendall(b"POST /v1/use/bulky/x HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (4 << 20))
        eventually(lambda: b'keyhatch_route_open{route="bulky"} 8\n' in metrics())
        reply = use(agent, "bulky/x", "POST", large, **kind)
        assert reply.status == 429 and "requests_per_minute" in reply.json()["detail"], "refused ones count"
        reply = use(agent, "small/x", "POST", good, **kind)
        assert reply.status == 429 and "under way" in reply.json()["detail"]
        assert agent.get("/v1/use/small/x", 20001, "POST", good, **kind).status == 200, "each bot has a share"
    eventually(lambda: use(agent, "small/x", "POST", good, **kind).status == 200)


def test_an_answer_is_no_larger_than_it_may_be(agent):
    assert len(use(agent, "short/download?bytes=2048").body) == 2048
    reply = use(agent, "short/download?bytes=2049")
    assert reply.status == 502 and "larger" in reply.json()["detail"]
    with connected(agent) as sock:
        sock.sendall(b"GET /v1/use/short/endless HTTP/1.1\r\nHost: x\r\n\r\n")
        out = b""
        while piece := sock.recv(65536):
            out += piece
    assert out.startswith(b"HTTP/1.1 200 ") and out.count(b"x" * 100) <= 20 and not out.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("name", ["frugal", "metered"])
def test_what_answers_cost_is_spent(agent, name):
    assert use(agent, f"{name}/cost?is=40").status == 200
    assert eventually(lambda: agent.records(event="secret.used", route=name))[-1]["cost"] == 40
    path = "events" if name == "frugal" else "cost?is=70"
    assert use(agent, f"{name}/{path}").status == 200
    assert eventually(lambda: len(all := agent.records(event="secret.used", route=name)) == 2 and all)[-1]["cost"] == 70
    reply = use(agent, f"{name}/cost?is=1")
    assert (reply.status, reply.json()["code"]) == (429, "rate_limited") and "spend" in reply.json()["detail"]
    assert 0 < int(reply.headers["retry-after"]) < 3600
    assert agent.get(f"/v1/use/{name}/cost?is=1", 20001).status == 200, "each bot spends its own"


def test_route_try_shows_what_would_be_sent_and_sends_nothing(agent):
    def tries(*args):
        done = agent.verb("route", "try", "--config", agent.config, *args, check=False)
        return done.returncode, done.stdout

    before = len(agent.upstream.seen)
    code, said = tries("pay", "/a%20b/c?x=1", "--header", "Authorization: Bearer mine", "--header", "X-Kept: 1")
    host = agent.upstream.address.split("//")[1]
    assert code == 0 and said.startswith(f"GET /a%20b/c?x=1 HTTP/1.1\nhost: {host}\n")
    assert "x-kept: 1\n" in said and "authorization: Bearer ***\n" in said and "mine" not in said
    assert said.endswith("nothing was sent\nallowed by the route\n")
    assert "once an operator approves" in tries("pay", "/payouts/1", "--method", "POST")[1]
    told = json.loads(tries("pay", "/payouts/1?x=1", "--method", "POST", "--json")[1])
    assert (told["method"], told["target"], told["decision"]) == ("POST", "/payouts/1?x=1", "allow")
    assert ["authorization", "Bearer ***"] in told["headers"] and told["waits_for"] == "approve"
    assert (told["upstream"], told["proxy"]) == (agent.upstream.address, None)
    assert tries("pay", "/../x")[0] == tries("none", "/x")[0] == 2
    config = agent.dir / "try.toml"
    signed = route("aws", "https://s3.test", '{ sigv4 = { region = "eu-west-1", service = "s3" } }')
    config.write_text(agent.config.read_text().replace('allow = ["* /**"]', 'allow = ["GET /only"]') + signed)
    config.chmod(0o600)
    done = agent.verb("route", "try", "--config", config, "aws", "/b/a+b?X-Amz-Signature=mine&list-type=2",
                      "--header", "X-Amz-Security-Token: mine", "--header", "X-Amz-Acl: private")
    assert done.stdout.startswith("GET /b/a%2Bb?list-type=2 HTTP/1.1\n"), "as AWS wants it"
    assert "x-amz-acl: private" in done.stdout and "mine" not in done.stdout
    done = agent.verb("route", "try", "--config", config, "pay", "/else", check=False)
    assert done.returncode == 77 and "denied, no_grant, by " in done.stdout
    done = agent.verb("route", "try", "--config", config, "pay", "/else", "--json", check=False)
    assert done.returncode == 77 and json.loads(done.stdout)["reason"] == "no_grant"
    assert KEY not in said and len(agent.upstream.seen) == before
    done = agent.verb("check", "--content-only", "--config", config, check=False)
    assert '"POST /payouts/**", which `allow` has nothing of' in done.stdout + done.stderr


def test_the_log_holds_no_key(agent):
    for path, data in agent.everything_written():
        assert KEY.encode() not in data, path
