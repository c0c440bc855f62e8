"""`keyhatch run` with a real daemon: what the child gets, how it ends, and what happens to it when a secret rotates."""

import json
import os
import pty
import re
import signal
import subprocess
from pathlib import Path

import pytest

from harness import ALICE, BOB, CANARY, KEYHATCH, Agent, eventually, open_to_others

# One that every user may run, which the tests' own need not be.
PYTHON = "/usr/bin/python3"
BINARY = b"\x00CANARY\n\xff"
SECRETS = {"app/key": CANARY, "app/db": json.dumps({"user": "app", "password": "CANARY-p\u00e4ss"}), "app/sub/a.b": "CANARY-sub",
           "bin/raw": BINARY, "hide/one": "CANARY-hidden", "clash/a-b": "CANARY-1", "clash/a.b": "CANARY-2"}
POLICY = """
[[bot]]
name = "alice"
match = { uid = 20001 }
roles = ["reader"]

[role.reader]
grants = [{ secrets = ["app/**", "bin/**", "clash/**"] }, { secrets = ["hide/**"], actions = ["list"] }]
"""


@pytest.fixture(scope="module")
def shared():
    with Agent(policy=POLICY, secrets=SECRETS) as agent:
        yield agent


@pytest.fixture
def own():
    with Agent(policy=POLICY, secrets=SECRETS) as agent:
        yield agent


def command(agent, *args):
    return [KEYHATCH, "--socket", str(agent.socket), "run", *map(str, args)]


def run(agent, *args, uid=ALICE, env=None, **kwargs):
    """`keyhatch run` as a bot runs it, to its end; the environment is nearly empty."""
    env = {"PATH": os.environ["PATH"], **(env or {})}
    done = subprocess.run(command(agent, *args), capture_output=True, timeout=30, user=uid, group=uid, extra_groups=[],
                          env=env, cwd="/", **kwargs)
    assert b"panicked" not in done.stderr and b"CANARY" not in done.stderr
    return done


def variables(done):
    """What `env -0` printed."""
    assert (done.returncode, done.stderr) == (0, b""), done
    return dict(entry.split(b"=", 1) for entry in done.stdout.split(b"\0") if entry)


class Running:
    """`keyhatch run` of a script, its lines as they come."""

    def __init__(self, agent, *args, script, options=(), **kwargs):
        self.agent, self.out = agent, agent.dir / f"out-{len(list(agent.dir.glob('out-*')))}"
        self.err = self.out.with_suffix(".err")
        self.out.touch()
        script = f"import os, signal, sys, time\nsay = lambda *a: print(*a, flush=True)\n{script}"
        self.process = subprocess.Popen(
            command(agent, *args, "--", PYTHON, "-c", script), user=ALICE, group=ALICE, extra_groups=[],
            stdout=self.out.open("wb"), stderr=self.err.open("wb"), cwd="/", **kwargs,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for pid in [*self.children(), self.process.pid]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait()
        assert b"CANARY" not in self.err.read_bytes() and b"panicked" not in self.err.read_bytes()

    def children(self):
        return children(self.process.pid)

    def lines(self):
        return self.out.read_text().splitlines()

    def until(self, *wanted):
        def told():
            return self.process.poll() is not None or self.lines() == list(wanted)

        try:
            eventually(told, seconds=30)
        except AssertionError:
            pass
        assert self.lines() == list(wanted), self.err.read_text()

    def ends(self):
        return self.process.wait(timeout=30)


def children(pid):
    try:
        return [int(child) for task in Path(f"/proc/{pid}/task").iterdir()
                for child in (task / "children").read_text().split()]
    except FileNotFoundError:
        return []


# What the child gets.


def test_variables_are_set_for_the_child_beside_those_it_has(shared):
    got = variables(run(shared, "--env", "KEY=app/key", "--env", "PASS=app/db#password", "--", "env", "-0",
                        env={"OTHER": "kept", "KEY": "from outside"}))
    assert got[b"KEY"] == CANARY.encode() and got[b"PASS"] == "CANARY-p\u00e4ss".encode() and got[b"OTHER"] == b"kept"


@pytest.mark.parametrize("how", ["restart", "none"])
def test_env_all_sets_one_for_each_readable_name(shared, how):
    got = variables(run(shared, "--on-rotate", how, "--env-all", "app/", "--", "env", "-0"))
    assert {k: v for k, v in got.items() if b"CANARY" in v} == {
        b"KEY": CANARY.encode(), b"DB": SECRETS["app/db"].encode(), b"SUB_A_B": b"CANARY-sub"}
    assert not any(b"CANARY" in value for value in variables(run(shared, "--env-all", "hide/", "--", "env", "-0")).values())


def test_two_names_that_make_one_variable_are_an_error_that_names_both(shared):
    for args in [["--env-all", "clash/"], ["--env", "A_B=app/key", "--env-all", "clash/"],
                 ["--env", "X=app/key", "--file", "X=app/db"]]:
        done = run(shared, *args, "--", "true")
        assert done.returncode == 2 and b"wanted twice" in done.stderr
    done = run(shared, "--env-all", "clash/", "--", "true")
    assert b"clash/a-b" in done.stderr and b"clash/a.b" in done.stderr


def test_a_map_file(shared, tmp_path):
    open_to_others(tmp_path)
    file = tmp_path / "map"
    file.write_text("# comment\n\n  KEY=app/key\nUSER_NAME=app/db#user\n")
    got = variables(run(shared, "--map", file, "--", "env", "-0"))
    assert (got[b"KEY"], got[b"USER_NAME"]) == (CANARY.encode(), b"app")
    file.write_text("KEY=app/key\nnonsense\n")
    done = run(shared, "--map", file, "--", "true")
    assert done.returncode == 78 and f"{file}:2:".encode() in done.stderr
    assert run(shared, "--map", tmp_path / "none", "--", "true").returncode == 78


@pytest.mark.parametrize("how", ["restart", "none"])
def test_a_file_is_sealed_and_holds_exactly_the_bytes(shared, how):
    script = """
import os, re, sys
path = os.environ["RAW"]
assert re.fullmatch(r"/dev/fd/[0-9]+", path), path
data = [open(path, "rb").read() for _ in range(2)]
assert data[0] == data[1]
fd = os.open(path, os.O_RDWR)
refused = []
for attempt in [lambda: os.write(fd, b"x"), lambda: os.ftruncate(fd, 0), lambda: os.ftruncate(fd, 999),
                lambda: __import__("fcntl").fcntl(fd, 1033, 0)]:
    try:
        attempt()
    except OSError as error:
        refused.append(error.errno)
assert refused == [1, 1, 1, 1], refused
sys.stdout.buffer.write(data[0])
"""
    done = run(shared, "--on-rotate", how, "--file", "RAW=bin/raw", "--", PYTHON, "-c", script)
    assert (done.returncode, done.stdout) == (0, BINARY), done


def test_a_value_that_no_variable_can_hold(shared):
    done = run(shared, "--env", "RAW=bin/raw", "--", "true")
    assert done.returncode == 1 and b"--file RAW=bin/raw" in done.stderr


def test_no_value_is_in_our_own_arguments_or_environment(shared):
    with Running(shared, "--env", "KEY=app/key", "--file", "FILE=app/db", script="say('up'); time.sleep(60)") as it:
        it.until("up")
        for pid in [it.process.pid]:
            for file in ["cmdline", "environ"]:
                assert b"CANARY" not in Path(f"/proc/{pid}/{file}").read_bytes()
        child, = it.children()
        assert b"CANARY" not in Path(f"/proc/{child}/cmdline").read_bytes()
        assert CANARY.encode() in Path(f"/proc/{child}/environ").read_bytes()
        assert not [fd for fd in Path(f"/proc/{it.process.pid}/fd").iterdir() if "memfd" in os.readlink(fd)]


# Pre-flight: nothing is started where a secret cannot be had.


@pytest.mark.parametrize("how", ["restart", "none"])
def test_exit_codes_where_a_secret_cannot_be_had(own, tmp_path, how):
    def code(*args, **kwargs):
        done = run(own, "--on-rotate", how, *args, "--", "echo", "started", **kwargs)
        assert done.stdout == b"" and done.stderr
        return done.returncode

    assert code("--env", "KEY=app/none") == 66
    assert code("--env", "KEY=app/db#none") == 66
    assert code("--env", "KEY=other/key") == 77
    assert code("--env", "KEY=app/key", uid=BOB) == 77
    assert code("--env", "KEY=app//key") == 2
    assert code("--env", "1KEY=app/key") == 2
    own.ops("seal")
    assert code("--env", "KEY=app/key") == 75
    own.ops("unseal")
    own.stop()
    assert code("--env", "KEY=app/key") == 69


def test_usage():
    for args in [["run"], ["run", "true"], ["run", "--on-rotate", "explode", "--", "true"],
                 ["run", "--on-rotate", "signal:NONE", "--", "true"]]:
        assert subprocess.run([KEYHATCH, *args], capture_output=True).returncode == 2


# The child's end is ours.


@pytest.mark.parametrize("how", ["restart", "none"])
def test_the_exit_code_is_passed_on(shared, how):
    for end, code in [("exit 0", 0), ("exit 7", 7), ("exit 255", 255)]:
        assert run(shared, "--on-rotate", how, "--env", "K=app/key", "--", "sh", "-c", end).returncode == code
    assert run(shared, "--on-rotate", how, "--env", "K=app/key", "--", "/nowhere/none").returncode == 127
    assert run(shared, "--on-rotate", how, "--env", "K=app/key", "--", "/etc/passwd").returncode == 126


def test_a_death_by_signal_is_told_as_shells_tell_it(shared):
    for name, number in [("KILL", 9), ("TERM", 15), ("SEGV", 11)]:
        assert run(shared, "--env", "K=app/key", "--", "sh", "-c", f"kill -{name} $$").returncode == 128 + number
    assert run(shared, "--env", "K=app/key", "--on-rotate", "none", "--", "sh", "-c", "kill -TERM $$").returncode == -15
    assert run(shared, "--env", "K=app/key", "--", "bash", "-c", "kill -35 $$").returncode == 1


def test_none_becomes_the_child(shared):
    done = run(shared, "--on-rotate", "none", "--env", "K=app/key", "--", "sh", "-c", "echo $PPID; exec cat /proc/self/comm")
    assert done.stdout.split() == [str(os.getpid()).encode(), b"cat"]


def test_signals_are_forwarded_and_dispositions_are_as_before(shared):
    script = """
for name in ["HUP", "INT", "QUIT", "TERM", "USR1", "USR2", "ALRM", "WINCH"]:
    signal.signal(getattr(signal, "SIG" + name), lambda n, _: say(signal.Signals(n).name))
say("up")
while True:
    signal.pause()
"""
    with Running(shared, "--env", "K=app/key", script=script) as it:
        it.until("up")
        seen = ["up"]
        for name in ["SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGWINCH"]:
            it.process.send_signal(getattr(signal, name))
            seen.append(name)
            it.until(*seen)
        child, = it.children()
        os.kill(child, signal.SIGKILL)
        assert it.ends() == 128 + 9
    def masks(text):
        # Those of real-time signals belong to the C library.
        return {line[:6]: int(line[8:], 16) & 0x7FFFFFFF for line in text.decode().splitlines()}

    look = ["grep", "^Sig[BIC]", "/proc/self/status"]
    for how in ["restart", "none"]:
        done = run(shared, "--on-rotate", how, "--env", "K=app/key", "--", *look)
        assert masks(done.stdout) == masks(subprocess.run(look, capture_output=True).stdout)


def test_a_signal_that_was_ignored_stays_ignored(shared):
    def ignore():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)

    with Running(shared, "--env", "K=app/key", script="say('up'); time.sleep(60)", preexec_fn=ignore) as it:
        it.until("up")
        it.process.send_signal(signal.SIGHUP)
        it.process.send_signal(signal.SIGTERM)
        assert it.ends() == 128 + 15


def test_orphans_are_reaped(shared):
    script = """
for _ in range(5):
    if os.fork() == 0:
        if os.fork() == 0:
            os._exit(0)
        os._exit(0)
for _ in range(5):
    os.wait()
say("up")
time.sleep(60)
"""
    with Running(shared, "--env", "K=app/key", script=script) as it:
        it.until("up")
        eventually(lambda: len(it.children()) == 1)


def test_as_process_1_of_a_container(shared):
    from bots import in_pid_namespace

    def act():
        # The namespace's process 1 becomes the command, which so reaps everyone.
        read, write = os.pipe()
        if os.fork() == 0:
            os.dup2(write, 1)
            os.execv(KEYHATCH, command(shared, "--env", "K=app/key", "--", "sh", "-c", "(sleep 0 &) ; exit 3"))
        os.close(write)
        return os.waitstatus_to_exitcode(os.wait()[1])

    assert in_pid_namespace(act) == 77, "root has no grant"


# Rotation.

SHOW = "say(os.environ.get('KEY')); time.sleep(60)"


def test_a_rotation_restarts_the_child_with_the_new_value_and_its_exit_code_comes_through(own):
    script = """
signal.signal(signal.SIGTERM, lambda *_: (say("term"), sys.exit(9)))
say(os.environ["KEY"])
if os.environ["KEY"] == "CANARY-2":
    sys.exit(42)
signal.pause()
"""
    with Running(own, "--env", "KEY=app/key", script=script) as it:
        it.until(CANARY)
        own.put("app/key", "CANARY-2")
        assert it.ends() == 42
        assert it.lines() == [CANARY, "term", "CANARY-2"]
        assert "app/key" in it.err.read_text()


def test_changes_that_come_together_restart_once(own):
    with Running(own, "--env", "KEY=app/key", "--env", "SUB=app/sub/a.b",
                 script="say(os.environ['KEY'], os.environ['SUB']); time.sleep(60)") as it:
        it.until(f"{CANARY} CANARY-sub")
        for number in range(4):
            own.put("app/key", f"CANARY-k{number}")
            own.put("app/sub/a.b", f"CANARY-s{number}")
        it.until(f"{CANARY} CANARY-sub", "CANARY-k3 CANARY-s3")
        own.put("app/key", "CANARY-last")
        it.until(f"{CANARY} CANARY-sub", "CANARY-k3 CANARY-s3", "CANARY-last CANARY-s3")


def test_a_change_of_another_secret_or_none_restarts_nothing(own):
    with Running(own, "--env", "KEY=app/key", script=SHOW) as it:
        it.until(CANARY)
        own.put("app/sub/a.b", "CANARY-other")
        own.put("app/key", CANARY)
        own.restart()
        own.ops("store", "rm", "app/key")
        own.put("app/key", "CANARY-2")
        it.until(CANARY, "CANARY-2")


def test_the_whole_group_of_the_old_child_is_gone_before_the_new_one_starts(own):
    script = """
if os.fork() == 0:
    signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.5), say("child-gone"), os._exit(0)))
    while True: time.sleep(1)
time.sleep(0.2)
say(os.environ["KEY"])
time.sleep(60)
"""
    with Running(own, "--env", "KEY=app/key", script=script) as it:
        it.until(CANARY)
        own.put("app/key", "CANARY-2")
        it.until(CANARY, "child-gone", "CANARY-2")


def test_a_child_that_takes_no_sigterm_is_killed(own):
    script = "signal.signal(signal.SIGTERM, signal.SIG_IGN); say(os.environ['KEY']); time.sleep(60)"
    with Running(own, "--env", "KEY=app/key", script=script) as it:
        it.until(CANARY)
        own.put("app/key", "CANARY-2")
        it.until(CANARY, "CANARY-2")


def test_who_is_told_to_end_during_a_restart_ends(own):
    script = "signal.signal(signal.SIGTERM, lambda *_: say('term')); say(os.environ['KEY'])\nwhile True: time.sleep(1)"
    with Running(own, "--env", "KEY=app/key", script=script) as it:
        it.until(CANARY)
        own.put("app/key", "CANARY-2")
        it.until(CANARY, "term")
        it.process.send_signal(signal.SIGTERM)
        assert it.ends() == 128 + 9
        assert CANARY in it.lines() and "CANARY-2" not in it.lines()


def test_a_signal_instead_of_a_restart(own):
    script = "signal.signal(signal.SIGHUP, lambda *_: say('hup')); say(os.environ['KEY'])\nwhile True: time.sleep(1)"
    with Running(own, "--env", "KEY=app/key", "--on-rotate", "signal:HUP", script=script) as it:
        it.until(CANARY)
        child = it.children()
        own.put("app/key", "CANARY-2")
        it.until(CANARY, "hup")
        own.put("app/key", "CANARY-3")
        it.until(CANARY, "hup", "hup")
        assert it.children() == child


def test_a_new_value_that_cannot_be_read_leaves_the_child_alone(own):
    with Running(own, "--env", "KEY=app/key", script=SHOW) as it:
        it.until(CANARY)
        own.write_policy(POLICY.replace('"app/**", ', '"app/**", ').replace(
            "roles = [\"reader\"]", "roles = [\"reader\", \"no\"]") + '[role.no]\ndeny = [{ secrets = ["app/key"], actions = ["read"] }]\n')
        own.ops("reload")
        own.put("app/key", "CANARY-2")
        eventually(lambda: "goes on with the values it has" in it.err.read_text(), seconds=30)
        assert len(it.children()) == 1
        own.write_policy(POLICY)
        own.ops("reload")
        it.until(CANARY, "CANARY-2")


def test_a_rotation_while_the_agent_is_away_is_seen(own):
    with Running(own, "--env", "KEY=app/key", script=SHOW) as it:
        it.until(CANARY)
        own.stop()
        own.put_file("app/key", "CANARY-2")
        own.start()
        it.until(CANARY, "CANARY-2")


def test_a_secret_that_may_not_be_watched_is_given_all_the_same(own):
    own.write_policy(POLICY.replace('"bin/**", ', "").replace('grants = [', 'grants = [{ secrets = ["bin/**"], actions = ["read"] }, '))
    own.ops("reload")
    with Running(own, "--env", "KEY=app/key", "--file", "RAW=bin/raw", script=SHOW) as it:
        it.until(CANARY)
        eventually(lambda: "rotations of bin/raw are not seen" in it.err.read_text())
        own.put("app/key", "CANARY-2")
        it.until(CANARY, "CANARY-2")


# On a terminal.


class Terminal:
    """An interactive shell on a terminal of its own, driven as a person does."""

    def __init__(self, agent):
        self.agent = agent
        pid, self.master = pty.fork()
        if pid == 0:
            os.setgroups([])
            os.setresgid(ALICE, ALICE, ALICE)
            os.setresuid(ALICE, ALICE, ALICE)
            os.chdir("/")
            # As login leaves it; tests that run in the background have it ignored, and so would all that they start.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.execve("/bin/bash", ["bash", "--norc", "--noprofile", "-i"],
                      {"PATH": os.environ["PATH"], "PS1": "$ ", "KEYHATCH_SOCKET": str(agent.socket)})
        self.pid, self.seen = pid, ""
        os.set_blocking(self.master, False)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.master)

    def type(self, text):
        os.write(self.master, text.encode())

    def until(self, pattern):
        """Reads on until the pattern is there, and drops all to its end."""
        def found():
            try:
                self.seen += os.read(self.master, 65536).decode(errors="replace")
            except BlockingIOError:
                pass
            return re.search(pattern, self.seen)

        try:
            match = eventually(found)
        except AssertionError:
            raise AssertionError(f"no {pattern!r} in {self.seen!r}") from None
        self.seen = self.seen[match.end():]
        return match


RUN = f"{KEYHATCH} run --env KEY=app/key --"


def test_ctrl_c_ends_the_child(shared):
    with Terminal(shared) as shell:
        shell.type(f"{RUN} bash -c 'trap \"echo got-int; exit 5\" INT; echo is-up; while :; do sleep 0.1; done'\n")
        shell.until(r"is-up\r")
        shell.type("\x03")
        shell.until(r"got-int\r")
        shell.type("echo code=$?\n")
        shell.until(r"code=5\r")
        shell.type(f"{RUN} sh -c 'echo is-up; sleep 60'\n")
        shell.until(r"is-up\r")
        shell.type("\x03")
        shell.type("echo code=$?\n")
        shell.until(r"code=130\r")


def test_job_control(shared):
    with Terminal(shared) as shell:
        shell.type(f"{RUN} bash -c 'echo is-up; read line; echo got-$line; exit 4'\n")
        shell.until(r"is-up\r")
        shell.type("\x1a")
        shell.until("Stopped")
        shell.type("jobs\n")
        shell.until(r"\[1\]\+ +Stopped")
        shell.type("fg\n")
        shell.until("fg\r")
        shell.type("word\n")
        shell.until(r"got-word\r")
        shell.type("echo code=$?\n")
        shell.until(r"code=4\r")


def test_an_interactive_shell_and_a_pipeline(shared):
    with Terminal(shared) as shell:
        shell.type(f"{RUN} env PS1='inner> ' bash --norc --noprofile -i\n")
        shell.until("inner> ")
        shell.type("sh -c 'echo is-up; sleep 60'\n")
        shell.until(r"is-up\r")
        shell.type("\x1a")
        shell.until("Stopped")
        shell.type("kill %1; echo ${#KEY}\n")
        shell.until(rf"\b{len(CANARY)}\r")
        shell.type("exit 6\n")
        shell.until(r"exit\r")
        shell.type("echo code=$?\n")
        shell.until(r"code=6\r")
        shell.type(f"{RUN} echo one two | {RUN} cat | wc -w; echo end\n")
        shell.until(r"\b2\r\nend\r")


def test_a_background_job_leaves_the_terminal_alone(shared):
    with Terminal(shared) as shell:
        shell.type(f"{RUN} sleep 60 &\n")
        shell.until(r"\[1\]")
        shell.type("echo still-$((1+1))\n")
        shell.until(r"still-2\r")
        shell.type("kill %1; wait %1; echo code=$?\n")
        shell.until(r"code=143\r")
