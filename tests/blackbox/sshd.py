"""A real OpenSSH server with one account, `deploy`, that exists for it alone."""

import subprocess
from pathlib import Path

from harness import ALICE
from upstreams import Server, free_ports

CONFIG = """
ListenAddress 127.0.0.1:{port}
HostKey {dir}/host
PidFile none
UsePAM no
AuthenticationMethods publickey
"""
ACCOUNT = {"passwd": f"deploy:x:{ALICE}:{ALICE}::{{home}}:/bin/sh\n", "shadow": "deploy:*:20000::::::\n"}


def new_key(path, comment=""):
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", path], check=True)
    return {"private_key": path.read_text(), "public_key": path.with_suffix(".pub").read_text().strip()}


class Sshd(Server):
    """Lets in the keys of `authorized`; `ssh` is a folder with a client that knows it."""

    def __init__(self):
        super().__init__()
        [self.port] = free_ports(1)
        self.dir.chmod(0o755)
        self.home, self.ssh = self.dir / "home", self.dir / "bin"
        self.authorized = self.home / ".ssh" / "authorized_keys"
        self.authorized.parent.mkdir(parents=True)
        self.ssh.mkdir()
        host = new_key(self.dir / "host")["public_key"]
        (self.dir / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {host}\n")
        (self.dir / "config").write_text(f"Host db-1\n HostName 127.0.0.1\n Port {self.port}\n"
                                         f" UserKnownHostsFile {self.dir}/known_hosts\n")
        (self.ssh / "ssh").write_text(f'#!/bin/sh\nexec /usr/bin/ssh -F {self.dir}/config "$@"\n')
        (self.ssh / "ssh").chmod(0o755)
        (self.dir / "sshd_config").write_text(CONFIG.format(port=self.port, dir=self.dir))
        for file, line in ACCOUNT.items():
            (self.dir / file).write_text(Path("/etc", file).read_text() + line.format(home=self.home))

    def start(self):
        subprocess.run(["chown", "-R", f"{ALICE}:{ALICE}", self.home], check=True)
        # Its account is in no other process's /etc.
        script = f'mkdir -p /run/sshd; for file in passwd shadow; do mount --bind "{self.dir}/$file" "/etc/$file"; done; ' \
                 f'exec /usr/sbin/sshd -D -e -f "{self.dir}/sshd_config"'
        self.spawn("unshare", "-m", "sh", "-ec", script)
        self.started(lambda: "listening" in (self.dir / "log").read_text())

    def lets_in(self, private_key):
        """Whether one can really log in so."""
        key = self.dir / "key"
        key.touch(0o600)
        key.write_text(private_key)
        command = [self.ssh / "ssh", "-i", key, "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "deploy@db-1", "id -u"]
        return subprocess.run(command, capture_output=True, text=True).stdout == f"{ALICE}\n"
