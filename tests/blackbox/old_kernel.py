"""Runs a program on what looks like Debian 12's kernel: no memfd_secret, and no SO_PEERPIDFD.

    python3 old_kernel.py PROGRAM ARGUMENT...
"""

import ctypes
import errno
import os
import struct
import sys

LOAD, EQUAL, GIVE = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
NUMBER, SECOND, THIRD = 0, 24, 32  # in struct seccomp_data; the low halves of the arguments
MEMFD_SECRET, GETSOCKOPT = 447, 55
SOL_SOCKET, SO_PEERPIDFD = 1, 77
ALLOW, ERRNO = 0x7FFF0000, 0x00050000
FILTER = [
    (LOAD, 0, 0, NUMBER),
    (EQUAL, 6, 0, MEMFD_SECRET),
    (EQUAL, 0, 4, GETSOCKOPT),
    (LOAD, 0, 0, SECOND),
    (EQUAL, 0, 2, SOL_SOCKET),
    (LOAD, 0, 0, THIRD),
    (EQUAL, 2, 0, SO_PEERPIDFD),
    (GIVE, 0, 0, ALLOW),
    (GIVE, 0, 0, ERRNO | errno.ENOSYS),
    (GIVE, 0, 0, ERRNO | errno.ENOPROTOOPT),
]


def main():
    libc = ctypes.CDLL(None, use_errno=True)
    code = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *step) for step in FILTER))
    program = ctypes.create_string_buffer(struct.pack("@HxxxxxxP", len(FILTER), ctypes.addressof(code)))
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    assert libc.prctl(22, 2, program, 0, 0) == 0, os.strerror(ctypes.get_errno())  # PR_SET_SECCOMP
    os.execv(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
