"""Agents that fetch from upstreams: `[[source]]` blocks for them, the logins that they need, and what they then serve."""

import json
import os
import secrets

from harness import Agent, eventually
from upstreams import REGION

POLICY = """
[[bot]]
name = "root"
match = { uid = 0 }
roles = ["reader"]
[[bot]]
name = "alice"
match = { uid = 20001 }
roles = ["reader"]
[role.reader]
grants = [{ secrets = ["**"] }]
"""

# Enough of KV v2 at secret/ for an agent; docs/sources/vault.md has the real one.
KV2 = """
path "secret/data/*" { capabilities = ["read"] }
path "secret/metadata/*" { capabilities = ["read", "list"] }
"""


def toml(value):
    """A value as TOML writes it, tables inline."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {toml(each)}" for key, each in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(str(value) if isinstance(value, os.PathLike) else value)


def source(kind, name, **keys):
    """One `[[source]]`, escaped as `Agent` wants it."""
    lines = [f"{key} = {toml(value)}" for key, value in {"name": name, "kind": kind, **keys}.items()]
    return "\n".join(["[[source]]", *lines, ""]).replace("{", "{{").replace("}", "}}")


def vault(bao, name="bao", **keys):
    """A source of kind `vault` at `bao/`, quick to look and to give up; logs in by a token of its own."""
    if "auth" not in keys:
        bao.policy("agent", KV2)
        keys["auth"] = {"method": "token_file", "path": token_file(bao, bao.new_token("agent"))}
    common = {"address": bao.address, "ca_file": bao.authority.file, "prefix": f"{name}/", "refresh": "1s", "timeout": "2s"}
    return source("vault", name, **common | keys)


def aws(moto, name="aws", **keys):
    """A source of kind `aws` at `aws/`."""
    common = {"region": REGION, "endpoint_url": moto.address, "prefix": f"{name}/", "refresh": "1s", "timeout": "2s"}
    return source("aws", name, **common | keys)


AWS_KEYS = {"AWS_ACCESS_KEY_ID": "AKIACANARY", "AWS_SECRET_ACCESS_KEY": "CANARY-aws-secret-key-51ce0a"}


def token_file(bao, token, name="token"):
    return write_secret(bao.dir / name, token)


def write_secret(path, text):
    """A file that only its owner may read, replaced whole."""
    fresh = path.with_name(f"{path.name}.new")
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(text if isinstance(text, bytes) else text.encode())
    fresh.rename(path)
    return path


def snapshot_key(folder):
    """`[agent].snapshot_key` with a new key."""
    return f'snapshot_key = "file:{write_secret(folder / "snapshot.key", secrets.token_bytes(32))}"\n'


def fetcher(*sources, env=None, **more):
    """An agent with these sources beside its store."""
    env = None if env is None else os.environ | env
    return Agent(policy=more.pop("policy", POLICY), sources="".join(sources), env=env, **more)


def value(agent, name, uid=None):
    """What a bot gets: the value, or the code of the refusal."""
    reply = agent.read(name, uid)
    return reply.json()["value"] if reply.status == 200 else reply.json()["code"]


def field(agent, name, of="value"):
    """The same of one field: what `Bao.put` makes of a text is an object with the field `value`."""
    return value(agent, f"{name}?field={of}")


def becomes(agent, name, want, seconds=10):
    """Waits until a bot gets `want` as that field."""
    becomes_value(agent, f"{name}?field=value", want, seconds)


def becomes_value(agent, name, want, seconds=10):
    """The same of a whole value."""
    got = lambda: value(agent, name)
    try:
        eventually(lambda: got() == want, seconds)
    except AssertionError:
        raise AssertionError(f"{name} is still {got()!r} and not {want!r}: {agent.status()['sources']}") from None


def is_stale(agent, name):
    return agent.read(name).json()["stale"]


def state(agent, name="bao"):
    return next(source for source in agent.status()["sources"] if source["name"] == name)


def trouble(agent, name="bao"):
    return state(agent, name)["trouble"]


def told(agent, event, source="bao"):
    """The records of an event of this source."""
    return [r for r in agent.records(event=event) if r.get("source") == source]


def leaks(agent, *needles, but=()):
    """Where what must not be written was written all the same."""
    found = [(str(path), needle) for path, data in agent.everything_written() for needle in needles
             if needle.encode() in data and path not in but]
    status = json.dumps(agent.status()) + agent.get("/v1/health").body.decode()
    return found + [("status", needle) for needle in needles if needle in status]
