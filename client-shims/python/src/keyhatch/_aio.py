"""The client for asyncio. Like `Client`, call for call."""

from __future__ import annotations

import asyncio
import builtins
import os
from collections.abc import Awaitable, Sequence
from typing import Callable, TypeVar

from . import _reply, _request
from ._aio_connection import Connection, patiently
from ._aio_follow import AsyncRotations, Held
from ._aio_watch import AsyncWatch
from ._errors import Unreachable
from ._http import Reply
from ._names import MAX_BATCH
from ._progress import DEFAULT_TIMEOUT, Patience, Poll
from ._reply import Batch, Health, Listed, Whoami
from ._request import Request, Wanted
from ._secret import Secret
from ._socket import Address

T = TypeVar("T")

# Connections kept open for tasks that ask at the same time.
_MOST_IDLE = 4


class AsyncClient:
    """Asks one agent for secrets, with calls that are awaited.

    The arguments are those of `Client`. A call that is cancelled closes its connection and harms no other.
    """

    def __init__(
        self,
        socket: str | os.PathLike[str] | None = None,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        cache: bool = False,
    ) -> None:
        self._address = Address.find() if socket is None else Address(socket)
        self._timeout, self._cache = timeout, cache
        self._idle: builtins.list[Connection] = []
        self._held: dict[Wanted, Held] = {}

    @property
    def socket(self) -> str:
        """The path of the socket that is asked."""
        return self._address.path

    async def get(
        self,
        name: str,
        *,
        field: str | None = None,
        version: str | None = None,
        cache: bool | None = None,
    ) -> Secret:
        """The value of `NAME`, or of one field of it: `field`, or `NAME#field`.

        `version` is `"previous"`, or the id of a version that the agent still has; such a value is never cached.
        """
        wanted = Wanted.parse(name, field, version)
        if version is None and (self._cache if cache is None else cache):
            return await self._hold(wanted).get(lambda: self._fetch(wanted))
        return await self._fetch(wanted)

    async def list(self, prefix: str = "") -> builtins.list[Listed]:
        """What this process may see below `prefix`, in byte order of the names."""
        listed: builtins.list[Listed] = []
        after: str | None = None
        while True:
            page, following = await self._ask(_request.page(prefix, after), _reply.page)
            listed.extend(page)
            if following is None:
                return listed
            after = _reply.advanced(after, following)

    async def batch(self, names: Sequence[str]) -> Batch:
        """Many values at once. A name that is refused is in `Batch.errors` and does not fail the others."""
        batch = Batch()
        for start in range(0, len(names), MAX_BATCH):
            batch.add(await self._ask(_request.batch(names[start : start + MAX_BATCH]), _reply.batch))
        return batch

    async def whoami(self) -> Whoami:
        """Who the agent thinks this process is, and what it may have."""
        return await self._ask(_request.whoami(), _reply.whoami)

    async def health(self) -> Health:
        """Whether the agent is ready, and why not."""
        return await self._ask(_request.health(), _reply.health)

    async def wait_for_change(self, name: str, version: str, wait: float) -> Secret | None:
        """The value of `NAME`, once its version is not `version`; None where it still is after `wait` seconds."""
        wanted, poll = Wanted.parse(name), Poll(wait)
        while True:
            request = _request.change(wanted, version, poll.seconds())
            secret = await self._ask(request, lambda reply: _reply.change(wanted.name, reply))
            pause = poll.pause()
            if secret is not None or pause is None:
                return secret
            await asyncio.sleep(pause)

    async def watch(self, *names: str) -> AsyncWatch:
        """What happens to these secrets, for `async for`. It connects again where the connection is lost."""
        watch = AsyncWatch(self._address, self._timeout, names)
        await watch.open()
        return watch

    async def on_rotate(self, name: str, callback: Callable[[Secret], Awaitable[object] | object]) -> AsyncRotations:
        """Calls `callback`, and awaits it where it is async, with each new value, in a task of its own."""
        wanted = Wanted.parse(name)
        watch = AsyncWatch(self._address, self._timeout, [wanted.name], endless=True)
        rotations = AsyncRotations(wanted, callback, lambda: self._fetch(wanted), watch)
        await rotations.start()
        return rotations

    async def close(self) -> None:
        """Closes the kept connections and forgets what is cached. The client may be used again."""
        self._forget_idle()
        while self._held:
            self._held.popitem()[1].stop()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __del__(self) -> None:
        if hasattr(self, "_held"):
            self._forget_idle()

    def __repr__(self) -> str:
        return f"AsyncClient({self.socket!r})"

    async def _fetch(self, wanted: Wanted) -> Secret:
        return await self._ask(_request.value(wanted), lambda reply: _reply.secret(wanted.name, reply))

    def _hold(self, wanted: Wanted) -> Held:
        held = self._held.get(wanted)
        if held is None or not held.is_of(asyncio.get_running_loop()):
            held = self._held[wanted] = Held(self._address, self._timeout, wanted.name)
        return held

    async def _ask(self, request: Request, read: Callable[[Reply], T]) -> T:
        async def attempt(patience: Patience) -> T:
            return read(await self._exchange(request, patience))

        return await patiently(attempt, self._timeout + request.wait)

    async def _exchange(self, request: Request, patience: Patience) -> Reply:
        connection = self._take() or await Connection.open(self._address, patience)
        try:
            reply = await connection.exchange(request, patience)
        except Unreachable:
            self._forget_idle()  # They have most likely ended as well.
            raise
        if reply.closes or reply.is_stream or len(self._idle) >= _MOST_IDLE:
            connection.close()
        else:
            self._idle.append(connection)
        return reply

    def _take(self) -> Connection | None:
        """A kept connection of this process."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_ours:
                return connection
            connection.close()
        return None

    def _forget_idle(self) -> None:
        while (connection := self._take()) is not None:
            connection.close()
