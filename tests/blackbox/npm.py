"""Clients from npm, run unmodified by a program that does one call for each line that it reads."""

from pathlib import Path

from conformance import SHIMS, Driver
from harness import KEYHATCH, ROOT
from upstreams import REGION

# Where tests/run installs what tests/node asks for.
MODULES = ROOT / "target" / "node" / "node_modules"
ASK = ["node", str(ROOT / "tests" / "node" / "ask.cjs")]
NODE = {"NODE_PATH": str(MODULES), "KEYHATCH_LIBRARY": str(SHIMS / "node"), "AWS_EC2_METADATA_DISABLED": "true"}


def through_bridge(agent):
    """The program as `keyhatch bridge` runs it: all that it knows of us is in its environment."""
    # node-vault wants a token, which is one of those that the bridge does not set.
    env = {**NODE, "HOME": str(agent.dir), "VAULT_TOKEN": "any"}
    return Driver([KEYHATCH, "bridge", "--", *ASK], agent.socket, uid=0, env=env)


def beside(folder, **env):
    """The same program with a real server."""
    env = {**NODE, "HOME": str(folder), "AWS_REGION": REGION, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", **env}
    return Driver(ASK, Path(folder) / "none", uid=0, env=env)
