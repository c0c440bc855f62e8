"""Sealed checkpoints: who owns the host can write the whole log anew, and is found out up to when they came."""

import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess

import pytest

from audit_log import POLICY, SMALL, packed, python_verify
from harness import ALICE, CANARY, KEYHATCHD, Agent, eventually
from load import VALUES, Load, plain_bytes, raw_records, read_many, segments, unplain


def keygen(agent, *args):
    """Begins sealing; the file that the verification key is kept in, elsewhere."""
    done = agent.verb("audit", "keygen", "--config", agent.config, *args)
    kept = agent.dir / "kept-elsewhere.key"
    kept.write_text(done.stdout)
    return kept


def verify(agent, *args, check=True):
    return agent.verb("audit", "verify", "--config", agent.config, *args, check=check)


def checkpoints(agent):
    return agent.records(event="audit.checkpoint")


@pytest.fixture(scope="module")
def sealed():
    """A stopped log of several segments that was sealed from the third read on; its key."""
    with Agent(POLICY, audit=SMALL) as agent:
        read_many(agent, 3)
        agent.key = keygen(agent)
        eventually(lambda: checkpoints(agent))
        for _ in range(3):
            seen = len(checkpoints(agent))
            read_many(agent, 150)
            eventually(lambda: len(checkpoints(agent)) > seen)
        packed(agent)
        agent.stop()
        yield agent


def test_an_honest_log_is_whole_by_two_verifiers_and_the_key_is_nowhere(sealed):
    said = verify(sealed, "--key", sealed.key).stdout
    records = raw_records(sealed.audit_dir)
    last = [r for r in records if r["event"] == "audit.checkpoint"][-1]["seq"]
    assert f"whole; head {records[-1]['seq']}:" in said and f"sealed up to record {last}" in said
    assert last == records[-1]["seq"], "the end is sealed as the daemon stops"
    assert python_verify(sealed.audit_dir, key=sealed.key)[0] == 0
    assert verify(sealed, "--key", "-", check=False).returncode == 1, "nothing comes on standard input"
    given = sealed.verb("audit", "verify", "--config", sealed.config, "--key", "-", stdin=sealed.key.read_bytes())
    assert given.stdout == said
    info = os.stat(sealed.state / "checkpoint.key")
    assert stat.S_IMODE(info.st_mode) == 0o600
    first = sealed.key.read_text().strip()
    assert len(first) == 64
    for path, data in sealed.everything_written():
        assert path == sealed.key or first.encode() not in data, path
    again = sealed.verb("audit", "keygen", "--config", sealed.config, check=False)
    assert again.returncode == 1 and "is there" in again.stderr and again.stdout == ""


def test_each_segment_ends_with_a_checkpoint_and_stays_within_its_size(sealed):
    for path in segments(sealed.audit_dir):
        data = plain_bytes(path)
        assert json.loads(data.splitlines()[-1])["event"] == "audit.checkpoint", path
        assert len(data) <= 64 << 10


def chain(lines, head):
    """The lines chained anew, as someone does who can write the whole log."""
    out, (seq, prev) = [], head
    for line in lines:
        seq += 1
        body = line[line.index(b",") : line.rindex(b',"prev":"')]
        body = b'{"seq":%d%b,"prev":"%b"' % (seq, body, prev.encode())
        prev = hashlib.sha256(body).hexdigest()
        out.append(body + b',"hash":"' + prev.encode() + b'"}')
    return out


def forge(directory, change):
    """Changes the log as root would: `change` takes all lines, and the segments are written anew, each hash right."""
    lines, cuts = [], []
    for path in segments(directory):
        lines += plain_bytes(path).splitlines()
        cuts.append((path, json.loads(lines[-1])["seq"]))
    change(lines)
    lines = chain(lines, (0, "0" * 64))
    cuts[-1] = (cuts[-1][0], len(lines))
    for path, last in cuts:
        mine = [line for line in lines if int(line[7 : line.index(b",")]) <= last]
        lines = lines[len(mine) :]
        unplain(path, b"".join(line + b"\n" for line in mine))
    assert not lines


def reads(lines):
    return [at for at, line in enumerate(lines) if b'"event":"secret.read"' in line]


def seals(lines):
    return [at for at, line in enumerate(lines) if b'"event":"audit.checkpoint"' in line]


def edit_one(lines):
    at = reads(lines)[200]
    lines[at] = lines[at].replace(b'"granted"', b'"no_bot"')
    return at


def drop_one(lines):
    at = reads(lines)[200]
    del lines[at]
    return at


def add_one(lines):
    at = reads(lines)[200]
    lines.insert(at, lines[at])
    return at


def swap_two(lines):
    at = reads(lines)[200]
    lines[at], lines[at + 1] = lines[at + 1], lines[at]
    return at


def edit_and_drop_what_shows_it(lines):
    at = edit_one(lines)
    for seal in reversed([seal for seal in seals(lines)[:-1] if seal > at]):
        del lines[seal]
    return at


def drop_the_seals(lines):
    at = seals(lines)[0]
    lines[:] = [line for line in lines if b'"event":"audit.checkpoint"' not in line]
    return at


FORGERIES = [edit_one, drop_one, add_one, swap_two, edit_and_drop_what_shows_it, drop_the_seals]


@pytest.mark.parametrize("change", FORGERIES)
def test_a_log_chained_anew_by_root_is_named_from_the_last_good_checkpoint_on(sealed, tmp_path, change):
    copy = tmp_path / "audit"
    shutil.copytree(sealed.audit_dir, copy)
    before, told = [], {}

    def changed(lines):
        before.extend(lines)
        told["at"] = change(lines)

    forge(copy, changed)
    assert "whole" in sealed.verb("audit", "verify", "--dir", copy).stdout, "the chain alone does not show it"
    done = sealed.verb("audit", "verify", "--dir", copy, "--key", sealed.key, check=False)
    good = [at for at in seals(before) if at < told["at"]]
    named = good[-1] + 2 if good else 1  # numbers begin at 1
    assert done.returncode == 1 and f"record {named}: " in done.stderr, (done.stderr, named)
    assert named <= told["at"] + 1
    assert python_verify(copy, key=sealed.key)[0] == 1


def test_a_cut_end_is_named_by_the_key_that_the_host_holds(sealed, tmp_path):
    kept = tmp_path / "audit"
    shutil.copytree(sealed.audit_dir, kept)
    try:
        *_, path = segments(sealed.audit_dir)
        lines = plain_bytes(path).splitlines(keepends=True)
        keep = seals(lines)[-2] + 1 if len(seals(lines)) > 1 else 0
        unplain(path, b"".join(lines[:keep])) if keep else os.unlink(path)
        first = json.loads(lines[keep])["seq"]
        done = verify(sealed, "--key", sealed.key, check=False)
        assert done.returncode == 1 and f"record {first}: cut" in done.stderr
        alone = lambda: sealed.verb("audit", "verify", "--dir", sealed.audit_dir, "--key", sealed.key, check=False)
        assert f"sealed up to record {first - 1}\n" in alone().stdout, "without the host's key the end is that checkpoint"
        # Records that someone adds after it, the last one at the time of the checkpoint.
        *_, path = segments(sealed.audit_dir)
        kept_lines = plain_bytes(path).splitlines()
        head = json.loads(kept_lines[-1])
        forged = [kept_lines[-2], kept_lines[-2]]
        add = lambda lines: unplain(path, b"".join(line + b"\n" for line in kept_lines + chain(lines, (head["seq"], head["hash"]))))
        add(forged)
        assert f"sealed up to record {first - 1}, not sealed after it: 2\n" in alone().stdout
        time = json.loads(forged[0])["time"].encode()
        add([forged[0].replace(time, b"2100" + time[4:]), forged[1]])
        assert alone().returncode == 1 and f"record {first}: not sealed" in alone().stderr
        key = sealed.state / "checkpoint.key"
        held = key.read_text()
        magic, ident, index, value = held.split()
        try:
            key.write_text(f"{magic} {ident} {int(index) - 1} {value}")
            done = verify(sealed, "--key", sealed.key, check=False)
            assert done.returncode == 1 and "was not made from this one" in done.stderr
            key.unlink()
            done = verify(sealed, "--key", sealed.key, check=False)
            assert done.returncode == 1 and "is gone" in done.stderr
        finally:
            key.write_text(held)
            key.chmod(0o600)
    finally:
        shutil.rmtree(sealed.audit_dir)
        shutil.copytree(kept, sealed.audit_dir)


def test_a_key_that_could_not_be_printed_is_no_success_and_no_output_ends_short_in_silence(sealed):
    def full(*args):
        with open("/dev/full", "w") as out:
            argv = [KEYHATCHD, "audit", *args, "--config", sealed.config]
            done = subprocess.run(argv, stdout=out, stderr=subprocess.PIPE, text=True)
        return done.returncode, done.stderr

    for verb in (["report"], ["report", "--html"], ["query"], ["query", "--csv"], ["tail"], ["verify"]):
        code, said = full(*verb)
        assert code == 1 and "cannot write to standard output" in said, (verb, code, said)
    key = sealed.state / "checkpoint.key"
    held = key.read_bytes()
    try:
        key.unlink()
        code, said = full("keygen")
        assert code == 1 and "is lost; run keygen again with --replace" in said
    finally:
        key.write_bytes(held)
        key.chmod(0o600)


def test_killed_at_any_time_an_honest_log_stays_whole_and_is_sealed_on():
    with Agent(POLICY, audit=SMALL) as agent:
        key = keygen(agent)
        for kill in range(4):
            seen = len(checkpoints(agent))
            with Load(agent, 4) as load:
                eventually(lambda: load.count(VALUES) > 100 * kill and len(checkpoints(agent)) > seen)
                agent.stop(signal.SIGKILL)
            assert "whole" in verify(agent, "--key", key).stdout
            agent.start()
        agent.stop()
        assert "whole" in verify(agent, "--key", key).stdout
        assert [r["index"] for r in checkpoints(agent)] == list(range(len(checkpoints(agent))))
        assert agent.records(event="alert.chain_broken") == []
        assert python_verify(agent.audit_dir, key=key)[0] == 0


def test_segments_that_expired_leave_the_rest_sealed_and_a_new_key_begins_anew():
    with Agent(POLICY, audit=f'{SMALL}\nkeep = "256KiB"') as agent:
        key = keygen(agent)
        with Load(agent, 4):
            eventually(lambda: agent.records(event="audit.expired") and [r for r in checkpoints(agent)[:1] if r["index"] > 0])
        agent.restart()
        assert "whole" in verify(agent, "--key", key).stdout
        old = agent.dir / "old.key"
        key.rename(old)
        key = keygen(agent, "--replace")
        agent.read("app/key", ALICE)
        eventually(lambda: checkpoints(agent)[-1]["index"] == 0)
        agent.read("app/key", ALICE)
        eventually(lambda: checkpoints(agent)[-1]["index"] == 1)
        assert "whole" in verify(agent, "--key", key).stdout
        done = verify(agent, "--key", old, check=False)
        assert done.returncode == 1 and "seals with another key now" in done.stderr


def test_what_was_cut_while_the_daemon_was_down_is_an_alert_when_it_starts():
    with Agent(POLICY, audit=SMALL) as agent:
        key = keygen(agent)
        for _ in range(3):
            seen = len(checkpoints(agent))
            agent.read("app/key", ALICE)
            eventually(lambda: len(checkpoints(agent)) > seen)
        agent.stop()
        (path,) = segments(agent.audit_dir)
        lines = plain_bytes(path).splitlines(keepends=True)
        unplain(path, b"".join(lines[: seals(lines)[0] + 1]))
        agent.start()
        (alert,) = agent.records(event="alert.chain_broken")
        assert "are missing at the end" in alert["what"]
        assert CANARY not in json.dumps(alert)
        agent.stop()
        assert verify(agent, "--key", key, check=False).returncode == 1
