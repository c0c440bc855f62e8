"""`keyhatchd check`: everything that is wrong is told with its place, and the daemon refuses the same.

Exit 0 or 78, nothing else, whatever the files hold.
"""

import os
import random
import re
import subprocess

import pytest

from harness import ALICE, BOB, KEYHATCHD, ROOT, Agent

POLICY = Agent.POLICY


@pytest.fixture
def host():
    with Agent(start=False) as agent:
        agent.state.mkdir(mode=0o700)
        yield agent


def check(host, *args, config=None, uid=None):
    """What check says, line by line, and how it ends."""
    user = {"user": uid, "group": uid, "extra_groups": []} if uid else {}
    done = host.verb("check", "--config", config or host.config, *args, check=False, **user)
    assert done.returncode in (0, 78), (done.returncode, done.stderr[:2000])
    assert "panicked" not in done.stderr
    return done.returncode, done.stderr.splitlines()


def accepted(host, *args, **kwargs):
    """The warnings of a configuration that is good."""
    code, lines = check(host, *args, **kwargs)
    assert code == 0, lines
    return lines


def refused(host, *args, **kwargs):
    code, lines = check(host, *args, **kwargs)
    assert code == 78 and lines
    return lines


def refused_at_start(host):
    """What the daemon itself says instead of starting."""
    done = subprocess.run([KEYHATCHD, "run", "--config", str(host.config)], capture_output=True, text=True, timeout=20)
    assert done.returncode == 78, done.stderr
    return done.stderr.splitlines()


def line_of(path, text):
    """FILE:LINE of the last line that begins with `text`, or else has it."""
    lines = list(enumerate(path.read_text().splitlines(), 1))
    begin = [number for number, line in lines if line.startswith(text)]
    return f"{path}:{(begin or [number for number, line in lines if text in line])[-1]}"


def test_a_good_configuration_is_ok(host):
    assert accepted(host) == []


def test_the_example_is_accepted_off_the_host(host):
    assert accepted(host, "--content-only", config=ROOT / "systemd" / "keyhatch.toml") == []


TWIN = '[[bot]]\nname = "twin"\nmatch = { uid = 20001 }\nroles = ["reader"]\n'
WRONG = {
    "a typo in a key": (POLICY.replace("grants", "grant"), "grant =", "did you mean `grants`?"),
    "a typo in a selector": (POLICY.replace("uid", "uuid"), "uuid", "did you mean `uid`?"),
    "a typo in a table": (POLICY + "[agnet]\n", "[agnet]", "did you mean `agent`?"),
    "a typo in an action": (
        POLICY.replace("] }]", '], actions = ["raed"] }]'), "raed", "did you mean `read`?"),
    "an unknown role": (POLICY.replace('["reader"]', '["raeder"]'), "raeder", "did you mean `reader`?"),
    "a tie of two bots": (POLICY + TWIN, '"twin"', "neither is more specific"),
    "a rule that a deny makes unreachable": (
        POLICY + 'deny = [{ secrets = ["**"] }]\n', "grants", "can never allow anything"),
    "a rule that is unreachable behind another": (
        POLICY.replace("] }]", '] },\n{ secrets = ["app/x"] }]'), "app/x", "adds nothing"),
    "a uid of the DynamicUser range without a unit": (
        POLICY.replace("20001", "61184"), '"alice"', "add `unit`"),
    "what is no TOML": (POLICY + "a = = 1\n", "a = = 1", "not valid TOML"),
    "a key twice": (POLICY + "[audit]\n", "[audit]", "duplicate key"),
    "a bot twice": (POLICY + POLICY.split("[role")[0].replace("20001", "7"), '"alice"', "is already at"),
    "a key that is written out": (
        POLICY + '[[source]]\nname = "x"\nkind = "file"\nkey = "hunter2"\n', "hunter2", "never written out"),
}


@pytest.mark.parametrize("what", WRONG)
def test_it_is_refused_with_file_and_line(host, what):
    policy, line, words = WRONG[what]
    host.write_policy(policy)
    lines = refused(host)
    found = [said for said in lines if said.startswith(line_of(host.config, line) + ": ")]
    assert any(words in said for said in found), lines
    assert not any("hunter2" in said for said in lines)
    assert refused(host, "--content-only") == lines
    assert refused_at_start(host) == lines


def test_everything_wrong_is_told_in_one_go(host):
    host.write_policy(POLICY.replace("grants", "grant").replace("reader", "raeder", 1) + "[agnet]\n")
    assert len(refused(host)) >= 3


@pytest.mark.parametrize("text, second, first", [
    ('[[bot]]\nname = "alice"\nmatch = { uid = 7 }\nroles = ["reader"]\n', "name", 'name = "alice"'),
    ("[role.reader]\n", "[role.reader]", "[role.reader]"),
    ('[agent]\nsocket = "/x"\n', "socket", "socket"),
    ("[audit]\njournald = true\n", "journald", "journald"),
    ('[[source]]\nname = "local"\nkind = "file"\nprefix = "x/"\n', "name", "[[source]]"),
])
def test_a_duplicate_over_conf_d_names_both_places(host, text, second, first):
    drop_in = host.dir / "conf.d" / "10-more.toml"
    drop_in.parent.mkdir(mode=0o755)
    drop_in.write_text("# a comment\n" + text)
    first, second = line_of(host.config, first), line_of(drop_in, second)
    assert any(line.startswith(f"{second}: ") and f" {first}" in line for line in refused(host)), refused(host)


def test_conf_d_adds_up_in_name_order_and_leaves_out_what_editors_put_there(host):
    folder = host.dir / "conf.d"
    folder.mkdir(mode=0o755)
    (folder / "20-role.toml").write_text('[role.second]\ngrants = [{ secrets = ["second/*"] }]\n')
    (folder / "10-bot.toml").write_text('[[bot]]\nname = "b"\nmatch = { uid = 20002 }\nroles = ["second"]\n')
    (folder / ".10-bot.toml.swp").write_text("not toml at all")
    (folder / "10-bot.toml~").write_text("not toml at all")
    assert accepted(host) == []


LOOSE = {
    "the configuration, writable by a group": ("keyhatch.toml", 0o664, "others may write it"),
    "the configuration, writable by all": ("keyhatch.toml", 0o646, "others may write it"),
    "the folder of the configuration": (".", 0o777, "others may write it"),
    "conf.d": ("conf.d", 0o777, "others may write it"),
    "a file of conf.d": ("conf.d/a.toml", 0o666, "others may write it"),
    "the key, readable by all": ("store.key", 0o604, "anyone may read it"),
    "the key, readable by another group": ("store.key", 0o640, "a group that is not the daemon's"),
    "the key, writable by a group": ("store.key", 0o620, "others may write it"),
    "the store": ("store/store.khs", 0o644, "anyone may read it"),
    "the folder of the store": ("store", 0o770, "others may write it"),
    "the state_dir": ("state", 0o777, "others may write it"),
}


def fill(host):
    (host.dir / "conf.d").mkdir(mode=0o755)
    (host.dir / "conf.d" / "a.toml").write_text("")
    os.chmod(host.dir / "conf.d" / "a.toml", 0o644)


@pytest.mark.parametrize("what", LOOSE)
def test_a_loose_mode_is_found_by_check_and_at_start(host, what):
    name, mode, words = LOOSE[what]
    fill(host)
    assert accepted(host) == []
    path = host.dir / name
    if mode == 0o640:
        os.chown(path, 0, BOB)
    os.chmod(path, mode)
    lines = refused(host)
    assert all(re.match(rf"{host.dir}/[^ :]+(:\d+)?: ", line) for line in lines), lines
    assert any(words in line and "chmod " in line and os.path.normpath(path) in line for line in lines), lines
    assert refused_at_start(host) == lines
    assert accepted(host, "--content-only") == []


@pytest.mark.parametrize("name", ["keyhatch.toml", ".", "conf.d", "conf.d/a.toml", "store.key", "store/store.khs", "store", "state"])
def test_an_owner_who_is_neither_root_nor_the_daemon_is_found(host, name):
    fill(host)
    other = host.dir / name
    # The owner of state_dir is who the daemon runs as, where root asks: so it is given to one, and all else to another.
    os.chown(host.state, ALICE, ALICE)
    assert accepted(host) == []
    os.chown(other, BOB, BOB)
    if name == "state":
        os.chown(host.key, ALICE, ALICE)
    assert any(f"belongs to uid {ALICE if name == 'state' else BOB}" in line for line in refused(host))


@pytest.mark.parametrize("name", ["keyhatch.toml", "conf.d/a.toml", "store.key", "store/store.khs"])
def test_a_file_replaced_by_a_symbolic_link_is_refused(host, name):
    fill(host)
    path = host.dir / name
    path.rename(host.dir / "elsewhere")
    path.symlink_to(host.dir / "elsewhere")
    lines = refused(host)
    assert any(f"{path}: is a symbolic link" in line for line in lines), lines
    assert refused_at_start(host) == lines


def test_the_folder_of_conf_d_may_be_a_link_of_a_trusted_owner_only(host):
    (host.dir / "parts").mkdir(mode=0o755)
    (host.dir / "parts" / "a.toml").write_text("[agnet]\n")
    (host.dir / "conf.d").symlink_to("parts")
    assert refused(host)[0].startswith(f"{host.dir}/conf.d/a.toml:1: ")
    os.lchown(host.dir / "conf.d", BOB, BOB)
    assert f"belongs to uid {BOB}" in refused(host)[0]


def test_a_daemon_of_another_user_is_checked_by_root_with_that_user_in_mind():
    with Agent(user=ALICE, start=False) as agent:
        agent.state.mkdir(mode=0o700)
        os.chown(agent.state, ALICE, ALICE)
        assert accepted(agent) == []
        os.chown(agent.key, 0, ALICE)
        os.chmod(agent.key, 0o640)
        assert accepted(agent) == [], "the daemon's own group may read its key"
        assert accepted(agent, uid=ALICE) == [], "and the daemon itself says the same"


def test_what_is_not_there_yet_is_a_warning(host):
    key, store, state = (line_of(host.config, word) for word in ("key =", "path =", "state_dir ="))
    host.key.unlink()
    (host.store_dir / "store.khs").unlink()
    host.state.rmdir()
    lines = accepted(host)
    for place, what in [(key, "the key"), (store, "the store"), (state, "the state_dir")]:
        assert any(line.startswith(f"warning: {place}: {what}") and "is not there yet" in line for line in lines), lines
    assert accepted(host, "--content-only") == []


def test_files_that_only_another_user_may_read_are_said_to_be_unchecked(host):
    lines = accepted(host, uid=ALICE)
    assert sum("was not checked" in line and "Permission denied" in line for line in lines) == 3, lines


def test_users_and_groups_that_do_not_exist_are_warnings(host):
    host.write_policy(POLICY.replace("uid = 20001", 'user = "no-such-user", group = "no-such-group"'))
    place = line_of(host.config, "no-such-user")
    lines = accepted(host)
    assert [line.startswith(f"warning: {place}: ") for line in lines] == [True, True]
    assert accepted(host, "--content-only") == []


def test_a_selector_by_exe_needs_the_capability():
    with Agent(user=ALICE, start=False) as agent:
        for selector in ['exe = "/usr/bin/sleep"', f'exe_sha256 = "{"ab" * 32}"']:
            agent.write_policy(POLICY.replace("uid = 20001", selector))
            os.chown(agent.config, ALICE, ALICE)
            lines = refused(agent, uid=ALICE)
            place = line_of(agent.config, '"alice"')
            assert any(line.startswith(f"{place}: ") and "CAP_SYS_PTRACE" in line for line in lines), lines
            assert not any("CAP_SYS_PTRACE" in line for line in check(agent)[1])
            assert accepted(agent, "--content-only", uid=ALICE) == []


def test_an_exe_that_its_bot_can_write_is_refused_and_an_interpreter_warned_of(host):
    exe = host.dir / "bot"
    exe.write_bytes(b"\x7fELF")
    os.chmod(exe, 0o755)
    host.write_policy(POLICY.replace("uid = 20001", f'uid = 20001, exe = "{exe}"'))
    assert accepted(host) == []
    os.chown(exe, ALICE, ALICE)
    assert any("proves nothing" in line for line in refused(host))
    host.write_policy(POLICY.replace("uid = 20001", 'uid = 20001, exe = "/bin/sh"'))
    assert any("is an interpreter" in line for line in accepted(host))


def test_no_file_is_refused_and_not_a_crash(host):
    for name in ["none.toml", ".", "store"]:
        refused(host, config=host.dir / name)
        refused(host, "--content-only", config=host.dir / name)
    os.mkfifo(host.dir / "pipe")
    assert "is not a regular file" in refused(host, config=host.dir / "pipe")[0]
    for device in ["/dev/zero", "/dev/null"]:
        assert "is not a regular file" in refused(host, config=device)[0]
    assert "is larger than" in refused(host, "--content-only", config="/dev/zero")[0]


def test_content_only_reads_what_a_shell_pipes_in(host):
    for text, code in [(POLICY, 0), ("[agnet]", 78)]:
        command = f"sleep 0.1; printf '%s' '{text}'"
        done = subprocess.run(
            ["bash", "-c", f"{KEYHATCHD} check --content-only --config <({command})"], capture_output=True, timeout=20)
        assert done.returncode == code, done.stderr


ODD = {
    "nothing": b"",
    "random bytes": random.Random(1).randbytes(100_000),
    "zero bytes": bytes(1000),
    "five megabytes": b"# comment\n" * 500_000,
    "two megabytes of bots": b"".join(
        b'[[bot]]\nname = "b%d"\nmatch = { uid = %d }\nroles = []\n' % (n, n) for n in range(3_000)),
    "a long key": b"a" * 1_000_000 + b" = 1\n",
    "deep lists": b"a = " + b"[" * 200_000,
    "deep tables": b"a = " + b"{a=" * 200_000,
    "deep keys": b"[" + b"a." * 200_000 + b"a]\n",
    "a long pattern": b'[role.r]\ngrants = [{ secrets = ["' + b"*a" * 200_000 + b'"] }]\n',
    "numbers past the edge": b"[agent]\nadmins = 99999999999999999999999999\n[[bot]]\nname = 1e999\n",
    "a byte order mark": b"\xef\xbb\xbf" + POLICY.encode(),
    "carriage returns": POLICY.replace("\n", "\r\n").encode(),
    "control characters": b'[agent]\nsocket = "/\x1b[2J"\n',
}


@pytest.mark.parametrize("what", ODD)
@pytest.mark.parametrize("depth", [[], ["--content-only"]])
def test_odd_files_are_judged_and_never_crash_it(host, what, depth):
    host.config.write_bytes(ODD[what])
    code, lines = check(host, *depth)
    assert not any("\x1b" in line for line in lines)
    if code == 78:
        assert all(line.startswith(str(host.config)) for line in lines[:100])


def test_the_line_that_is_not_utf_8_is_named(host):
    text = host.config.read_bytes()
    host.config.write_bytes(text.replace(b'"alice"', b'"al\xffce"'))
    place = f"{host.config}:{1 + text[:text.index(b'alice')].count(bytes([10]))}"
    for args in [[], ["--content-only"]]:
        assert refused(host, *args)[0].startswith(f"{place}: cannot be read, this line is not UTF-8")


def test_300_mutated_configurations_are_accepted_or_refused_and_nothing_else(host):
    chance = random.Random(20261124)
    whole = host.config.read_bytes() + (ROOT / "systemd" / "keyhatch.toml").read_bytes().replace(b"\n# ", b"\n")
    words = [b"[", b"]", b"{", b"}", b"=", b'"', b"'''", b"\n", b"[[bot]]", b"**/", b"\\u0000", b"\xff", b"-1", b"1e9", b","]
    codes = set()
    for _ in range(300):
        text = bytearray(whole)
        for _ in range(chance.randint(1, 6)):
            at = chance.randrange(len(text))
            match chance.randrange(4):
                case 0: text[at] = chance.randrange(256)
                case 1: del text[at:at + chance.randint(1, 40)]
                case 2: text[at:at] = chance.choice(words)
                case 3: text[at:at] = text[(start := chance.randrange(len(text))):start + 60]
        host.config.write_bytes(text)
        code, lines = check(host, "--content-only")
        codes.add(code)
        assert (code == 0) == (not [line for line in lines if not line.startswith("warning: ")]), lines
        # Without the number: a line may be past the end, where something is missing.
        assert all(str(host.config) in line for line in lines), lines
    assert 78 in codes
