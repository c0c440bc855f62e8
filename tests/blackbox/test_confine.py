"""The daemon's own sandbox, seen from outside. What is tried from inside is in agent/tests/confined.rs."""

import json
import os
import shutil
import socket
import struct
import subprocess
from pathlib import Path

import pytest

from harness import ALICE, BOB, CANARY, KEYHATCHD, Agent, as_user


@pytest.fixture(scope="module")
def agent():
    with Agent() as agent:
        yield agent


def restrictions(agent):
    """What the kernel says of each thread: its filters, and whether it can gain privileges."""
    threads = list(Path(f"/proc/{agent.pid}/task").iterdir())
    assert len(threads) > 5
    for thread in threads:
        fields = dict(line.split(":\t", 1) for line in (thread / "status").read_text().splitlines())
        yield {key: fields[key] for key in ("Seccomp", "Seccomp_filters", "NoNewPrivs")}


def all_filtered(agent):
    return all(found == {"Seccomp": "2", "Seccomp_filters": "2", "NoNewPrivs": "1"} for found in restrictions(agent))


def test_every_thread_is_filtered_and_nothing_is_missing(agent):
    assert agent.read("app/key", ALICE).json()["value"] == CANARY
    assert all_filtered(agent)
    assert agent.get("/v1/health").json()["missing"] == []


def test_a_reload_that_needs_more_is_refused_whole_and_a_restart_takes_it():
    with Agent() as agent:
        agent.write_policy(Agent.POLICY.replace("app/**", "nothing/**") + Agent.SEES_PROGRAMS)
        done = agent.ops("reload", check=False)
        assert done.returncode == 78 and "to see the programs of bots" in done.stderr and "restart" in done.stderr
        assert agent.read("app/key", ALICE).status == 200, "the running policy is the one before"
        agent.write_policy(Agent.POLICY + Agent.SEES_PROGRAMS)
        agent.restart()
        assert agent.read("app/key", ALICE).status == 200
        # What that costs is said wherever a promise that is missing is.
        (missing,) = agent.get("/v1/health").json()["missing"]
        assert "no Landlock" in missing and missing in agent.log.read_text()
        assert agent.records(event="agent.started")[-1]["missing"] == [missing]
        assert all_filtered(agent)


def test_files_that_the_configuration_does_not_name_stay_closed_to_it(agent):
    elsewhere = Path(f"{agent.dir}-elsewhere")
    elsewhere.mkdir(mode=0o755)
    try:
        (elsewhere / "more.toml").write_text(Agent.SEES_PROGRAMS.replace(', exe = "/usr/bin/sleep"', ""))
        (agent.dir / "conf.d").symlink_to(elsewhere)
        # Root could read it, but for the sandbox.
        done = agent.ops("reload", check=False)
        assert done.returncode == 78 and "Permission denied" in done.stderr, done.stderr
        (agent.dir / "conf.d").unlink()
        shutil.copytree(elsewhere, agent.dir / "conf.d")
        agent.ops("reload")
    finally:
        shutil.rmtree(elsewhere)


# The step that systemd starts for each program to run.


def asked(agent, command, config=None):
    """The exit code of a step that is asked to run this, and its answer."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    args = [KEYHATCHD, "exec-step", "--config", str(config or agent.config)]
    step = subprocess.Popen(args, stdin=far, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    far.close()
    head = json.dumps({"command": command, "user": None}).encode()
    answer = b""
    try:
        near.sendall(struct.pack("<II", len(head), 5) + head + b"input")
        while part := near.recv(4096):
            answer += part
    except (BrokenPipeError, ConnectionResetError):
        pass
    return step.wait(timeout=20), answer, step.stderr.read().decode()


def test_a_step_runs_nothing_that_the_configuration_does_not_name(agent):
    code, answer, _ = asked(agent, ["/bin/sh", "-c", f"touch {agent.dir}/ran"])
    assert code == 0 and answer[8:] == b'{"Err":"NotNamed"}'
    assert not (agent.dir / "ran").exists()


def test_a_step_answers_the_daemons_user_alone(agent):
    code, answer, said = as_user(ALICE, asked, agent, ["/bin/true"])
    assert (code, answer) == (77, b"") and f"uid {ALICE} is not the daemon's user" in said


def test_a_step_trusts_no_configuration_that_the_daemon_could_have_written(agent):
    config = agent.dir / "written.toml"
    shutil.copy(agent.config, config)
    os.chown(config, BOB, BOB)
    code, answer, said = asked(agent, ["/bin/true"], config)
    assert (code, answer) == (78, b"") and f"belongs to uid {BOB}" in said
