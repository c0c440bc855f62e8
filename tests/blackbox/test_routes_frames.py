"""Routes over HTTP/2 to an upstream that does what no real server does when it is asked to: it leaves requests out, stops
reading, takes one request at a time, sends crumbs."""

import concurrent.futures.thread  # noqa: F401  (loaded before a child is another user, who cannot read the library)
import contextlib
import json
import os
import socket
import struct
import threading
import time

import pytest

from certificates import Authority
from frames import (DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, INITIAL_WINDOW_SIZE, INTERNAL_ERROR, MAX_CONCURRENT_STREAMS,
                    NO_ERROR, OK, REFUSED_STREAM, RST_STREAM, WINDOW_UPDATE, Upstream, setting)
from harness import ALICE, Agent, eventually
from inside import holds_no_copy
from test_routes import route
from test_routes_http2 import POLICY

KEY = "CANARY-frames/81c4+0e"


@contextlib.contextmanager
def place(tmp_path, serve, settings=b"", more="", secret=KEY, http2=True):
    """The upstream, and an agent whose route `it` goes there."""
    authority = Authority(tmp_path)
    os.chmod(authority.file, 0o644)
    with Upstream(authority.server(), serve, settings, http2) as upstream:
        more = f'http2 = {json.dumps(http2)}\nallow_private = true\nca_file = "{authority.file}"\n{more}'
        with Agent(policy=route("it", upstream.address, more=more) + POLICY, secrets={"app/key": secret}) as agent:
            yield upstream, agent


def begin(agent, path="x", method="GET", body=b"", length=None):
    """A request of root's whose answer is read later, or never."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(20)
    sock.connect(str(agent.socket))
    head = f"{method} /v1/use/it/{path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length or len(body)}\r\n\r\n"
    sock.sendall(head.encode() + body)
    return sock


def open_files(agent):
    return len(os.listdir(f"/proc/{agent.pid}/fd"))


def held(agent):
    return json.loads(agent.ops("status", "--json").stdout)["secret_memory"]["used"]


# What an upstream leaves out.


def leaves_out(connection):
    """The second request of its first connection, by `said`."""
    connection.answer(connection.request())
    stream = connection.request()
    if connection.number == 0:
        leaves_out.say(connection, stream)
        connection.request()
    connection.answer(stream)
    connection.request()


SAYS = {
    "it goes away": (lambda c, stream: c.send(GOAWAY, 0, 0, struct.pack(">II", stream - 2, NO_ERROR)), 200),
    "it refuses": (lambda c, stream: c.send(RST_STREAM, 0, stream, struct.pack(">I", REFUSED_STREAM)), 200),
    "it fails": (lambda c, stream: c.send(RST_STREAM, 0, stream, struct.pack(">I", INTERNAL_ERROR)), 502),
    "it goes away after it": (lambda c, stream: (c.send(GOAWAY, 0, 0, struct.pack(">II", stream, NO_ERROR)), c.sock.shutdown(socket.SHUT_RDWR)), 502),
}


@pytest.mark.parametrize("said", SAYS)
def test_what_the_upstream_has_not_touched_is_made_once_more_and_nothing_else_is(tmp_path, said):
    leaves_out.say, status = SAYS[said]
    with place(tmp_path, leaves_out) as (upstream, agent):
        assert agent.get("/v1/use/it/first", ALICE).status == 200
        assert agent.get("/v1/use/it/second", ALICE, "POST", b"an order").status == status
        heads = [len(connection.heads) for connection in upstream.connections]
        assert heads == ([2, 1] if status == 200 else [2])


# Who shares a connection, and until when.


def test_a_request_over_the_upstreams_limit_has_a_connection_of_its_own(tmp_path):
    go = threading.Event()

    def serve(connection):
        stream = connection.request()
        connection.settle()
        if connection.number == 0:
            settled.set()
            go.wait(30)
        connection.answer(stream)
        connection.request()

    settled = threading.Event()
    with place(tmp_path, serve, setting(MAX_CONCURRENT_STREAMS, 1)) as (upstream, agent):
        with begin(agent) as first:
            assert settled.wait(20)
            assert agent.get("/v1/use/it/second").status == 200
            go.set()
            assert first.recv(15) == b"HTTP/1.1 200 OK"
        # The key stood in each head, and nothing that stands for it.
        for connection in upstream.connections:
            assert [KEY.encode() in head for head in connection.heads.values()] == [True]


def test_a_bot_that_leaves_before_an_answer_leaves_nobody_a_dead_connection(tmp_path):
    def serve(connection):
        connection.answer(connection.request())
        connection.request()
        if connection.number > 0:
            return
        # It hears no more.
        while True:
            connection.frame()

    with place(tmp_path, serve) as (upstream, agent):
        assert agent.get("/v1/use/it/first").status == 200
        with begin(agent):
            eventually(lambda: len(upstream.connections[0].heads) == 2)
            # As long as one waits before an upstream counts as silent.
            time.sleep(1.5)
        eventually(lambda: any(r["note"] for r in agent.records(event="secret.used") if "note" in r))
        assert agent.get("/v1/use/it/next").status == 200


def test_one_that_is_given_up_early_costs_nobody_the_connection(tmp_path):
    def serve(connection):
        connection.answer(connection.request())
        connection.request()
        connection.answer(connection.request())
        connection.request()

    with place(tmp_path, serve) as (upstream, agent):
        assert agent.get("/v1/use/it/first").status == 200
        with begin(agent):
            eventually(lambda: len(upstream.connections[0].heads) == 2, pause=0.01)
        eventually(lambda: any("note" in r for r in agent.records(event="secret.used")))
        assert agent.get("/v1/use/it/next").status == 200
        assert [len(connection.heads) for connection in upstream.connections] == [3]


def test_no_bot_pushes_out_the_connection_of_another(tmp_path):
    """One bot opens more than are kept, each for a request of its own."""
    go = threading.Event()

    def serve(connection):
        stream = connection.request()
        connection.settle()
        if connection.number > 0:
            go.wait(30)
        connection.answer(stream)
        connection.answer(connection.request())
        connection.request()

    with place(tmp_path, serve, setting(MAX_CONCURRENT_STREAMS, 1)) as (upstream, agent), contextlib.ExitStack() as many:
        assert agent.get("/v1/use/it/first", ALICE).status == 200
        for number in range(1, 132):
            many.enter_context(begin(agent))
            eventually(lambda: len(upstream.connections) > number and upstream.connections[number].heads, pause=0.005)
        assert agent.get("/v1/use/it/second", ALICE).status == 200
        assert len(upstream.connections[0].heads) == 2
        go.set()


def test_a_connection_that_is_let_go_says_so(tmp_path):
    """Of two that come at once one is shared, and the other ends in order once it is answered."""
    ends, both = [], threading.Barrier(2)

    def serve(connection):
        stream = connection.request()
        both.wait(20)
        connection.answer(stream)
        ends.append((connection.frame()[0], connection.sock.recv(1)))

    with place(tmp_path, serve) as (upstream, agent), begin(agent) as first, begin(agent) as second:
        assert first.recv(15) == second.recv(15) == b"HTTP/1.1 200 OK"
        # Without TLS's own goodbye, reading on would have failed.
        assert eventually(lambda: ends) == [(GOAWAY, b"")]


def test_crumbs_that_nobody_reads_end_no_other_answer(tmp_path):
    """Each small frame costs more than its bytes: the library counts that, and ends a connection over it."""
    window, stuck = {}, threading.Event()

    def crumbs(connection):
        quiet = time.monotonic()
        while time.monotonic() < quiet + 1:
            for stream in [stream for stream, left in window.items() if left >= 40]:
                connection.send(DATA, 0, stream, b"x" * 40)
                window[stream] -= 40
                quiet = time.monotonic()
        stuck.set()
        connection.send(DATA, END_STREAM, 1, b"the end")

    def serve(connection):
        for stream in (1, 3, 5, 7, 9):
            assert connection.request() == stream
            connection.send(HEADERS, END_HEADERS, stream, OK)
            connection.send(DATA, 0, stream, b"begins")
            window.update({stream: 60_000} if stream > 1 else {})
        threading.Thread(target=crumbs, args=(connection,), daemon=True).start()
        while True:
            kind, _, stream, body = connection.frame()
            if kind == WINDOW_UPDATE and stream in window:
                window[stream] += int.from_bytes(body, "big")

    with place(tmp_path, serve) as (upstream, agent), contextlib.ExitStack() as open_ones:
        good = open_ones.enter_context(begin(agent))
        seen = good.recv(1000)
        for number in range(2, 6):
            open_ones.enter_context(begin(agent, "unread"))
            eventually(lambda: upstream.connections and len(upstream.connections[0].heads) == number)
        assert stuck.wait(60)
        while b"the end" not in seen:
            piece = good.recv(1000)
            assert piece, seen
            seen += piece


# An upstream that stops reading.


@pytest.mark.parametrize("http2", [True, False])
def test_a_connection_that_the_upstream_does_not_read_ends_with_its_last_request(tmp_path, http2):
    def serve(connection):
        if http2:
            connection.send(WINDOW_UPDATE, 0, 0, struct.pack(">I", 0x7FFF0000 - 65535))
            connection.request()
        else:
            connection.sock.recv(100)
        stopped.wait(60)

    stopped = threading.Event()
    settings = setting(INITIAL_WINDOW_SIZE, 0x7FFFFFFF)
    with place(tmp_path, serve, settings, 'timeout = "1s"', http2=http2) as (upstream, agent):
        agent.get("/v1/health")
        before = open_files(agent)
        for _ in range(3):
            assert agent.get("/v1/use/it/x", method="PUT", body=b"x" * (12 << 20)).status == 504
        assert len(upstream.connections) == 3
        eventually(lambda: open_files(agent) <= before)
        stopped.set()


@pytest.mark.parametrize("http2", [True, False])
def test_an_upload_goes_on_after_its_answer(tmp_path, http2):
    """Some servers say 200 first, and read then. Of two that come at once over HTTP/2, one connection is nobody else's."""
    size, read, go = 60_000, {}, threading.Event()

    def serve(connection):
        if http2:
            connection.answer(connection.request(), b"thanks")
        else:
            connection.sock.recv(1000)
            connection.sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nthanks")
        go.wait(30)
        read[connection.number] = 0
        while read[connection.number] < size:
            if http2:
                kind, _, _, body = connection.frame()
                read[connection.number] += len(body) if kind == DATA else 0
            else:
                body = connection.sock.recv(1 << 16)
                read[connection.number] += len(body)
                if not body:
                    return

    with place(tmp_path, serve, http2=http2) as (upstream, agent), contextlib.ExitStack() as bots:
        bots = [bots.enter_context(begin(agent, method="POST", length=size)) for _ in range(2)]
        for bot in bots:
            seen = b""
            while b"thanks" not in seen:
                seen += bot.recv(1000)
        assert len(upstream.connections) == 2
        go.set()
        for _ in range(size // 1000):
            for bot in bots:
                bot.sendall(b"x" * 1000)
        # What HTTP/1.1 has read of the first before it answered is not counted.
        eventually(lambda: min(read.values()) >= size - 1000, 20)


def test_a_key_that_waits_for_an_upstream_that_does_not_read_is_let_go(tmp_path):
    def serve(connection):
        connection.answer(connection.request())
        stopped.wait(60)

    stopped = threading.Event()
    long = "CANARY-waits-" + "x" * 15_000
    with place(tmp_path, serve, more='timeout = "3s"', secret=long) as (_, agent):
        assert agent.get("/v1/use/it/first").status == 200
        idle = held(agent)
        with contextlib.ExitStack() as many:
            for _ in range(300):
                many.enter_context(begin(agent))
            eventually(lambda: held(agent) > idle)
        eventually(lambda: held(agent) == idle)
        holds_no_copy(agent.pid, {"long": long[:100].encode()}, "bot-marker-h2")
        assert json.loads(agent.ops("seal", "--json").stdout)["secret_memory_used"] == 0
        stopped.set()


def test_what_an_echo_leaves_in_a_connection_goes_with_its_last_request(tmp_path):
    go = threading.Event()

    def serve(connection):
        first = connection.request()
        connection.send(HEADERS, END_HEADERS, first, OK)
        connection.send(DATA, 0, first, b"begins")
        stream, value = connection.request(), f"Bearer {KEY}".encode()
        # With a name of its own, for the table.
        field = b"\x40\x05x-key" + bytes([len(value)]) + value
        connection.send(HEADERS, END_HEADERS, stream, OK + field)
        connection.send(DATA, END_STREAM, stream, value)
        go.wait(30)
        connection.send(DATA, END_STREAM, first, b"ends")
        connection.request()

    with place(tmp_path, serve) as (upstream, agent), begin(agent) as first:
        assert first.recv(15) == b"HTTP/1.1 200 OK"
        reply = agent.get("/v1/use/it/echo")
        assert reply.headers["x-key"] == reply.body.decode() == "Bearer " + "*" * len(KEY)
        go.set()
        seen = b""
        while b"ends" not in seen:
            seen += first.recv(1000)
        assert len(upstream.connections) == 1
        holds_no_copy(agent.pid, {"key": KEY.encode()}, "bot-marker-h2")
