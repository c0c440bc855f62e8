"""The audit log as operators read it: `audit query` and `audit tail`."""

import json
import os
import subprocess
from datetime import datetime

from audit_log import POLICY, SMALL, in_unit, packed
from harness import ALICE, BOB, CANARY, CAROL, KEYHATCHD, Agent, as_user, eventually
from load import Load, raw_records, read_many, segments


def test_query_and_tail_leave_out_no_record():
    with Agent() as agent:
        agent.read("app/key", ALICE)
        agent.restart()
        agent.stop()
        raw = raw_records(agent.audit_dir)
        assert agent.records() == raw
        assert [r["event"] for r in raw if r["event"].startswith("agent.")] == [
            "agent.started", "agent.stopped", "agent.started", "agent.stopped"
        ]
        tail = agent.verb("audit", "tail", "-n", "1000", "--json", "--dir", agent.audit_dir).stdout
        assert [json.loads(line) for line in tail.splitlines()] == raw


def test_reading_the_log_works_while_segments_come_and_go():
    with Agent(POLICY, audit=f'{SMALL}\nkeep = "512KiB"') as agent:
        with Load(agent, 4):
            eventually(lambda: agent.records(event="audit.expired"))
            for _ in range(15):
                agent.verb("audit", "query", "--dir", agent.audit_dir, "--limit", "1")
                agent.verb("audit", "tail", "--dir", agent.audit_dir)
                agent.verify()


def test_tail_follows_over_the_change_of_segments():
    with Agent(audit=SMALL) as agent:
        args = [KEYHATCHD, "audit", "tail", "-f", "-n", "1000", "--json", "--dir", str(agent.audit_dir)]
        with subprocess.Popen(args, stdout=subprocess.PIPE) as tail:
            try:
                assert json.loads(tail.stdout.readline())["seq"] == 1
                read_many(agent, 600)
                packed(agent)
                read_many(agent, 10)
                assert len(segments(agent.audit_dir)) > 4
                for want in range(2, agent.records()[-1]["seq"] + 1):
                    assert json.loads(tail.stdout.readline())["seq"] == want
            finally:
                tail.kill()


def test_query_filters_by_each_of_its_options():
    secrets, exe = {"app/key": CANARY, "app/deep/key": CANARY, "app/denied": CANARY}, os.readlink("/proc/self/exe")
    with Agent(POLICY + Agent.SEES_PROGRAMS, secrets=secrets) as agent:
        agent.read("app/key", ALICE)
        middle = datetime.utcnow()
        agent.read("app/deep/key", CAROL)
        agent.read("app/denied", ALICE)
        agent.read("app/key", BOB)
        agent.get("/v1/secrets", ALICE)
        agent.read("app/key")
        agent.ops("seal")
        everything = raw_records(agent.audit_dir)
        query = lambda *args: [
            json.loads(line)
            for line in agent.verb("audit", "query", "--dir", agent.audit_dir, "--json", *args).stdout.splitlines()
        ]
        want = lambda keep: [r for r in everything if keep(r)]
        when = lambda r: datetime.fromisoformat(r["time"][:-1])
        stamp = middle.isoformat(timespec="microseconds") + "Z"
        for args, keep in [
            ([], lambda r: True),
            (["--bot", "alice"], lambda r: r["bot"] == "alice"),
            (["--bot", "*ar*"], lambda r: r["bot"] == "carol"),
            (["--secret", "app/key"], lambda r: r["secret"] == "app/key"),
            (["--secret", "app/**"], lambda r: (r["secret"] or "").startswith("app/")),
            (["--event", "secret.*"], lambda r: r["event"].startswith("secret.")),
            (["--event", "admin.sealed"], lambda r: r["event"] == "admin.sealed"),
            (["--decision", "deny"], lambda r: r["decision"] == "deny"),
            (["--uid", str(BOB)], lambda r: (r["peer"] or {}).get("uid") == BOB),
            (["--pid", str(os.getpid())], lambda r: (r["peer"] or {}).get("pid") == os.getpid()),
            (["--exe", exe], lambda r: (r["peer"] or {}).get("exe") == exe),
            (["--exe", "**/python*"], lambda r: "/python" in ((r["peer"] or {}).get("exe") or "")),
            (["--since", stamp], lambda r: when(r) >= middle),
            (["--until", stamp], lambda r: when(r) < middle),
            (["--since", "1h"], lambda r: True),
            (["--until", "1h"], lambda r: False),
            (["--seq", "3-5"], lambda r: 3 <= r["seq"] <= 5),
            (["--seq", "4"], lambda r: r["seq"] == 4),
            (["--limit", "2"], lambda r: r["seq"] > everything[-1]["seq"] - 2),
            (["--bot", "alice", "--decision", "allow"], lambda r: r["bot"] == "alice" and r["decision"] == "allow"),
            (["--unit", "*"], lambda r: (r["peer"] or {}).get("unit")),
        ]:
            assert query(*args) == want(keep), args


def test_a_star_in_a_querys_secret_stays_within_a_segment_as_in_grants():
    with Agent(secrets={"app/key": CANARY, "app/deep/key": CANARY}) as agent:
        agent.read("app/key", ALICE)
        agent.read("app/deep/key", ALICE)
        query = lambda pattern: agent.verb(
            "audit", "query", "--dir", agent.audit_dir, "--json", "--secret", pattern
        ).stdout.splitlines()
        assert len(query("app/*")) == 1 and len(query("app/**")) == 2


def test_query_by_unit_finds_what_a_unit_asked():
    unit = "keyhatch-test-audit.service"
    with Agent() as agent, in_unit(unit) as enter:
        as_user_in = lambda: (enter(), as_user(ALICE, lambda: agent.read("app/key").status))[1]
        assert as_user(0, as_user_in, gid=0) == 200
        agent.read("app/key", ALICE)
        done = agent.verb("audit", "query", "--dir", agent.audit_dir, "--json", "--unit", "keyhatch-test-*")
        (record,) = [json.loads(line) for line in done.stdout.splitlines()]
        assert record["peer"]["unit"] == unit
