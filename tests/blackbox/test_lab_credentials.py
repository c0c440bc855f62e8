"""Units of a real systemd, Debian 12's and 13's: what `LoadCredential=` makes of the answers, and who a bot in a unit is.

The daemon runs as a user of its own inside the machine; every unit here is as its author would write it.
"""

import hashlib
import json

import pytest

import lab
from harness import BIN, CANARY, eventually
from lab import RELEASES, Machine

WHY_NOT = lab.why_not()
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=str(WHY_NOT))

SOCKET = "/run/keyhatch/credentials.sock"
CONFIG = """
[[source]]
name = "local"
kind = "file"
key = "file:/var/lib/keyhatch/store.key"

[[source]]
name = "slow"
kind = "vault"
address = "http://127.0.0.1:8200"
prefix = "slow/"
auth = { method = "token_file", path = "/var/lib/keyhatch/token" }
timeout = "60s"

[[bot]]
name = "slow"
match = { unit = "slow.service" }
roles = ["reader"]
credentials = { db = "slow/key" }

[[bot]]
name = "plain"
match = { user = "bot", unit = "plain.service" }
roles = ["reader"]
credentials = { db = "app/db#password" }

[[bot]]
name = "template"
match = { user = "bot", unit = "bot@*.service" }
roles = ["reader"]
credentials = { db = "app/key" }

[[bot]]
name = "dynamic"
match = { unit = "dynamic.service" }
roles = ["reader"]
credentials = { db = "app/key", none = "app/none" }

[[bot]]
name = "boot"
match = { unit = "boot.service" }
roles = ["reader"]
credentials = { db = "app/key" }

[[bot]]
name = "sliced"
match = { user = "bot", cgroup = "/bots.slice/bots-eu.slice/*" }
roles = ["reader"]

[[bot]]
name = "of-user"
match = { user = "bot", user_unit = "mine.service" }
roles = ["reader"]

[role.reader]
grants = [{ secrets = ["app/**", "slow/**"] }]
"""
KEYHATCH_SERVICE = """
[Unit]
Requires=keyhatch.socket keyhatch-admin.socket keyhatch-credentials.socket
StartLimitIntervalSec=0
[Service]
Type=notify
User=keyhatch
ExecStart=/opt/keyhatch/keyhatchd run
Sockets=keyhatch.socket keyhatch-admin.socket keyhatch-credentials.socket
FileDescriptorStoreMax=16
Restart=always
RestartSec=100ms
StateDirectory=keyhatch
StateDirectoryMode=0700
[Install]
WantedBy=multi-user.target
"""
SOCKETS = {
    "keyhatch.socket": ("bots", "/run/keyhatch/keyhatch.sock"),
    "keyhatch-admin.socket": ("admin", "/run/keyhatch-admin/admin.sock"),
    "keyhatch-credentials.socket": ("credentials", SOCKET),
}
# What a unit's program says of what it was given: a digest for each credential, and who it is.
TELL = "ExecStart=/bin/sh -c 'cd \"$CREDENTIALS_DIRECTORY\" && sha256sum * && id -u'"
PASSWORD = "CANARY-the-password"
# As systemd connects; in a shell, anyone can say so.
FORGE = f"""
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.bind("\\0deadbeef/unit/plain.service/db")
s.connect("{SOCKET}")
answer = s.makefile("rb").read()
print(len(answer), any(answer))
"""


def service(*lines, credential="db", Unit="", Install=""):
    """A unit that may be started as often as the tests do."""
    load = f"LoadCredential={credential}:{SOCKET}" if credential else ""
    # It stays, so that systemd still knows the id of its last run.
    text = "\n".join(["[Service]", "Type=oneshot", "RemainAfterExit=yes", load, *lines])
    return f"[Unit]\nStartLimitIntervalSec=0\n{Unit}\n{text}\n[Install]\n{Install}\n"


def digest(value):
    return hashlib.sha256(value.encode()).hexdigest()


@pytest.fixture(scope="module", params=RELEASES)
def machine(request):
    with Machine(request.param, nspawn=[f"--bind-ro={BIN}:/opt/keyhatch"]) as machine:
        for user in ("keyhatch", "bot", "other"):
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
        machine.unit("keyhatch.service", KEYHATCH_SERVICE)
        files = "--store /var/lib/keyhatch/store --key file:/var/lib/keyhatch/store.key"
        machine.sh("install -d -m 0700 -o keyhatch /var/lib/keyhatch")
        for name, value in (("init", None), ("app/db", json.dumps({"password": PASSWORD})), ("app/key", CANARY)):
            verb = "init" if value is None else f"put {name}"
            machine.sh(f"runuser -u keyhatch -- /opt/keyhatch/keyhatchd store {verb} {files}", stdin=value or "")
        machine.sh("echo CANARY-token > /var/lib/keyhatch/token")
        machine.sh("chown keyhatch /var/lib/keyhatch/token && chmod 0600 /var/lib/keyhatch/token")
        machine.systemctl("enable", "--now", *SOCKETS, "keyhatch.service")
        yield machine


def told(machine, unit):
    """What the program of a unit's last run has printed, and the id of that run."""
    run = machine.show(unit, "InvocationID")
    return [entry["MESSAGE"] for entry in machine.journal(f"_SYSTEMD_INVOCATION_ID={run}", "-t", "sh")], run


def records(machine, **fields):
    """What Keyhatch has told journald of its credentials socket and of the bots', the last last."""
    status = lambda: json.loads(machine.run("/opt/keyhatch/keyhatchd", "status", "--json").stdout)
    eventually(lambda: status()["audit"]["journald_behind"] == 0)
    match = [f"KEYHATCH_{name.upper()}={value}" for name, value in fields.items()]
    return machine.journal("-u", "keyhatch", "KEYHATCH_EVENT=secret.read", *match)


def last(machine, **fields):
    return records(machine, **fields)[-1]


def start_refused(machine, unit):
    """The start fails as systemd says of credentials, and the program never ran."""
    assert machine.systemctl("restart", unit, check=False).returncode != 0
    assert machine.show(unit, "ExecMainStatus") == "243", machine.systemctl("status", unit, check=False)
    assert told(machine, unit)[0] == []


GIVEN = {
    "plain.service": (["User=bot"], PASSWORD, "plain"),
    "bot@7.service": (["User=bot", "Slice=bots.slice"], CANARY, "template"),
    "dynamic.service": (["DynamicUser=yes", "ProtectSystem=strict", "PrivateNetwork=yes"], CANARY, "dynamic"),
}


@pytest.mark.parametrize("unit", GIVEN)
def test_an_unmodified_unit_is_given_its_secret_and_the_record_names_its_run(machine, unit):
    lines, value, bot = GIVEN[unit]
    machine.unit(unit.replace("7", ""), service(*lines, TELL))
    machine.systemctl("restart", unit)
    (line, uid), run = told(machine, unit)
    assert line == f"{digest(value)}  db" and uid != "0"
    record = last(machine, surface="credential", decision="allow")
    assert (record["KEYHATCH_BOT"], record["KEYHATCH_PEER_UNIT"]) == (bot, unit)
    assert (record["KEYHATCH_PEER_UID"], record["KEYHATCH_CREDENTIAL"], record["PRIORITY"]) == ("0", "db", "6")
    assert record["KEYHATCH_PEER_INVOCATION_ID"] == run != ""


def test_a_unit_that_starts_at_boot_is_given_its_secret(machine):
    machine.unit("boot.service", service("DynamicUser=yes", TELL, Install="WantedBy=multi-user.target"))
    machine.systemctl("enable", "boot.service")
    machine.reboot()
    assert told(machine, "boot.service")[0][0] == f"{digest(CANARY)}  db"
    assert last(machine, surface="credential", peer_unit="boot.service")["KEYHATCH_DECISION"] == "allow"


def test_a_unit_that_starts_while_the_agent_hangs_and_is_killed_is_given_its_secret_by_the_next(machine):
    machine.unit("dynamic.service", service("DynamicUser=yes", TELL))
    machine.systemctl("kill", "-s", "STOP", "keyhatch.service")
    machine.systemctl("restart", "--no-block", "dynamic.service")
    waiting = "grep -c ' 00000000 .* @[0-9a-f]*/unit/dynamic.service/db' /proc/net/unix"
    eventually(lambda: machine.sh(waiting, check=False).stdout == "1\n")
    machine.systemctl("kill", "-s", "KILL", "keyhatch.service")
    eventually(lambda: machine.show("dynamic.service", "ActiveState") == "active")
    assert told(machine, "dynamic.service")[0][0] == f"{digest(CANARY)}  db"


# It takes connections and says nothing.
SILENT = """[Service]
ExecStart=python3 -c 'import socket, time; s = socket.create_server(("127.0.0.1", 8200)); time.sleep(1e6)'
"""


def test_an_agent_that_is_killed_while_it_answers_leaves_no_unit_with_an_empty_credential(machine):
    machine.unit("silent.service", SILENT)
    machine.unit("slow.service", service("DynamicUser=yes", TELL))
    machine.systemctl("start", "silent.service")
    machine.systemctl("restart", "keyhatch.service")
    machine.systemctl("restart", "--no-block", "slow.service")
    # Connected, and with an inode: accepted.
    accepted = f"grep -cE ' 03 +[1-9][0-9]* {SOCKET}' /proc/net/unix"
    eventually(lambda: machine.sh(accepted, check=False).stdout == "1\n")
    machine.systemctl("kill", "-s", "KILL", "keyhatch.service")
    eventually(lambda: machine.show("slow.service", "ActiveState") == "failed")
    assert machine.show("slow.service", "ExecMainStatus") == "243"
    assert told(machine, "slow.service")[0] == []
    eventually(lambda: machine.show("keyhatch.service", "NFileDescriptorStore") == "0")


def test_a_bot_bound_to_the_socket_outlives_the_agent_and_not_the_socket(machine):
    """The example of docs/units.md."""
    machine.unit("plain.service", service("User=bot", TELL, Unit="BindsTo=keyhatch.socket\nAfter=keyhatch.socket"))
    machine.systemctl("restart", "plain.service")
    run = machine.show("plain.service", "InvocationID")
    machine.systemctl("kill", "-s", "KILL", "keyhatch.service")
    machine.systemctl("restart", "keyhatch.service")
    assert machine.show("plain.service", "ActiveState") == "active" and machine.show("plain.service", "InvocationID") == run
    machine.systemctl("stop", "keyhatch.service", "keyhatch.socket")
    eventually(lambda: machine.show("plain.service", "ActiveState") == "inactive")
    # Its start brings the socket with it, and that the agent.
    machine.systemctl("start", "plain.service")
    assert machine.show("keyhatch.service", "ActiveState") == machine.show("keyhatch.socket", "ActiveState") == "active"


def test_another_unit_that_asks_for_the_same_id_fails_and_never_starts_with_an_empty_one(machine):
    machine.unit("thief.service", service("User=bot", TELL))
    start_refused(machine, "thief.service")
    record = last(machine, surface="credential", peer_unit="thief.service")
    assert (record["KEYHATCH_DECISION"], record["KEYHATCH_REASON"], record["PRIORITY"]) == ("deny", "no_bot", "4")
    assert "thief.service" in record["MESSAGE"] and "nearest bot" in record["MESSAGE"]


def test_ids_that_it_has_not_and_secrets_that_are_not_there_fail_the_unit_too(machine):
    for id, reason in (("unknown", "no_grant"), ("none", "not_found")):
        machine.unit("dynamic.service", service("DynamicUser=yes", TELL, credential=id))
        start_refused(machine, "dynamic.service")
        assert last(machine, surface="credential", decision="deny")["KEYHATCH_REASON"] == reason


def test_a_shell_with_a_forged_address_is_refused_for_root_and_for_the_bots_user(machine):
    for user, why in (("root", "in no unit"), ("bot", "only root")):
        answer = machine.run("runuser", "-u", user, "--", "python3", "-c", FORGE).stdout
        length, any_byte = answer.split()
        assert int(length) > 1 << 20 and any_byte == "False"
        record = last(machine, surface="credential", decision="deny")
        assert record["KEYHATCH_REASON"] == "no_bot" and why in record["MESSAGE"], record
    # Root in a unit of its own, such as a login or a transient one, is in that unit.
    machine.write("/root/forge.py", FORGE)
    machine.run("systemd-run", "--wait", "--collect", "--unit=shell", "python3", "/root/forge.py")
    record = last(machine, surface="credential", peer_unit="shell.service")
    assert record["KEYHATCH_REASON"] == "no_bot" and '"plain.service"' in record["MESSAGE"]


def test_sealed_a_unit_fails_and_starts_with_the_value_of_then_once_it_is_unsealed(machine):
    ops = lambda verb, **kwargs: machine.sh(f"/opt/keyhatch/keyhatchd {verb}", **kwargs)
    machine.unit("dynamic.service", service("DynamicUser=yes", TELL))
    ops("seal")
    start_refused(machine, "dynamic.service")
    assert last(machine, surface="credential", decision="deny")["KEYHATCH_REASON"] == "sealed"
    ops("unseal")
    ops("store put app/key", stdin="CANARY-the-next-one")
    machine.systemctl("restart", "dynamic.service")
    assert told(machine, "dynamic.service")[0][0] == f"{digest('CANARY-the-next-one')}  db"
    ops("store put app/key", stdin=CANARY)


def uid_of(machine, user):
    return machine.run("id", "-u", user).stdout.strip()


def user_systemctl(machine, user, *args, **kwargs):
    runtime = f"XDG_RUNTIME_DIR=/run/user/{uid_of(machine, user)}"
    return machine.run("runuser", "-u", user, "--", "env", runtime, "systemctl", "--user", *args, **kwargs)


def user_unit(machine, user, name, text):
    machine.write(f"/home/{user}/.config/systemd/user/{name}", text)
    user_systemctl(machine, user, "daemon-reload")


ASK = "ExecStart=/bin/sh -c '/opt/keyhatch/keyhatch get app/key | sha256sum; /opt/keyhatch/keyhatch whoami --json'"
SELECTED = {
    "plain.service": (["User=bot"], "plain"),
    "bot@7.service": (["User=bot", "Slice=bots.slice"], "template"),
    "dynamic.service": (["DynamicUser=yes"], "dynamic"),
    "any.service": (["User=bot", "Slice=bots-eu.slice"], "sliced"),
    # The same user in another unit, and another user in the same unit.
    "thief.service": (["User=bot"], None),
    "bot@8.service": (["User=other", "Slice=bots.slice"], None),
}


def test_bots_in_units_of_all_kinds_are_told_apart(machine):
    for unit, (lines, bot) in SELECTED.items():
        machine.unit(unit.replace("7", "").replace("8", ""), service(*lines, ASK, credential=None))
        machine.systemctl("restart", unit)
        (out, *_, who), run = told(machine, unit)
        who = json.loads(who)
        assert (who["unit"], who["bot"]) == (unit, bot)
        assert (out == f"{digest(CANARY)}  -") == (bot is not None)
        record = last(machine, surface="native", peer_unit=unit)
        assert record["KEYHATCH_DECISION"] == ("allow" if bot else "deny")
        assert record["KEYHATCH_PEER_INVOCATION_ID"] == run


def test_a_users_own_units_are_that_users_alone_and_systemds_credentials_are_not_for_them(machine):
    for user in ("bot", "other"):
        machine.systemctl("start", f"user@{uid_of(machine, user)}.service")
    for user, unit, bot in (("bot", "mine.service", "of-user"), ("bot", "else.service", None), ("other", "mine.service", None)):
        user_unit(machine, user, unit, service(ASK, credential=None))
        user_systemctl(machine, user, "restart", unit)
        uid = uid_of(machine, user)
        record = last(machine, surface="native", peer_uid=uid)
        assert record.get("KEYHATCH_BOT") == bot and record["KEYHATCH_PEER_UNIT"] == f"user@{uid}.service"
        # The run is that of the system's unit: a user's own units are the user's own word.
        assert record["KEYHATCH_PEER_INVOCATION_ID"] == machine.show(f"user@{uid}.service", "InvocationID")
    user_unit(machine, "bot", "plain.service", service(TELL))
    done = user_systemctl(machine, "bot", "restart", "plain.service", check=False)
    shown = user_systemctl(machine, "bot", "show", "--value", "-p", "ExecMainStatus", "plain.service").stdout
    assert done.returncode != 0 and shown == "243\n"
    assert "only root" in last(machine, surface="credential", decision="deny")["MESSAGE"]
