"""Restarts of the package's own units, under Debian 12's and 13's systemd: in order, by kill, by an upgrade, and by the
watchdog of a daemon that hangs."""

import json

import pytest

import lab
from harness import CANARY, eventually
from lab import RELEASES, Machine
from test_package import made

WHY_NOT = lab.why_not()
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=str(WHY_NOT))

CONFIG = """
[[bot]]
name = "bot"
match = { user = "bot", unit = "bot@*.service" }
roles = ["reader"]
[role.reader]
grants = [{ secrets = ["app/**"] }]
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
SECRETS = 1000


@pytest.fixture(scope="module")
def deb():
    return made("deb")


@pytest.fixture(scope="module", params=RELEASES)
def machine(request, deb):
    with Machine(request.param) as machine:
        assert machine.install(deb).returncode == 0
        machine.run("useradd", "--create-home", "--shell", "/bin/sh", "bot")
        machine.write("/etc/keyhatch/keyhatch.toml", CONFIG)
        machine.write("/opt/bot.py", BOT)
        machine.unit("bot@.service", """
[Service]
User=bot
RuntimeDirectory=bot-%i
ExecStart=python3 /opt/bot.py /run/bot-%i/counts
""")
        machine.systemctl("enable", "--now", "keyhatch.socket")
        machine.run("keyhatchd", "store", "put", "app/key", stdin=CANARY)
        others = {f"app/other-{at}": "CANARY" * 20 for at in range(SECRETS - 1)}
        machine.run("keyhatchd", "store", "import", "--from", "json", stdin=json.dumps(others))
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


def test_restarts_kills_upgrades_and_a_hang_fail_no_read(machine, deb):
    eventually(lambda: counts(machine), 60)
    eventually(lambda: machine.show("keyhatch", "StatusText").startswith(f"Serving: {SECRETS} secrets of 1 sources for 1 bots"))
    for how, times in (("restart", 20), ("upgrade", 3), ("kill", 10), ("hang", 1)):
        for _ in range(times):
            pid = main_pid(machine)
            if how == "restart":
                machine.systemctl("restart", "keyhatch")
            elif how == "upgrade":
                assert machine.install(deb).returncode == 0
            else:
                machine.systemctl("kill", "-s", {"kill": "KILL", "hang": "STOP"}[how], "keyhatch")
            eventually(lambda: main_pid(machine) not in (0, pid), 60)
            go_on(machine)
        told = counts(machine)
        print(f"{machine.release}: {how} {times} times; {sum(one['reads'] for one in told)} reads, "
              f"{sum(one['again'] for one in told)} second tries, longest stall {max(one['longest'] for one in told):.0f} ms")
        assert [one["failed"] for one in told] == [[]] * len(BOTS)
        if how in ("restart", "upgrade"):
            assert [one["again"] for one in told] == [0] * len(BOTS)
    # It was the watchdog that ended the one that hung.
    assert any("watchdog" in entry["MESSAGE"].lower() for entry in machine.journal("-u", "keyhatch", "_PID=1"))
    machine.run("keyhatchd", "audit", "verify", "--dir", "/var/lib/keyhatch/audit")
    machine.systemctl("stop", *(f"bot@{at}" for at in BOTS))

    # And all of it is in the journal.
    def numbers():
        told = [(int(entry["KEYHATCH_SEQ"]), int(entry.get("KEYHATCH_SEQ_LAST", entry["KEYHATCH_SEQ"])))
                for entry in machine.journal("-u", "keyhatch", "-t", "keyhatch")]
        return {number for first, last in told for number in range(first, last + 1)}

    last = json.loads(machine.run("keyhatchd", "status", "--json").stdout)["audit"]["seq"]
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
