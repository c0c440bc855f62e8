"""Rotation on schedule and when asked: new values, grace, programs of the operator's, and a daemon that is killed."""

import json
import os
import signal
import subprocess
import time

import boto3
import pytest
from botocore.config import Config

from harness import ALICE, BOB, CANARY, KEYHATCH, ROOT, UnixHTTP, eventually
from rotating import GENERATED, POLICY, Rotating, release


@pytest.fixture(scope="module")
def shared():
    with Rotating(GENERATED, secrets={"app/key": CANARY, "app/other": "x"}) as agent:
        yield agent


def test_a_random_value_comes_when_asked_and_the_old_one_stays_for_its_grace(shared):
    before = shared.read("app/key").json()
    assert shared.rotate(ALICE).json()["code"] == "denied"
    assert shared.rotate(BOB).json()["code"] == "denied"
    begun = shared.rotate()
    assert begun.status == 202, begun
    eventually(lambda: shared.value() != CANARY)
    value = shared.value()
    assert len(value) == 12 and set(value) <= set("abc")
    after = shared.read("app/key").json()
    assert begun.json() == {"name": "app/key", "version": after["version"]}
    assert shared.value("?version=previous") == CANARY
    assert shared.read("app/key?version=" + before["version"]).status == 200
    again = eventually(lambda: (reply := shared.rotate()).status == 409 and reply.json()["code"] == "in_grace" and reply)
    assert "seconds" in again.json()["detail"]
    asked = shared.records(event="secret.rotate", decision="allow")
    assert asked[0]["secret"] == "app/key" and asked[0]["peer"]["uid"] == 0
    assert [r["version"] for r in shared.records(event="secret.rotated")] == [after["version"]]
    standing = shared.standing()
    assert (standing["state"], standing["result"], standing["driver"]) == ("in_grace", "done", "generate")
    assert "in grace until" in shared.ops("rotation", "status").stdout


def test_the_command_and_aws_ask_for_one_too(shared):
    def keyhatch(*args, uid=0):
        done = subprocess.run(
            [KEYHATCH, "--socket", shared.socket, "rotate", *args], capture_output=True, text=True, user=uid, group=uid,
            extra_groups=[],
        )
        return done.returncode, done.stdout + done.stderr
    eventually(lambda: shared.standing()["state"] == "in_grace")
    code, said = keyhatch("app/key")
    assert code == 75 and "still needed" in said, said
    assert keyhatch("app/key", uid=ALICE)[0] == 77
    code, said = keyhatch("app/other")
    assert code == 2 and "no rotation is configured" in said, said
    assert shared.rotate(name="app/none").status == 404

    # The emergency ends the grace time, and a rotation can follow at once.
    shared.put("app/key", "CANARY-emergency", check=True)
    shared.ops("store", "put", "app/key", "--revoke-previous", stdin=b"CANARY-emergency")
    assert shared.value("?version=previous") == 404
    code, said = keyhatch("app/key", "--json")
    assert code == 0, said
    version = json.loads(said)["version"]
    eventually(lambda: shared.read("app/key").json()["version"] == version)

    shared.ops("store", "put", "app/key", "--revoke-previous", stdin=b"CANARY-again")
    with Bridge(shared) as url:
        aws = boto3.client(
            "secretsmanager", region_name="eu-west-1", endpoint_url=url, aws_access_key_id="x", aws_secret_access_key="x",
            config=Config(retries={"total_max_attempts": 1}),
        )
        begun = aws.rotate_secret(SecretId="app/key")
        assert begun["Name"] == "app/key" and begun["ARN"].endswith("app/key-KeyHat")
        eventually(lambda: aws.get_secret_value(SecretId="app/key")["VersionId"] == begun["VersionId"])
        with pytest.raises(aws.exceptions.InvalidRequestException, match="still needed"):
            aws.rotate_secret(SecretId="app/key")
        with pytest.raises(aws.exceptions.InvalidRequestException, match="No rotation is configured"):
            aws.rotate_secret(SecretId="app/other")


class Bridge:
    def __init__(self, agent):
        self.agent = agent

    def __enter__(self):
        self.process = subprocess.Popen(
            [KEYHATCH, "--socket", self.agent.socket, "bridge"], stdout=subprocess.PIPE, text=True)
        return self.process.stdout.readline().strip()

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()


def test_a_program_is_called_once_a_step_and_bots_read_the_old_value_until_the_last():
    with Rotating('every = "30d"\ngrace = "1h"\nEXEC') as agent:
        for step in ["create", "set", "test", "finish"]:
            (agent.far / f"hold-{step}").touch()
        assert agent.rotate().status == 202
        for step in ["create", "set", "test", "finish"]:
            eventually(lambda: (agent.far / f"held-{step}").exists())
            assert agent.value() == CANARY
            assert agent.value("?version=previous") == 404
            reply = agent.rotate()
            assert reply.status == 409 and "running" in reply.json()["detail"]
            assert agent.standing()["step"] == step
            (agent.far / f"hold-{step}").unlink()
            release(agent)
        eventually(lambda: agent.value() == "CANARY-1")
        assert agent.calls() == [
            ["create", CANARY], ["set", CANARY, "CANARY-1"], ["test", CANARY, "CANARY-1"], ["finish", CANARY, "CANARY-1"],
        ]


@pytest.mark.parametrize("step", ["create", "set", "test", "finish"])
def test_a_kill_at_any_step_leaves_a_working_value_and_the_rotation_goes_on(step):
    with Rotating('every = "30d"\ngrace = "1h"\nEXEC') as agent:
        (agent.far / f"hold-{step}").touch()
        assert agent.rotate().status == 202
        eventually(lambda: (agent.far / f"held-{step}").exists())
        agent.stop(signal.SIGKILL)
        (agent.far / f"hold-{step}").unlink()
        agent.start()
        # What bots read is accepted at every moment.
        while (value := agent.value()) == CANARY:
            assert CANARY in (agent.far / "accepted").read_text().split()
            time.sleep(0.02)
        assert value in (agent.far / "accepted").read_text().split()
        eventually(lambda: agent.standing()["state"] == "in_grace")
        assert agent.value("?version=previous") == CANARY
        steps = [call[0] for call in agent.calls()]
        # That step was done again, no later one before it, and a value that was kept is the one that goes on.
        at = ["create", "set", "test", "finish"].index(step)
        order = ["create", "set", "test", "finish"]
        assert steps == order[: at + 1] + order[at:]
        assert len(agent.records(event="secret.rotated")) == 1
        agent.verify()


def test_what_fails_is_told_with_its_step_and_tried_again_with_the_same_value():
    with Rotating('every = "10s"\ngrace = "1s"\nEXEC') as agent:
        (agent.far / "fail-test").touch()
        alert = eventually(lambda: agent.records(event="alert.rotation_failed"), 30)[0]
        assert (alert["secret"], alert["step"], alert["driver"]) == ("app/key", "test", "exec")
        assert "exit code 3" in alert["why"]
        assert agent.value() == CANARY
        eventually(lambda: agent.standing()["state"] == "failing")
        assert agent.standing()["step"] == "test"
        said = agent.ops("rotation", "status").stdout
        assert "! at test: " in said and "exit code 3" in said
        assert b'keyhatch_rotations_failing 1' in UnixHTTP(agent.admin_socket).get("/v1/metrics").body
        (agent.far / "fail-test").unlink()
        eventually(lambda: agent.value() == "CANARY-1", 30)
        assert [call[0] for call in agent.calls()].count("create") == 1
        # Of what nobody asked for there is a record, too, before the program gets the value.
        scheduled = agent.records(event="secret.rotate", surface="schedule")
        assert scheduled[0]["decision"] == "info" and scheduled[0]["seq"] < alert["seq"]
        # Its grace time ends, and the version before with it.
        eventually(lambda: agent.value("?version=previous") == 404)
        for path, written in agent.everything_written():
            if path.parent != agent.far:
                assert b"CANARY" not in written, path


def test_a_value_that_an_operator_puts_meanwhile_is_not_overwritten():
    with Rotating('every = "30d"\ngrace = "1h"\nEXEC') as agent:
        (agent.far / "hold-set").touch()
        assert agent.rotate().status == 202
        eventually(lambda: (agent.far / "held-set").exists())
        agent.put("app/key", "CANARY-mine")
        (agent.far / "hold-set").unlink()
        release(agent)
        alert = eventually(lambda: agent.records(event="alert.rotation_failed"))[0]
        assert "changed meanwhile" in alert["why"]
        assert agent.value() == "CANARY-mine"
        assert agent.standing()["result"] == "given up"
        assert agent.rotate().status == 202


def test_what_comes_due_while_the_daemon_is_down_is_done_once():
    rotation = 'every = "2s"\ngrace = "1s"\ndriver = { kind = "generate" }\n'
    with Rotating(rotation) as agent:
        agent.ended(2)
        agent.stop()
        time.sleep(5)
        before = len(agent.records(event="secret.rotated"))
        agent.start()
        agent.ended(before + 2)
        times = [r["time"] for r in agent.records(event="secret.rotated")][before:]
        seconds = [time.mktime(time.strptime(t[:19], "%Y-%m-%dT%H:%M:%S")) for t in times]
        # One at the start for all that was due, the next one a whole span later.
        assert seconds[1] - seconds[0] >= 1, times


def test_a_reload_takes_rotations_and_another_hosts_are_left_alone():
    with Rotating(GENERATED) as agent:
        agent.rotate_by(GENERATED + 'host = "somewhere-else"\n')
        agent.ops("reload")
        refused = agent.rotate()
        assert refused.status == 400 and "somewhere-else" in refused.json()["detail"]
        assert agent.standing()["state"] == "elsewhere"
        assert "on host somewhere-else" in agent.ops("rotation", "status").stdout
        agent.write_policy(POLICY)
        agent.ops("reload")
        assert "no rotation is configured" in agent.rotate().json()["detail"]
        assert "no [[rotation]]" in agent.ops("rotation", "status").stdout


def test_postgres_roles_take_turns_and_no_query_fails(postgres):
    """The example of the documents, every two seconds, against a bot that logs in anew for each query."""
    admin = f"host=127.0.0.1 port={postgres.port} dbname=postgres"
    with Rotating(GENERATED, secrets={"app/key": json.dumps({"user": "app_a", "password": "CANARY-first"})}) as agent:
        (agent.far / "services").write_text(
            f"[keyhatch-admin]\n{admin} user={postgres.user}\n[keyhatch-login]\n{admin}\n".replace(" ", "\n"))
        passwords = agent.far / "passwords"
        passwords.write_text(f"127.0.0.1:{postgres.port}:*:{postgres.user}:{postgres.password}\n")
        passwords.chmod(0o600)
        roles = "CREATE ROLE app; CREATE ROLE app_a LOGIN PASSWORD 'CANARY-first' IN ROLE app; CREATE ROLE app_b IN ROLE app;"
        subprocess.run(
            ["psql", "-qX", "-v", "ON_ERROR_STOP=1", f"{admin} user={postgres.user}"], input=roles.encode(), check=True,
            env=os.environ | {"PGPASSFILE": str(passwords)},
        )
        driver = agent.far / "rotate"
        driver.write_text(
            f"#!/bin/sh\nexport PGSERVICEFILE={agent.far}/services PGPASSFILE={passwords}\n"
            f"exec {ROOT}/docs/examples/rotate-postgres app_a app_b \"$1\" 2>>{agent.far}/errors\n")
        agent.rotate_by('every = "2s"\ngrace = "1s"\nEXEC')
        agent.restart()
        queries, again, failed, roles_seen = 0, 0, 0, set()
        # KEYHATCH_SOAK=120 shows it for longer.
        seconds = int(os.environ.get("KEYHATCH_SOAK", "20"))
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for attempt in range(2):
                value = agent.read("app/key").json()["value"]
                secret = json.loads(value)
                roles_seen.add(secret["user"])
                if postgres.lets_in(secret["user"], secret["password"]):
                    break
                again += attempt == 0
                failed += attempt
            queries += 1
        done = len(agent.records(event="secret.rotated"))
        assert (failed, roles_seen) == (0, {"app_a", "app_b"}), (queries, again, failed, done, errors(agent))
        assert done >= seconds / 5 and queries > seconds, (done, queries, errors(agent))
        assert not agent.records(event="alert.rotation_failed"), errors(agent)
        print(f"{queries} queries, {done} rotations, {again} read again, {failed} failed")


def errors(agent):
    path = agent.far / "errors"
    return path.read_text() if path.exists() else ""
