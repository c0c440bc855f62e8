"""`audit report`: what it says in text, JSON and HTML, the page in a real browser, and names that bite."""

import html.parser
import json
import os
import re

import pytest

from audit_log import POLICY, line_of, nasty_read
from browser import chromium
from harness import ALICE, BOB, CANARY, CAROL, Agent, eventually
from load import raw_records

TRAP = '\n[[honeytoken]]\nsecret = "app/trap"\n'
GUARD = '[role.guard]\ndeny = [\n  { secrets = ["app/trap"] },\n]\n\n[role.helper]'
SECRETS = {name: CANARY for name in ("app/key", "app/deep/key", "app/trap", "help/x", "app/denied")}
HOSTILE = "<img src=x onerror=document.title=666>"


@pytest.fixture(scope="module")
def agent():
    """An agent that bots have asked for this and that, one of them by a program with a name that bites."""
    with Agent(POLICY + Agent.SEES_PROGRAMS + TRAP, secrets=SECRETS) as agent:
        for _ in range(3):
            agent.read("app/key", ALICE)
        agent.read("app/deep/key", CAROL)
        agent.read("app/denied", ALICE)
        agent.read("other/x", ALICE)
        agent.read("app/key", BOB)
        agent.get("/v1/secrets?prefix=" + HOSTILE.replace(" ", "%20").replace("<", "%3C").replace(">", "%3E"), BOB)
        agent.get("/v1/secrets", ALICE)
        nasty_read(agent)
        agent.read("app/trap", ALICE)
        agent.put("help/x", "CANARY-second")
        eventually(lambda: agent.records(event="secret.rotated"))
        yield agent


def report(agent, *args):
    return agent.verb("audit", "report", "--config", agent.config, *args).stdout


def as_json(agent, *args):
    return json.loads(report(agent, "--json", *args))


def test_it_counts_what_the_records_say(agent):
    found, records = as_json(agent), raw_records(agent.audit_dir)
    reads = {(r["bot"], r["secret"]): r for r in found["reads"]}
    of = lambda bot, name: [
        r for r in records if (r["bot"], r["secret"], r["event"], r["decision"]) == (bot, name, "secret.read", "allow")
    ]
    for bot, name in [("alice", "app/key"), ("carol", "app/deep/key"), ("alice", "app/trap")]:
        rows, row = of(bot, name), reads[bot, name]
        assert (row["reads"], row["first"], row["last"]) == (len(rows), rows[0]["time"], rows[-1]["time"])
    denied = {(d["who"], d["secret"], d["reason"]): d["count"] for d in found["denied"]}
    assert denied["alice", "app/denied", "deny_rule"] == denied["alice", "other/x", "no_grant"] == 1
    assert denied[f"uid {BOB} (no bot)", "app/key", "no_bot"] == 1
    totals = found["totals"]
    assert totals["records"] == len(records) and totals["left_out"] == 0
    assert totals["denied"] == len([r for r in records if r["decision"] == "deny"])
    (alert,) = found["alerts"]
    assert alert["event"] == "alert.honeytoken" and alert["bot"] == "alice"
    assert [e["seq"] for e in alert["evidence"]] == [of("alice", "app/trap")[0]["seq"]]
    assert sum(sum(hours) for hours in found["heat"].values()) == sum(r["reads"] for r in found["reads"])
    assert sum(b["denied"] for b in found["timeline"]) == totals["denied"]
    hour = int(records[-1]["time"][11:13])
    assert sum(found["heat"]["alice"][day * 24 + h] for day in range(7) for h in (hour, (hour - 1) % 24)) > 0
    assert any("secret.rotated help/x" in e["says"] for e in found["happened"])


def test_since_leaves_out_what_is_older_and_rotations_count_however_old(agent):
    assert as_json(agent, "--since", "0s")["reads"] == []
    assert as_json(agent, "--since", "1000y")["reads"] == as_json(agent)["reads"]
    stale = lambda *args: [u["secret"] for u in as_json(agent, *args)["unrotated"]]
    assert stale() == [], "the log is younger than that"
    assert stale("--rotate-within", "0s") == ["app/deep/key", "app/key", "app/trap"]
    agent.read("help/x", ALICE)
    (row,) = [u for u in as_json(agent, "--rotate-within", "0s")["unrotated"] if u["secret"] == "help/x"]
    assert row["rotated"] == agent.records(event="secret.rotated", secret="help/x")[-1]["time"]


def test_the_smaller_policy_can_be_pasted_and_allows_what_was_used_and_no_more():
    guarded = POLICY.replace('["reader", "helper"]', '["reader", "helper", "guard"]').replace("[role.helper]", GUARD)
    guarded += '\n[[honeytoken]]\nsecret = "app/bait"\n'
    with Agent(guarded, secrets=SECRETS) as agent:
        agent.read("app/key", ALICE)
        agent.read("app/deep/key", CAROL)
        assert agent.read("app/bait", ALICE).status == 200
        agent.read("app/denied", ALICE)
        found = as_json(agent)
        unused = {(u["role"], u["pattern"]): u for u in found["unused"]}
        assert unused["helper", "help/*"]["by_all"] and not unused["reader", "app/**"]["by_all"]
        assert unused["helper", "help/*"]["place"] == line_of(agent, 'secrets = ["help/*"]')
        assert unused["reader", "app/**"]["unused_by"] == ["twin-a"]
        assert unused["reader", "app/**"]["unused_actions"] == ["list", "watch"]
        smaller = found["smaller_policy"]
        assert smaller in "\n".join(line.removeprefix("  ") for line in report(agent).splitlines()) + "\n"
        bots = re.sub(r"\[role\.[\s\S]*?\n\]\n(deny = \[[\s\S]*?\n\]\n)?|\[role\.helper\]\ngrants = .*\n", "", guarded)
        bots = bots.replace(', "helper"', "")
        assert "role." not in bots
        assert '[role.guard]\ndeny = [\n  { secrets = ["app/trap"]' in smaller, "a role that only denies still does"
        agent.write_policy(bots + "\n" + smaller)
        agent.ops("reload")
        status = lambda name, uid: agent.read(name, uid).status
        assert [status("app/key", ALICE), status("app/deep/key", CAROL)] == [200, 200]
        denied = ("app/denied", "app/trap", "app/bait", "help/x")
        assert [status(name, ALICE) for name in denied] == [403] * len(denied)


class Structure(html.parser.HTMLParser):
    """What a browser would find: elements and attributes."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs


def test_the_html_loads_nothing_and_a_hostile_name_is_text(agent):
    page = report(agent, "--html")
    found = Structure(page)
    assert "img" not in found.tags and "link" not in found.tags and "iframe" not in found.tags
    assert not [name for name, _ in found.attributes if name.startswith("on") or name in ("src", "href", "style")]
    assert found.tags.count("script") == 2 and found.tags.count("style") == 1
    assert "&lt;img src=x onerror" in page and "http://" not in page and "https://" not in page
    assert CANARY not in page and "\u202e" not in page and "\x1b" not in page
    for out in (report(agent), report(agent, "--json")):
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", out), "nothing that a terminal acts on"
        assert CANARY not in out
    assert "\u202e" not in report(agent)


def test_the_page_in_a_browser_filters_sorts_and_shows_itself_in_both_schemes(agent, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(report(agent, "--html", "--rotate-within", "0s"))
    kept = os.environ.get("KEYHATCH_SCREENSHOTS", tmp_path)
    with chromium() as browser:
        browser.open(path)
        rows = lambda kind: browser.run(
            "return [...document.querySelectorAll(`section[data-kind=${arguments[0]}] tr[data-row]`)]"
            ".filter(row => row.offsetParent).map(row => row.cells[0].textContent + '|' + row.cells[1].textContent)", kind
        )
        everything = rows("reads")
        assert "alice|app/key" in everything and "carol|app/deep/key" in everything
        heat = lambda: browser.run("return [...document.querySelectorAll('#heat td')].reduce((n, c) => n + +c.textContent, 0)")
        whole = heat()
        browser.type("#search", "deep CAROL")
        assert rows("reads") == ["carol|app/deep/key"] and rows("denied") == []
        browser.click("button[type=reset]")
        eventually(lambda: rows("reads") == everything)
        browser.click("#bot option[value=carol]")
        assert rows("reads") == ["carol|app/deep/key"] and heat() == 1 < whole
        assert browser.run("return document.getElementById('shown').textContent").startswith("2 of ")
        browser.click("button[type=reset]")
        eventually(lambda: heat() == whole)
        browser.click("#kind option[value=denied]")
        assert rows("reads") == [] and len(rows("denied")) == 4
        browser.click("button[type=reset]")
        eventually(lambda: rows("reads") == everything)
        browser.click("section[data-kind=reads] th:nth-child(2) button")
        by_secret = rows("reads")
        assert by_secret == sorted(everything, key=lambda row: row.split("|")[1]) != everything
        browser.click("section[data-kind=reads] th:nth-child(2) button")
        assert rows("reads") == by_secret[::-1]
        shades = set()
        for scheme in ("light", "dark"):
            browser.scheme(scheme)
            browser.screenshot(os.path.join(kept, f"report-{scheme}.png"))
            shades.add(browser.run("return getComputedStyle(document.body).backgroundColor"))
        assert len(shades) == 2
        # A hostile name has run nothing, and the page's own policy stops whatever would.
        assert browser.run("return document.title") == "Keyhatch audit report"
        assert browser.run("return document.querySelectorAll('img').length") == 0
        assert browser.complaints() == []
        forged = path.read_text().replace("</main>", "<script>document.title = 'forged'</script></main>")
        path.write_text(forged)
        browser.open(path)
        assert browser.run("return document.title") == "Keyhatch audit report"
        assert any("Content Security Policy" in said for said in browser.complaints())
