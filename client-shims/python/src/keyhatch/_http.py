"""HTTP/1.1 answers from bytes, without any I/O: both clients feed what they read.

Strict and bounded: an answer that a Keyhatch agent would not give (RFC 9112) is an error, and the connection it came on
is not used again.
"""

from __future__ import annotations

import re
from typing import Callable

from ._errors import malformed

_MAX_HEAD = 8 * 1024
_MAX_HEADERS = 64
_PIECE = 64 * 1024

_STATUS = re.compile(rb"HTTP/1\.1 ([2-5][0-9]{2})(?: [^\r\n\0]*)?")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n\0]*?)[ \t]*")
_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,7}")


class Reply:
    """An answer. Of an event stream, the beginning."""

    def __init__(self) -> None:
        self.status = 0
        self.retry_after: float | None = None
        self.closes = False
        """The server will close the connection."""
        self.is_stream = False
        self.length: int | None = None
        """None where it is chunked."""
        self.body = bytearray()


class Reading:
    """One answer being read."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._reply: Reply | None = None
        self._chunks: Chunks | None = None

    def read(self, receive: Callable[[int], bytes]) -> int:
        """Takes what `receive` gives; returns how much that was, 0 at the end of the connection."""
        # No local variable holds a piece of an answer while a read waits or fails: some tracebacks print locals.
        before = len(self._buffer)
        self._buffer += receive(_PIECE)
        return len(self._buffer) - before

    def feed(self, piece: bytes) -> None:
        """Takes what has been read."""
        self._buffer += piece

    def advance(self) -> Reply | None:
        """The answer, once all of it has been fed."""
        if self._reply is None:
            self._reply = self._head()
            if self._reply is None:
                return None
            if self._reply.length is None:
                self._chunks = Chunks()
        if self._chunks is not None:
            return self._chunked(self._reply, self._chunks)
        return self._sized(self._reply, self._reply.length or 0)

    def _head(self) -> Reply | None:
        if not b"HTTP/1.1 ".startswith(self._buffer[:9]):
            raise malformed("not an HTTP/1.1 answer")
        end = self._buffer.find(b"\r\n\r\n", 0, _MAX_HEAD)
        if end < 0:
            if len(self._buffer) >= _MAX_HEAD:
                raise malformed("its headers are too large")
            return None
        reply = parse_head(bytes(self._buffer[:end]))
        del self._buffer[: end + 4]
        return reply

    def _sized(self, reply: Reply, length: int) -> Reply | None:
        if length > self._limit:
            raise malformed("its body is too large")
        if len(self._buffer) > length:
            raise malformed("more bytes than the answer has")
        if len(self._buffer) < length:
            return None
        reply.body, self._buffer = self._buffer, bytearray()
        return reply

    def _chunked(self, reply: Reply, chunks: Chunks) -> Reply | None:
        if reply.is_stream:
            reply.body, self._buffer = self._buffer, bytearray()
            return reply
        chunks.feed(self._buffer)
        self._buffer.clear()
        chunks.move_to(reply.body)
        if len(reply.body) > self._limit:
            raise malformed("its body is too large")
        return reply if chunks.is_over else None


def parse_head(head: bytes) -> Reply:
    """A status line and its headers, without the empty line."""
    first, *lines = head.split(b"\r\n")
    status = _STATUS.fullmatch(first)
    if status is None:
        raise malformed("not an HTTP/1.1 answer")
    if len(lines) > _MAX_HEADERS:
        raise malformed("it has too many headers")
    reply = Reply()
    reply.status = int(status[1])
    framings: list[int | None] = []
    events = False
    for line in lines:
        header = _HEADER.fullmatch(line)
        if header is None:
            raise malformed("a header of it is not one")
        name, value = header[1].lower(), header[2].decode("latin-1")
        if name in (b"content-length", b"transfer-encoding"):
            framings.append(_framing(name, value))
        elif name == b"retry-after" and re.fullmatch("[0-9]{1,9}", value):
            reply.retry_after = float(value)
        elif name == b"connection":
            reply.closes = reply.closes or value.lower() == "close"
        elif name == b"content-type":
            events = value.startswith("text/event-stream")
    if len(framings) > 1:
        raise malformed("its length is given twice")
    if reply.status in (204, 304):
        framings = [0]  # RFC 9110, section 15.4.5: a length here is that of the body which is not sent.
    if not framings:
        raise malformed("its length is not given")
    reply.length = framings[0]
    reply.is_stream = events and reply.status == 200 and reply.length is None
    return reply


def _framing(name: bytes, value: str) -> int | None:
    if name == b"transfer-encoding":
        if value.lower() != "chunked":
            raise malformed("its transfer encoding is unknown")
        return None
    if not re.fullmatch("[0-9]{1,18}", value):
        raise malformed("its length is no number")
    return int(value)


class Chunks:
    """Takes the framing off a chunked body (RFC 9112, section 7.1), as an agent sends it: no extensions or trailers."""

    def __init__(self) -> None:
        self._pending = bytearray()
        self._data = bytearray()
        self._left = 0
        self._expect = self._size
        self.is_over = False

    def feed(self, piece: bytes | bytearray) -> None:
        """Takes what has been read."""
        self._pending += piece
        while self._pending and self._expect():
            pass

    def move_to(self, target: bytearray) -> None:
        """Gives the data that has come so far to the end of `target`."""
        target += self._data
        self._data.clear()

    def _size(self) -> bool:
        end = self._pending.find(b"\r\n")
        size = bytes(self._pending[: end if end >= 0 else 9])
        if end >= 0 and _CHUNK_SIZE.fullmatch(size):
            del self._pending[: end + 2]
            self._left = int(size, 16)
            self._expect = self._bytes if self._left else self._last
            return True
        if end >= 0 or not _CHUNK_SIZE.fullmatch(size.rstrip(b"\r")):
            raise malformed("its chunks are not framed right")
        return False

    def _bytes(self) -> bool:
        self._data += self._pending[: self._left]
        taken = min(self._left, len(self._pending))
        del self._pending[:taken]
        self._left -= taken
        if self._left == 0:
            self._expect = self._end
        return True

    def _end(self) -> bool:
        self._expect_line_end(self._size)
        return self._expect == self._size

    def _last(self) -> bool:
        self._expect_line_end(self._over)
        self.is_over = self._expect == self._over
        return self.is_over

    def _over(self) -> bool:
        raise malformed("more bytes than the answer has")

    def _expect_line_end(self, then: Callable[[], bool]) -> None:
        if not b"\r\n".startswith(self._pending[:2]):
            raise malformed("its chunks are not framed right")
        if len(self._pending) >= 2:
            del self._pending[:2]
            self._expect = then
