"""Reload, by `keyhatchd reload` and by SIGHUP: whole or not at all, and on record either way."""

import signal
import threading

import pytest

from harness import ALICE, BOB, CANARY, Agent, UnixHTTP, eventually

# Root is a peer like any other: it stands for a bot whose connection is kept by the test itself.
ROOT_BOT = """
[[bot]]
name = "root"
match = { uid = 0 }
roles = ["reader"]
"""
POLICY = Agent.POLICY + ROOT_BOT
REVOKED = POLICY.replace('"app/**"', '"nothing/**"')
BROKEN = POLICY.replace("grants", "grant")


@pytest.fixture
def agent():
    with Agent(policy=POLICY) as agent:
        yield agent


def refused(agent, *words):
    """A reload that is refused says why, with 78, and leaves what runs as it was."""
    done = agent.ops("reload", check=False)
    assert done.returncode == 78, (done.stdout, done.stderr)
    for word in words:
        assert word in done.stderr, done.stderr
    assert agent.read("app/key", ALICE).json()["value"] == CANARY
    return done.stderr


def test_a_new_policy_counts_once_reload_returns(agent):
    loaded = len(agent.records(event="policy.loaded"))
    agent.write_policy(REVOKED)
    assert agent.read("app/key", ALICE).status == 200, "a changed file alone changes nothing"
    assert agent.ops("reload").stdout == "reloaded\n"
    assert agent.read("app/key", ALICE).status == 403
    assert len(agent.records(event="policy.loaded")) == loaded + 1
    agent.write_policy(POLICY)
    agent.ops("reload")
    assert agent.read("app/key", ALICE).status == 200


def test_sighup_reloads_and_records(agent):
    agent.write_policy(REVOKED)
    agent.process.send_signal(signal.SIGHUP)
    eventually(lambda: agent.read("app/key", ALICE).status == 403)
    agent.write_policy(BROKEN)
    agent.process.send_signal(signal.SIGHUP)
    record = eventually(lambda: agent.records(event="policy.rejected"))[-1]
    assert any(f"{agent.config}:" in problem and "`grants`" in problem for problem in record["problems"])
    assert agent.process.poll() is None
    assert agent.read("app/key", ALICE).status == 403, "the running policy is the one before"


def test_a_refused_reload_names_file_and_line_and_leaves_the_policy_that_ran(agent):
    agent.write_policy(BROKEN)
    line = 1 + agent.config.read_text().splitlines().index('grant = [{ secrets = ["app/**"] }]')
    said = refused(agent, f"{agent.config}:{line}: unknown key", "did you mean `grants`?")
    problems = agent.records(event="policy.rejected")[-1]["problems"]
    assert problems == said.splitlines()
    assert [r["event"] for r in agent.records() if r["event"].startswith("policy.")].count("policy.loaded") == 1


def test_nothing_of_a_refused_file_takes_effect(agent):
    bob = Agent.POLICY.split("[role")[0].replace("alice", "bob").replace("20001", "20002")
    agent.write_policy(POLICY + bob + "[agnet]\n")
    refused(agent, "did you mean `agent`?")
    assert agent.read("app/key", BOB).status == 403
    agent.write_policy(POLICY + bob)
    (agent.dir / "conf.d").mkdir(mode=0o755)
    (agent.dir / "conf.d" / "z.toml").write_text("[agnet]\n")
    refused(agent, "z.toml:1: ")
    assert agent.read("app/key", BOB).status == 403
    (agent.dir / "conf.d" / "z.toml").unlink()
    agent.ops("reload")
    assert agent.read("app/key", BOB).status == 200


def test_loose_files_are_refused_at_a_reload_too(agent):
    agent.config.chmod(0o646)
    refused(agent, f"{agent.config}: others may write it")
    agent.config.chmod(0o644)
    agent.key.chmod(0o644)
    refused(agent, "the key", "anyone may read it")
    agent.key.chmod(0o600)
    agent.config.rename(agent.dir / "real.toml")
    agent.config.symlink_to(agent.dir / "real.toml")
    refused(agent, f"{agent.config}: is a symbolic link")


def test_who_reloaded_is_on_record(agent):
    agent.ops("reload")
    agent.write_policy(BROKEN)
    agent.ops("reload", check=False)
    records = agent.records(event="admin.reloaded")
    assert len(records) == 2
    for record in records:
        assert record["surface"] == "admin" and record["peer"]["uid"] == 0 and record["peer"]["pid"] > 0
        assert record["peer"]["exe"] is None, "under Landlock the kernel shows nobody's program"
    order = [r["event"] for r in agent.records() if r["event"] in ("admin.reloaded", "policy.loaded", "policy.rejected")]
    assert order == ["policy.loaded", "admin.reloaded", "policy.loaded", "admin.reloaded", "policy.rejected"]


def test_only_those_who_may_can_reload(agent):
    agent.write_policy(REVOKED)
    done = agent.ops("reload", check=False, user=ALICE, group=ALICE, extra_groups=[])
    assert done.returncode == 77
    assert agent.records(event="admin.denied")[-1]["peer"]["uid"] == ALICE
    assert agent.read("app/key", ALICE).status == 200


def test_a_revoked_grant_counts_at_the_next_request_of_a_kept_connection(agent):
    bot = agent.connect()
    assert bot.get("/v1/secrets/app/key").status == 200
    descriptor = bot.sock.fileno()
    for policy, status in [(REVOKED, 403), (POLICY, 200), (Agent.POLICY, 403), (POLICY, 200)]:
        agent.write_policy(policy)
        agent.ops("reload")
        assert bot.get("/v1/secrets/app/key").status == status
    assert bot.sock.fileno() == descriptor, "it is the connection of before"


@pytest.mark.parametrize("old, new, named", [
    ("run/keyhatch.sock", "run/other.sock", "[agent].socket"),
    ("run/admin.sock", "run/other.sock", "[agent].admin_socket"),
    ('/state"', '/other"', "[agent].state_dir"),
    ("[[source]]", 'metrics = "127.0.0.1:1"\n[[source]]', "[agent].metrics"),
    ('/store"', '/other"', "[[source]]"),
    ('name = "local"', 'name = "other"', "[[source]]"),
    ("store.key", "other.key", "[[source]]"),
    ('/audit"', '/other"', "[audit]"),
    ("journald = false", 'journald = false\non_failure = "allow"', "[audit]"),
])
def test_what_only_a_restart_can_change_is_refused_and_says_so(agent, old, new, named):
    assert old in agent.head
    agent.head = agent.head.replace(old, new)
    agent.write_policy(REVOKED)
    refused(agent, str(agent.config), f"{named} changed", "restart keyhatchd")
    # Where the words moved but say the same, there is nothing to restart for.
    agent.head = "# a comment\n" + agent.head.replace(new, old)
    agent.write_policy(POLICY)
    agent.ops("reload")


def test_a_file_that_changed_on_disk_is_reported_until_it_is_loaded(agent):
    admin = UnixHTTP(agent.admin_socket)

    def reported():
        metric = f"keyhatch_config_changed {int(agent.status()['config_changed_on_disk'])}\n"
        assert metric in admin.get("/v1/metrics").body.decode()
        shown = "the configuration on disk is not the one that runs" in agent.ops("status").stdout
        assert shown == metric.endswith("1\n")
        return shown

    assert not reported()
    agent.write_policy(REVOKED)
    assert reported()
    agent.write_policy(BROKEN)
    refused(agent)
    assert reported(), "a refused reload leaves it as it was"
    agent.write_policy(POLICY)
    assert reported()
    agent.ops("reload")
    assert not reported()
    (agent.dir / "conf.d").mkdir(mode=0o755)
    assert reported()
    agent.ops("reload")
    assert not reported()
    (agent.dir / "conf.d" / "a.toml").write_text("")
    assert reported()
    agent.ops("reload")
    (agent.dir / "conf.d" / "a.toml").write_text("# changed in place\n")
    assert reported()


def test_200_reloads_under_load_fail_no_read(agent):
    done, wrong, reads = threading.Event(), [], [0, 0, 0]

    def bot(number, keep):
        connection = agent.connect()
        while not done.is_set():
            if not keep:
                connection.close()
            reply = connection.get("/v1/secrets/app/key")
            reads[number] += 1
            if reply.status != 200 or reply.json()["value"] != CANARY:
                wrong.append(reply)
                return

    bots = [threading.Thread(target=bot, args=(number, number < 2)) for number in range(3)]
    for each in bots:
        each.start()
    try:
        admin = UnixHTTP(agent.admin_socket)
        for number in range(200):
            agent.write_policy(POLICY + f"# {number}\n" + ("", ROOT_BOT.replace("root", "other").replace("0 }", "7 }"))[number % 2])
            reply = admin.ask("POST", "/v1/reload")
            assert reply.status == 200, reply
    finally:
        done.set()
        for each in bots:
            each.join()
    assert not wrong and min(reads) > 0
    assert len(agent.records(event="policy.loaded")) == 201
    agent.verify()


def test_reloads_at_once_all_get_their_answer(agent):
    codes = []
    asked = [threading.Thread(target=lambda: codes.append(agent.ops("reload", check=False).returncode)) for _ in range(12)]
    for each in asked:
        each.start()
    for each in asked:
        each.join()
    assert codes == [0] * 12


def test_reload_without_a_daemon_is_69(agent):
    agent.stop()
    done = agent.ops("reload", check=False)
    assert done.returncode == 69 and "is keyhatchd running?" in done.stderr
