"""`keyhatchd explain`: which rule decides, for a live process, a bot, an imagined peer, a past request.

Exit 0 allowed, 77 denied, 66 no such request, 2 usage. What it says is what the daemon does.
"""

import contextlib
import json
import os
import subprocess

import pytest

from harness import ALICE, BOB, CAROL, KEYHATCH, Agent, eventually

UNIT = f"keyhatch-test-{os.getpid()}.service"
SLEEP = os.path.realpath("/usr/bin/sleep")
POLICY = f"""
[[bot]]
name = "alice"
match = {{ uid = 20001 }}
roles = ["reader"]

[[bot]]
name = "unit-bot"
match = {{ uid = 20002, unit = "{UNIT}" }}
roles = ["lister"]

[[bot]]
name = "exe-bot"
match = {{ uid = 20003, exe = "{SLEEP}" }}
roles = ["reader"]

[[bot]]
name = "cgroup-bot"
match = {{ cgroup = "/machine.slice/*" }}
roles = ["reader"]

[[bot]]
name = "user-bot"
match = {{ user = "daemon" }}
roles = ["reader"]

[role.reader]
grants = [
  {{ secrets = ["app/*"] }},
  {{ secrets = ["app/rotating"], actions = ["rotate"] }},
]
deny = [{{ secrets = ["app/admin"] }}]

[role.lister]
grants = [{{ secrets = ["app/**"], actions = ["list"] }}]
"""
SECRETS = {"app/key": "CANARY-a", "app/admin": "CANARY-b"}


@pytest.fixture(scope="module")
def agent():
    with Agent(policy=POLICY, secrets=SECRETS) as agent:
        yield agent


def explain(agent, *args):
    done = agent.verb("explain", "--config", agent.config, *args, check=False)
    assert "panicked" not in done.stderr and "CANARY" not in done.stdout + done.stderr
    return done


def says(agent, code, words, *args):
    """It ends with `code` and says all the words."""
    done = explain(agent, *args)
    text = done.stdout + done.stderr
    assert done.returncode == code, text
    for word in words:
        assert word in text, text
    return done


def place(agent, text):
    lines = agent.config.read_text().splitlines()
    return f"{agent.config}:{next(n for n, line in enumerate(lines, 1) if text in line)}"


@contextlib.contextmanager
def process(uid, unit=None):
    """A process of another uid, in a cgroup that is named as a unit's."""
    mounts = [line.split() for line in open("/proc/mounts")]
    root = next(mount[1] for mount in mounts if mount[2] == "cgroup2")
    folder = os.path.join(root, unit) if unit else None
    child = subprocess.Popen([SLEEP, "300"], user=uid, group=uid, extra_groups=[])
    try:
        if folder:
            os.mkdir(folder)
            with open(os.path.join(folder, "cgroup.procs"), "w") as procs:
                procs.write(str(child.pid))
        eventually(lambda: os.readlink(f"/proc/{child.pid}/exe") == SLEEP)
        yield child.pid
    finally:
        child.kill()
        child.wait()
        if folder:
            eventually(lambda: os.rmdir(folder) or True)


def test_a_bot_is_allowed_by_the_grant_on_its_line(agent):
    grant = place(agent, '["app/*"]')
    says(agent, 0, ["bot: alice", place(agent, 'name = "alice"'), "read app/key: allowed", f"decided by {grant}: ",
                    '{ secrets = ["app/*"] }'], "--secret", "app/key", "--bot", "alice")
    says(agent, 0, [f"decided by {place(agent, 'app/rotating')}: "],
         "--secret", "app/rotating", "--action", "rotate", "--bot", "alice")


def test_a_deny_wins_and_no_grant_is_a_denial(agent):
    says(agent, 77, ["denied, deny_rule", f"decided by {place(agent, 'deny =')}: "],
         "--secret", "app/admin", "--bot", "alice")
    says(agent, 77, ["denied, no_grant"], "--secret", "other/key", "--bot", "alice")
    says(agent, 77, ["denied, no_grant"], "--secret", "app/key", "--action", "rotate", "--bot", "alice")
    says(agent, 77, ["denied, no_grant"], "--secret", "app/key", "--bot", "unit-bot")
    says(agent, 0, ["allowed"], "--secret", "app/key", "--action", "list", "--bot", "unit-bot")


def test_a_process_that_runs_now_is_judged_by_its_uid_and_unit(agent):
    with process(BOB, UNIT) as pid:
        says(agent, 0, ["bot: unit-bot"], "--secret", "app/key", "--action", "list", "--pid", pid)
    with process(BOB) as pid:
        says(agent, 77, ["no_bot", "unit-bot", UNIT], "--secret", "app/key", "--action", "list", "--pid", pid)
    with process(ALICE, UNIT) as pid:
        says(agent, 0, ["bot: alice"], "--secret", "app/key", "--pid", pid)
    with process(CAROL) as pid:
        says(agent, 0, ["bot: exe-bot"], "--secret", "app/key", "--pid", pid)


def test_an_imagined_peer(agent):
    for facts, code, words in [
        ("uid=20001", 0, "bot: alice"),
        ("user=daemon", 0, "bot: user-bot"),
        (f"uid=20002,unit={UNIT}", 77, "bot: unit-bot"),
        ("uid=20002", 77, "unit-bot"),
        ("uid=5,cgroup=/machine.slice/x", 0, "bot: cgroup-bot"),
        (f"uid=20003,exe={SLEEP}", 0, "bot: exe-bot"),
        ("uid=20003,exe=/usr/bin/other", 77, "exe"),
        ("uid=20001,cgroup=/machine.slice/x", 0, "bot: cgroup-bot"),
        ("uid=0", 77, "no_bot"),
    ]:
        says(agent, code, [words], "--secret", "app/key", "--peer", facts)


def test_two_bots_that_match_alike_are_named(agent):
    with Agent(start=False, policy="""
[[bot]]
name = "one"
match = { gid = 7 }
roles = ["r"]
[[bot]]
name = "two"
match = { gid = 8 }
roles = ["r"]
[role.r]
grants = [{ secrets = ["**"] }]
""") as tie:
        says(tie, 77, ["ambiguous", "one, two"], "--secret", "app/key", "--peer", "uid=1,group=root,gid=7,group=mail")


def test_usage_is_2_and_a_bad_configuration_78(agent):
    for args in [
        [], ["--secret", "app/key"], ["--secret", "a//b", "--bot", "alice"], ["--bot", "alice"],
        ["--secret", "app/key", "--bot", "nobody"], ["--secret", "app/key", "--pid", "999999999"],
        ["--secret", "app/key", "--peer", "shoe=9"], ["--secret", "app/key", "--peer", "uid"],
        ["--secret", "app/key", "--peer", "uid=x"], ["--secret", "app/key", "--peer", "user=no-such-user"],
        ["--secret", "app/key", "--bot", "alice", "--action", "steal"],
        ["--secret", "app/key", "--bot", "alice", "--pid", "1"], ["--request", "x", "--secret", "app/key"],
    ]:
        assert explain(agent, *args).returncode == 2, args
    with Agent(start=False, policy="[agnet]") as bad:
        says(bad, 78, [f"{place(bad, '[agnet]')}: "], "--secret", "app/key", "--bot", "alice")


def test_a_denied_request_is_explained_by_the_id_that_its_403_named(agent):
    denied = agent.read("app/admin", ALICE)
    assert denied.status == 403
    says(agent, 77, ["deny_rule", f"decided by {place(agent, 'deny =')}: deny = "],
         "--request", denied.json()["request_id"])
    stranger = agent.read("app/key", 20099)
    says(agent, 77, ["no_bot", "the nearest bot is", "20099"], "--request", stranger.json()["request_id"])


def test_an_allowed_request_is_explained_by_the_id_in_its_record(agent):
    assert agent.read("app/key", ALICE).status == 200
    record = agent.records(event="secret.read", decision="allow")[-1]
    assert record["rule"] == place(agent, '["app/*"]')
    says(agent, 0, ["app/key", "alice", f"decided by {record['rule']}: "], "--request", record["request_id"])


def test_what_the_client_says_on_a_denial_leads_to_the_rule(agent):
    done = subprocess.run([KEYHATCH, "--socket", agent.socket, "get", "app/admin"], capture_output=True, text=True,
                          user=ALICE, group=ALICE, extra_groups=[])
    assert done.returncode == 77
    command = done.stderr.split("keyhatchd explain ", 1)[1].split()
    says(agent, 77, [f"decided by {place(agent, 'deny =')}"], *command)


def test_a_request_that_never_was_is_66(agent):
    for request in ["none", "", "x" * 5000, "41c384cc-ffffffffffff"]:
        assert explain(agent, "--request", request).returncode == 66


def test_it_says_what_the_daemon_does(agent):
    for uid in [0, ALICE, BOB, CAROL, 1]:
        for name in ["app/key", "app/admin", "app/none", "other"]:
            code = explain(agent, "--secret", name, "--peer", f"uid={uid}").returncode
            # Without the name it is 404 to those who may know, which is an allowed read as well.
            served = agent.read(name, uid).status in (200, 404)
            assert served == (code == 0), (uid, name)


def test_what_a_peer_chose_drives_no_terminal(agent):
    done = explain(agent, "--secret", "app/key", "--peer", "uid=5,cgroup=/x\x1b[2J,unit=a\x1b]0;b.service")
    assert done.returncode == 77 and "\x1b" not in done.stdout + done.stderr


def test_records_are_not_changed_by_asking(agent):
    before = json.dumps(agent.records())
    explain(agent, "--secret", "app/key", "--bot", "alice")
    assert json.dumps(agent.records()) == before
