"""Rotations as bots see them: versions, ETags, long polls, watches; and what those who never read may hold."""

import json
import resource
import socket

import pytest

from harness import ALICE, BOB, CANARY, ROOT_AND_ALICE, Agent, eventually

LARGE = 65_536


@pytest.fixture
def agent():
    with Agent(policy=ROOT_AND_ALICE) as agent:
        yield agent


def version_of(agent, name):
    return agent.read(name).json()["version"]


def connections(agent):
    """How many bots are connected; root on the admin socket does not count."""
    return agent.status()["connections"]


class Poll:
    """A long poll that has begun to wait."""

    def __init__(self, agent, name, version, wait=60, **headers):
        known = len(agent.records(event="secret.read"))
        self.bot = agent.connect()
        self.bot.putrequest("GET", f"/v1/secrets/{name}", skip_host=True, skip_accept_encoding=True)
        headers = {"Host": "x", "If-None-Match": f'"{version}"', "Prefer": f"wait={wait}"} | headers
        for header, value in headers.items():
            self.bot.putheader(header, value)
        self.bot.endheaders()
        # It is recorded when it is asked, and again when it wakes.
        eventually(lambda: len(agent.records(event="secret.read")) > known)

    def answer(self):
        reply = self.bot.getresponse()
        self.body = reply.read()
        return reply


class Watch:
    """A watch, read event by event: (event, data, id)."""

    def __init__(self, agent, *names, last=None):
        self.bot = agent.connect()
        query = "&".join(f"name={name}" for name in names)
        self.bot.putrequest("GET", f"/v1/watch?{query}", skip_host=True, skip_accept_encoding=True)
        self.bot.putheader("Host", "x")
        if last is not None:
            self.bot.putheader("Last-Event-ID", last)
        self.bot.endheaders()
        self.reply = self.bot.getresponse()
        assert self.reply.status == 200, self.reply.read()
        assert self.reply.headers["content-type"] == "text/event-stream"

    def event(self):
        fields = {}
        while (line := self.reply.readline().decode()) not in ("\n", ""):
            key, _, value = line.rstrip("\n").partition(": ")
            fields[key] = value
        if not fields:
            return None
        self.last = fields["id"]
        return fields["event"], json.loads(fields["data"])

    def events(self, count):
        return [self.event() for _ in range(count)]


# Versions.


def test_the_previous_version_and_each_by_its_id_stay_readable_until_the_next_rotation(agent):
    first = version_of(agent, "app/key")
    agent.put("app/key", "second")
    second = version_of(agent, "app/key")
    for query, want in [("", "second"), ("?version=current", "second"), ("?version=previous", CANARY),
                        (f"?version={first}", CANARY), (f"?version={second}", "second")]:
        reply = agent.read("app/key" + query)
        assert (reply.status, reply.json()["value"]) == (200, want), query
        assert reply.headers["etag"] == f'"{reply.json()["version"]}"'
    assert agent.read("app/key?version=previous", ALICE).json()["version"] == first
    assert agent.read("app/key?version=previous", BOB).json()["code"] == "denied"
    agent.put("app/key", "third")
    assert agent.read("app/key?version=previous").json()["version"] == second
    gone = agent.read(f"app/key?version={first}")
    assert (gone.status, gone.json()["code"]) == (404, "not_found")
    read = agent.records(event="secret.read", version=second)
    assert len(read) == 5 and {r["decision"] for r in read} == {"allow"}


def test_a_secret_put_for_the_first_time_has_no_previous_version(agent):
    assert agent.read("app/key?version=previous").json()["code"] == "not_found"
    assert agent.read("app/key?version=1-0000000000000000").json()["code"] == "not_found"


def test_a_version_is_unique_also_where_a_value_comes_back(agent):
    seen = [version_of(agent, "app/key")]
    for value in ["other", CANARY, "other"]:
        agent.put("app/key", value)
        seen.append(version_of(agent, "app/key"))
    agent.ops("store", "rm", "app/key")
    agent.put("app/key", CANARY)
    seen.append(version_of(agent, "app/key"))
    assert len(set(seen)) == 5


def test_an_etag_that_is_known_is_304_without_a_value(agent):
    version = version_of(agent, "app/key")
    for tag in [f'"{version}"', f'W/"{version}"']:
        reply = agent.read("app/key", If_None_Match=tag)
        assert (reply.status, reply.body, reply.headers["etag"]) == (304, b"", f'"{version}"')
        assert reply.headers["cache-control"] == "no-store"
    raw = agent.read("app/key", If_None_Match=f'"{version}"', Accept="application/octet-stream")
    assert raw.status == 304
    assert agent.read("app/key", If_None_Match='"1-0"').json()["value"] == CANARY
    assert agent.read("app/key", BOB, If_None_Match=f'"{version}"').status == 403
    agent.put("app/key", "next")
    assert agent.read("app/key", If_None_Match=f'"{version}"').json()["value"] == "next"


# Long polls.


def test_a_long_poll_wakes_with_the_new_value(agent):
    version = version_of(agent, "app/key")
    polls = [Poll(agent, "app/key", version), Poll(agent, "app/key", version, Accept="application/octet-stream")]
    agent.put("app/other", "somebody else's rotation")
    agent.put("app/key", "rotated")
    answers = [poll.answer() for poll in polls]
    assert [a.status for a in answers] == [200, 200]
    assert json.loads(polls[0].body)["value"] == "rotated" and polls[1].body == b"rotated"
    assert answers[1].headers["keyhatch-version"] == version_of(agent, "app/key")
    # Decided and recorded when it was asked, and again as it woke.
    request = json.loads(agent.records(event="secret.read")[1]["request_id"].join('""'))
    both = agent.records(event="secret.read", request_id=request)
    assert [(r.get("not_modified"), r["version"] == version) for r in both] == [(True, True), (None, False)]


def test_a_long_poll_whose_etag_is_old_is_answered_at_once(agent):
    old = version_of(agent, "app/key")
    agent.put("app/key", "next")
    assert agent.read("app/key", If_None_Match=f'"{old}"', Prefer="wait=60").json()["value"] == "next"
    assert agent.read("app/none", If_None_Match='"1-0"', Prefer="wait=60").status == 404


def test_a_long_poll_without_news_ends_with_304(agent):
    version = version_of(agent, "app/key")
    assert agent.read("app/key", If_None_Match=f'"{version}"', Prefer="wait=1").status == 304


def test_a_long_poll_for_a_field_and_one_for_the_previous_version_wake_too(agent):
    agent.put("app/object", '{"password": "one"}')
    agent.put("app/object", '{"password": "two"}')
    now, before = version_of(agent, "app/object"), version_of(agent, "app/object?version=previous")
    field = Poll(agent, "app/object?field=password", now)
    previous = Poll(agent, "app/object?version=previous", before)
    agent.put("app/object", '{"password": "three"}')
    assert field.answer().status == 200 and json.loads(field.body)["value"] == "three"
    assert previous.answer().status == 200 and "two" in json.loads(previous.body)["value"]


def test_a_long_poll_for_a_secret_that_is_removed_ends_with_404(agent):
    poll = Poll(agent, "app/key", version_of(agent, "app/key"))
    agent.ops("store", "rm", "app/key")
    assert poll.answer().status == 404 and json.loads(poll.body)["code"] == "not_found"


def test_a_long_poll_wakes_for_a_change_of_the_files_too(agent):
    poll = Poll(agent, "app/key", version_of(agent, "app/key"))
    agent.put_file("app/key", "in the files")
    assert poll.answer().status == 200 and json.loads(poll.body)["value"] == "in the files"


def test_a_long_poll_of_a_bot_whose_grant_is_revoked_meanwhile_gets_403(agent):
    poll = Poll(agent, "app/key", version_of(agent, "app/key"))
    agent.write_policy(ROOT_AND_ALICE.replace("app/**", "elsewhere/**"))
    agent.ops("reload")
    assert poll.answer().status == 403 and json.loads(poll.body)["code"] == "denied"


def test_a_restart_answers_long_polls_instead_of_cutting_them_off(agent):
    poll = Poll(agent, "app/key", version_of(agent, "app/key"))
    agent.stop()
    assert poll.answer().status == 304


# Watches.


def test_a_watch_tells_current_rotated_and_removed_and_never_a_value(agent):
    watch = Watch(agent, "app/key")
    first = version_of(agent, "app/key")
    assert watch.event() == ("current", {"name": "app/key", "version": first})
    agent.put("app/key", "CANARY-next")
    second = version_of(agent, "app/key")
    assert watch.event() == ("rotated", {"name": "app/key", "version": second})
    agent.put("app/key", "CANARY-next")
    agent.ops("store", "rm", "app/key")
    kind, data = watch.event()
    assert kind == "removed" and data["name"] == "app/key" and data.get("version") is None
    agent.put("app/key", "CANARY-back")
    assert watch.event() == ("rotated", {"name": "app/key", "version": version_of(agent, "app/key")})
    rotated = [(r["event"], r["version"]) for r in agent.records(secret="app/key") if r["event"].startswith("secret.r")]
    assert [r for r in rotated if r[0] != "secret.read"][:2] == [("secret.rotated", second), ("secret.removed", second)]
    # Each event was decided and recorded like the first, which is also the record of the request.
    told = agent.records(event="secret.watch", secret="app/key")
    assert [r["decision"] for r in told] == ["allow"] * 4


def test_a_watch_of_several_names_tells_each_and_only_its_own(agent):
    agent.put("app/a", "1")
    agent.put("app/b", "1")
    watch = Watch(agent, "app/a", "app/b", "app/absent")
    current = watch.events(3)
    assert [(kind, data["name"]) for kind, data in current] == [
        ("current", "app/a"), ("current", "app/b"), ("current", "app/absent")]
    assert current[2][1].get("version") is None
    agent.put("app/c", "not watched")
    agent.put("app/b", "2")
    assert watch.event() == ("rotated", {"name": "app/b", "version": version_of(agent, "app/b")})
    agent.put("app/absent", "now it is there")
    assert watch.event() == ("rotated", {"name": "app/absent", "version": version_of(agent, "app/absent")})
    both = json.dumps({"app/a": "3", "app/b": "3"}).encode()
    agent.ops("store", "import", "--from", "json", stdin=both)
    assert [(kind, data["name"]) for kind, data in watch.events(2)] == [("rotated", "app/a"), ("rotated", "app/b")]
    denied = agent.get("/v1/watch?name=app/a&name=other/x")
    assert (denied.status, denied.json()["code"]) == (403, "denied")


def test_a_watch_resumes_by_last_event_id_over_a_restart_and_tells_what_was_missed(agent):
    agent.put("app/a", "1")
    agent.put("app/b", "1")
    watch = Watch(agent, "app/a", "app/b", "app/key")
    assert [kind for kind, _ in watch.events(3)] == ["current"] * 3
    agent.stop()
    assert watch.event() == ("closed", {"reason": "restarting"})
    assert watch.event() is None
    # While nobody watches: one rotates twice, one goes, one stays.
    agent.put_file("app/b", "2")
    agent.put_file("app/b", "3")
    agent.verb("store", "rm", "app/key", *agent.files())
    agent.start()
    again = Watch(agent, "app/a", "app/b", "app/key", last=watch.last)
    assert again.event() == ("rotated", {"name": "app/b", "version": version_of(agent, "app/b")})
    kind, data = again.event()
    assert (kind, data["name"]) == ("removed", "app/key")
    # Nothing else was missed: the next event is the next rotation.
    agent.put("app/a", "2")
    assert again.event() == ("rotated", {"name": "app/a", "version": version_of(agent, "app/a")})
    # Up to date: nothing is told twice.
    quiet = Watch(agent, "app/a", "app/b", "app/key", last=again.last)
    agent.put("app/key", "back")
    assert quiet.event()[0] == "rotated"
    # An id that is not one of this watch begins anew.
    for last in ["", "nonsense", "1-0", again.last + ",1-0"]:
        anew = Watch(agent, "app/a", "app/b", "app/key", last=last)
        assert [kind for kind, _ in anew.events(3)] == ["current"] * 3


def test_a_watch_ends_with_a_reason_when_it_may_no_longer_be(agent):
    watch = Watch(agent, "app/key")
    watch.event()
    agent.write_policy(ROOT_AND_ALICE.replace("app/**", "elsewhere/**"))
    agent.ops("reload")
    assert watch.event() == ("closed", {"reason": "denied"})
    assert watch.event() is None
    agent.write_policy(ROOT_AND_ALICE)
    agent.ops("reload")
    sealed = Watch(agent, "app/key")
    sealed.event()
    agent.ops("seal")
    assert sealed.event() == ("closed", {"reason": "sealed"})


def test_1000_watchers_are_all_told(agent):
    count = 1_000
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4 * 3 * count + 200:
        pytest.skip(f"only {hard} open files are allowed: not shown for {count} watchers")
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    watches = []
    try:
        watches = [Watch(agent, "app/key") for _ in range(count)]
        assert {watch.event()[0] for watch in watches} == {"current"}
        for turn in range(3):
            agent.put("app/key", f"turn {turn}")
            want = ("rotated", {"name": "app/key", "version": version_of(agent, "app/key")})
            assert all(watch.event() == want for watch in watches)
        assert connections(agent) == count
        assert len(agent.records(event="secret.watch", decision="allow")) == 4 * count
    finally:
        for watch in watches:
            watch.bot.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    eventually(lambda: connections(agent) == 0)


# Those who never read.


@pytest.fixture(scope="module")
def never_read():
    """An agent with a watcher and a reader that never read, begun early: their bound is 30 seconds."""
    with Agent(policy=ROOT_AND_ALICE, secrets={"app/large": "x" * LARGE}) as agent:
        names = [f"app/{'n' * 110}{n}" for n in range(100)]
        rotate = lambda turn: agent.ops(
            "store", "import", "--from", "json", stdin=json.dumps({name: str(turn) for name in names}).encode()
        )
        rotate(0)
        watcher, reader = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
        query = "&".join(f"name={name}" for name in names)
        asks = [f"GET /v1/watch?{query} HTTP/1.1\r\nHost: x\r\n\r\n", "GET /v1/secrets/app/large HTTP/1.1\r\nHost: x\r\n\r\n" * 12]
        for sock, ask in zip([watcher, reader], asks):
            sock.connect(str(agent.socket))
            sock.sendall(ask.encode())
        yield agent, rotate, watcher, reader
        watcher.close()
        reader.close()


@pytest.fixture(autouse=True)
def begun_early(never_read):
    """So that the time of all other tests counts."""


def test_a_watcher_that_never_reads_makes_nobody_wait_and_nothing_grow(never_read):
    agent, rotate, _, _ = never_read
    resident = lambda: int(open(f"/proc/{agent.pid}/statm").read().split()[1]) * 4096
    live = Watch(agent, "app/" + "n" * 110 + "0")
    live.event()
    assert connections(agent) == 3
    # Fills every buffer on the way to it: 100 events of about 2 KB each time.
    for turn in range(1, 4):
        rotate(turn)
        assert live.event()[0] == "rotated"
    before = resident()
    for turn in range(4, 14):
        rotate(turn)
        assert live.event()[0] == "rotated"
    # A queue would have grown by 10 times 200 KB.
    assert resident() - before < 1 << 20
    live.bot.close()


def test_who_never_reads_is_cut_off_and_what_they_held_is_wiped(never_read):
    agent, _, watcher, reader = never_read
    eventually(lambda: connections(agent) == 2)
    agent.put("app/large", "small")
    agent.put("app/large", "smaller")
    eventually(lambda: connections(agent) == 0, seconds=40, pause=0.2)
    left = agent.status()["secret_memory"]["used"]
    agent.ops("seal")
    agent.ops("unseal")
    assert agent.status()["secret_memory"]["used"] == left, "more is held than what is served"
    for sock in [watcher, reader]:
        sock.settimeout(5)
        got = b""
        try:
            while piece := sock.recv(1 << 20):
                got += piece
        except ConnectionResetError:
            pass  # an end like any other
        # What had fit into the kernel's buffers, and no end.
        assert got.startswith(b"HTTP/1.1 200") and 100_000 < len(got) < 1 << 20
