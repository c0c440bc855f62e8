"""The audit off the host, with systemd's own parts: systemd-journal-upload sends, systemd-journal-remote keeps."""

import json

import pytest

import lab
from harness import BIN, CANARY, eventually
from lab import RELEASES, Machine

WHY_NOT = lab.why_not()
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=str(WHY_NOT))
CONFIG = """
[[source]]
name = "local"
kind = "file"
key = "file:/var/lib/keyhatch/store.key"

[[bot]]
name = "bot"
match = { user = "bot" }
roles = ["reader"]
[role.reader]
grants = [{ secrets = ["app/**"] }]
"""
FILES = "--store /var/lib/keyhatch/store --key file:/var/lib/keyhatch/store.key"
SERVICE = """
[Service]
Type=notify
User=keyhatch
ExecStart=/opt/keyhatch/keyhatchd run
StateDirectory=keyhatch
StateDirectoryMode=0700
RuntimeDirectory=keyhatch keyhatch-admin
"""
REMOTE = "/etc/systemd/system/systemd-journal-remote.service.d/http.conf"
RECEIVER = "[Service]\nExecStart=\nExecStart=/lib/systemd/systemd-journal-remote --listen-http=-3 --output=/var/log/journal/remote/\n"
SENDER = "/etc/systemd/system/systemd-journal-upload.service.d/on.conf"
FOR_EVER = "[Unit]\nStartLimitIntervalSec=0\n[Service]\nRestart=always\nRestartSec=1\n"
UPLOAD = "/etc/systemd/journal-upload.conf"


@pytest.fixture(params=RELEASES)
def machine(request):
    with Machine(request.param, nspawn=[f"--bind-ro={BIN}:/opt/keyhatch"]) as machine:
        for user in ("keyhatch", "bot"):
            machine.run("useradd", "--create-home", "--shell", "/bin/sh", user)
        machine.write("/etc/keyhatch/keyhatch.toml", CONFIG)
        machine.sh("install -d -m 0700 -o keyhatch /var/lib/keyhatch")
        machine.sh(f"runuser -u keyhatch -- /opt/keyhatch/keyhatchd store init {FILES}")
        machine.sh(f"runuser -u keyhatch -- /opt/keyhatch/keyhatchd store put app/key {FILES}", stdin=CANARY)
        machine.unit("keyhatch.service", SERVICE)
        machine.systemctl("start", "keyhatch")
        yield machine


def ask(machine, times):
    for _ in range(times):
        machine.sh("runuser -u bot -- /opt/keyhatch/keyhatch get app/key >/dev/null")
    machine.sh("runuser -u bot -- /opt/keyhatch/keyhatch get app/none", check=False)


def ours(told):
    """Entries by number, with all that is ours in them."""
    return {
        int(entry["KEYHATCH_SEQ"]): {key: value for key, value in entry.items() if key.startswith("KEYHATCH_")
                                     or key in ("MESSAGE", "MESSAGE_ID", "PRIORITY", "SYSLOG_IDENTIFIER", "_SYSTEMD_UNIT")}
        for entry in told
    }


def received(machine):
    told = machine.run("journalctl", "-D", "/var/log/journal/remote", "-o", "json", "--all", "--no-pager", "-q",
                       "_SYSTEMD_UNIT=keyhatch.service", "SYSLOG_IDENTIFIER=keyhatch", check=False).stdout
    return ours(map(json.loads, told.splitlines()))


def test_every_record_arrives_with_its_fields_also_those_of_an_outage(machine):
    machine.write(REMOTE, RECEIVER)
    machine.write(SENDER, FOR_EVER)
    machine.write(UPLOAD, "[Upload]\nURL=http://127.0.0.1:19532\n")
    machine.systemctl("daemon-reload")
    machine.systemctl("start", "systemd-journal-remote.socket")
    machine.systemctl("start", "systemd-journal-upload")
    ask(machine, 5)
    eventually(lambda: len(received(machine)) > 5, 60, pause=0.3)
    # The receiver is away meanwhile; the sender ends, begins anew, and goes on where it was.
    machine.systemctl("stop", "systemd-journal-remote.socket", "systemd-journal-remote.service")
    ask(machine, 5)
    eventually(lambda: int(machine.show("systemd-journal-upload", "NRestarts")) > 0, 60)
    machine.systemctl("start", "systemd-journal-remote.socket")
    last = json.loads(machine.run("/opt/keyhatch/keyhatchd", "status", "--json", "--config", "/etc/keyhatch/keyhatch.toml").stdout)["audit"]["seq"]
    numbers = set(range(1, last + 1))
    eventually(lambda: numbers <= set(received(machine)), 60, pause=0.3)
    sent = ours(machine.journal("_SYSTEMD_UNIT=keyhatch.service", "SYSLOG_IDENTIFIER=keyhatch"))
    got = received(machine)
    assert {number: got[number] for number in numbers} == {number: sent[number] for number in numbers}
    denied = [entry for entry in got.values() if entry["KEYHATCH_DECISION"] == "deny"]
    assert {entry["KEYHATCH_SECRET"] for entry in denied} == {"app/none"} and {entry["PRIORITY"] for entry in denied} == {"4"}
    assert CANARY not in json.dumps(got)
