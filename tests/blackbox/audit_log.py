"""What tests of the audit log share: a policy, the verifier that shares no code with the agent, disks that fail, names that bite."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness import ALICE, CANARY, KEYHATCH, ROOT, eventually
from load import plain_bytes, segments

SMALL = 'journald = false\nsegment = "64KiB"'
VERIFIER = ROOT / "tests" / "vectors" / "verify_audit.py"

POLICY = """
[[bot]]
name = "alice"
match = { uid = 20001 }
roles = ["reader", "helper"]

[[bot]]
name = "twin-a"
match = { uid = 20004 }
roles = ["reader"]

[role.reader]
grants = [
  { secrets = ["app/**"] },
]
deny = [
  { secrets = ["app/denied"] },
]

[role.helper]
grants = [{ secrets = ["help/*"] }]

[[bot]]
name = "carol"
match = { uid = 20003 }
roles = ["reader"]
"""

NASTY = (
    b"x\n\r\x1b]0;owned\x07\x1b[2J\nPRIORITY=0\nKEYHATCH_SECRET=forged\n"
    b"<script>alert(1)<img src=x>,\",=cmd|'\x7f \xe2\x80\xae \xc2\x9b31m \xff\\x41"
)


def line_of(agent, text):
    """Where the configuration says this, as `file:line`."""
    lines = agent.config.read_text().splitlines()
    return f"{agent.config}:{1 + next(at for at, line in enumerate(lines) if text in line)}"


def whole(agent, *args):
    """The log verifies, both by the agent and by the verifier that shares no code with it."""
    assert "whole" in agent.verify(*args).stdout
    assert python_verify(agent.audit_dir)[0] == 0


def python_verify(directory, head=None, key=None):
    """The independent verifier's exit code and output for a folder."""
    copies = []
    unpacked = Path(f"{directory}-unpacked")
    shutil.rmtree(unpacked, ignore_errors=True)
    unpacked.mkdir()
    for path in segments(directory):
        copies.append(unpacked / os.path.basename(path).removesuffix(".zst"))
        copies[-1].write_bytes(plain_bytes(path))
    args = (["--head", head] if head else []) + (["--key", key] if key else [])
    done = subprocess.run([sys.executable, VERIFIER, *args, *copies], capture_output=True, text=True)
    return done.returncode, done.stdout


def packed(agent):
    """Waits until every closed segment is compressed."""
    eventually(lambda: [p for p in segments(agent.audit_dir) if not p.endswith(".zst")][1:] == [])
    return segments(agent.audit_dir)


def head_of(agent):
    return json.loads(agent.verify("--json").stdout)["head"]


@contextlib.contextmanager
def failing_disk(path):
    """An ext4 over the folder that turns read-only at the call of what this gives, as after an I/O error."""
    image = f"{path}.image"
    with open(image, "wb") as file:
        file.truncate(16 << 20)
    os.makedirs(path, exist_ok=True)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    mounted = subprocess.run(["mount", "-o", "loop,errors=remount-ro", image, path], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a disk that fails is NOT shown: no loop device: {mounted.stderr}")
    os.rmdir(f"{path}/lost+found")
    try:
        yield lambda: subprocess.run(["mount", "-o", "remount,abort", path], check=True)
    finally:
        subprocess.run(["umount", "-l", path], check=False)


@contextlib.contextmanager
def in_unit(name, invocation=None):
    """A cgroup as systemd makes one for a system unit; gives what moves the caller into it."""
    root = next((p for p in ("/sys/fs/cgroup/unified", "/sys/fs/cgroup") if os.path.exists(f"{p}/cgroup.procs")), None)
    if root is None:
        pytest.skip("units are NOT shown: no cgroup2 here")
    folder = Path(root) / "system.slice" / name
    folder.mkdir(parents=True)
    try:
        if invocation:
            for attribute in ("user.invocation_id", "trusted.invocation_id"):
                os.setxattr(folder, attribute, invocation.encode())
        yield lambda: (folder / "cgroup.procs").write_text("0")
    finally:
        eventually(lambda: not (folder / "cgroup.procs").read_text())
        folder.rmdir()
        with contextlib.suppress(OSError):
            folder.parent.rmdir()


def nasty_read(agent):
    """Reads a secret by a program with such a name."""
    os.chmod(agent.dir, 0o755)
    path = os.path.join(os.fsencode(agent.dir), NASTY)
    shutil.copy(KEYHATCH, path)
    args = [path, "--socket", str(agent.socket), "get", "app/key"]
    done = subprocess.run(args, user=ALICE, group=ALICE, extra_groups=[], capture_output=True)
    assert done.stdout == CANARY.encode(), done.stderr
    return path
