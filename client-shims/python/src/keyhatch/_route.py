"""A route as an HTTP client: what is sent goes to its upstream, with a secret that this process never sees."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import select
import socket
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any, Union

from ._connection import dial, patiently
from ._errors import KeyhatchError, from_answer
from ._progress import DEFAULT_TIMEOUT, Patience
from ._socket import Address

# On each answer of an upstream, and on none of the agent's own.
ROUTE = "Keyhatch-Route"

_PRINTABLE = frozenset(map(chr, range(0x21, 0x7F)))

_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._@+-")

# Connections kept open for threads that ask at the same time.
_MOST_IDLE = 4

# No problem document is longer.
_LONGEST_PROBLEM = 64 * 1024

# How much of a file is read at once.
_PIECE = 64 * 1024

Headers = Union[Mapping[str, str], Iterable[tuple[str, str]]]
Body = Union[bytes, str, IO[bytes], Iterable[bytes], None]


class Route:
    """One route of an agent; it may be shared between threads, and keeps connections open between calls."""

    def __init__(self, address: Address, name: str) -> None:
        if name in ("", ".", "..") or not _PLAIN.issuperset(name):
            raise ValueError(f"no route is named {name!r}")
        self.name = name
        self._address = address
        self._idle: list[_Connection] = []

    def request(
        self,
        method: str,
        path: str,
        *,
        headers: Headers = (),
        body: Body = None,
        timeout: float | None = None,
    ) -> Answer:
        """Sends a request to `path`, which may have a query, at the route's upstream.

        An answer of the upstream is an answer, whatever its status; what the agent itself refuses is raised. `timeout`
        is how many seconds each step may take; without one, the agent's own limit is the one that counts.
        """
        target = self.target(path)
        connection = self._take() or patiently(lambda patience: _Connection(self._address, patience), DEFAULT_TIMEOUT)
        try:
            response = connection.ask(method, target, headers, body, timeout)
        except BaseException:
            connection.close()
            raise
        answer = Answer(response, connection, self)
        if response.getheader(ROUTE) is None:
            raise _refusal(answer)
        return answer

    def target(self, path: str) -> str:
        """The agent's path for one of the upstream's."""
        if not path.startswith("/"):
            raise ValueError(f"the path of a request by a route begins with a slash: {path!r} does not")
        if not _PRINTABLE.issuperset(path):
            raise ValueError(f"a path is sent as it is: percent-encode what is not printable ASCII in {path!r}")
        return f"/v1/use/{self.name}{path}"

    @property
    def address(self) -> Address:
        """Where the agent listens."""
        return self._address

    def close(self) -> None:
        """Closes the kept connections. The route may be used again."""
        while self._idle:
            self._idle.pop().close()

    def __repr__(self) -> str:
        return f"Route({self.name!r})"

    def __del__(self) -> None:
        if hasattr(self, "_idle"):
            self.close()

    def _take(self) -> _Connection | None:
        """A kept connection; no lock, since taking from a list is one step."""
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return None
            if connection.is_fresh:
                return connection
            connection.close()

    def _give_back(self, connection: _Connection) -> None:
        if len(self._idle) < _MOST_IDLE:
            self._idle.append(connection)
        else:
            connection.close()


class Answer:
    """What the upstream answered. The body comes as it is sent: iterate over it, or `read()` it.

    It ends with its body, with `close()`, or with the `with` that it stands in.
    """

    def __init__(self, response: http.client.HTTPResponse, connection: _Connection, route: Route) -> None:
        self._response, self._connection, self._route = response, connection, route
        self._is_open = True
        self.status = response.status
        self.reason = response.reason
        self.headers = response.headers

    def read(self, amount: int | None = None) -> bytes:
        """That many bytes of the body, or all that is left."""
        with self._reported():
            data = self._response.read(amount)
        if not data or self._response.isclosed():
            self.close()
        return data

    def json(self) -> Any:
        """The body, which is a JSON document."""
        return json.loads(self.read())

    def __iter__(self) -> Iterator[bytes]:
        """Pieces of the body, as soon as there are any."""
        while self._is_open:
            with self._reported():
                piece = self._response.read1(64 * 1024)
            if not piece:
                self.close()
                return
            yield piece

    def lines(self) -> Iterator[bytes]:
        """Lines of the body without their ends, as soon as they are whole: for event streams."""
        rest = b""
        for piece in self:
            *whole, rest = (rest + piece).split(b"\n")
            yield from (line.rstrip(b"\r") for line in whole)
        if rest:
            yield rest

    def close(self) -> None:
        """Ends the answer; what has not been read of it is lost, and its connection with it."""
        if not self._is_open:
            return
        self._is_open = False
        if self._response.isclosed() and not self._response.will_close:
            self._route._give_back(self._connection)
        else:
            self._connection.close()

    def detach(self) -> http.client.HTTPResponse:
        """The response of the standard library, for code that reads that; its connection ends with it."""
        self._is_open = False
        # Of the connection the socket alone: that stays open as long as the response reads from it.
        if self._connection.sock is not None:
            self._connection.sock.close()
        return self._response

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Answer {self.status} of {self._route!r}>"

    def _reported(self) -> _Reported:
        return _Reported(self._connection)


class _Connection(http.client.HTTPConnection):
    """A connection of which is known who listens, and which only the process that made it may use."""

    def __init__(self, address: Address, patience: Patience) -> None:
        super().__init__("keyhatch")
        self.address, self.owner = address, os.getpid()
        self.limit: float | None = None
        folder = address.folder()
        self.sock = dial(address, patience)
        try:
            address.check(folder, self.sock)
        except BaseException:
            self.close()
            raise

    def connect(self) -> None:
        """It is connected once, and not again."""
        raise ConnectionResetError

    @property
    def is_fresh(self) -> bool:
        """Ours, and neither ended nor in the middle of something."""
        if self.owner != os.getpid() or self.sock is None:
            return False
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return not poll.poll(0)

    def ask(
        self, method: str, target: str, headers: Headers, body: Body, limit: float | None
    ) -> http.client.HTTPResponse:
        """Sends a request, and reads the head of the answer."""
        self.limit = limit
        self.sock.settimeout(limit)
        pairs = headers.items() if isinstance(headers, Mapping) else headers
        if isinstance(body, str):
            body = body.encode()
        elif body is not None and not isinstance(body, (bytes, bytearray, memoryview)):
            body = _pieces(body)
        try:
            with _Reported(self):
                self._put(method, target, list(pairs), body)
                return self.getresponse()
        except _OfBody as failed:
            raise failed.cause from None

    def _put(
        self, method: str, target: str, pairs: list[tuple[str, str]], body: bytes | IO[bytes] | Iterable[bytes] | None
    ) -> None:
        self.putrequest(method, target, skip_accept_encoding=True)
        framed = any(name.lower() in ("content-length", "transfer-encoding") for name, _ in pairs)
        chunked = any(name.lower() == "transfer-encoding" for name, _ in pairs)
        for name, value in pairs:
            if name.lower() not in ("host", "connection"):
                self.putheader(name, value)
        if isinstance(body, bytes) and not framed:
            self.putheader("Content-Length", str(len(body)))
        elif body is not None and not framed:
            self.putheader("Transfer-Encoding", "chunked")
            chunked = True
        # An agent that takes no more answers before it hangs up.
        with contextlib.suppress(BrokenPipeError):
            self.endheaders(body, encode_chunked=chunked)


class _OfBody(Exception):
    """What a body raised as it was read, which is the caller's own and no failure of the connection."""

    def __init__(self, cause: Exception) -> None:
        self.cause = cause


def _pieces(body: IO[bytes] | Iterable[bytes]) -> Iterator[bytes]:
    try:
        if hasattr(body, "read"):
            while piece := body.read(_PIECE):
                yield piece
        else:
            yield from body
    except Exception as cause:
        raise _OfBody(cause) from cause


class _Reported:
    """Failures of the connection, told as everywhere in this library."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, cause: BaseException | None, trace: object) -> None:
        address = self._connection.address
        if isinstance(cause, socket.timeout):
            self._connection.close()
            raise address.timed_out(self._connection.limit or 0) from None
        if isinstance(cause, (http.client.HTTPException, OSError)):
            self._connection.close()
            raise (address.unreachable(cause) if isinstance(cause, OSError) else address.hung_up()) from None


def _refusal(answer: Answer) -> KeyhatchError:
    with answer:
        body = answer.read(_LONGEST_PROBLEM)
    after = answer.headers.get("Retry-After", "")
    return from_answer(answer.status, float(after) if after.isdecimal() else None, body)
