"""An agent in a thread of the test: it answers what the test says, and remembers what it was asked."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import pytest

CANARY = "CANARY-7f3a9c51-value"

# What it does after it has sent an answer.
KEEP, CLOSE, HOLD = "keep", "close", "hold"
Answer = tuple[bytes, str]


class Fake:
    """`answer(connection, number, request)` gives the bytes to send and what to do then."""

    def __init__(self, answer: Callable[[int, int, str], Answer], path: Path) -> None:
        self.path, self.answer = str(path), answer
        self.seen: list[tuple[int, str]] = []
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen(64)
        self.open: list[socket.socket] = []
        threading.Thread(target=self.run, daemon=True).start()

    def run(self) -> None:
        number = 0
        while True:
            try:
                peer, _ = self.listener.accept()
            except OSError:
                return
            self.open.append(peer)
            threading.Thread(target=self.serve, args=(number, peer), daemon=True).start()
            number += 1

    def serve(self, connection: int, peer: socket.socket) -> None:
        with peer, peer.makefile("rb") as reader:
            number = 0
            while request := read(reader):
                self.seen.append((connection, request))
                data, then = self.answer(connection, number, request)
                try:
                    peer.sendall(data)
                except OSError:
                    return
                if then == HOLD:
                    read(reader)
                if then != KEEP:
                    return
                number += 1

    def stop(self) -> None:
        self.listener.close()
        os.unlink(self.path)
        for peer in self.open:
            with contextlib.suppress(OSError):
                peer.shutdown(socket.SHUT_RDWR)


def read(reader: object) -> str:
    lines = b""
    while not lines.endswith(b"\r\n\r\n"):
        line = reader.readline()  # type: ignore[attr-defined]
        if not line:
            return ""
        lines += line
    text = lines.decode()
    if "Content-Length: " in text:
        length = int(text.split("Content-Length: ")[1].split("\r\n")[0])
        text += reader.read(length).decode()  # type: ignore[attr-defined]
    return text


def ok(body: bytes | object, headers: str = "", status: int = 200) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return f"HTTP/1.1 {status} x\r\n{headers}Content-Length: {len(data)}\r\n\r\n".encode() + data


def value(text: str = CANARY, version: str = "1-a", name: str = "a", **more: object) -> bytes:
    document = {"name": name, "version": version, "value": text, "updated_at": "t", "source": "s", "stale": False}
    return ok({**document, **more})


def problem(status: int, code: str, headers: str = "") -> bytes:
    body = {"type": "t", "title": "t", "status": status, "code": code, "request_id": "r-1"}
    return ok(body, headers, status)


STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def event(kind: str, version: str | None, name: str = "a") -> bytes:
    data = json.dumps({"name": name, "version": version})
    text = f"id: {version}\nevent: {kind}\ndata: {data}\n\n".encode()
    return b"%x\r\n%s\r\n" % (len(text), text)


@pytest.fixture
def fake() -> Iterator[Callable[[Callable[[int, int, str], Answer]], Fake]]:
    made: list[Fake] = []
    with tempfile.TemporaryDirectory(prefix="keyhatch-test-") as folder:

        def make(answer: Callable[[int, int, str], Answer]) -> Fake:
            made.append(Fake(answer, Path(folder) / f"{len(made)}.sock"))
            return made[-1]

        yield make
        for one in made:
            with contextlib.suppress(OSError):
                one.stop()
