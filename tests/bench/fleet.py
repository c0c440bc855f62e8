#!/usr/bin/env python3
"""Twenty real agents against one real OpenBao, beside what `keyhatch-bench fleet` simulates of them.

    target/venv/bin/python tests/bench/fleet.py      (after ./tests/run and a release build of keyhatch-bench)
"""

import collections
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "blackbox"))

from fetching import fetcher, token_file, vault  # noqa: E402
from harness import eventually  # noqa: E402
from upstreams import Bao  # noqa: E402

AGENTS, SECRETS, REFRESH = 20, 20, 2
POLICY = """
path "secret/data/app/*" { capabilities = ["read"] }
path "secret/metadata/app/*" { capabilities = ["read", "list"] }
path "secret/detailed-metadata/app/*" { capabilities = ["list"] }
"""


def requests_by_second(bao):
    """What the upstream was asked since the last look, by the second of its answer."""
    with open(bao.audit, "rb") as log:
        log.seek(bao.seen)
        lines = [json.loads(line) for line in log.read().splitlines()]
    answers = [line for line in lines if line["type"] == "response" and "root" not in (line.get("auth") or {}).get("policies", [])]
    return collections.Counter(line["time"][:19] for line in answers)


def up(agent):
    return next(s for s in agent.status()["sources"] if s["name"] == "bao")["state"] == "up"


def told_after(agent, version, start, out):
    """Waits at the agent for another version, as a bot would."""
    reply = agent.read("bao/app/s00", If_None_Match=f'"{version}"', Prefer="wait=60")
    out.append((time.monotonic() - start, reply.status))


def measure(bao, agents):
    bao.forget_requests()
    for agent in agents:
        agent.start(ready=False)
    for agent in agents:
        eventually(agent.answers)
        eventually(lambda: up(agent), 30)
    time.sleep(3 * REFRESH)
    peak = max(requests_by_second(bao).values())
    bao.forget_requests()
    calm = 10 * REFRESH
    time.sleep(calm)
    steady = sum(requests_by_second(bao).values()) / calm
    version = agents[0].read("bao/app/s00").json()["version"]
    told, start = [], time.monotonic()
    waiting = [threading.Thread(target=told_after, args=(agent, version, start, told)) for agent in agents]
    for thread in waiting:
        thread.start()
    time.sleep(0.5)
    moment = time.monotonic() - start
    bao.put("app/s00", "CANARY-rotated")
    for thread in waiting:
        thread.join()
    assert {status for _, status in told} == {200}, told
    times = sorted(at - moment for at, _ in told)
    return {"steady": steady, "peak": peak, "half": times[len(times) // 2], "all": times[-1]}


def main():
    bao = Bao()
    try:
        bao.start()
        bao.reset()
        bao.policy("fleet", POLICY)
        for number in range(SECRETS):
            bao.put(f"app/s{number:02}", f"CANARY-{number}")
        auth = {"method": "token_file", "path": token_file(bao, bao.new_token("fleet"))}
        source = vault(bao, auth=auth, refresh=f"{REFRESH}s", prefetch=["app/**"])
        agents = [fetcher(source, start=False) for _ in range(AGENTS)]
        try:
            real = measure(bao, agents)
        finally:
            for agent in agents:
                agent.__exit__()
    finally:
        bao.stop()
    bench = ROOT / "target" / "release" / "keyhatch-bench"
    done = subprocess.run([bench, "fleet", "--json", *map(str, (AGENTS, SECRETS, REFRESH, 2000))], capture_output=True, check=True)
    model = json.loads(done.stdout)
    print(f"{AGENTS} agents, {SECRETS} secrets each, refresh {REFRESH} s, one OpenBao")
    for key, what in [("steady", "requests a second once calm"), ("peak", "most requests in one second after a common start"),
                      ("half", "seconds until half have a rotation"), ("all", "seconds until all have it")]:
        print(f"  {what:<48} real {real[key]:8.2f}   model {model[key]:8.2f}")


if __name__ == "__main__":
    main()
