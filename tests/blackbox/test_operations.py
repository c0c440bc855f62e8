"""What operators are given: alerts that promtool takes, of metrics that exist, and a runbook that is true and complete."""

import json
import re
import shlex
import shutil
import subprocess

import pytest

from harness import ALICE, CANARY, KEYHATCHD, ROOT, Agent, eventually
from test_metrics import free_port, scrape

MONITORING = ROOT / "systemd" / "monitoring"
RULES = MONITORING / "keyhatch.rules.yml"
DASHBOARD = MONITORING / "keyhatch.dashboard.json"
RUNBOOK = (ROOT / "docs/operations.md").read_text()
PROMTOOL = shutil.which("promtool") or shutil.which(ROOT / "target/tools/bin/promtool")
ALERTS = re.findall(r"- alert: (\w+)", RULES.read_text())
ROUTES = """
[[route]]
name = "echo"
upstream = "https://127.0.0.1:9"
inject = { header = "authorization", value = "Bearer {secret}" }
secret = "app/key"
allow = ["GET /**"]
allow_private = true
"""


def test_the_alerts_pass_promtool_and_its_tests():
    if not PROMTOOL:
        pytest.skip("the alerts are NOT checked: promtool is not installed")
    for args in (["check", "rules", RULES], ["test", "rules", MONITORING / "keyhatch.rules.test.yml"]):
        done = subprocess.run([PROMTOOL, *args], capture_output=True, text=True, cwd=MONITORING)
        assert done.returncode == 0, done.stdout + done.stderr
    tested = re.findall(r"- name: (Keyhatch\w+)", (MONITORING / "keyhatch.rules.test.yml").read_text())
    assert sorted(tested) == sorted(ALERTS)


def test_alerts_and_dashboard_use_metrics_that_exist():
    text = RULES.read_text() + DASHBOARD.read_text()
    used = set(re.findall(r"\bkeyhatch_[a-z_]+", text))
    with Agent(Agent.POLICY + ROUTES, agent=f'metrics = "127.0.0.1:{free_port()}"') as agent:
        exposed = {re.split(r"[{]", sample)[0] for sample in scrape(agent)}
    # Told where there is a source in the network; the name is that of the code.
    upstream = set(re.findall(r'"(keyhatch_source_[a-z_]+)"', (ROOT / "agent/src/api/metrics.rs").read_text()))
    assert len(used) > 15 and used <= exposed | upstream, used - exposed - upstream
    assert json.loads(DASHBOARD.read_text())["panels"]


def test_each_alert_has_its_heading_in_the_runbook():
    headings = re.findall(r"^### (\S+)$", RUNBOOK, re.M)
    events = re.findall(r'\("(alert\.[a-z_]+)"', (ROOT / "agent/src/audit/event.rs").read_text())
    assert len(events) > 10 and len(ALERTS) > 10
    assert sorted(headings) == sorted(events + ALERTS)
    assert re.findall(r"runbook: docs/operations\.md#(\w+)", RULES.read_text()) == [name.lower() for name in ALERTS]


def verbs():
    """The verbs of every command of ours in the runbook, without what is given to them."""
    for command in re.findall(r"keyhatchd ((?:(?!keyhatchd)[^`\n])*)", RUNBOOK):
        words = re.match(r"(?:[a-z]+(?:-[a-z]+)*(?: |$))*", re.split(r"[;&|<,#(]", command)[0])[0].split()
        if words:
            yield words


def test_each_command_of_the_runbook_is_one():
    told = {tuple(words) for words in verbs()}
    real, wrong = set(), []
    for words in told:
        # A verb, and where it has verbs of its own, one of them.
        deep = 2 if words[0] in ("store", "audit", "rotation") and len(words) > 1 else 1
        deep = 3 if words[:2] == ("store", "key") and len(words) > 2 else deep
        real.add(words[:deep])
    for words in real:
        done = subprocess.run([KEYHATCHD, *words, "--help"], capture_output=True, text=True)
        if done.returncode != 0:
            wrong.append(shlex.join(words))
    assert len(real) > 10 and not wrong, wrong


def test_a_backup_is_restored_as_the_runbook_says():
    with Agent() as agent:
        store = agent.store_dir / "store.khs"
        backup = agent.dir / "backup"
        shutil.copy2(store, backup)
        agent.put("app/key", "CANARY-newer")
        eventually(lambda: agent.read("app/key", ALICE).json()["value"] == "CANARY-newer")
        store.write_bytes(b"broken")
        eventually(lambda: agent.records(event="alert.source_rejected"))
        assert agent.read("app/key", ALICE).json()["value"] == "CANARY-newer", "the last good value serves on"
        before = len(agent.records(event="alert.source_rejected"))
        shutil.copyfile(backup, store)
        eventually(lambda: len(agent.records(event="alert.source_rejected")) > before)
        agent.ops("store", "accept-older")
        eventually(lambda: agent.read("app/key", ALICE).json()["value"] == CANARY)
        assert agent.records(event="admin.accepted_older")
        assert agent.ops("status").stdout.startswith(f"keyhatchd {agent.status()['agent']['version']} serves\n")


def test_a_host_whose_key_is_lost_goes_on_with_the_recovery_key():
    with Agent() as agent:
        recovery = agent.dir / "recovery.key"
        agent.ops("store", "key", "add", "recovery", f"file:{recovery}")
        lost = re.search(r'key *= "file:(.*)"', agent.head)[1]
        (agent.dir / lost).unlink()
        assert agent.read("app/key", ALICE).json()["value"] == CANARY, "it serves what it has"
        agent.stop()
        agent.head = agent.head.replace(lost, str(recovery))
        agent.write_policy(Agent.POLICY)
        agent.start()
        assert agent.read("app/key", ALICE).json()["value"] == CANARY
        agent.ops("store", "key", "add", "next", f"file:{agent.dir / 'next.key'}")
        assert "next" in agent.ops("store", "key", "list").stdout
