"""OpenAI's own SDKs, unmodified, with the key that each library reads: a bot goes on over a rotation of it."""

import base64
import contextlib
import sys
from pathlib import Path

import pytest

from conformance import LANGUAGES, Driver, command
from harness import Agent
from model_api import ModelAPI
from npm import ASK, NODE

POLICY = """
[[bot]]
name = "tester"
match = { uid = 0 }
roles = ["reader"]

[role.reader]
grants = [{ secrets = ["openai/*"] }]
"""
FIRST, SECOND = "sk-CANARY-first", "sk-CANARY-second"


@pytest.fixture(scope="module")
def agent():
    with Agent(policy=POLICY, secrets={f"openai/{language}": FIRST for language in LANGUAGES}) as agent:
        yield agent


@pytest.fixture
def api():
    with ModelAPI(FIRST) as api:
        yield api


@contextlib.contextmanager
def bot(language, agent, api):
    """Asks the model with the key of that name; gives what it says, or the name of the error."""
    program = ASK if language == "node" else [sys.executable, str(Path(__file__).with_name("openai_bot.py")), language]
    with contextlib.ExitStack() as stack:
        start = lambda command, **env: stack.enter_context(Driver(command, agent.socket, uid=0, env=env))
        sdk = start(program, OPENAI_BASE_URL=api.url, **NODE)
        # There is no SDK of OpenAI's for Rust, and Go's is no part of this: Python's takes the key that they read.
        library = start(command(language)) if language in ("go", "rust") else None

        def ask(name):
            request = {"op": "openai", "name": name}
            if library is not None:
                told = library.ask({"op": "get", "name": name})
                if "error" in told:
                    return told["error"]
                request["key"] = base64.b64decode(told["value"]).decode()
            told = sdk.ask(request)
            return told.get("said") or told.get("cause") or told["error"]

        yield ask


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_sdk_of_openai_works_with_a_key_of_each_library(language, agent, api):
    name = f"openai/{language}"
    with bot(language, agent, api) as ask:
        assert ask(name) == "hello"
        api.key = SECOND
        assert ask(name) == "AuthenticationError"
        agent.put(name, SECOND)
        assert ask(name) == "hello"
        assert (ask("openai/none"), ask("other/key")) == ("NotFound", "Denied")
