"""Restarts under a real systemd, Debian 12's and 13's: in order, by kill, and by the watchdog of a daemon that hangs."""

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
match = { user = "bot", unit = "bot@*.service" }
roles = ["reader"]
[role.reader]
grants = [{ secrets = ["app/**"] }]
"""
SOCKETS = {"keyhatch.socket": ("bots", "/run/keyhatch/keyhatch.sock"), "keyhatch-admin.socket": ("admin", "/run/keyhatch-admin/admin.sock")}
SERVICE = """
[Unit]
Requires=keyhatch.socket keyhatch-admin.socket
StartLimitIntervalSec=0
[Service]
Type=notify
User=keyhatch
ExecStart=/opt/keyhatch/keyhatchd run
ExecReload=/opt/keyhatch/keyhatchd reload
Sockets=keyhatch.socket keyhatch-admin.socket
WatchdogSec=2s
Restart=always
RestartSec=10ms
StateDirectory=keyhatch
StateDirectoryMode=0700
"""
# Reads on a new connection each, with one more try; writes what it counted, and the longest, until it is told to end.
BOT = f"""
import json, os, signal, socket, sys, time
going = []
signal.signal(signal.SIGTERM, lambda *_: going.append(1))
def read():
    with socket.socket(socket.AF_UNIX) as bot:
        bot.settimeout(30)
        bot.connect("/run/keyhatch/keyhatch.sock")
        bot.sendall(b"GET /v1/secrets/app/key HTTP/1.1\\r\\nHost: x\\r\\nAccept: application/octet-stream\\r\\nConnection: close\\r\\n\\r\\n")
        data = b""
        while more := bot.recv(65536):
            data += more
    head, end, body = data.partition(b"\\r\\n\\r\\n")
    if not end:
        raise ConnectionResetError
    return body
counts = dict(reads=0, failed=[], again=0, longest=0)
place = sys.argv[1]
while not going:
    begin = time.monotonic()
    for attempt in range(2):
        try:
            wrong = [] if (body := read()) == b"{CANARY}" else [repr(body)]
            break
        except OSError as error:
            wrong = [repr(error)]
            counts["again"] += 1
    took = time.monotonic() - begin
    counts["reads"] += 1
    counts["failed"] += wrong
    counts["longest"] = max(counts["longest"], took * 1000)
    with open(place + ".new", "w") as out:
        json.dump(counts, out)
    os.rename(place + ".new", place)
    time.sleep(max(0, 0.008 - took))
"""
BOTS = range(4)


@pytest.fixture(scope="module", params=RELEASES)
def machine(request):
    with Machine(request.param, nspawn=[f"--bind-ro={BIN}:/opt/keyhatch"]) as machine:
        for user in ("keyhatch", "bot"):
            machine.run("useradd", "--create-home", "--shell", "/bin/sh", user)
        machine.write("/etc/keyhatch/keyhatch.toml", CONFIG)
        for unit, (name, path) in SOCKETS.items():
            machine.write(f"/etc/systemd/system/{unit}", f"""
[Socket]
ListenStream={path}
FileDescriptorName={name}
Service=keyhatch.service
[Install]
WantedBy=sockets.target
""")
        machine.write("/opt/bot.py", BOT)
        machine.write("/etc/systemd/system/bot@.service", """
[Service]
User=bot
RuntimeDirectory=bot-%i
ExecStart=python3 /opt/bot.py /run/bot-%i/counts
""")
        machine.unit("keyhatch.service", SERVICE)
        files = "--store /var/lib/keyhatch/store --key file:/var/lib/keyhatch/store.key"
        machine.sh("install -d -m 0700 -o keyhatch /var/lib/keyhatch")
        machine.sh(f"runuser -u keyhatch -- /opt/keyhatch/keyhatchd store init {files}")
        machine.sh(f"runuser -u keyhatch -- /opt/keyhatch/keyhatchd store put app/key {files}", stdin=CANARY)
        # The service is not started: the first bot does that.
        machine.systemctl("enable", "--now", *SOCKETS)
        machine.systemctl("start", *(f"bot@{at}" for at in BOTS))
        yield machine


def counts(machine):
    return [json.loads(machine.path(f"/run/bot-{at}/counts").read_text()) for at in BOTS]


def main_pid(machine):
    return int(machine.show("keyhatch", "MainPID"))


def go_on(machine):
    """Every bot reads on."""
    before = [one["reads"] for one in counts(machine)]
    eventually(lambda: all(now["reads"] > then + 5 for now, then in zip(counts(machine), before)), 60)


def test_restarts_kills_and_a_hang_fail_no_read(machine):
    eventually(lambda: counts(machine), 60)
    assert machine.show("keyhatch", "StatusText").startswith("Serving: 1 secrets of 1 sources for 1 bots")
    for how, times in (("restart", 20), ("kill", 10), ("hang", 1)):
        for _ in range(times):
            pid = main_pid(machine)
            if how == "restart":
                machine.systemctl("restart", "keyhatch")
            else:
                machine.systemctl("kill", "-s", {"kill": "KILL", "hang": "STOP"}[how], "keyhatch")
            eventually(lambda: main_pid(machine) not in (0, pid), 60)
            go_on(machine)
        told = counts(machine)
        print(f"{machine.release}: {how} {times} times; {sum(one['reads'] for one in told)} reads, "
              f"{sum(one['again'] for one in told)} second tries, longest stall {max(one['longest'] for one in told):.0f} ms")
        assert [one["failed"] for one in told] == [[]] * len(BOTS)
        if how == "restart":
            assert [one["again"] for one in told] == [0] * len(BOTS)
    # It was the watchdog that ended the one that hung.
    assert any("watchdog" in entry["MESSAGE"].lower() for entry in machine.journal("-u", "keyhatch", "_PID=1"))
    machine.run("/opt/keyhatch/keyhatchd", "audit", "verify", "--dir", "/var/lib/keyhatch/audit")
    machine.systemctl("stop", *(f"bot@{at}" for at in BOTS))

    # And all of it is in the journal.
    def numbers():
        told = [(int(entry["KEYHATCH_SEQ"]), int(entry.get("KEYHATCH_SEQ_LAST", entry["KEYHATCH_SEQ"])))
                for entry in machine.journal("-u", "keyhatch", "-t", "keyhatch")]
        return {number for first, last in told for number in range(first, last + 1)}

    last = json.loads(machine.run("/opt/keyhatch/keyhatchd", "status", "--json").stdout)["audit"]["seq"]
    eventually(lambda: set(range(1, last + 1)) <= numbers(), 60)


def test_a_reload_waits_and_fails_where_it_is_refused(machine):
    machine.systemctl("reload", "keyhatch")
    assert machine.show("keyhatch", "ActiveState") == "active"
    machine.write("/etc/keyhatch/keyhatch.toml", CONFIG + "\nnonsense = 1\n")
    refused = machine.systemctl("reload", "keyhatch", check=False)
    assert refused.returncode != 0 and machine.show("keyhatch", "ActiveState") == "active"
    machine.write("/etc/keyhatch/keyhatch.toml", CONFIG)
    machine.systemctl("reload", "keyhatch")
    # By signal, the daemon says itself that it is reloading and when it is done.
    machine.systemctl("kill", "-s", "HUP", "keyhatch")
    eventually(lambda: machine.show("keyhatch", "SubState") == "running")
