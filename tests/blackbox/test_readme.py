"""The README's tour, command by command, as printed."""

import os
import re
import subprocess

import pytest

from harness import BIN, ROOT, eventually

def blocks():
    """The shell blocks of the README under one heading each."""
    text = (ROOT / "README.md").read_text()
    return [(m.start(), m[1]) for m in re.finditer(r"```sh\n(.*?)```", text, re.S)]


def tour():
    text = (ROOT / "README.md").read_text()
    start, end = text.index("## Two minutes"), text.index("## As a service")
    return "".join(block for at, block in blocks() if start < at < end)


@pytest.mark.anyone
def test_there_are_exactly_two_set_up_commands():
    text = (ROOT / "README.md").read_text()
    start, end = text.index("## Set up"), text.index("## Two minutes")
    commands = [block.strip() for at, block in blocks() if start < at < end]
    assert commands == ["cargo run --release --bin keyhatchd -- dev", "./tests/run"]


@pytest.mark.anyone
def test_every_command_of_the_tour_works_as_printed(tmp_path):
    env = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state"), "XDG_RUNTIME_DIR": str(tmp_path / "run")}
    (tmp_path / "run").mkdir(mode=0o700)
    dev = subprocess.Popen([str(BIN / "keyhatchd"), "dev"], env=env, cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        eventually(lambda: (tmp_path / "run" / "keyhatch" / "keyhatch.sock").exists())
        # `cargo run` as printed builds without the features that the tests have, so beside them.
        env |= {"CARGO_NET_OFFLINE": "true", "CARGO_TARGET_DIR": str(ROOT / "target" / "plain")}
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", tour()], env=env, cwd=ROOT, capture_output=True, timeout=1800)
        out = done.stdout.decode()
        assert done.returncode == 0, f"{out}\n{done.stderr.decode()}"
        for expected in ["demo-value-from-keyhatch", "sk-my-first-key", "bot        me", "new bot/DB_PASSWORD",
                         "bot/STRIPE_KEY", "whole", "the bot has its key", "sealed; 0 bytes", "unsealed"]:
            assert expected in out, f"{expected!r} is not in:\n{out}"
        assert out.count("sk-my-first-key") == 3, "once by get, once by curl, once as the previous version"
    finally:
        dev.terminate()
        dev.wait(timeout=20)
