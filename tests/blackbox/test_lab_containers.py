"""Bots in a container that has the folder of the socket bound into it: who they are to an agent on the host."""

import json
import os
import subprocess

import pytest

import lab
from bots import cgroups
from harness import ALICE, BIN, CANARY, Agent

WHY_NOT = lab.why_not()
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=str(WHY_NOT))

BOX, FIRST = "/machine.slice/kh-box.service", 200000
POLICY = f"""
[[bot]]
name = "in-the-box"
match = {{ uid = {ALICE}, unit = "kh-box.service" }}
roles = ["reader"]

[[bot]]
name = "mapped"
match = {{ uid = {FIRST + ALICE}, unit = "kh-box.service" }}
roles = ["reader"]

[[bot]]
name = "root"
match = {{ uid = 0, unit = "kh-box.service" }}
roles = ["reader"]
credentials = {{ db = "app/key" }}

[role.reader]
grants = [{{ secrets = ["app/**"] }}]
"""
# What runs inside: as a user of the container's, asks who it is and for the secret; then, as systemd would, for a credential.
INSIDE = f"""
import json, os, socket, subprocess, sys
uid = int(sys.argv[1])
os.setgroups([])
os.setresgid(uid, uid, uid)
os.setresuid(uid, uid, uid)
ask = lambda *words: subprocess.run(["/opt/keyhatch/keyhatch", *words], capture_output=True, text=True)
who, value = ask("whoami", "--json"), ask("get", "app/key")
s = socket.socket(socket.AF_UNIX)
s.bind("\\0f/unit/kh-box.service/db")
s.connect("/run/keyhatch/credentials.sock")
print(json.dumps([who.stdout, value.stdout, len(s.makefile("rb").read())]))
"""


def in_container(agent, uid, *flags):
    """Runs it in a container that this host's service kh-box.service has made."""
    with cgroups(BOX) as move:
        done = subprocess.run(
            ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--pipe", "--private-network", "--volatile=overlay",
             f"--directory={lab.root_of('trixie')}", f"--bind-ro={BIN}:/opt/keyhatch",
             f"--bind={agent.socket.parent}:/run/keyhatch", *flags, "python3", "-c", INSIDE, str(uid)],
            capture_output=True, text=True, timeout=60, preexec_fn=lambda: move(os.getpid(), BOX),
            env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
        )
    assert done.returncode == 0, done
    who, value, length = json.loads(done.stdout.splitlines()[-1])
    return json.loads(who), value, length


@pytest.fixture(scope="module")
def agent():
    with Agent(POLICY) as agent:
        yield agent


MAPPED = f"--private-users={FIRST}:65536"
TOO_LONG = 1 << 20


def test_a_bot_in_a_container_is_its_uid_on_the_host_and_the_unit_that_runs_the_container(agent):
    for flags, uid, bot in (((), ALICE, "in-the-box"), ((MAPPED,), FIRST + ALICE, "mapped")):
        who, value, length = in_container(agent, ALICE, *flags)
        assert (who["uid"], who["unit"], who["bot"], value) == (uid, "kh-box.service", bot, CANARY)
        assert length > TOO_LONG


def test_a_containers_root_is_root_unless_it_has_a_user_namespace(agent):
    who, value, length = in_container(agent, 0)
    assert (who["uid"], who["bot"], value, length) == (0, "root", CANARY, len(CANARY))
    who, value, length = in_container(agent, 0, MAPPED)
    assert (who["uid"], who["bot"], value) == (FIRST, None, "")
    assert length > TOO_LONG
