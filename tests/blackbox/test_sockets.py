"""The sockets: who may open the operators', and who may stand where ours do."""

import contextlib
import os
import shutil
import signal
import socket
import stat
import struct
import subprocess

import conformance
from bots import Bot, ask, bind_over, dial
from harness import ALICE, BOB, CANARY, CAROL, KEYHATCH, KEYHATCHD, Agent, as_user
from peers import KEY, granted

GROUP = 30001


# The operators' socket.


def test_the_admin_socket_answers_root_the_daemons_user_and_admins_alone(tmp_path):
    group = tmp_path / "group"
    shutil.copy("/etc/group", group)
    with group.open("a") as groups:
        groups.write(f"kh-ops:x:{GROUP}:\n")
    given = {"agent": 'admins = ["root", "group:kh-ops"]', "popen": {"preexec_fn": bind_over((group, "/etc/group"))}}
    with Agent(**given) as agent:
        status = lambda: ask(dial(agent.admin_socket), "/v1/status")
        assert status().status == 200
        assert as_user(BOB, status, groups=[GROUP]).status == 200
        assert as_user(BOB, status, gid=GROUP).status == 200
        for path, method in (("/v1/status", "GET"), ("/v1/reload", "POST"), ("/v1/seal", "POST"), ("/v1/metrics", "GET"),
                             ("/v1/store/put?name=app/key", "POST"), ("/v1/secrets/app/key", "GET"), ("/nothing", "GET")):
            reply = as_user(ALICE, lambda: ask(dial(agent.admin_socket), path, method, {"Authorization": "root"}, b"x"))
            assert (reply.status, reply.json()["code"]) == (403, "denied")
            [record] = agent.records(request_id=reply.json()["request_id"])
            assert (record["event"], record["decision"], record["peer"]["uid"]) == ("admin.denied", "deny", ALICE)
        assert not agent.status()["sealed"]
        granted(agent.read("app/key", ALICE))
        # No admin is given a value, and a bot's grant is not an admin's.
        assert agent.read("app/key").status == 403
        assert CANARY.encode() not in ask(dial(agent.admin_socket), KEY).body


def test_the_daemons_own_user_is_an_admin():
    with Agent(user=CAROL) as agent:
        status = lambda: ask(dial(agent.admin_socket), "/v1/status").status
        assert [as_user(CAROL, status), status(), as_user(ALICE, status)] == [200, 200, 403]


def test_an_admins_connection_passed_on_is_refused_once_its_process_has_exited(agent):
    with Bot(agent, 0) as root:
        root.do("connect", str(agent.admin_socket))
        connection = socket.socket(fileno=root.fds[0])
        connection.settimeout(20)
        assert ask(connection, "/v1/status").status == 200
        root.exit()
        reply = ask(connection, "/v1/status")
        assert (reply.status, reply.json()["code"]) == (403, "denied")


# Sockets.


def test_a_fake_agent_is_told_nothing():
    """Another user listens where an agent should: the client looks at the server's uid before it says a word."""
    with Agent(start=False) as agent, Bot(agent, BOB) as faker:
        client = shutil.copy(KEYHATCH, agent.dir)
        folder = agent.dir / "shared"
        folder.mkdir()
        os.chmod(folder, 0o777)
        path = str(folder / "keyhatch.sock")
        faker.do("listen", path)
        done = subprocess.run([client, "--socket", path, "get", "app/key"], user=ALICE, capture_output=True, timeout=60)
        assert done.returncode == 69 and b"20002" in done.stderr, done
        assert faker.do("hear") == ""


def start_fails(agent, code, why):
    agent.start(ready=False)
    assert agent.process.wait(timeout=20) == code
    agent.process = None
    assert why in agent.log.read_text()


KNOCKING = """
import os, socket, sys
seen = set()
while os.path.exists(sys.argv[2]):
    with socket.socket(socket.AF_UNIX) as knock:
        error = knock.connect_ex(sys.argv[1])
        seen.add(os.strerror(error) if error else "let in")
print(sorted(seen))
"""


def test_no_moment_of_a_start_refuses_a_user_the_socket():
    """Between two runs nobody listens; that a bot may not connect would be no reason for it to try again."""
    with Agent() as agent:
        going = agent.dir / "run" / "going"
        going.touch()
        command = [conformance.python(), "-c", KNOCKING, agent.socket, going]
        knocking = subprocess.Popen(command, user=BOB, stdout=subprocess.PIPE, text=True)
        for _ in range(10):
            agent.stop(signal.SIGKILL)
            agent.start()
        going.unlink()
        seen = knocking.communicate(timeout=20)[0]
        assert "let in" in seen and "Permission denied" not in seen, seen


def test_a_folders_default_acl_takes_nothing_of_the_sockets_mode():
    """Of it others may read alone: acl(5), in the bytes of the kernel's `posix_acl_xattr.h`."""
    entries = [(0x01, 7), (0x04, 5), (0x20, 5)]
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", tag, bits, 0xFFFFFFFF) for tag, bits in entries)
    with Agent(start=False) as agent:
        os.setxattr(agent.socket.parent, "system.posix_acl_default", acl)
        agent.start()
        assert stat.S_IMODE(agent.socket.stat().st_mode) == 0o666
        assert agent.get("/v1/health", BOB).status == 200


def test_a_socket_that_someone_listens_on_is_not_stolen_and_a_dead_one_is_replaced():
    with Agent(start=False) as agent:
        for kind, backlog in ((socket.SOCK_DGRAM, 0), (socket.SOCK_SEQPACKET, 8), (socket.SOCK_STREAM, 8)):
            with socket.socket(socket.AF_UNIX, kind) as other:
                other.bind(str(agent.socket))
                if backlog:
                    other.listen(backlog)
                start_fails(agent, 1, "another process listens there")
                assert agent.socket.is_socket()
            if kind != socket.SOCK_STREAM:
                agent.socket.unlink()
        # The last listener is gone, and what it left is dead.
        agent.start()
        granted(agent.read("app/key", ALICE))
        # A daemon that was killed leaves both; the next one starts all the same.
        agent.stop(signal.SIGKILL)
        assert agent.socket.is_socket() and agent.admin_socket.is_socket()
        agent.start()
        granted(agent.read("app/key", ALICE))


def test_a_listener_with_a_full_backlog_is_not_waited_for():
    with Agent(start=False) as agent, socket.socket(socket.AF_UNIX) as other:
        other.bind(str(agent.socket))
        other.listen(0)
        waiting = []
        with contextlib.suppress(BlockingIOError):
            while True:
                waiting.append(socket.socket(socket.AF_UNIX))
                waiting[-1].setblocking(False)
                waiting[-1].connect(str(agent.socket))
        start_fails(agent, 1, "another process listens there")


def test_a_file_that_is_no_socket_is_left_alone():
    with Agent(start=False) as agent:
        agent.socket.write_text("not yours")
        start_fails(agent, 1, str(agent.socket))
        assert agent.socket.read_text() == "not yours"
        agent.socket.unlink()
        target = agent.dir / "target"
        target.write_text("not yours")
        agent.socket.symlink_to(target)
        start_fails(agent, 1, str(agent.socket))
        assert target.read_text() == "not yours"


def test_two_daemons_never_use_one_state_dir(agent):
    second = agent.dir / "second.toml"
    text = agent.config.read_text().replace("/run/", "/run2/").replace("/audit", "/audit2")
    second.write_text(text)
    os.chmod(second, 0o644)
    done = subprocess.run([KEYHATCHD, "run", "--config", second], capture_output=True, timeout=60)
    assert done.returncode == 1 and b"another keyhatchd uses this state_dir" in done.stderr, done
    granted(agent.read("app/key", ALICE))
    # Nor one socket, where the state is another.
    second.write_text(agent.config.read_text().replace("/state", "/state2").replace("/audit", "/audit2"))
    done = subprocess.run([KEYHATCHD, "run", "--config", second], capture_output=True, timeout=60)
    assert done.returncode == 1 and b"another process listens there" in done.stderr, done
    granted(agent.read("app/key", ALICE))
