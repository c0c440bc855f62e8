"""`on_rotated` on a whole machine: under the shipped unit the daemon has systemd reload or restart a unit, as far as the
shipped rule of polkit lets it."""

import json

import pytest

import lab
from harness import BIN, CANARY, ROOT, eventually
from lab import Machine

WHY_NOT = lab.why_not()
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=str(WHY_NOT))

UNITS = ROOT / "systemd"
# Each secret, the unit that uses it, and what is done with that. The rule of polkit does not name the third.
TELLS = {"app/bot": ("bot", "reload"), "app/other": ("other", "try-restart"), "app/victim": ("victim", "reload")}
SECRETS = {**TELLS, "app/second": TELLS["app/other"]}
CONFIG = """
[[source]]
name = "local"
kind = "file"
path = "/var/lib/keyhatch/store"
key = "credential:keyhatch.key"
[[bot]]
name = "root"
match = { user = "root" }
roles = ["reader", "rotator"]
[role.reader]
grants = [{ secrets = ["app/**"] }]
[role.rotator]
grants = [{ secrets = ["app/**"], actions = ["rotate"] }]
""" + "".join(f"""
[[rotation]]
secret = "{secret}"
every = "30d"
grace = "1s"
driver = {{ kind = "generate" }}
on_rotated = {{ unit = "{unit}.service", do = "{what}" }}
""" for secret, (unit, what) in SECRETS.items())
# Reads its secret at each start and reload, and keeps what it read in a line.
UNIT = """
[Service]
Type=notify
NotifyAccess=all
ExecStart=/bin/sh -c 'echo "start $(keyhatch get {secret})" >> /run/{name}; systemd-notify --ready; exec sleep infinity'
ExecReload=/bin/sh -c 'while test -e /run/hold; do sleep 0.1; done; test ! -e /run/fail && echo "reload $(keyhatch get {secret})" >> /run/{name}'
"""


@pytest.fixture(scope="module")
def machine():
    programs = [f"--bind-ro={BIN / name}:/usr/bin/{name}" for name in ("keyhatchd", "keyhatch")]
    with Machine("bookworm", nspawn=programs) as machine:
        for unit in [*UNITS.glob("*.service"), *UNITS.glob("*.socket")]:
            machine.copy(unit, f"/usr/lib/systemd/system/{unit.name}")
        for folder in ("sysusers.d", "tmpfiles.d"):
            machine.copy(UNITS / folder / "keyhatch.conf", f"/usr/lib/{folder}/keyhatch.conf")
        machine.write("/etc/keyhatch/keyhatch.toml", CONFIG)
        machine.sh("systemd-sysusers; systemd-tmpfiles --create keyhatch.conf")
        for secret, (name, _) in TELLS.items():
            machine.write(f"/etc/systemd/system/{name}.service", UNIT.format(secret=secret, name=name))
        machine.systemctl("daemon-reload")
        machine.systemctl("start", "keyhatch.service")
        for secret in SECRETS:
            machine.run("keyhatchd", "store", "put", secret, stdin=CANARY)
        machine.systemctl("start", *(name for name, _ in TELLS.values()))
        yield machine


def lines(machine, name):
    """What a unit has read so far, and at what."""
    return machine.path(f"/run/{name}").read_text().splitlines()


def records(machine, event):
    told = machine.run("keyhatchd", "audit", "query", "--event", event, "--json").stdout
    return [record for record in map(json.loads, told.splitlines()) if "unit" in record]


def value(machine, secret):
    return machine.run("keyhatch", "get", secret).stdout


def standing(machine):
    told = json.loads(machine.run("keyhatchd", "rotation", "status", "--json").stdout)["rotations"]
    return {one["secret"]: one for one in told}


def test_without_its_drop_in_the_daemon_sees_no_bus_and_says_so(machine):
    (warning,) = machine.journal("-u", "keyhatch", "-t", "keyhatchd", "--grep=on_rotated")
    assert "Permission denied" in warning["MESSAGE"] and "on-rotated.conf" in warning["MESSAGE"]


@pytest.fixture(scope="module")
def allowed(machine):
    """The machine with both of the shipped files in place."""
    machine.copy(UNITS / "on-rotated.conf", "/etc/systemd/system/keyhatch.service.d/on-rotated.conf")
    machine.copy(UNITS / "on-rotated.rules", "/etc/polkit-1/rules.d/50-keyhatch.rules")
    machine.systemctl("daemon-reload")
    machine.systemctl("restart", "keyhatch.service")
    return machine


def test_a_unit_is_reloaded_or_restarted_and_reads_the_new_value(allowed):
    for secret, (name, what) in list(TELLS.items())[:2]:
        allowed.run("keyhatch", "rotate", secret)
        (record,) = eventually(lambda: [one for one in records(allowed, "secret.watch") if one["secret"] == secret], 30)
        assert (record["unit"], record["do"], record["surface"]) == (f"{name}.service", what, "systemd")
        wanted = [f"start {CANARY}", f"{what.removeprefix('try-re')} {value(allowed, secret)}"]
        eventually(lambda: lines(allowed, name) == wanted)
        assert value(allowed, secret) != CANARY
    # Whoever sets it.
    allowed.run("keyhatchd", "store", "put", "app/bot", stdin="CANARY-put")
    eventually(lambda: lines(allowed, "bot")[2:] == ["reload CANARY-put"])
    # Who does not run reads it at the start.
    allowed.systemctl("stop", "bot")
    allowed.run("keyhatchd", "store", "put", "app/bot", stdin="CANARY-again")
    eventually(lambda: len(records(allowed, "secret.watch")) == 4)
    allowed.systemctl("start", "bot")
    assert lines(allowed, "bot")[3:] == ["start CANARY-again"] and not records(allowed, "alert.*")


def test_what_changes_together_is_one_restart(allowed):
    before = len(lines(allowed, "other"))
    for secret in ("app/other", "app/second", "app/other"):
        allowed.run("keyhatchd", "store", "put", secret, stdin="CANARY-together")
    eventually(lambda: lines(allowed, "other")[before:])
    told = lambda: [one["secret"] for one in records(allowed, "secret.watch")[-2:]]
    assert sorted(told()) == ["app/other", "app/second"]
    # None is left to be told: the next one that is told of is the next one that changes.
    allowed.run("keyhatchd", "store", "put", "app/second", stdin="CANARY-after")
    eventually(lambda: lines(allowed, "other")[before + 1:])
    assert lines(allowed, "other")[before:] == ["start CANARY-together"] * 2 and told()[-1] == "app/second"


def test_a_daemon_that_is_killed_meanwhile_tells_it_again(allowed):
    allowed.write("/run/hold", "")
    allowed.run("keyhatchd", "store", "put", "app/bot", stdin="CANARY-killed")
    eventually(lambda: allowed.show("bot.service", "ActiveState") == "reloading")
    allowed.systemctl("kill", "--signal=KILL", "keyhatch.service")
    allowed.run("rm", "/run/hold")
    watched = lambda: [one["version"] for one in records(allowed, "secret.watch") if one["secret"] == "app/bot"]
    version = json.loads(allowed.run("keyhatch", "get", "app/bot", "--json").stdout)["version"]
    eventually(lambda: watched()[-1] == version)
    assert set(lines(allowed, "bot")[4:]) == {"reload CANARY-killed"}


def test_what_fails_or_is_not_allowed_is_told_and_the_rotation_is_done(allowed):
    allowed.write("/run/fail", "")
    before = {name: lines(allowed, name) for name in ("bot", "victim")}
    eventually(lambda: standing(allowed)["app/bot"]["state"] == "waiting")
    for secret in ("app/bot", "app/victim"):
        old = value(allowed, secret)
        allowed.run("keyhatch", "rotate", secret)
        eventually(lambda: value(allowed, secret) != old)
    # Nothing waits for the unit.
    eventually(lambda: {one["state"] for one in standing(allowed).values()} == {"waiting"})
    alerts = eventually(lambda: len(found := records(allowed, "alert.rotation_failed")) == 2 and found, 60)
    why = {record["unit"]: (record["step"], record["why"]) for record in alerts}
    assert why["bot.service"][0] == "on_rotated" and 'ended as "failed"' in why["bot.service"][1], why
    assert "polkit" in why["victim.service"][1], why
    assert before == {name: lines(allowed, name) for name in ("bot", "victim")}
    assert "reload of bot.service" in standing(allowed)["app/bot"]["not_told"]
    assert "! not told of it: " in allowed.run("keyhatchd", "rotation", "status").stdout


def test_a_restart_that_fails_is_told_and_not_asked_for_again(allowed):
    allowed.sh("sed -i '/^ExecStart=/i ExecStartPre=/bin/sh -c \"echo try >> /run/tries; exit 1\"' /etc/systemd/system/other.service")
    allowed.systemctl("daemon-reload")
    allowed.run("keyhatchd", "store", "put", "app/other", stdin="CANARY-fails")
    failed = lambda: [one for one in records(allowed, "alert.rotation_failed") if one["unit"] == "other.service"]
    (alert,) = eventually(failed, 30)
    assert alert["do"] == "try-restart" and 'ended as "failed"' in alert["why"]
    assert lines(allowed, "tries") == ["try"] and allowed.show("other.service", "ActiveState") == "failed"


def test_the_daemons_user_may_do_nothing_else(allowed):
    ask = ["runuser", "-u", "keyhatch", "--", "busctl", "call", "org.freedesktop.systemd1", "/org/freedesktop/systemd1",
           "org.freedesktop.systemd1.Manager"]
    for method, unit in [("StopUnit", "bot"), ("RestartUnit", "bot"), ("TryRestartUnit", "bot"), ("ReloadUnit", "other")]:
        refused = allowed.run(*ask, method, "ss", f"{unit}.service", "replace", check=False)
        assert refused.returncode != 0 and "authentication required" in refused.stderr, (method, unit, refused)
    assert allowed.run(*ask, "TryRestartUnit", "ss", "other.service", "replace").stdout
