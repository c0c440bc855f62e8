"""The conformance cases, through each client library's driver program, as a bot that really has another uid.

One library alone: `pytest test_clients.py -k python`.
"""

import json
import shutil
import signal
import subprocess
import tempfile
import threading
from pathlib import Path

import pytest

from conformance import LANGUAGES, SHIMS, Driver, Fake, Match, Stranger, bytes_of, command, many_names, python
from harness import ALICE, ROOT, Agent, eventually

CASES = json.loads((ROOT / "tests" / "conformance" / "cases.json").read_text())
POLICY = Agent.POLICY.replace('"app/**"', '"app/**", "zoo/**"')


def started():
    agent = Agent(policy=POLICY, secrets={name: bytes_of(value) for name, value in CASES["secrets"].items()}, start=False)
    for name, values in CASES["turned"].items():
        for value in values:
            agent.put_file(name, bytes_of(value))
    return agent


@pytest.fixture(scope="module")
def shared():
    agent = started()
    many = dict.fromkeys(many_names(CASES["many"]), "CANARY-many")
    agent.verb("store", "import", "--from", "json", *agent.files(), stdin=json.dumps(many).encode())
    with agent.start():
        yield agent


@pytest.fixture(scope="module")
def drivers():
    """The command of each driver, found or built once."""
    found = {}

    def find(language):
        if language not in found:
            found[language] = command(language)
        return found[language]

    return find


@pytest.fixture
def folder():
    made = Path(tempfile.mkdtemp(prefix="keyhatch-test-", dir="/tmp"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture
def server(request, folder):
    """What a case is `on`: an agent, or what stands in its place."""
    case = request.getfixturevalue("case")
    if case["on"] == "shared":
        yield request.getfixturevalue("shared")
    elif case["on"] == "own":
        with started().start() as agent:
            yield agent
    elif case["on"] == "nothing":
        yield Nothing(folder)
    else:
        fake = Fake(folder, case["fake"]) if case["on"] == "fake" else Stranger(folder)
        yield fake
        fake.stop()


class Nothing:
    def __init__(self, folder):
        self.socket = folder / "keyhatch.sock"


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("case", CASES["cases"], ids=lambda case: case["name"].replace(" ", "-").replace(",", ""))
def test_case(language, case, server, drivers):
    path = server.socket if hasattr(server, "socket") else server.path
    with Driver(drivers(language), path, case.get("as", ALICE)) as driver:
        play = Play(driver, server)
        for step in case["steps"]:
            play.step(step)


class Play:
    """One case being played."""

    def __init__(self, driver, server):
        self.driver, self.server, self.match = driver, server, Match(CASES)

    def step(self, step):
        if "do" in step:
            getattr(self, "do_" + step["do"].replace(" ", "_"))(step)
        elif "hear" in step:
            self.check(step["hear"], self.driver.hear(rotation="rotated" in step["hear"]))
        elif "until" in step:
            eventually(lambda: self.match.wrong(step["until"], self.ask(step)) is None, seconds=30)
        elif "restarts" in step:
            self.restarts(step)
        else:
            for _ in range(step.get("times", 1)):
                self.check(step["answer"], self.ask(step))

    def ask(self, step):
        return self.driver.ask(self.match.fill(step["ask"]))

    def check(self, want, got):
        wrong = self.match.wrong(want, got)
        assert wrong is None, wrong

    def restarts(self, step):
        """Asks on and on until the agent has been restarted so many times, by kill and in peace. Each run of it
        answers a read: one that was gone again before any bot's next try is no restart but an agent that is away."""
        done, failed = threading.Event(), []
        reads = lambda: len(self.server.records(event="secret.read"))

        def restart():
            try:
                for number in range(step["restarts"]):
                    self.server.stop(9 if number % 2 else 15)
                    before = reads()
                    self.server.start()
                    eventually(lambda: reads() > before, 30)
            except BaseException as error:
                failed.append(error)
            finally:
                done.set()

        thread = threading.Thread(target=restart)
        thread.start()
        try:
            while not done.is_set():
                self.check(step["answer"], self.ask(step))
        finally:
            thread.join()
        assert not failed, failed

    # What happens to the agent.

    def do_put(self, step):
        self.server.put(step["name"], bytes_of(step["value"]))

    def do_remove(self, step):
        self.server.ops("store", "rm", step["name"])

    def do_seal(self, _):
        self.server.ops("seal")

    def do_unseal(self, _):
        self.server.ops("unseal")

    def do_kill(self, step):
        self.server.stop(signal.SIGKILL)
        self.do_start(step)

    def do_stop(self, _):
        self.server.stop()

    def do_start(self, step):
        self.server.put_file(step["name"], bytes_of(step["value"]))
        self.server.start()

    def do_restart(self, step):
        self.do_stop(step)
        self.do_start(step)

    # What the agent, or what stands in its place, has seen.

    def do_reads(self, step):
        """How many reads of a secret are on record: the same as before, or more."""
        count = len(self.server.records(event="secret.read", secret=step["name"]))
        if "more_than" in step:
            assert count > self.match.known[step["more_than"]]
        else:
            assert self.match.known.setdefault(step["as"], count) == count > 0

    def do_cached(self, step):
        """Until a read from the cache no longer reaches the agent: the watch that keeps it current has begun."""
        count = lambda: len(self.server.records(event="secret.read", secret=step["name"]))

        def from_memory():
            before = count()
            assert self.driver.ask({"op": "get", "name": step["name"], "cache": True})["ok"]
            return count() == before

        eventually(from_memory, 30)

    def do_watched(self, step):
        eventually(lambda: len(self.server.records(event="secret.watch", secret=step["name"])) >= step["again"], 30)

    def do_polled(self, step):
        """Until so many reads of a version that the bot has are on record: the last one is waiting."""
        polled = lambda: self.server.records(event="secret.read", secret=step["name"], not_modified=True)
        eventually(lambda: len(polled()) >= step["times"], 30)

    def do_connections(self, step):
        assert self.server.connections == step["are"]

    def do_heard_nothing(self, _):
        heard = self.server.heard.read_bytes()
        assert set(heard.splitlines()) <= {b"connected"}, heard


@pytest.mark.anyone
@pytest.mark.parametrize("language", LANGUAGES)
def test_there_is_a_driver(language, drivers):
    assert drivers(language)


FORKING = """
import os, signal, sys
import keyhatch

signal.alarm(60)

client = keyhatch.Client(cache=True)
first = client.get("app/key")
assert client.get("app/key") is first and client.whoami().pid == os.getpid()
watch = client.watch("app/key")
assert next(watch).kind == "current"

def child():
    signal.alarm(30)
    # The agent knows a connection by who opened it, so it would take an inherited one for the parent's.
    assert client.whoami().pid == os.getpid(), "asked on the parent's connection"
    second = client.get("app/key")
    assert second is not first and second.reveal() == first.reveal(), "served from the parent's cache"
    assert client.get("app/key") is second, "has no cache of its own"
    assert next(watch).kind == "current", "read the parent's watch"
    watch.close()
    client.close()

for _ in range(2):
    pid = os.fork()
    if pid == 0:
        try:
            child()
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0

# What the children closed is still open here.
assert client.whoami().pid == os.getpid() and client.get("app/key") is first
print("forked", flush=True)
sys.stdin.readline()
assert next(watch).kind == "rotated"
while client.get("app/key").reveal() != "CANARY-2":
    pass
print("rotated", flush=True)
"""


def test_a_forked_child_uses_nothing_of_its_parents_python():
    with started().start() as agent:
        env = {"PYTHONPATH": str(SHIMS / "python" / "src"), "KEYHATCH_SOCKET": str(agent.socket), "PYTHONDONTWRITEBYTECODE": "1"}
        process = subprocess.Popen([python(), "-c", FORKING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                   user=ALICE, group=ALICE, extra_groups=[], env=env, cwd="/")
        assert process.stdout.readline() == "forked\n"
        agent.put("app/key", "CANARY-2")
        assert process.communicate("go\n", timeout=60) == ("rotated\n", None) and process.returncode == 0
