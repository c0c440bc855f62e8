"""When to try again, and a watch apart from its connection: what to ask for, what an event means."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Sequence
from typing import NamedTuple

from . import _request
from ._errors import KeyhatchError, RateLimited
from ._events import RawEvent
from ._names import check_name

DEFAULT_TIMEOUT = 10.0

# How long a call goes on while the agent restarts.
_RESTART = 5.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 10.0
# Before one who follows a secret asks again after a refusal.
_HOPEFUL_PAUSE = 60.0
# A connection that held this long starts the pauses anew.
_STEADY = 30.0


class Patience:
    """How often one call is tried while the agent restarts."""

    def __init__(self, timeout: float) -> None:
        now = time.monotonic()
        self.timeout = timeout
        self.deadline = now + timeout
        self._until: float | None = None
        self._pause = 0.01

    def left(self) -> float:
        """How long the call may still take; 0 or less once it is over."""
        return self.deadline - time.monotonic()

    def pause(self, error: KeyhatchError) -> float | None:
        """How long to wait before the next try; None where there is none."""
        now = time.monotonic()
        if self._until is None:
            self._until = min(self.deadline, now + _RESTART)
        pause, self._pause = self._pause, min(self._pause * 2, 0.25)
        return pause if error.may_heal and now + pause < self._until else None


class Poll:
    """A long poll, which an agent may end before the caller's time is over: it is asked again then."""

    def __init__(self, wait: float) -> None:
        self._end = time.monotonic() + wait
        self._asked = 0.0

    def seconds(self) -> int:
        """How long to ask the agent to wait, now."""
        self._asked = time.monotonic()
        return max(math.ceil(self._end - self._asked), 0)

    def pause(self) -> float | None:
        """How long to wait before asking again, where nothing has changed; None once the time is over.

        An agent that does not wait at all is asked once a second.
        """
        now = time.monotonic()
        return max(min(self._asked + 1, self._end) - now, 0) if now < self._end else None


class Retry:
    """When a watch tries again.

    Twice as long each time, less up to a half by chance: bots that lost an agent do not come back as one.
    """

    def __init__(self) -> None:
        self._failures = 0

    def reset(self) -> None:
        """All is well again."""
        self._failures = 0

    def pause(self, error: KeyhatchError) -> float:
        """How long to wait after `error`."""
        pause = min(_FIRST_PAUSE * (1 << min(self._failures, 10)), _LONGEST_PAUSE) * random.uniform(0.5, 1)
        self._failures += 1
        if not error.is_temporary:
            return _HOPEFUL_PAUSE  # Not without somebody's help: do not fill the audit log meanwhile.
        if isinstance(error, RateLimited) and error.retry_after:
            return max(pause, error.retry_after)
        return pause


class Change(NamedTuple):
    """Something happened to a watched secret."""

    kind: str
    """`current` (how it stands as the watch begins), `rotated` or `removed`."""
    name: str
    version: str | None
    """The version that is served now; None where there is no such secret."""


class Progress:
    """What outlives the connections of one watch."""

    def __init__(self, names: Sequence[str]) -> None:
        if isinstance(names, str) or not names:
            raise ValueError("a watch needs one or more secret names")
        self.names = [check_name(name) for name in names]
        self._last_id: str | None = None
        self._retry = Retry()
        self._opened: float | None = None

    def request(self) -> _request.Request:
        """What to ask on the next connection."""
        return _request.watch(self.names, self._last_id)

    def opened(self) -> None:
        """The stream is open."""
        self._opened = time.monotonic()

    def forget(self) -> None:
        """The next connection begins anew, with how each secret stands."""
        self._last_id = None

    def pause(self, error: KeyhatchError) -> float:
        """The stream has ended or could not be opened: how long to wait before the next try."""
        if self._opened is not None and time.monotonic() - self._opened > _STEADY:
            self._retry.reset()
        self._opened = None
        return self._retry.pause(error)

    def take(self, event: RawEvent) -> Change | None:
        """What an event tells; None for one that this client does not know."""
        if event.id is not None:
            self._last_id = event.id or None
        if event.kind not in ("current", "rotated", "removed"):
            return None
        try:
            told = json.loads(event.data)
            name, version = told["name"], told["version"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
        if name not in self.names or not (version is None or isinstance(version, str)):
            return None
        return Change(event.kind, name, version)
