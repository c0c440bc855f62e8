"""Policies that name peers, and what those are answered: what tests of identity stand on."""

import contextlib
import json
import os
import signal
from pathlib import Path

from harness import CANARY, eventually

KEY = "/v1/secrets/app/key"
READER = '\n[role.reader]\ngrants = [{ secrets = ["app/**"] }]\n'


def bot(match, name="bot"):
    return f'\n[[bot]]\nname = "{name}"\nmatch = {{ {match} }}\nroles = ["reader"]\n'


def policy(*matches):
    return "".join(bot(match, f"bot-{at}") for at, match in enumerate(matches)) + READER


def refused(agent, reply, reason):
    """The one 403 for everybody, and the reason in its record alone."""
    problem = reply.json()
    assert (reply.status, problem["code"]) == (403, "denied"), reply
    # What waited was recorded when it began to, too.
    record = agent.records(request_id=problem["request_id"])[-1]
    assert (record["decision"], record["reason"]) == ("deny", reason)
    assert CANARY not in str(reply) + json.dumps(record)
    return record


def granted(reply):
    assert reply.status == 200, reply
    assert reply.json()["value"] == CANARY
    return reply


@contextlib.contextmanager
def stopped(pid):
    os.kill(pid, signal.SIGSTOP)
    try:
        eventually(lambda: "T" == Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0])
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
