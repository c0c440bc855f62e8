"""A watch that is awaited for the next change."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from typing import Callable

from . import _reply
from ._aio_connection import Connection, patiently
from ._errors import KeyhatchError, bare
from ._events import Events
from ._progress import Change, Patience, Progress
from ._socket import Address


class AsyncWatch(AsyncIterator[Change]):
    """What happens to some secrets, one `Change` after the other.

    It connects again where the connection is lost, and resumes where it was. It ends with an error that waiting does
    not heal, such as `Denied`, or with `close()`.
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
        self._closed = False
        self._reading: asyncio.Task[Change] | None = None
        self._open: tuple[Connection, Events] | None = None

    async def open(self) -> None:
        """Connects; raises where that fails."""
        self._open = await patiently(self._connect, self._timeout)

    async def close(self) -> None:
        """Ends the watch; a task that waits for the next change waits no more."""
        self._closed = True
        if self._reading is not None:
            self._reading.cancel()
        self._drop()

    async def __aenter__(self) -> AsyncWatch:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def __anext__(self) -> Change:
        while not self._closed:
            if self._owner != os.getpid():
                # In a child that was forked, the stream is the parent's.
                self._owner = os.getpid()
                self._progress.forget()
                self._drop()
            try:
                return await self._next()
            except KeyhatchError as error:
                failure = bare(error)
            self._drop()
            if not (self._endless or failure.is_temporary):
                self._closed = True
                raise failure
            await asyncio.sleep(self._progress.pause(failure))
        raise StopAsyncIteration

    async def _next(self) -> Change:
        """The next change, in a task of its own that `close` can end without ending who waits for it."""
        self._reading = asyncio.ensure_future(self._advance())
        try:
            return await self._reading
        except asyncio.CancelledError:
            if self._closed and self._reading.cancelled():
                raise StopAsyncIteration from None
            raise
        finally:
            self._reading.cancel()
            self._reading = None

    async def _advance(self) -> Change:
        if self._open is None:
            self._open = await self._connect(Patience(self._timeout))
        connection, events = self._open
        while True:
            event = events.pop()
            if event is None:
                piece = b"" if events.is_over else await connection.receive()
                if not piece:
                    raise self._address.hung_up()
                events.feed(piece)
                continue
            change = self._progress.take(event)
            if change is not None:
                return change

    async def _connect(self, patience: Patience) -> tuple[Connection, Events]:
        connection = await Connection.open(self._address, patience)
        try:
            reply = await connection.exchange(self._progress.request(), patience)
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

    def __del__(self) -> None:
        opened = getattr(self, "_open", None)
        if opened is not None:
            opened[0].close()
