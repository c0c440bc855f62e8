"""Where the agent listens, and whether what listens there may be trusted."""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
from typing import NamedTuple

from ._errors import Refused, TimedOut, Unreachable

DEFAULT_SOCKET = "/run/keyhatch/keyhatch.sock"

# The uid that stands for every uid without a mapping in this user namespace (`user_namespaces(7)`).
_OVERFLOW_UID = 65_534

# What connecting, sending and reading meet while an agent restarts.
_RESTARTING = frozenset({errno.ECONNREFUSED, errno.ENOENT, errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN})


class Folder(NamedTuple):
    """The folder of a socket, opened before connecting, so that its owner is a fact and not a second look-up."""

    owner: int
    shared: bool
    """Others than the owner can make files in it."""


class Address:
    """The socket of an agent."""

    def __init__(self, path: str | os.PathLike[str], *, guessed: bool = False) -> None:
        self.path = os.fspath(path)
        self.guessed = guessed

    @classmethod
    def find(cls) -> Address:
        """`$KEYHATCH_SOCKET`, else the host's agent if there is one, else the caller's own dev agent."""
        named = os.environ.get("KEYHATCH_SOCKET")
        if named:
            return cls(named)
        if os.path.exists(DEFAULT_SOCKET):
            return cls(DEFAULT_SOCKET)
        runtime = os.environ.get("XDG_RUNTIME_DIR", "")
        folder = os.path.join(runtime, "keyhatch") if os.path.isabs(runtime) else f"/tmp/keyhatch-{os.geteuid()}"
        return cls(os.path.join(folder, "keyhatch.sock"), guessed=True)

    def __str__(self) -> str:
        return f"{self.path} (there is no {DEFAULT_SOCKET})" if self.guessed else self.path

    def folder(self) -> Folder:
        """The facts of the socket's folder."""
        try:
            fd = os.open(os.path.dirname(self.path) or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as cause:
            raise self.unreachable(cause) from None
        try:
            facts = os.fstat(fd)
        finally:
            os.close(fd)
        return Folder(facts.st_uid, bool(stat.S_IMODE(facts.st_mode) & 0o022))

    def check(self, folder: Folder, connected: socket.socket) -> None:
        """Raises `Refused` where the server at the other end is not to be trusted."""
        credentials = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("=iII"))
        _, uid, _ = struct.unpack("=iII", credentials)
        if not trusted(uid, os.geteuid(), folder, guessed=self.guessed):
            raise Refused(
                f"the server at {self} runs as uid {uid} and is not trusted, so nothing was sent to it: name the "
                "socket of an agent that runs as root, as you, or as the owner of the socket's folder"
            )

    def unreachable(self, cause: OSError) -> Unreachable:
        """The error for a system call that failed."""
        error = Unreachable(f"cannot reach the agent at {self}: {cause.strerror or cause}")
        error.may_heal = cause.errno in _RESTARTING
        return error

    def hung_up(self) -> Unreachable:
        """The error for a connection that ended before the answer did."""
        return self.unreachable(OSError(errno.ECONNRESET, "it closed the connection before it had answered"))

    def timed_out(self, after: float) -> TimedOut:
        """The error for an answer that did not come."""
        return TimedOut(f"the agent at {self} did not answer within {after:g} s")


def trusted(server: int, own: int, folder: Folder, *, guessed: bool) -> bool:
    """Root, the caller itself, or who owns the folder of the socket.

    The folder does not count for a path that was guessed: anyone can make `/tmp/keyhatch-UID` before its user does. The
    overflow uid is many users in one, so it counts only as the owner of a folder where nobody else can put a socket:
    that is the host's folder as a rootless container sees it.
    """
    if server == _OVERFLOW_UID:
        return folder.owner == server and not folder.shared and (not guessed or own == server)
    return server in (0, own) or (server == folder.owner and not guessed)
