"""The file source: every way in which a store changes on disk is seen, what is half there is never served."""

import os
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest

from harness import CANARY, KEYHATCHD, Agent, eventually

POLICY = """
[[bot]]
name = "root"
match = { uid = 0 }
roles = ["reader"]
[role.reader]
grants = [{ secrets = ["**"] }]
"""


@pytest.fixture
def agent():
    with Agent(policy=POLICY) as agent:
        yield agent


def value(agent, name="app/key"):
    reply = agent.read(name)
    return reply.json()["value"] if reply.status == 200 else reply.status


def next_store(agent, text):
    """The bytes of the store with app/key set to `text`, one generation on; the store itself stays as it is."""
    copy = agent.dir / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(agent.store_dir, copy)
    agent.verb("store", "put", "app/key", "--store", copy, "--key", f"file:{agent.key}", stdin=text.encode())
    return (copy / "store.khs").read_bytes()


def write_new(path, data):
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)


def trouble(agent):
    return agent.status()["sources"][0]["trouble"]


def alerts(agent):
    return agent.records(event="alert.source_rejected")


def is_watched(agent, folder):
    """Whether the kernel tells the daemon of changes in this very folder, not in one that was at its path before."""
    want = f"ino:{os.stat(folder).st_ino:x} "
    watches = [info for info in Path(f"/proc/{agent.pid}/fd").iterdir() if "inotify" in target(info)]
    lines = [line for info in watches for line in Path(f"/proc/{agent.pid}/fdinfo", info.name).read_text().splitlines()]
    return any(line.startswith("inotify ") and want in line for line in lines)


def target(link):
    try:
        return os.readlink(link)
    except FileNotFoundError:
        return ""  # closed meanwhile


def test_a_rename_is_seen(agent):
    assert is_watched(agent, agent.store_dir) and is_watched(agent, agent.dir)
    fresh = agent.store_dir / "from.elsewhere"
    for turn in range(5):
        write_new(fresh, next_store(agent, f"turn {turn}"))
        os.rename(fresh, agent.store_dir / "store.khs")
        # The look at all files every 2 seconds alone does not make it five times.
        eventually(lambda: value(agent) == f"turn {turn}", seconds=1)
    assert alerts(agent) == []


def test_a_store_written_in_place_is_seen_whole_and_never_in_part(agent):
    store = agent.store_dir / "store.khs"
    served, done = set(), threading.Event()

    def read():
        bot = agent.connect()
        while not done.is_set():
            reply = bot.get("/v1/secrets/app/key")
            served.add((reply.status, reply.json()["value"]))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for turn in range(3):
            data = next_store(agent, f"turn {turn}")
            with open(store, "r+b", buffering=0) as file:
                file.truncate(0)
                for at in range(0, len(data), 64):
                    file.write(data[at : at + 64])
                    time.sleep(0.005)
            eventually(lambda: value(agent) == f"turn {turn}")
    finally:
        done.set()
        reader.join()
    assert served <= {(200, CANARY)} | {(200, f"turn {turn}") for turn in range(3)}
    # A writer that takes its time is no trouble either.
    assert alerts(agent) == [] and trouble(agent) is None


def test_a_writer_that_stops_midway_leaves_the_last_good_values(agent):
    data = next_store(agent, "whole")
    with open(agent.store_dir / "store.khs", "r+b", buffering=0) as file:
        file.write(data[: len(data) // 2])
        eventually(lambda: trouble(agent))
        assert value(agent) == CANARY and agent.read("app/key").json()["stale"]
        file.write(data[len(data) // 2 :])
        file.truncate()
    eventually(lambda: value(agent) == "whole")
    assert trouble(agent) is None
    assert len(alerts(agent)) == len(agent.records(event="source.recovered")) == 1


def test_a_deleted_store_is_no_news_and_a_new_one_is_seen(agent):
    store = agent.store_dir / "store.khs"
    data = next_store(agent, "made again")
    store.unlink()
    eventually(lambda: trouble(agent))
    assert "No such file" in trouble(agent) and str(store) in trouble(agent)
    assert value(agent) == CANARY
    write_new(store, data)
    eventually(lambda: value(agent) == "made again")
    assert len(alerts(agent)) == 1


def test_a_replaced_folder_is_seen(agent):
    for turn in range(2):
        data = next_store(agent, f"turn {turn}")
        away = agent.dir / f"away{turn}"
        os.rename(agent.store_dir, away)
        agent.store_dir.mkdir(mode=0o700)
        write_new(agent.store_dir / "store.khs", data)
        eventually(lambda: value(agent) == f"turn {turn}")
        # What happens in the folder that is gone does not matter any more; the new one is watched.
        (away / "store.khs").unlink()
        agent.put_file("app/key", f"after {turn}")
        eventually(lambda: value(agent) == f"after {turn}")
        eventually(lambda: is_watched(agent, agent.store_dir))
    eventually(lambda: trouble(agent) is None)


def test_a_deleted_and_made_again_folder_is_seen(agent):
    data = next_store(agent, "made again")
    shutil.rmtree(agent.store_dir)
    eventually(lambda: trouble(agent))
    assert value(agent) == CANARY
    agent.store_dir.mkdir(mode=0o700)
    write_new(agent.store_dir / "store.khs", data)
    eventually(lambda: value(agent) == "made again")
    eventually(lambda: is_watched(agent, agent.store_dir))


def k8s_volume(agent, folder):
    """Lays the store out as kubelet does a volume: store.khs's folder is a link to ..data, a link to a dated folder."""
    volume = agent.dir / "volume"
    volume.mkdir(mode=0o755)
    os.rename(agent.store_dir, volume / folder)
    os.symlink(folder, volume / "..data")
    os.symlink("volume/..data", agent.store_dir)
    return volume


def swap(volume, folder):
    os.symlink(folder, volume / "..data_tmp")
    os.rename(volume / "..data_tmp", volume / "..data")


def test_a_swapped_symlink_of_a_parent_is_seen_as_kubernetes_does_it():
    with Agent(policy=POLICY, start=False) as agent:
        volume = k8s_volume(agent, "..2026_01")
        agent.start()
        assert value(agent) == CANARY
        for month in ["..2026_02", "..2026_03"]:
            before = os.readlink(volume / "..data")
            data = next_store(agent, month)
            (volume / month).mkdir(mode=0o700)
            write_new(volume / month / "store.khs", data)
            swap(volume, month)
            eventually(lambda: value(agent) == month)
            shutil.rmtree(volume / before)
            assert value(agent) == month
            eventually(lambda: is_watched(agent, volume) and is_watched(agent, volume / month))
        # A write in the folder that the link now leads to.
        current = volume / os.readlink(volume / "..data")
        agent.verb("store", "put", "app/key", "--store", current, "--key", f"file:{agent.key}", stdin=b"inside")
        eventually(lambda: value(agent) == "inside")
        eventually(lambda: trouble(agent) is None)


def test_changes_during_the_restart_are_seen_and_the_accepted_generation_is_kept(agent):
    agent.put("app/key", "second")
    older = (agent.store_dir / "store.khs").read_bytes()
    agent.put("app/key", "third")
    agent.restart()
    assert value(agent) == "third" and agent.status()["sources"][0]["generation"] == 4
    agent.stop()
    (agent.store_dir / "store.khs").unlink()
    write_new(agent.store_dir / "store.khs", older)
    agent.start()
    assert "generation 3, accepted 4" in trouble(agent)
    assert value(agent) == 503
    accepted = (agent.state / "accepted.json").stat()
    assert (accepted.st_mode & 0o777, accepted.st_uid) == (0o600, 0)
    # A state folder that lost its memory is no reason to accept anything but a good store.
    agent.stop()
    (agent.state / "accepted.json").write_text("not json")
    agent.start()
    assert str(agent.state / "accepted.json") in trouble(agent)
    assert value(agent) == 503


SEVERAL = """
[[source]]
name = "team"
kind = "file"
prefix = "app/team/"
path = "{dir}/team"
key = "file:{dir}/store.key"
[[source]]
name = "deep"
kind = "file"
prefix = "app/team/deep/"
path = "{dir}/deep"
key = "file:{dir}/store.key"
"""


@pytest.fixture
def several():
    """Three stores under one key: local without a prefix, team, and deep inside team."""
    with Agent(policy=POLICY, sources=SEVERAL, start=False) as agent:
        for name in ["team", "deep"]:
            agent.verb("store", "init", "--store", agent.dir / name, "--key", f"file:{agent.key}")
            put_at(agent, name, "x", f"of {name}")
        yield agent.start()


def put_at(agent, source, name, text, **kwargs):
    at = ["--store", agent.dir / source, "--key", f"file:{agent.key}"]
    return agent.verb("store", "put", name, *at, stdin=text.encode(), **kwargs)


def test_several_sources_serve_under_their_prefixes(several):
    assert value(several) == CANARY
    assert value(several, "app/team/x") == "of team"
    assert value(several, "app/team/deep/x") == "of deep"
    assert several.read("app/team/deep/x").json()["source"] == "deep"
    put_at(several, "deep", "x", "again")
    eventually(lambda: value(several, "app/team/deep/x") == "again")
    assert value(several, "app/team/x") == "of team"
    listed = several.get("/v1/secrets?prefix=app/").json()["secrets"]
    assert [row["name"] for row in listed] == ["app/key", "app/team/deep/x", "app/team/x"]


def test_a_name_under_another_sources_prefix_is_refused_with_one_alert(several):
    put_at(several, "team", "deep/x", "CANARY-foreign")
    put_at(several, "team", "y", "own")
    eventually(lambda: value(several, "app/team/y") == "own")
    assert value(several, "app/team/deep/x") == "of deep"
    put_at(several, "store", "app/team/z", "CANARY-foreign")
    put_at(several, "store", "app/key", "next")
    eventually(lambda: value(several) == "next")
    assert value(several, "app/team/z") == 404
    told = [(r["source"], r["why"].split(":")[0]) for r in alerts(several)]
    assert told == [("team", "app/team/deep/x"), ("local", "app/team/z")]
    # Each later change of the same store is no new alert; the name's going and coming back is one.
    for turn in range(3):
        several.ops("store", "put", "y", "--source", "team", stdin=b"turn %d" % turn)
    assert len(alerts(several)) == 2
    several.ops("store", "rm", "deep/x", "--source", "team")
    put_at(several, "team", "deep/x", "CANARY-foreign")
    eventually(lambda: len(alerts(several)) == 3)
    # Through the agent such a name is not written at all.
    refused = several.ops("store", "put", "deep/w", "--source", "team", stdin=b"CANARY-foreign", check=False)
    assert (refused.returncode, "app/team/deep/w: belongs to" in refused.stderr) == (1, True)
    assert all("CANARY-foreign" not in str(r) for r in several.records())


def test_a_name_that_is_too_long_with_its_prefix_is_skipped_with_one_alert(several):
    put_at(several, "team", "x" * 510, "1")
    put_at(several, "team", "y", "2")
    eventually(lambda: value(several, "app/team/y") == "2")
    assert len(alerts(several)) == 1


def test_one_source_in_trouble_leaves_the_others_alone(several):
    (several.dir / "team" / "store.khs").write_bytes(b"not a store")
    state = lambda: {source["name"]: source["trouble"] for source in several.status()["sources"]}
    eventually(lambda: state()["team"])
    assert "does not begin with KEYHATCH" in state()["team"]
    assert (state()["local"], state()["deep"]) == (None, None)
    put_at(several, "deep", "x", "still served")
    eventually(lambda: value(several, "app/team/deep/x") == "still served")
    assert several.read("app/team/x").json()["stale"]
    assert not several.read("app/team/deep/x").json()["stale"]
    assert not several.read("app/key").json()["stale"]
    several.restart()
    # Without a last good one only that source's names are unavailable, and the agent is not ready.
    assert value(several) == CANARY
    assert several.read("app/team/x").json()["code"] == "upstream_unavailable"
    health = several.get("/v1/health")
    assert (health.status, health.json()["reasons"]) == (503, ["source team has not loaded"])


def test_a_key_that_changes_with_its_store_is_read_anew(agent):
    agent.verb("store", "key", "add", "next", f"file:{agent.dir}/next.key", *agent.files())
    agent.verb("store", "key", "rm", "host", *agent.files())
    eventually(lambda: trouble(agent))
    assert "no key slot" in trouble(agent) and value(agent) == CANARY
    os.rename(agent.dir / "next.key", agent.key)
    eventually(lambda: trouble(agent) is None)
    agent.put("app/key", "under the next key")
    assert value(agent) == "under the next key"


def test_a_busy_folder_above_costs_nothing_and_a_moved_one_is_followed(agent):
    for n in range(300):
        (agent.dir / f"noise{n}").write_text("x")
    moved = agent.dir.with_name(agent.dir.name + "-moved")
    os.rename(agent.dir, moved)
    try:
        os.symlink(moved, agent.dir)
        done = subprocess.run([KEYHATCHD, "store", "put", "app/key", *agent.files()], input=b"over there")
        assert done.returncode == 0
        eventually(lambda: value(agent) == "over there")
    finally:
        agent.dir.unlink()
        os.rename(moved, agent.dir)
    eventually(lambda: trouble(agent) is None)
    assert value(agent) == "over there"
