"""One connection to the agent, with calls that wait."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from typing import Callable, TypeVar

from ._errors import KeyhatchError, bare
from ._http import Reading, Reply
from ._progress import Patience
from ._request import Request
from ._socket import Address

T = TypeVar("T")


class Connection:
    """A connection that only the process which made it may use: the agent takes a forked child for its parent."""

    def __init__(self, address: Address, patience: Patience) -> None:
        self._address = address
        self._owner = os.getpid()
        folder = address.folder()
        self._socket = dial(address, patience)
        try:
            address.check(folder, self._socket)
        except BaseException:
            self.close()
            raise

    @property
    def is_ours(self) -> bool:
        """False in a child that was forked from the process which connected."""
        return self._owner == os.getpid()

    def exchange(self, request: Request, patience: Patience) -> Reply:
        """Sends `request` and reads its answer."""
        reading = Reading(request.limit)
        try:
            self._send(request.data, patience)
            while True:
                if not reading.read(self._receiver(patience)):
                    raise self._address.hung_up()
                reply = reading.advance()
                if reply is not None:
                    return reply
        except socket.timeout:
            self.close()
            raise self._address.timed_out(patience.timeout) from None
        except OSError as cause:
            self.close()
            raise self._address.unreachable(cause) from None
        except BaseException:
            self.close()
            raise

    def receive(self) -> bytes:
        """What comes next, however long it takes; nothing at the end of the connection."""
        try:
            self._socket.settimeout(None)
            return self._socket.recv(4096)
        except OSError:
            return b""

    def interrupt(self) -> None:
        """Ends the connection under a thread that waits in `receive`."""
        if self.is_ours:
            with contextlib.suppress(OSError):  # It may have ended already.
                self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Closes it for this process; in a forked child the parent's stays open."""
        self._socket.close()

    def __del__(self) -> None:
        # Garbage that refers to itself is taken apart in any order: without this, Python may warn of the socket.
        if hasattr(self, "_socket"):
            self._socket.close()

    def _send(self, data: bytes, patience: Patience) -> None:
        self._socket.settimeout(_left(patience))
        # An agent that refuses a connection answers before it hangs up.
        with contextlib.suppress(BrokenPipeError):
            self._socket.sendall(data)

    def _receiver(self, patience: Patience) -> Callable[[int], bytes]:
        self._socket.settimeout(_left(patience))
        return self._socket.recv


def dial(address: Address, patience: Patience) -> socket.socket:
    """Connects, without a look at who listens."""
    dialled = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        while True:
            dialled.settimeout(_left(patience))
            try:
                dialled.connect(address.path)
                return dialled
            except BlockingIOError:
                time.sleep(0.005)  # Its backlog is full.
    except socket.timeout:
        dialled.close()
        raise address.timed_out(patience.timeout) from None
    except OSError as cause:
        dialled.close()
        raise address.unreachable(cause) from None


def _left(patience: Patience) -> float:
    left = patience.left()
    if left <= 0:
        raise socket.timeout
    return left


def patiently(attempt: Callable[[Patience], T], timeout: float) -> T:
    """Makes the attempt again and again for a while where the agent seems to restart."""
    patience = Patience(timeout)
    while True:
        try:
            return attempt(patience)
        except KeyhatchError as error:
            failure = bare(error)
        pause = patience.pause(failure)
        if pause is None:
            raise failure
        time.sleep(pause)
