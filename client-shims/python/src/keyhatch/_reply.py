"""What the answers of the socket API mean.

A frame that raises here must hold no value in its locals: some tracebacks print them.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Callable, TypeVar

from . import _json
from ._errors import KeyhatchError, from_answer, malformed
from ._http import Reply
from ._names import MAX_VALUE
from ._secret import Secret

T = TypeVar("T")


@dataclass(frozen=True)
class Listed:
    """A secret that this process may see."""

    name: str
    version: str


@dataclass
class Batch:
    """Many secrets at once: those that were given, and why others were not."""

    secrets: dict[str, Secret] = field(default_factory=dict)
    """The values given, by name."""
    errors: dict[str, str] = field(default_factory=dict)
    """The names refused, each with its problem code."""

    def add(self, other: Batch) -> None:
        """Takes what another answer has."""
        self.secrets.update(other.secrets)
        self.errors.update(other.errors)


@dataclass(frozen=True)
class Whoami:
    """Who the agent thinks this process is, and what it may have."""

    pid: int
    uid: int | None
    gid: int | None
    groups: list[int]
    exe: str | None
    unit: str | None
    user_unit: str | None
    bot: str | None
    roles: list[str]
    grants: list[Any]
    #: The routes that it may use, each with its name and its upstream. An older agent does not say.
    routes: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class Health:
    """Whether the agent is ready, why not, and which promises its host does not let it keep."""

    status: str
    reasons: list[str]
    missing: list[str]


def error(reply: Reply) -> KeyhatchError:
    """The error that an answer other than 200 tells of."""
    told = from_answer(reply.status, reply.retry_after, reply.body)
    told.may_heal = reply.status == 503 and reply.closes
    return told


def secret(name: str, reply: Reply) -> Secret:
    """The answer to a request for a value."""
    good(reply)
    return _shaped(_secret(_json.parse(reply.body), name))


def change(name: str, reply: Reply) -> Secret | None:
    """The answer to a long poll: None where nothing has changed."""
    return None if reply.status == 304 else secret(name, reply)


def batch(reply: Reply) -> Batch:
    """The answer to a batch request."""
    good(reply)
    return _shaped(_read(reply, _batch))


def page(reply: Reply) -> tuple[list[Listed], str | None]:
    """A page of the list, and the name to list on from."""
    good(reply)
    return _shaped(_read(reply, _page))


def whoami(reply: Reply) -> Whoami:
    """The answer to a request for one's identity."""
    good(reply)
    return _shaped(_read(reply, _whoami))


def health(reply: Reply) -> Health:
    """Health is told with 503 as well."""
    told = _read(reply, _health) if reply.status in (200, 503) else None
    if told is None:
        good(reply)
    return _shaped(told)


def advanced(before: str | None, following: str) -> str:
    """The name to list on from. A server that names the same one again would be asked for ever."""
    if before is not None and following <= before:
        raise malformed("its list does not come to an end")
    return following


def good(reply: Reply) -> None:
    """Raises what an answer other than 200 tells of."""
    if reply.status != 200:
        raise error(reply)
    if reply.is_stream:
        raise malformed("an event stream came unasked")


def stream(reply: Reply) -> bytearray:
    """The beginning of an event stream."""
    if not reply.is_stream:
        good(reply)
        raise malformed("a watch was not answered with events")
    return reply.body


def _shaped(what: T | None) -> T:
    if what is None:
        raise malformed("its JSON has another shape")
    return what


def _read(reply: Reply, build: Callable[[dict[str, Any]], T]) -> T | None:
    document = _json.parse(reply.body)
    try:
        return build(document) if document is not None else None
    except (KeyError, TypeError, ValueError):
        return None


def _secret(item: object, name: str | None = None) -> Secret | None:
    if not isinstance(item, dict):
        return None
    value, version, stale = _value(item), item.get("version"), item.get("stale")
    name = item.get("name") if name is None else name
    if value is None or not isinstance(version, str) or not isinstance(name, str) or not isinstance(stale, bool):
        return None
    return Secret(name, version, value, stale=stale)


def _value(item: Mapping[str, object]) -> bytes | None:
    text, encoded = item.get("value"), item.get("value_base64")
    try:
        if isinstance(text, str) and encoded is None:
            value = text.encode()
        elif isinstance(encoded, str) and text is None:
            value = base64.b64decode(encoded, validate=True)
        else:
            return None
    except (UnicodeEncodeError, binascii.Error, ValueError):
        return None
    return value if len(value) <= MAX_VALUE else None


def _batch(document: dict[str, Any]) -> Batch:
    batch = Batch()
    for item in document["secrets"]:
        given = _secret(item)
        if given is None:
            raise ValueError
        batch.secrets[given.name] = given
    for refused in document["errors"]:
        batch.errors[_text(refused["name"])] = _text(refused["code"])
    return batch


def _page(document: dict[str, Any]) -> tuple[list[Listed], str | None]:
    listed = [Listed(_text(item["name"]), _text(item["version"])) for item in document["secrets"]]
    following = document.get("next")
    return listed, None if following is None else _text(following)


def _whoami(document: dict[str, Any]) -> Whoami:
    told: dict[str, Any] = {name: document.get(name) for name in ("uid", "gid", "exe", "unit", "user_unit", "bot")}
    told.update({name: document[name] for name in ("pid", "groups", "roles", "grants")})
    return Whoami(**told, routes=document.get("routes", []))


def _health(document: dict[str, Any]) -> Health:
    return Health(_text(document["status"]), document.get("reasons", []), document.get("missing", []))


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value
