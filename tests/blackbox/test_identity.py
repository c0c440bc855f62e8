"""Who asks: the kernel's word on users, programs and units, and what does not change it.

One test a row of "who asks" in THREATS: each names the attack it shows refused. Other uids, namespaces and cgroups
are real, so all of it needs root.
"""

import contextlib
import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

from bots import CLONE_NEWUSER, LIBC, Bot, answer, ask, bind_over, cgroups, dial, send
from harness import ALICE, BOB, CANARY, CAROL, Agent, as_user, eventually
from peers import KEY, granted, policy, refused

GROUP, OTHER_GROUP = 30001, 30002


# Users and groups.


def test_primary_and_supplementary_groups_count():
    with Agent(policy(f"gid = {GROUP}")) as agent:
        read = lambda **who: as_user(BOB, lambda: ask(dial(agent.socket), KEY), **who)
        granted(read(gid=GROUP))
        granted(read(groups=[GROUP]))
        granted(read(groups=[*range(40000, 40100), GROUP]))
        refused(agent, read(groups=[OTHER_GROUP]), "no_bot")


def test_names_of_users_and_groups_are_looked_up_at_accept(tmp_path):
    passwd, group = tmp_path / "passwd", tmp_path / "group"
    shutil.copy("/etc/passwd", passwd)
    shutil.copy("/etc/group", group)
    accounts = {"preexec_fn": bind_over((passwd, "/etc/passwd"), (group, "/etc/group"))}
    with Agent(policy('user = "kh-alice"', 'group = "kh-crew"'), popen=accounts) as agent:
        refused(agent, agent.read("app/key", ALICE), "no_bot")
        in_crew = lambda: as_user(CAROL, lambda: ask(dial(agent.socket), KEY), groups=[GROUP])
        refused(agent, in_crew(), "no_bot")
        with passwd.open("a") as accounts:
            accounts.write(f"kh-alice:x:{ALICE}:{ALICE}::/:/bin/false\n")
        with group.open("a") as groups:
            groups.write(f"kh-crew:x:{GROUP}:\n")
        eventually(lambda: granted(agent.read("app/key", ALICE)))
        granted(in_crew())
        refused(agent, agent.read("app/key", BOB), "no_bot")


def test_a_bot_of_the_overflow_uid_is_refused_by_check_and_nobody_matches_it():
    with Agent(start=False) as agent:
        for uid, why in ((65534, "never matches"), (61184, "DynamicUser"), (65519, "DynamicUser")):
            agent.write_policy(policy(f"uid = {uid}"))
            done = agent.verb("check", "--config", agent.config, check=False)
            assert done.returncode == 78 and why in done.stderr and f"{agent.config}:" in done.stderr, done
        agent.write_policy(policy('uid = 61184, unit = "x.service"'))
        agent.verb("check", "--config", agent.config)


def test_a_peer_that_arrives_as_the_overflow_uid_matches_nothing_not_even_by_its_group():
    with Agent(policy(f"gid = {GROUP}", f"uid = {ALICE}")) as agent:
        reply = as_user(65534, lambda: ask(dial(agent.socket), KEY), gid=GROUP, groups=[GROUP])
        record = refused(agent, reply, "no_bot")
        assert "no mapping" in record["nearest"]
        who = as_user(65534, lambda: ask(dial(agent.socket), "/v1/whoami"), gid=65534).json()
        assert who["uid"] is None and who["gid"] is None


def test_a_user_namespace_changes_nothing_the_kernel_maps_its_uids():
    with Agent(policy(f"uid = {ALICE}", "uid = 0")) as agent:
        # Bob, root of his own namespace, is Bob.
        with Bot(agent, BOB) as bob:
            bob.do("unshare_user")
            Path(f"/proc/{bob.pid}/setgroups").write_text("deny")
            Path(f"/proc/{bob.pid}/uid_map").write_text(f"0 {BOB} 1")
            Path(f"/proc/{bob.pid}/gid_map").write_text(f"0 {BOB} 1")
            bob.do("become", 0)
            record = refused(agent, ask(bob.connect(), KEY), "no_bot")
            assert record["peer"]["uid"] == BOB
        # Without any map, his uid inside is the overflow uid; outside it is his own.
        with Bot(agent, BOB) as bob:
            bob.do("unshare_user")
            assert refused(agent, ask(bob.connect(), KEY), "no_bot")["peer"]["uid"] == BOB
        # A container's Alice is another user of the host.
        with Bot(agent, 0) as container:
            container.do("unshare_user")
            Path(f"/proc/{container.pid}/uid_map").write_text("0 200000 65536")
            Path(f"/proc/{container.pid}/gid_map").write_text("0 200000 65536")
            container.do("become", 0)
            container.do("become", ALICE)
            record = refused(agent, ask(container.connect(), KEY), "no_bot")
            assert record["peer"]["uid"] == 200000 + ALICE


def test_an_agent_that_cannot_tell_users_apart_does_not_start():
    with Agent(start=False, popen={"preexec_fn": lambda: LIBC.unshare(CLONE_NEWUSER)}) as agent:
        agent.start(ready=False)
        assert agent.process.wait(timeout=20) == 78
        agent.process = None
        assert "user namespace" in agent.log.read_text()
        assert not agent.socket.exists()


def test_a_peer_that_two_bots_match_is_nobody():
    with Agent(policy(f"gid = {GROUP}", f"gid = {OTHER_GROUP}")) as agent:
        read = lambda groups: as_user(BOB, lambda: ask(dial(agent.socket), KEY), groups=groups)
        granted(read([GROUP]))
        refused(agent, read([GROUP, OTHER_GROUP]), "ambiguous_bot")


# Programs.


@contextlib.contextmanager
def programs(**given):
    """An agent with Python as `bot`, and another program with other content beside it."""
    with Agent(start=False, **given) as agent:
        agent.bot, agent.other = agent.dir / "bot", agent.dir / "other"
        shutil.copy(Path(sys.executable).resolve(), agent.bot)
        shutil.copy(agent.bot, agent.other)
        with agent.other.open("ab") as other:
            other.write(b"another program")
        agent.sleep = shutil.which("sleep")
        yield agent


def by_exe(agent):
    return policy(f'uid = {ALICE}, exe = "{agent.bot}"')


def test_exe_selects_the_program_and_no_other_of_the_same_user():
    with programs() as agent:
        agent.write_policy(by_exe(agent))
        agent.start()
        with Bot(agent, ALICE, agent.bot) as good, Bot(agent, ALICE, agent.other) as bad, Bot(agent, BOB, agent.bot) as bob:
            granted(ask(good.connect(), KEY))
            assert "exe" in refused(agent, ask(bad.connect(), KEY), "no_bot")["nearest"]
            refused(agent, ask(bob.connect(), KEY), "no_bot")


def test_a_bot_that_executes_another_program_is_refused_on_the_connection_it_had():
    with programs() as agent:
        agent.write_policy(by_exe(agent))
        agent.start()
        with Bot(agent, ALICE, agent.bot) as alice:
            connection, waiting = alice.connect(), alice.connect()
            version = granted(ask(connection, KEY)).json()["version"]
            send(waiting, KEY, headers={"If-None-Match": f'"{version}"', "Prefer": "wait=60"})
            alice.exec(agent.sleep)
            for path in (KEY, "/v1/secrets/app/none"):
                refused(agent, ask(connection, path), "peer_changed")
            refused(agent, ask(connection, "/v1/secrets"), "peer_changed")
            batch = ask(connection, "/v1/batch", "POST", body=b'{"names":["app/key"]}').json()
            assert batch == {"secrets": [], "errors": [{"name": "app/key", "code": "denied"}]}
            # The long poll is judged again as it wakes.
            agent.put("app/key", "CANARY-after-the-exec")
            refused(agent, answer(waiting), "peer_changed")
            # A reload looks at the same process, not at what it shows now.
            agent.ops("reload")
            refused(agent, ask(connection, KEY), "peer_changed")


def test_another_program_under_the_right_path_of_its_own_mount_namespace_is_refused():
    with programs() as agent:
        agent.write_policy(by_exe(agent))
        agent.start()
        with Bot(agent, ALICE, agent.bot, before=bind_over((agent.other, agent.bot))) as liar:
            assert os.readlink(f"/proc/{liar.pid}/exe") == str(agent.bot)
            record = refused(agent, ask(liar.connect(), KEY), "no_bot")
            assert record["peer"]["exe"] == str(agent.bot)


def test_a_program_replaced_under_a_running_bot_still_is_that_bot_by_its_content():
    with programs() as agent:
        agent.write_policy(by_exe(agent))
        agent.start()
        with Bot(agent, ALICE, agent.bot) as old:
            before = old.connect()
            granted(ask(before, KEY))
            upgraded = agent.dir / "upgraded"
            shutil.copy(agent.other, upgraded)
            os.rename(upgraded, agent.bot)
            granted(ask(before, KEY))
            granted(ask(old.connect(), KEY))
            with Bot(agent, ALICE, agent.bot) as new:
                granted(ask(new.connect(), KEY))
            # What was seen is remembered across a restart.
            agent.restart()
            granted(ask(old.connect(), KEY))
            # What never stood at the path is nobody, whatever it is called.
            stranger = agent.dir / "stranger"
            shutil.copy(agent.other, stranger)
            with stranger.open("ab") as file:
                file.write(b"!")
            with Bot(agent, ALICE, stranger) as third:
                refused(agent, ask(third.connect(), KEY), "no_bot")


def test_exe_sha256_selects_by_content_wherever_the_program_lies():
    with programs() as agent:
        digest = hashlib.sha256(agent.bot.read_bytes()).hexdigest()
        agent.write_policy(policy(f'uid = {ALICE}, exe_sha256 = "{digest}"'))
        agent.start()
        copy = agent.dir / "copy"
        shutil.copy(agent.bot, copy)
        with Bot(agent, ALICE, copy) as good, Bot(agent, ALICE, agent.other) as bad:
            connection = good.connect()
            granted(ask(connection, KEY))
            refused(agent, ask(bad.connect(), KEY), "no_bot")
            good.exec(agent.sleep)
            refused(agent, ask(connection, KEY), "peer_changed")


def test_check_refuses_an_exe_that_its_bot_can_write():
    with programs() as agent:
        agent.write_policy(by_exe(agent))
        agent.verb("check", "--config", agent.config)
        os.chown(agent.bot, ALICE, ALICE)
        done = agent.verb("check", "--config", agent.config, check=False)
        assert done.returncode == 78 and "proves nothing" in done.stderr


# Units.

UNIT = "/system.slice/kh-test.service"
TEMPLATE = "/system.slice/system-kh.slice/kh-bot@7.service"
DELEGATED = "/user.slice/user-20001.slice/user@20001.service/app.slice/kh-test.service"
CONTAINER = "/docker/3f9a/system.slice/kh-test.service"
INSIDE = "/system.slice/kh-other.service/system.slice/kh-test.service"


def test_a_unit_is_what_the_system_manager_named_and_only_while_the_bot_is_in_it():
    rules = policy(f'uid = {ALICE}, unit = "kh-test.service"', 'unit = "kh-bot@*.service"')
    with Agent(rules) as agent, cgroups(UNIT, TEMPLATE) as move, Bot(agent, ALICE) as alice:
        refused(agent, ask(alice.connect(), KEY), "no_bot")
        move(alice.pid, UNIT)
        connection, waiting = alice.connect(), alice.connect()
        version = granted(ask(connection, KEY)).json()["version"]
        who = ask(connection, "/v1/whoami").json()
        assert (who["unit"], who["bot"]) == ("kh-test.service", "bot-0")
        assert agent.records(event="secret.read", decision="allow")[-1]["peer"]["unit"] == "kh-test.service"
        send(waiting, KEY, headers={"If-None-Match": f'"{version}"', "Prefer": "wait=60"})
        # Moved out on the same connection; a way back is as good as a new process.
        move(alice.pid, "/")
        refused(agent, ask(connection, KEY), "peer_changed")
        agent.put("app/key", "CANARY-outside-the-unit")
        refused(agent, answer(waiting), "peer_changed")
        agent.put("app/key", CANARY)
        move(alice.pid, TEMPLATE)
        refused(agent, ask(connection, KEY), "peer_changed")
        fresh = alice.connect()
        granted(ask(fresh, KEY))
        assert ask(fresh, "/v1/whoami").json()["bot"] == "bot-1"


@contextlib.contextmanager
def run_of(unit, id):
    """What the system manager leaves for as long as a unit runs."""
    link = Path(f"/run/systemd/units/invocation:{unit}")
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(id)
    try:
        yield
    finally:
        link.unlink()


def test_the_record_names_the_run_of_the_unit_where_the_system_manager_tells(agent):
    id = "0123456789abcdef0123456789abcdef"
    run = lambda: agent.records(event="secret.read")[-1]["peer"]["invocation_id"]
    with cgroups(UNIT, DELEGATED) as move, Bot(agent, ALICE) as alice:
        for at, unit, told, want in (
            (UNIT, "kh-test.service", id, id), (UNIT, "kh-test.service", "/etc/passwd", None), (UNIT, "other.service", id, None),
            ("/", "kh-test.service", id, None), (DELEGATED, "kh-test.service", id, None), (DELEGATED, "user@20001.service", id, id),
        ):
            move(alice.pid, at)
            with run_of(unit, told):
                connection = alice.connect()
                granted(ask(connection, KEY))
                assert run() == want, (at, unit)
            # It stays that of who connected.
            granted(ask(connection, KEY))
            assert run() == want


def test_a_delegated_cgroup_named_after_a_unit_is_not_that_unit():
    with Agent(policy('unit = "kh-test.service"')) as agent, cgroups(UNIT, DELEGATED, CONTAINER, INSIDE) as move:
        with Bot(agent, ALICE) as alice:
            for path, unit in ((DELEGATED, "user@20001.service"), (CONTAINER, None), (INSIDE, "kh-other.service")):
                move(alice.pid, path)
                connection = alice.connect()
                refused(agent, ask(connection, KEY), "no_bot")
                assert ask(connection, "/v1/whoami").json()["unit"] == unit
            move(alice.pid, UNIT)
            granted(ask(alice.connect(), KEY))


def test_a_user_unit_counts_together_with_its_user_alone():
    rules = policy(f'uid = {ALICE}, user_unit = "kh-test.service"')
    with Agent(rules) as agent, cgroups(DELEGATED, UNIT) as move, Bot(agent, ALICE) as alice, Bot(agent, BOB) as bob:
        for peer in (alice, bob):
            move(peer.pid, DELEGATED)
        connection = alice.connect()
        granted(ask(connection, KEY))
        refused(agent, ask(bob.connect(), KEY), "no_bot")
        move(alice.pid, UNIT)
        refused(agent, ask(connection, KEY), "peer_changed")
        refused(agent, ask(alice.connect(), KEY), "no_bot")
        agent.write_policy(policy('user_unit = "kh-test.service"'))
        done = agent.verb("check", "--config", agent.config, check=False)
        assert done.returncode == 78 and "user_unit" in done.stderr


def test_a_whole_cgroup_path_selects_by_glob():
    with Agent(policy(f'uid = {ALICE}, cgroup = "/docker/*/system.slice/**"')) as agent:
        with cgroups(CONTAINER, UNIT) as move, Bot(agent, ALICE) as alice:
            move(alice.pid, CONTAINER)
            connection = alice.connect()
            granted(ask(connection, KEY))
            move(alice.pid, UNIT)
            refused(agent, ask(connection, KEY), "peer_changed")
            refused(agent, ask(alice.connect(), KEY), "no_bot")


# What a peer says of itself.


def test_headers_and_bodies_that_claim_an_identity_change_nothing(agent):
    claims = {
        "Host": "alice@admin", "Authorization": "Bearer root", "X-Vault-Token": "root", "X-Forwarded-For": "127.0.0.1",
        "X-Forwarded-User": "alice", "Forwarded": "for=root", "X-Real-IP": "::1", "X-Remote-User": "alice",
        "X-Keyhatch-Uid": str(ALICE), "X-Aws-Parameters-Secrets-Token": "t", "X-Peer-Pid": "1", "Cookie": "uid=0",
    }
    body = json.dumps({"names": ["app/key"], "uid": ALICE, "bot": "alice", "peer": {"uid": ALICE}}).encode()

    def lies():
        connection = dial(agent.socket)
        plain = ask(connection, KEY)
        loud = [ask(connection, KEY, headers=claims)]
        loud.append(ask(connection, KEY, headers=claims, body=body))
        absolute = ask(connection, f"http://alice:root@admin{KEY}")
        who = [ask(connection, "/v1/whoami", headers=extra).json() for extra in ({}, claims)]
        batch = ask(connection, "/v1/batch", "POST", claims, body)
        return plain, [*loud, absolute], who, batch

    plain, loud, who, batch = as_user(BOB, lies)
    refused(agent, plain, "no_bot")
    for reply in loud:
        record = refused(agent, reply, "no_bot")
        assert (record["peer"]["uid"], record["bot"]) == (BOB, None)
        assert reply.json() | {"request_id": ""} == plain.json() | {"request_id": ""}
    assert who[0] == who[1] and who[0]["bot"] is None
    assert CANARY.encode() not in batch.body
    # A claim takes nothing away either.
    granted(as_user(ALICE, lambda: ask(dial(agent.socket), KEY, headers=claims)))
