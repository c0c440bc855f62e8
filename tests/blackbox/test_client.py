"""The `keyhatch` command with a real daemon: exact bytes, exit codes, streams, and what it says when it fails."""

import itertools
import json
import os
import re
import socket
import subprocess
import threading

import pytest

from harness import ALICE, BOB, CANARY, KEYHATCH, KEYHATCHD, Agent, eventually

BINARY = b"\x00CANARY\n\xff\x00no newline"
FIELDS = json.dumps({"user": "app", "password": "p\u00e4ss\n", "port": 5432, "nested": {"a": [1]}})
SECRETS = {"app/key": CANARY, "app/binary": BINARY, "app/empty": b"", "app/db": FIELDS, "app/turned": "CANARY-old",
           "zoo/key": "CANARY-zoo"}
POLICY = Agent.POLICY.replace('"app/**"', '"app/**", "zoo/**"')


@pytest.fixture(scope="module")
def shared():
    with Agent(policy=POLICY, secrets=SECRETS) as agent:
        agent.put("app/turned", "CANARY-new")
        yield agent


@pytest.fixture
def own():
    with Agent(policy=POLICY, secrets=SECRETS) as agent:
        yield agent


def command(agent, *args):
    return [KEYHATCH, "--socket", str(agent.socket), *map(str, args)]


def client(agent, *args, uid=ALICE, env=None):
    """The client as a bot runs it."""
    done = subprocess.run(command(agent, *args), capture_output=True, timeout=20, user=uid, group=uid, extra_groups=[],
                          env=env or {}, cwd="/")
    assert b"panicked" not in done.stderr and b"CANARY" not in done.stderr
    return done


def out(agent, *args, **kwargs):
    done = client(agent, *args, **kwargs)
    assert (done.returncode, done.stderr) == (0, b""), done
    return done.stdout


def test_get_writes_exactly_the_bytes(shared):
    for name in ["app/key", "app/binary", "app/empty", "app/db"]:
        value = SECRETS[name]
        assert out(shared, "get", name) == (value if isinstance(value, bytes) else value.encode())


def test_get_of_the_largest_value(own):
    value = os.urandom(65536)
    own.put("app/large", value)
    assert out(own, "get", "app/large") == value


def test_a_field_by_option_and_by_name(shared):
    for args in [["app/db", "--field", "password"], ["app/db#password"]]:
        assert out(shared, "get", *args) == "p\u00e4ss\n".encode()
    assert out(shared, "get", "app/db#port") == b"5432"
    assert json.loads(out(shared, "get", "app/db#nested")) == {"a": [1]}
    for args in [["app/db#none"], ["app/key#user"], ["app/binary", "--field", "user"]]:
        done = client(shared, "get", *args)
        assert done.returncode not in (0, 101) and done.stdout == b"", (args, done)


def test_the_previous_version(shared):
    assert out(shared, "get", "app/turned") == b"CANARY-new"
    assert out(shared, "get", "app/turned", "--previous") == b"CANARY-old"
    assert client(shared, "get", "app/key", "--previous").returncode == 66


def test_json_forms(shared):
    got = json.loads(out(shared, "get", "app/key", "--json"))
    assert (got["name"], got["value"], got["source"], got["stale"]) == ("app/key", CANARY, "local", False)
    assert "value_base64" in json.loads(out(shared, "get", "app/binary", "--json"))
    listed = json.loads(out(shared, "list", "--json"))["secrets"]
    assert {s["name"] for s in listed} == set(SECRETS) and all(s["version"] for s in listed)
    me = json.loads(out(shared, "whoami", "--json"))
    assert (me["bot"], me["uid"], me["roles"]) == ("alice", ALICE, ["reader"])


def test_list_and_whoami_for_people(shared):
    assert out(shared, "list").decode().split("\n") == [*sorted(SECRETS), ""]
    assert out(shared, "list", "zoo/") == b"zoo/key\n"
    assert out(shared, "list", "none/") == b""
    assert client(shared, "list", uid=BOB).returncode == 77
    me = out(shared, "whoami").decode()
    assert re.search(rf"^bot +alice\nroles +reader\npid +\d+\nuid +{ALICE}$", me, re.M)
    assert re.search(r"^grant .*app/\*\*", me, re.M)
    assert re.search(r"^bot +none", out(shared, "whoami", uid=BOB).decode(), re.M)


def test_a_list_of_many_pages(own):
    names = [f"app/many/{n:04}" for n in range(1200)]
    own.verb("store", "import", "--from", "json", *own.files(), stdin=json.dumps(dict.fromkeys(names, "x")).encode())
    eventually(lambda: len(out(own, "list", "app/many/").split()) == 1200)
    assert out(own, "list", "app/many/").decode().split() == names


# Exit codes of CONTRACT section 1.


def test_66_where_there_is_no_such_secret(shared):
    assert client(shared, "get", "app/none").returncode == 66


def test_69_where_the_agent_is_not_reachable(own):
    for verb in [["get", "app/key"], ["list"], ["whoami"], ["watch", "app/key"]]:
        done = subprocess.run([KEYHATCH, "--socket", "/nowhere/keyhatch.sock", *verb], capture_output=True, timeout=20)
        assert done.returncode == 69 and b"is keyhatchd running?" in done.stderr
    own.stop()
    assert client(own, "get", "app/key").returncode == 69


def test_69_where_another_user_listens_at_the_socket(own):
    fake = own.dir / "run" / "fake.sock"
    fake.parent.chmod(0o777)
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setresgid(BOB, BOB, BOB)
        os.setresuid(BOB, BOB, BOB)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(fake))
        fake.chmod(0o666)
        listener.listen()
        os.write(tell, b"x")
        while True:
            listener.accept()
    try:
        os.read(ready, 1)
        fake.parent.chmod(0o755)
        done = subprocess.run([KEYHATCH, "--socket", fake, "get", "app/key"], capture_output=True, timeout=20,
                              user=ALICE, group=ALICE, extra_groups=[])
        assert done.returncode == 69 and str(BOB).encode() in done.stderr
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def test_75_where_the_agent_is_sealed_and_a_hint_what_to_do(own):
    own.ops("seal")
    done = client(own, "get", "app/key")
    assert done.returncode == 75 and b"keyhatchd unseal" in done.stderr
    own.ops("unseal")
    assert out(own, "get", "app/key") == CANARY.encode()


def test_77_where_the_policy_denies_and_the_same_for_what_does_not_exist(shared):
    said = [re.sub(rb"[0-9a-f]{8}-[0-9a-f]{12}", b"ID", client(shared, "get", name, uid=BOB).stderr).replace(
        name.encode(), b"NAME") for name in ["app/key", "app/none"]]
    assert said[0] == said[1]
    for name, uid in [("app/key", BOB), ("other/key", ALICE), ("app/key", 0)]:
        assert client(shared, "get", name, uid=uid).returncode == 77
    assert client(shared, "watch", "app/key", uid=BOB).returncode == 77


@pytest.mark.parametrize("args", [
    [], ["get"], ["steal"], ["get", "app/key", "--fields", "x"], ["get", "a//b"], ["get", "../admin"], ["get", ""],
    ["get", "a/%2e%2e"], ["get", "x" * 513], ["watch"], ["watch", "a//b"], ["list", "x", "y"],
])
def test_2_where_the_command_line_is_wrong(shared, args):
    done = client(shared, *args)
    assert done.returncode == 2 and done.stderr, done
    assert done.stdout == b""


def test_1_where_the_output_cannot_be_written(shared):
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command(shared, "get", "app/key"), stdout=full, stderr=subprocess.PIPE, user=ALICE,
                              group=ALICE, extra_groups=[], timeout=20)
    assert done.returncode == 1 and b"cannot write" in done.stderr


def test_an_error_names_the_request_id_that_leads_to_the_record(shared):
    for uid, name, reason in [(BOB, "app/key", "no_bot"), (ALICE, "other/key", "no_grant"), (ALICE, "app/none", "not_found")]:
        said = client(shared, "get", name, uid=uid).stderr.decode()
        ids = set(re.findall(r"[0-9a-f]{8}-[0-9a-f]{12}", said))
        assert len(ids) == 1, said
        record, = shared.records(request_id=ids.pop())
        assert (record["reason"], record["peer"]["uid"], record["secret"]) == (reason, uid, name)


def test_the_socket_comes_from_the_option_or_the_environment(shared):
    def get(*args, **env):
        return subprocess.run([KEYHATCH, *args, "get", "app/key"], env=env, capture_output=True, timeout=20, user=ALICE,
                              group=ALICE, extra_groups=[])

    assert get(KEYHATCH_SOCKET=str(shared.socket)).stdout == CANARY.encode()
    assert get("--socket", str(shared.socket), KEYHATCH_SOCKET="/nowhere").stdout == CANARY.encode()
    assert get("--socket", "/nowhere", KEYHATCH_SOCKET=str(shared.socket)).returncode == 69
    assert get(KEYHATCH_SOCKET="/nowhere/x.sock").returncode == 69
    assert b"/run/user-of-test/keyhatch/keyhatch.sock" in get(XDG_RUNTIME_DIR="/run/user-of-test").stderr
    for relative in ["", "relative"]:
        assert f"/tmp/keyhatch-{ALICE}/keyhatch.sock".encode() in get(XDG_RUNTIME_DIR=relative).stderr


class Watching:
    """`keyhatch watch` as a bot runs it, its lines as they come."""

    def __init__(self, agent, *args):
        self.process = subprocess.Popen(command(agent, "watch", *args), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                        user=ALICE, group=ALICE, extra_groups=[], text=True)
        self.lines = []
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        assert not [line for line in self.lines if "CANARY" in line]

    def until(self, count):
        def told():
            assert self.process.poll() is None, self.process.stderr.read()
            return len(self.lines) >= count and self.lines

        return eventually(told, seconds=20)


def version(agent, name):
    return json.loads(out(agent, "get", name, "--json"))["version"]


def test_watch_tells_of_rotations_and_removals(own):
    with Watching(own, "app/key", "zoo/key") as watch:
        first = watch.until(2)
        assert sorted(first) == sorted(f"current {name} {version(own, name)}" for name in ["app/key", "zoo/key"])
        own.put("app/key", "CANARY-2")
        assert watch.until(3)[2] == f"rotated app/key {version(own, 'app/key')}"
        own.put("app/turned", "CANARY-not-watched")
        own.ops("store", "rm", "zoo/key")
        assert watch.until(4)[3].split()[:2] == ["removed", "zoo/key"]


def test_watch_goes_on_over_a_restart_and_misses_nothing(own):
    with Watching(own, "app/key", "--json") as watch:
        before = json.loads(watch.until(1)[0])
        assert before == {"event": "current", "name": "app/key", "version": version(own, "app/key")}
        own.stop()
        own.put_file("app/key", "CANARY-while-away")
        own.start()
        lines = [json.loads(line) for line in watch.until(2)]
        assert lines[-1]["version"] == version(own, "app/key") != before["version"]
        own.put("app/key", "CANARY-3")
        newest = version(own, "app/key")
        eventually(lambda: json.loads(watch.lines[-1]) == {"event": "rotated", "name": "app/key", "version": newest})


def test_watch_goes_on_over_a_kill(own):
    with Watching(own, "app/key") as watch:
        watch.until(1)
        own.stop(9)
        own.start()
        own.put("app/key", "CANARY-2")
        newest = version(own, "app/key")
        eventually(lambda: watch.lines[-1] == f"rotated app/key {newest}" or watch.lines[-1] == f"current app/key {newest}", seconds=20)


def test_watch_ends_where_the_grant_is_revoked(own):
    with Watching(own, "app/key") as watch:
        watch.until(1)
        own.write_policy(POLICY.replace('"app/**", ', ""))
        own.ops("reload")
        assert watch.process.wait(timeout=20) == 77


def test_nobody_who_reads_the_list_is_no_failure(own):
    names = {f"app/many/{'x' * 200}{n:04}": "x" for n in range(1000)}
    own.verb("store", "import", "--from", "json", *own.files(), stdin=json.dumps(names).encode())
    eventually(lambda: len(out(own, "list", "app/many/").split()) == 1000)
    line = " ".join(command(own, "list"))
    done = subprocess.run(["bash", "-c", f"{line} | head -1; echo ${{PIPESTATUS[0]}}"], capture_output=True, text=True,
                          user=ALICE, group=ALICE, extra_groups=[])
    assert done.stdout.split()[1] == "0" and done.stderr == ""


# What is generated from the command lines.

BOTH = pytest.mark.parametrize("program", [KEYHATCH, KEYHATCHD], ids=["keyhatch", "keyhatchd"])


def verb(program, *args, **kwargs):
    done = subprocess.run([program, *args], capture_output=True, text=True, timeout=20, **kwargs)
    assert done.returncode == 0, done
    return done.stdout


def verbs(program, *path):
    """Every verb, below others too; hidden ones as well."""
    yield path
    help_text = verb(program, *path, "--help")
    listed = re.search(r"^Commands:\n((?:  .*\n)+)", help_text, re.M)
    names = [line.split()[0] for line in listed[1].splitlines() if re.match(r"  \S", line)] if listed else []
    hidden = [] if path else ["completions", "man"]
    for name in [*names, *hidden]:
        if name != "help":
            yield from verbs(program, *path, name)


@pytest.mark.anyone
@BOTH
def test_every_verb_has_help_with_an_example(program):
    found = list(verbs(program))
    assert len(found) > (6 if program == KEYHATCH else 25)
    for path in found:
        text = verb(program, *path, "--help")
        leaf = "Commands:" not in text
        assert not leaf or re.search(r"^Examples?:", text, re.M), path
        if leaf and path:
            example = text[re.search(r"^Examples?:", text, re.M).start():]
            assert " ".join([os.path.basename(program), *path]) in example, path


@pytest.mark.anyone
@BOTH
def test_every_option_and_argument_says_what_it_is(program):
    for path in verbs(program):
        lines = verb(program, *path, "--help").splitlines()
        for line, following in itertools.pairwise([*lines, ""]):
            # `      --name <VALUE>  what it is`, or what it is on the next line, deeper.
            if match := re.match(r"  +(?:-\w, )?(--[\w-]+|[<\[][A-Z_]+[>\]])(?: ?\S+)??(?:\.\.\.)?(  +\S.*)?$", line):
                said = match[2] or (following.startswith("          ") and following.strip())
                assert said, (path, line)


@pytest.mark.anyone
@BOTH
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completions_are_scripts_that_know_the_verbs(program, shell, tmp_path):
    script = verb(program, "completions", shell)
    known = ["get", "whoami", "--field"] if program == KEYHATCH else ["reload", "explain", "accept-older", "--peer"]
    assert all(word.lstrip("-") in script for word in known) and os.path.basename(program) in script
    if shell == "bash":
        path = tmp_path / "script"
        path.write_text(script)
        subprocess.run(["bash", "-n", path], check=True)
        name = os.path.basename(program)
        done = subprocess.run(["bash", "-c", f". {path}; complete -p {name}"], capture_output=True, text=True, check=True)
        assert name in done.stdout


@pytest.mark.anyone
@BOTH
def test_man_pages_for_every_verb(program, tmp_path):
    verb(program, "man", "--dir", str(tmp_path))
    pages = {path.name: path.read_text() for path in tmp_path.iterdir()}
    name = os.path.basename(program)
    section = 1 if program == KEYHATCH else 8
    wanted = ["", "-get", "-watch"] if program == KEYHATCH else ["", "-run", "-explain", "-store-put", "-audit-query"]
    for end in wanted:
        page = pages[f"{name}{end}.{section}"]
        assert ".TH " in page and ".SH NAME" in page and ".SH SYNOPSIS" in page
    assert all(len(page) > 200 for page in pages.values())
