"""What a task does while the program goes on: keeps held values current, and calls back on rotations."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
from collections.abc import Awaitable
from typing import Callable

from ._aio_watch import AsyncWatch
from ._errors import KeyhatchError
from ._follow import log_failure
from ._progress import Change, Retry
from ._request import Wanted
from ._secret import Secret
from ._socket import Address


class Held:
    """A value held in memory, as long as a watch says that it is the current one. It belongs to one event loop."""

    def __init__(self, address: Address, timeout: float, name: str) -> None:
        self._timeout = timeout
        self._owner, self._loop = os.getpid(), asyncio.get_running_loop()
        self._secret: Secret | None = None
        self._told = False
        """The watch is open and has said how the secret stands."""
        self._changes = 0
        self._settled = asyncio.Event()
        self._watch = AsyncWatch(address, timeout, [name], endless=True, lost=self._lost)
        self._task = asyncio.ensure_future(self._run())

    def is_of(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether its watch runs in this process and loop."""
        return self._owner == os.getpid() and self._loop is loop and not self._task.done()

    async def get(self, fetch: Callable[[], Awaitable[Secret]]) -> Secret:
        """The held value, else what `fetch` gets, held from then on."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._settled.wait(), self._timeout)
        if self._secret is not None:
            return self._secret
        changes, told = self._changes, self._told
        secret = await fetch()
        # What changed while it was fetched may be newer than what was fetched.
        if told and changes == self._changes:
            self._secret = secret
        return secret

    def stop(self) -> None:
        """Ends the watch and forgets the value."""
        if self._owner == os.getpid() and not self._loop.is_closed():
            self._task.cancel()
        self._lost()

    async def _run(self) -> None:
        try:
            async for change in self._watch:
                self._changes += 1
                self._told = True
                if self._secret is not None and self._secret.version != change.version:
                    self._secret = None
                self._settled.set()
        finally:
            self._lost()

    def _lost(self) -> None:
        self._changes += 1
        self._told, self._secret = False, None
        self._settled.set()


class AsyncRotations:
    """Calls back with each new value of a secret, in a task of its own, until `stop()`."""

    def __init__(
        self,
        wanted: Wanted,
        callback: Callable[[Secret], Awaitable[object] | object],
        fetch: Callable[[], Awaitable[Secret]],
        watch: AsyncWatch,
    ) -> None:
        self._wanted, self._callback, self._fetch, self._watch = wanted, callback, fetch, watch
        self._version: str | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begins to watch; raises where that fails."""
        await self._watch.open()
        self._version = (await self._watch.__anext__()).version
        self._task = asyncio.ensure_future(self._run())

    def stop(self) -> None:
        """No callback begins after this."""
        if self._task is not None:
            self._task.cancel()

    async def __aenter__(self) -> AsyncRotations:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stop()

    async def _run(self) -> None:
        async for change in self._watch:
            secret = await self._news(change)
            if secret is not None:
                self._version = secret.version
                await self._call_back(secret)

    async def _news(self, change: Change) -> Secret | None:
        retry = Retry()
        while change.version not in (None, self._version):
            try:
                return await self._fetch()
            except KeyhatchError as error:
                failure = error
            await asyncio.sleep(retry.pause(failure))
        return None

    async def _call_back(self, secret: Secret) -> None:
        try:
            done = self._callback(secret)
            if inspect.isawaitable(done):
                await done
        except Exception as error:
            log_failure(self._wanted.name, error)
