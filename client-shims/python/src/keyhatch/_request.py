"""The requests of the socket API, as bytes. They hold names and versions, never values."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import quote

from ._names import MAX_BATCH, MAX_VALUE, check_name

# JSON escapes make at most six bytes of one; the rest of the document is small.
_MAX_JSON_VALUE = 6 * MAX_VALUE + 16 * 1024
_MAX_PAGE = 4 * 1024 * 1024
_MAX_SMALL = 1024 * 1024

_JSON = "application/json"

# What an entity tag can hold (RFC 9110, section 8.8.3), so that no version can add a header.
_VERSION = re.compile(r"[!#-~]+")


class Wanted(NamedTuple):
    """Which value of which secret."""

    name: str
    field: str | None = None
    version: str | None = None

    @classmethod
    def parse(cls, name: str, field: str | None = None, version: str | None = None) -> Wanted:
        """From `NAME`, or `NAME#field`."""
        if field is None and "#" in name:
            name, _, field = name.partition("#")
        return cls(check_name(name), field, version)

    @property
    def target(self) -> str:
        """Path and query."""
        query = [(key, value) for key, value in (("version", self.version), ("field", self.field)) if value is not None]
        return _target(f"/v1/secrets/{self.name}", query)


class Request(NamedTuple):
    """One request, ready to send."""

    data: bytes
    limit: int
    """The largest body that its answer may have."""
    wait: float = 0
    """How much longer than usual the answer may take."""


def value(wanted: Wanted) -> Request:
    """Asks for the JSON form: it alone says whether the value is stale."""
    return _get(wanted.target, limit=_MAX_JSON_VALUE)


def change(wanted: Wanted, version: str, wait: int) -> Request:
    """Asks for the value once it is another one than `version`, or for 304 after `wait` seconds."""
    if not _VERSION.fullmatch(version):
        raise ValueError("this is not a version that an agent gives")
    headers = f'If-None-Match: "{version}"\r\nPrefer: wait={wait}\r\n'
    return _get(wanted.target, headers=headers, limit=_MAX_JSON_VALUE)._replace(wait=wait)


def page(prefix: str, after: str | None) -> Request:
    """Asks for a page of the list."""
    query = [("prefix", prefix)] if after is None else [("prefix", prefix), ("after", after)]
    return _get(_target("/v1/secrets", query), limit=_MAX_PAGE)


def batch(names: Sequence[str]) -> Request:
    """Asks for up to `MAX_BATCH` values."""
    body = json.dumps({"names": list(names)}).encode()
    head = (
        f"POST /v1/batch HTTP/1.1\r\nHost: keyhatch\r\nAccept: {_JSON}\r\nContent-Type: {_JSON}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return Request(head.encode() + body, MAX_BATCH * _MAX_JSON_VALUE)


def watch(names: Sequence[str], last_id: str | None) -> Request:
    """Asks for a stream of events; `last_id` is the id of the last that has come."""
    resume = f"Last-Event-ID: {last_id}\r\n" if last_id else ""
    return _get(_target("/v1/watch", [("name", name) for name in names]), "text/event-stream", resume)


def whoami() -> Request:
    """Asks who the agent takes this process for."""
    return _get("/v1/whoami")


def health() -> Request:
    """Asks whether the agent is ready."""
    return _get("/v1/health")


def _get(target: str, accept: str = _JSON, headers: str = "", limit: int = _MAX_SMALL) -> Request:
    return Request(f"GET {target} HTTP/1.1\r\nHost: keyhatch\r\nAccept: {accept}\r\n{headers}\r\n".encode(), limit)


def _target(path: str, query: Sequence[tuple[str, str]]) -> str:
    if not query:
        return path
    return path + "?" + "&".join(f"{key}={quote(text, safe='/')}" for key, text in query)
