"""Restarts that nobody notices: under load, by kill, sealed, with a full disk, with a clock that was set back."""

import http.client
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time

import pytest

from activation import Activated, Supervisor
from harness import ALICE, BOB, CANARY, CAROL, Agent, UnixHTTP, eventually
from load import OTHER, Bots, Load, Tmpfs, raw_records, reads

BOTS = [ALICE, BOB, CAROL, 20004]
KEEPER = 20005
POLICY = "\n".join(
    f'[[bot]]\nname = "bot-{uid}"\nmatch = {{ uid = {uid} }}\nroles = ["reader"]' for uid in [0, *BOTS, KEEPER]
) + '\n[role.reader]\ngrants = [{ secrets = ["app/**"] }]\n'
SECRETS = 1_000
OCTETS = "application/octet-stream"


def many_secrets(agent, number=SECRETS):
    values = {f"app/{at:04}": f"CANARY-{at:04}-{'x' * 40}" for at in range(number)}
    agent.verb("store", "import", "--from", "json", *agent.files(), stdin=json.dumps(values).encode())
    return values


# Cells of a bot: reads, failed ones, reads that took a second try, the longest in microseconds.
READS, FAILED, AGAIN, LONGEST = range(4)


class Readers(Bots):
    """Bots that read 500 times a second in all, each on a new connection, and one that keeps its own.

    All try once more where a connection breaks off.
    """

    COUNTS = 4

    def __init__(self, agent, values):
        super().__init__(agent, [*BOTS, KEEPER])
        self.values = sorted(values.items())

    def bot(self, uid, cells):
        dice = random.Random(uid)
        connection = UnixHTTP(self.socket)
        while not self.ends():
            name, value = dice.choice(self.values)
            begin = time.monotonic()
            for attempt in range(2):
                try:
                    good = connection.get(f"/v1/secrets/{name}", accept=OCTETS).body == value.encode()
                    break
                except (ConnectionError, http.client.HTTPException):
                    connection.close()
                    good, cells[AGAIN] = False, cells[AGAIN] + 1
            if uid != KEEPER:
                connection.close()
            took = time.monotonic() - begin
            cells[READS] += 1
            cells[FAILED] += not good
            cells[LONGEST] = max(cells[LONGEST], int(took * 1e6))
            time.sleep(max(0, len(BOTS) / 500 - took))

    def longest(self):
        """In milliseconds, since the last time."""
        longest = max(self.each(LONGEST)) / 1e3
        for at in range(len(self.uids)):
            self.cells[self.COUNTS * at + LONGEST] = 0
        return longest


def test_restarts_and_kills_fail_no_read_and_leave_the_record_whole():
    with Activated(POLICY) as agent:
        values = many_secrets(agent)
        eventually(lambda: agent.read("app/0999").status == 200)
        supervisor = Supervisor(agent)
        with Readers(agent, values) as bots:
            for how, times in ((signal.SIGTERM, 20), (signal.SIGKILL, 10)):
                stalls = []
                for _ in range(times):
                    before = bots.each(READS)
                    supervisor.restart(how)
                    eventually(lambda: all(now > then + 5 for now, then in zip(bots.each(READS), before)))
                    stalls.append(bots.longest())
                print(f"{how.name}: {times} times; longest stall {max(stalls):.0f} ms, median {sorted(stalls)[times // 2]:.0f} ms; "
                      f"second tries {bots.each(AGAIN)}")
                assert bots.count(FAILED) == 0
                # In order, who comes on a new connection does not even have to try again.
                assert how == signal.SIGKILL or bots.each(AGAIN)[:-1] == [0] * len(BOTS)
        stop, start = (sorted(x * 1e3 for x in times)[len(times) // 2] for times in zip(*supervisor.took))
        print(f"{bots.count(READS)} reads; median to the end {stop:.0f} ms, to READY {start:.0f} ms")
        assert bots.count(FAILED) == 0
        agent.stop()
        agent.verify()
        records = raw_records(agent.audit_dir)
        assert [r["seq"] for r in records] == list(range(1, len(records) + 1))
        assert [r["event"] for r in records].count("agent.started") == 31
        granted = reads(records, "allow")
        # Each that was answered stands; one whose answer was lost with its connection was asked again.
        assert bots.count(READS) <= sum(granted[pid] for pid in bots.pids) <= bots.count(READS) + bots.count(AGAIN)


def test_keep_alive_clients_are_told_to_come_back_on_a_new_connection():
    with Activated(POLICY) as agent:
        bot = agent.connect()
        assert bot.get("/v1/secrets/app/key").status == 200
        version = bot.get("/v1/secrets/app/key").headers["etag"]
        poll = agent.connect()
        poll.putrequest("GET", "/v1/secrets/app/key")
        poll.putheader("If-None-Match", version)
        poll.putheader("Prefer", "wait=60")
        poll.endheaders()
        eventually(lambda: len(agent.records(event="secret.read")) == 3)
        Supervisor(agent).restart(signal.SIGTERM)
        reply = poll.getresponse()
        assert (reply.status, reply.headers["connection"]) == (304, "close")
        # http.client opens another by itself once the old one has ended in order.
        assert bot.sock.recv(1) == b""
        bot.close()
        assert bot.get("/v1/secrets/app/key").json()["value"] == CANARY


# Sealed.


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_sealed_agent_comes_up_sealed_and_loads_nothing(how):
    with Activated(POLICY) as agent:
        assert agent.read("app/key").json()["value"] == CANARY
        assert agent.ops("seal").stdout == "sealed; 0 bytes of secret memory are still in use\n"
        agent.stop(how)
        agent.start()
        for reply in (agent.read("app/key"), agent.read("app/key", ALICE), agent.get("/v1/secrets")):
            assert (reply.status, reply.json()["code"]) == (503, "sealed")
        assert agent.get("/v1/health").json()["reasons"] == ["sealed"]
        status = agent.status()
        assert status["sealed"] and status["secret_memory"]["used"] == 0 and not status["sources"][0]["loaded"]
        assert "was sealed before this start" in agent.log.read_text()
        # Nothing else brings a value back.
        agent.put_file("app/key", CANARY + "-2")
        agent.ops("reload")
        assert agent.put("app/key", "x", check=False).returncode == 75
        assert agent.read("app/key").status == 503 and agent.status()["secret_memory"]["used"] == 0

        assert agent.ops("unseal").stdout == "unsealed\n"
        assert agent.read("app/key").json()["value"] == CANARY + "-2"
        agent.stop(how)
        agent.start()
        assert agent.read("app/key").json()["value"] == CANARY + "-2"
        agent.verify()
        started = [r["sealed"] for r in agent.records(event="agent.started")]
        assert started == [False, True, False]
        done = [r["event"] for r in agent.records() if r["event"].endswith("sealed")]
        assert done == ["admin.sealed", "agent.sealed", "admin.unsealed", "agent.unsealed"]


def test_who_seals_or_unseals_and_does_not_wait_has_it_done_whole():
    """Ctrl-C, a lost login: the values are wiped and the mark, the records and what serves follow all the same."""

    def press(verb):
        ops = UnixHTTP(agent.admin_socket)
        ops.putrequest("POST", f"/v1/{verb}")
        ops.endheaders()
        ops.close()

    with Agent(policy=POLICY, secrets={"app/key": CANARY}) as agent:
        press("seal")
        assert eventually(lambda: agent.records(event="agent.sealed"))
        assert agent.status()["secret_memory"]["used"] == 0 and (agent.state / "sealed").exists()
        press("unseal")
        assert eventually(lambda: agent.records(event="agent.unsealed"))
        assert agent.read("app/key").json()["value"] == CANARY and not (agent.state / "sealed").exists()


def test_where_the_mark_cannot_be_kept_it_is_sealed_all_the_same_and_said():
    with Agent(POLICY) as agent:
        for command in (["--bind", agent.state, agent.state], ["-o", "remount,bind,ro", agent.state]):
            subprocess.run(["mount", *command], check=True)
        try:
            done = agent.ops("seal", check=False)
            assert done.returncode == 1 and done.stdout.startswith("sealed; 0 bytes")
            assert "a restart would load all values again" in done.stderr and "Read-only" in done.stderr
            assert agent.read("app/key").json()["code"] == "sealed"
            assert json.loads(agent.ops("seal", "--json", check=False).stdout)["survives_restart"] is False
            assert "does not survive a restart" in agent.log.read_text()
        finally:
            subprocess.run(["umount", "-l", agent.state], check=True)
        assert agent.ops("seal").returncode == 0 and (agent.state / "sealed").exists()
        # Where it cannot be seen whether the mark stands, it does.
        agent.stop()
        (agent.state / "sealed").unlink()
        (agent.state / "sealed").symlink_to("/nonexistent")
        agent.start()
        assert agent.read("app/key").json()["code"] == "sealed"
        agent.ops("unseal")
        assert agent.read("app/key").json()["value"] == CANARY


# What hosts do.


def test_a_full_disk_under_everything_refuses_and_passes():
    """One small file system holds state_dir, the audit log and the store, as /var does."""
    with Agent(POLICY, start=False) as agent:
        kept = {name: (agent.dir / name) for name in ("store", "state", "audit")}
        with Tmpfs(agent.dir / "var", "2m"):
            var = agent.dir / "var"
            var.chmod(0o711)
            for name, path in kept.items():
                if path.exists():
                    shutil.move(path, var / name)
                path.symlink_to(var / name)
            agent.config.write_text(re.sub(rf"{agent.dir}/(store|state|audit)\"", rf'{var}/\1"', agent.config.read_text()))
            agent.start()
            assert agent.read("app/key").json()["value"] == CANARY
            with Load(agent, 2) as load:
                with open(var / "ballast", "wb", buffering=0) as ballast, pytest.raises(OSError):
                    while True:
                        ballast.write(b"x" * 4096)
                eventually(lambda: agent.read("app/key").status == 503, seconds=60)
                assert agent.get("/v1/health").json()["reasons"] == ["no audit record can be kept"]
                # What would have to be written is refused, and nothing half done is left.
                assert agent.put("app/key", "x" * 60_000, check=False).returncode == 75
                # The panic button needs no block of the disk.
                assert agent.ops("seal").returncode == 0
                assert agent.process.poll() is None and load.count(OTHER) == 0
            (var / "ballast").unlink()
            eventually(lambda: agent.ops("unseal", check=False).returncode == 0)
            assert eventually(lambda: agent.read("app/key")).json()["value"] == CANARY
            # And when it is full before the start: not ready, or not started, but never wrong; and then well.
            agent.stop()
            with open(var / "ballast", "wb", buffering=0) as ballast, pytest.raises(OSError):
                while True:
                    ballast.write(b"x" * 4096)
            agent.start(ready=False)
            eventually(lambda: agent.process.poll() is not None or agent.socket.exists())
            if agent.process.poll() is None:
                assert eventually(lambda: agent.read("app/key")).status in (200, 503)
                agent.stop()
            agent.process = None
            (var / "ballast").unlink()
            agent.start()
            assert eventually(lambda: agent.read("app/key").status == 200)
            agent.stop()
            agent.verify()


@pytest.mark.skipif(not shutil.which("faketime"), reason="faketime is not installed: not shown for a clock that is set back")
def test_a_clock_set_back_an_hour_under_a_running_agent_breaks_nothing():
    [library] = re.findall(r"^LD_PRELOAD=(.*)$", os.popen("faketime -f -2h env").read(), re.M)
    with Agent(POLICY, start=False) as agent:
        # Where the sandbox lets the daemon read.
        offset = agent.config.parent / "offset"
        offset.write_text("+0s\n")
        agent.env = os.environ | {
            "LD_PRELOAD": library, "FAKETIME_TIMESTAMP_FILE": str(offset), "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        agent.start()
        version = agent.read("app/key").json()["version"]
        offset.write_text("-3600s\n")
        assert agent.read("app/key").json()["value"] == CANARY
        poll = agent.connect()
        poll.putrequest("GET", "/v1/secrets/app/key")
        poll.putheader("If-None-Match", f'"{version}"')
        poll.putheader("Prefer", "wait=60")
        poll.endheaders()
        eventually(lambda: len(agent.records(event="secret.read")) == 3)
        agent.put("app/key", CANARY + "-2")
        assert json.loads(poll.getresponse().read())["value"] == CANARY + "-2"
        agent.ops("reload")
        agent.restart()
        assert agent.read("app/key").json()["value"] == CANARY + "-2"
        agent.stop()
        agent.verify()
        times = [r["time"] for r in agent.records()]
        assert times != sorted(times), "the clock was not set back"
        assert [r["seq"] for r in agent.records()] == list(range(1, len(times) + 1))
