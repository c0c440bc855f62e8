"""Pairs of keys that rotate: made by the agent itself, and the example of the documents against a real OpenSSH server."""

import json
import subprocess

from harness import ROOT, eventually
from rotating import Rotating
from sshd import Sshd, new_key


def test_a_pair_of_keys_that_openssh_takes(tmp_path):
    with Rotating('every = "30d"\ngrace = "1h"\ndriver = { kind = "generate", key_pair = "ed25519" }\n') as agent:
        assert agent.rotate().status == 202
        agent.ended()
        pair = json.loads(agent.value())
        assert sorted(pair) == ["private_key", "public_key"]
        assert agent.value("?field=public_key") == pair["public_key"]
        key = tmp_path / "key"
        key.touch(0o600)
        key.write_text(pair["private_key"])
        public = subprocess.run(["ssh-keygen", "-y", "-f", key], capture_output=True, text=True, check=True).stdout
        assert public.strip() == pair["public_key"]
        for path, written in agent.everything_written():
            assert b"OPENSSH" not in written and pair["private_key"].split()[6].encode() not in written, path


def test_the_key_of_an_ssh_account_rotates_and_nobody_is_shut_out():
    with Sshd() as sshd:
        first, other = new_key(sshd.dir / "first", "keyhatch"), new_key(sshd.dir / "other", "somebody else's")
        sshd.authorized.write_text(f"{other['public_key']}\n{first['public_key']}\n")
        with Rotating('every = "30d"\ngrace = "1s"\nEXEC', secrets={"app/key": json.dumps(first)}) as agent:
            (agent.far / "rotate").write_text(
                f"#!/bin/sh\nPATH={sshd.ssh}:$PATH\n"
                f'exec {ROOT}/docs/examples/rotate-ssh-key deploy@db-1 "$1" 2>>{agent.far}/errors\n')
            keys = [first]
            for count in (1, 2):
                eventually(lambda: agent.rotate().status == 202)
                while agent.standing()["step"]:
                    assert sshd.lets_in(json.loads(agent.value())["private_key"])
                agent.ended(count)
                keys.append(json.loads(agent.value()))
            assert not agent.records(event="alert.rotation_failed"), (agent.far / "errors").read_text()
            lets_in = [sshd.lets_in(key["private_key"]) for key in [other, *keys]]
            # The one before still does, for bots that have not read anew; the one before that does no more.
            assert lets_in == [True, False, True, True], sshd.authorized.read_text()
            assert sshd.authorized.read_text().count("\n") == 3
