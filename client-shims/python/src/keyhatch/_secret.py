"""A secret in the hands of a bot: it can be read, and does not print itself."""

from __future__ import annotations

from typing import Callable, NoReturn

from . import _json
from ._errors import NoField, NotText


class Secret:
    """The value of a secret, with its name and version.

    It masks itself wherever it is printed, and refuses to be pickled. Read it where it is used with `reveal()`, and do
    not keep what that returns. Python cannot wipe memory: the value is gone from it only some time after the last use.
    """

    # No attribute holds the value, so that nothing which prints attributes (vars, debuggers, a `default=` of json)
    # finds it: it lives in the closure of a function.
    __slots__ = ("__weakref__", "_name", "_open", "_stale", "_version")

    _name: str
    _version: str
    _stale: bool
    _open: Callable[[], bytes]

    def __init__(self, name: str, version: str, value: bytes, *, stale: bool = False) -> None:
        hold = object.__setattr__
        hold(self, "_name", name)
        hold(self, "_version", version)
        hold(self, "_stale", stale)
        hold(self, "_open", lambda: value)

    @property
    def name(self) -> str:
        """The secret's name."""
        return self._name

    @property
    def version(self) -> str:
        """Which value this is: an opaque text, another one for every value of the secret."""
        return self._version

    @property
    def stale(self) -> bool:
        """Whether the source is down and this is the last good value."""
        return self._stale

    def reveal(self) -> str:
        """The value as text."""
        text = _text(self._open)
        if text is None:
            raise NotText(f"the value of {self._name} is not UTF-8 text: read it with reveal_bytes()")
        return text

    def reveal_bytes(self) -> bytes:
        """The value, exactly."""
        return self._open()

    def field(self, field: str) -> Secret:
        """One field of a value that is a JSON object: the characters of a string, the JSON text of anything else."""
        found = _field_of(self, field)
        if found is None:
            raise NoField(f"the value of {self._name} is not a JSON object with a field {field!r}")
        return found

    def __repr__(self) -> str:
        return f"Secret({self._name!r}, version={self._version!r}, value=hidden)"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return format(repr(self), spec)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a Secret cannot be changed: {name}")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a Secret cannot be changed: {name}")

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: object) -> Secret:
        return self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(f"a Secret is not pickled: hand on its name {self._name!r} and get it where it is used")


# A frame that raises must hold no value in its locals: some tracebacks print them. So these return None instead.


def _text(read: Callable[[], bytes]) -> str | None:
    try:
        return read().decode()
    except UnicodeDecodeError:
        return None


def _field_of(secret: Secret, field: str) -> Secret | None:
    value = _json.field(secret.reveal_bytes(), field)
    if value is None:
        return None
    return Secret(secret.name, secret.version, value, stale=secret.stale)
