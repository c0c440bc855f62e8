"""`keyhatch doctor` with a real daemon: what it finds, what it says to do, and that it tells nothing more than a read."""

import json
import os
import re
import subprocess

import pytest

from harness import ALICE, BOB, CAROL, CANARY, KEYHATCH, Agent, as_user

SECRETS = {"app/key": CANARY, "app/denied": "CANARY-d", "other/key": "CANARY-o", "quiet/key": "CANARY-q"}
POLICY = """
[[bot]]
name = "alice"
match = { uid = 20001 }
roles = ["reader"]

[[bot]]
name = "carol"
match = { uid = 20003 }
roles = ["lister"]

[role.reader]
grants = [{ secrets = ["app/**"] }, { secrets = ["quiet/*"], actions = ["read"] }]
deny = [{ secrets = ["app/denied"] }]

[role.lister]
grants = [{ secrets = ["app/**"], actions = ["list"] }]
"""


@pytest.fixture(scope="module")
def shared():
    with Agent(policy=POLICY, secrets=SECRETS) as agent:
        yield agent


@pytest.fixture
def own():
    with Agent(policy=POLICY, secrets=SECRETS) as agent:
        yield agent


def keyhatch(agent, *args, uid=ALICE):
    done = subprocess.run([KEYHATCH, "--socket", str(agent.socket), *args], capture_output=True, text=True, timeout=30, user=uid,
                          group=uid, extra_groups=[], cwd="/", env={})
    assert "panicked" not in done.stderr and "CANARY" not in done.stderr
    return done


def doctor(agent, *args, uid=ALICE):
    """Exit code, findings by check, and the whole document."""
    done = keyhatch(agent, "doctor", *args, "--json", uid=uid)
    said = json.loads(done.stdout)
    assert "CANARY" not in done.stdout
    assert (said["exit"], said["ok"]) == (done.returncode, done.returncode == 0)
    plain = keyhatch(agent, "doctor", *args, uid=uid)
    assert plain.returncode == done.returncode
    lines = [line for line in plain.stdout.splitlines() if re.match(r"(ok|problem) ", line)]
    assert [line.split()[:2] for line in lines] == [["ok" if c["ok"] else "problem", c["check"]] for c in said["checks"]]
    assert all(c.get("do") for c in said["checks"] if not c["ok"])
    return done.returncode, {c["check"]: c for c in said["checks"]}, said


def problem(agent, *args, uid=ALICE):
    code, checks, _ = doctor(agent, *args, uid=uid)
    return code, [name for name, check in checks.items() if not check["ok"]]


def test_all_is_well(shared):
    code, checks, _ = doctor(shared, "app/key")
    assert code == 0 and list(checks) == ["socket", "agent", "identity", "bot", "grants", "secret"]
    assert f"uid {0}" in checks["socket"]["found"] and f"pid {shared.pid}" in checks["socket"]["found"]
    assert f"uid {ALICE}" in checks["identity"]["found"] and "alice" in checks["bot"]["found"]
    assert doctor(shared)[0] == 0 and doctor(shared, "quiet/key")[0] == 0


def test_the_exit_code_is_that_of_a_read(own):
    for name, uid in [("app/key", ALICE), ("app/none", ALICE), ("other/key", ALICE), ("other/none", ALICE), ("app/key", BOB),
                      ("app/key", CAROL), ("a//b", ALICE), ("quiet/key", ALICE)]:
        done = keyhatch(own, "doctor", name, uid=uid)
        assert done.returncode == keyhatch(own, "get", name, uid=uid).returncode, (name, uid, done.stdout)
    own.ops("seal")
    assert problem(own, "app/key") == (75, ["agent"])
    assert "keyhatchd unseal" in doctor(own)[1]["agent"]["do"]
    own.stop()
    assert problem(own) == (69, ["socket"])


def test_the_socket(own):
    own.stop()
    own.socket.unlink(missing_ok=True)
    assert "there is no" in doctor(own)[1]["socket"]["found"]
    own.socket.write_text("")
    assert "is no socket" in doctor(own)[1]["socket"]["found"]
    own.socket.unlink()
    own.start()
    os.chmod(own.socket, 0o600)
    assert "may not connect" in doctor(own)[1]["socket"]["found"]
    os.chmod(own.socket.parent, 0o700)
    assert "may not enter" in doctor(own)[1]["socket"]["found"]


def test_who_is_not_a_bot_and_who_has_no_grant(shared):
    assert problem(shared, uid=BOB) == (77, ["bot"])
    assert problem(shared, uid=CAROL) == (77, ["grants"])
    assert problem(shared, "other/key") == (77, ["grants"])


def test_what_is_denied_and_what_does_not_exist_are_told_alike(shared):
    def said(name, uid):
        text = keyhatch(shared, "doctor", name, uid=uid).stdout
        return re.sub(r"pid \d+", "pid N", text.replace(name, "NAME"))

    assert said("other/key", ALICE) == said("other/none", ALICE)
    assert said("app/key", BOB) == said("app/none", BOB)
    assert said("app/denied", ALICE) == said("app/none", ALICE)


def test_the_line_for_operators_is_one_that_works(shared):
    for name, uid, code in [("other/key", ALICE, 77), ("app/key", BOB, 77), ("app/key", ALICE, 0)]:
        line = doctor(shared, name, uid=uid)[2]["explain"]
        words = line.split()
        assert words[:2] == ["keyhatchd", "explain"]
        assert shared.verb(*words[1:], "--config", shared.config, check=False).returncode == code
    assert "For an operator: keyhatchd explain --secret other/key" in keyhatch(shared, "doctor", "other/key").stdout


def test_no_secret_is_read(shared):
    before = len(shared.records(event="secret.read"))
    doctor(shared, "app/key")
    assert len(shared.records(event="secret.read")) == before
    assert as_user(ALICE, lambda: shared.read("app/key").status) == 200
    assert len(shared.records(event="secret.read")) == before + 1, "the test can see one"
