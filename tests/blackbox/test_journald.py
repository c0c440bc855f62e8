"""What a real journald holds: a journald of our own, alone in a mount namespace with its own /run, read by journalctl."""

import ctypes
import json
import os
import re
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from audit_log import NASTY, nasty_read
from harness import ALICE, BOB, CANARY, ROOT, Agent, eventually
from load import VALUES, Load, raw_records, read_many

JOURNALD = "/lib/systemd/systemd-journald"
SOCKETS = Path("/run/systemd/journal")
LIBC = ctypes.CDLL(None, use_errno=True)
NEW_MOUNTS = 0x20000
FED = "journald = true"
CATALOG = ROOT / "systemd" / "keyhatch.catalog"


def called(result):
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@pytest.fixture(scope="module", autouse=True)
def own_run():
    """This process, and so journald and every daemon it starts, sees a /run of its own."""
    if not os.path.exists(JOURNALD):
        pytest.skip("a real journald is NOT shown: the package systemd is not installed")
    outside, here = os.open("/proc/self/ns/mnt", os.O_RDONLY), os.getcwd()
    called(LIBC.unshare(NEW_MOUNTS))
    try:
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run"], check=True)
        yield
    finally:
        called(LIBC.setns(outside, NEW_MOUNTS))
        os.chdir(here)
        os.close(outside)


class Journal:
    """A journald; with `held`, its sockets are another's, as systemd's are, and outlive it."""

    def __init__(self, held):
        shutil.rmtree("/run/log", ignore_errors=True)
        shutil.rmtree("/run/systemd", ignore_errors=True)
        config = Path("/run/systemd/journald.conf.d")
        config.mkdir(parents=True)
        (config / "test.conf").write_text(
            "[Journal]\nStorage=volatile\nRateLimitIntervalSec=0\nReadKMsg=no\nAudit=no\nRuntimeMaxUse=1G\n"
        )
        SOCKETS.mkdir()
        self.process, self.sockets = None, []
        if held:
            for kind, name in [(socket.SOCK_DGRAM, "socket"), (socket.SOCK_STREAM, "stdout")]:
                made = socket.socket(socket.AF_UNIX, kind)
                made.bind(str(SOCKETS / name))
                os.chmod(SOCKETS / name, 0o666)
                made.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)  # SO_RCVBUFFORCE, ReceiveBuffer= of the unit
                made.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
                if kind == socket.SOCK_STREAM:
                    made.listen()
                self.sockets.append(made)

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.stop(signal.SIGKILL)
        for made in self.sockets:
            made.close()

    def start(self):
        if self.sockets:
            self.tell_the_run()
        numbers = [made.fileno() for made in self.sockets]
        moved = " ".join(f"{at}<&{number}" for at, number in enumerate(numbers, 3))
        given = f"LISTEN_PID=$$ LISTEN_FDS={len(numbers)}" if numbers else ""
        self.process = subprocess.Popen(
            ["bash", "-c", f"exec env {given} {JOURNALD} {moved}"],
            pass_fds=numbers, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        eventually(lambda: list(Path("/run/log/journal").rglob("system.journal")))
        return self

    def tell_the_run(self):
        """systemd keeps a link to the id of each unit's present run."""
        units = Path("/run/systemd/units")
        units.mkdir(exist_ok=True)
        link = units / "invocation:systemd-journald.service"
        link.unlink(missing_ok=True)
        link.symlink_to(os.urandom(16).hex())

    def send(self, number):
        self.process.send_signal(number)

    def stop(self, number=signal.SIGTERM):
        if self.process:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(number)
            self.process.wait(timeout=20)
            self.process = None

    def entries(self, **match):
        """All entries of ours, each a dictionary of text."""
        args = [f"{key}={value}" for key, value in match.items()]
        done = subprocess.run(
            ["journalctl", "-D", "/run/log/journal", "--all", "-o", "json", "--no-pager", "-q",
             "SYSLOG_IDENTIFIER=keyhatch", *args],
            capture_output=True, check=True,
        )
        return [{k: text(v) for k, v in json.loads(line).items()} for line in done.stdout.splitlines()]

    def numbers(self):
        """Every sequence number that an entry speaks of."""
        told = set()
        for entry in self.entries():
            first = int(entry["KEYHATCH_SEQ"])
            last = int(entry.get("KEYHATCH_SEQ_LAST", first))
            told |= set(range(first, last + 1)) if last > first else {first}
        return told


def text(value):
    """journalctl writes what is not printable as the list of its bytes."""
    return bytes(value).decode() if isinstance(value, list) and value and isinstance(value[0], int) else value


@pytest.fixture
def journal():
    with Journal(held=True) as journal:
        yield journal


def caught_up(agent, seconds=30):
    eventually(lambda: agent.status()["audit"]["journald_behind"] == 0, seconds)


def told_all(agent, journal):
    """Every record of the log is in the journal, each at least once."""
    want = {r["seq"] for r in raw_records(agent.audit_dir)}
    missing = lambda: want - journal.numbers()
    try:
        eventually(lambda: not missing(), 20, pause=0.2)
    except AssertionError:
        lost = sorted(missing())
        raise AssertionError(f"{len(lost)} of {len(want)} records are missing, {lost[0]} to {lost[-1]}") from None


def test_each_record_is_an_entry_with_every_field_of_the_contract(journal):
    with Agent(audit=FED) as agent:
        agent.read("app/key", ALICE)
        agent.read("app/none", ALICE)
        agent.read("app/key", BOB)
        agent.get("/v1/secrets?prefix=app/", ALICE)
        good = agent.config.read_text()
        agent.config.write_text(good + "\n[nonsense]\n")
        agent.ops("reload", check=False)
        agent.config.write_text(good)
        agent.put("app/new", CANARY)
        agent.ops("seal")
        os.truncate(agent.audit_dir / "audit-00000000000000000001.jsonl", 4 << 20)
        eventually(lambda: agent.records(event="alert.chain_broken"))
        eventually(lambda: agent.get("/v1/secrets", BOB).status == 403)
        agent.stop()
        records = {r["seq"]: r for r in agent.records()}
        eventually(lambda: journal.numbers() == set(records))
        ids = dict(re.findall(r"\| `([a-z_.]+)` \|.*\| `([0-9a-f]{32})` \|", (ROOT / "docs/audit-format.md").read_text()))
        entries = journal.entries()
        assert [int(e["KEYHATCH_SEQ"]) for e in entries] == sorted(records)
        for entry in entries:
            check_fields(entry, records[int(entry["KEYHATCH_SEQ"])], ids)
        seen = {e["KEYHATCH_EVENT"] for e in entries}
        assert seen >= {"agent.started", "secret.read", "policy.rejected", "admin.sealed", "alert.chain_broken", "agent.stopped"}
        assert CANARY not in json.dumps(entries)


def check_fields(entry, record, ids):
    want = {
        "SYSLOG_IDENTIFIER": "keyhatch",
        "MESSAGE_ID": ids[record["event"]],
        "PRIORITY": "1" if record["event"] == "alert.chain_broken" else "4" if record["decision"] == "deny" else "6",
    }
    peer = record.pop("peer")
    del record["mono"], record["prev"]
    record["roles"] = ",".join(record["roles"]) or None
    for key, value in [*record.items(), *((f"peer_{key}", value) for key, value in (peer or {}).items())]:
        if value is not None:
            want[f"KEYHATCH_{key.upper()}"] = value
    got = {key: value for key, value in entry.items() if key in want or key.startswith("KEYHATCH_")}
    for key, value in want.items():
        if isinstance(value, (dict, list, bool)):
            assert json.loads(got[key]) == value
        else:
            assert got[key] == str(value), key
    assert set(got) == set(want)
    assert record["event"] in entry["MESSAGE"]


def test_the_catalog_explains_each_event_and_no_other(journal):
    source = (ROOT / "agent/src/audit/event.rs").read_text()
    events = dict(re.findall(r'\("([a-z_]+\.[a-z_]+)", "([0-9a-f]{32})"\)', source))
    catalog = re.findall(r"^-- ([0-9a-f]{32})$", CATALOG.read_text(), re.M)
    documented = dict(re.findall(r"\| `([a-z_.]+)` \|.*\| `([0-9a-f]{32})` \|", (ROOT / "docs/audit-format.md").read_text()))
    assert len(events) == len(set(catalog)) == len(catalog) > 35
    assert set(catalog) == set(events.values()) and documented == events
    catalogs = Path("/run/catalog-root/usr/lib/systemd/catalog")
    catalogs.mkdir(parents=True)
    shutil.copy(CATALOG, catalogs)
    subprocess.run(["journalctl", "--update-catalog", "--root=/run/catalog-root"], check=True)
    Path("/var/lib/systemd/catalog").mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "--bind", "/run/catalog-root/var/lib/systemd/catalog", "/var/lib/systemd/catalog"], check=True)
    with Agent(audit=FED) as agent:
        agent.read("app/key", ALICE)
        agent.stop()
        shown = lambda: subprocess.run(
            ["journalctl", "-D", "/run/log/journal", "-x", "-q", "--no-pager", "SYSLOG_IDENTIFIER=keyhatch"],
            capture_output=True, text=True, check=True,
        ).stdout
        eventually(lambda: "A secret was asked for: app/key (allow)" in shown())
        assert "The agent serves" in shown()


@pytest.mark.parametrize("held", [True, False], ids=["socket held by systemd", "journald alone"])
@pytest.mark.parametrize("how", ["stopped", "killed", "paused", "paused, then killed"])
def test_nothing_is_lost_while_journald_is_away_under_load(how, held):
    with Journal(held) as journal, Agent(audit=FED) as agent:
        with Load(agent, 2) as load:
            eventually(lambda: load.count(VALUES) > 300)
            if how.startswith("paused"):
                journal.send(signal.SIGSTOP)
            else:
                journal.stop(signal.SIGTERM if how == "stopped" else signal.SIGKILL)
            values = load.count(VALUES)
            eventually(lambda: load.count(VALUES) > values + 2000)
            if how == "paused, then killed":
                journal.stop(signal.SIGKILL)
            if how == "paused":
                journal.send(signal.SIGCONT)
            else:
                journal.start()
            values = load.count(VALUES)
            eventually(lambda: load.count(VALUES) > values + 300)
        caught_up(agent)
        agent.stop()
        told_all(agent, journal)


def test_a_daemon_killed_while_journald_is_away_goes_on_where_the_journal_is(journal):
    with Agent(audit=FED) as agent:
        read_many(agent, 50)
        caught_up(agent)
        journal.stop()
        read_many(agent, 500)
        agent.stop(signal.SIGKILL)
        agent.start()
        read_many(agent, 50)
        agent.stop(signal.SIGKILL)
        journal.start()
        agent.start()
        caught_up(agent)
        told_all(agent, journal)
        assert len(journal.entries()) < 2 * len(raw_records(agent.audit_dir)), "it did not begin anew"


def test_a_daemon_that_stops_tells_journald_the_rest_and_does_not_wait_for_one_that_is_away(journal):
    with Agent(audit=FED) as agent:
        read_many(agent, 200)
        agent.stop()
        told_all(agent, journal)
        agent.start()
        journal.send(signal.SIGSTOP)
        read_many(agent, 2000)
        assert agent.stop() == 0
        journal.send(signal.SIGCONT)
        agent.start()
        caught_up(agent)
        told_all(agent, journal)


def test_a_record_too_long_for_a_datagram_arrives_whole(journal):
    with Agent(audit=FED) as agent:
        good = agent.config.read_text()
        agent.config.write_text(good + "".join(f"\n[nonsense{at}-{'x' * 200}]" for at in range(900)))
        assert agent.ops("reload", check=False).returncode == 78
        (record,) = agent.records(event="policy.rejected")
        assert len(json.dumps(record)) > 300_000
        entry = eventually(lambda: journal.entries(KEYHATCH_EVENT="policy.rejected"))[0]
        assert json.loads(entry["KEYHATCH_PROBLEMS"]) == record["problems"]
        caught_up(agent)


def test_equal_reads_are_told_together_only_past_ten_thousand_and_each_is_counted(journal):
    with Agent(audit=FED) as agent:
        journal.stop()
        read_many(agent, 8_000)
        journal.start()
        caught_up(agent)
        told_all(agent, journal)
        assert not [e for e in journal.entries() if "KEYHATCH_COUNT" in e], "not far enough behind"
        journal.stop()
        read_many(agent, 14_000)
        agent.read("app/none", ALICE)
        assert agent.status()["audit"]["journald_behind"] > 13_000
        journal.start()
        caught_up(agent)
        agent.stop()
        told_all(agent, journal)
        entries = journal.entries()
        together = [e for e in entries if "KEYHATCH_COUNT" in e]
        assert together and {(e["KEYHATCH_EVENT"], e["KEYHATCH_DECISION"]) for e in together} == {("secret.read", "allow")}
        records = raw_records(agent.audit_dir)
        # At least once: an entry sent again counts its records again.
        assert sum(int(e.get("KEYHATCH_COUNT", 1)) for e in entries) >= len(records) > 22_000
        assert len(entries) < 20_000
        assert [e for e in entries if e["KEYHATCH_DECISION"] == "deny"]


def test_a_programs_path_forges_no_field_of_the_journal(journal):
    with Agent(Agent.POLICY + Agent.SEES_PROGRAMS, audit=FED) as agent:
        path = nasty_read(agent)
        caught_up(agent)
        (entry,) = eventually(lambda: journal.entries(KEYHATCH_EVENT="secret.read"))
        (record,) = agent.records(event="secret.read")
        assert b"KEYHATCH_SECRET=forged" in NASTY and path.endswith(NASTY)
        assert (entry["KEYHATCH_SECRET"], entry["PRIORITY"]) == ("app/key", "6")
        assert entry["KEYHATCH_PEER_EXE"] == record["peer"]["exe"]
        assert entry["MESSAGE"].isprintable() and "\\u{1b}" in entry["MESSAGE"]
        shown = subprocess.run(
            ["journalctl", "-D", "/run/log/journal", "-o", "cat", "-q", "--no-pager", "KEYHATCH_EVENT=secret.read"],
            capture_output=True, check=True,
        ).stdout
        assert b"\x1b" not in shown and len(shown.splitlines()) == 1
