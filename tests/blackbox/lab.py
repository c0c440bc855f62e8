"""Whole Debian machines with a real systemd: what tests of units, packages and boots stand on.

A minimal root of each release is made once by debootstrap and kept in target/lab ($KEYHATCH_LAB names another folder). A
`Machine` boots a throw-away overlay of it under systemd-nspawn in about a second; commands run inside by nsenter.

    with Machine("trixie") as machine:
        machine.write("/etc/systemd/system/bot.service", "...")
        machine.systemctl("daemon-reload")
        assert machine.sh("systemctl is-active bot", check=False).stdout == "inactive\\n"

Run as a program it makes the roots: `lab.py [RELEASE...]`.
"""

import ctypes
import fcntl
import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from harness import ROOT, eventually

RELEASES = {"bookworm": 12, "trixie": 13}
LAB = Path(os.environ.get("KEYHATCH_LAB", ROOT / "target" / "lab"))
PACKAGES = ["systemd", "systemd-sysv", "dbus", "libpam-systemd", "python3", "systemd-journal-remote", "polkitd"]

# What the daemon needs and a container is not given by itself.
SYSCALLS = "memfd_secret landlock_create_ruleset landlock_add_rule landlock_restrict_self"
CAPABILITIES = "CAP_IPC_LOCK"

LIBC = ctypes.CDLL(None, use_errno=True)
PR_SET_PDEATHSIG = 1
COUNTER = itertools.count()


def why_not():
    """Why there can be no lab here, if so."""
    if os.geteuid() != 0:
        return "whole machines are NOT shown: needs root"
    for program in ["debootstrap", "systemd-nspawn", "nsenter", "unshare"]:
        if not shutil.which(program):
            return f"whole machines are NOT shown: {program} is not installed"
    probe = "mount -t tmpfs t /mnt && mkdir /mnt/l /mnt/u /mnt/w /mnt/o && " \
            "mount -t overlay o -o lowerdir=/mnt/l,upperdir=/mnt/u,workdir=/mnt/w /mnt/o"
    if subprocess.run(["unshare", "-m", "sh", "-c", probe], capture_output=True).returncode:
        return "whole machines are NOT shown: nothing can be mounted here"
    if cgroup2() is None:
        return "whole machines are NOT shown: no cgroup2 is mounted"
    return None


def cgroup2():
    """Where the unified cgroup hierarchy is mounted."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(place)
    return None


def mirror():
    """Where this machine gets Debian from."""
    if shutil.which("apt-get"):
        told = subprocess.run(
            ["apt-get", "indextargets", "--format", "$(ORIGIN) $(REPO_URI)"], capture_output=True, text=True
        )
        for line in told.stdout.splitlines():
            origin, _, place = line.partition(" ")
            if origin == "Debian" and "security" not in place:
                return place
    return "http://deb.debian.org/debian"


def root_of(release):
    """The folder with a release's root, made if it is not there."""
    made_of = hashlib.sha256(" ".join(PACKAGES).encode()).hexdigest()[:8]
    root = LAB / f"{release}-{made_of}"
    LAB.mkdir(parents=True, exist_ok=True)
    with open(LAB / f"{release}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not root.exists():
            half = LAB / f"{release}.half"
            shutil.rmtree(half, ignore_errors=True)
            done = subprocess.run(
                ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", release, half, mirror()],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )
            assert done.returncode == 0, f"debootstrap {release}: {done.stdout[-2000:]}"
            shutil.rmtree(half / "var/cache/apt", ignore_errors=True)
            (half / "etc/machine-id").write_text("")
            half.rename(root)
    return root


class Done:
    """What a command inside a machine has said."""

    def __init__(self, args, done):
        self.args, self.returncode = args, done.returncode
        self.stdout, self.stderr = (out.decode(errors="replace") for out in (done.stdout, done.stderr))

    def __repr__(self):
        return f"{self.args}: {self.returncode}\n{self.stdout}\n{self.stderr}"


class Machine:
    """A booted machine. What it writes goes to an overlay and is gone with it; a `reboot` keeps it."""

    def __init__(self, release, nspawn=(), boot=True):
        self.release, self.lower, self.nspawn = release, root_of(release), nspawn
        self.name = f"keyhatch-{release}-{os.getpid()}-{next(COUNTER)}"
        self.dir = LAB / "machines" / self.name
        self.console = self.dir / "console"
        self.process = self.leader = None
        for part in ["upper", "work", "root"]:
            (self.dir / part).mkdir(parents=True)
        if boot:
            self.boot()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.halt()
        shutil.rmtree(self.dir, ignore_errors=True)

    # Power.

    def boot(self):
        """Boots, and waits until systemd has started everything."""
        layers = f"lowerdir={self.lower},upperdir={self.dir}/upper,workdir={self.dir}/work"
        # Mounted where only the machine sees it, the overlay goes when the machine does.
        script = f'mount -t overlay overlay -o "{layers}" "{self.dir}/root" && exec systemd-nspawn "$@"'
        command = [
            "unshare", "-m", "sh", "-c", script, "sh", "--quiet", "--boot", "--register=no", "--keep-unit",
            "--private-network", "--console=pipe", f"--machine={self.name}", f"--hostname=debian{RELEASES[self.release]}",
            f"--directory={self.dir}/root", f"--system-call-filter={SYSCALLS}", f"--capability={CAPABILITIES}",
            *self.nspawn,
        ]
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=open(self.console, "ab"), stderr=subprocess.STDOUT,
            env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}, preexec_fn=self.settle,
        )
        self.leader = eventually(self.find_leader, 60)
        eventually(self.is_up, 60)
        return self

    def settle(self):
        """In the child: a cgroup of the machine's own, and an end with the test's."""
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        for base in self.cgroups():
            base.mkdir(exist_ok=True)
            (base / "cgroup.procs").write_text(str(os.getpid()))

    def cgroups(self):
        """Below this process's own cgroups: in the unified hierarchy, and in systemd's where there is one."""
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, kind, path = line.split(":", 2)
            where = {"": cgroup2(), "name=systemd": Path("/sys/fs/cgroup/systemd")}.get(kind)
            if where is not None and where.is_dir():
                yield where / path.lstrip("/") / self.name

    def find_leader(self):
        """The machine's PID 1, by its pid here."""
        assert self.process.poll() is None, f"nspawn ended:\n{self.console.read_text(errors='replace')}"
        pid = self.process.pid
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            if Path(f"/proc/{child}/comm").read_text() == "systemd\n":
                return int(child)
        return None

    def is_up(self):
        assert self.process.poll() is None, f"nspawn ended:\n{self.console.read_text(errors='replace')}"
        told = self.run("systemctl", "is-system-running", check=False).stdout.strip()
        return told in ("running", "degraded")

    def halt(self):
        """Shuts down in order, as `poweroff` does."""
        self._end(signal.SIGRTMIN + 4)

    def crash(self):
        """Pulls the plug."""
        self._end(signal.SIGKILL)

    def _end(self, number):
        if self.process is None:
            return
        try:
            os.kill(self.leader or self.process.pid, number)
            self.process.wait(timeout=60)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        for base in self.cgroups():
            for cgroup in sorted(base.rglob("*/"), reverse=True):
                cgroup.rmdir()
            if base.exists():
                base.rmdir()
        self.process = self.leader = None

    def reboot(self):
        self.halt()
        return self.boot()

    # Inside.

    def command(self, *args):
        """The command line that runs `args` inside, as root, for those who need a Popen."""
        clean = ["env", "-i", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "HOME=/root"]
        return ["nsenter", "-t", str(self.leader), "-m", "-u", "-i", "-n", "-p", "-C", "--", *clean, *map(str, args)]

    def run(self, *args, check=True, stdin=b"", timeout=120):
        """Runs a command inside, as root and in no unit; its output is text."""
        stdin = stdin.encode() if isinstance(stdin, str) else stdin
        done = Done(args, subprocess.run(
            self.command(*args), input=stdin, capture_output=True, timeout=timeout, start_new_session=True,
        ))
        assert not check or done.returncode == 0, repr(done)
        return done

    def sh(self, script, **kwargs):
        return self.run("sh", "-ec", script, **kwargs)

    def systemctl(self, *args, **kwargs):
        return self.run("systemctl", *args, **kwargs)

    def show(self, unit, member):
        """One property of a unit."""
        return self.systemctl("show", "--value", "-p", member, unit).stdout.strip()

    def journal(self, *args):
        """Entries of the journal, each a dictionary, that match journalctl's arguments."""
        self.run("journalctl", "--sync")
        told = self.run("journalctl", "-o", "json", "--all", "--no-pager", "-q", *args).stdout
        return [json.loads(line) for line in told.splitlines()]

    def path(self, inside):
        """A file of the machine, as this process reaches it. Absolute links inside are not followed."""
        return Path(f"/proc/{self.leader}/root") / str(inside).lstrip("/")

    def write(self, inside, content, mode=0o644):
        """Writes a file, and the folders above it."""
        path = self.path(inside)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        path.chmod(mode)

    def copy(self, outside, inside, mode=0o644):
        self.write(inside, Path(outside).read_bytes(), mode)

    def unit(self, name, text):
        """Writes a unit and has systemd read it."""
        self.write(f"/etc/systemd/system/{name}", text)
        self.systemctl("daemon-reload")

    def install(self, package):
        """Installs a .deb, or upgrades to it."""
        self.copy(package, "/tmp/package.deb")
        return self.run("dpkg", "--install", "/tmp/package.deb", check=False)


if __name__ == "__main__":
    for wanted in sys.argv[1:] or RELEASES:
        root_of(wanted)
