"""Processes that are gone: what they had opened serves nobody, and what waits for them ends."""

import contextlib
import os
import select
import signal
from pathlib import Path

from bots import Bot, answer, ask, in_pid_namespace, open_watch, own_pid_namespace, send
from harness import ALICE, BOB, Agent, eventually
from peers import KEY, granted, policy, refused, stopped


def test_a_connection_passed_on_is_refused_once_its_process_has_exited(agent):
    with Bot(agent, ALICE) as alice:
        connection = alice.connect()
        # The documented limit: while Alice lives, her connection is hers in whosever hands.
        granted(ask(connection, KEY))
        alice.exit()
        for path in (KEY, "/v1/secrets/app/none", "/v1/secrets", "/v1/watch?name=app/key"):
            refused(agent, ask(connection, path), "peer_gone")


def test_an_exit_counts_from_the_first_request_after_it_however_the_two_are_told(agent):
    """The daemon learns of both at once, and of something else on the connection before."""
    with Bot(agent, ALICE) as alice:
        connection = alice.connect()
        send(connection, KEY)
        eventually(lambda: select.select([connection], [], [], 0)[0])
        with stopped(agent.pid):
            granted(answer(connection))
            alice.exit()
            send(connection, KEY)
        refused(agent, answer(connection), "peer_gone")


def test_a_connection_inherited_by_a_child_is_refused_once_the_parent_has_exited(agent):
    with Bot(agent, ALICE) as alice:
        connection = alice.connect()
        granted(ask(connection, KEY))
        alice.do("leave_to_a_child")
        alice.process.wait(timeout=20)
        refused(agent, ask(connection, KEY), "peer_gone")
        # The child is Alice as well, on a connection of its own.
        granted(ask(alice.connect(), KEY))


def test_a_long_poll_and_a_watch_of_a_process_that_exits_end_refused(agent):
    with Bot(agent, ALICE) as alice:
        poll, watch = alice.connect(), alice.connect()
        version = granted(ask(poll, KEY)).json()["version"]
        send(poll, KEY, headers={"If-None-Match": f'"{version}"', "Prefer": "wait=60"})
        events = open_watch(watch, "app/key")
        assert next(events)[0] == "current"
        alice.exit()
        refused(agent, answer(poll), "peer_gone")
        assert list(events) == [("closed", {"reason": "denied"})]
        assert agent.records(event="secret.watch", reason="peer_gone")


def recycled():
    """Alice connects, hands her connection on and exits; then a process of root's gets her pid."""
    with Agent(policy(f"uid = {ALICE}", 'unit = "kh-test.service"')) as agent:
        with Bot(agent, ALICE) as alice:
            connection = alice.connect()
            granted(ask(connection, KEY))
            alice.exit()
            Path("/proc/sys/kernel/ns_last_pid").write_text(str(alice.pid - 1))
            heir = os.fork()
            if heir == 0:
                os.setresgid(ALICE, ALICE, ALICE)
                os.setresuid(ALICE, ALICE, ALICE)
                signal.pause()
            try:
                assert heir == alice.pid
                refused(agent, ask(connection, KEY), "peer_gone")
                # Judged anew under a new policy, it stays the process that connected.
                agent.ops("reload")
                refused(agent, ask(connection, KEY), "peer_gone")
            finally:
                os.kill(heir, signal.SIGKILL)
                os.waitpid(heir, 0)


def test_a_recycled_pid_is_refused():
    in_pid_namespace(recycled)


def gone_before_accept():
    """A peer that exited before the daemon looked, its pid another's already: here of the same uid."""
    with Agent(policy(f"uid = {ALICE}")) as agent:
        with contextlib.ExitStack() as bots:
            with stopped(agent.pid):
                alice = bots.enter_context(Bot(agent, ALICE))
                connection = alice.connect()
                alice.exit()
                Path("/proc/sys/kernel/ns_last_pid").write_text(str(alice.pid - 1))
                heir = bots.enter_context(Bot(agent, ALICE))
                assert heir.pid == alice.pid
            refused(agent, ask(connection, KEY), "peer_gone")
            granted(ask(heir.connect(), KEY))


def test_a_pid_recycled_before_it_was_accepted_is_refused():
    in_pid_namespace(gone_before_accept)


def test_a_peer_from_outside_the_agents_pid_namespace_is_refused():
    with Agent(popen={"preexec_fn": own_pid_namespace}) as agent:
        record = refused(agent, agent.read("app/key", ALICE), "peer_gone")
        assert (record["peer"]["pid"], record["peer"]["uid"]) == (0, ALICE)


# What waits.


def test_a_long_poll_and_a_watch_whose_grant_is_revoked_meanwhile_end(agent):
    with Bot(agent, ALICE) as alice:
        poll, watch = alice.connect(), alice.connect()
        version = granted(ask(poll, KEY)).json()["version"]
        send(poll, KEY, headers={"If-None-Match": f'"{version}"', "Prefer": "wait=60"})
        events = open_watch(watch, "app/key")
        assert next(events) == ("current", {"name": "app/key", "version": version})
        # A reload that changes nothing for her ends nothing.
        agent.ops("reload")
        agent.write_policy(policy(f"uid = {BOB}"))
        agent.ops("reload")
        refused(agent, answer(poll), "no_bot")
        assert list(events) == [("closed", {"reason": "denied"})]
        assert agent.records(event="secret.watch", reason="no_bot")
