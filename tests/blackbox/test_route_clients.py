"""Routes by the client libraries, each in its language's idiom: an upstream's answers are answers, the agent's refusals errors.

The drivers are those of the conformance suite; a route needs an upstream, which this file brings. With `-k python` one library alone.
"""

import asyncio
import io
import json
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from conformance import LANGUAGES, SHIMS, Driver, Stranger, command
from harness import ALICE, Agent, eventually
from hostile import EVENT, Hostile
from test_routes import KEY, route

sys.path.insert(0, str(SHIMS / "python" / "src"))

POLICY = """
[[bot]]
name = "alice"
match = { uid = 20001 }
roles = ["caller"]
[[bot]]
name = "in-process"
match = { uid = 0 }
roles = ["caller"]
[role.caller]
grants = [{ routes = ["api", "claude", "slow", "few"], actions = ["use"] }]
"""


@pytest.fixture(scope="module")
def place():
    with Hostile() as upstream:
        private = 'allow_private = true\ndeny = ["* /admin/**"]'
        routes = [
            route("api", upstream.address, more=private), route("slow", upstream.address, more=f'{private}\ntimeout = "1s"'),
            route("few", upstream.address, more=f"{private}\nlimits = {{ requests_per_minute = 1 }}"), route("theirs", upstream.address),
            route("claude", upstream.address, '{ header = "x-api-key", value = "{secret}" }'),
        ]
        with Agent(policy=POLICY + "".join(routes), secrets={"app/key": KEY}) as agent:
            agent.upstream = upstream
            yield agent


@pytest.fixture(scope="module", params=[language for language in LANGUAGES if language != "python-asyncio"])
def driver(place, request):
    with Driver(command(request.param), place.socket, ALICE) as driver:
        driver.language = request.param
        yield driver


def use(driver, path, route="api", **more):
    return driver.ask({"op": "use", "route": route, "path": path, **more})


def test_a_call_and_its_answer(place, driver):
    told = use(driver, "/echo/v1?a=1&b=%2Fx", method="POST", body='{"n": 1}', headers={"X-Kept": "yes", "Content-Type": "application/json"})
    seen = place.upstream.last()
    assert (seen.line, seen.body) == ("POST /echo/v1?a=1&b=%2Fx HTTP/1.1", b'{"n": 1}')
    assert (seen.headers["x-kept"], seen.headers["authorization"]) == ("yes", f"Bearer {KEY}")
    assert (told["status"], told["route"]) == (200, "api") and json.loads(told["body"])["body"] == '{"n": 1}'
    for status in (403, 404, 429, 502, 504):
        # As the agent's own refusals have them, and yet the upstream's.
        told = use(driver, f"/status?code={status}")
        assert (told["status"], told["body"]) == (status, '{"error": "no"}')
    told = use(driver, "/redirect?to=http://elsewhere.test/") if driver.language != "go" else {"status": 307}
    assert told["status"] == 307, "a redirect is an answer; Go's own client follows it, by the same route"


def test_what_the_agent_refuses_is_an_error_of_its_kind(place, driver):
    use(driver, "/echo", route="few")
    for path, route, kind, code in [
        ("/admin/x", "api", "Denied", "denied"), ("/echo", "theirs", "Denied", "denied"), ("/hang-up", "api", "UpstreamFailed", "upstream_failed"),
        ("/silent", "slow", "UpstreamTimeout", "upstream_timeout"), ("/echo", "few", "RateLimited", "rate_limited"),
        ("/a%2Fb", "api", "BadRequest", "bad_request"),
    ]:
        told = use(driver, path, route=route)
        assert (told.get("error"), told.get("code")) == (kind, code), told
        assert told["request_id"] and told["request_id"] in told["message"]


def test_events_come_as_they_are_sent(place, driver):
    place.upstream.go.clear()
    driver.say({"op": "use", "route": "api", "path": "/sse?events=3", "stream": True})
    heard = ""
    for number in range(3):
        eventually(lambda: not place.upstream.go.is_set(), seconds=20)
        place.upstream.go.set()
        while (EVENT % number).decode() not in heard:
            heard += driver.hear()["piece"]
        assert (EVENT % (number + 1)).decode() not in heard, "not before it was sent"
    assert driver.hear() == {"ok": True, "end": True}


def test_one_driver_asks_on_over_a_restart_of_the_agent(place, driver):
    for _ in range(2):
        assert use(driver, "/status?code=200")["status"] == 200
        place.restart()
    assert use(driver, "/status?code=200")["status"] == 200


@pytest.fixture
def stranger():
    folder = Path(tempfile.mkdtemp(prefix="keyhatch-test-", dir="/tmp"))
    stranger = Stranger(folder)
    yield stranger
    stranger.stop()
    shutil.rmtree(folder)


def test_a_stranger_at_the_socket_hears_nothing(stranger, driver):
    with Driver(command(driver.language), stranger.path, ALICE) as one:
        assert use(one, "/echo")["error"] == "Refused"
    assert stranger.heard.read_bytes().replace(b"connected\n", b"") == b""


# Python's adapters, in this process.


@pytest.fixture
def keyhatch_route(place):
    import keyhatch

    return keyhatch.Client(place.socket).route


def test_the_callers_own_mistakes_are_not_the_agents(place, keyhatch_route):
    class Broken(io.BytesIO):
        def read(self, *_):
            raise BrokenPipeError("the file's own")

    api = keyhatch_route("api")
    for path in ("/a b", "/a\r\nX: y", "/\u00e9", "no-slash"):
        with pytest.raises(ValueError):
            api.request("GET", path)
    for body in (Broken(), iter(Broken().read, b"")):
        with pytest.raises(BrokenPipeError, match="the file's own"):
            api.request("POST", "/upload", body=body)
    with api.request("POST", "/echo", body=io.BytesIO(b"whole")) as answer:
        assert answer.json()["body"] == "whole"


def test_openais_sdk_over_httpx_streaming_included(place, keyhatch_route):
    import httpx2
    import openai
    from keyhatch.httpx import AsyncRouteTransport, RouteTransport

    question = {"model": "m", "messages": [{"role": "user", "content": "key?"}]}
    http = httpx2.Client(transport=RouteTransport(keyhatch_route("api")))
    sdk = openai.OpenAI(base_url="https://api.openai.com/v1", api_key="placeholder", http_client=http, max_retries=0)
    said = sdk.chat.completions.create(**question).choices[0].message.content
    assert said == "your key is " + "*" * len(KEY)
    pieces = [chunk.choices[0].delta.content for chunk in sdk.chat.completions.create(**question, stream=True)]
    assert "".join(pieces) == said and len(pieces) == 3
    assert place.upstream.last().headers["authorization"] == f"Bearer {KEY}"

    async def awaited():
        http = httpx2.AsyncClient(transport=AsyncRouteTransport(keyhatch_route("api")))
        async with openai.AsyncOpenAI(base_url="https://x.test/v1", api_key="placeholder", http_client=http, max_retries=0) as sdk:
            return [chunk.choices[0].delta.content async for chunk in await sdk.chat.completions.create(**question, stream=True)]

    assert asyncio.run(awaited()) == pieces


def test_httpx_tells_the_agents_refusals_from_the_upstreams(place, keyhatch_route):
    import httpx2
    import keyhatch
    from keyhatch.httpx import AsyncRouteTransport, RouteTransport

    with httpx2.Client(transport=RouteTransport(keyhatch_route("api")), base_url="http://x.test") as http:
        assert http.get("/status?code=403").status_code == 403
        assert http.post("/upload", content=iter([b"a" * 70_000, b"b"]), headers={"Content-Length": "70001"}).status_code == 200
        with pytest.raises(keyhatch.Denied):
            http.get("/admin/x")

    async def awaited():
        async with httpx2.AsyncClient(transport=AsyncRouteTransport(keyhatch_route("slow")), base_url="http://x.test") as http:
            assert (await http.get("/status?code=504")).status_code == 504
            with pytest.raises(keyhatch.UpstreamTimeout):
                await http.get("/silent", timeout=30)

    asyncio.run(awaited())


def test_httpx_tells_a_stranger_nothing(stranger):
    import httpx2
    import keyhatch
    from keyhatch.httpx import AsyncRouteTransport, RouteTransport

    route = keyhatch.Client(stranger.path).route("api")
    with httpx2.Client(transport=RouteTransport(route)) as http, pytest.raises(keyhatch.Refused):
        http.get("http://x.test/echo")

    async def awaited():
        async with httpx2.AsyncClient(transport=AsyncRouteTransport(route)) as http:
            with pytest.raises(keyhatch.Refused):
                await http.get("http://x.test/echo")

    asyncio.run(awaited())
    assert stranger.heard.read_bytes().replace(b"connected\n", b"") == b""


def test_requests_with_an_adapter(place, keyhatch_route):
    import keyhatch
    import requests
    from keyhatch.requests import RouteAdapter

    with requests.Session() as session:
        session.mount("https://api.test/", RouteAdapter(keyhatch_route("api")))
        told = session.post("https://api.test/echo?a=1", json={"n": 1})
        assert told.status_code == 200 and json.loads(told.json()["body"]) == {"n": 1}
        assert place.upstream.last().headers["authorization"] == f"Bearer {KEY}"
        assert session.get("https://api.test/status?code=404").status_code == 404
        with pytest.raises(keyhatch.Denied):
            session.get("https://api.test/admin/x")
        place.upstream.go.clear()
        events = session.get("https://api.test/sse?events=2", stream=True).iter_lines(chunk_size=1)
        for number in range(2):
            place.upstream.go.set()
            assert next(line for line in events if line) == (EVENT % number).strip()
            eventually(lambda: not place.upstream.go.is_set())
