"""Rotations that meet trouble: an agent sealed in a step, a disk that takes nothing, state that was tampered with,
programs that misbehave."""

import os

import pytest

from harness import CANARY, eventually
from rotating import GENERATED, POLICY, Rotating, release

EXEC = 'every = "30d"\ngrace = "1h"\nEXEC'
STEPS = ["create", "set", "test", "finish"]


def hold(agent, step):
    (agent.far / f"hold-{step}").touch()


def held(agent, step):
    eventually(lambda: (agent.far / f"held-{step}").exists())


def let_go(agent, step):
    (agent.far / f"hold-{step}").unlink()
    release(agent)


def drivers(agent):
    """The driver programs that run."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as line:
                found += [pid] * (f"{agent.far}/rotate".encode() in line.read().split(b"\0"))
        except (FileNotFoundError, ProcessLookupError):
            pass
    return found


@pytest.mark.parametrize("step", STEPS)
def test_a_seal_ends_the_program_that_holds_the_values_and_unseal_goes_on(step):
    with Rotating(EXEC) as agent:
        hold(agent, step)
        assert agent.rotate().status == 202
        held(agent, step)
        assert drivers(agent)
        agent.ops("seal")
        eventually(lambda: not drivers(agent), 2)
        (agent.far / f"hold-{step}").unlink()
        assert agent.standing()["step"] == step, "nothing goes on while sealed"
        agent.ops("unseal")
        eventually(lambda: agent.value() not in (CANARY, 503))
        eventually(lambda: agent.standing()["state"] == "in_grace")
        assert [call[0] for call in agent.calls()] == STEPS[: STEPS.index(step) + 1] + STEPS[STEPS.index(step) :]
        assert not agent.records(event="alert.rotation_failed"), "an operator's seal is no failure"


def test_no_step_begins_before_the_one_before_it_is_on_disk():
    with Rotating(EXEC) as agent:
        hold(agent, "set")
        assert agent.rotate().status == 202
        held(agent, "set")
        (agent.state / "rotation.json.new").mkdir()  # nothing can be remembered
        let_go(agent, "set")
        eventually(lambda: agent.log.read_text().count("cannot be remembered") > 1)
        assert [call[0] for call in agent.calls()] == ["create", "set"] and agent.value() == CANARY
        (agent.state / "rotation.json.new").rmdir()
        eventually(lambda: agent.value() == "CANARY-1")
        assert [call[0] for call in agent.calls()] == STEPS


def test_a_store_that_takes_nothing_fails_the_step_and_it_is_tried_again():
    with Rotating('every = "10s"\ngrace = "1s"\nEXEC') as agent:
        hold(agent, "finish")
        agent.rotate()
        held(agent, "finish")
        (agent.store_dir / "store.khs.next").mkdir()
        let_go(agent, "finish")
        (alert, *_) = eventually(lambda: agent.records(event="alert.rotation_failed"))
        assert alert["step"] == "finish" and agent.value() == CANARY
        (agent.store_dir / "store.khs.next").rmdir()
        eventually(lambda: agent.value() == "CANARY-1")


def test_nobody_reads_a_value_before_it_is_the_current_one_whichever_way_it_is_asked():
    with Rotating(EXEC) as agent:
        hold(agent, "test")
        version = agent.rotate().json()["version"]
        held(agent, "test")
        paths = [
            f"/v1/secrets/app/key?version={version}", "/v1/secrets/app/key?version=pending", "/v1/secrets/app/key?version=2",
            "/v1/secrets?prefix=", "/v1/secret/data/app/key?version=2", "/v1/secret/metadata/app/key",
            f"/secretsmanager/get?secretId=app/key&versionId={version}",
            "/secretsmanager/get?secretId=app/key&versionStage=AWSPENDING",
            "/secretsmanager/get?secretId=app/key&refreshNow=true",
        ]
        connection = agent.connect()
        for path in paths:
            reply = connection.get(path)
            body = reply.body.decode()
            assert "CANARY-1" not in body and (version in path or version not in body), path
            assert version not in path or reply.status in (400, 404), reply
        for verb in [["store", "get", "app/key", *agent.files()], ["store", "list", "--json"], ["rotation", "status"]]:
            ask = agent.verb if "--store" in verb else agent.ops
            assert "CANARY-1" not in ask(*verb).stdout
        agent.restart()
        assert agent.read(f"app/key?version={version}").status == 404


PROGRAMS = {
    "endless": ("while :; do printf CANARY-endless; done", "more than"),
    "long": ("""printf '{"value": "'; head -c 65537 /dev/zero | tr '\\0' x; printf '"}'""", "65536 bytes"),
    "no text": (r"""printf '{"value": "CANARY-\377"}'""", "create"),
    "nothing": ("true", "create"),
    "hangs": ("sleep 60", "did not end within"),
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_that_misbehaves_is_told_of_without_a_word_of_what_it_wrote(program):
    script, why = PROGRAMS[program]
    with Rotating(GENERATED) as agent:
        (agent.far / "rotate").write_text(f"#!/bin/sh\n{script}\n")
        agent.rotate_by(EXEC.replace("EXEC", agent.exec.replace("40s", "2s")))
        agent.restart()
        assert agent.rotate().status == 202
        (alert,) = eventually(lambda: agent.records(event="alert.rotation_failed"))
        assert why in alert["why"] and alert["step"] == "create", alert
        assert agent.value() == CANARY and not drivers(agent)
        for path, written in agent.everything_written():
            assert path.parent == agent.far or b"CANARY" not in written, path


def test_what_a_program_leaves_behind_holds_nobody_up():
    with Rotating(GENERATED) as agent:
        (agent.far / "rotate").write_text(
            "#!/bin/sh\nsetsid sleep 3333 & sleep 3333 &\n[ $1 = create ] && printf '{\"value\": \"CANARY-1\"}'\nexit 0\n")
        agent.rotate_by(EXEC)
        agent.restart()
        assert agent.rotate().status == 202
        eventually(lambda: agent.value() == "CANARY-1")


TAMPERED = {
    "garbage": (lambda path: path.write_text("CANARY{"), "put a good copy back"),
    "cut short": (lambda path: path.write_bytes(path.read_bytes()[:-9]), "put a good copy back"),
    "empty": (lambda path: path.write_text(""), "put a good copy back"),
    "anyone may write it": (lambda path: path.chmod(0o666), "others may write it"),
    "another user's": (lambda path: os.chown(path, 20001, 20001), "belongs to uid 20001"),
    "a link": (lambda path: (path.rename(path.with_suffix(".kept")), path.symlink_to(path.with_suffix(".kept"))), "link"),
}


@pytest.mark.parametrize("how", TAMPERED)
def test_what_is_remembered_is_refused_where_it_is_not_as_the_daemon_wrote_it(how):
    tamper, why = TAMPERED[how]
    with Rotating(GENERATED) as agent:
        agent.rotate()
        agent.ended()
        agent.stop()
        path = agent.state / "rotation.json"
        tamper(path)
        agent.log.write_text("")
        agent.start(ready=False)
        assert agent.process.wait(10) != 0
        agent.process = None
        said = agent.log.read_text()
        assert str(path) in said and why in said and "CANARY" not in said, said


def test_a_rotation_that_a_reload_takes_away_in_a_step_goes_on_when_it_is_back():
    with Rotating(EXEC) as agent:
        hold(agent, "test")
        agent.rotate()
        held(agent, "test")
        agent.write_policy(POLICY)
        agent.ops("reload")
        let_go(agent, "test")
        eventually(lambda: not drivers(agent))
        assert agent.value() == CANARY and agent.calls()[-1][0] == "test"
        agent.rotate_by(EXEC)
        agent.ops("reload")
        eventually(lambda: agent.value() == "CANARY-1")
        assert [call[0] for call in agent.calls()].count("create") == 1
