"""The client against an agent in a thread of the test; the real one is asked by the conformance suite."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable

import pytest

import keyhatch
import printing
from conftest import CANARY, CLOSE, HOLD, KEEP, STREAM, Fake, event, ok, problem, value
from keyhatch import _progress
from keyhatch._http import Reading
from keyhatch._names import check_name
from keyhatch._socket import Folder, trusted

Make = Callable[[Callable[[int, int, str], tuple[bytes, str]]], Fake]


def test_a_value(fake: Make) -> None:
    agent = fake(lambda *_: (value(), KEEP))
    secret = keyhatch.Client(agent.path).get("a")
    assert (secret.name, secret.version, secret.reveal(), secret.stale) == ("a", "1-a", CANARY, False)
    assert agent.seen == [(0, "GET /v1/secrets/a HTTP/1.1\r\nHost: keyhatch\r\nAccept: application/json\r\n\r\n")]


def test_a_field_is_asked_for_and_quoted(fake: Make) -> None:
    agent = fake(lambda *_: (value(), KEEP))
    client = keyhatch.Client(agent.path)
    client.get("a#b c", version="previous")
    client.get("a", field="x&y\r\n#")
    lines = [request.split("\r\n")[0] for _, request in agent.seen]
    assert lines == [
        "GET /v1/secrets/a?version=previous&field=b%20c HTTP/1.1",
        "GET /v1/secrets/a?field=x%26y%0D%0A%23 HTTP/1.1",
    ]


def test_a_field_of_a_secret_in_hand() -> None:
    secret = keyhatch.Secret("a", "1", b' { "n": 1.50, "s": "x\\u00e9", "o": {"b": [ 1 ]}, "n": 2.50 , "e": {} } ')
    assert [secret.field(name).reveal() for name in "nsoe"] == ["2.50", "x\u00e9", '{"b": [ 1 ]}', "{}"]
    for bad in (b"CANARY", b'["CANARY"]', b'{"a": NaN}', b'{"a": 1', b"\xff", b"[" * 60_000, b"", b"{}", b'{"a":1}x'):
        with pytest.raises(keyhatch.NoField) as caught:
            keyhatch.Secret("a", "1", bad).field("a")
        assert "CANARY" not in printing.chain(caught.value)


def test_no_way_to_print_it_shows_it() -> None:
    secret = keyhatch.Secret("a", "1", CANARY.encode())
    outputs = printing.every_way(secret)
    assert len(outputs) >= 24
    assert not [text for text in outputs if "CANARY" in text]
    with pytest.raises(AttributeError):
        secret._open = lambda: b""


def test_an_error_holds_nothing_of_the_answer(fake: Make) -> None:
    bad = [value("CANARY" * 20_000), ok(b"CANARY"), value(version=None), b"CANARY\r\n", value() + b"CANARY"]  # type: ignore[arg-type]
    for answer in bad:
        agent = fake(lambda *_, answer=answer: (answer, CLOSE))
        with pytest.raises(keyhatch.Protocol) as caught:
            keyhatch.Client(agent.path).get("a")
        assert "CANARY" not in printing.chain(caught.value)
        with pytest.raises(keyhatch.Protocol) as caught:
            asyncio.run(keyhatch.AsyncClient(agent.path).get("a"))
        assert "CANARY" not in printing.chain(caught.value)


def test_half_an_answer_that_stops_is_told_without_it(fake: Make) -> None:
    agent = fake(lambda *_: (value()[:-20], HOLD))
    with pytest.raises(keyhatch.TimedOut) as caught:
        keyhatch.Client(agent.path, timeout=0.2).get("a")
    assert "CANARY" not in printing.chain(caught.value)
    with pytest.raises(keyhatch.TimedOut) as caught:
        asyncio.run(keyhatch.AsyncClient(agent.path, timeout=0.2).get("a"))
    assert "CANARY" not in printing.chain(caught.value)


def test_errors_carry_code_status_and_request_id_and_survive_pickling(fake: Make) -> None:
    import pickle

    agent = fake(lambda *_: (problem(429, "rate_limited", "Retry-After: 7\r\n"), KEEP))
    with pytest.raises(keyhatch.RateLimited) as caught:
        keyhatch.Client(agent.path).get("a")
    for error in (caught.value, pickle.loads(pickle.dumps(caught.value))):
        assert (error.code, error.status, error.request_id, error.retry_after) == ("rate_limited", 429, "r-1", 7)
        assert error.is_temporary and "request r-1" in str(error)


def test_threads_that_ask_at_once_are_all_answered(fake: Make) -> None:
    client = keyhatch.Client(fake(lambda *_: (value(), KEEP)).path)
    failed: list[BaseException] = []

    def ask() -> None:
        try:
            for _ in range(50):
                assert client.get("a").reveal() == CANARY
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_a_cancelled_call_harms_no_other(fake: Make) -> None:
    def answer(connection: int, number: int, request: str) -> tuple[bytes, str]:
        return (b"", HOLD) if "/slow" in request else (value(), KEEP)

    async def run(path: str) -> None:
        async with keyhatch.AsyncClient(path) as client:
            assert (await client.get("a")).reveal() == CANARY
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(client.get("slow"), 0.1)
            assert [s.reveal() for s in await asyncio.gather(*(client.get("a") for _ in range(9)))] == [CANARY] * 9

    asyncio.run(run(fake(answer).path))


def test_one_async_client_over_two_loops(fake: Make) -> None:
    client = keyhatch.AsyncClient(
        fake(lambda c, n, r: (STREAM + event("current", "1-a"), HOLD) if "watch" in r else (value(), KEEP)).path
    )

    async def twice() -> None:
        assert await client.get("a", cache=True) is await client.get("a", cache=True)

    for _ in range(2):
        asyncio.run(twice())


def test_a_watch_resumes_where_it_was(fake: Make) -> None:
    def answer(connection: int, number: int, request: str) -> tuple[bytes, str]:
        return STREAM + event(
            ("current", "rotated")[connection % 2], f"v{connection}"
        ), CLOSE if connection == 0 else HOLD

    agent = fake(answer)
    with keyhatch.Client(agent.path).watch("a") as watch:
        assert [next(watch), next(watch)] == [("current", "a", "v0"), ("rotated", "a", "v1")]
    assert "Last-Event-ID" not in agent.seen[0][1] and "Last-Event-ID: v0\r\n" in agent.seen[1][1]
    assert list(watch) == []

    async def run() -> None:
        async with await keyhatch.AsyncClient(fake(answer).path).watch("a") as watch:
            assert [await watch.__anext__(), await watch.__anext__()] == [
                ("current", "a", "v0"),
                ("rotated", "a", "v1"),
            ]

    asyncio.run(run())


def test_a_restart_late_in_a_long_call_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 30.0, 36.0])
    monkeypatch.setattr(_progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    patience = _progress.Patience(60)
    gone = keyhatch.Unreachable("gone")
    gone.may_heal = True
    assert patience.pause(gone) is not None
    assert patience.pause(gone) is None


def test_close_ends_a_watch_that_waits(fake: Make) -> None:
    watch = keyhatch.Client(fake(lambda *_: (STREAM, HOLD)).path).watch("a")
    told: list[Any] = []
    thread = threading.Thread(target=lambda: told.extend(watch))
    thread.start()
    watch.close()
    thread.join(20)
    assert not thread.is_alive() and told == []


def test_a_callback_that_fails_is_logged_without_its_message_and_called_again(
    fake: Make, caplog: pytest.LogCaptureFixture
) -> None:
    go, done = threading.Semaphore(0), threading.Event()
    got: list[str] = []
    version = "1-a"

    def answer(connection: int, number: int, request: str) -> tuple[bytes, str]:
        nonlocal version
        if "watch" not in request:
            return value(f"CANARY-{version}", version), KEEP
        if connection > 0:
            go.acquire(timeout=20)
            version = f"{connection}-x"
        return STREAM + event("current", version), CLOSE

    def callback(secret: keyhatch.Secret) -> None:
        got.append(secret.reveal())
        if len(got) > 1:
            done.set()
        go.release()
        raise ValueError(secret.reveal())

    with keyhatch.Client(fake(answer).path).on_rotate("a", callback):
        go.release()
        assert done.wait(20)
    assert got[0] != got[1]
    assert "ValueError" in caplog.text and "CANARY" not in caplog.text


def test_environ_asks_for_what_is_mapped_and_leaves_the_rest(
    fake: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def answer(connection: int, number: int, request: str) -> tuple[bytes, str]:
        if "watch" in request:
            return STREAM + event("current", "1-a", request.split("name=")[1].split(" ")[0]), HOLD
        return (problem(404, "not_found") if "none" in request else value(), KEEP)

    agent = fake(answer)
    mapped = tmp_path / "map"
    mapped.write_text("# comment\n\nKEY=a\n NONE = none#x \n")
    monkeypatch.setenv("KEYHATCH_ENV_FILE", str(mapped))
    monkeypatch.setenv("KEYHATCH_SOCKET", agent.path)
    monkeypatch.setenv("KEY", "from-os")
    monkeypatch.setenv("OTHER", "other")
    environ = keyhatch.Environ()
    assert (environ["KEY"], environ["OTHER"], environ.get("NONE", "default")) == (CANARY, "other", "default")
    assert environ["KEY"] == CANARY and len([r for _, r in agent.seen if "secrets/a" in r]) == 1
    assert "NONE" not in environ and "KEY" in environ and "UNSET" not in environ
    assert "CANARY" not in repr(environ) + str(environ) and len(environ) == len(list(environ))
    environ["NEW"] = "1"
    assert environ["NEW"] == "1" and environ.pop("NEW") == "1"
    with pytest.raises(TypeError):
        environ["KEY"] = "x"
    for bad in ("KEY\n", "A=a\nA=b\n", "=a\n"):
        mapped.write_text(bad)
        with pytest.raises(ValueError, match=r"map:\d"):
            keyhatch.Environ().map_file(mapped)
    with pytest.raises(keyhatch.InvalidName):
        keyhatch.Environ({"KEY": "a//b"})


def test_who_is_trusted() -> None:
    own, other, overflow = 1000, 1001, 65_534
    for server, owner, shared, guessed, good in [
        (0, other, True, True, True),
        (own, other, True, True, True),
        (other, other, False, False, True),
        (other, other, False, True, False),
        (other, own, False, False, False),
        (overflow, overflow, False, False, True),
        (overflow, overflow, True, False, False),
        (overflow, overflow, False, True, False),
        (overflow, 0, False, False, False),
    ]:
        assert trusted(server, own, Folder(owner, shared), guessed=guessed) is good, (server, owner, shared, guessed)


def test_names() -> None:
    for good in ("a", "a/b", "A-z_0.9+=@", "a/...", "x" * 512):
        assert check_name(good) == good
    for bad in ("", "/", "a/", "/a", "a//b", ".", "a/..", "a b", "a\n", "\u00e9", "\u0661", "x" * 513):
        with pytest.raises(keyhatch.InvalidName):
            check_name(bad)


def feed(data: bytes, piece: int, limit: int = 8) -> tuple[int, bytes] | None:
    reading = Reading(limit)
    for at in range(0, len(data), piece):
        reading.feed(data[at : at + piece])
        reply = reading.advance()
        if reply is not None:
            assert at + piece >= len(data)
            return reply.status, bytes(reply.body)
    return None


SIZED = b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nCANARY-1"
CHUNKED = b"HTTP/1.1 429 Slow\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nCANA\r\n4\r\nRY-1\r\n0\r\n\r\n"


def test_answers_read_the_same_in_pieces_of_any_size() -> None:
    for piece in range(1, 90):
        assert feed(SIZED, piece) == (200, b"CANARY-1")
        assert feed(CHUNKED, piece) == (429, b"CANARY-1")
        for cut in (SIZED, CHUNKED):
            assert feed(cut[:-1], piece) is None


def test_loose_answers_are_refused() -> None:
    head = b"HTTP/1.1 200 OK\r\n"
    chunked = head + b"Transfer-Encoding: chunked\r\n\r\n"
    for bad in [
        b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 100 Go\r\nContent-Length: 0\r\n\r\n",
        b"http/1.1 200 OK\r\n",
        head + b"\r\n",
        head + b"Content-Length: -1\r\n\r\n",
        head + b"Content-Length: 9\r\n\r\n",
        head + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\n",
        head + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        head + b"Transfer-Encoding: gzip\r\n\r\n",
        head + b"Content-Length : 1\r\n\r\n",
        head + b"X: y\n folded\r\nContent-Length: 1\r\n\r\n",
        head + b"X: y\r\n" * 65 + b"\r\n",
        head + b"X: " + b"y" * 9000,
        SIZED + b"x",
        CHUNKED + b"x",
        chunked + b"9\r\nCANARY-12\r\n",
        chunked + b"\r\n",
        chunked + b"1;x=y\r\n",
        chunked + b"1\r\nab",
        chunked + b"-1\r\n",
        chunked + b"00000001\r\n",
        chunked + b"0\r\nX: y\r\n",
    ]:
        for piece in (len(bad), 7):
            with pytest.raises(keyhatch.Protocol):
                feed(bad, piece)
