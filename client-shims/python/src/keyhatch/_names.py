"""Names of secrets, and the bounds of names and values (the contract's section 2)."""

from __future__ import annotations

import re

from ._errors import InvalidName

MAX_VALUE = 65_536
MAX_NAME = 512
MAX_BATCH = 100

_ALLOWED = re.compile(r"[A-Za-z0-9._+=@-]+", re.ASCII)


def check_name(name: str) -> str:
    """The name as it is, where it is one; else `InvalidName`."""
    wrong = _wrong(name)
    if wrong is not None:
        raise InvalidName(f"{name!r} is not a secret name: {wrong}")
    return name


def _wrong(name: str) -> str | None:
    if not name:
        return "a secret name cannot be empty"
    if len(name) > MAX_NAME:
        return "a secret name has at most 512 bytes"
    for segment in name.split("/"):
        if not segment:
            return "a secret name cannot have an empty segment: no slash at an end, no two in a row"
        if segment in (".", ".."):
            return "a secret name cannot have a segment `.` or `..`"
        if not _ALLOWED.fullmatch(segment):
            return "a secret name has only letters, digits and . _ + = @ - between its slashes"
    return None
