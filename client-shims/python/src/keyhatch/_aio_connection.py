"""One connection to the agent, with calls that are awaited."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable
from typing import Callable, TypeVar

from ._errors import KeyhatchError, bare
from ._http import Reading, Reply
from ._progress import Patience
from ._request import Request
from ._socket import Address

T = TypeVar("T")


class Connection:
    """A connection that only the process which made it may use: the agent takes a forked child for its parent.

    It belongs to no event loop: one that was kept serves the next loop as well.
    """

    def __init__(self, address: Address) -> None:
        self._address = address
        self._owner = os.getpid()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)

    @classmethod
    async def open(cls, address: Address, patience: Patience) -> Connection:
        """Connects and checks who listens."""
        folder = address.folder()
        connection = cls(address)
        try:
            await connection._within(patience, connection._dial())
            address.check(folder, connection._socket)
        except BaseException:
            connection.close()
            raise
        return connection

    @property
    def is_ours(self) -> bool:
        """False in a child that was forked from the process which connected."""
        return self._owner == os.getpid()

    async def exchange(self, request: Request, patience: Patience) -> Reply:
        """Sends `request` and reads its answer."""
        reading = Reading(request.limit)
        try:
            await self._within(patience, self._send(request.data))
            while True:
                if not await self._within(patience, self._read(reading)):
                    raise self._address.hung_up()
                reply = reading.advance()
                if reply is not None:
                    return reply
        except BaseException:
            self.close()
            raise

    async def receive(self) -> bytes:
        """What comes next, however long it takes; nothing at the end of the connection."""
        try:
            return await asyncio.get_running_loop().sock_recv(self._socket, 4096)
        except OSError:
            return b""

    def close(self) -> None:
        """Closes it for this process; in a forked child the parent's stays open."""
        self._socket.close()

    def __del__(self) -> None:
        # Garbage that refers to itself is taken apart in any order: without this, Python may warn of the socket.
        if hasattr(self, "_socket"):
            self._socket.close()

    async def _dial(self) -> None:
        while True:
            try:
                return await asyncio.get_running_loop().sock_connect(self._socket, self._address.path)
            except BlockingIOError:
                await asyncio.sleep(0.005)  # Its backlog is full.

    async def _send(self, data: bytes) -> None:
        # An agent that refuses a connection answers before it hangs up.
        with contextlib.suppress(BrokenPipeError):
            await asyncio.get_running_loop().sock_sendall(self._socket, data)

    async def _read(self, reading: Reading) -> int:
        piece = await asyncio.get_running_loop().sock_recv(self._socket, 64 * 1024)
        reading.feed(piece)
        return len(piece)

    async def _within(self, patience: Patience, work: Awaitable[T]) -> T:
        try:
            return await asyncio.wait_for(work, max(patience.left(), 0))
        except asyncio.TimeoutError:
            raise self._address.timed_out(patience.timeout) from None
        except OSError as cause:
            raise self._address.unreachable(cause) from None


async def patiently(attempt: Callable[[Patience], Awaitable[T]], timeout: float) -> T:
    """Makes the attempt again and again for a while where the agent seems to restart."""
    patience = Patience(timeout)
    while True:
        try:
            return await attempt(patience)
        except KeyhatchError as error:
            failure = bare(error)
        pause = patience.pause(failure)
        if pause is None:
            raise failure
        await asyncio.sleep(pause)
