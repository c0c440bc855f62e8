"""The sealed snapshot: a host serves with its upstream down, and nobody can make it serve something else."""

import contextlib
import json
import os
import re
import secrets
import shutil
import time

import pytest

from bots import bind_over
from fetching import KV2, becomes, fetcher, field, is_stale, leaks, snapshot_key, told, trouble, value, vault, write_secret
from harness import eventually

CANARY = "CANARY-snapshot-e41b5d90"


@contextlib.contextmanager
def host(bao, tmp_path, **keys):
    """An agent that keeps snapshots and has fetched app/key."""
    bao.put("app/key", CANARY)
    keys = {"prefetch": ["app/**"], "snapshot": True, "max_stale": "1h"} | keys
    with fetcher(vault(bao, **keys), agent=snapshot_key(tmp_path)) as agent:
        becomes(agent, "bao/app/key", CANARY)
        eventually(lambda: snapshot(agent))
        yield agent


def snapshot(agent):
    """The snapshot's file."""
    found = [path for path in agent.state.rglob("*") if path.is_file() and "snap" in path.name]
    assert len(found) <= 1
    return found[0] if found else None


def test_a_host_that_starts_with_the_upstream_down_serves_stale_values(bao, tmp_path):
    with host(bao, tmp_path) as agent:
        before = agent.read("bao/app/key").json()
        agent.stop()
        bao.kill()
        agent.start()
        after = agent.read("bao/app/key").json()
        assert after["stale"] is True
        assert {key: after[key] for key in ["value", "version", "updated_at", "source"]} == {
            key: before[key] for key in ["value", "version", "updated_at", "source"]}
        assert agent.get("/v1/secrets?prefix=bao/").json()["secrets"] == [{"name": "bao/app/key", "version": before["version"]}]
        eventually(lambda: trouble(agent))
        bao.start()
        eventually(lambda: not is_stale(agent, "bao/app/key"), seconds=20)
        assert agent.records(event="secret.rotated") == []


def test_it_follows_rotations_and_removals(bao, tmp_path):
    with host(bao, tmp_path) as agent:
        bao.put("app/gone", "gone")
        bao.put("app/kept", "kept")
        bao.put("cold/key", "cold")
        becomes(agent, "bao/app/gone", "gone")
        becomes(agent, "bao/app/kept", "kept")
        becomes(agent, "bao/cold/key", "cold")
        bao.put("app/key", "rotated")
        bao.delete("app/gone")
        becomes(agent, "bao/app/key", "rotated")
        eventually(lambda: value(agent, "bao/app/gone") == "not_found")
        agent.stop()
        bao.kill()
        agent.start()
        assert [field(agent, f"bao/{name}") for name in ["app/key", "app/kept", "cold/key"]] == ["rotated", "kept", "cold"]
        assert json.loads(value(agent, "bao/app/key?version=previous")) == {"value": CANARY}
        # What was removed is not in it; with the upstream down nobody knows more.
        assert value(agent, "bao/app/gone") in ("upstream_unavailable", "not_found")
        bao.start()


def test_a_kill_right_after_a_change_leaves_a_snapshot_that_opens(bao, tmp_path):
    with host(bao, tmp_path) as agent:
        for turn in range(5):
            bao.put("app/key", str(turn))
            becomes(agent, "bao/app/key", str(turn), seconds=20)
            agent.process.kill()
            agent.process.wait()
            agent.start()
            assert told(agent, "alert.source_rejected") == []
            # The rotation itself, or, where the kill was quicker, what was before it.
            eventually(lambda: field(agent, "bao/app/key") in (str(turn), str(turn - 1), CANARY))


def test_403_after_a_fresh_login_is_a_definite_no_that_the_snapshot_does_not_cover(bao, tmp_path):
    with host(bao, tmp_path) as agent:
        bao.policy("agent", KV2 + '\npath "secret/+/app/key" { capabilities = ["deny"] }')
        eventually(lambda: value(agent, "bao/app/key") == "not_found")
        agent.stop()
        bao.kill()
        agent.start()
        assert value(agent, "bao/app/key") in ("upstream_unavailable", "not_found")
        bao.start()


def test_what_was_removed_while_the_host_was_off_is_not_served_once_the_upstream_says_so(bao, tmp_path):
    with host(bao, tmp_path) as agent:
        agent.stop()
        bao.delete("app/key")
        agent.start()
        eventually(lambda: value(agent, "bao/app/key") == "not_found")


def test_max_stale_counts_over_a_restart(bao, tmp_path):
    with host(bao, tmp_path, max_stale="5s") as agent:
        agent.stop()
        bao.kill()
        agent.start()
        assert field(agent, "bao/app/key") == CANARY
        agent.stop()
        # What is counted is time: it has to pass.
        time.sleep(5.5)
        agent.start()
        assert value(agent, "bao/app/key") == "upstream_unavailable"
        bao.start()
        becomes(agent, "bao/app/key", CANARY, seconds=20)


@pytest.mark.skipif(not shutil.which("faketime"), reason="faketime is not installed: not shown for a clock that was set back")
def test_max_stale_counts_also_where_the_clock_was_set_back(bao, tmp_path):
    [library] = re.findall(r"^LD_PRELOAD=(.*)$", os.popen("faketime -f -2h env").read(), re.M)
    with host(bao, tmp_path, max_stale="5s") as agent:
        agent.stop()
        bao.kill()
        agent.env = os.environ | {"LD_PRELOAD": library, "FAKETIME": "-2h", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
        agent.start()
        eventually(lambda: value(agent, "bao/app/key") == "upstream_unavailable", seconds=20)
        agent.restart()
        assert value(agent, "bao/app/key") == "upstream_unavailable"
        bao.start()


def test_without_snapshot_nothing_is_kept_and_nothing_is_served(bao, tmp_path):
    bao.put("app/key", CANARY)
    with fetcher(vault(bao, prefetch=["app/**"]), agent=snapshot_key(tmp_path)) as agent:
        becomes(agent, "bao/app/key", CANARY)
        agent.stop()
        assert snapshot(agent) is None
        bao.kill()
        agent.start()
        assert value(agent, "bao/app/key") == "upstream_unavailable"
        bao.start()


def test_a_leased_value_is_not_served_past_its_lease_from_a_snapshot_either(bao, postgres, tmp_path):
    bao.database(postgres, "3s", "3s")
    bao.policy("agent", KV2 + 'path "database/creds/ro" { capabilities = ["read"] }')
    lease = [{"name": "db/ro", "path": "database/creds/ro"}]
    with host(bao, tmp_path, lease=lease) as agent:
        eventually(lambda: agent.read("bao/db/ro").status == 200)
        agent.stop()
        bao.kill()
        time.sleep(3)
        agent.start()
        assert field(agent, "bao/app/key") == CANARY
        assert value(agent, "bao/db/ro") == "upstream_unavailable"
        bao.start()


# Snapshots that are not this host's own, whole and newest.


def flip(data):
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


SPOILT = {
    "edited": flip,
    "edited at the start": lambda data: bytes([data[0] ^ 1]) + data[1:],
    "edited at the end": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "cut short": lambda data: data[:-1],
    "cut in half": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "longer": lambda data: data + b"\0",
    "noise": lambda data: secrets.token_bytes(len(data)),
}


def refused(agent, bao, *words):
    """It started without the snapshot, said why, once, and heals with the upstream."""
    assert value(agent, "bao/app/key") == "upstream_unavailable"
    alerts = told(agent, "alert.source_rejected")
    assert len(alerts) == 1 and "snapshot" in json.dumps(alerts[0])
    assert any(word in json.dumps(alerts[0]) for word in words or [""]), alerts
    assert leaks(agent, CANARY) == []
    bao.start()
    becomes(agent, "bao/app/key", CANARY, seconds=20)
    eventually(lambda: not trouble(agent))


@pytest.mark.parametrize("how", SPOILT)
def test_a_snapshot_that_was_changed_is_refused_with_a_reason(bao, tmp_path, how):
    with host(bao, tmp_path) as agent:
        agent.stop()
        bao.kill()
        path = snapshot(agent)
        path.write_bytes(SPOILT[how](path.read_bytes()))
        agent.start()
        refused(agent, bao)


def test_a_snapshot_under_another_key_is_refused_with_a_reason(bao, tmp_path):
    with host(bao, tmp_path) as agent:
        agent.stop()
        bao.kill()
        write_secret(tmp_path / "snapshot.key", secrets.token_bytes(32))
        agent.start()
        refused(agent, bao)


def test_a_snapshot_of_another_host_is_refused_with_a_reason(bao, tmp_path):
    """The same configuration and the same key: another machine-id is another host."""
    with host(bao, tmp_path) as other:
        other.stop()
        data = snapshot(other).read_bytes()
        name = snapshot(other).relative_to(other.state)
    machine = tmp_path / "machine-id"
    machine.write_text(secrets.token_hex(16) + "\n")
    with fetcher(
        vault(bao, prefetch=["app/**"], snapshot=True), start=False,
        agent=f'snapshot_key = "file:{tmp_path / "snapshot.key"}"\n',
        popen={"preexec_fn": bind_over((machine, "/etc/machine-id"))},
    ) as agent:
        (agent.state / name).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_secret(agent.state / name, data)
        bao.kill()
        agent.start()
        refused(agent, bao)


def test_a_snapshot_of_another_configuration_of_the_source_is_not_served(bao, tmp_path):
    """Else what was fetched from one upstream would be served in another's name."""
    with host(bao, tmp_path) as agent:
        agent.stop()
        bao.kill()
        agent.head = agent.head.replace(bao.address, "https://127.0.0.1:1")
        agent.write_policy(agent.POLICY.replace("20001", "0").replace("app/**", "**"))
        agent.start()
        assert value(agent, "bao/app/key") == "upstream_unavailable"
        bao.start()


def test_a_snapshot_of_one_source_is_not_served_by_another(bao, tmp_path):
    bao.put("app/key", CANARY)
    two = [vault(bao, name, prefetch=["app/**"], snapshot=True) for name in ["one", "two"]]
    with fetcher(*two, agent=snapshot_key(tmp_path)) as agent:
        for name in ["one", "two"]:
            becomes(agent, f"{name}/app/key", CANARY)
        files = lambda: sorted(path for path in agent.state.rglob("*") if path.is_file() and "snap" in str(path))
        eventually(lambda: len(files()) == 2)
        agent.stop()
        bao.kill()
        first, second = files()
        data = first.read_bytes(), second.read_bytes()
        first.write_bytes(data[1])
        second.write_bytes(data[0])
        agent.start()
        assert [value(agent, f"{name}/app/key") for name in ["one", "two"]] == ["upstream_unavailable"] * 2
        bao.start()


def test_neither_the_snapshot_nor_anything_else_on_disk_holds_a_value_or_a_name(bao, tmp_path):
    with host(bao, tmp_path) as agent:
        path = snapshot(agent)
        assert path.stat().st_mode & 0o777 == 0o600
        data = path.read_bytes()
        assert CANARY.encode() not in data and b"app/key" not in data
        assert leaks(agent, CANARY, (bao.dir / "token").read_text()) == []
        first = data
        bao.put("app/key", "x")
        becomes(agent, "bao/app/key", "x")
        eventually(lambda: path.read_bytes() != first)
        # A nonce is never used twice: nothing of the old ciphertext is in the new one.
        assert not any(first[at : at + 16] in path.read_bytes() for at in range(len(first) - 64, len(first) - 16))
        assert [p for p in path.parent.iterdir() if p.name.endswith((".new", ".tmp", "~"))] == []


def test_a_seal_serves_nothing_from_the_snapshot_and_unseal_with_the_upstream_down_serves_it(bao, tmp_path):
    with host(bao, tmp_path) as agent:
        bao.kill()
        agent.ops("seal")
        assert value(agent, "bao/app/key") == "sealed"
        agent.ops("unseal")
        becomes(agent, "bao/app/key", CANARY, seconds=20)
        assert is_stale(agent, "bao/app/key")
        bao.start()
