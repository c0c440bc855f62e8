"""Routes: WebSockets, with a real client and a real server (the `websockets` package), and with a lying one."""

import contextlib
import os
import re
import socket
import threading

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import unix_connect
from websockets.sync.server import serve

from harness import Agent, UnixHTTP, eventually
from hostile import Hostile
from test_routes import KEY, route

POLICY = """
[[bot]]
name = "caller"
match = { uid = 0 }
roles = ["caller"]
[role.caller]
grants = [{ routes = ["*"], actions = ["use"] }]
"""
PIECE = "0123456789abcdef" * 65536


class Real:
    """A WebSocket server that says back what it hears, and its key when asked."""

    def __init__(self):
        self.handshakes, self.closed = [], threading.Event()
        self.server = serve(self.talk, "127.0.0.1", 0, process_request=self.greet, max_size=None)
        self.address = "http://127.0.0.1:%d" % self.server.socket.getsockname()[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def greet(self, connection, request):
        self.handshakes.append(request)
        if request.path == "/refused":
            return connection.respond(401, "who?\n")

    def talk(self, connection):
        key = connection.request.headers["Authorization"].removeprefix("Bearer ")
        with contextlib.suppress(ConnectionClosed):
            for message in connection:
                if message == "key?":
                    message = f"it is {key}."
                if message == "flood":
                    for _ in range(64):
                        connection.send(PIECE)
                if message == "bye":
                    connection.close(4001, "enough")
                connection.send(message)
        self.closed.set()


@pytest.fixture(scope="module")
def place():
    upstream, liar = Real(), Hostile()
    routes = "".join([
        route("ws", upstream.address, allow=["GET /chat", "GET /refused"]),
        route("small", upstream.address, more='allow_private = true\nlimits = { body = "1KiB" }'),
        route("patient", upstream.address, more='allow_private = true\ntimeout = "1s"'),
        route("liar", liar.address),
    ])
    with liar, Agent(policy=routes + POLICY, secrets={"app/key": KEY}) as agent:
        agent.upstream, agent.liar = upstream, liar
        yield agent
    upstream.server.shutdown()


def connect(agent, path, **more):
    return unix_connect(str(agent.socket), f"ws://keyhatch/v1/use/{path}", max_size=None, **more)


def raw(agent, path, *lines, body=b"", then=b""):
    """What a client that speaks bytes gets until the connection ends; `then` is sent once there is a head."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(str(agent.socket))
        head = [f"GET /v1/use/{path} HTTP/1.1", "Host: x", *lines, "", ""]
        sock.sendall("\r\n".join(head).encode() + body)
        out = b""
        while b"\r\n\r\n" not in out:
            out += sock.recv(65536)
        if then:
            sock.sendall(then)
        while piece := sock.recv(65536):
            out += piece
        return out


ASKS = ["Connection: keep-alive, Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="]


def ended(agent):
    return eventually(lambda: agent.records(event="secret.used")[-1:])[0]


def test_a_real_client_and_a_real_server_with_the_key_in_the_handshake_alone(place):
    with connect(place, "ws/chat?model=m", subprotocols=["chat"], additional_headers={"Authorization": "Bearer mine"}) as ws:
        shaken = place.upstream.handshakes[-1]
        assert shaken.path == "/chat?model=m" and shaken.headers.get_all("Authorization") == [f"Bearer {KEY}"]
        assert shaken.headers["Sec-WebSocket-Protocol"] == "chat"
        assert "Sec-WebSocket-Extensions" not in shaken.headers, "compressed frames cannot be searched"
        assert ws.response.headers["Keyhatch-Route"] == "ws"
        for message in ["hello", "", b"\0\xff", "C", PIECE, "CANARY-key"]:
            ws.send(message)
            assert ws.recv(timeout=20) == message
        ws.send("key?")
        assert ws.recv(timeout=20) == f"it is {'*' * len(KEY)}."
        ws.ping().wait(20)
        ws.send("bye")
        with pytest.raises(ConnectionClosed) as closed:
            ws.recv(timeout=20)
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4001, "enough")
    used = eventually(lambda: (last := ended(place))["status"] == 101 and last)
    assert used["complete"] and used["masked"] == 1 and used["sent"] > len(PIECE) < used["received"]
    assert place.records(event="alert.masked")[-1]["request_id"] == used["request_id"]


def test_an_answer_that_is_no_switch_is_a_usual_one(place):
    with pytest.raises(InvalidStatus) as refused:
        connect(place, "ws/refused")
    assert (refused.value.response.status_code, refused.value.response.body) == (401, b"who?\n")
    with pytest.raises(InvalidStatus) as refused:
        connect(place, "ws/elsewhere")
    assert refused.value.response.status_code == 403 and b"does not allow" in refused.value.response.body


def test_each_side_goes_no_faster_than_the_other(place):
    rss = lambda: int(open(f"/proc/{place.pid}/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    with connect(place, "ws/chat", max_queue=1) as ws:
        ws.send("ready")
        assert ws.recv(timeout=20) == "ready"
        before = rss()
        ws.send("flood")
        for _ in range(64):
            assert len(ws.recv(timeout=20)) == len(PIECE)
        assert rss() - before < 8 << 20


def test_limits_hold(place):
    with connect(place, "small/chat") as ws:
        ws.send("x" * 400)
        assert ws.recv(timeout=20) == "x" * 400
        with pytest.raises(ConnectionClosed):
            ws.send("x" * 1000)
            ws.recv(timeout=20)
    with connect(place, "patient/chat", ping_interval=None) as ws, pytest.raises(ConnectionClosed):
        ws.recv(timeout=20)
    assert eventually(lambda: (last := ended(place))["route"] == "patient" and last)["complete"] is False


@pytest.mark.parametrize("lines", [
    ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"],
    ["Connection: Upgrade", "Upgrade: websocket, h2c", *ASKS[2:]],
    ["Connection: Upgrade", "Upgrade: websocket", "Upgrade: h2c", *ASKS[2:]],
    ["Connection: close", "Upgrade: websocket", *ASKS[2:]],
    ["Connection: Upgrade", "Upgrade: websocket"],
    [*ASKS, "Content-Length: 1"],
], ids=["h2c", "two", "two-lines", "no-connection", "no-key", "body"])
def test_no_other_protocol_is_asked_for(place, lines):
    out = raw(place, "liar/echo", *lines, "Connection: close", body=b"x" * ("Content-Length: 1" in lines))
    assert out.startswith(b"HTTP/1.1 200 ")
    assert not {"upgrade", "connection", "http2-settings"} & set(place.liar.last().headers)


def test_what_is_no_frame_ends_it_and_the_key_is_not_in_it(place):
    out = raw(place, "liar/websocket", *ASKS, then=b"key?")
    head, _, rest = out.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 ") and b"x-echo: ***" in head and b"upgrade: websocket" in head
    assert KEY.encode() not in out and len(rest) < 4
    # Compressed frames although none were offered.
    place.liar.do_deflate = lambda request, answer, _: answer.send(
        b"HTTP/1.1 101 S\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-extensions: permessage-deflate\r\n\r\n")
    out = raw(place, "liar/deflate", *ASKS, "Connection: close")
    assert out.startswith(b"HTTP/1.1 502 ") and b"compressed" in out


def test_a_reload_lets_it_go_on_and_a_seal_ends_it(place):
    with connect(place, "ws/chat") as ws:
        place.ops("reload")
        ws.send("still here")
        assert ws.recv(timeout=20) == "still here"
        place.put("app/key", "CANARY-key-new-41c7")
        ws.send("key?")
        assert ws.recv(timeout=20) == f"it is {'*' * len(KEY)}.", "what began with a key ends with it"
        with connect(place, "ws/chat"):
            assert place.upstream.handshakes[-1].headers["Authorization"] == "Bearer CANARY-key-new-41c7"
        try:
            place.ops("seal")
            with pytest.raises(ConnectionClosed):
                ws.recv(timeout=20)
        finally:
            place.ops("unseal")
        place.put("app/key", KEY)
    eventually(lambda: re.findall(r'keyhatch_route_open\{route="ws"\} (\d+)',
                                  UnixHTTP(place.admin_socket).get("/v1/metrics").body.decode()) == ["0"])


def test_it_ends_once_it_would_not_be_allowed_any_more(place):
    config = place.config.read_text()
    with connect(place, "ws/chat") as ws:
        try:
            place.config.write_text(config.replace('"GET /chat", ', ""))
            place.ops("reload")
            with pytest.raises(ConnectionClosed):
                ws.recv(timeout=20)
        finally:
            place.config.write_text(config)
            place.ops("reload")
    assert ended(place)["status"] == 101


def test_a_stop_records_how_what_was_under_way_ended(place):
    with connect(place, "ws/chat") as ws, socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(place.socket))
        sock.sendall(b"GET /v1/use/liar/silent HTTP/1.1\r\nHost: x\r\n\r\n")
        eventually(lambda: place.liar.seen and place.liar.last().path == "/silent")
        assert place.stop() == 0
    used = {record["request_id"] for record in place.records(event="secret.use", decision="allow")}
    assert used == {record["request_id"] for record in place.records(event="secret.used")}
    assert [record["status"] for record in place.records(event="secret.used")[-2:]].count(101) == 1
