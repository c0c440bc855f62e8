"""Routes: odd requests and odd answers, of which none may leak the key, be read in two ways, or hold a turn."""

import html
import json
import re
import socket
import urllib.parse

import pytest

import hostile
from harness import UnixHTTP, eventually, open_to_others
from test_routes import KEY, Place


class Odd(hostile.Hostile):
    """Answers that no upstream should give."""

    def do_both_lengths(self, request, answer, _):
        answer.begin(**{"content-length": request.query["length"], "transfer-encoding": "chunked"})
        answer.chunk(b"0123456789abcdef")
        answer.end()

    def do_old(self, request, answer, _):
        answer.send(b"HTTP/1.0 200 OK\r\n\r\nhello")
        return False

    def do_empty(self, request, answer, _):
        answer.send(f"HTTP/1.1 {request.query['code']} X\r\ncontent-length: 50\r\n\r\n".encode())

    def do_hint(self, request, answer, _):
        answer.send(f"HTTP/1.1 103 Early\r\nlink: <{request.credential}>\r\n\r\n".encode())
        answer.whole(b"x")

    def do_name(self, request, answer, _):
        answer.send(f"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nx-{request.credential.encode().hex().upper()}: 1\r\n\r\n".encode())

    def do_forged_trailer(self, request, answer, _):
        answer.begin(**{"transfer-encoding": "chunked", "trailer": "keyhatch-route, x-sum"})
        answer.chunk(b"b")
        answer.end(**{"keyhatch-route": "forged", "content-length": "3", "x-sum": "1"})

    def do_switches(self, request, answer, lines):
        answer.send(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n")
        lines.read1(1)
        return False

    def do_escaped(self, request, answer, _):
        key = request.credential
        forms = {
            "python": urllib.parse.quote(key), "form": urllib.parse.quote_plus(key),
            "dotnet": json.dumps(key)[1:-1].replace("+", "\\u002B"), "go": html.escape(key).replace("+", "&#43;"),
            "mustache": key.replace("/", "&#x2F;"), "all": "".join(f"&#{ord(c)};" for c in key),
        }
        answer.whole(forms[request.query["as"]].encode())


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd", numbered=False)
    open_to_others(folder)
    with Place(folder) as place:
        place.clear.__class__ = Odd
        yield place


def ask(place, line, extra="", body=b""):
    """The whole answer, and what the upstream got."""
    before = len(place.clear.seen)
    raw = place.raw(f"{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTE: trailers\r\n{extra}\r\n".encode() + body)
    return raw, place.clear.seen[before:]


@pytest.mark.parametrize("method", ["delete", "Delete", "trace", "Trace", "connect"])
def test_a_method_in_small_letters_evades_no_rule(place, method):
    raw, seen = ask(place, f"{method} /v1/use/clear/echo")
    assert raw.startswith(b"HTTP/1.1 405 ") and seen == []


def test_bodies_keep_their_framing(place):
    chunked = "Transfer-Encoding: chunked\r\n"
    _, [seen] = ask(place, "GET /v1/use/clear/echo", chunked, b"5\r\nhello\r\n0\r\n\r\n")
    assert (seen.body, seen.headers["transfer-encoding"]) == (b"hello", "chunked")
    for method, length in [("POST", "0"), ("PUT", "0"), ("PATCH", "0"), ("GET", None), ("DELETE", None)]:
        _, [seen] = ask(place, f"{method} /v1/use/clear/echo", "Content-Length: 0\r\n")
        assert seen.headers.get("content-length") == length, method


@pytest.mark.parametrize("path, status, ends", [
    ("both-lengths?length=5", 200, b"\r\n\r\n10\r\n0123456789abcdef\r\n0\r\n\r\n"),
    ("both-lengths?length=50", 200, b"\r\n\r\n10\r\n0123456789abcdef\r\n0\r\n\r\n"),
    ("old", 200, b"5\r\nhello\r\n0\r\n\r\n"),
    ("empty?code=304", 304, b"\r\n\r\n"),
    ("empty?code=204", 204, b"\r\n\r\n"),
    ("hint", 200, b"\r\n\r\nx"),
    ("name", 200, b"\r\n\r\n"),
    ("forged-trailer", 200, b"1\r\nb\r\n0\r\nx-sum: 1\r\n\r\n"),
    ("switches", 502, b"}"),
    *((f"escaped?as={form}", 200, b"*") for form in ("python", "form", "dotnet", "go", "mustache", "all")),
])
def test_odd_answers(place, path, status, ends):
    raw, _ = ask(place, f"GET /v1/use/clear/{path}")
    assert raw.startswith(f"HTTP/1.1 {status} ".encode()), raw
    head, _, body = raw.partition(b"\r\n\r\n")
    assert raw.endswith(ends), raw
    assert b"forged" not in raw and KEY.encode() not in raw and KEY.encode().hex() not in raw.decode("latin-1").lower()
    assert not (b"content-length" in head and b"transfer-encoding" in head)
    if "escaped" in path:
        assert set(body) == {ord("*")}
    if status == 200:
        ended = place.agent.records(event="secret.used")[-1]
        assert ended["complete"] and ended.get("masked", 0) == (path == "name" or "escaped" in path)


def open_streams(place):
    text = UnixHTTP(place.agent.admin_socket).get("/v1/metrics").body.decode()
    return int(re.search(r'^keyhatch_route_open\{route="clear"\} (\d+)', text, re.M)[1])


HEAD = b" HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize("sent", [
    b"GET /v1/use/clear/silent" + HEAD + b"\r\n",
    b"GET /v1/use/clear/silent" + HEAD + b"\r\nGET /v1/use/clear/echo" + HEAD + b"\r\n",
    b"GET /v1/use/clear/sse?events=3" + HEAD + b"\r\nGET /v1/use/clear/echo" + HEAD + b"\r\n",
    b"GET /v1/use/clear/download?bytes=100000000" + HEAD + b"\r\n",
    b"POST /v1/use/clear/silent" + HEAD + b"Content-Length: 100\r\n\r\n",
    b"POST /v1/use/clear/silent" + HEAD + b"Content-Length: 100000\r\n\r\n" + b"x" * 1000,
    b"POST /v1/use/clear/silent" + HEAD + b"Content-Length: 100000\r\n\r\n" + b"x" * 100000,
], ids=["silent", "pipelined", "streaming", "downloading", "no-body", "part-of-a-body", "whole-body"])
def test_a_bot_that_leaves_gives_its_turn_back(place, sent):
    place.clear.go.clear()
    assert open_streams(place) == 0
    # This process is a bot, too.
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(place.agent.socket))
        sock.sendall(sent)
        eventually(lambda: open_streams(place) == 1)
    eventually(lambda: open_streams(place) == 0, seconds=10)
