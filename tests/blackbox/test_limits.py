"""Bad input and greedy peers: each is refused, bounded or cut off, and the others are served meanwhile.

What takes the daemon seconds to end (slow heads, slow bodies, a watch that is never read) begins with the first test
and is looked at in the last ones, so that nobody waits for it alone.
"""

import contextlib
import http.client
import json
import os
import random
import re
import resource
import select
import socket
import threading
import time

import pytest

from bots import Bot, answer, answers, ask, dial, open_watch, send
from harness import ALICE, BOB, CANARY, CAROL, Agent, as_user, eventually

KEY = "/v1/secrets/app/key"
HEAD = b" HTTP/1.1\r\nHost: keyhatch\r\n"
POLICY = """
[[bot]]
name = "root"
match = { uid = 0 }
roles = ["reader"]

[[bot]]
name = "alice"
match = { uid = 20001 }
roles = ["reader"]

[[bot]]
name = "bob"
match = { uid = 20002 }
roles = ["reader"]

[role.reader]
grants = [{ secrets = ["app/**", "big/**"] }]
"""

# As many names as fit in the head of one watch, so that a few rotations of them are more than a socket takes.
BIG = [f"big/{'x' * 470}{at:03}" for at in range(30)]


@pytest.fixture(scope="module")
def agent():
    resource.setrlimit(resource.RLIMIT_NOFILE, (20_000, 20_000))
    with Agent(POLICY, popen=files(20_000)) as agent:
        agent.put("app/still", "CANARY-still")
        rotate(agent, BIG, "first")
        yield agent


def rotate(agent, names, value):
    agent.ops("store", "import", "--from", "json", stdin=json.dumps(dict.fromkeys(names, value)).encode())


def files(most):
    """Starts a daemon that may open so many files: a user gets a quarter of what they are enough for."""
    return {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))}


def raw(agent, data, end=True):
    """Sends bytes as they are; all that comes back until the connection closes."""
    sock, replies = dial(agent.socket), b""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        sock.sendall(data)
        if end:
            sock.shutdown(socket.SHUT_WR)
    with contextlib.suppress(ConnectionResetError):
        while data := sock.recv(1 << 16):
            replies += data
    return replies


def one(agent, data):
    """Sends bytes as they are; the first answer, or nothing where the connection is closed without one."""
    sock = dial(agent.socket)
    with contextlib.suppress(BrokenPipeError):
        sock.sendall(data)
    try:
        return answer(sock)
    except (http.client.RemoteDisconnected, ConnectionResetError):
        return None


def problem(reply, status, code):
    """A problem document of RFC 9457 with what the contract adds."""
    assert reply.status == status, reply
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.headers["cache-control"] == "no-store"
    document = reply.json()
    assert (document["status"], document["code"]) == (status, code), document
    assert document["type"] == f"urn:keyhatch:problem:{code}" and document["title"]
    assert re.fullmatch(r"[0-9a-f-]{10,}", document["request_id"])
    assert CANARY.encode() not in reply.body
    return document


def healthy(agent, uid=BOB, value=CANARY):
    """The daemon lives, and serves somebody else."""
    assert agent.process.poll() is None
    reply = agent.read("app/key", uid)
    assert (reply.status, reply.json().get("value")) == (200, value), reply


def resident(agent):
    """The daemon's memory in KiB."""
    for line in open(f"/proc/{agent.pid}/status"):
        if line.startswith("VmRSS:"):
            return int(line.split()[1])


# What takes time to end.


class Slow:
    """Connections that never get on, each with what the daemon is to do about it."""

    def __init__(self, agent):
        self.ended = threading.Event()
        self.agent = agent
        # A head that comes one byte at a time, for ever.
        self.drips = [dial(agent.socket) for _ in range(20)]
        for drip in self.drips:
            drip.sendall(b"GET /v1/health" + HEAD + b"X: ")
        # A head that stops, and one that stops behind a good request.
        self.halves = [dial(agent.socket), dial(agent.socket)]
        for half in self.halves:
            half.sendall(b"GET /v1/health" + HEAD)
        # A body that comes one byte at a time.
        self.body = dial(agent.socket)
        self.body.sendall(b"POST /v1/batch" + HEAD + b"Content-Length: 60000\r\n\r\n")
        # A body whose reader does not wait for it.
        self.unread = dial(agent.socket)
        self.unread.sendall(b"GET /v1/health" + HEAD + b"Content-Length: 60000\r\n\r\n")
        # Watches that are never read, though there is more to tell than a socket takes.
        self.watches = [dial(agent.socket) for _ in range(20)]
        for watch in self.watches:
            send(watch, "/v1/watch?" + "&".join(f"name={name}" for name in BIG))
            assert watch.recv(12) == b"HTTP/1.1 200"
        for turn in range(12):
            rotate(agent, BIG, f"turn {turn}")
        # Those that only wait are left alone: a new connection, an idle one, a body in two pieces, a long poll with
        # another request behind it.
        self.fresh, self.idle, self.pieces, self.poll = (dial(agent.socket, 60) for _ in range(4))
        still = "/v1/secrets/app/still"
        version = ask(self.idle, still).json()["version"]
        self.pieces.sendall(b"POST /v1/batch" + HEAD + b"Content-Length: 21\r\n\r\n")
        send(self.poll, still, headers={"If-None-Match": f'"{version}"', "Prefer": "wait=14"})
        time.sleep(0.2)  # so that the pieces are two
        self.pieces.sendall(b'{"names":["app/key"]}')
        assert answer(self.pieces).status == 200
        send(self.poll, "/v1/health")
        self.thread = threading.Thread(target=self.drip)
        self.thread.start()

    def drip(self):
        while not self.ended.wait(0.2):
            for sock in [*self.drips, self.body, self.unread]:
                with contextlib.suppress(OSError):
                    sock.send(b"x", socket.MSG_DONTWAIT)

    def end(self):
        self.ended.set()
        self.thread.join()
        for sock in [*self.drips, *self.halves, self.body, self.unread, *self.watches,
                     self.fresh, self.idle, self.pieces, self.poll]:
            sock.close()


@pytest.fixture(scope="module", autouse=True)
def slow(agent):
    slow = Slow(agent)
    yield slow
    slow.end()


def is_closed(sock):
    """Whether the other side has hung up; reads nothing."""
    poll = select.poll()
    poll.register(sock, 0)
    return bool(poll.poll(0))


# Paths and requests that are tricks.


TRICKS = [
    b"GET /v1/secrets/../admin",
    b"GET /v1/secrets/app/../app/key",
    b"GET /v1/secrets/./app/key",
    b"GET /v1/secrets/%2e%2e/admin",
    b"GET /v1/secrets/%2E%2e%2fadmin",
    b"GET /v1/secrets/app%2f..%2fapp%2fkey",
    b"GET /v1/secrets/app/key%00",
    b"GET /v1/secrets/%00",
    b"GET /v1/secrets/app/key%0d%0aX:%20y",
    b"GET //v1/secrets/app/key",
    b"GET /v1//secrets/app/key",
    b"GET /v1/secrets//app/key",
    b"GET /v1/secrets/app//key",
    b"GET /v1/secrets/app/key/",
    b"GET /v1/secrets/",
    b"GET /v1/secrets/%",
    b"GET /v1/secrets/%f",
    b"GET /v1/secrets/%zz",
    b"GET /v1/secrets/%ff%fe",
    b"GET /v1/secrets/%c0%ae%c0%ae/admin",
    b"GET /v1/secrets/app%5ckey",
    b"GET /v1/secrets/app/key;x",
    b"GET /v1/secrets/\xc3\xa9",
    b"GET /v1/secrets/" + b"x" * 513,
    b"GET /v1/secrets/" + b"%41" * 513,
    b"GET /v1/secrets/" + b"x/" * 4000 + b"x",
    b"GET /V1/secrets/app/key",
    b"GET /v1/secrets/app/key?version=previous&wat=1",
    b"GET /v1/secrets/app/key?field=%",
    b"GET /v1/secrets/app/key?field=%ff",
    b"GET /v1/secrets?limit=0",
    b"GET /v1/secrets?limit=99999999999999999999",
    b"GET /v1/watch",
    b"GET /v1/watch?name=../x",
    b"GET /v1/watch?" + b"&".join(b"name=a%d" % at for at in range(101)),
    b"GET /v1/../admin",
    b"GET /admin",
    b"GET /",
    b"GET http://keyhatch/v1/secrets/../admin",
    b"GET http://keyhatch/v1/status",
    b"OPTIONS *",
    b"CONNECT keyhatch:443",
]


@pytest.mark.parametrize("request_line", TRICKS, ids=lambda line: line[:40].decode("latin-1"))
def test_a_trick_with_a_path_is_a_bad_request(agent, request_line):
    problem(one(agent, request_line + HEAD + b"\r\n"), 400, "bad_request")


def test_what_is_no_http_is_refused_and_its_connection_closed(agent):
    for data in (
        b"GET /v1/secrets/\xff\xfe" + HEAD + b"\r\n",
        b"GET /v1/secrets/app\x00key" + HEAD + b"\r\n",
        b"GET /v1/secrets/app key" + HEAD + b"\r\n",
        b"GET v1/secrets/app/key" + HEAD + b"\r\n",
        b"GET /v1/health HTTP/3.7\r\n\r\n",
        b"GET /v1/health\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /v1/health" + HEAD + b"Bad Name: x\r\n\r\n",
        b"GET /v1/health" + HEAD + b" folded: x\r\n\r\n",
        b"GET /v1/health" + HEAD + b"X: a\x00b\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
        b"\x00" * 1000,
    ):
        replies = raw(agent, data, end=False)
        assert replies[:13] in (b"HTTP/1.1 400 ", b""), (data, replies)
        assert replies.count(b"HTTP/1.1") <= 1 and CANARY.encode() not in replies
    healthy(agent)


def test_methods_that_a_path_does_not_have_are_refused(agent):
    for line in (b"DELETE " + KEY.encode(), b"PUT " + KEY.encode(), b"POST /v1/secrets", b"GET /v1/batch",
                 b"CONNECT " + KEY.encode(), b"TRACE /v1/health", b"WAT /v1/whoami"):
        problem(one(agent, line + HEAD + b"\r\n"), 405, "method_not_allowed")


def test_an_absolute_uri_is_its_path_and_nothing_more(agent):
    """RFC 9112 section 3.2.2 has servers take this form; the authority in it decides nothing."""
    absolute = lambda: one(agent, b"GET http://admin@elsewhere:1" + KEY.encode() + HEAD + b"\r\n")
    assert as_user(BOB, absolute).json()["value"] == CANARY
    problem(as_user(CAROL, absolute), 403, "denied")


def test_every_error_is_a_problem_document_with_its_request_id(agent):
    problem(agent.read("app/key", CAROL), 403, "denied")
    problem(agent.read("app/none", ALICE), 404, "not_found")
    problem(agent.get("/v1/secrets/app/key?field=x", ALICE), 404, "not_found")
    problem(agent.get("/v1/batch", ALICE, "POST", b"[]"), 400, "bad_request")
    many = json.dumps({"names": ["app/key"] * 101}).encode()
    problem(agent.get("/v1/batch", ALICE, "POST", many), 400, "bad_request")
    problem(agent.get("/v1/watch?name=app/key", CAROL), 403, "denied")
    problem(agent.get("/v1/secrets", CAROL), 403, "denied")
    ids = [agent.read("app/key", CAROL).json()["request_id"] for _ in range(3)]
    assert len(set(ids)) == 3


# Sizes.


def test_heads_over_their_bounds_are_431_and_those_within_are_served(agent):
    fits = b"GET /v1/health" + HEAD + b"X: " + b"x" * 15_000 + b"\r\n\r\n"
    assert one(agent, fits).status == 200
    assert one(agent, b"GET /v1/health" + HEAD + b"".join(b"A%d: x\r\n" % at for at in range(63)) + b"\r\n").status == 200
    for head in (
        b"X: " + b"x" * 17_000,
        b"X: " + b"x" * 5_000_000,
        b"\r\n".join(b"A%d: x" % at for at in range(64)),
        b"\r\n".join(b"A: x" for _ in range(3_000)),
        b"x" * 100_000,
    ):
        reply = raw(agent, b"GET /v1/health" + HEAD + head + b"\r\n\r\n")
        assert reply.startswith(b"HTTP/1.1 431 ") and reply.count(b"HTTP/1.1") == 1, reply[:200]
    long = raw(agent, b"GET /v1/secrets/" + b"x" * 100_000 + HEAD + b"\r\n")
    assert re.match(rb"HTTP/1.1 (431|414) ", long), long[:200]
    healthy(agent)


@pytest.mark.xfail(strict=True, reason="hyper answers a head that it cannot parse itself, with no body")
@pytest.mark.parametrize("head", [b"X: " + b"x" * 17_000, b"Bad Name: x"], ids=["too large", "not a header"])
def test_a_head_that_does_not_parse_is_a_problem_document_too(agent, head):
    reply = one(agent, b"GET /v1/health" + HEAD + head + b"\r\n\r\n")
    assert reply.headers["content-type"] == "application/problem+json" and reply.json()["request_id"]


def test_a_body_over_64_kib_is_413_however_its_length_is_told(agent):
    body = json.dumps({"names": ["app/key"]}).encode()
    full = body + b" " * (64 * 1024 - len(body))
    post = lambda headers, body: one(agent, b"POST /v1/batch" + HEAD + headers + b"\r\n" + body)
    length = lambda body: b"Content-Length: %d\r\n" % len(body)
    chunked = lambda body: b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n"
    assert post(length(full), full).json()["secrets"][0]["value"] == CANARY
    assert post(b"Transfer-Encoding: chunked\r\n", chunked(full)).status == 200
    problem(post(length(full + b" "), full + b" "), 413, "too_large")
    problem(post(length(full + b" "), b""), 413, "too_large")
    problem(post(b"Transfer-Encoding: chunked\r\n", chunked(full + b" ")), 413, "too_large")
    healthy(agent)


def test_a_bot_that_still_sends_its_body_reads_why_it_is_refused(agent):
    """An ordinary client writes its request to the end first, and would break its pipe on a socket that is closed."""
    for method, path, status in (("POST", "/v1/batch", 413), ("POST", "/v1/use/nowhere/x", 403), ("PUT", KEY, 405)):
        reply = agent.get(path, None, method, b" " * (8 << 20))
        assert (reply.status, reply.json()["status"]) == (status, status), reply
    healthy(agent)


def test_lengths_that_contradict_each_other_smuggle_nothing(agent):
    """Whatever length is believed, the bytes behind it are never answered as a request of their own."""
    hidden = b"GET /v1/whoami" + HEAD + b"\r\n"
    for lengths in (
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: %d\r\n" % (5 + len(hidden)),
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: 5, 6\r\n",
        b"Content-Length: -5\r\n",
        b"Content-Length: 18446744073709551614\r\n",
        b"Content-Length: +5\r\n",
        b"Content-Length: 0x5\r\n",
        b"Content-Length: 99999999999999999999999\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"Transfer-Encoding: xchunked\r\n",
        b"Transfer-Encoding : chunked\r\n",
    ):
        replies = raw(agent, b"POST /v1/batch" + HEAD + lengths + b"\r\n0\r\n\r\n" + hidden)
        assert replies.count(b"HTTP/1.1 ") <= 1 and b'"uid"' not in replies, (lengths, replies)
        assert re.match(rb"HTTP/1.1 4|$", replies), (lengths, replies)
    # Where the length is plain, the body is a body, though it reads like a request.
    asked = b"GET /v1/health" + HEAD + b"Content-Length: %d\r\n\r\n" % len(hidden) + hidden
    assert b'"uid"' not in raw(agent, asked)
    healthy(agent)


def test_pipelined_requests_are_answered_in_order(agent):
    sock = dial(agent.socket)
    names = [f"app/none-{at}" if at % 3 else "app/key" for at in range(150)]
    sock.sendall(b"".join(b"GET /v1/secrets/" + name.encode() + HEAD + b"X-Pad: %d\r\n\r\n" % at
                          for at, name in enumerate(names)))
    assert [reply.status for reply in answers(sock, 150)] == [404 if at % 3 else 200 for at in range(150)]


def test_a_connection_of_which_one_half_is_shut_is_answered_or_closed_and_nothing_stays(agent):
    before = agent.status()["connections"]
    for _ in range(20):
        assert raw(agent, b"GET /v1/health" + HEAD + b"\r\n")[:12] in (b"HTTP/1.1 200", b"")
        assert raw(agent, b"GET /v1/hea") == b""
        assert raw(agent, b"") == b""
        assert raw(agent, b"POST /v1/batch" + HEAD + b"Content-Length: 99\r\n\r\n{")[:12] in (b"HTTP/1.1 400", b"")
        # A waiting one whose client left without a word.
        watch = dial(agent.socket)
        send(watch, "/v1/watch?name=app/key")
        watch.recv(10)
        watch.close()
        # One whose client reads no more.
        shut = dial(agent.socket)
        shut.shutdown(socket.SHUT_RD)
        send(shut, KEY)
        shut.close()
    eventually(lambda: agent.status()["connections"] <= before)
    healthy(agent)


def test_random_bytes_and_broken_requests_end_nothing_but_their_connection(agent):
    chance = random.Random(20260101)
    seeds = [
        b"GET /v1/secrets/app/key" + HEAD + b"If-None-Match: \"x\"\r\nAccept: application/octet-stream\r\n\r\n",
        b"POST /v1/batch" + HEAD + b'Content-Length: 21\r\n\r\n{"names":["app/key"]}',
        b"POST /v1/batch" + HEAD + b'Transfer-Encoding: chunked\r\n\r\n15\r\n{"names":["app/key"]}\r\n0\r\n\r\n',
        b"GET /v1/secrets?prefix=app&limit=10&after=app/a" + HEAD + b"\r\n",
        b"GET /v1/secrets/app/key?version=previous&field=a%20b" + HEAD + b"Prefer: respond-async\r\n\r\n",
        b"GET /v1/whoami" + HEAD + b"\r\nGET /v1/health" + HEAD + b"\r\n",
    ]

    def garbage():
        if chance.random() < 0.3:
            return chance.randbytes(chance.randrange(1, 200))
        data = bytearray(chance.choice(seeds))
        for _ in range(chance.randrange(1, 6)):
            at = chance.randrange(len(data))
            match chance.randrange(4):
                case 0: data[at] = chance.randrange(256)
                case 1: del data[at : at + chance.randrange(1, 8)]
                case 2: data[at:at] = chance.randbytes(chance.randrange(1, 8))
                case _: data[at:at] = data[chance.randrange(len(data)) :][: chance.randrange(1, 40)]
            data = data or bytearray(b"\n")
        return bytes(data)

    for _ in range(2_000):
        data = garbage()
        for reply in re.findall(rb"HTTP/1\.[01] (\d+)", raw(agent, data)):
            assert reply in (b"100", b"200", b"304", b"400", b"403", b"404", b"405", b"408", b"413", b"431"), data
    healthy(agent)
    assert b"panicked" not in agent.log.read_bytes()


# One user's share.


def test_one_user_who_opens_thousands_of_connections_gets_429_while_another_is_served(agent):
    held = [dial_as(agent, ALICE) for _ in range(3_000)]
    try:
        last = answer(held.pop())
        problem(last, 429, "rate_limited")
        assert last.headers["retry-after"] == "1"
        assert agent.status()["connections"] < 1_500
        for uid in (BOB, 0):
            healthy(agent, uid)
        # She cannot have another one, and those she has are served.
        problem(answer(dial_as(agent, ALICE)), 429, "rate_limited")
        assert ask(held[0], KEY).json()["value"] == CANARY
    finally:
        for sock in held:
            sock.close()
    # What she gives back she may take again.
    eventually(lambda: agent.read("app/key", ALICE).status == 200)


def dial_as(agent, uid):
    """A connection of this process, which lives on, as another user."""
    os.seteuid(uid)
    try:
        return dial(agent.socket)
    finally:
        os.seteuid(0)


def test_users_who_take_all_they_may_leave_the_agent_the_files_it_needs():
    with Agent(POLICY, popen=files(1_024)) as agent:
        quarter = (1_024 - 128) // 4 // 4
        held = []
        try:
            for uid in (ALICE, BOB, 20003, 20004):
                socks = [dial_as(agent, uid) for _ in range(quarter + 10)]
                held += socks
                eventually(lambda: sum(map(is_closed, socks)) == 10)
            # Everyone has a quarter now: the daemon still accepts, writes its log, reads its store and its policy.
            problem(answer(dial_as(agent, 20005)), 429, "rate_limited")
            agent.put("app/key", "CANARY-while-full")
            assert ask(held[0], KEY).json()["value"] == "CANARY-while-full"
            agent.ops("reload")
            assert "not accepted" not in agent.log.read_text()
        finally:
            for sock in held:
                sock.close()


def test_a_flood_by_one_user_is_held_back_while_another_asks_and_is_answered(agent):
    """20,000 requests a second are more than a bot's."""
    burst = (b"GET /v1/health" + HEAD + b"\r\n") * 400
    with Bot(agent, BOB) as bob, Bot(agent, ALICE) as alice:
        other = bob.connect()

        def held_back():
            flood = alice.connect()
            assert ask(other, KEY).json()["value"] == CANARY
            flood.sendall(burst)
            assert ask(other, KEY).json()["value"] == CANARY
            return [reply for reply in answers(flood, 400) if reply.status != 200]

        refused = eventually(held_back, seconds=30)
    for reply in refused:
        problem(reply, 429, "rate_limited")
        assert reply.headers["retry-after"] == "1"
    assert agent.records(reason="limited", bot="alice")
    assert not agent.records(reason="limited", bot="bob")


# Watches.


def test_a_thousand_watchers_are_all_told_of_a_rotation_within_bounded_memory(agent):
    before = resident(agent)
    socks = [dial_as(agent, ALICE) for _ in range(1_000)]
    try:
        watches = [open_watch(sock, "app/key") for sock in socks]
        assert all(next(watch)[0] == "current" for watch in watches)
        agent.put("app/key", "CANARY-for-a-thousand")
        told = [next(watch) for watch in watches]
        assert {kind for kind, _ in told} == {"rotated"}
        assert {data["version"] for _, data in told} == {agent.read("app/key", BOB).json()["version"]}
        assert b"CANARY-for" not in json.dumps(told).encode()
        # Twenty more whom nobody reads, and every secret of theirs rotated again and again: nothing queues up.
        for turn in range(10):
            rotate(agent, BIG, f"again {turn}")
        assert resident(agent) - before < 64 * 1024, "KiB more"
        healthy(agent, value="CANARY-for-a-thousand")
    finally:
        for sock in socks:
            sock.close()
        agent.put("app/key", CANARY)


# The end of what began first.


def test_slow_heads_and_slow_bodies_are_closed(agent, slow):
    for sock in [*slow.drips, *slow.halves, slow.unread]:
        eventually(lambda: is_closed(sock), seconds=40)
    reply = answer(slow.body)
    problem(reply, 408, "timeout")
    healthy(agent)


def test_those_that_only_wait_are_left_alone(agent, slow):
    eventually(lambda: is_closed(slow.drips[0]), seconds=40)
    assert ask(slow.fresh, KEY).status == 200
    assert ask(slow.idle, KEY).status == 200
    assert ask(slow.pieces, KEY).status == 200
    assert [reply.status for reply in answers(slow.poll, 2)] == [304, 200]


def test_a_watch_that_never_reads_is_dropped(agent, slow):
    for watch in slow.watches:
        eventually(lambda: is_closed(watch), seconds=60)
        events = watch.makefile("rb").read()
        assert b"event: rotated" in events and b"turn" not in events and b"big/" in events
    healthy(agent)
