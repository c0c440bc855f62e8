"""JSON that may hold values. What is wrong with it is never said: Python's own errors carry the whole document."""

from __future__ import annotations

import json
import re
from typing import Any

_SPACE = re.compile(r"[ \t\r\n]*")


def _no_constant(_: str) -> None:
    raise ValueError  # NaN and Infinity are not JSON (RFC 8259, section 6).


_DECODER = json.JSONDecoder(parse_constant=_no_constant)


def parse(document: bytes | bytearray) -> dict[str, Any] | None:
    """A JSON object; None where it is none."""
    try:
        parsed = _DECODER.decode(document.decode())
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) else None


def field(document: bytes, name: str) -> bytes | None:
    """A field of a JSON object: the characters of a string, or the JSON text of anything else, as it stands there."""
    try:
        return _field(document.decode(), name)
    except (ValueError, RecursionError):
        return None


def _field(text: str, name: str) -> bytes | None:
    if not isinstance(_DECODER.decode(text), dict):
        return None
    found = None
    at = _skip(text, _skip(text, 0) + 1)
    while text[at] != "}":
        key, at = _DECODER.raw_decode(text, at)
        start = _skip(text, _skip(text, at) + 1)
        value, end = _DECODER.raw_decode(text, start)
        if key == name:
            found = (value if isinstance(value, str) else text[start:end]).encode()
        at = _skip(text, end)
        if text[at] == ",":
            at = _skip(text, at + 1)
    return found


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at
