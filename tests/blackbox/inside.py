"""What root finds inside a running process: its memory, its descriptors, its core; and a kernel that lacks a call."""

import base64
import ctypes
import errno
import os
import resource
import struct
from pathlib import Path

from harness import eventually

LIBC = ctypes.CDLL(None, use_errno=True)
SYS_PIDFD_GETFD, SYS_MEMFD_SECRET = 438, 447  # the same number on every architecture
CHUNK, PAGE = 1 << 20, 4096


class Scan:
    """Every readable mapping of a process, read once: how often each needle is there, and how much was read."""

    def __init__(self, pid, needles):
        self.read = self.secret_refused = 0
        self.counts = dict.fromkeys(needles, 0)
        self.where = {}
        mem = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
        try:
            for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
                span, mode, _, _, _, *path = line.split(maxsplit=5)
                path = path[0] if path else "anonymous"
                # The kernel's own pages of every process have no bytes of this one.
                if mode.startswith("r") and not path.startswith("[v"):
                    start, end = (int(part, 16) for part in span.split("-"))
                    self.mapping(mem, start, end, path, needles)
        finally:
            os.close(mem)

    def mapping(self, mem, start, end, path, needles):
        for run in self.runs(mem, start, end, "secretmem" in path):
            self.read += len(run)
            for name, needle in needles.items():
                found = run.count(needle)
                self.counts[name] += found
                if found:
                    self.where.setdefault(name, []).append(path)

    def runs(self, mem, start, end, secret):
        """The bytes that can be read, in one piece where they are one."""
        run = bytearray()
        for at in range(start, end, CHUNK):
            size = min(CHUNK, end - at)
            for step in (size, PAGE):
                pieces = [self.piece(mem, offset, step) for offset in range(at, at + size, step)]
                if all(pieces):
                    break
            for piece in pieces:
                if piece:
                    run += piece
                    continue
                self.secret_refused += PAGE if secret else 0
                yield bytes(run)
                run.clear()
        yield bytes(run)

    @staticmethod
    def piece(mem, at, size):
        try:
            piece = os.pread(mem, size, at)
        except OSError as error:
            assert error.errno in (errno.EIO, errno.EFAULT), error
            return None
        return piece if len(piece) == size else None


def disguises(text):
    """The forms in which a value could lie around: as it is, in Base64 at each of three offsets, in hex."""
    raw = text.encode()
    forms = {text: raw, f"{text} hex": raw.hex().encode(), f"{text} HEX": raw.hex().upper().encode()}
    for offset in range(3):
        # Only the digits that no neighbour has a part in.
        digits = base64.b64encode(b"\0" * offset + raw)[4 * (offset > 0) + 1 : -5]
        forms[f"{text} base64+{offset}"] = digits
    return forms


def holds_no_copy(pid, needles, marker):
    """Waits until no needle is in the process's memory, where the marker, which is there, shows that it was looked for."""

    def clean():
        scan = Scan(pid, needles | {marker: marker.encode()})
        assert scan.secret_refused > 0 and scan.counts.pop(marker) > 0
        assert set(scan.counts.values()) == {0}, (scan.counts, scan.where)
        return True

    eventually(clean, pause=0.5)


def secret_descriptors(pid):
    """The process's open descriptors, and those of them that are secret memory, each taken by pidfd_getfd."""
    pidfd = os.pidfd_open(pid)
    seen, secret = 0, []
    try:
        for number in map(int, os.listdir(f"/proc/{pid}/fd")):
            fd = LIBC.syscall(SYS_PIDFD_GETFD, pidfd, number, 0)
            if fd < 0:
                # It was closed since it was listed.
                assert ctypes.get_errno() == errno.EBADF, os.strerror(ctypes.get_errno())
                continue
            seen += 1
            if "secretmem" in os.readlink(f"/proc/self/fd/{fd}"):
                secret.append(number)
            os.close(fd)
    finally:
        os.close(pidfd)
    return seen, secret


def dumps_allowed():
    """For a child before it execs: nothing in its surroundings keeps it from leaving a core."""
    resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def without_memfd_secret():
    """For a child before it execs: a kernel that does not know memfd_secret (a seccomp filter answers ENOSYS)."""
    load, equal, give = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
    steps = [
        (load, 0, 0, 0),  # seccomp_data.nr
        (equal, 0, 1, SYS_MEMFD_SECRET),
        (give, 0, 0, 0x00050000 | errno.ENOSYS),  # SECCOMP_RET_ERRNO
        (give, 0, 0, 0x7FFF0000),  # SECCOMP_RET_ALLOW
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("@HxxxxxxP", len(steps), ctypes.addressof(code)))
    assert LIBC.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    assert LIBC.prctl(22, 2, program, 0, 0) == 0, os.strerror(ctypes.get_errno())  # PR_SET_SECCOMP
