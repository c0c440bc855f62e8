"""`keyhatch.environ`: stands in for `os.environ`, with some of its variables asked of the agent."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Callable

from ._client import Client
from ._errors import NotFound
from ._request import Wanted

ENV_FILE = "KEYHATCH_ENV_FILE"


class Environ(MutableMapping[str, str]):
    """A mapping of variables to text, like `os.environ`.

    A variable that is mapped to a secret's name is asked of the agent when it is read, and kept in memory as long as a
    watch says that it is current. Any other is that of `os.environ`, read and written. A mapped variable whose secret
    does not exist is a `KeyError`, like one that is not set; that it is denied or unavailable is said by the library's
    own errors. What it gives is plain text, for programs that expect text.
    """

    def __init__(self, names: Mapping[str, str] | None = None, *, client: Client | None = None) -> None:
        self._find: Callable[[], Client] = Client if client is None else lambda: client
        self._client = client
        self._names: dict[str, str] | None = None if names is None else _checked(names)

    def map(self, names: Mapping[str, str]) -> None:
        """Maps more variables: `{"OPENAI_API_KEY": "openai/api-key", "DB_PASSWORD": "app/db#password"}`."""
        self._mapped().update(_checked(names))

    def map_file(self, path: str | os.PathLike[str]) -> None:
        """Maps more variables, from a file of `VAR=NAME` lines; empty lines and `#` lines do not count."""
        self._mapped().update(read_map(path))

    def __getitem__(self, variable: str) -> str:
        name = self._mapped().get(variable)
        if name is None:
            return os.environ[variable]
        try:
            return self._asked().get(name, cache=True).reveal()
        except NotFound:
            pass
        raise KeyError(variable)

    def __setitem__(self, variable: str, value: str) -> None:
        self._refuse_mapped(variable)
        os.environ[variable] = value

    def __delitem__(self, variable: str) -> None:
        self._refuse_mapped(variable)
        del os.environ[variable]

    def __iter__(self) -> Iterator[str]:
        mapped = self._mapped()
        yield from mapped
        for variable in list(os.environ):
            if variable not in mapped:
                yield variable

    def __len__(self) -> int:
        return len(self._mapped().keys() | os.environ.keys())

    def __repr__(self) -> str:
        return f"keyhatch.Environ({self._mapped()!r}, else os.environ)"

    def copy(self) -> dict[str, str]:
        """A plain dict of everything, values included, as `os.environ.copy()` gives."""
        return dict(self)

    def _asked(self) -> Client:
        if self._client is None:
            self._client = self._find()
        return self._client

    def _mapped(self) -> dict[str, str]:
        if self._names is None:
            path = os.environ.get(ENV_FILE)
            self._names = read_map(path) if path else {}
        return self._names

    def _refuse_mapped(self, variable: str) -> None:
        if variable in self._mapped():
            raise TypeError(f"{variable} is the secret {self._mapped()[variable]}: set it with `keyhatchd store put`")


def read_map(path: str | os.PathLike[str]) -> dict[str, str]:
    """The `VAR=NAME` lines of a file."""
    names: dict[str, str] = {}
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            text = line.strip()
            if not text or text.startswith("#"):
                continue
            variable, equals, name = (part.strip() for part in text.partition("="))
            if not (variable and equals):
                raise ValueError(f"{os.fspath(path)}:{number}: not a VAR=NAME line")
            if variable in names:
                raise ValueError(f"{os.fspath(path)}:{number}: {variable} is there twice")
            names[variable] = name
    return _checked(names)


def _checked(names: Mapping[str, str]) -> dict[str, str]:
    for name in names.values():
        Wanted.parse(name)
    return dict(names)
