"""The units as they are shipped, under Debian 12's and 13's systemd: at boot, on a host that fails, on an old kernel."""

import ast
import json
import re

import pytest

import lab
import old_kernel
from harness import BIN, CANARY, ROOT, eventually
from lab import RELEASES, Machine

WHY_NOT = lab.why_not()
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=str(WHY_NOT))

UNITS = ROOT / "systemd"
DROPINS = "/etc/systemd/system/keyhatch.service.d"
CONFIG = """
[[source]]
name = "local"
kind = "file"
path = "/var/lib/keyhatch/store"
key = "credential:keyhatch.key"

[[bot]]
name = "bot"
match = { user = "bot" }
roles = ["reader"]

[[bot]]
name = "early"
match = { unit = "early.service" }
roles = ["reader"]

[[bot]]
name = "job"
match = { unit = "job.service" }
roles = ["reader"]
credentials = { db = "app/key" }

[role.reader]
grants = [{ secrets = ["app/**"] }]
"""
ASK = "/usr/bin/keyhatch get app/key"
BOT_UNITS = {
    # Nothing but the socket's own target stands between it and the socket.
    "early.service": f"""
[Unit]
DefaultDependencies=no
After=sockets.target
[Service]
Type=oneshot
RemainAfterExit=yes
DynamicUser=yes
ExecStart={ASK}
[Install]
WantedBy=multi-user.target
""",
    "job.service": f"""
[Service]
Type=oneshot
RemainAfterExit=yes
DynamicUser=yes
LoadCredential=db:/run/keyhatch/credentials.sock
ExecStart={ASK}
ExecStart=cat ${{CREDENTIALS_DIRECTORY}}/db
""",
    "job.timer": """
[Timer]
OnBootSec=1s
AccuracySec=100ms
[Install]
WantedBy=timers.target
""",
}
# Reads so often on one connection, and says how often it was answered what.
READS = """
import collections, http.client, socket, sys
count, path = int(sys.argv[1]), sys.argv[2]
bot = http.client.HTTPConnection("keyhatch")
bot.sock = socket.socket(socket.AF_UNIX)
bot.sock.connect("/run/keyhatch/keyhatch.sock")
told = collections.Counter()
for _ in range(count):
    bot.request("GET", path)
    answer = bot.getresponse()
    body = answer.read()
    told[answer.status] += 1
print(body.decode() if count == 1 else dict(told))
"""
# A few hundred lines are a flood to this journald, whoever writes them.
JOURNALD = "[Journal]\nStorage=persistent\nRateLimitIntervalSec=30s\nRateLimitBurst=200\nSystemMaxUse=64M\nSystemMaxFileSize=1M\nSystemKeepFree=64K\n"


@pytest.fixture(scope="module", params=RELEASES)
def machine(request):
    programs = [f"--bind-ro={BIN / name}:/usr/bin/{name}" for name in ("keyhatchd", "keyhatch")]
    with Machine(request.param, nspawn=programs) as machine:
        for unit in [*UNITS.glob("*.service"), *UNITS.glob("*.socket")]:
            machine.copy(unit, f"/usr/lib/systemd/system/{unit.name}")
        for folder in ("sysusers.d", "tmpfiles.d"):
            machine.copy(UNITS / folder / "keyhatch.conf", f"/usr/lib/{folder}/keyhatch.conf")
        machine.copy(old_kernel.__file__, "/opt/old_kernel.py")
        machine.write("/opt/reads.py", READS)
        machine.write("/etc/systemd/journald.conf.d/lab.conf", JOURNALD)
        machine.write("/etc/keyhatch/keyhatch.toml", CONFIG)
        for name, text in BOT_UNITS.items():
            machine.write(f"/etc/systemd/system/{name}", text)
        machine.sh("mkdir -p /var/log/journal; systemd-sysusers; systemd-tmpfiles --create keyhatch.conf; systemctl daemon-reload")
        for user in ("bot", "other"):
            machine.run("useradd", user)
        machine.systemctl("enable", "keyhatch.service", "early.service", "job.timer")
        started = machine.systemctl("start", "keyhatch.service", check=False)
        assert started.returncode == 0, machine.run("journalctl", "-u", "keyhatch*", "-n", "12", "-o", "cat").stdout
        machine.run("keyhatchd", "store", "put", "app/key", stdin=CANARY)
        machine.reboot()
        yield machine


def reads(machine, count, user="bot", path="/v1/secrets/app/key"):
    """How often a bot was answered what."""
    told = machine.run("runuser", "-u", user, "--", "python3", "/opt/reads.py", count, path).stdout
    return json.loads(told) if count == 1 else ast.literal_eval(told)


def status(machine):
    return json.loads(machine.run("keyhatchd", "status", "--json").stdout)


def last_number(machine):
    return status(machine)["audit"]["seq"]


def numbers(machine):
    """Every record's number that the journal has."""
    told = set()
    for entry in machine.journal("-u", "keyhatch", "-t", "keyhatch"):
        first = int(entry["KEYHATCH_SEQ"])
        told |= set(range(first, int(entry.get("KEYHATCH_SEQ_LAST", first)) + 1))
    return told


def told_all(machine, first, last):
    eventually(lambda: set(range(first, last + 1)) <= numbers(machine), 30, pause=0.5)


def main_pid(machine):
    return machine.show("keyhatch.service", "MainPID")


def drop_in(machine, name, text=None):
    """Adds lines to the shipped unit, or takes them away."""
    if text is None:
        machine.path(f"{DROPINS}/{name}.conf").unlink()
    else:
        machine.write(f"{DROPINS}/{name}.conf", text)
    machine.systemctl("daemon-reload")
    machine.systemctl("reset-failed", "keyhatch.service", check=False)
    return machine.systemctl("restart", "keyhatch.service", check=False)


def test_at_boot_a_unit_after_the_sockets_and_a_timers_job_read_their_secret(machine):
    for unit, outputs in (("early.service", 1), ("job.service", 2)):
        eventually(lambda: machine.show(unit, "ActiveState") in ("active", "failed"), 30)
        assert machine.show(unit, "Result") == "success", machine.systemctl("status", unit, check=False)
        run = machine.show(unit, "InvocationID")
        said = [entry["MESSAGE"] for entry in machine.journal(f"_SYSTEMD_INVOCATION_ID={run}", f"_SYSTEMD_UNIT={unit}")]
        assert "".join(said).count(CANARY) == outputs, said
        asked = machine.journal("-u", "keyhatch", "KEYHATCH_EVENT=secret.read", f"KEYHATCH_PEER_INVOCATION_ID={run}")
        # systemd may ask twice for one credential.
        assert len(asked) >= outputs and {entry["KEYHATCH_DECISION"] for entry in asked} == {"allow"}


def test_a_bots_own_attempt_on_the_credentials_socket_is_refused_by_the_agent_and_recorded(machine):
    ask = 'import socket; s = socket.socket(socket.AF_UNIX); s.bind("\\0f/unit/job.service/db"); ' \
          's.connect("/run/keyhatch/credentials.sock"); print(len(s.makefile("rb").read()))'
    answer = machine.run("runuser", "-u", "bot", "--", "python3", "-c", ask).stdout
    assert int(answer) > 1 << 20
    (record,) = eventually(lambda: machine.journal("-u", "keyhatch", "KEYHATCH_SURFACE=credential", "KEYHATCH_DECISION=deny"))
    assert (record["KEYHATCH_REASON"], record["PRIORITY"]) == ("no_bot", "4") and "only root" in record["MESSAGE"]
    # Each start of a unit that is under way takes one place, and a boot starts many at once.
    assert int(machine.show("keyhatch.service", "FileDescriptorStoreMax")) >= 512


# As agent/src/exec/wire.rs writes: asks for a program, says what came back.
ASK_EXEC = """
import json, socket, struct
head = json.dumps({"command": ["/usr/bin/id"], "user": None}).encode()
with socket.socket(socket.AF_UNIX) as daemon:
    daemon.connect("/run/keyhatch-exec/exec.sock")
    daemon.sendall(struct.pack("<II", len(head), 5) + head + b"input")
    answer = daemon.makefile("rb").read()
if answer:
    head, body = struct.unpack("<II", answer[:8])
    assert len(answer) == 8 + head + body
    print(answer[8 : 8 + head].decode())
"""


def exec_as(machine, user):
    return machine.run("runuser", "-u", user, "--", "python3", "-c", ASK_EXEC, check=False)


def test_the_exec_socket_starts_a_unit_for_the_daemon_alone(machine):
    assert machine.show("keyhatch-exec.socket", "ActiveState") == "active"
    # What the configuration does not name is not run, whoever asks.
    assert exec_as(machine, "keyhatch").stdout == '{"Err":"NotNamed"}\n'
    refused = exec_as(machine, "bot")
    assert refused.returncode != 0 and "PermissionError" in refused.stderr
    # With the file's mode out of the way the process refuses by itself.
    machine.run("chmod", "0666", "/run/keyhatch-exec/exec.sock")
    assert exec_as(machine, "bot").stdout == ""
    uid = machine.run("id", "-u", "bot").stdout.strip()
    said = lambda: [entry["MESSAGE"] for entry in machine.journal("-t", "keyhatchd", "--grep=is not the daemon")]
    eventually(lambda: any(f"uid {uid} is not the daemon's user" in line for line in said()))
    # Each run has ended, and left no unit.
    eventually(lambda: machine.systemctl("list-units", "--all", "--plain", "--no-legend", "keyhatch-exec@*").stdout == "")


def test_a_process_that_outlives_its_unit_is_told_of(machine):
    again = "while ! [ -e /run/enough ]; do python3 /opt/reads.py 1 /v1/secrets/app/key; sleep 0.2; done"
    machine.unit("leaves.service", f"""
[Service]
Type=oneshot
RemainAfterExit=yes
KillMode=process
User=bot
ExecStart=/bin/sh -c '({again}) >/dev/null 2>&1 &'
""")
    records = lambda event: [json.loads(line) for line in machine.run(
        "keyhatchd", "audit", "query", "--json", "--event", event, "--unit", "leaves.service").stdout.splitlines()]
    machine.systemctl("start", "leaves.service")
    eventually(lambda: len(records("secret.read")) > 2, 20)
    assert not records("alert.unit_stopped"), "it runs"
    machine.systemctl("stop", "leaves.service")
    [alert, *_] = eventually(lambda: records("alert.unit_stopped"), 20)
    machine.run("touch", "/run/enough")
    assert (alert["bot"], alert["secret"], alert["peer"]["unit"]) == ("bot", "app/key", "leaves.service")
    [read] = [read for read in records("secret.read") if [read["seq"]] == alert["evidence"]]
    assert read["request_id"] == alert["request_id"] and "outlived this run of leaves.service" in alert["message"]


def test_a_lost_key_is_missed_and_not_replaced_by_one_that_opens_nothing(machine):
    key = "/etc/credstore.encrypted/keyhatch.key"
    machine.run("mv", key, "/root/lost.key")
    try:
        machine.systemctl("restart", "keyhatch.service")
        assert machine.run("test", "-e", key, check=False).returncode == 1
        (source,) = status(machine)["sources"]
        assert source["state"] != "ok" and "keyhatch.key" in source["trouble"] and reads(machine, 5) == {503: 5}
    finally:
        machine.run("mv", "/root/lost.key", key)
        machine.systemctl("restart", "keyhatch.service")
    assert reads(machine, 5) == {200: 5}


def test_nothing_is_lost_while_journald_is_stopped_or_flooded(machine):
    first = last_number(machine) + 1
    journald = ["systemd-journald-dev-log.socket", "systemd-journald.socket", "systemd-journald.service"]
    machine.systemctl("stop", *journald)
    assert reads(machine, 1500) == {200: 1500}
    assert status(machine)["audit"]["journald_behind"] > 1400
    machine.systemctl("start", *journald)
    told_all(machine, first, last_number(machine))
    machine.run("systemd-run", "--unit=flood", "--remain-after-exit", "sh", "-c", "yes flood | head -n 20000")
    assert reads(machine, 1500) == {200: 1500}
    told_all(machine, first, last_number(machine))
    # Of the flood, journald has kept what its limit lets pass.
    assert len(machine.journal("_SYSTEMD_UNIT=flood.service")) < 10000


def fill(machine, folder):
    """Leaves no byte of a file system."""
    full = machine.sh(f"cat /dev/zero > {folder}/ballast", check=False)
    assert "No space left" in full.stderr, full


def test_nothing_is_lost_while_the_journals_disk_is_full(machine):
    machine.sh("mount -t tmpfs -o size=24m journal /var/log/journal && systemctl restart systemd-journald")
    machine.run("journalctl", "--flush")
    pid, first = main_pid(machine), last_number(machine) + 1
    fill(machine, "/var/log/journal")
    assert reads(machine, 3000) == {200: 3000}
    # journald had to go elsewhere.
    eventually(lambda: list(machine.path("/run/log/journal").glob("*/system.journal")))
    told_all(machine, first, last_number(machine))
    machine.run("rm", "/var/log/journal/ballast")
    machine.systemctl("restart", "systemd-journald")
    assert reads(machine, 10) == {200: 10}
    told_all(machine, first, last_number(machine))
    machine.run("keyhatchd", "audit", "verify", "--dir", "/var/lib/keyhatch/audit")
    assert main_pid(machine) == pid
    machine.sh("systemctl stop systemd-journald; umount -l /var/log/journal; systemctl start systemd-journald")


def test_a_full_var_refuses_and_passes(machine):
    machine.systemctl("stop", "keyhatch.service")
    machine.sh("cp -a /var/lib/keyhatch /root/kept && mount -t tmpfs -o size=8m,mode=0700 small /var/lib/keyhatch && "
               "chown keyhatch: /var/lib/keyhatch && cp -a /root/kept/. /var/lib/keyhatch")
    machine.systemctl("start", "keyhatch.service")
    pid = main_pid(machine)
    assert reads(machine, 10) == {200: 10}
    fill(machine, "/var/lib/keyhatch")
    eventually(lambda: 503 in reads(machine, 500), 30)
    assert reads(machine, 1, path="/v1/health")["reasons"] == ["no audit record can be kept"]
    machine.run("rm", "/var/lib/keyhatch/ballast")
    eventually(lambda: reads(machine, 10) == {200: 10}, 30)
    assert main_pid(machine) == pid
    machine.run("keyhatchd", "audit", "verify", "--dir", "/var/lib/keyhatch/audit")


def test_a_crash_leaves_no_core(machine):
    control = ["python3", "-c", "import os; os.kill(os.getpid(), 11)"]
    machine.run("systemd-run", "--wait", "--unit=control", "-p", "LimitCORE=infinity", "-p", "WorkingDirectory=/tmp", *control, check=False)
    ends = lambda unit: [e["MESSAGE"] for e in machine.journal("_PID=1", "-u", unit) if "status=11/SEGV" in e["MESSAGE"]]
    assert "code=dumped" in ends("control.service")[0]
    pid = main_pid(machine)
    # The first that is sent, and no fault of its own, only takes the runtime's handler away.
    eventually(lambda: machine.sh(f"kill -s SEGV {pid}", check=False).returncode, pause=0.1)
    (end,) = eventually(lambda: ends("keyhatch.service"))
    eventually(lambda: main_pid(machine) not in ("0", pid))
    assert "code=killed" in end


METRICS = """
import http.client, socket
ops = http.client.HTTPConnection("keyhatch")
ops.sock = socket.socket(socket.AF_UNIX)
ops.sock.connect("/run/keyhatch-admin/admin.sock")
ops.request("GET", "/v1/metrics")
print(ops.getresponse().read().decode())
"""


def test_on_debian_12s_own_kernel_both_fallbacks_are_named_and_it_serves(machine):
    launcher = "python3 /opt/old_kernel.py /usr/bin/keyhatchd run"
    done = drop_in(machine, "old", f"[Service]\nExecStart=\nExecStart={launcher}\n")
    assert done.returncode == 0, machine.run("journalctl", "-u", "keyhatch", "-n", "12", "-o", "cat").stdout
    missing = eventually(lambda: reads(machine, 1, path="/v1/health"))["missing"]
    assert len(missing) == 2 and "memfd_secret" in " ".join(missing) and "SO_PEERPIDFD" in " ".join(missing), missing
    assert status(machine)["missing"] == missing
    metrics = machine.run("python3", "-c", METRICS).stdout
    assert re.search(r"^keyhatch_promises_missing 2$", metrics, re.M), metrics
    warned = [e["MESSAGE"] for e in machine.journal("-u", "keyhatch", f"_PID={main_pid(machine)}", "-t", "keyhatchd", "-p", "warning")]
    assert all(any(one in line for line in warned) for one in missing), warned
    assert reads(machine, 10) == {200: 10}
    machine.systemctl("restart", "job.service")
    drop_in(machine, "old")
    assert reads(machine, 1, path="/v1/health")["missing"] == []
