#!/usr/bin/env python3
"""Verifies Keyhatch audit segments, independently of the agent; see docs/audit-format.md.

    verify_audit.py [--head SEQ:HASH] [--key FILE] SEGMENT...     (in the order of their names; .zst needs `zstd -dc` first)

With --key, what `keyhatchd audit keygen` printed, the sealed checkpoints must hold, too.

Exits 0 when every record is as it was written, 1 naming the first bad record, 2 on wrong usage.
"""

import hashlib
import hmac
import json
import sys

START = "0" * 64


def mac(key, text):
    return hmac.new(key, text.encode(), hashlib.sha256).digest()


class Seals:
    """The key of the next checkpoint; each one is made from the one before."""

    def __init__(self, key):
        self.key, self.id, self.index = key, mac(key, "keyhatch-audit-key-id")[:8].hex(), 0
        self.last = None

    def holds(self, record, pruned):
        """Whether a checkpoint seals all records before it."""
        skip = record["index"] - self.index
        if skip < 0 or (skip and (self.last or not pruned)):
            return False
        for _ in range(skip):
            self.key = mac(self.key, "keyhatch-audit-next-key")
        text = f"keyhatch-audit-checkpoint:{record['index']}:{record['seq'] - 1}:{record['prev']}"
        good = hmac.compare_digest(mac(self.key, text).hex(), record["hmac"])
        self.key, self.index = mac(self.key, "keyhatch-audit-next-key"), record["index"] + 1
        self.last = record["seq"]
        return good


def check(paths, pinned=None, seals=None):
    """Yields (file, line, seq, what) for each bad record."""
    seq, prev, expired, begins = None, START, {}, None
    for path in paths:
        with open(path, "rb") as file:
            lines = file.read().rstrip(b"\0").split(b"\n")
        if lines.pop():
            print(f"note: {path} ends in an unfinished line", file=sys.stderr)
        for number, line in enumerate(lines, 1):
            where = (path, number, (seq or 0) + 1)
            try:
                record = json.loads(line)
                hashed = line[: line.rindex(b',"hash":"')]
                got, follows, own = record["seq"], record["prev"], record["hash"]
            except (ValueError, KeyError):
                yield (*where, "is not a record")
                continue
            if hashlib.sha256(hashed).hexdigest() != own:
                yield (path, number, got, "was edited: its content does not have its hash")
            if seq is None:
                begins = (path, number, got, follows)
            elif got != seq + 1:
                yield (*where, f"is missing or moved: record {got} stands here")
            elif follows != prev:
                yield (path, number, seq, "was rewritten: the next record follows another hash")
            if record["event"] == "audit.expired":
                expired[record["last_seq"]] = record["last_hash"]
            if seals and record["event"] == "audit.checkpoint" and record["key"] == seals.id:
                last = seals.last or begins[2] - 1 if begins else 0
                if not seals.holds(record, begins and begins[2] > 1):
                    yield (path, number, last + 1, f"or one after it is not what checkpoint {got} seals")
            if pinned and pinned[0] == got and pinned[1] != own:
                yield (path, number, got, "is not the pinned one")
            seq, prev = got, own
    if begins and begins[2:] != (1, START) and expired.get(begins[2] - 1) != begins[3]:
        yield (*begins[:3], "is the first, and no audit.expired names the ones before")
    if seals and seals.last is None:
        yield (path, 1, seq or 1, "is not sealed: no checkpoint has this key")
    if pinned and (seq or 0) < pinned[0]:
        yield (path, len(lines), (seq or 0) + 1, "is missing: the log ends before the pinned head")


def main(args):
    pinned = seals = None
    if args[:1] == ["--head"] and len(args) > 1:
        number, _, digest = args[1].partition(":")
        pinned, args = (int(number), digest), args[2:]
    if args[:1] == ["--key"] and len(args) > 1:
        with open(args[1]) as file:
            seals, args = Seals(bytes.fromhex(file.read().strip())), args[2:]
    if not args:
        print(__doc__, file=sys.stderr)
        return 2
    for path, number, seq, what in check(args, pinned, seals):
        print(f"{path} line {number}: record {seq} {what}")
        return 1
    print("every record is as it was written")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
