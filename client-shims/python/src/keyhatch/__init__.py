"""Client of the Keyhatch secrets agent: ask the local socket for a secret instead of reading the environment.

    import keyhatch

    key = keyhatch.get("openai/api-key")
    client = openai.OpenAI(api_key=key.reveal())

A `Secret` masks itself wherever it is printed. Before anything is sent, the client checks that what listens at the
socket is root, this user, or the owner of the socket's folder.
"""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from typing import Callable

from ._aio import AsyncClient
from ._aio_follow import AsyncRotations
from ._aio_watch import AsyncWatch
from ._client import Client
from ._environ import Environ
from ._errors import (
    BadRequest,
    Denied,
    Failed,
    InvalidName,
    KeyhatchError,
    NoField,
    NotFound,
    NotText,
    Protocol,
    Quarantined,
    RateLimited,
    Refused,
    Sealed,
    TimedOut,
    Unavailable,
    Unreachable,
    UpstreamFailed,
    UpstreamTimeout,
)
from ._follow import Rotations
from ._progress import Change
from ._reply import Batch, Health, Listed, Whoami
from ._route import Answer, Route
from ._secret import Secret
from ._watch import Watch

__all__ = [
    "Answer",
    "AsyncClient",
    "AsyncRotations",
    "AsyncWatch",
    "BadRequest",
    "Batch",
    "Change",
    "Client",
    "Denied",
    "Environ",
    "Failed",
    "Health",
    "InvalidName",
    "KeyhatchError",
    "Listed",
    "NoField",
    "NotFound",
    "NotText",
    "Protocol",
    "Quarantined",
    "RateLimited",
    "Refused",
    "Rotations",
    "Route",
    "Sealed",
    "Secret",
    "TimedOut",
    "Unavailable",
    "Unreachable",
    "UpstreamFailed",
    "UpstreamTimeout",
    "Watch",
    "Whoami",
    "batch",
    "environ",
    "get",
    "health",
    "list",
    "on_rotate",
    "route",
    "wait_for_change",
    "watch",
    "whoami",
]

for _public in __all__:
    # They are named where they are used, also in tracebacks.
    if isinstance(globals().get(_public), type):
        globals()[_public].__module__ = __name__

_default: builtins.list[Client] = []


def _client() -> Client:
    """The client that the functions of this module share, made at the first call."""
    if not _default:
        _default.append(Client())
    return _default[0]


def get(name: str, *, field: str | None = None, version: str | None = None, cache: bool | None = None) -> Secret:
    """See `Client.get`."""
    return _client().get(name, field=field, version=version, cache=cache)


def list(prefix: str = "") -> builtins.list[Listed]:  # noqa: A001
    """See `Client.list`."""
    return _client().list(prefix)


def batch(names: Sequence[str]) -> Batch:
    """See `Client.batch`."""
    return _client().batch(names)


def whoami() -> Whoami:
    """See `Client.whoami`."""
    return _client().whoami()


def health() -> Health:
    """See `Client.health`."""
    return _client().health()


def wait_for_change(name: str, version: str, wait: float) -> Secret | None:
    """See `Client.wait_for_change`."""
    return _client().wait_for_change(name, version, wait)


def watch(*names: str) -> Watch:
    """See `Client.watch`."""
    return _client().watch(*names)


def on_rotate(name: str, callback: Callable[[Secret], object]) -> Rotations:
    """See `Client.on_rotate`."""
    return _client().on_rotate(name, callback)


def route(name: str) -> Route:
    """See `Client.route`."""
    return _client().route(name)


environ = Environ()
"""Stands in for `os.environ`; see `Environ`. The file that `$KEYHATCH_ENV_FILE` names maps its variables."""
