"""What the tests of the drop-in surfaces share: an agent that serves the same data as the real servers, the bridge to it, and
how answers are compared."""

import contextlib
import json
import os
import subprocess

from harness import KEYHATCH, Agent

POLICY = """
[[bot]]
name = "tester"
match = { uid = 0 }
roles = ["reader"]

[role.reader]
grants = [{ secrets = ["app/**", "up/**"], actions = ["read", "list", "rotate"] }]
"""
VALUES = {"user": "bot", "password": 'CANARY-"p"'}
SECRETS = {
    "app/db": json.dumps(VALUES), "app/text": "CANARY-text", "app/bin": b"\xffCANARY\x00", "app/deep/er": '{"a":{"b":[1]}}',
    "other/a": "CANARY-other",
}
# What was set before the current value, where there was something.
BEFORE = {"app/db": '{"old":"CANARY"}', "app/text": "CANARY-old"}

# Moto answers null where AWS leaves a member out, and 404 where AWS says 400.
MOTO_ONLY = {"LastAccessedDate", "NextRotationDate", "DeletedDate", "KmsKeyId"}


@contextlib.contextmanager
def filled():
    """An agent with all of it, two of the secrets in their second version."""
    with Agent(policy=POLICY, secrets={**SECRETS, **BEFORE}) as agent:
        for name in BEFORE:
            agent.put(name, SECRETS[name])
        yield agent


def fill_moto(moto):
    """What of it the bot may see, in moto."""
    for name, value in [*BEFORE.items(), *SECRETS.items()]:
        if name.startswith("app/"):
            moto.put(name, value)


def fill_bao(bao):
    """What of it an OpenBao can hold: it knows objects alone."""
    for path, data in [("app/db", json.loads(BEFORE["app/db"])), ("app/db", VALUES), ("app/text", {"value": "CANARY-text"})]:
        bao.put(path, data)


@contextlib.contextmanager
def bridged(agent):
    """The loopback URL of a bridge, for clients that know no Unix socket."""
    env = {"PATH": os.environ["PATH"], "KEYHATCH_SOCKET": str(agent.socket)}
    process = subprocess.Popen([KEYHATCH, "bridge"], stdout=subprocess.PIPE, env=env)
    try:
        yield process.stdout.readline().decode().strip()
    finally:
        process.kill()
        process.wait()


def shape(value):
    """What a document is made of, its values aside. Which keys a map of versions has is up to its server."""
    if isinstance(value, dict):
        versions = {"VersionIdsToStages", "SecretVersionsToStages", "versions"} & value.keys()
        return {key: [shape(each) for each in member.values()] if key in versions else shape(member)
                for key, member in value.items()}
    if isinstance(value, list):
        return [shape(each) for each in value]
    return "number" if type(value) in (int, float) else type(value).__name__


def compared(mine, theirs):
    """That two answers of AWS's clients say the same, member by member; what only the servers choose is but of one shape."""
    for entry in [theirs, *theirs.get("SecretList", [])]:
        for only in MOTO_ONLY:
            assert entry.pop(only, None) is None
    if "SecretList" in mine:
        names = [sorted(entry["Name"] for entry in answer["SecretList"]) for answer in [mine, theirs]]
        assert names[0] == names[1]
        for answer in [mine, theirs]:
            answer["SecretList"].sort(key=lambda entry: entry["Name"])
    assert shape(mine) == shape(theirs)
    for same in ["Name", "SecretString", "SecretBinary", "VersionStages"]:
        assert mine.get(same) == theirs.get(same)
