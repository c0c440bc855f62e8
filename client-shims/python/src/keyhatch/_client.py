"""The client with calls that wait for the answer."""

from __future__ import annotations

import builtins
import os
import time
from collections.abc import Sequence
from typing import Callable, TypeVar

from . import _reply, _request
from ._connection import Connection, patiently
from ._errors import Unreachable
from ._follow import Held, Rotations
from ._http import Reply
from ._names import MAX_BATCH
from ._progress import DEFAULT_TIMEOUT, Patience, Poll
from ._reply import Batch, Health, Listed, Whoami
from ._request import Request, Wanted
from ._route import Route
from ._secret import Secret
from ._socket import Address
from ._watch import Watch

# Connections kept open for threads that ask at the same time.
_MOST_IDLE = 4

T = TypeVar("T")


class Client:
    """Asks one agent for secrets.

    `socket` is its path; without one it is `$KEYHATCH_SOCKET`, else the host's agent, else the caller's own dev agent.
    A call takes at most `timeout` seconds. With `cache=True`, values stay in memory as long as a watch says that they
    are current. It keeps connections open between calls, may be shared between threads, and may be used in a forked
    child, which makes connections of its own.
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
        self._held: dict[tuple[int, Wanted], Held] = {}

    @property
    def socket(self) -> str:
        """The path of the socket that is asked."""
        return self._address.path

    def get(
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
            return self._hold(wanted).get(lambda: self._fetch(wanted))
        return self._fetch(wanted)

    def list(self, prefix: str = "") -> builtins.list[Listed]:
        """What this process may see below `prefix`, in byte order of the names."""
        listed: builtins.list[Listed] = []
        after: str | None = None
        while True:
            page, following = self._ask(_request.page(prefix, after), _reply.page)
            listed.extend(page)
            if following is None:
                return listed
            after = _reply.advanced(after, following)

    def batch(self, names: Sequence[str]) -> Batch:
        """Many values at once. A name that is refused is in `Batch.errors` and does not fail the others."""
        batch = Batch()
        for start in range(0, len(names), MAX_BATCH):
            batch.add(self._ask(_request.batch(names[start : start + MAX_BATCH]), _reply.batch))
        return batch

    def whoami(self) -> Whoami:
        """Who the agent thinks this process is, and what it may have."""
        return self._ask(_request.whoami(), _reply.whoami)

    def health(self) -> Health:
        """Whether the agent is ready, and why not."""
        return self._ask(_request.health(), _reply.health)

    def wait_for_change(self, name: str, version: str, wait: float) -> Secret | None:
        """The value of `NAME`, or `NAME#field`, once its version is not `version`; None where it still is after `wait`.

        `wait` is in seconds. It goes on over a restart of the agent.
        """
        wanted, poll = Wanted.parse(name), Poll(wait)
        while True:
            request = _request.change(wanted, version, poll.seconds())
            secret = self._ask(request, lambda reply: _reply.change(wanted.name, reply))
            pause = poll.pause()
            if secret is not None or pause is None:
                return secret
            time.sleep(pause)

    def watch(self, *names: str) -> Watch:
        """What happens to these secrets, from now on: an iterator that connects again where the connection is lost."""
        watch = Watch(self._address, self._timeout, names)
        watch.open()
        return watch

    def on_rotate(self, name: str, callback: Callable[[Secret], object]) -> Rotations:
        """Calls `callback` with the new value whenever the secret rotates, in a thread of its own, until `stop()`.

        It goes on over restarts of the agent and a grant that comes back. A forked child has no such thread: call this
        in the child.
        """
        wanted = Wanted.parse(name)
        watch = Watch(self._address, self._timeout, [wanted.name], endless=True)
        return Rotations(wanted, callback, lambda: self._fetch(wanted), watch)

    def route(self, name: str) -> Route:
        """A route, to call its upstream with a secret that this process does not see."""
        return Route(self._address, name)

    def close(self) -> None:
        """Closes the kept connections and forgets what is cached. The client may be used again."""
        self._forget_idle()
        while self._held:
            (owner, _), held = self._held.popitem()
            if owner == os.getpid():
                held.stop()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_held"):
            self.close()

    def __repr__(self) -> str:
        return f"Client({self.socket!r})"

    def _fetch(self, wanted: Wanted) -> Secret:
        return self._ask(_request.value(wanted), lambda reply: _reply.secret(wanted.name, reply))

    def _hold(self, wanted: Wanted) -> Held:
        # In a forked child the watch is the parent's, and whoever held a lock is gone: so each process has its own, and
        # makes it without a lock.
        key = (os.getpid(), wanted)
        held = self._held.get(key)
        if held is None:
            held = self._held.setdefault(key, Held(self._address, self._timeout, wanted.name))
        return held

    def _ask(self, request: Request, read: Callable[[Reply], T]) -> T:
        return patiently(lambda patience: read(self._exchange(request, patience)), self._timeout + request.wait)

    def _exchange(self, request: Request, patience: Patience) -> Reply:
        connection = self._take() or Connection(self._address, patience)
        try:
            reply = connection.exchange(request, patience)
        except Unreachable:
            self._forget_idle()  # They have most likely ended as well.
            raise
        if reply.closes or reply.is_stream or len(self._idle) >= _MOST_IDLE:
            connection.close()
        else:
            self._idle.append(connection)
        return reply

    def _take(self) -> Connection | None:
        """A kept connection of this process; no lock, since taking from a list is one step."""
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return None
            if connection.is_ours:
                return connection
            connection.close()

    def _forget_idle(self) -> None:
        while (connection := self._take()) is not None:
            connection.close()
