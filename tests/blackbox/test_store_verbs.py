"""The store verbs as operators type them, on the files and over the admin socket, and the records that they leave."""

import base64
import json
import os
import pty
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from harness import ALICE, BOB, CANARY, CAROL, KEYHATCHD, ROOT, Agent, as_user

POLICY = """
[[bot]]
name = "root"
match = { uid = 0 }
roles = ["reader"]
[role.reader]
grants = [{ secrets = ["app/**"] }]
"""
VECTORS = ROOT / "tests" / "vectors"


@pytest.fixture
def agent():
    with Agent(policy=POLICY) as agent:
        yield agent


class Files:
    """A store without a daemon."""

    def __init__(self, folder):
        self.store, self.key = folder / "store", folder / "store.key"
        self.at = ["--store", self.store, "--key", f"file:{self.key}"]
        self.run("init", check=True)

    def run(self, *args, stdin=b"", check=True, **kwargs):
        command = [KEYHATCHD, "store", *map(str, args), *map(str, self.at)]
        done = subprocess.run(command, input=stdin, capture_output=True, timeout=60, **kwargs)
        assert not check or done.returncode == 0, done
        return done

    def value(self, name):
        return self.run("get", name).stdout


@pytest.fixture
def files():
    """In a folder that every user may enter."""
    with tempfile.TemporaryDirectory(prefix="keyhatch-test-", dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        yield Files(Path(folder))


def both_ways(test):
    """Runs the test on the files and over the admin socket: `run(verb, ..., stdin=)` does a verb there."""

    @pytest.mark.parametrize("way", ["files", "admin"])
    def test_both(way, agent):
        def run(*args, stdin=b"", check=True):
            at = agent.files() if way == "files" else ["--admin-socket", agent.admin_socket]
            return agent.verb("store", *args, *at, stdin=stdin, check=check)

        test(agent, run)

    test_both.__name__, test_both.__doc__ = test.__name__, test.__doc__
    return test_both


def listed(agent):
    done = agent.verb("store", "list", *agent.files(), "--json")
    return {row["name"]: row for row in json.loads(done.stdout)["secrets"]}


def served(agent, path):
    """What the daemon answers once it has seen what was done to the files: each admin verb looks first."""
    agent.ops("store", "verify")
    return agent.read(path)


def changes(agent):
    return [r["change"] for r in agent.records(event="store.changed")]


# Each verb.


def test_init_makes_a_folder_and_a_key_that_are_private(tmp_path):
    old = os.umask(0)
    try:
        files = Files(tmp_path)
    finally:
        os.umask(old)
    mode = lambda path: os.stat(path).st_mode & 0o7777
    assert (mode(files.store), mode(files.store / "store.khs"), mode(files.key)) == (0o700, 0o600, 0o600)
    assert files.key.stat().st_size == 32
    key = files.key.read_bytes()
    again = files.run("init", check=False)
    assert again.returncode == 1 and b"there is a store already" in again.stderr
    # A second store under the same key: the key stays.
    other = subprocess.run([KEYHATCHD, "store", "init", "--store", tmp_path / "b", "--key", f"file:{files.key}"])
    assert other.returncode == 0 and files.key.read_bytes() == key


@both_ways
def test_put_says_new_changed_or_unchanged_and_the_same_value_keeps_version_and_previous(agent, run):
    words = [run("put", "app/x", stdin=value).stdout.split() for value in [b"1", b"2", b"2", b"1"]]
    assert [word for word, _, _ in words] == ["new", "changed", "unchanged", "changed"]
    assert all(name == "app/x" for _, name, _ in words)
    versions = [version for _, _, version in words]
    assert versions[1] == versions[2] and len(set(versions)) == 3
    run("put", "app/x", stdin=b"1")
    assert served(agent, "app/x").json()["value"] == "1"
    assert served(agent, "app/x?version=previous").json()["value"] == "2"
    before = listed(agent)["app/x"]
    run("put", "app/x", stdin=b"1")
    assert listed(agent)["app/x"] == before
    # What changed nothing is no change: not in the store, not in the records.
    assert served(agent, "app/x").status == 200
    assert [c["verb"] for c in changes(agent)] == ["init", "put", "put", "put", "put"]


@both_ways
def test_put_keeps_a_trailing_newline_and_warns_of_it_and_trim_drops_one(agent, run):
    plain = run("put", "app/x", stdin=b"value")
    assert plain.stderr == ""
    warned = run("put", "app/x", stdin=b"value\n")
    assert "ends in a newline" in warned.stderr and "--trim" in warned.stderr
    assert served(agent, "app/x").json()["value"] == "value\n"
    trimmed = run("put", "app/x", "--trim", stdin=b"value\n\n")
    assert trimmed.stderr == ""
    assert trimmed.stdout.startswith("unchanged")
    run("put", "app/x", "--trim", stdin=b"no newline")
    assert served(agent, "app/x").json()["value"] == "no newline"


@both_ways
def test_revoke_previous_leaves_no_previous_version(agent, run):
    run("put", "app/x", stdin=b"leaked")
    version = listed(agent)["app/x"]["version"]
    run("put", "app/x", "--revoke-previous", stdin=b"fresh")
    assert served(agent, "app/x").json()["value"] == "fresh"
    assert agent.read("app/x?version=previous").status == 404
    assert agent.read(f"app/x?version={version}").status == 404
    run("put", "app/x", stdin=b"next")
    run("put", "app/x", "--revoke-previous", stdin=b"next")
    assert served(agent, "app/x?version=previous").status == 404
    assert agent.read("app/x").json()["value"] == "next"


@both_ways
def test_rm_removes_a_secret_with_its_previous_version(agent, run):
    run("put", "app/x", stdin=b"1")
    run("put", "app/x", stdin=b"2")
    assert served(agent, "app/x").json()["value"] == "2"
    assert run("rm", "app/x").stdout.split() == ["removed", "app/x"]
    assert served(agent, "app/x").status == 404
    assert agent.read("app/x?version=previous").status == 404
    gone = run("rm", "app/x", check=False)
    assert gone.returncode != 0 and "no secret app/x" in gone.stderr
    # Put again, it is another secret: a version is never given twice.
    run("put", "app/x", stdin=b"2")
    assert served(agent, "app/x").json()["value"] == "2"


@both_ways
def test_generate_makes_another_value_each_time(agent, run):
    seen = set()
    for length in [1, 40, 40, 65_536]:
        run("generate", "app/x", "--length", length)
        value = served(agent, "app/x").json()["value"]
        assert len(value) == length and value.isalnum() and value.isascii()
        seen.add(value)
    assert len(seen) == 4
    run("generate", "app/default")
    assert len(served(agent, "app/default").json()["value"]) == 40
    for length in ["0", "65537"]:
        refused = run("generate", "app/x", "--length", length, check=False)
        assert refused.returncode == 1 and "65536" in refused.stderr
    # The value was never printed.
    assert value not in run("generate", "app/x", "--json").stdout


@both_ways
def test_list_and_verify_show_no_values(agent, run):
    run("put", "app/b", stdin=b"12345")
    run("put", "app/b", stdin=b"123456")
    rows = json.loads(run("list", "--json").stdout)["secrets"]
    assert [(r["name"], r["bytes"], r["previous"]) for r in rows] == [("app/b", 6, True), ("app/key", len(CANARY), False)]
    text = run("list").stdout
    assert CANARY not in text and text.startswith("app/b\t2-") and "6 bytes" in text
    assert run("verify").stdout == "2 secrets, generation 4\n"


def test_get_is_only_for_who_has_the_files(agent):
    assert agent.verb("store", "get", "app/key", *agent.files()).stdout == CANARY
    absent = agent.verb("store", "get", "app/none", *agent.files(), check=False)
    assert absent.returncode == 66
    refused = agent.ops("store", "get", "app/key", check=False)
    assert refused.returncode == 2 and "--store DIR --key KEY" in refused.stderr and refused.stdout == ""


def test_a_value_typed_on_a_terminal_is_not_echoed(files):
    lead, follow = pty.openpty()
    command = [KEYHATCHD, "store", "put", "app/x", *map(str, files.at)]
    put = subprocess.Popen(command, stdin=follow, stdout=subprocess.DEVNULL, stderr=follow, start_new_session=True)
    os.close(follow)
    shown = b""
    while b"not shown" not in shown:
        shown += os.read(lead, 1000)
    # The echo goes off before the prompt is read from, but after it is written.
    time.sleep(0.2)
    os.write(lead, CANARY.encode() + b"\n")
    assert put.wait(timeout=10) == 0
    try:
        while piece := os.read(lead, 1000):
            shown += piece
    except OSError:
        pass
    assert CANARY.encode() not in shown
    assert files.value("app/x") == CANARY.encode()


# Imports.

DOTENV = """# a comment
export PLAIN=plain value # not this
EMPTY=
SINGLE='single $X "quoted" \\n'
DOUBLE="two\\nlines"
BLOCK="-----BEGIN-----
abc
-----END-----"
"""
WANT = {
    "PLAIN": "plain value",
    "EMPTY": "",
    "SINGLE": 'single $X "quoted" \\n',
    "DOUBLE": "two\nlines",
    "BLOCK": "-----BEGIN-----\nabc\n-----END-----",
}


def fernet_token(key, text, tmp_path):
    """A Fernet token as Python makes it; the key is 32 bytes in URL-safe Base64."""
    fernet = pytest.importorskip("cryptography.fernet", reason="not shown for Fernet: that takes `cryptography`")
    path = tmp_path / "fernet.key"
    path.write_bytes(key + b"\n")
    return path, fernet.Fernet(key).encrypt(text.encode())


FERNET_KEY = base64.urlsafe_b64encode(bytes(range(32)))


@both_ways
def test_import_dotenv_as_node_reads_it_under_a_prefix(agent, run):
    dry = run("import", "--from", "dotenv", "--prefix", "app/env/", "--dry-run", stdin=DOTENV.encode())
    assert dry.stdout.splitlines() == [f"new app/env/{name}" for name in WANT]
    assert list(listed(agent)) == ["app/key"], "a dry run changes nothing"
    run("put", "app/env/PLAIN", stdin=b"plain value")
    run("put", "app/env/EMPTY", stdin=b"was not")
    done = run("import", "--from", "dotenv", "--prefix", "app/env/", stdin=DOTENV.encode())
    words = [line.split()[0] for line in done.stdout.splitlines()]
    assert words == ["same", "changed", "new", "new", "new"]
    for name, value in WANT.items():
        assert served(agent, f"app/env/{name}").json()["value"] == value
    again = run("import", "--from", "dotenv", "--prefix", "app/env/", "--json", stdin=DOTENV.encode())
    versions = {name: row["version"] for name, row in listed(agent).items()}
    assert {r["name"]: r["version"] for r in json.loads(again.stdout)["results"]} == {
        name: versions[name] for name in versions if name.startswith("app/env/")
    }
    assert not any(value in done.stdout + done.stderr for value in WANT.values() if value)


@both_ways
def test_import_prints_the_versions_that_are_then_current(agent, run):
    for _ in range(2):
        text = json.dumps({"a": os.urandom(8).hex(), "b": "same"}).encode()
        done = json.loads(run("import", "--from", "json", "--prefix", "app/", "--json", stdin=text).stdout)
        now = listed(agent)
        assert {r["name"]: r["version"] for r in done["results"]} == {n: now[n]["version"] for n in ["app/a", "app/b"]}


@both_ways
def test_import_json_takes_strings_by_content_and_the_rest_as_json(agent, run):
    text = json.dumps({"s": "text\n", "n": 12, "o": {"user": "u", "password": "p"}, "z": None, "t": True})
    run("import", "--from", "json", "--prefix", "app/", stdin=text.encode())
    assert served(agent, "app/s").json()["value"] == "text\n"
    assert served(agent, "app/n").json()["value"] == "12"
    assert served(agent, "app/o?field=password").json()["value"] == "p"
    assert served(agent, "app/t").json()["value"] == "true"


@pytest.mark.parametrize("way", ["files", "admin"])
def test_import_a_fernet_token_of_either(way, agent, tmp_path):
    at = agent.files() if way == "files" else ["--admin-socket", agent.admin_socket]
    for text, name in [('{"one": "1"}', "one"), ("TWO=2\n", "TWO")]:
        key, token = fernet_token(FERNET_KEY, text, tmp_path)
        agent.verb("store", "import", "--from", "fernet", "--fernet-key", key, "--prefix", "app/", *at, stdin=token)
        assert served(agent, f"app/{name}").status == 200
    bad = token[:-9] + b"AAAAAAAA="
    for spoilt in [bad, b"", b"not a token"]:
        args = ["store", "import", "--from", "fernet", "--fernet-key", key, *at]
        refused = agent.verb(*args, stdin=spoilt, check=False)
        assert refused.returncode == 1 and "the Fernet token does not decrypt" in refused.stderr
    key.write_text("short")
    refused = agent.verb("store", "import", "--from", "fernet", "--fernet-key", key, *at, stdin=token, check=False)
    assert refused.returncode == 1 and "Fernet key" in refused.stderr


BROKEN = {
    "an unclosed quote": ("dotenv", "A=1\nB='CANARY-open\nC=3\n", "line 2", "quote"),
    "a repeated key": ("dotenv", "A=1\nB=2\n\nA=CANARY-again\n", "line 4", "line 1"),
    "no assignment": ("dotenv", "A=1\nCANARY word\n", "line 2", "KEY=VALUE"),
    "a key that is no name": ("json", '{"A": "1",\n "b c": "CANARY-x"}', "line 2", "secret name"),
    "a repeated JSON key": ("json", '{"A": "1",\n "B": "2",\n "A": "CANARY-again"}', "line 3", "line 1"),
    "broken JSON": ("json", '{"A": "1",\n "B": CANARY}', "line 2", "JSON"),
    "a JSON list": ("json", '["CANARY"]', "line 1", "object"),
    "a value over the limit": ("json", '{"A": "1",\n "B": "' + "CANARY" * 11_000 + '"}', "line 2", "65536"),
    "not UTF-8": ("dotenv", b"A=1\nB=\xffCANARY\n", "line 2", "UTF-8"),
}


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("way", ["files", "admin"])
def test_an_import_with_an_error_names_its_line_and_imports_nothing(way, case, agent):
    form, text, line, why = BROKEN[case]
    at = agent.files() if way == "files" else ["--admin-socket", agent.admin_socket]
    text = text if isinstance(text, bytes) else text.encode()
    before = (agent.store_dir / "store.khs").read_bytes()
    done = agent.verb("store", "import", "--from", form, "--prefix", "app/", *at, stdin=text, check=False)
    assert done.returncode == 1
    assert line in done.stderr and why in done.stderr and "CANARY" not in done.stderr
    assert (agent.store_dir / "store.khs").read_bytes() == before


def test_import_reads_a_file_too_and_names_it(files, tmp_path):
    path = tmp_path / ".env"
    path.write_text("A=1\n")
    files.run("import", path, "--from", "dotenv")
    assert files.value("A") == b"1"
    path.write_text("A='1\n")
    assert str(path).encode() + b": line 1:" in files.run("import", path, "--from", "dotenv", check=False).stderr


# Keys.


def fingerprints(run):
    return {row["label"]: row["fingerprint"] for row in json.loads(run("key", "list", "--json").stdout)["keys"]}


@both_ways
def test_keys_come_and_go_and_each_opens_the_store(agent, run):
    recovery = agent.dir / "recovery.key"
    run("key", "add", "recovery", f"file:{recovery}")
    assert recovery.stat().st_size == 32 and recovery.stat().st_mode & 0o777 == 0o600
    assert list(fingerprints(run)) == ["host", "recovery"]
    by_recovery = ["--store", agent.store_dir, "--key", f"file:{recovery}"]
    assert agent.verb("store", "get", "app/key", *by_recovery).stdout == CANARY
    for again, why in [(["recovery", f"file:{agent.dir}/third.key"], "labelled recovery"),
                       (["other", f"file:{recovery}"], "labelled recovery"), (["b d", f"file:{agent.dir}/4"], "label")]:
        refused = run("key", "add", *again, check=False)
        assert refused.returncode == 1 and why in refused.stderr
    # Rekeying must not lose a key unnoticed.
    refused = run("rekey", check=False)
    assert refused.returncode == 1 and "recovery" in refused.stderr and "--keep-key" in refused.stderr
    before = fingerprints(run)
    run("rekey", "--keep-key", f"file:{recovery}")
    assert fingerprints(run) == before
    assert agent.verb("store", "get", "app/key", *by_recovery).stdout == CANARY
    run("key", "rm", "recovery")
    shut = agent.verb("store", "get", "app/key", *by_recovery, check=False)
    assert shut.returncode == 1 and "no key slot" in shut.stderr
    last = run("key", "rm", "host", check=False)
    assert last.returncode == 1 and "last key" in last.stderr
    assert run("key", "rm", "none", check=False).returncode == 1
    assert served(agent, "app/key").json()["value"] == CANARY
    assert [c["verb"] for c in changes(agent)][2:] == ["key-add", "rekey", "key-rm"]
    assert changes(agent)[2]["names"] == ["recovery"]


def test_the_key_of_a_store_is_changed_under_a_running_daemon(agent):
    fresh = agent.dir / "fresh.key"
    agent.ops("store", "key", "add", "next", f"file:{fresh}")
    os.rename(fresh, agent.key)
    agent.ops("store", "key", "rm", "host")
    agent.ops("store", "rekey")
    agent.put("app/key", "under the new key")
    assert served(agent, "app/key").json()["value"] == "under the new key"
    agent.restart()
    assert agent.read("app/key").json()["value"] == "under the new key"


# Whose files, whose record.


def test_owner_and_mode_are_kept_when_root_edits_another_users_store(files):
    for path in [files.store, files.key, *files.store.iterdir()]:
        os.chown(path, ALICE, BOB)
    os.chmod(files.store / "store.khs", 0o640)
    os.chmod(files.store, 0o750)
    (files.store / "store.lock").unlink()
    for verb in [["put", "app/x"], ["generate", "app/y"], ["rekey"], ["rm", "app/x"], ["accept-older"],
                 ["import", "--from", "dotenv"], ["key", "add", "more", f"file:{files.key}2"]]:
        files.run(*verb, stdin=b"A=1")
        for name, mode in [("store.khs", 0o640), ("store.lock", 0o600)]:
            stat = (files.store / name).stat()
            assert (stat.st_uid, stat.st_gid, stat.st_mode & 0o777) == (ALICE, BOB, mode), (verb, name)
    # Its owner writes on.
    put = lambda: files.run("put", "app/own", stdin=b"1").returncode
    assert as_user(ALICE, put, gid=BOB) == 0


def test_another_user_gets_nothing_from_files_that_are_not_theirs(files):
    opened = lambda: files.run("list", check=False).returncode
    assert as_user(CAROL, opened) == 1


def test_the_record_of_a_change_says_who_both_ways():
    login_uid = int(open("/proc/self/loginuid").read())
    login_uid = None if login_uid == 0xFFFFFFFF else login_uid
    with Agent(policy=POLICY, user=ALICE) as agent:
        def offline():
            return agent.put_file("app/offline", "1").returncode

        def online():
            return agent.put("app/online", "1").returncode

        assert as_user(ALICE, offline) == 0
        assert as_user(ALICE, online) == 0
        agent.put("app/by-root", "1")
        records = agent.records(event="store.changed")
        told = {tuple(r["change"]["names"]): r["change"] for r in records}
        for name, uid in [("app/offline", ALICE), ("app/online", ALICE), ("app/by-root", 0)]:
            change = told[(name,)]
            assert (change["verb"], change["uid"], change["login_uid"]) == ("put", uid, login_uid)
            assert change["time"].endswith("Z")
        assert [r["source"] for r in records] == ["local"] * len(records)
        # The daemon writes with its own owner, whoever asked.
        assert os.stat(agent.store_dir / "store.khs").st_uid == ALICE
        assert [c["generation"] for c in changes(agent)] == list(range(1, len(records) + 1))


def test_the_login_uid_is_that_of_who_asks(agent):
    """A login session of uid 20002 that became root: the record has both."""

    def as_logged_in(act):
        with open("/proc/self/loginuid", "w") as file:
            file.write(str(BOB))
        return act().returncode

    try:
        assert as_user(0, as_logged_in, lambda: agent.put_file("app/offline", "1")) == 0
        assert as_user(0, as_logged_in, lambda: agent.put("app/online", "1")) == 0
    except AssertionError as error:
        if "loginuid" not in str(error):
            raise
        pytest.skip("this kernel has no login uids: not shown that they are recorded")
    assert [(c["uid"], c["login_uid"]) for c in changes(agent)][-2:] == [(0, BOB), (0, BOB)]


def test_what_was_done_while_the_daemon_was_away_is_in_its_next_records(agent):
    agent.stop()
    agent.put_file("app/a", "1")
    agent.verb("store", "rm", "app/a", *agent.files())
    agent.verb("store", "import", "--from", "json", *agent.files(), stdin=json.dumps({f"n{i:03}": "1" for i in range(70)}).encode())
    agent.start()
    last = changes(agent)[-3:]
    assert [c["verb"] for c in last] == ["put", "rm", "import"]
    assert len(last[2]["names"]) == 64 and last[2]["more"] == 6
    before = len(changes(agent))
    agent.restart()
    assert len(changes(agent)) == before, "each is told once"


def test_an_admin_put_answers_only_once_the_new_version_is_served(agent):
    bot = agent.connect()
    for turn in range(50):
        done = json.loads(agent.ops("store", "put", "app/key", "--json", stdin=b"turn %d" % turn).stdout)
        reply = bot.get("/v1/secrets/app/key").json()
        assert (reply["value"], reply["version"]) == (f"turn {turn}", done["version"])


def test_only_admins_are_answered_on_the_admin_socket(agent):
    refused = as_user(ALICE, lambda: agent.put("app/key", "stolen", check=False).returncode)
    assert refused == 77
    assert agent.read("app/key").json()["value"] == CANARY
    assert [r["peer"]["uid"] for r in agent.records(event="admin.denied")] == [ALICE]


def test_verbs_without_a_daemon_say_so(agent):
    agent.stop()
    done = agent.put("app/key", "1", check=False)
    assert done.returncode == 69 and str(agent.admin_socket) in done.stderr


def test_several_sources_need_a_name_and_the_named_one_is_written():
    sources = """
[[source]]
name = "other"
kind = "file"
prefix = "app/other/"
path = "{dir}/other"
key = "file:{dir}/store.key"
"""
    with Agent(policy=POLICY, sources=sources, start=False) as agent:
        agent.verb("store", "init", "--store", agent.dir / "other", "--key", f"file:{agent.key}")
        agent.start()
        refused = agent.put("x", "1", check=False)
        assert refused.returncode == 1 and "--source" in refused.stderr
        agent.ops("store", "put", "x", "--source", "other", stdin=b"1")
        assert agent.read("app/other/x").json()["source"] == "other"
        unknown = agent.ops("store", "list", "--source", "none", check=False)
        assert unknown.returncode == 1 and "none" in unknown.stderr


# Another language.


def opened_by_python(store, key):
    pytest.importorskip("cryptography", reason="not shown for another language: that takes `cryptography`")
    script = [sys.executable, VECTORS / "open_store.py", store, key]
    done = subprocess.run(script, capture_output=True, check=True)
    return json.loads(done.stdout)


def test_the_vector_opens_with_a_few_lines_of_another_language():
    want = json.loads((VECTORS / "store-1.json").read_text())
    assert opened_by_python(VECTORS / "store-1.khs", VECTORS / "store-1.key") == want


def test_what_the_verbs_write_today_opens_there_too(files):
    files.run("put", "app/a", stdin=b"1")
    files.run("put", "app/a", stdin=b"2")
    files.run("put", "app/b", stdin=bytes(range(256)))
    files.run("key", "add", "recovery", f"file:{files.key}2")
    for key in [files.key, f"{files.key}2"]:
        rows = opened_by_python(files.store / "store.khs", key)
        assert [(r["name"], r["current"]) for r in rows] == [("app/a", True), ("app/a", False), ("app/b", True)]
        assert [r.get("value") for r in rows] == ["2", "1", None]
        assert base64.b64decode(rows[2]["value_base64"]) == bytes(range(256))


def test_the_vector_opens_with_our_own_verbs(tmp_path):
    store = tmp_path / "store"
    store.mkdir(mode=0o700)
    for name, place in [("store-1.khs", store / "store.khs"), ("store-1.key", tmp_path / "key")]:
        place.write_bytes((VECTORS / name).read_bytes())
        os.chmod(place, 0o600)
    for row in json.loads((VECTORS / "store-1.json").read_text()):
        if row["current"]:
            got = subprocess.run(
                [KEYHATCHD, "store", "get", row["name"], "--store", store, "--key", f"file:{tmp_path}/key"],
                capture_output=True, check=True,
            )
            assert got.stdout == (row["value"].encode() if "value" in row else base64.b64decode(row["value_base64"]))


# Nothing leaks.


def test_no_verb_prints_or_passes_on_a_value(agent):
    """Values are not in argv, not in the environment, and in no message."""
    seen = []
    reader, writer = os.pipe()
    put = subprocess.Popen(
        [KEYHATCHD, "store", "put", "app/x", *map(str, agent.files())], stdin=reader,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )
    os.close(reader)
    os.write(writer, CANARY.encode() * 3)
    for name in ["cmdline", "environ"]:
        seen.append(open(f"/proc/{put.pid}/{name}", "rb").read())
    os.close(writer)
    seen.append(put.communicate(timeout=10)[0])
    assert put.returncode == 0
    for verb in ["list", "verify", "rekey"]:
        for json_form in [[], ["--json"]]:
            done = agent.verb("store", verb, *agent.files(), *json_form)
            seen += [done.stdout.encode(), done.stderr.encode()]
    assert not any(CANARY.encode() in text for text in seen)
