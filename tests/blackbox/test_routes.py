"""Routes: what an upstream gets, what a bot gets, and the many ways in which a bot gets nothing of the key.

The upstream is a hostile one of the tests' own, over TLS and in clear on loopback.
"""

import base64
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import threading

import pytest

from certificates import Authority
from harness import ALICE, BOB, KEYHATCH, Agent, UnixHTTP, as_user, eventually, open_to_others
from hostile import EVENT, Hostile
from inside import Scan, disguises, holds_no_copy

# With characters that encoders treat each in their own way.
KEY = "CANARY-key/7f3a+9c51~d0b4"
USER, PASSWORD = "canary-user-55e0", "CANARY-password-81d2"
MARKER = "bot-marker-6c19"

POLICY = """
[[bot]]
name = "{marker}"
match = {{ uid = 20001 }}
roles = ["caller"]
[[bot]]
name = "sdk"
match = {{ uid = 0 }}
roles = ["caller"]
[[bot]]
name = "bob"
match = {{ uid = 20002 }}
roles = ["reader"]
[role.caller]
grants = [{{ routes = ["*"], actions = ["use"] }}]
[role.reader]
grants = [{{ secrets = ["other/**"] }}, {{ routes = ["query"] }}]
"""

ROUTE = """
[[route]]
name = "{name}"
upstream = "{upstream}"
secret = "{secret}"
inject = {inject}
allow = {allow}
{more}
"""


def route(name, upstream, inject='{ header = "authorization", value = "Bearer {secret}" }', secret="app/key",
          allow=("* /**",), more="allow_private = true"):
    return ROUTE.format(name=name, upstream=upstream, inject=inject, secret=secret, allow=json.dumps(list(allow)),
                        more=more)


class Place:
    """An agent with routes to two hostile upstreams, one over TLS, and what is asked of them."""

    def __init__(self, folder):
        authority = Authority(folder)
        os.chmod(authority.file, 0o644)
        self.tls = Hostile(authority.server())
        self.clear = Hostile()
        private = f'allow_private = true\nca_file = "{authority.file}"'
        self.routes = "".join([
            route("tls", self.tls.address, more=private),
            route("clear", self.clear.address),
            route("query", self.clear.address, '{ query = "key", value = "{secret}" }', allow=["GET /echo"]),
            route("basic", self.clear.address, '{ basic = { user = "{secret#user}", password = "{secret#password}" } }',
                  "app/login"),
            route("two", self.clear.address, '[{ header = "x-api-key", value = "{secret}" }, { query = "sig k", value = "v-{secret}" }]'),
            route("narrow", self.clear.address, allow=["GET /v1/models/*", "POST /v1/chat"],
                  more='allow_private = true\ndeny = ["GET /v1/models/secret"]'),
            route("public", self.clear.address, more='allow_private = false').replace("http://", "https://"),
            route("untrusted", self.tls.address),
            route("limited", self.clear.address,
                  more='allow_private = true\nlimits = { requests_per_minute = 3, body = "1KiB", streams = 1 }'),
            route("claude", self.tls.address, '{ header = "x-api-key", value = "{secret}" }', more=private),
            route("patient", self.clear.address, more='allow_private = true\ntimeout = "1s"'),
        ])
        self.agent = Agent(
            policy=self.routes + POLICY.format(marker=MARKER),
            secrets={"app/key": KEY, "app/login": json.dumps({"user": USER, "password": PASSWORD}), "other/x": "1"},
        )

    def __enter__(self):
        self.tls.__enter__(), self.clear.__enter__(), self.agent.__enter__()
        return self

    def __exit__(self, *_):
        self.agent.__exit__(), self.clear.__exit__(), self.tls.__exit__()

    def use(self, path, method="GET", body=None, uid=ALICE, **headers):
        return self.agent.get("/v1/use/" + path, uid, method, body, **headers)

    def raw(self, data, uid=ALICE, until=b""):
        """Sends bytes as they are; what comes back until the agent ends the connection, or `until` it is there."""
        def act():
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(20)
                sock.connect(str(self.agent.socket))
                sock.sendall(data)
                out = b""
                while not until or until not in out:
                    piece = sock.recv(65536)
                    if not piece:
                        break
                    out += piece
                return out

        return as_user(uid, act)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls", numbered=False)
    open_to_others(folder)
    with Place(folder) as place:
        yield place


def test_the_upstream_gets_the_key_and_the_bot_never_does(place):
    for name, upstream in [("tls", place.tls), ("clear", place.clear)]:
        reply = place.use(f"{name}/echo/v1/chat?a=1&b=%20", "POST", b'{"x": 1}', Authorization="Bearer placeholder",
                          Content_Type="application/json", X_Kept="yes")
        assert reply.status == 200, reply
        assert reply.headers["keyhatch-route"] == name
        seen = upstream.last()
        assert seen.line == "POST /echo/v1/chat?a=1&b=%20 HTTP/1.1"
        assert seen.headers["authorization"] == f"Bearer {KEY}"
        assert [value for key, value in seen.pairs if key.lower() == "host"] == [upstream.address.split("//")[1]]
        assert (seen.headers["x-kept"], seen.headers["accept-encoding"], seen.body) == ("yes", "identity", b'{"x": 1}')
        # What it echoes has the key's place, and nothing of the key.
        told = dict(map(tuple, reply.json()["headers"]))
        assert told["authorization"] == "Bearer " + "*" * len(KEY)
        assert b"CANARY" not in reply.body and b"placeholder" not in reply.body


def test_every_kind_of_injection(place):
    place.use("query/echo?key=mine&a=1&k%65y=mine")
    assert place.clear.last().query == {"a": "1", "key": KEY}
    place.use("basic/echo", Authorization="Basic bWluZQ==")
    assert base64.b64decode(place.clear.last().credential).decode() == f"{USER}:{PASSWORD}"
    place.use("two/echo", X_API_KEY="mine", x_api_key="mine")
    seen = place.clear.last()
    assert (seen.headers["x-api-key"], seen.query) == (KEY, {"sig k": f"v-{KEY}"})
    assert [name.lower() for name, _ in seen.pairs].count("x-api-key") == 1


@pytest.mark.parametrize("path", [
    "echo-header", "echo-trailer", "drip", *(f"echo-chunks?size={size}" for size in (1, 2, 7, 30)),
    *(f"echo-form?as={form}" for form in ("raw", "base64", "base64url", "hex", "HEX", "json", "percent", "plus")),
    "redirect?to=/elsewhere", "status?code=500", "gzip",
])
def test_nothing_comes_back(place, path):
    masked = len(place.agent.records(event="alert.masked"))
    head = f"GET /v1/use/tls/{path} HTTP/1.1\r\nHost: x\r\nTE: trailers\r\nConnection: close, TE\r\n\r\n"
    raw = place.raw(head.encode())
    everything = raw.decode("latin-1")
    for name, form in disguises(KEY).items():
        assert form.decode("latin-1") not in everything, name
    assert "CANARY" not in everything
    if path == "gzip":
        assert "502 Bad Gateway" in everything and "compressed" in everything
    elif "echo" in path or path == "drip":
        assert "****" in everything and "200 OK" in everything
        assert eventually(lambda: len(place.agent.records(event="alert.masked")) == masked + 1)
    if "chunks" in path:
        assert everything.count("*") == len(KEY)
    if "trailer" in path:
        assert "\r\nx-sum: 1\r\n" in everything and "\r\nx-key: ****" in everything
    if path == "echo-header":
        assert "keyhatch-route: tls" in everything and "forged" not in everything


def test_statuses_redirects_and_errors_of_the_upstream_pass_through(place):
    reply = place.use("tls/status?code=503")
    assert (reply.status, reply.json(), reply.headers["x-own"]) == (503, {"error": "no"}, "1")
    assert reply.headers["keyhatch-route"] == "tls"
    before = len(place.clear.seen)
    reply = place.use(f"tls/redirect?to={place.clear.address}/echo")
    assert (reply.status, reply.headers["location"]) == (307, f"{place.clear.address}/echo")
    assert len(place.clear.seen) == before, "a redirect is not followed"


@pytest.mark.parametrize("path, status, code, detail", [
    ("untrusted/echo", 502, "upstream_failed", "authority that is not trusted"),
    ("public/echo", 502, "upstream_failed", "loopback"),
    ("clear/hang-up", 502, "upstream_failed", "ended the connection"),
    ("clear/nonsense", 502, "upstream_failed", "not HTTP"),
    ("patient/silent", 504, "upstream_timeout", "silent for 1 s"),
])
def test_our_own_failures_are_problem_documents(place, path, status, code, detail):
    reply = place.use(path)
    assert (reply.status, reply.json()["code"]) == (status, code), reply
    assert detail in reply.json()["detail"]
    assert reply.headers["content-type"] == "application/problem+json"
    assert "keyhatch-route" not in reply.headers
    ended = place.agent.records(event="secret.used", request_id=reply.json()["request_id"])
    assert len(ended) == 1 and not ended[0]["complete"] and detail in ended[0]["note"]


def test_an_answer_that_is_cut_is_cut_for_the_bot_too(place):
    raw = place.raw(b"GET /v1/use/clear/cut HTTP/1.1\r\nHost: x\r\n\r\n")
    assert raw.endswith(b"only this") and b"content-length: 100" in raw


def test_only_the_calls_that_are_allowed(place):
    assert place.use("narrow/v1/models/gpt-4").status == 200
    assert place.use("narrow/v1/chat", "POST", b"{}").status == 200
    before = len(place.clear.seen)
    for path, method in [
        ("narrow/v1/models/secret", "GET"), ("narrow/v1/models/s%65cret", "GET"), ("narrow/v1/models", "GET"),
        ("narrow/v1/models/a/b", "GET"), ("narrow/v1/chat", "GET"), ("narrow/v1/chat", "HEAD"), ("narrow/v1/chat/", "POST"),
        ("narrow/V1/chat", "POST"), ("narrow", "GET"), ("narrow/v1/files", "POST"),
    ]:
        reply = place.use(path, method, b"" if method == "POST" else None, X_HTTP_Method_Override="POST")
        assert reply.status == 403, (path, method, reply)
        if method != "HEAD":
            assert "does not allow" in reply.json()["detail"]
    assert len(place.clear.seen) == before, "nothing of it left"
    record = place.agent.records(event="secret.use", decision="deny")[-1]
    assert (record["reason"], record["route"], record["method"], record["path"]) == ("no_grant", "narrow", "POST", "/v1/files")
    assert record["rule"].startswith(str(place.agent.config))


@pytest.mark.parametrize("target", [
    "/v1/use/narrow/v1/models/../admin", "/v1/use/narrow/v1/models/%2e%2e/admin", "/v1/use/narrow/v1%2fmodels/x",
    "/v1/use/narrow/v1/models/..%2f..%2fadmin", "/v1/use/narrow/v1/models/%252e%252e/x", "/v1/use/narrow//v1/chat",
    "/v1/use/narrow/v1/models/x%00", "/v1/use/narrow/v1/models/x%0d%0aX-Y:1", "/v1/use/narrow/v1/models/%5c..%5cx",
    "/v1/use/narrow/v1/models/..;/x", "/v1/use/narrow/v1/models/%ff", "/v1/use/", "/v1/use/../secrets/app/key",
    "/v1/use/narrow/../tls/echo",
])
def test_tricks_with_paths_are_bad_requests(place, target):
    before = len(place.clear.seen) + len(place.tls.seen)
    raw = place.raw(f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert raw.startswith(b"HTTP/1.1 400 ") and b'"code":"bad_request"' in raw, raw
    assert len(place.clear.seen) + len(place.tls.seen) == before


@pytest.mark.parametrize("request_head", [
    "TRACE /v1/use/clear/echo HTTP/1.1\r\nHost: x",
    "CONNECT clear:443 HTTP/1.1\r\nHost: clear:443",
    "GET http://elsewhere.test/v1/use/clear/echo HTTP/1.1\r\nHost: elsewhere.test",
    "GET /v1/use/clear/echo HTTP/1.1\r\nHost: elsewhere.test\r\nX-Forwarded-Host: elsewhere.test\r\nForwarded: host=elsewhere.test",
    "GET /v1/use/clear/echo HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__",
    "GET /v1/use/clear/echo HTTP/1.1\r\nHost: x\r\nConnection: Authorization, Host, Content-Length",
    "GET /v1/use/clear/echo HTTP/1.1\r\nHost: x\r\nRange: bytes=0-5\r\nAccept-Encoding: gzip, br",
    "POST /v1/use/clear/echo HTTP/1.1\r\nHost: x\r\nX-Original-URL: /admin\r\nX-HTTP-Method: DELETE\r\nContent-Length: 0",
    "GET /v1/use/clear/echo HTTP/1.1\r\nHost: x\r\nX-A: 1\r\nX-A: CANARY\x01",
])
def test_tricks_with_heads_reach_no_other_host_and_change_nothing(place, request_head):
    before = len(place.clear.seen)
    raw = place.raw(request_head.replace("\r\nHost", "\r\nConnection: close\r\nHost").encode() + b"\r\n\r\n")
    assert KEY.encode() not in raw
    for seen in place.clear.seen[before:]:
        assert seen.headers["host"] == place.clear.address.split("//")[1]
        assert seen.headers["authorization"] == f"Bearer {KEY}"
        assert seen.line in ("GET /echo HTTP/1.1", "POST /echo HTTP/1.1")
        assert seen.headers["accept-encoding"] == "identity"
        assert not {"x-forwarded-host", "forwarded", "upgrade", "http2-settings", "range", "x-original-url", "x-http-method",
                    "connection"} & set(seen.headers)
    if request_head.startswith(("TRACE", "CONNECT")):
        assert len(place.clear.seen) == before


def test_a_body_that_smuggles_a_request_is_a_body(place):
    before = len(place.clear.seen)
    inner = b"0\r\n\r\nGET /admin HTTP/1.1\r\nHost: x\r\n\r\n"
    head = b"POST /v1/use/clear/echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    place.raw(head + b"Content-Length: %d\r\n\r\n" % len(inner) + inner)
    place.raw(head + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n" + inner)
    place.raw(head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\nAuthorization: mine\r\nX: y\r\n\r\n" % (len(inner), inner))
    for seen in place.clear.seen[before:]:
        assert seen.path == "/echo" and seen.trailers == []
        assert seen.headers["authorization"] == f"Bearer {KEY}"


def test_who_may_not_use_a_route_learns_nothing_of_it(place):
    before = len(place.clear.seen)
    denied, absent = place.use("clear/echo", uid=BOB), place.use("no-such-route/echo", uid=BOB)
    assert denied.status == absent.status == 403
    without_id = lambda reply: {k: v for k, v in reply.json().items() if k != "request_id"}
    assert without_id(denied) == without_id(absent) and "detail" not in denied.json()
    assert place.use("query/echo", uid=BOB).status == 200, "what is granted works"
    assert len(place.clear.seen) == before + 1
    assert (place.use("no-such-route/echo").status, place.use("clear/echo", uid=BOB + 5).status) == (404, 403)
    # Use is not read.
    assert place.agent.read("app/key", ALICE).status == 403
    grants = place.agent.get("/v1/whoami", ALICE).json()["grants"]
    assert grants == [{"role": "caller", "routes": ["*"], "actions": ["use"]}]


def test_both_records_of_a_use(place):
    reply = place.use("tls/echo/audited?secret=CANARY-query", "POST", b"12345")
    used = eventually(lambda: place.agent.records(event="secret.used")[-1:])[0]
    use = place.agent.records(event="secret.use", request_id=used["request_id"])[0]
    assert use["seq"] < used["seq"]
    assert (use["decision"], use["reason"], use["secret"], use["surface"]) == ("allow", "granted", "app/key", "route")
    assert (use["route"], use["method"], use["path"]) == ("tls", "POST", "/echo/audited")
    assert use["version"] == used["version"] and use["bot"] == MARKER
    assert (used["status"], used["sent"], used["received"]) == (200, 5, len(reply.body))
    assert used["complete"] and used["upstream"] == place.tls.address.split("//")[1] and used["ms"] >= 0
    assert "CANARY" not in json.dumps([use, used])
    place.agent.verify()


def test_events_come_one_by_one_as_they_are_sent(place):
    upstream = place.tls
    upstream.go.clear()

    def act():
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(20)
            sock.connect(str(place.agent.socket))
            sock.sendall(b"GET /v1/use/tls/sse?events=3 HTTP/1.1\r\nHost: x\r\n\r\n")
            out = b""
            for number in range(3):
                open(signal, "w").close()
                while EVENT % number not in out:
                    out += sock.recv(4096)
            return out

    signal = str(place.agent.dir / "run" / "next")
    os.chmod(place.agent.dir / "run", 0o777)

    def let_go():
        # Each event leaves the upstream only once the bot has the one before.
        for _ in range(3):
            eventually(lambda: os.path.exists(signal), seconds=20)
            os.unlink(signal)
            upstream.go.set()
            eventually(lambda: not upstream.go.is_set(), seconds=20)

    helper = threading.Thread(target=let_go)
    helper.start()
    try:
        assert b"text/event-stream" in as_user(ALICE, act)
    finally:
        helper.join()


def test_large_bodies_stream_both_ways_and_nothing_is_kept(place):
    size = 64 << 20
    piece = b"0123456789abcdef" * 4096

    def act():
        http = UnixHTTP(place.agent.socket, timeout=120)
        http.putrequest("PUT", "/v1/use/tls/upload", skip_host=True)
        http.putheader("Host", "x")
        http.putheader("Content-Length", str(size))
        http.endheaders()
        digest = hashlib.sha256()
        for _ in range(size // len(piece)):
            http.send(piece)
            digest.update(piece)
        told = http.getresponse().read()
        assert told == digest.hexdigest().encode(), told
        http.putrequest("GET", f"/v1/use/tls/download?bytes={size}", skip_host=True)
        http.putheader("Host", "x")
        http.endheaders()
        reply, got = http.getresponse(), 0
        while data := reply.read(1 << 20):
            got += len(data)
        return got

    rss = lambda: int(open(f"/proc/{place.agent.pid}/statm").read().split()[1]) * 4096
    before = rss()
    assert as_user(ALICE, act, timeout=120) == size
    assert rss() - before < 16 << 20


def test_100_continue_early_answers_and_chunked_bodies(place):
    raw = place.raw(b"POST /v1/use/clear/echo HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 20000\r\n\r\n",
                    until=b"100 Continue\r\n\r\n")
    assert raw.startswith(b"HTTP/1.1 100 Continue")
    denied = place.raw(b"POST /v1/use/narrow/x HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 20000\r\n\r\n",
                       until=b"}")
    assert denied.startswith(b"HTTP/1.1 403"), "who is refused sends no body"
    chunked = b"POST /v1/use/clear/echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    assert b"200 OK" in place.raw(chunked) and place.clear.last().body == b"hello"
    early = place.raw(b"POST /v1/use/clear/early HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100, until=b"enough")
    assert early.startswith(b"HTTP/1.1 413") and b"keyhatch-route: clear" in early


def test_connections_are_kept_warm_and_a_dead_one_is_no_failure(place):
    place.use("tls/status?code=200")
    before = place.tls.connections
    for _ in range(5):
        assert place.use("tls/status?code=200").status == 200
    assert place.tls.connections == before
    for _ in range(4):
        assert place.use("clear/once").status == 200
    # One that the upstream closes instead of answering, too: then the request is made on a new one.
    assert place.use("clear/status?code=200").status == 200
    reply = place.use("clear/hang-up")
    assert (reply.status, reply.json()["code"]) == (502, "upstream_failed")
    assert [request.path for request in place.clear.seen[-2:]] == ["/hang-up"] * 2


def test_limits_are_each_bots_own(place):
    before = len(place.clear.seen)
    head = b"POST /v1/use/limited/echo HTTP/1.1\r\nHost: x\r\n"
    large = place.raw(head + b"Content-Length: 1025\r\n\r\n" + b"x" * 1025, until=b"}")
    assert large.startswith(b"HTTP/1.1 413") and b'"code":"too_large"' in large
    chunked = b"Transfer-Encoding: chunked\r\n\r\n500\r\n" + b"x" * 0x500 + b"\r\n0\r\n\r\n"
    assert place.raw(head + chunked, until=b"}").startswith(b"HTTP/1.1 413")
    assert place.use("limited/echo").status == 200
    over = place.use("limited/echo")
    assert (over.status, over.json()["code"]) == (429, "rate_limited")
    assert 1 <= int(over.headers["retry-after"]) <= 20
    record = place.agent.records(event="secret.use", decision="deny")[-1]
    assert (record["reason"], record["limit"]) == ("limited", "requests_per_minute")
    assert len([seen for seen in place.clear.seen[before:] if seen.body == b""]) == 1


def stream_while(place, path, act):
    """Streams from `path` until its end while another thread does `act` with the request as the upstream saw it."""
    upstream, seen, failed = place.clear, [], []
    upstream.go.clear()
    before = len(upstream.seen)

    def run():
        try:
            seen.append(eventually(lambda: upstream.seen[before:])[0])
            act(seen[0])
        except BaseException as error:
            failed.append(error)
            upstream.go.set()

    helper = threading.Thread(target=run)
    helper.start()
    out = place.raw(f"GET /v1/use/clear/{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    helper.join(60)
    assert not failed, failed
    return out, seen[0]


def test_rotation_in_a_stream_and_before_an_answer(place):
    upstream, new = place.clear, "CANARY-key-new-3b8f"

    def rotates(seen):
        upstream.go.set()
        eventually(lambda: not upstream.go.is_set())
        place.agent.put("app/key", new)
        upstream.go.set()

    streamed, seen = stream_while(place, "sse?events=2", rotates)
    assert seen.credential == KEY and streamed.count(b"data:") == 2, "what streams goes on to its end"
    upstream.accepts = new
    assert place.use("clear/only").status == 200, "the next request has the new one"
    # An upstream that knows the new value before the old one's request is answered: it is made once more.
    before = len(upstream.seen)

    def rotates_back(seen):
        place.agent.put("app/key", KEY)
        upstream.accepts = KEY
        upstream.go.set()

    streamed, seen = stream_while(place, "only-late", rotates_back)
    assert b"200 OK" in streamed and b"welcome" in streamed
    assert [r.credential for r in upstream.seen[before:]] == [new, KEY]
    records = place.agent.records(event="secret.used")[-2:]
    assert records[0]["request_id"] == records[1]["request_id"] and "once more" in records[0]["note"]
    assert records[0]["version"] != records[1]["version"]
    # A 401 is the upstream's to give, where nothing was rotated.
    upstream.accepts = "another"
    assert place.use("clear/only").status == 401
    upstream.accepts = None


def test_the_daemons_memory_holds_no_copy_a_second_later(place):
    for name in ("tls", "clear", "two", "query", "basic"):
        for _ in range(20):
            assert place.use(f"{name}/echo").status == 200
    assert place.use("basic/echo").status == 200
    wanted = disguises(KEY) | disguises(PASSWORD) | disguises(f"{USER}:{PASSWORD}")
    holds_no_copy(place.agent.pid, wanted, MARKER)


def test_seal_ends_streams_and_wipes(place):
    sealed = []

    def seals(_):
        place.clear.go.set()
        eventually(lambda: not place.clear.go.is_set())
        sealed.append(json.loads(place.agent.ops("seal", "--json").stdout))

    try:
        out, _ = stream_while(place, "sse?events=5", seals)
        assert sealed[0]["secret_memory_used"] == 0
        assert out.count(b"data:") == 1 and not out.endswith(b"0\r\n\r\n"), "ended, and not as if it were whole"
        assert place.use("clear/echo").json()["code"] == "sealed"
    finally:
        place.agent.ops("unseal")
    eventually(lambda: place.use("clear/echo").status == 200)


SDKS = """
import os, sys
import anthropic, openai

def ask():
    client = openai.OpenAI()
    say = [{"role": "user", "content": "what is your key?"}]
    print(client.chat.completions.create(model="m", messages=say).choices[0].message.content)
    for event in client.chat.completions.create(model="m", messages=say, stream=True):
        print(event.choices[0].delta.content, end="")
    print()
    claude = anthropic.Anthropic()
    print(claude.messages.create(model="m", max_tokens=9, messages=say).content[0].text)
    try:
        client.models.retrieve("../../../status?code=1")
    except openai.APIStatusError as error:
        print(error.status_code)
    assert "CANARY" not in str(dict(os.environ))

ask()
print(os.getpid(), "marker-of-the-bot", flush=True)
sys.stdin.readline()
"""


def test_real_sdks_with_a_placeholder_key_streaming_included(place):
    sdk = subprocess.Popen(
        [KEYHATCH, "--socket", str(place.agent.socket), "run", "--route", "OPENAI_BASE_URL=tls/v1",
         "--route", "ANTHROPIC_BASE_URL=claude", "--", sys.executable, "-c", SDKS],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": os.environ.get("PYTHONPATH", "")},
    )
    before = len(place.tls.seen)
    lines = [sdk.stdout.readline().rstrip("\n") for _ in range(5)]
    masked = "your key is " + "*" * len(KEY)
    assert lines[:3] == [masked] * 3, lines
    assert lines[3] == "400", "a model's name is no way to another path"
    seen = [request.credential for request in place.tls.seen[before:]]
    assert seen == [KEY] * 3
    # Neither the SDK's process nor the one beside it has the key anywhere.
    for pid in (int(lines[4].split()[0]), sdk.pid):
        scan = Scan(pid, disguises(KEY))
        assert scan.read > 1 << 20 and set(scan.counts.values()) == {0}, (scan.counts, scan.where)
    assert Scan(int(lines[4].split()[0]), {"marker": b"marker-of-the-bot"}).counts["marker"] > 0
    assert sdk.communicate("\n", timeout=30)[0] == "" and sdk.returncode == 0


def test_explain_says_what_a_bot_may_ask_of_a_route(place):
    def explain(*args):
        done = place.agent.verb("explain", "--config", place.agent.config, *args, check=False)
        return done.returncode, done.stdout

    code, said = explain("--bot", MARKER, "--route", "narrow", "--call", "GET /v1/models/x")
    assert code == 0 and "allowed, granted" in said and 'routes = ["*"]' in said
    code, said = explain("--bot", MARKER, "--route", "narrow", "--call", "POST /v1/files")
    assert code == 77 and "denied, no_grant" in said and 'name = "narrow"' in said
    assert explain("--bot", "bob", "--route", "narrow")[0] == 77
    assert explain("--bot", "bob", "--route", "query")[0] == 0
    assert explain("--bot", "bob", "--route", "query", "--call", "GET /a/../b")[0] == 2


def test_metrics_of_each_route(place):
    before = metrics(place)
    place.use("clear/echo", "POST", b"12345")
    place.use("clear/hang-up")
    after = eventually(lambda: (now := metrics(place))["failed"] > before["failed"] and now)
    assert after["requests"] == before["requests"] + 2 and after["sent_bytes"] == before["sent_bytes"] + 5
    assert after["received_bytes"] > before["received_bytes"] and after["masked"] == before["masked"] + 1


def metrics(place):
    text = UnixHTTP(place.agent.admin_socket).get("/v1/metrics").body.decode()
    samples = re.findall(r'^keyhatch_route_(\w+?)(?:_total)?\{route="clear"\} (\d+)$', text, re.M)
    return {name: int(count) for name, count in samples}


def test_no_record_log_or_file_holds_the_key(place):
    for path, data in place.agent.everything_written():
        for needle in (KEY, PASSWORD):
            assert needle.encode() not in data, path
