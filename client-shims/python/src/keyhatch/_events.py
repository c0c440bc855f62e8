"""Server-sent events (WHATWG HTML, section 9.2.6) out of a chunked body, without any I/O. They hold no values."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from ._errors import malformed
from ._http import Chunks

# Longer than any line of an agent: a name has at most 512 bytes.
_MAX_LINE = 8 * 1024


class RawEvent(NamedTuple):
    """One event as it came."""

    id: str | None
    kind: str
    data: str


class Events:
    """An event stream being read."""

    def __init__(self, beginning: bytes | bytearray = b"") -> None:
        self._chunks = Chunks()
        self._line = bytearray()
        self._after_cr = False
        self._event = RawEvent(None, "", "")
        self._ready: deque[RawEvent] = deque()
        self.feed(beginning)

    @property
    def is_over(self) -> bool:
        """The stream has ended, though the connection may stay open."""
        return self._chunks.is_over

    def feed(self, piece: bytes | bytearray) -> None:
        """Takes what has been read."""
        self._chunks.feed(piece)
        data = bytearray()
        self._chunks.move_to(data)
        if self._after_cr and data[:1] == b"\n":
            del data[0]  # It belongs to the carriage return before it.
        if data:
            self._after_cr = data.endswith(b"\r")
        lines = (self._line + data).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._line = lines.pop()
        for line in [*lines, self._line]:
            if len(line) > _MAX_LINE:
                raise malformed("a line of its event stream is too long")
        for line in lines:
            self._end_line(line.decode("utf-8", "replace"))

    def pop(self) -> RawEvent | None:
        """The next event that is all there."""
        return self._ready.popleft() if self._ready else None

    def _end_line(self, line: str) -> None:
        if not line:
            if self._event.data:
                self._ready.append(self._event)
            self._event = RawEvent(None, "", "")
            return
        field, _, value = line.partition(":")
        value = value[1:] if value.startswith(" ") else value
        if field == "event":
            self._event = self._event._replace(kind=value)
        elif field == "data":
            data = f"{self._event.data}\n{value}" if self._event.data else value
            if len(data) > _MAX_LINE:
                raise malformed("an event of its stream is too long")
            self._event = self._event._replace(data=data)
        elif field == "id" and all("!" <= c <= "~" for c in value):
            # It goes back in a header: nothing but visible characters.
            self._event = self._event._replace(id=value)
