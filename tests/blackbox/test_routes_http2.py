"""Routes over HTTP/2, with nginx as the upstream: what it logs is what it was sent."""

import base64
import concurrent.futures.thread  # noqa: F401  (loaded before a child is another user, who cannot read the library)
import hashlib
import json
import os
import shutil
import socket
import subprocess

import pytest

from certificates import Authority
from harness import ALICE, BOB, Agent, UnixHTTP, as_user, eventually, open_to_others
from hostile import Hostile
from inside import disguises, holds_no_copy
from test_routes import route
from test_routes_way import pin

NGINX = shutil.which("nginx") or "/usr/sbin/nginx"
pytestmark = pytest.mark.skipif(not os.path.exists(NGINX), reason="needs nginx (Debian package nginx-light): HTTP/2 is NOT shown")

KEY = "CANARY-http2/5d0e+77a1~c3"
LONG = "CANARY-long-" + "x" * 20_000

POLICY = """
[[bot]]
name = "bot-marker-h2"
match = { uid = 20001 }
roles = ["caller"]
[[bot]]
name = "root"
match = { uid = 0 }
roles = ["caller"]
[[bot]]
name = "bob"
match = { uid = 20002 }
roles = ["caller"]
[role.caller]
grants = [{ routes = ["*"], actions = ["use"] }]
"""

CONF = """
daemon off;
user root;
worker_processes 1;
pid {folder}/pid;
error_log stderr;
events {{ worker_connections 1024; }}
http {{
log_format told escape=json '{{"protocol":"$server_protocol","key":"$http_authorization","connection":"$connection","uri":"$request_uri","host":"$host","te":"$http_te"}}';
access_log {folder}/told told;
client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
client_max_body_size 0;
large_client_header_buffers 8 64k;
server {{
  listen 127.0.0.1:{port} ssl http2;
  ssl_certificate {certificate};
  ssl_certificate_key {key};
  keepalive_requests {requests};
  location /echo {{ return 200 "$http_authorization"; }}
  location /trailing {{ add_header X-Key $http_authorization always; return 404 "no"; }}
  location / {{ proxy_pass {upstream}; proxy_http_version 1.1; proxy_request_buffering off; proxy_buffering off; proxy_set_header Connection $http_connection; }}
}}
}}
"""


class Nginx:
    def __init__(self, folder, issued, upstream, requests=100_000):
        self.folder, self.told = folder, folder / "told"
        folder.mkdir()
        with Hostile() as free:
            self.port = free.port
        self.address = f"https://127.0.0.1:{self.port}"
        conf = folder / "nginx.conf"
        conf.write_text(CONF.format(folder=folder, port=self.port, certificate=issued.certificate, key=issued.key,
                                    requests=requests, upstream=upstream))
        self.process = subprocess.Popen([NGINX, "-p", folder, "-e", "stderr", "-c", conf], stderr=open(folder / "errors", "wb"))
        eventually(lambda: (folder / "pid").exists())

    def requests(self, uri=None):
        told = [json.loads(line) for line in self.told.read_text().splitlines()]
        return [one for one in told if uri in (None, one["uri"])]

    def close(self):
        self.process.terminate()
        self.process.wait(20)


class Place:
    def __init__(self, folder):
        authority = Authority(folder)
        os.chmod(authority.file, 0o644)
        issued = authority.server()
        self.behind = Hostile()
        self.nginx = Nginx(folder / "nginx", issued, self.behind.address)
        self.brief = Nginx(folder / "brief", issued, self.behind.address, requests=3)
        more = f'http2 = true\nallow_private = true\nca_file = "{authority.file}"'
        basic = '{ basic = { user = "{secret#user}", password = "{secret#password}" } }'
        self.agent = Agent(
            policy=route("two", self.nginx.address, more=more) + route("long", self.nginx.address, secret="app/long", more=more)
            + route("basic", self.nginx.address, basic, "app/login", more=more)
            + route("pinned", self.nginx.address, more=f'{more}\npins = ["{pin(issued.certificate)}"]')
            + route("mispinned", self.nginx.address, more=f'{more}\npins = ["{pin(authority.file)}"]')
            + route("brief", self.brief.address, more=more)
            + route("one", self.nginx.address, more=more.replace("http2 = true", "")) + POLICY,
            secrets={"app/key": KEY, "app/long": LONG, "app/login": json.dumps({"user": "u", "password": KEY})},
        )

    def __enter__(self):
        self.behind.__enter__(), self.agent.__enter__()
        return self

    def __exit__(self, *_):
        self.agent.__exit__(), self.nginx.close(), self.brief.close(), self.behind.__exit__()

    def use(self, path, method="GET", body=None, uid=ALICE, **headers):
        return self.agent.get("/v1/use/" + path, uid, method, body, **headers)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("http2", numbered=False)
    open_to_others(folder)
    with Place(folder) as place:
        yield place


def test_the_upstream_gets_the_key_by_http2_and_the_bot_never_does(place):
    for name, key in (("two", KEY), ("long", LONG)):
        reply = place.use(f"{name}/echo/{name}?a=b%20c", TE="trailers", Connection="te")
        assert (reply.status, reply.body) == (200, b"Bearer " + b"*" * len(key))
        [told] = place.nginx.requests(f"/echo/{name}?a=b%20c")
        assert (told["protocol"], told["key"], told["te"]) == ("HTTP/2.0", f"Bearer {key}", "trailers")
        assert told["host"] == "127.0.0.1"
    assert place.use("basic/echo/basic").status == 200
    expected = base64.b64encode(f"u:{KEY}".encode()).decode()
    assert place.nginx.requests("/echo/basic")[0]["key"] == f"Basic {expected}"
    # What does not ask for it, and who cannot speak it, goes by HTTP/1.1.
    assert place.use("one/echo/one").status == 200
    assert place.nginx.requests("/echo/one")[0]["protocol"] == "HTTP/1.1"
    reply = place.use("two/trailing/x")
    assert reply.status == 404 and reply.headers["x-key"] == "Bearer " + "*" * len(KEY)


def test_pins_count_before_http2_begins(place):
    assert place.use("pinned/echo/pinned").status == 200
    assert place.nginx.requests("/echo/pinned")[0]["protocol"] == "HTTP/2.0"
    reply = place.use("mispinned/echo/mispinned")
    assert (reply.status, reply.json()["code"]) == (502, "upstream_failed")
    assert not place.nginx.requests("/echo/mispinned")


def test_requests_of_a_bot_share_a_connection_and_those_of_another_do_not(place):
    def many():
        ask = lambda number: UnixHTTP(place.agent.socket).get(f"/v1/use/two/status?code=200&n={number}").status
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            return set(pool.map(ask, range(64)))

    assert as_user(ALICE, many) == {200}
    assert place.use("two/status?code=200&n=bob", uid=BOB).status == 200
    told = {one["uri"]: one for one in place.nginx.requests() if one["uri"].startswith("/status?code=200&n=")}
    assert len(told) == 65 and {one["key"] for one in told.values()} == {f"Bearer {KEY}"}
    of_bob = told.pop("/status?code=200&n=bob")["connection"]
    connections = [one["connection"] for one in told.values()]
    # Those that come at once before there is one open one each.
    assert len(set(connections)) <= 16 and of_bob not in connections
    assert max(map(connections.count, connections)) >= 40


def test_an_upstream_that_ends_its_connections_fails_no_request(place):
    for number in range(12):
        assert place.use(f"brief/status?code=200&n={number}").status == 200
    assert len({one["connection"] for one in place.brief.requests()}) >= 4


def test_bodies_stream_both_ways(place):
    body = os.urandom(3 << 20)
    reply = place.use("two/upload", "PUT", body)
    assert reply.body.decode() == hashlib.sha256(body).hexdigest()
    assert len(place.use("two/download?bytes=5000000").body) == 5_000_000
    assert place.nginx.requests("/upload")[-1]["protocol"] == "HTTP/2.0"
    used = eventually(lambda: [r for r in place.agent.records(event="secret.used", route="two") if r["received"] == 5_000_000])
    assert used[0]["complete"] and used[0]["status"] == 200


def test_a_slow_reader_holds_up_nobody_and_one_that_leaves_ends_its_request(place):
    def slow():
        http = UnixHTTP(place.agent.socket)
        http.putrequest("GET", "/v1/use/two/download?bytes=50000000", skip_host=True)
        http.putheader("Host", "x")
        http.endheaders()
        answer = http.getresponse()
        answer.read(1000)
        # The same bot's other requests go on meanwhile, over the same connection.
        other = [UnixHTTP(place.agent.socket).get("/v1/use/two/status?code=200").status for _ in range(5)]
        http.close()
        return other

    assert as_user(ALICE, slow) == [200] * 5
    cut = lambda: [r for r in place.agent.records(event="secret.used", route="two") if not r["complete"]]
    assert eventually(cut)[-1]["received"] < 50_000_000


def test_a_rotation_reaches_the_next_request_over_the_same_connection(place):
    assert place.use("two/status?code=200&turn=1").status == 200
    place.agent.put("app/key", "CANARY-the-next")
    try:
        assert place.use("two/status?code=200&turn=2").status == 200
        first, second = (place.nginx.requests(f"/status?code=200&turn={turn}")[0] for turn in (1, 2))
        assert (first["key"], second["key"]) == (f"Bearer {KEY}", "Bearer CANARY-the-next")
        assert first["connection"] == second["connection"]
    finally:
        place.agent.put("app/key", KEY)


def test_seal_ends_streams_and_wipes(place):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(str(place.agent.socket))
        sock.sendall(b"GET /v1/use/two/download?bytes=50000000 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert sock.recv(20).startswith(b"HTTP/1.1 200 ")
        try:
            assert json.loads(place.agent.ops("seal", "--json").stdout)["secret_memory_used"] == 0
            assert place.use("two/echo").json()["code"] == "sealed"
            left = 0
            while piece := sock.recv(1 << 20):
                left += len(piece)
            assert left < 50_000_000
        finally:
            place.agent.ops("unseal")
    eventually(lambda: place.use("two/echo").status == 200)


def test_the_daemons_memory_holds_no_copy_a_second_later(place):
    for _ in range(20):
        assert place.use("two/status?code=200").status == 200
        assert place.use("two/echo").status == place.use("long/echo").status == 200
    wanted = disguises(KEY) | {"long": LONG[:200].encode()}
    holds_no_copy(place.agent.pid, wanted, "bot-marker-h2")


def test_no_record_log_or_file_holds_the_key(place):
    for path, data in place.agent.everything_written():
        for form in (KEY, LONG[:100]):
            assert form.encode() not in data, path
