"""A watch that waits for the next change."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from typing import Callable

from . import _reply
from ._connection import Connection, patiently
from ._errors import KeyhatchError, bare
from ._events import Events
from ._progress import Change, Patience, Progress
from ._socket import Address


class Watch(Iterator[Change]):
    """What happens to some secrets, one `Change` after the other.

    It connects again where the connection is lost, and resumes where it was. It ends with an error that waiting does
    not heal, such as `Denied`, or with `close()`, which another thread may call.
    """

    def __init__(
        self,
        address: Address,
        timeout: float,
        names: Sequence[str],
        *,
        endless: bool = False,
        lost: Callable[[], None] = lambda: None,
    ) -> None:
        # An endless watch goes on after any error, and each of its connections begins with how the secrets stand.
        self._address, self._timeout = address, timeout
        self._progress = Progress(names)
        self._endless, self._lost = endless, lost
        self._owner = os.getpid()
        self._closed = threading.Event()
        self._open: tuple[Connection, Events] | None = None

    def open(self) -> None:
        """Connects; raises where that fails."""
        self._open = patiently(self._connect, self._timeout)

    def close(self) -> None:
        """Ends the watch; a thread that waits for the next change waits no more."""
        self._closed.set()
        if self._open is not None:
            self._open[0].interrupt()

    def wait(self, pause: float) -> bool:
        """Waits, and answers whether the watch was closed meanwhile."""
        return self._closed.wait(pause)

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __next__(self) -> Change:
        self._leave_the_parent()
        while not self._closed.is_set():
            try:
                return self._advance()
            except KeyhatchError as error:
                failure = bare(error)
            self._drop()
            if not (self._endless or failure.is_temporary or self._closed.is_set()):
                self._closed.set()
                raise failure
            self.wait(self._progress.pause(failure))
        self._drop()
        raise StopIteration

    def _advance(self) -> Change:
        if self._open is None:
            self._open = self._connect(Patience(self._timeout))
            if self._closed.is_set():
                raise self._address.hung_up()
        connection, events = self._open
        while True:
            event = events.pop()
            if event is None:
                piece = b"" if events.is_over else connection.receive()
                if not piece:
                    raise self._address.hung_up()
                events.feed(piece)
                continue
            change = self._progress.take(event)
            if change is not None:
                return change

    def _connect(self, patience: Patience) -> tuple[Connection, Events]:
        connection = Connection(self._address, patience)
        try:
            reply = connection.exchange(self._progress.request(), patience)
            events = Events(_reply.stream(reply))
        except BaseException:
            connection.close()
            raise
        self._progress.opened()
        return connection, events

    def _drop(self) -> None:
        if self._open is not None:
            self._open[0].close()
            self._open = None
        if self._endless:
            self._progress.forget()
        self._lost()

    def _leave_the_parent(self) -> None:
        """In a child that was forked, the stream is the parent's, and so is whoever may wait on its lock."""
        if self._owner != os.getpid():
            self._owner, self._closed = os.getpid(), threading.Event()
            self._progress.forget()
            self._drop()

    def __del__(self) -> None:
        opened = getattr(self, "_open", None)
        if opened is not None:
            opened[0].close()
