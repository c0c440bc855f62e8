"""`keyhatch mcp` with the official Python client, started as AI clients start it: what its tools tell, and what they never do."""

import asyncio
import json
import os
import subprocess

import pytest
from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client

from harness import ALICE, CANARY, KEYHATCH, Agent, eventually
from hostile import Hostile
from test_routes import KEY, route

POLICY = """
[[bot]]
name = "assistant"
match = { uid = 20001 }
roles = ["assistant"]
[role.assistant]
grants = [
  { routes = ["api"], actions = ["use"] },
  { secrets = ["app/*"], actions = ["list", "watch"] },
  # It may read one, and is not told its value all the same.
  { secrets = ["open/*"], actions = ["read", "list", "watch"] },
]
"""


@pytest.fixture(scope="module")
def place():
    secrets = {"app/key": KEY, "open/password": CANARY, "other/key": "CANARY-other"}
    with Hostile() as upstream:
        routes = route("api", upstream.address, allow=["* /echo/**", "GET /v1/**", "GET /download", "GET /status", "POST /v1/payouts"],
                       more='allow_private = true\napprove = ["POST /v1/payouts"]')
        with Agent(policy=POLICY + routes + route("theirs", upstream.address), secrets=secrets) as agent:
            agent.upstream = upstream
            yield agent


def play(agent, act):
    """Lets `act(tools)` use a session; nothing that came over it holds a value."""
    heard = []
    # The configuration of an AI client, but for the user.
    config = json.loads(json.dumps({"command": "setpriv", "args": [f"--reuid={ALICE}", f"--regid={ALICE}", "--clear-groups", KEYHATCH, "mcp"]}))
    server = StdioServerParameters(**config, env={"PATH": os.environ["PATH"], "KEYHATCH_SOCKET": str(agent.socket)})

    async def converse():
        async with stdio_client(server) as (read, write), ClientSession(read, write) as session:
            heard.append((await session.initialize()).model_dump_json())

            async def call(tool, /, **arguments):
                answer = await session.call_tool(tool, arguments)
                heard.append(answer.model_dump_json())
                text = answer.content[0].text
                failed = json.loads(answer.model_dump_json(by_alias=True))["isError"]
                return text if failed else json.loads(text)

            call.session = session
            await asyncio.wait_for(act(call), 60)

    asyncio.run(converse())
    assert heard and not [text for text in heard if "CANARY" in text]


def test_the_tools_are_there_and_say_which_routes_there_are(place):
    async def act(call):
        tools = {tool.name: tool for tool in (await call.session.list_tools()).tools}
        assert set(tools) == {"list_secrets", "whoami", "wait_for_rotation", "call_route"}
        assert f"api leads to {place.upstream.address}" in tools["call_route"].description
        assert "theirs" not in tools["call_route"].description
        me = await call("whoami")
        assert (me["bot"], me["uid"]) == ("assistant", ALICE)
        assert me["routes"] == [{"name": "api", "upstream": place.upstream.address}]
        names = [secret["name"] for secret in (await call("list_secrets"))["secrets"]]
        assert names == ["app/key", "open/password"]
        assert [secret["name"] for secret in (await call("list_secrets", prefix="open/"))["secrets"]] == ["open/password"]

    play(place, act)


def test_a_route_is_called_with_a_key_that_is_not_told(place):
    async def act(call):
        answer = await call("call_route", route="api", path="/echo/x?a=1", method="post", body={"n": 1},
                            headers={"X-Kept": "yes", "Authorization": "Bearer mine"})
        seen = place.upstream.last()
        assert (seen.line, seen.body, seen.headers["x-kept"]) == ("POST /echo/x?a=1 HTTP/1.1", b'{"n":1}', "yes")
        assert (seen.headers["authorization"], seen.headers["content-type"]) == (f"Bearer {KEY}", "application/json")
        for framing in [{"Content-Length": "1"}, {"Content-Length": "300"}, {"Transfer-Encoding": "gzip", "Connection": "upgrade", "Upgrade": "x"}]:
            # What a model says of the body's length counts for nothing.
            await call("call_route", route="api", path="/echo/x", method="POST", body="whole", headers=framing)
            assert place.upstream.last().body == b"whole"
        assert answer["status"] == 200 and answer["headers"]["keyhatch-route"] == "api"
        assert "Bearer ****" in answer["body"]
        missing = await call("call_route", route="api", path="/status?code=404")
        assert (missing["status"], missing["body"]) == (404, '{"error": "no"}'), "the upstream's own errors are answers"
        large = await call("call_route", route="api", path="/download?bytes=1000000")
        assert len(large["body"]) == 256 * 1024 and large["truncated"]

    play(place, act)


def test_what_is_refused_is_told_with_what_to_do_and_leads_nowhere(place):
    before = len(place.upstream.seen)

    async def act(call):
        denied = await call("call_route", route="api", path="/admin")
        assert "the route api does not allow GET /admin" in denied and "denied, request " in denied
        for arguments in [
            {"route": "theirs", "path": "/echo"}, {"route": "../secrets", "path": "/app/key"}, {"route": "..", "path": "/secrets/open/password"},
            {"route": "api", "path": "/../../../v1/secrets/open/password"}, {"route": "api", "path": "v1/x"},
            {"route": "api", "path": "http://elsewhere.test/"}, {"route": "api", "path": "/echo", "headers": {"A": "b\r\nC: d"}},
            {"route": "api/echo", "path": "/x"}, {"route": "", "path": "/secrets/open/password"}, {"route": "api"}, {"route": "api", "path": "/echo", "x": 1},
        ]:
            assert isinstance(await call("call_route", **arguments), str), arguments
        assert isinstance(await call("wait_for_rotation", name="other/key"), str)

    play(place, act)
    assert len(place.upstream.seen) == before


def test_a_rotation_is_waited_for(place):
    async def act(call):
        still = await call("wait_for_rotation", name="app/key", seconds=0)
        assert still["rotated"] is False
        known = next(one["version"] for one in (await call("list_secrets"))["secrets"] if one["name"] == "app/key")
        waiting = asyncio.create_task(call("wait_for_rotation", name="app/key", version=known))
        await asyncio.to_thread(place.put, "app/key", KEY + "-new")
        new = await waiting
        assert new["rotated"] is True and new["version"] not in (None, known)
        at_once = await call("wait_for_rotation", name="app/key", version=known)
        assert at_once["version"] == new["version"]

    play(place, act)


def test_a_call_that_is_cancelled_waits_no_more_and_leads_nowhere(place):
    env = {"PATH": os.environ["PATH"], "KEYHATCH_SOCKET": str(place.socket)}
    server = subprocess.Popen([KEYHATCH, "mcp"], user=ALICE, group=ALICE, extra_groups=[], env=env, text=True,
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def say(method, number=None, **params):
        asked = {} if number is None else {"id": number}
        server.stdin.write(json.dumps({"jsonrpc": "2.0", "method": method, "params": params, **asked}) + "\n")
        server.stdin.flush()

    waits = lambda: json.loads(place.ops("approve", "--json").stdout)["waiting"]
    before = len(place.upstream.seen)
    say("initialize", 0, protocolVersion="2025-06-18", capabilities={}, clientInfo={"name": "test", "version": "1"})
    server.stdout.readline()
    say("notifications/initialized")
    say("tools/call", 1, name="call_route", arguments={"route": "api", "path": "/v1/payouts", "method": "POST", "body": {"n": 1}})
    eventually(waits)
    say("notifications/cancelled", requestId=1)
    eventually(lambda: not waits())
    server.communicate(timeout=20)
    assert len(place.upstream.seen) == before
