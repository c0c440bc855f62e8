"""What a thread does while the program goes on: keeps held values current, and calls back on rotations."""

from __future__ import annotations

import logging
import threading
import traceback
from typing import Callable

from ._errors import KeyhatchError
from ._progress import Change, Retry
from ._request import Wanted
from ._secret import Secret
from ._socket import Address
from ._watch import Watch

_log = logging.getLogger("keyhatch")


class Held:
    """A value held in memory, as long as a watch says that it is the current one."""

    def __init__(self, address: Address, timeout: float, name: str) -> None:
        self._timeout = timeout
        self._lock = threading.Lock()
        self._secret: Secret | None = None
        self._told = False
        """The watch is open and has said how the secret stands."""
        self._changes = 0
        self._settled = threading.Event()
        self._watch = Watch(address, timeout, [name], endless=True, lost=self._lost)
        self._thread: threading.Thread | None = None

    def get(self, fetch: Callable[[], Secret]) -> Secret:
        """The held value, else what `fetch` gets, held from then on."""
        self._start()
        self._settled.wait(self._timeout)
        with self._lock:
            if self._secret is not None:
                return self._secret
            changes, told = self._changes, self._told
        secret = fetch()
        with self._lock:
            # What changed while it was fetched may be newer than what was fetched.
            if told and changes == self._changes:
                self._secret = secret
        return secret

    def stop(self) -> None:
        """Ends the watch and forgets the value."""
        self._watch.close()
        self._lost()

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="keyhatch-cache", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        for change in self._watch:
            with self._lock:
                self._changes += 1
                self._told = True
                if self._secret is not None and self._secret.version != change.version:
                    self._secret = None
            self._settled.set()

    def _lost(self) -> None:
        with self._lock:
            self._changes += 1
            self._told, self._secret = False, None
        self._settled.set()


class Rotations:
    """Calls back with each new value of a secret, in a thread of its own, until `stop()`."""

    def __init__(
        self,
        wanted: Wanted,
        callback: Callable[[Secret], object],
        fetch: Callable[[], Secret],
        watch: Watch,
    ) -> None:
        self._wanted, self._callback, self._fetch, self._watch = wanted, callback, fetch, watch
        watch.open()
        self._version = next(watch).version
        threading.Thread(target=self._run, name="keyhatch-on-rotate", daemon=True).start()

    def stop(self) -> None:
        """No callback begins after this."""
        self._watch.close()

    def __enter__(self) -> Rotations:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self) -> None:
        for change in self._watch:
            secret = self._news(change)
            if secret is not None:
                self._version = secret.version
                call_back(self._wanted.name, self._callback, secret)

    def _news(self, change: Change) -> Secret | None:
        retry = Retry()
        while change.version not in (None, self._version):
            try:
                return self._fetch()
            except KeyhatchError as error:
                failure = error
            if self._watch.wait(retry.pause(failure)):
                return None
        return None


def call_back(name: str, callback: Callable[[Secret], object], secret: Secret) -> object:
    """Calls back; what goes wrong in the callback is logged without its message, which might quote the value."""
    try:
        return callback(secret)
    except Exception as error:
        log_failure(name, error)
        return None


def log_failure(name: str, error: Exception) -> None:
    """Says where a callback failed, and with which kind of error."""
    at = traceback.extract_tb(error.__traceback__)[-1]
    kind = type(error).__name__
    _log.error("the callback for rotations of %s failed: %s at %s:%s", name, kind, at.filename, at.lineno)
