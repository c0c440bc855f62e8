"""`keyhatch bridge` with a real daemon and real users: who gets an answer, what is passed on, what is refused."""

import encodings.idna  # noqa: F401  (loaded before a child is another user, who cannot read the library)
import http.client
import json
import os
import re
import signal
import socket
import stat
import subprocess
import threading
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from bots import events_of
from harness import ALICE, BOB, CANARY, KEYHATCH, Agent, Reply, UnixHTTP, as_user, eventually

PYTHON = "/usr/bin/python3"


@pytest.fixture(scope="module")
def shared():
    with Agent() as agent:
        yield agent


@pytest.fixture
def own():
    with Agent() as agent:
        yield agent


def environment(agent, env):
    return {"PATH": os.environ["PATH"], "KEYHATCH_SOCKET": str(agent.socket), **(env or {})}


class Bridge:
    """A bridge that runs as ALICE, and what others ask of it."""

    def __init__(self, agent, *args, env=None, socket=None):
        env = environment(agent, env)
        if socket:
            env["KEYHATCH_SOCKET"] = str(socket)
        self.process = subprocess.Popen([KEYHATCH, "bridge", *map(str, args)], user=ALICE, group=ALICE, extra_groups=[],
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, cwd="/")
        self.url = self.process.stdout.readline().decode().rstrip("\n")
        assert self.url, self.process.stderr.read()
        parts = urlsplit(self.url)
        self.address, self.base, self.token = (parts.hostname, parts.port), parts.path, parts.path[1:]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        said = self.process.communicate()
        assert not [text for text in said if b"CANARY" in text or b"panicked" in text], said

    def ask(self, path, method="GET", uid=ALICE, body=None, **headers):
        """One request on a new connection, by `uid`."""
        def act():
            connection = http.client.HTTPConnection(*self.address, timeout=20)
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            return answer(connection)

        return as_user(uid, act)

    def get(self, path, **kwargs):
        return self.ask(self.base + path, **kwargs)

    def raw(self, data, uid=ALICE):
        """Sends bytes as they are; returns all that comes back until the bridge ends the connection."""
        def act():
            with socket.create_connection(self.address, timeout=20) as sock:
                sock.sendall(data)
                try:
                    return b"".join(iter(lambda: sock.recv(65536), b""))
                except ConnectionResetError:
                    return b""

        return as_user(uid, act)


def answer(connection):
    reply = connection.getresponse()
    return Reply(reply.status, {k.lower(): v for k, v in reply.getheaders()}, reply.read())


@pytest.fixture(scope="module")
def bridge(shared):
    with Bridge(shared) as bridge:
        yield bridge


# What is passed on.


def test_the_url_has_a_loopback_address_and_a_token_of_256_bits(bridge):
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/[0-9a-f]{64}", bridge.url)


def test_answers_are_the_agents_own(shared, bridge):
    for path, headers in [
        ("/v1/secrets/app/key", {}), ("/v1/secrets/app/key", {"Accept": "application/octet-stream"}),
        ("/v1/secrets/app/none", {}), ("/v1/secrets/other", {}), ("/v1/secrets?prefix=app/&limit=1", {}),
        ("/v1/secrets/app%2Fkey", {}), ("/v1/secrets/../x", {}), ("/v1/secrets//x", {}), ("/none", {}), ("/", {}),
        ("/v1/health", {}),
    ]:
        over = bridge.get(path, **headers)
        direct = as_user(ALICE, lambda: UnixHTTP(shared.socket).get(path, **headers))
        assert over.status == direct.status, path
        assert re.sub(rb"[0-9a-f]{8}-[0-9a-f]{12}", b"ID", over.body) == re.sub(rb"[0-9a-f]{8}-[0-9a-f]{12}", b"ID", direct.body)
        drop = {"date", "connection", "keyhatch-request-id"}
        assert {k: v for k, v in over.headers.items() if k not in drop} == {
            k: v for k, v in direct.headers.items() if k not in drop}, path
    assert bridge.get("/v1/secrets/app/key").json()["value"] == CANARY


def test_the_agent_sees_the_bridge_as_who_asks(shared, bridge):
    me = bridge.get("/v1/whoami").json()
    assert (me["pid"], me["uid"], me["bot"]) == (bridge.process.pid, ALICE, "alice")


def test_bodies_methods_and_conditions_are_passed_on(bridge):
    batch = json.dumps({"names": ["app/key", "app/none"]}).encode()
    got = bridge.get("/v1/batch", method="POST", body=batch, Content_Type="application/json").json()
    assert got["secrets"][0]["value"] == CANARY and got["errors"][0]["code"] == "not_found"
    chunked = bridge.raw(f"POST {bridge.base}/v1/batch HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
                         + b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in [batch[:5], batch[5:]]) + b"0\r\n\r\n")
    assert chunked.startswith(b"HTTP/1.1 200") and CANARY.encode() in chunked and b"connection: close" in chunked.lower()
    assert bridge.get("/v1/secrets/app/key", method="PUT", body=b"x").status == 405
    version = bridge.get("/v1/secrets/app/key").headers["etag"]
    assert bridge.get("/v1/secrets/app/key", If_None_Match=version).status == 304
    assert bridge.get("/v1/secrets/app/key", method="HEAD").body == b""
    too_large = bridge.get("/v1/batch", method="POST", body=b"x" * 70_000)
    # The agent hangs up on it, and what it said may be lost.
    assert too_large.status == 413 or (too_large.status == 502 and b"64 KiB" in too_large.body)


def test_a_connection_is_kept(shared, bridge):
    def act():
        connection = http.client.HTTPConnection(*bridge.address, timeout=20)
        statuses = []
        for _ in range(5):
            connection.request("GET", bridge.base + "/v1/secrets/app/key")
            statuses.append(answer(connection).status)
            port = connection.sock.getsockname()[1]
        return statuses, port == connection.sock.getsockname()[1]

    assert as_user(ALICE, act) == ([200] * 5, True)


def test_pipelined_requests_are_answered_in_order(bridge):
    one = f"GET {bridge.base}/v1/secrets/app/key HTTP/1.1\r\nHost: x\r\n\r\n"
    two = f"GET {bridge.base}/v1/secrets/app/none HTTP/1.1\r\nHost: x\r\n\r\n"
    said = bridge.raw((one + two + one.replace("Host: x", "Host: x\r\nConnection: close")).encode())
    assert re.findall(rb"HTTP/1.1 (\d+)", said) == [b"200", b"404", b"200"]


def test_a_watch_comes_as_it_happens(own):
    with Bridge(own) as bridge:
        read, write = os.pipe()

        def act():
            connection = http.client.HTTPConnection(*bridge.address, timeout=20)
            connection.request("GET", bridge.base + "/v1/watch?name=app/key")
            events = events_of(connection.getresponse())
            first = next(events)
            os.write(write, b"x")
            return first, next(events)

        threading.Thread(target=lambda: (os.read(read, 1), own.put("app/key", "CANARY-2")), daemon=True).start()
        (kind, before), (then, after) = as_user(ALICE, act)
        assert (kind, then) == ("current", "rotated") and before["version"] != after["version"]


def test_a_client_that_reads_no_more_of_a_watch_takes_nothing_with_it(own):
    with Bridge(own) as bridge:
        def act():
            watches = []
            for _ in range(20):
                sock = socket.create_connection(bridge.address, timeout=20)
                sock.sendall(f"GET {bridge.base}/v1/watch?name=app/key HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                assert sock.recv(12) == b"HTTP/1.1 200"
                watches.append(sock)

        as_user(ALICE, act)
        assert bridge.get("/v1/health").status == 200
        connections = lambda: len(list(Path(f"/proc/{bridge.process.pid}/fd").iterdir()))
        eventually(lambda: connections() < 20)


def test_a_restart_of_the_agent_is_waited_for(own):
    with Bridge(own) as bridge:
        def act(fd):
            connection = http.client.HTTPConnection(*bridge.address, timeout=20)
            statuses = []
            for number in range(60):
                connection.request("GET", bridge.base + "/v1/secrets/app/key")
                statuses.append(answer(connection).status)
                if number == 10:
                    os.write(fd, b"x")
            return statuses

        read, write = os.pipe()
        thread = threading.Thread(target=lambda: (os.read(read, 1), [own.restart() for _ in range(3)]))
        thread.start()
        assert set(as_user(ALICE, act, write)) == {200}
        thread.join()
        own.stop()
        assert bridge.get("/v1/secrets/app/key").status == 502


# Who gets nothing.


def test_without_the_token_403_and_nothing_else(shared, bridge):
    before = len(shared.records())
    wrong = "0" * 64
    for path in ["/", "/v1/secrets/app/key", "/v1/health", f"/{wrong}/v1/health", f"/{bridge.token[:-1]}/v1/health",
                 f"/{bridge.token}0/v1/health", f"//{bridge.token}/v1/health", f"/?{bridge.token}",
                 f"/x/{bridge.token}/v1/health", "/ping", f"/{bridge.token.upper()}/v1/health"]:
        for method in ["GET", "POST", "LIST", "OPTIONS"]:
            got = bridge.ask(path, method=method)
            assert (got.status, got.body) == (403, b""), (method, path)
    for name in ["X-Vault-Token", "X-Aws-Parameters-Secrets-Token", "Authorization", "Cookie"]:
        assert bridge.ask("/v1/health", **{name: wrong}).status == 403
        assert bridge.ask("/v1/health", **{name: ""}).status == 403
    assert bridge.ask("/v1/health", Authorization=f"Bearer {bridge.token}").status == 403
    assert len(shared.records()) == before, "the agent was never asked"


def test_the_token_counts_in_the_headers_of_vault_and_aws(bridge):
    for name in ["X-Vault-Token", "X-Aws-Parameters-Secrets-Token"]:
        got = bridge.ask("/v1/secrets/app/key", **{name: bridge.token})
        assert got.json()["value"] == CANARY
        assert bridge.get("/v1/secrets/app/key", **{name: "of-another-kind"}).status == 200


def test_another_user_gets_nothing_even_with_the_token(shared, bridge):
    request = f"GET {bridge.base}/v1/secrets/app/key HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
    assert CANARY.encode() in bridge.raw(request)
    for uid in [BOB, 0]:
        assert bridge.raw(request, uid=uid) == b""
        assert bridge.raw(b"GET / HTTP/1.1\r\n\r\n", uid=uid) == b""


def test_an_ipv6_socket_that_reaches_it_has_its_owner_found(bridge):
    request = f"GET {bridge.base}/v1/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()

    def act():
        sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
        sock.settimeout(20)
        sock.connect(("::ffff:127.0.0.1", bridge.address[1]))
        sock.sendall(request)
        try:
            return b"".join(iter(lambda: sock.recv(65536), b""))
        except ConnectionResetError:
            return b""

    try:
        socket.socket(socket.AF_INET6, socket.SOCK_STREAM).close()
    except OSError:
        pytest.skip("no IPv6 here")
    assert as_user(ALICE, act).startswith(b"HTTP/1.1 200")
    assert as_user(BOB, act) == b""


# What is refused.


@pytest.mark.parametrize("line", ["GET http://127.0.0.1{base}/v1/health", "GET http://evil.example{base}/v1/health",
                                  "CONNECT 127.0.0.1:22", "OPTIONS *"])
def test_it_is_no_proxy(bridge, line):
    head = f"{line.format(base=bridge.base)} HTTP/1.1\r\nHost: x\r\n"
    said = bridge.raw(f"{head}X-Vault-Token: {bridge.token}\r\n\r\n".encode())
    assert re.match(rb"HTTP/1.1 400 ", said), said
    if bridge.base not in line.format(base=bridge.base):
        assert bridge.raw(f"{head}\r\n".encode()).startswith(b"HTTP/1.1 403 ")


@pytest.mark.parametrize("headers", [
    "Content-Length: 5\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nContent-Length: 5",
    "Content-Length: 5\r\nContent-Length: 6", "Content-Length: +5", "Transfer-Encoding: xchunked",
    "Transfer-Encoding: chunked, identity", "Transfer-Encoding : chunked", "A: b\r\n folded: c", "Host: a\r\nHost: b",
    "A: b\nC: d", "\r\n".join(f"A{n}: b" for n in range(100)), "A: " + "x" * 20_000, "A\x00: b",
])
def test_heads_that_can_be_read_in_two_ways_or_are_too_large_are_refused(shared, bridge, headers):
    before = len(shared.records())
    request = f"POST {bridge.base}/v1/batch HTTP/1.1\r\n{headers}\r\n\r\n0\r\n\r\nGET {bridge.base}/v1/secrets/app/key HTTP/1.1\r\n\r\n"
    said = bridge.raw(request.encode())
    assert said == b"" or re.match(rb"HTTP/1.1 4\d\d ", said), said
    assert b"CANARY" not in said and len(shared.records()) == before


def test_what_follows_a_chunked_body_is_not_answered(bridge):
    said = bridge.raw((f"POST {bridge.base}/v1/batch HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
                       f"GET {bridge.base}/v1/secrets/app/key HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n").encode())
    assert len(re.findall(rb"HTTP/1.1 ", said)) == 1 and b"CANARY" not in said


def test_hop_by_hop_headers_end_here_and_others_do_not(own):
    """An agent of ours that writes down what it is asked."""
    heard = []
    path = own.dir / "run" / "ear.sock"
    ear = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    ear.bind(str(path))
    os.chmod(path, 0o666)
    ear.listen()

    def listen():
        while True:
            peer, _ = ear.accept()
            data = peer.recv(65536)
            heard.append(data.decode())
            body = b'{"status":"ready","reasons":[],"missing":[]}'
            peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nKeep-Alive: x\r\nProxy-Authenticate: y\r\n\r\n%s" % (
                len(body), body))
            peer.close()

    threading.Thread(target=listen, daemon=True).start()
    with Bridge(own, socket=path) as bridge:
        heard.clear()
        got = bridge.ask(bridge.base + "/use/openai/v1/models?a=%2F&b", X_Vault_Token=bridge.token, Connection="close, X-Forwarded-For",
                         Keep_Alive="5", Proxy_Authorization="p", TE="trailers", Upgrade="websocket", X_Forwarded_For="1.2.3.4",
                         X_Other="kept", Authorization="AWS4-HMAC-SHA256 ...", Host="evil.example")
        lines = heard[0].split("\r\n")
        names = {line.split(":")[0].lower() for line in lines[1:] if line}
        assert lines[0] == "GET /v1/use/openai/v1/models?a=%2F&b HTTP/1.1"
        assert "host: keyhatch" in [line.lower() for line in lines]
        # What `Connection` names, the agent drops or refuses itself.
        assert names == {"host", "x-forwarded-for", "x-other", "authorization", "accept-encoding", "connection"}
        assert [line.lower() for line in lines if line.lower().startswith("connection:")] == ["connection: x-forwarded-for"]
        assert bridge.token not in heard[0]
        assert "keep-alive" not in got.headers and "proxy-authenticate" not in got.headers


def test_only_loopback_addresses_are_listened_at(shared):
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:80"]:
        done = subprocess.run([KEYHATCH, "bridge", "--listen", address], capture_output=True, timeout=20,
                              env=environment(shared, None))
        assert done.returncode == 2 and b"loopback" in done.stderr and done.stdout == b""
    with Bridge(shared, "--listen", "127.0.0.2:0") as other:
        assert other.url.startswith("http://127.0.0.2:") and other.get("/v1/health").status == 200


def test_exit_codes(shared):
    def code(*args, uid=ALICE, **env):
        return subprocess.run([KEYHATCH, "bridge", *args], capture_output=True, timeout=30, user=uid, group=uid, extra_groups=[],
                              env=environment(shared, env)).returncode

    assert code(KEYHATCH_SOCKET="/nowhere/x.sock") == 69
    assert code("--listen", "nowhere") == 2
    assert code("--", "sh", "-c", "exit 9") == 9
    assert code("--", "sh", "-c", "kill -KILL $$") == 137
    assert code("--", "/nowhere/none") == 127


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_when_told_to(shared, sig):
    with Bridge(shared) as bridge:
        bridge.process.send_signal(sig)
        assert bridge.process.wait(timeout=20) == 0


# Where the URL goes.


def test_the_file_with_the_url_is_for_its_owner_alone_and_goes_with_the_bridge(own):
    folder = own.dir / "alice"
    folder.mkdir()
    os.chown(folder, ALICE, ALICE)
    file = folder / "url"
    with Bridge(own, "--url-file", file) as bridge:
        assert file.read_text().strip() == bridge.url
        found = file.stat()
        assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o600, ALICE)
        bridge.process.send_signal(signal.SIGTERM)
        bridge.process.wait(timeout=20)
        assert list(folder.iterdir()) == []
    target = own.dir / "target"
    target.write_text("untouched")
    file.symlink_to(target)
    with Bridge(own, "--url-file", file):
        assert not file.is_symlink() and target.read_text() == "untouched"


def test_the_url_is_never_printed_where_standard_output_is_the_journal(own):
    out = own.dir / "journal"
    with out.open("wb") as journal:
        found = os.fstat(journal.fileno())
        env = environment(own, {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"})
        who = {"user": ALICE, "group": ALICE, "extra_groups": [], "stdout": journal, "env": env, "timeout": 30}
        done = subprocess.run([KEYHATCH, "bridge"], stderr=subprocess.PIPE, **who)
        assert done.returncode == 2 and b"--url-file" in done.stderr
        subprocess.run([KEYHATCH, "bridge", "--", "true"], check=True, **who)
        folder = own.dir / "alice"
        folder.mkdir()
        os.chown(folder, ALICE, ALICE)
        who.pop("timeout")
        process = subprocess.Popen([KEYHATCH, "bridge", "--url-file", folder / "url"], **who)
        eventually((folder / "url").exists)
        process.terminate()
        assert process.wait(timeout=20) == 0
    assert out.read_bytes() == b""
    with Bridge(own, env={"JOURNAL_STREAM": "1:2"}) as bridge:
        assert bridge.url.startswith("http://")


def child_of(agent, script="", env=None, args=()):
    script = f"import json, os, sys\n{script}\nprint(json.dumps(dict(os.environ)))"
    done = subprocess.run([KEYHATCH, "bridge", *args, "--", PYTHON, "-c", script], user=ALICE, group=ALICE, extra_groups=[],
                          capture_output=True, timeout=60, env=environment(agent, env), cwd="/")
    assert done.returncode == 0, done
    return json.loads(done.stdout)


def test_the_command_alone_has_the_url_in_its_environment(shared):
    env = child_of(shared, """
import urllib.request
with urllib.request.urlopen(os.environ["KEYHATCH_BRIDGE_URL"] + "/v1/secrets/app/key") as reply:
    assert json.load(reply)["name"] == "app/key"
url = os.environ["KEYHATCH_BRIDGE_URL"].encode()
parent = f"/proc/{os.getppid()}/"
assert url not in open(parent + "cmdline", "rb").read()
""", env={"HTTP_PROXY": "http://192.0.2.1:1", "http_proxy": "http://192.0.2.1:1", "NO_PROXY": "example.com"})
    url = env["KEYHATCH_BRIDGE_URL"]
    assert env["VAULT_ADDR"] == env["AWS_ENDPOINT_URL_SECRETS_MANAGER"] == url
    assert env["NO_PROXY"] == "example.com,127.0.0.1,localhost" and "127.0.0.1" in env["no_proxy"]
    assert env["AWS_REGION"] and env["AWS_DEFAULT_REGION"] and env["AWS_ACCESS_KEY_ID"] and env["AWS_SECRET_ACCESS_KEY"]


def test_no_value_nor_the_url_is_in_our_own_environment(shared):
    process = subprocess.Popen([KEYHATCH, "bridge", "--", "sh", "-c", "echo $KEYHATCH_BRIDGE_URL; read x"], user=ALICE, group=ALICE,
                               extra_groups=[], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(shared, None))
    url = process.stdout.readline().strip()
    assert url.startswith(b"http://127.0.0.1:")
    for file in ["environ", "cmdline"]:
        assert url not in Path(f"/proc/{process.pid}/{file}").read_bytes()
    process.communicate(b"\n", timeout=20)
    assert process.returncode == 0
    port = int(url.split(b":")[2].split(b"/")[0])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_a_region_and_credentials_that_exist_are_left_alone(own):
    env = child_of(own, env={"AWS_REGION": "eu-west-1", "AWS_PROFILE": "mine"})
    assert env["AWS_REGION"] == "eu-west-1" and "AWS_DEFAULT_REGION" not in env and "AWS_ACCESS_KEY_ID" not in env
    home = own.dir / "home"
    (home / ".aws").mkdir(parents=True)
    (home / ".aws" / "config").write_text("[default]\nregion = eu-west-2\n")
    (home / ".aws" / "credentials").write_text("[default]\naws_access_key_id = x\n")
    env = child_of(own, env={"HOME": str(home)})
    assert "AWS_REGION" not in env and "AWS_ACCESS_KEY_ID" not in env


# In the place of AWS's agent.


def test_as_awss_agent(own):
    token = own.dir / "awssmatoken"
    os.chmod(own.dir, 0o777)
    heard, path = [], own.dir / "run" / "ear.sock"
    ear = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    ear.bind(str(path))
    os.chmod(path, 0o666)
    ear.listen()

    def listen():
        while True:
            peer, _ = ear.accept()
            heard.append(peer.recv(65536).decode().split("\r\n")[0])
            body = b'{"status":"ready","reasons":[],"missing":[]}'
            peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
            peer.close()

    threading.Thread(target=listen, daemon=True).start()
    with Bridge(own, "--aws-agent", env={"AWS_TOKEN": f"file://{token}"}, socket=path) as bridge:
        assert bridge.address == ("127.0.0.1", 2773)
        assert stat.S_IMODE(token.stat().st_mode) == 0o600 and token.read_text().strip() == bridge.token
        with_token = {"X_Aws_Parameters_Secrets_Token": bridge.token}
        heard.clear()
        for asked, passed in [
            ("/v1/MySecretId", "/secretsmanager/get?secretId=MySecretId"),
            ("/v1/app/db?versionStage=AWSPREVIOUS", "/secretsmanager/get?secretId=app/db&versionStage=AWSPREVIOUS"),
            ("/secretsmanager/get?secretId=MySecretId", "/secretsmanager/get?secretId=MySecretId"),
            ("/ping", "/ping"),
        ]:
            assert bridge.ask(asked, **with_token).status == 200
            assert heard.pop() == f"GET {passed} HTTP/1.1"
        assert bridge.ask("/v1/MySecretId", X_Vault_Token=bridge.token).status == 200
        assert bridge.ask("/v1/MySecretId").status == 403
        heard.clear()
        assert bridge.ask("/v1/MySecretId", X_Forwarded_For="1.2.3.4", **with_token).status == 400
        assert bridge.ask("/v1/MySecretId", X_Forwarded_For="1.2.3.4").status == 403
        assert heard == []


def test_the_token_of_awss_agent(own):
    good, file = "a" * 64, own.dir / "token"
    os.chmod(own.dir, 0o711)

    def start(env, ok=True):
        if ok:
            with Bridge(own, "--aws-agent", "--listen", "127.0.0.1:0", env=env) as bridge:
                return bridge.token
        return subprocess.run([KEYHATCH, "bridge", "--aws-agent", "--listen", "127.0.0.1:0"], capture_output=True, timeout=30,
                              user=ALICE, group=ALICE, extra_groups=[], env=environment(own, env)).returncode

    assert start({"AWS_TOKEN": good}) == good
    assert start({"AWS_TOKEN": "short"}, ok=False) == 78
    file.write_text(good + "\n")
    os.chown(file, ALICE, ALICE)
    os.chmod(file, 0o640)
    assert start({"AWS_TOKEN": f"file://{file}"}) == good
    for mode, owner in [(0o644, ALICE), (0o660, ALICE), (0o600, BOB)]:
        os.chown(file, owner, owner)
        os.chmod(file, mode)
        assert start({"AWS_TOKEN": f"file://{file}"}, ok=False) == 78, (oct(mode), owner)
    assert start({"AWS_TOKEN": f"file://{own.dir}/new"}, ok=False) == 1
