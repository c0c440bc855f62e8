"""Whoever changes a record, a segment or the whole log is found out."""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import pytest

from audit_log import SMALL, head_of, packed, python_verify, whole
from harness import Agent
from load import plain_bytes, read_many, segments, unplain


@pytest.fixture(scope="module")
def old_log():
    """A stopped log of several compressed segments and a plain one; its pinned head."""
    with Agent(audit=SMALL) as agent:
        read_many(agent, 420)
        packed(agent)
        head = head_of(agent)
        agent.stop()
        head = head_of(agent)
        assert len(segments(agent.audit_dir)) >= 4
        whole(agent)
        assert python_verify(agent.audit_dir, head)[0] == 0
        agent.head_pin = head
        yield agent


def edit(lines, at):
    assert b'"granted"' in lines[at]
    lines[at] = lines[at].replace(b'"granted"', b'"sealed!"')


def edit_hash(lines, at):
    lines[at] = lines[at][:-3] + (b"0" if lines[at][-3:-2] != b"0" else b"1") + lines[at][-2:]


def remove(lines, at):
    del lines[at]


def swap(lines, at):
    lines[at], lines[at + 1] = lines[at + 1], lines[at]


def duplicate(lines, at):
    lines.insert(at, lines[at - 1])


def forge(lines, at):
    lines.insert(at, b"nothing of ours")


def rewrite(lines, at):
    """Edited by someone who knows how, up to its own hash."""
    body = lines[at].replace(b'"granted"', b'"sealed!"')
    body = body[: body.rindex(b',"hash":"')]
    lines[at] = body + b',"hash":"' + hashlib.sha256(body).hexdigest().encode() + b'"}'


@pytest.mark.parametrize("kind", ["plain", "zst"])
@pytest.mark.parametrize("tamper", [edit, edit_hash, remove, swap, duplicate, forge, rewrite])
def test_audit_verify_names_file_and_line_of_what_someone_changed(old_log, tmp_path, kind, tamper):
    copy, path = copied(old_log, tmp_path, -1 if kind == "plain" else 1)
    lines = plain_bytes(path).splitlines()
    at = 5
    record = json.loads(lines[at])["seq"]
    tamper(lines, at)
    unplain(path, b"".join(line + b"\n" for line in lines))
    done = old_log.verb("audit", "verify", "--dir", copy, check=False)
    assert done.returncode == 1
    first = done.stderr.splitlines()[0]
    named = record - 1 if tamper is duplicate else record
    assert first.startswith(f"{os.path.basename(path)} line {at + 1}, record {named}: "), done.stderr
    code, said = python_verify(copy)
    assert code == 1 and os.path.basename(path).removesuffix(".zst") in said
    assert f"line {at + 1}:" in said or f"record {named} " in said, said


@pytest.mark.parametrize("which", [0, 1, -1])
def test_a_missing_segment_shows(old_log, tmp_path, which):
    copy, path = copied(old_log, tmp_path, which)
    os.remove(path)
    head = [] if which != -1 else ["--head", old_log.head_pin]
    done = old_log.verb("audit", "verify", "--dir", copy, *head, check=False)
    assert done.returncode == 1, done.stdout
    missing = int(re.search(r"\d{20}", path)[0])
    assert f"record {missing}" in done.stderr or which == 0
    assert python_verify(copy, *head[1:])[0] == 1


@pytest.mark.parametrize("cut", ["one", "half", "file"])
def test_a_cut_tail_shows_by_the_pinned_head_alone(old_log, tmp_path, cut):
    copy, path = copied(old_log, tmp_path, -1)
    lines = plain_bytes(path).splitlines(keepends=True)
    keep = {"one": len(lines) - 1, "half": len(lines) // 2, "file": 0}[cut]
    next_record = json.loads(lines[keep])["seq"]
    unplain(path, b"".join(lines[:keep]))
    assert "whole" in old_log.verb("audit", "verify", "--dir", copy).stdout
    done = old_log.verb("audit", "verify", "--dir", copy, "--head", old_log.head_pin, check=False)
    assert done.returncode == 1 and f"record {next_record}: cut" in done.stderr
    assert python_verify(copy)[0] == 0
    assert python_verify(copy, old_log.head_pin)[0] == 1


def test_bytes_changed_inside_a_compressed_segment_show_with_its_name(old_log, tmp_path):
    copy, path = copied(old_log, tmp_path, 1)
    good = Path(path).read_bytes()
    for at in [0, 5, len(good) // 2, len(good) - 10]:
        bad = bytearray(good)
        bad[at] ^= 0x41
        Path(path).write_bytes(bad)
        done = old_log.verb("audit", "verify", "--dir", copy, check=False)
        assert done.returncode == 1
        assert re.search(rf"{os.path.basename(path)} line \d+, record \d+: ", done.stderr), (at, done.stderr)
    Path(path).write_bytes(good[:-20])
    done = old_log.verb("audit", "verify", "--dir", copy, check=False)
    assert done.returncode == 1 and f"{os.path.basename(path)} line " in done.stderr


def copied(agent, tmp_path, which):
    copy = tmp_path / "audit"
    shutil.copytree(agent.audit_dir, copy)
    path = segments(copy)[which]
    assert path.endswith(".jsonl" if which == -1 else ".zst")
    return copy, path
