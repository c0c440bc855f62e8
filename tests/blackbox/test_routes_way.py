"""The way of a route to its upstream: an organisation's proxy, pinned keys, and what a restart does to a stream."""

import contextlib
import json
import os
import socket
import subprocess
import threading

import pytest

from activation import Activated
from certificates import Authority
from harness import Agent, UnixHTTP, eventually, open_to_others
from hostile import EVENT, Hostile
from test_routes import KEY, route

POLICY = """
[[bot]]
name = "root"
match = { uid = 0 }
roles = ["caller"]
[role.caller]
grants = [{ routes = ["*"], actions = ["use"] }]
"""


class Proxy:
    """Leads CONNECT to where `leads` says; `asked` are the targets, `passed` every byte that a client sent."""

    def __init__(self, leads):
        self.leads, self.asked, self.passed = leads, [], bytearray()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self.listener.accept()
                threading.Thread(target=self.serve, args=(sock,), daemon=True).start()

    def serve(self, sock):
        with contextlib.suppress(OSError), sock:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += sock.recv(1)
            self.passed += head
            method, target, _ = head.split(b"\r\n")[0].decode().split(" ")
            assert method == "CONNECT"
            self.asked.append(target)
            answer = self.leads.get(target, b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
            if isinstance(answer, bytes):
                return sock.sendall(answer)
            with socket.create_connection(answer) as upstream:
                # In pieces, as it may come.
                for piece in (b"HTTP/1.1 200 Connection est", b"ablished\r\nX-Proxy: 1\r\n", b"\r\n"):
                    sock.sendall(piece)
                threading.Thread(target=self.pump, args=(upstream, sock), daemon=True).start()
                self.pump(sock, upstream, self.passed)

    def pump(self, reads, writes, kept=None):
        with contextlib.suppress(OSError):
            while data := reads.recv(65536):
                if kept is not None:
                    kept += data
                writes.sendall(data)
        with contextlib.suppress(OSError):
            writes.shutdown(socket.SHUT_WR)

    def close(self):
        self.listener.close()


def pin(certificate):
    """As curl's manual says to make one."""
    made = subprocess.run(
        f"openssl x509 -in {certificate} -pubkey -noout | openssl pkey -pubin -outform der | openssl dgst -sha256 -binary | base64",
        shell=True, check=True, capture_output=True, text=True,
    )
    return "sha256//" + made.stdout.strip()


class Place:
    def __init__(self, folder):
        authority = Authority(folder)
        os.chmod(authority.file, 0o644)
        server = authority.server()
        self.upstream = Hostile(server)
        self.far = Hostile(authority.server("far", "far.invalid"))
        self.proxy = Proxy({
            "far.invalid:8443": ("127.0.0.1", self.far.port),
            "wants.invalid:443": b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n",
            "odd.invalid:443": b"220 smtp.example.test ESMTP\r\n",
            "gone.invalid:443": b"",
        })
        own = f'ca_file = "{authority.file}"\n'
        near = f'allow_private = true\n{own}'
        through = f'{own}proxy = "{self.proxy.address}"'
        other = pin(authority.server("other").certificate)
        pins = lambda *pins: f"{near}pins = {json.dumps(pins)}"
        names = {"refused": "refused.invalid", "wants": "wants.invalid", "odd": "odd.invalid", "gone": "gone.invalid"}
        self.pin = pin(server.certificate)
        self.routes = "".join([
            route("pinned", self.upstream.address, more=pins(other, self.pin)),
            route("mispinned", self.upstream.address, more=pins(other)),
            route("far", "https://far.invalid:8443", more=through),
            route("loopback", self.upstream.address, more=through),
            route("closed", "https://far.invalid:8443", more=f'{own}proxy = "http://127.0.0.1:1"'),
            *(route(name, f"https://{host}", more=through) for name, host in names.items()),
        ])
        self.agent = Agent(policy=self.routes + POLICY, secrets={"app/key": KEY})

    def __enter__(self):
        self.upstream.__enter__(), self.far.__enter__(), self.agent.__enter__()
        return self

    def __exit__(self, *_):
        self.agent.__exit__(), self.far.__exit__(), self.upstream.__exit__(), self.proxy.close()

    def use(self, path, **headers):
        return self.agent.get("/v1/use/" + path, None, **headers)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("way", numbered=False)
    open_to_others(folder)
    with Place(folder) as place:
        yield place


def test_only_a_server_with_a_pinned_key_gets_the_credential(place):
    reply = place.use("pinned/echo")
    assert reply.status == 200 and place.upstream.last("/echo").credential == KEY
    # And once more on a connection that resumes.
    assert place.use("pinned/once").status == place.use("pinned/echo").status == 200
    before = len(place.upstream.seen)
    reply = place.use("mispinned/echo")
    assert (reply.status, reply.json()["code"]) == (502, "upstream_failed")
    assert place.pin in reply.json()["detail"] and len(place.upstream.seen) == before


def test_an_organisations_proxy_leads_to_names_that_it_alone_knows(place):
    reply = place.use("far/echo")
    assert reply.status == 200 and place.far.last("/echo").credential == KEY
    assert place.far.last("/echo").headers["host"] == "far.invalid:8443"
    assert set(place.proxy.asked) == {"far.invalid:8443"}
    # One whose answer held the key is not used again.
    for _ in range(3):
        assert place.use("far/status?code=200").status == 200
    assert len(place.proxy.asked) == 2, "a connection through it is kept"
    assert KEY.encode() not in place.proxy.passed and b"Proxy-Authorization" not in place.proxy.passed
    used = eventually(lambda: place.agent.records(event="secret.used", route="far"))[-1]
    assert used["upstream"] == place.proxy.address.split("//")[1]


@pytest.mark.parametrize("name, says", [
    ("refused", "it answers 403"), ("wants", "a user and a password (407)"), ("odd", "does not answer as one"),
    ("gone", "does not answer as one"), ("closed", "cannot be connected to"), ("loopback", "loopback address"),
])
def test_what_a_proxy_does_not_lead_to_is_a_problem_that_says_why(place, name, says):
    reply = place.use(f"{name}/echo")
    assert (reply.status, reply.json()["code"]) == (502, "upstream_failed")
    assert says in reply.json()["detail"]


def test_route_try_names_the_proxy(place):
    done = place.agent.verb("route", "try", "--config", place.agent.config, "far", "/x")
    assert f"to far.invalid:8443 through {place.proxy.address}, nothing was sent" in done.stdout


def test_a_stream_ends_well_although_the_daemon_restarts_and_the_next_call_uses_the_new_secret():
    with Hostile() as upstream:
        policy = route("events", upstream.address) + POLICY
        with Activated(policy=policy, secrets={"app/key": KEY}) as agent, contextlib.ExitStack() as held:
            sock = held.enter_context(socket.socket(socket.AF_UNIX))
            sock.settimeout(20)
            sock.connect(str(agent.socket))
            sock.sendall(b"GET /v1/use/events/sse?events=3 HTTP/1.1\r\nHost: x\r\n\r\n")
            upstream.go.set()
            out = b""
            while EVENT % 0 not in out:
                out += sock.recv(65536)
            agent.put("app/key", "CANARY-the-next-key")
            old = agent.process
            old.terminate()
            eventually(lambda: b"STOPPING" in "\n".join(agent.hear() + agent.told).encode())
            # A call that comes meanwhile waits in the socket for the next daemon.
            late = held.enter_context(socket.socket(socket.AF_UNIX))
            late.settimeout(20)
            late.connect(str(agent.socket))
            late.sendall(b"GET /v1/use/events/echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            for number in (1, 2):
                upstream.go.set()
                while EVENT % number not in out:
                    piece = sock.recv(65536)
                    assert piece, out
                    out += piece
            while piece := sock.recv(65536):
                out += piece
            assert out.endswith(b"0\r\n\r\n") and upstream.last("/sse").credential == KEY
            assert old.wait(20) == 0
            agent.start()
            answer = b""
            while piece := late.recv(65536):
                answer += piece
            assert answer.startswith(b"HTTP/1.1 200 ") and upstream.last("/echo").credential == "CANARY-the-next-key"
            assert UnixHTTP(agent.socket).get("/v1/use/events/echo").status == 200
            [used] = agent.records(event="secret.used", route="events", complete=True, status=200)[:1]
            assert used["received"] > 0
