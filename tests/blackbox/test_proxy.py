"""`keyhatch run --proxy`: tools that know no base URL call a route's host as they are, and the key is the upstream's alone."""

import base64
import encodings.idna  # noqa: F401  (loaded before a child is another user, who cannot read the library)
import json
import os
import socket
import subprocess
import sys
import tempfile

import pytest

from certificates import Authority
from harness import ALICE, BOB, CAROL, KEYHATCH, Agent, as_user, eventually, open_to_others
from hostile import Hostile
from test_routes import KEY, route
from test_routes_way import Proxy
from test_routes_websocket import Real

POLICY = """
[[bot]]
name = "alice"
match = { uid = 20001 }
roles = ["caller"]
[[bot]]
name = "bob"
match = { uid = 20002 }
roles = ["both"]
[[bot]]
name = "root"
match = { uid = 0 }
roles = ["talker"]
[[bot]]
name = "carol"
match = { uid = 20003 }
roles = ["hub"]
[role.hub]
grants = [{ routes = ["hub"], actions = ["use"] }]
[role.talker]
grants = [{ routes = ["ws"], actions = ["use"] }]
[role.caller]
grants = [{ routes = ["known", "clear"], actions = ["use"] }]
[role.both]
grants = [{ routes = ["known", "narrow"], actions = ["use"] }]
"""

# A client that is told of the proxy by its variables alone, in a language with no proxy of its own.
NODE = """
const { request } = require("node:http");
const tls = require("node:tls");
const proxy = new URL(process.env.HTTPS_PROXY);
const [host, port] = process.argv.slice(1);
const authorization = "Basic " + Buffer.from(`${proxy.username}:${proxy.password}`).toString("base64");
request({ host: proxy.hostname, port: proxy.port, method: "CONNECT", path: `${host}:${port}`, headers: { "proxy-authorization": authorization } })
  .on("connect", (_, socket) => {
    const secure = tls.connect({ socket, servername: host }, () => secure.write(`GET /echo HTTP/1.1\\r\\nHost: ${host}\\r\\nConnection: close\\r\\n\\r\\n`));
    secure.on("data", (data) => process.stdout.write(data)).on("end", () => process.exit(0));
  })
  .end();
"""


# A real client of WebSockets, which finds the proxy by itself.
TALK = """
import sys
from websockets.sync.client import connect
with connect(sys.argv[1]) as socket:
    for said in ("hello", "key?"):
        socket.send(said)
        print(socket.recv())
"""


class GitHost(Hostile):
    """Serves a bare repository as plain files to who has the key."""

    repository = None

    def do_repo(self, request, answer, _):
        path = self.repository / request.path.removeprefix("/repo/")
        if KEY not in request.headers.get("authorization", ""):
            return answer.whole(b"who?", status=401)
        if not path.is_file():
            return answer.whole(b"no", status=404)
        answer.whole(path.read_bytes(), kind="application/octet-stream")


class Hub(Hostile):
    """What gh asks of a GitHub Enterprise Server."""

    def do_api(self, request, answer, _):
        known = request.headers.get("authorization") == f"Bearer {KEY}"
        answer.whole(json.dumps({"login": "octocat", "path": request.path}).encode(), 200 if known else 401, "application/json")


class Place:
    """An agent with routes to one server; another server that no route leads to, which clients trust by themselves."""

    def __init__(self, folder):
        ours, theirs = Authority(folder, "ours"), Authority(folder, "theirs")
        self.trusted = theirs.file
        for authority in (ours, theirs):
            os.chmod(authority.file, 0o644)
        self.known = GitHost(ours.server("known", "localhost"))
        self.other = Hostile(theirs.server("other", "localhost"))
        self.clear, self.plain, self.talker = Hostile(), Hostile(), Real()
        for server in (self.known, self.other):
            server.address = f"https://localhost:{server.port}"
        private = f'allow_private = true\nca_file = "{ours.file}"'
        # A server on the usual port, at a name that resolves for a proxy alone.
        self.hub = Hub(ours.server("hub", "hub.invalid"))
        self.leads = Proxy({"hub.invalid:443": ("127.0.0.1", self.hub.port)})
        hub = f'ca_file = "{ours.file}"\nproxy = "{self.leads.address}"'
        self.agent = Agent(
            policy=POLICY + route("known", self.known.address, more=private)
            + route("narrow", self.known.address, allow=["GET /echo"], more=private) + route("clear", self.clear.address)
            + route("ws", self.talker.address) + route("hub", "https://hub.invalid", more=hub),
            secrets={"app/key": KEY},
        )
        self.parts = [self.known, self.other, self.clear, self.plain, self.hub, self.agent]

    def __enter__(self):
        for part in self.parts:
            part.__enter__()
        return self

    def __exit__(self, *_):
        for part in self.parts:
            part.__exit__()
        self.talker.server.shutdown()
        self.leads.close()

    def run(self, *command, options=("--proxy",), uid=ALICE, **env):
        env = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "KEYHATCH_SOCKET": str(self.agent.socket),
               "SSL_CERT_FILE": str(self.trusted), "CURL_CA_BUNDLE": str(self.trusted), **env}
        done = subprocess.run([KEYHATCH, "run", *options, "--", *command], user=uid, group=uid, extra_groups=[], env=env,
                              capture_output=True, text=True, timeout=60, cwd="/")
        assert KEY not in done.stdout + done.stderr
        return done


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("proxy")
    open_to_others(folder)
    with Place(folder) as place:
        yield place


def python(url):
    return ["/usr/bin/python3", "-c", f"import urllib.request as u; print(u.urlopen('{url}', timeout=20).read().decode())"]


def test_curl_python_and_node_as_they_are(place):
    url = place.known.address + "/echo?a=1"
    for command in [["curl", "-sS", url], python(url), ["node", "-e", NODE, "localhost", str(place.known.port)]]:
        before = len(place.known.seen)
        done = place.run(*command)
        assert done.returncode == 0, done
        assert "Bearer " + "*" * len(KEY) in done.stdout, done
        seen = place.known.last()
        assert len(place.known.seen) == before + 1 and seen.headers["authorization"] == f"Bearer {KEY}"
    used = eventually(lambda: place.agent.records(event="secret.use", decision="allow")[-1])
    assert (used["bot"], used["route"], used["method"], used["path"]) == ("alice", "known", "GET", "/echo")


def test_git_clones_over_https(place, tmp_path):
    work, place.known.repository = tmp_path / "work", tmp_path / "bare"
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@x", "-c", "init.defaultBranch=main"]
    subprocess.run([*git, "init", "-q", work], check=True)
    (work / "file").write_text("from the repository")
    for command in (["add", "file"], ["commit", "-qm", "one"]):
        subprocess.run([*git, "-C", work, *command], check=True)
    subprocess.run([*git, "clone", "-q", "--bare", work, place.known.repository], check=True)
    subprocess.run([*git, "-C", place.known.repository, "update-server-info"], check=True)
    script = f'cd "$(mktemp -d)" && git clone -q {place.known.address}/repo out && cat out/file && rm -r out'
    done = place.run("sh", "-c", script, GIT_CONFIG_NOSYSTEM="1")
    assert (done.returncode, done.stdout) == (0, "from the repository"), done


def test_gh_calls_its_host_with_a_placeholder_token(place):
    script = 'export HOME="$(mktemp -d)"; gh api user --jq .login; gh api repos/o/r --jq .path; rm -r "$HOME"'
    done = place.run("sh", "-c", script, uid=CAROL, GH_HOST="hub.invalid", GH_ENTERPRISE_TOKEN="placeholder")
    assert (done.returncode, done.stdout) == (0, "octocat\n/api/v3/repos/o/r\n"), done
    used = eventually(lambda: place.agent.records(event="secret.use", route="hub")[-1])
    assert (used["bot"], used["method"], used["path"]) == ("carol", "GET", "/api/v3/repos/o/r")


def test_what_is_in_clear_and_large_bodies(place):
    own = "-H 'Connection: x-own' -H 'X-Own: 1'"
    script = (f"curl -sS {own} {place.clear.address}/echo; curl -sS {own} {place.plain.address}/echo/x?y=1 -d hello; "
              f'large="$(mktemp)"; head -c 20000000 /dev/zero > "$large"; curl -sS -T "$large" {place.known.address}/upload; rm "$large"; '
              f"curl -sS {place.known.address}/download?bytes=20000000 | wc -c")
    done = place.run("sh", "-c", script)
    assert place.clear.last().headers["authorization"] == f"Bearer {KEY}"
    plain = place.plain.last()
    assert (plain.line, plain.body) == ("POST /echo/x?y=1 HTTP/1.1", b"hello")
    assert not {"authorization", "proxy-authorization", "x-own"} & set(plain.headers)
    assert "x-own" not in place.clear.last().headers, "what is for one connection ends with it"
    assert plain.headers["host"] == place.plain.address.split("//")[1]
    digest = subprocess.run("head -c 20000000 /dev/zero | sha256sum", shell=True, capture_output=True, text=True).stdout.split()[0]
    assert digest in done.stdout and done.stdout.endswith("20000000\n"), done


def test_websockets_of_routes_over_the_proxy_and_over_the_bridge(place):
    env = {"PATH": os.environ["PATH"], "KEYHATCH_SOCKET": str(place.agent.socket)}
    url = place.talker.address.replace("http", "ws") + "/chat"
    find = "import os, sys; sys.argv.append(os.environ['KEYHATCH_BRIDGE_URL'].replace('http', 'ws') + '/use/ws/chat')"
    for command in [
        ["run", "--proxy", "--", sys.executable, "-c", TALK, url],
        ["bridge", "--", sys.executable, "-c", find + TALK],
    ]:
        before = len(place.talker.handshakes)
        done = subprocess.run([KEYHATCH, *command], env=env, capture_output=True, text=True, timeout=60)
        assert done.stdout == f"hello\nit is {'*' * len(KEY)}.\n", done
        shakes = place.talker.handshakes[before:]
        assert [shake.headers["Authorization"] for shake in shakes] == [f"Bearer {KEY}"]


def test_other_hosts_are_tunnels_or_refused(place):
    done = place.run("curl", "-sS", place.other.address + "/echo")
    assert done.returncode == 0 and "authorization" not in place.other.last().headers, done
    before = len(place.other.seen) + len(place.plain.seen)
    for url in (place.other.address, place.plain.address):
        done = place.run("curl", "-sS", "--fail", "-o", "/dev/null", "-w", "%{http_code} %{http_connect}", url + "/echo",
                         options=["--proxy", "--only-routes"])
        assert done.returncode != 0 and "403" in done.stdout, done
    assert len(place.other.seen) + len(place.plain.seen) == before
    assert place.run("curl", "-sS", place.known.address + "/echo", options=["--proxy", "--only-routes"]).returncode == 0


def test_which_routes_are_served_is_the_policys_and_the_callers_to_say(place):
    two = place.run("true", uid=BOB)
    assert two.returncode == 2 and "--proxy=" in two.stderr
    assert place.run("curl", "-sS", place.known.address + "/echo", options=["--proxy=narrow"], uid=BOB).returncode == 0
    refused = place.run("curl", "-sS", place.known.address + "/other", options=["--proxy=narrow"], uid=BOB)
    assert json.loads(refused.stdout)["code"] == "denied"
    assert place.run("true", options=["--proxy=narrow"]).returncode == 77, "no route of alice's"
    assert place.run("true", options=["--proxy"], uid=BOB + 5).returncode == 77
    assert place.run("true", options=["--proxy", "--on-rotate", "none"]).returncode == 2
    told = place.agent.get("/v1/whoami", ALICE).json()["routes"]
    assert told == [{"name": "clear", "upstream": place.clear.address}, {"name": "known", "upstream": place.known.address}]


def test_base_urls_and_the_proxy_beside_each_other(place):
    before = len(place.known.seen)
    script = f'curl -sS "$KNOWN_BASE_URL/echo"; curl -sS {place.known.address}/echo; echo "[$NO_PROXY$no_proxy]"'
    done = place.run("sh", "-c", script, options=["--proxy", "--only-routes", "--route", "KNOWN_BASE_URL=known"],
                     NO_PROXY="localhost,127.0.0.1", no_proxy="*")
    assert done.stdout.endswith("[]\n"), done
    assert [seen.headers.get("authorization") for seen in place.known.seen[before:]] == [f"Bearer {KEY}"] * 2, done


def test_nobody_is_trusted_who_was_not_trusted_before(place):
    count = 'for file in "$REQUESTS_CA_BUNDLE" "$CURL_CA_BUNDLE" "$GIT_SSL_CAINFO"; do grep -c BEGIN "$file"; done; dirname "$CURL_CA_BUNDLE"'
    one, system = str(place.trusted), {"SSL_CERT_FILE": "/dev/null"}
    done = place.run("sh", "-c", count, CURL_CA_BUNDLE=one, XDG_RUNTIME_DIR="/proc", **system)
    assert done.stdout.split()[:3] == ["2", "2", "1"], done
    assert done.stdout.split()[3].startswith(tempfile.gettempdir()), "a folder that cannot be written is not insisted on"
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO"):
        for path in ("/nonexistent/private.pem", "/etc"):
            done = place.run("true", **{name: path})
            assert done.returncode == 1 and name in done.stderr and path in done.stderr, done
    assert place.run("true", NODE_EXTRA_CA_CERTS="/nonexistent").returncode == 0, "as Node takes it"


class Open:
    """A run that stays: its variables, and what others ask of its proxy."""

    def __init__(self, place):
        env = {"PATH": os.environ["PATH"], "KEYHATCH_SOCKET": str(place.agent.socket)}
        self.process = subprocess.Popen([KEYHATCH, "run", "--proxy", "--", "sh", "-c", "env; echo; exec sleep 600"], user=ALICE,
                                        group=ALICE, extra_groups=[], env=env, stdout=subprocess.PIPE, text=True, cwd="/")
        self.env = dict(line.rstrip("\n").split("=", 1) for line in iter(self.process.stdout.readline, "\n"))
        self.url = self.env["HTTPS_PROXY"]
        self.token, _, address = self.url.removeprefix("http://keyhatch:").partition("@")
        self.address = (address.split(":")[0], int(address.split(":")[1]))
        self.trust = self.env["SSL_CERT_FILE"]
        with open(self.trust) as file:
            # Ours is the last in it.
            self.authority = "-----BEGIN" + file.read().split("-----BEGIN")[-1]

    def raw(self, data, uid=ALICE):
        def act():
            with socket.create_connection(self.address, timeout=20) as sock:
                try:
                    sock.sendall(data)
                    return b"".join(iter(lambda: sock.recv(65536), b""))
                except (ConnectionResetError, BrokenPipeError):
                    return b""

        return as_user(uid, act)

    def end(self):
        self.process.terminate()
        self.process.communicate(timeout=20)


def test_each_request_in_a_tunnel_is_read_strictly(place):
    run = Open(place)
    try:
        basic = base64.b64encode(f"keyhatch:{run.token}".encode()).decode()
        begin = f"CONNECT 127.0.0.1:{place.clear.port} HTTP/1.1\r\nHost: x\r\nProxy-Authorization: Basic {basic}\r\n\r\n"
        loose, before = "GET /echo HTTP/1.1\nHost: x\n\n", len(place.clear.seen)
        for first in ["", "CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n"]:
            said = run.raw((begin + first + loose).encode())
            assert said.count(b"HTTP/1.1 ") == 1 + bool(first) and len(place.clear.seen) == before, said
    finally:
        run.end()


def test_tunnels_to_hosts_leave_room_for_routes(place):
    run = Open(place)
    basic = base64.b64encode(f"keyhatch:{run.token}".encode()).decode()

    def tunnel(port):
        sock = socket.create_connection(run.address, timeout=20)
        sock.sendall(f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\nHost: x\r\nProxy-Authorization: Basic {basic}\r\n\r\n".encode())
        return sock.recv(12), sock

    def act():
        tunnels = [tunnel(place.plain.port) for _ in range(193)]
        return [status for status, _ in tunnels], tunnel(place.clear.port)[0]

    try:
        statuses, by_route = as_user(ALICE, act)
        assert (statuses.count(b"HTTP/1.1 200"), statuses[-1], by_route) == (192, b"HTTP/1.1 503", b"HTTP/1.1 200")
        # Those are gone with who had them.
        eventually(lambda: as_user(ALICE, lambda: tunnel(place.plain.port)[0]) == b"HTTP/1.1 200")
    finally:
        run.end()


def test_nobody_else_uses_it_and_nothing_of_it_is_left(place, tmp_path):
    run = Open(place)
    try:
        before = len(place.known.seen) + len(place.plain.seen)
        good = f"keyhatch:{run.token}".encode()
        head = f"GET {place.plain.address}/echo HTTP/1.1\r\nHost: x\r\n"
        basic = lambda pair: "Proxy-Authorization: Basic " + base64.b64encode(pair).decode() + "\r\nConnection: close\r\n\r\n"
        for rest in ["\r\n", basic(b"keyhatch:" + b"0" * 64), basic(b"x:" + run.token.encode())]:
            assert run.raw((head + rest).encode()).startswith(b"HTTP/1.1 407 "), rest
        # A tunnel that is refused hides no request.
        inner = head + basic(good)
        said = run.raw(f"CONNECT localhost:{place.known.port} HTTP/1.1\r\nHost: x\r\n\r\n{inner}".encode())
        assert said.startswith(b"HTTP/1.1 407 ") and said.count(b"HTTP/1.1") == 1
        assert run.raw((head + basic(good)).encode(), uid=BOB) == b"", "not with the token either"
        for bad in [f"GET /echo HTTP/1.1\r\nHost: x\r\n{basic(good)}", f"GET {place.known.address}/echo HTTP/1.1\r\nHost: x\r\n{basic(good)}",
                    f"CONNECT user@localhost:{place.known.port} HTTP/1.1\r\nHost: x\r\n{basic(good)}"]:
            assert run.raw(bad.encode()).startswith(b"HTTP/1.1 400"), bad
        assert len(place.known.seen) + len(place.plain.seen) == before
        assert run.raw((head + basic(good)).encode()).startswith(b"HTTP/1.1 200 "), "with it, our own user is answered"

        certificate = tmp_path / "authority.pem"
        certificate.write_text(run.authority)
        shown = subprocess.run(["openssl", "x509", "-in", certificate, "-noout", "-text"], capture_output=True, text=True).stdout
        assert "Name Constraints: critical" in shown and "DNS:localhost" in shown and "CA:TRUE, pathlen:0" in shown
        permitted, _, excluded = shown.partition("Excluded:")
        assert permitted.count("DNS:") == 1 and "IP:0.0.0.0/0.0.0.0" in excluded, shown
        folder = os.path.dirname(run.trust)
        written = b"".join(open(os.path.join(folder, name), "rb").read() for name in os.listdir(folder))
        assert b"PRIVATE KEY" not in written and run.token.encode() not in written
    finally:
        run.end()
    assert not os.path.exists(folder)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(run.address, timeout=5)
