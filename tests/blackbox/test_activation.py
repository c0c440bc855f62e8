"""The service manager's side: sockets that are handed over, what is told, the watchdog, and a drain."""

import ctypes
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import time

import pytest

from activation import Activated, listening
from harness import ALICE, BOB, CANARY, KEYHATCH, KEYHATCHD, ROOT_AND_ALICE, Agent, UnixHTTP, eventually


def refused(agent, **kwargs):
    """How a daemon ended that did not start, and what it said."""
    agent.start(ready=False, **kwargs)
    code = agent.process.wait(timeout=20)
    agent.process = None
    return code, agent.log.read_text()


# Sockets.


def test_sockets_of_the_manager_are_served_and_left_to_it():
    with Activated(ROOT_AND_ALICE, user=BOB) as agent:
        inodes = {path: os.stat(path).st_ino for path in (agent.socket, agent.admin_socket)}
        # READY=1 means that the first one to ask is answered.
        assert agent.read("app/key", ALICE).json()["value"] == CANARY
        assert agent.status()["ready"]
        # A child would not get them.
        flags = [int(open(f"/proc/{agent.pid}/fdinfo/{fd}").read().split("flags:")[1].split()[0], 8) for fd in (3, 4)]
        assert all(flag & os.O_CLOEXEC for flag in flags)
        # Clients see who has bound it, not the daemon's user, and of root's socket they expect root.
        bot = agent.connect()
        bot.connect()
        assert struct.unpack("3i", bot.sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1] == 0
        done = subprocess.run([KEYHATCH, "--socket", agent.socket, "get", "app/key"], user=ALICE, capture_output=True)
        assert done.stdout == CANARY.encode(), done.stderr
        bot.close()
        agent.stop()
        assert {path: os.stat(path).st_ino for path in inodes} == inodes
        # Who connects while nobody serves waits for the next one.
        waiting = agent.connect()
        waiting.putrequest("GET", "/v1/secrets/app/key")
        waiting.endheaders()
        agent.start()
        assert json.loads(waiting.getresponse().read())["value"] == CANARY


def test_only_the_bots_socket_may_be_handed_over_and_a_metrics_socket_too():
    with Activated(ROOT_AND_ALICE, sockets=("bots", "metrics")) as agent:
        assert agent.status()["ready"] and agent.read("app/key").status == 200
        text = UnixHTTP(agent.dir / "run" / "metrics").get("/metrics").body.decode()
        assert "keyhatch_" in text
        agent.stop()
        # What the daemon has made goes with it.
        assert agent.socket.exists() and not agent.admin_socket.exists()


@pytest.mark.parametrize(
    "names, kind, told",
    [
        (("bots", "x"), {}, 'socket named "x"; a unit names it bots, admin, metrics or credentials'),
        (("bots", "unknown"), {}, "FileDescriptorName="),
        (("bots", "admin", "bots"), {}, 'two sockets named "bots"'),
        (("admin",), {"kind": socket.SOCK_DGRAM, "listen": False}, '"admin", which is not a listening Unix stream socket'),
        (("admin",), {"kind": socket.SOCK_SEQPACKET}, '"admin", which is not a listening Unix stream socket'),
        (("bots",), {"listen": False}, '"bots", which is not a listening Unix stream socket'),
        (("admin:bots",), {}, 'LISTEN_FDNAMES="admin:bots"'),
    ],
)
def test_what_cannot_be_served_is_refused_and_said(names, kind, told):
    with Activated(ROOT_AND_ALICE, sockets=(), start=False) as agent:
        agent.sockets = [(name, listening(agent.dir / f"s{at}", **kind)) for at, name in enumerate(names)]
        code, text = refused(agent)
        assert code == 78 and told in text, text
        assert not agent.socket.exists()


def test_variables_for_another_process_are_left_alone_and_a_live_socket_is_never_stolen():
    with Activated(ROOT_AND_ALICE, start=False) as agent:
        code, text = refused(agent, pid=1)
        assert code == 1 and "another process listens there" in text
        # The one who owns it still can hand it over.
        agent.start()
        assert agent.read("app/key").status == 200


@pytest.mark.skipif(not shutil.which("systemd-socket-activate"), reason="systemd-socket-activate is not installed")
def test_systemds_own_activator():
    with Agent(ROOT_AND_ALICE, start=False) as agent:
        agent.process = subprocess.Popen(
            ["systemd-socket-activate", "-l", agent.socket, "-l", agent.admin_socket, "--fdname=bots:admin",
             KEYHATCHD, "run", "--config", agent.config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        eventually(agent.socket.exists)
        assert agent.read("app/key").json()["value"] == CANARY
        assert agent.status()["agent"]["pid"] == agent.pid


# What is told.


def test_the_manager_is_told_what_happens_in_its_order():
    with Activated(ROOT_AND_ALICE, start=False, watchdog=1) as agent:
        agent.start(ready=False)
        agent.await_told("STATUS=Serving: 1 secrets of 1 sources for 2 bots")
        assert "READY=1" in agent.told
        before = time.monotonic_ns() // 1000
        agent.ops("reload")
        told = [line for line in agent.hear() if not line.startswith(("WATCHDOG", "STATUS"))]
        assert len(told) == 3 and told[0] == "RELOADING=1" and told[2] == "READY=1"
        assert before <= int(re.fullmatch(r"MONOTONIC_USEC=(\d+)", told[1])[1]) <= time.monotonic_ns() // 1000
        # A reload that is refused ends, too, and the verb says so.
        agent.config.write_text(agent.config.read_text() + "\nnonsense = 1\n")
        assert agent.ops("reload", check=False).returncode == 78
        told = [line for line in agent.hear() if not line.startswith(("WATCHDOG", "STATUS"))]
        assert (told[0], told[2]) == ("RELOADING=1", "READY=1")
        agent.process.send_signal(signal.SIGHUP)
        agent.await_told("READY=1")
        agent.ops("seal")
        agent.await_told("STATUS=Not ready: 0 secrets of 1 sources for 2 bots; sealed")
        agent.process.send_signal(signal.SIGTERM)
        agent.process.wait(timeout=20)
        assert [line for line in agent.hear() if not line.startswith("WATCHDOG")][0] == "STOPPING=1"
        # Nobody outside sees a value, a name or a path of a secret.
        assert "app/" not in "\n".join(agent.told) and CANARY not in "\n".join(agent.told)


PTRACE_SEIZE, PTRACE_INTERRUPT, PTRACE_DETACH, WALL = 0x4206, 0x4207, 17, 0x40000000


def test_the_watchdog_hears_of_the_loop_that_serves_and_of_no_other_thread():
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    with Activated(ROOT_AND_ALICE, watchdog=0.2) as agent:
        for _ in range(3):
            agent.await_told("WATCHDOG=1")
        # The main thread alone is stopped; the thread that rings goes on, and nobody answers it.
        assert libc.ptrace(PTRACE_SEIZE, agent.pid, None, None) == 0, os.strerror(ctypes.get_errno())
        assert libc.ptrace(PTRACE_INTERRUPT, agent.pid, None, None) == 0
        os.waitpid(agent.pid, WALL)
        agent.hear()
        pulse = [tid for tid in os.listdir(f"/proc/{agent.pid}/task")
                 if open(f"/proc/{agent.pid}/task/{tid}/comm").read() == "pulse\n"]
        woken = lambda: int(re.search(r"voluntary_ctxt_switches:\s+(\d+)",
                                      open(f"/proc/{agent.pid}/task/{pulse[0]}/status").read())[1])
        rung = woken() + 5
        eventually(lambda: woken() >= rung)
        assert agent.hear() == []
        assert libc.ptrace(PTRACE_DETACH, agent.pid, None, None) == 0
        agent.await_told("WATCHDOG=1")


# A drain.


def test_a_drain_finishes_what_is_under_way_and_leaves_new_ones_to_the_next():
    with Activated(ROOT_AND_ALICE) as agent:
        body = json.dumps({"names": ["app/key"]}).encode()
        slow = agent.connect()
        slow.putrequest("POST", "/v1/batch")
        slow.putheader("Content-Length", str(len(body)))
        slow.endheaders(body[:5])
        silent, idle = agent.connect(), agent.connect()
        silent.connect()
        assert idle.get("/v1/secrets/app/key").status == 200
        eventually(lambda: agent.status()["connections"] == 3)
        agent.process.send_signal(signal.SIGTERM)
        agent.await_told("STOPPING=1")
        # Idle ones are closed at once, those who never asked soon after.
        assert idle.sock.recv(1) == b"" and silent.sock.recv(1) == b""
        assert agent.process.poll() is None
        late = agent.connect()
        late.putrequest("GET", "/v1/secrets/app/key")
        late.endheaders()
        slow.send(body[5:])
        reply = slow.getresponse()
        assert (reply.status, reply.headers["connection"]) == (200, "close")
        assert json.loads(reply.read())["secrets"][0]["value"] == CANARY
        assert agent.process.wait(timeout=20) == 0
        agent.start()
        assert json.loads(late.getresponse().read())["value"] == CANARY


def test_a_drain_ends_although_a_peer_never_reads_its_answer():
    with Activated(ROOT_AND_ALICE, secrets={"app/large": "x" * 65_536}) as agent:
        bot = agent.connect()
        bot.connect()
        bot.sock.sendall(b"GET /v1/secrets/app/large HTTP/1.1\r\nHost: x\r\n\r\n" * 12)
        # It is answered until the socket is full.
        eventually(lambda: len(agent.records(event="secret.read")) > 1)
        assert agent.stop() == 0


def test_an_operators_request_is_answered_before_the_end():
    with Activated(ROOT_AND_ALICE) as agent:
        ops = UnixHTTP(agent.admin_socket)
        ops.putrequest("POST", "/v1/store/put?name=app/late")
        ops.putheader("Content-Length", "5")
        ops.endheaders(b"CAN")
        eventually(lambda: agent.status()["ready"])
        agent.process.send_signal(signal.SIGTERM)
        agent.await_told("STOPPING=1")
        ops.send(b"RY")
        reply = ops.getresponse()
        assert reply.status == 200, reply.read()
        assert agent.process.wait(timeout=20) == 0
        agent.process = None
        agent.start()
        assert agent.read("app/late").json()["value"] == "CANRY"
