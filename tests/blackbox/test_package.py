"""The Debian package on clean machines, from its installation to its purge, and the RPM beside it.

The tests of a release share one machine and follow each other as an operator's days do.
"""

import json
import os
import re
import subprocess

import pytest

import lab
from harness import BIN, CANARY, ROOT, eventually
from lab import RELEASES, Machine

WHY_NOT = lab.why_not()
on_machines = pytest.mark.skipif(bool(WHY_NOT), reason=str(WHY_NOT))

TOOLS = ROOT / "target" / "tools" / "bin"
README_CONFIG = re.search(r"## As a service.*?```toml\n(.*?)```", (ROOT / "README.md").read_text(), re.S).group(1)
UNITS = ["keyhatch.service", "keyhatch.socket", "keyhatch-admin.socket", "keyhatch-credentials.socket"]
GET = "[Service]\nType=oneshot\nUser={user}\nExecStart=/usr/bin/keyhatch get {name}\nStandardOutput=truncate:/root/told\nStandardError=journal\n"
FILES = r"find / -xdev \( -path /proc -o -path /sys -o -path /tmp -o -path /dev \) -prune -o -print; find /run -name '*keyhatch*'"


def made(kind):
    """The package, made from the binaries under test."""
    tool = TOOLS / {"deb": "cargo-deb", "rpm": "cargo-generate-rpm"}[kind]
    if not tool.exists():
        pytest.skip(f"the {kind} package is NOT shown: tests/run installs {tool.name}")
    env = {**os.environ, "PATH": f"{TOOLS}:{os.environ['PATH']}"}
    subprocess.run([ROOT / "systemd" / "package", kind, BIN], check=True, env=env, cwd=ROOT, stdout=subprocess.DEVNULL)
    return ROOT / "target" / "package" / f"keyhatch.{kind}"


@pytest.fixture(scope="module")
def deb():
    return made("deb")


@pytest.fixture(scope="module", params=RELEASES)
def machine(request, deb):
    with Machine(request.param) as machine:
        machine.files_before = set(machine.sh(FILES).stdout.splitlines())
        done = machine.install(deb)
        assert done.returncode == 0, done
        yield machine


def ask(machine, unit, user, name):
    """Has a unit ask as a user; what it printed, and how it ended."""
    machine.unit(unit, GET.format(user=user, name=name))
    machine.systemctl("start", unit, check=False)
    return machine.run("cat", "/root/told").stdout, int(machine.show(unit, "ExecMainStatus"))


def pid(machine):
    return int(machine.show("keyhatch.service", "MainPID"))


def score(machine):
    told = machine.run("systemd-analyze", "security", "--no-pager", "keyhatch.service", check=False).stdout
    return float(re.search(r"Overall exposure level for keyhatch.service: ([0-9.]+)", told).group(1))


@on_machines
def test_an_installation_starts_nothing_and_says_nothing_wrong(machine):
    for unit in UNITS:
        assert machine.systemctl("is-enabled", unit, check=False).stdout == "disabled\n"
        assert machine.systemctl("is-active", unit, check=False).stdout == "inactive\n"
    assert machine.sh("keyhatchd check").stdout == "/etc/keyhatch/keyhatch.toml: ok\n"
    verified = machine.sh("systemd-analyze verify --man=no /usr/lib/systemd/system/keyhatch*")
    assert (verified.stdout, verified.stderr) == ("", "")
    machine.sh("test -f /usr/share/man/man8/keyhatchd-store-put.8.gz; test -f /usr/share/man/man1/keyhatch-get.1.gz")
    machine.sh("bash -n /usr/share/bash-completion/completions/keyhatch; bash -n /usr/share/bash-completion/completions/keyhatchd")
    assert score(machine) <= 0.8


@on_machines
def test_a_unit_reads_its_secret_and_no_other_unit_or_user_does(machine):
    machine.sh("useradd --system support; useradd --system other")
    machine.write("/etc/keyhatch/keyhatch.toml", README_CONFIG)
    machine.systemctl("enable", "--now", "keyhatch.socket")
    assert pid(machine) == 0
    # The first question starts the daemon, and makes the key and the store that it needs.
    machine.run("keyhatchd", "store", "put", "openai/api-key", stdin=CANARY)
    assert f"Uid:\t{machine.run('id', '-u', 'keyhatch').stdout.strip()}\t" in machine.run("cat", f"/proc/{pid(machine)}/status").stdout
    assert ask(machine, "support-bot.service", "support", "openai/api-key") == (CANARY, 0)
    assert ask(machine, "nosy.service", "support", "openai/api-key") == ("", 77)
    assert ask(machine, "support-bot.service", "other", "openai/api-key") == ("", 77)
    assert ask(machine, "support-bot.service", "support", "stripe/key") == ("", 77)
    denied = eventually(lambda: told_denials(machine, 3))
    uids = [machine.run("id", "-u", user).stdout.strip() for user in ("support", "other", "support")]
    assert [(entry["KEYHATCH_PEER_UNIT"], entry["KEYHATCH_PEER_UID"]) for entry in denied] == list(
        zip(["nosy.service", "support-bot.service", "support-bot.service"], uids)
    )
    assert {entry["PRIORITY"] for entry in denied} == {"4"}
    mine = machine.journal("-u", "keyhatch", "KEYHATCH_BOT=support-bot", "KEYHATCH_DECISION=deny")
    assert [entry["KEYHATCH_SECRET"] for entry in mine] == ["stripe/key"]
    explained = machine.run("journalctl", "-x", "-u", "keyhatch", "KEYHATCH_BOT=support-bot", "KEYHATCH_DECISION=deny").stdout
    assert "A secret was asked for: stripe/key (deny)" in explained and "keyhatchd explain --request" in explained
    assert CANARY not in machine.run("journalctl", "--all", "-o", "export").stdout


def told_denials(machine, count):
    denied = machine.journal("-u", "keyhatch", "KEYHATCH_EVENT=secret.read", "KEYHATCH_DECISION=deny")
    return denied if len(denied) >= count else None


@on_machines
def test_systemd_reloads_it_and_says_where_that_is_refused(machine):
    before = pid(machine)
    machine.systemctl("reload", "keyhatch")
    machine.write("/etc/keyhatch/conf.d/more.toml", "[[bot]]\nname = 1\n")
    assert machine.systemctl("reload", "keyhatch", check=False).returncode != 0
    assert machine.show("keyhatch.service", "ActiveState") == "active"
    assert ask(machine, "support-bot.service", "support", "openai/api-key") == (CANARY, 0)
    assert pid(machine) == before


@on_machines
def test_an_upgrade_replaces_the_daemon_unless_the_new_one_would_not_load_the_configuration(machine, deb):
    before = pid(machine)
    kept = machine.install(deb)
    assert kept.returncode == 0
    assert "THE OLD DAEMON STILL RUNS" in kept.stderr and "/etc/keyhatch/conf.d/more.toml:" in kept.stderr
    assert pid(machine) == before
    assert ask(machine, "support-bot.service", "support", "openai/api-key") == (CANARY, 0)
    machine.sh("rm -r /etc/keyhatch/conf.d")
    done = machine.install(deb)
    assert done.returncode == 0 and "OLD DAEMON" not in done.stderr
    assert machine.show("keyhatch.service", "ActiveState") == "active"
    assert pid(machine) not in (before, 0)
    assert machine.sh("cat /etc/keyhatch/keyhatch.toml").stdout == README_CONFIG
    assert ask(machine, "support-bot.service", "support", "openai/api-key") == (CANARY, 0)


@on_machines
def test_a_killed_daemon_is_back_and_a_reboot_needs_no_hand(machine):
    before = pid(machine)
    machine.systemctl("kill", "--signal=KILL", "keyhatch")
    assert ask(machine, "support-bot.service", "support", "openai/api-key") == (CANARY, 0)
    assert pid(machine) not in (before, 0)
    machine.reboot()
    assert machine.show("keyhatch.service", "ActiveState") == "inactive"
    assert ask(machine, "support-bot.service", "support", "openai/api-key") == (CANARY, 0)


@on_machines
def test_a_daemon_that_does_not_answer_is_replaced(machine):
    before = pid(machine)
    machine.systemctl("kill", "--signal=STOP", "keyhatch")
    assert ask(machine, "support-bot.service", "support", "openai/api-key") == (CANARY, 0)
    assert pid(machine) not in (before, 0)


DRIVER = """#!/bin/sh
cat >/dev/null
[ "$1" != create ] || printf '{"value":"CANARY-made-by-%s"}' "$(id -un)"
"""
ROTATED = """
[[rotation]]
secret = "openai/api-key"
every = "30d"
driver = { kind = "exec", command = ["/usr/local/bin/rotate"] }
"""


@on_machines
def test_a_driver_runs_as_a_user_of_its_own_in_a_unit_of_its_own(machine):
    machine.write("/usr/local/bin/rotate", DRIVER, 0o755)
    config = README_CONFIG.replace('["openai/*"]', '["openai/*"], actions = ["read", "rotate"]')
    machine.write("/etc/keyhatch/keyhatch.toml", config + ROTATED)
    machine.sh("keyhatchd check; systemctl restart keyhatch")
    machine.unit("support-bot.service", "[Service]\nType=oneshot\nUser=support\nExecStart=/usr/bin/keyhatch rotate openai/api-key\n")
    machine.systemctl("start", "support-bot.service")
    made = ("CANARY-made-by-keyhatch-exec", 0)
    eventually(lambda: ask(machine, "support-bot.service", "support", "openai/api-key") == made, 30, 0.3)
    machine.run("keyhatchd", "store", "put", "openai/api-key", stdin=CANARY)
    machine.write("/etc/keyhatch/keyhatch.toml", README_CONFIG)
    machine.sh("rm /usr/local/bin/rotate; systemctl restart keyhatch")


@on_machines
def test_drop_ins_give_what_they_say(machine):
    drop_ins = "/etc/systemd/system/keyhatch.service.d"
    by_program = README_CONFIG.replace('unit = "support-bot.service"', 'exe = "/usr/bin/keyhatch"')
    assert by_program != README_CONFIG
    machine.write("/etc/keyhatch/keyhatch.toml", by_program)
    assert machine.systemctl("restart", "keyhatch", check=False).returncode != 0
    assert machine.show("keyhatch.service", "ExecMainStatus") == "78"
    why = machine.run("journalctl", "-u", "keyhatch", "-n", "20", "-o", "cat").stdout
    assert 'bot "support-bot" is selected by exe or exe_sha256, which needs CAP_SYS_PTRACE' in why
    machine.sh(f"mkdir {drop_ins}; cp /usr/share/keyhatch/*.conf {drop_ins}; systemctl daemon-reload")
    machine.systemctl("restart", "keyhatch")
    assert ask(machine, "any.service", "support", "openai/api-key") == (CANARY, 0)
    verified = machine.sh("systemd-analyze verify --man=no keyhatch.service")
    assert (verified.stdout, verified.stderr) == ("", "")
    # CAP_IPC_LOCK: no limit on locked memory.
    assert json.loads(machine.sh("keyhatchd status --json").stdout)["secret_memory"]["size"] > 64 << 20
    machine.sh(f"rm {drop_ins}/exe-selectors.conf {drop_ins}/large-store.conf; systemctl daemon-reload")
    assert score(machine) <= 1.3
    machine.write("/etc/keyhatch/keyhatch.toml", README_CONFIG)
    machine.sh(f"rm -r {drop_ins}; systemctl daemon-reload; systemctl restart keyhatch")


@on_machines
def test_a_removal_keeps_secrets_and_a_purge_leaves_only_the_users(machine, deb):
    assert machine.run("dpkg", "--remove", "keyhatch").returncode == 0
    assert machine.show("keyhatch.socket", "LoadState") == "not-found"
    machine.sh("! pgrep keyhatchd 2>/dev/null; test -f /var/lib/keyhatch/store/store.khs")
    assert machine.install(deb).returncode == 0
    machine.systemctl("start", "keyhatch.socket")
    assert ask(machine, "support-bot.service", "support", "openai/api-key") == (CANARY, 0)
    machine.sh("rm -f /etc/systemd/system/*.service /root/told; systemctl daemon-reload")
    done = machine.run("dpkg", "--purge", "keyhatch")
    assert done.stderr == ""
    left = set(machine.sh(FILES).stdout.splitlines()) - machine.files_before
    # What others keep: the journal, the host's key of systemd-creds, backups of /etc/passwd.
    theirs = ("/var/log/", "/var/lib/systemd/", "/etc/credstore.encrypted", "/run/", "/var/lib/dpkg/", "/etc/",
              "/var/tmp/systemd-private-")
    ours = {path for path in left if "keyhatch" in path or not path.startswith(theirs)}
    assert ours == set()
    assert "keyhatch:" in machine.sh("cat /etc/passwd").stdout
    assert machine.systemctl("is-system-running", check=False).stdout == "running\n"


@pytest.mark.anyone
def test_the_rpm_holds_what_the_deb_holds(deb):
    if subprocess.run(["which", "rpm"], capture_output=True).returncode:
        pytest.skip("the rpm package is NOT shown: rpm is not installed")
    package = made("rpm")
    told = subprocess.run(["rpm", "-qpl", package], capture_output=True, text=True, check=True).stdout
    rpm = {re.sub("/zsh/site-functions/", "/zsh/vendor-completions/", line) for line in told.splitlines()}
    told = subprocess.run(["dpkg-deb", "-c", deb], capture_output=True, text=True, check=True).stdout
    deb = {line.split()[-1].lstrip(".") for line in told.splitlines() if not line.startswith("d")}
    docs = ("/usr/share/doc/", "/usr/share/licenses/")
    assert {path for path in rpm if not path.startswith(docs)} == {path for path in deb if not path.startswith(docs)}
    assert len(rpm) > 50
    scripts = subprocess.run(["rpm", "-qp", "--scripts", package], capture_output=True, text=True, check=True).stdout
    assert "/usr/lib/keyhatch/after-install" in scripts
