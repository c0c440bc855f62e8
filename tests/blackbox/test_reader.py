"""What a fresh security reader found, each so that it stays shut."""

import json
import os
import shutil
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from harness import ALICE, BOB, KEYHATCHD, Agent, as_user, eventually


def serve_once(path, ready, got):
    """A fake agent that takes down whatever it is sent."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        os.chmod(path, 0o666)
        listener.listen()
        listener.settimeout(15)
        ready.set()
        try:
            stream, _ = listener.accept()
            stream.settimeout(2)
            got.append(stream.recv(65536))
        except (TimeoutError, OSError):
            pass


def test_a_fake_agent_in_the_guessed_folder_gets_no_value_from_store_put(tmp_path):
    folder = Path("/tmp/keyhatch-0")
    if folder.exists() or Path("/run/keyhatch-admin/admin.sock").exists():
        pytest.skip("an agent of root's own is here")
    try:
        folder.mkdir()
        os.chown(folder, BOB, BOB)
        os.chmod(folder, 0o755)
        pid = os.fork()
        if pid == 0:
            os.setresuid(BOB, BOB, BOB)
            got = []
            serve_once(str(folder / "admin.sock"), threading.Event(), got)
            os._exit(1 if any(b"CANARY" in piece for piece in got) else 0)
        eventually(lambda: (folder / "admin.sock").exists())
        env = {k: v for k, v in os.environ.items() if k != "XDG_RUNTIME_DIR"}
        put = subprocess.run([KEYHATCHD, "store", "put", "a/b"], input=b"CANARY-root", env=env, capture_output=True, timeout=30)
        assert put.returncode == 69 and b"CANARY" not in put.stderr
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0, "the fake agent was sent the value"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_connections_to_the_admin_socket_count_for_who_makes_them():
    with Agent(popen={"preexec_fn": limit_files}) as agent:
        def many():
            held = []
            for _ in range(400):
                sock = socket.socket(socket.AF_UNIX)
                sock.connect(str(agent.admin_socket))
                sock.settimeout(0.05)
                held.append(sock)
            alive = 0
            for sock in held:
                try:
                    alive += sock.recv(1) != b""
                except TimeoutError:
                    alive += 1
                except OSError:
                    pass
            return alive

        assert as_user(BOB, many) < 200
        assert agent.read("app/key", ALICE).status == 200
        assert agent.status()["ready"] is True


def limit_files():
    import resource

    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))


@pytest.mark.parametrize("what", ["state", "audit", "conf.d"])
def test_a_folder_that_decides_access_and_that_others_may_write_is_refused(what):
    with Agent(start=False) as agent:
        folder = agent.dir / what
        folder.mkdir()
        os.chmod(folder, 0o777)
        agent.start(ready=False)
        assert agent.process.wait(timeout=20) == 78
        agent.process = None
        assert f"{folder}" in agent.log.read_text() and "others may write it" in agent.log.read_text()


def test_every_store_verb_of_an_operator_leaves_a_record_of_who_asked(agent):
    agent.put("app/other", "CANARY-one")
    guess = json.dumps({"app/other": "CANARY-guess"})
    agent.ops("store", "import", "--from", "json", "--dry-run", stdin=guess.encode())
    agent.put("app/other", "CANARY-one")
    records = agent.records(event="admin.store", decision="allow")
    assert len(records) == 3
    assert {record["peer"]["uid"] for record in records} == {0}
    assert "CANARY" not in json.dumps(records)


def test_the_lock_of_the_log_is_no_link_and_not_for_its_readers(agent):
    assert (agent.audit_dir / "audit.lock").stat().st_mode & 0o777 == 0o600
    agent.stop()
    (agent.audit_dir / "audit.lock").unlink()
    (agent.audit_dir / "audit.lock").symlink_to(agent.dir / "made-by-root")
    agent.start(ready=False)
    assert agent.process.wait(timeout=20) != 0
    agent.process = None
    assert not (agent.dir / "made-by-root").exists()
