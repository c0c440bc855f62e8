"""Routes whose credential is not the secret itself: access tokens of an OAuth 2 server, and client certificates."""

import base64
import contextlib
import http.client
import json
import os
import ssl
import threading
import time
import urllib.parse

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from certificates import Authority
from harness import ALICE, Agent, UnixHTTP, as_user, eventually, open_to_others
from hostile import Hostile
from inside import disguises, holds_no_copy

CLIENT, SECRET, NEXT = "client/1", "CANARY-client:secret+/9d", "CANARY-client-next-77"
REFRESH = "CANARY-refresh-0"
MARKER = "bot-marker-c31e"

POLICY = f"""
[[bot]]
name = "{MARKER}"
match = {{ uid = {ALICE} }}
roles = ["caller"]
[role.caller]
grants = [{{ routes = ["*"], actions = ["use"] }}]
"""


class Issuer(Hostile):
    """An authorization server (RFC 6749) and an API that takes its tokens; `asked` are the requests for tokens."""

    def __init__(self, tls):
        super().__init__(tls)
        self.asked, self.valid, self.issued = [], {}, []
        self.secrets, self.refresh, self.lasts = {SECRET}, REFRESH, 3600
        self.lock = threading.Lock()
        self.go.set()

    def do_token(self, request, answer, _):
        form = dict(urllib.parse.parse_qsl(request.body.decode(), keep_blank_values=True))
        behave = request.path.removeprefix("/token").strip("/")
        with self.lock:
            self.asked.append((behave, request.headers.get("authorization"), form))
        self.go.wait(30)
        if behave in BROKEN:
            status, body = BROKEN[behave]
            return answer.whole(body.encode(), status, "application/json", location="/token")
        if behave == "body":
            shown = form.get("client_id"), form.get("client_secret")
        else:
            pair = base64.b64decode(request.headers.get("authorization", "").removeprefix("Basic ")).decode()
            shown = tuple(urllib.parse.unquote_plus(part) for part in pair.partition(":")[::2])
        if shown[0] != CLIENT or shown[1] not in self.secrets:
            # As bad servers do, with what it was shown.
            says = json.dumps({"error": "invalid_client", "error_description": f"{shown} is wrong"})
            return answer.whole(says.encode(), 401, "application/json")
        with self.lock:
            token = f"CANARY-token-{len(self.issued)}.{'x' * 40}"
            says = {"access_token": token, "token_type": "bearer", "expires_in": self.lasts}
            if form["grant_type"] == "refresh_token":
                if form["refresh_token"] != self.refresh:
                    return answer.whole(b'{"error": "invalid_grant"}', 400, "application/json")
                self.refresh = says["refresh_token"] = f"CANARY-refresh-{len(self.issued) + 1}"
            self.issued.append(token)
            self.valid[token] = time.monotonic() + (self.lasts or 3600)
        answer.whole(json.dumps(says).encode(), kind="application/json")

    def do_api(self, request, answer, lines):
        if self.valid.get(request.credential, 0) < time.monotonic():
            return answer.whole(b"who?", 401)
        self.do_echo(request, answer, lines)

    def since(self, count):
        """What was asked for since there were that many requests."""
        return self.asked[count:]


BROKEN = {
    "redirect": (307, "{}"),
    "error": (400, json.dumps({"error": "invalid_scope", "error_description": SECRET})),
    "words": (400, json.dumps({"error": SECRET})),
    "html": (200, f"<p>{SECRET}"),
    "mac": (200, json.dumps({"access_token": "CANARY-mac", "token_type": "mac"})),
    "header": (200, json.dumps({"access_token": "CANARY-a\r\nb", "token_type": "bearer"})),
    "large": (200, json.dumps({"access_token": "x" * 70_000})),
}


class Mutual(Issuer):
    """Lets in who shows a certificate of the authority, and says which; its tokens, too, are for them alone."""

    def __init__(self, tls, authority):
        super().__init__(tls)
        self.context.verify_mode = ssl.CERT_REQUIRED
        self.context.load_verify_locations(authority.file)

    def do_who(self, request, answer, _):
        subject = dict(pair for part in answer.sock.getpeercert()["subject"] for pair in part)
        answer.whole(subject["commonName"].encode())


def route(name, upstream, inject, secret, more):
    return f"""
[[route]]
name = "{name}"
upstream = "{upstream}"
inject = {inject}
secret = "{secret}"
allow = ["* /**"]
{more}
"""


class Place:
    def __init__(self, folder):
        authority = Authority(folder)
        os.chmod(authority.file, 0o644)
        server = authority.server()
        self.issuer, self.mutual = Issuer(server), Mutual(server, authority)
        self.one, self.two = authority.client("one"), authority.client("two")
        private = f'allow_private = true\nca_file = "{authority.file}"'
        oauth = lambda path="": f'{{ oauth2 = {{ token_url = "{self.issuer.address}/token{path}", scope = "read write" }} }}'
        self.config = "".join([
            route("client", self.issuer.address, oauth(), "app/client", private),
            route("short", self.issuer.address, oauth(), "app/client", private),
            route("held", self.issuer.address, oauth(), "app/client", private),
            route("body", self.issuer.address, oauth("/body"), "app/client", private),
            route("user", self.issuer.address, oauth(), "app/user", private),
            route("public", self.issuer.address, oauth(), "app/client", f'ca_file = "{authority.file}"'),
            route("empty", self.issuer.address, oauth(), "app/none", private),
            *(route(name, self.issuer.address, oauth(f"/{name}"), "app/client", private) for name in BROKEN),
            route("mutual", self.mutual.address, '[{ mtls = {} }, { header = "x-of", value = "{secret#of}" }]', "app/cert", private),
            route("both", self.mutual.address, f'[{{ mtls = {{}} }}, {{ oauth2 = {{ token_url = "{self.mutual.address}/token" }} }}]',
                  "app/cert", private),
            route("bare", self.mutual.address, '{ header = "x", value = "{secret}" }', "app/none", private),
            route("mismatched", self.mutual.address, "{ mtls = {} }", "app/mismatched", private),
        ]) + POLICY
        self.agent = Agent(policy=self.config, secrets={
            "app/client": self.client(SECRET), "app/user": json.dumps(json.loads(self.client(SECRET)) | {"refresh_token": REFRESH}),
            "app/none": "{}", "app/cert": self.pem(self.one),
            "app/mismatched": json.dumps(json.loads(self.pem(self.one)) | {"private_key": self.two.key.read_text()}),
        })

    @staticmethod
    def client(secret):
        return json.dumps({"client_id": CLIENT, "client_secret": secret})

    @staticmethod
    def pem(issued):
        return json.dumps({"certificate": issued.certificate.read_text(), "private_key": issued.key.read_text(), "of": "x",
                           "client_id": CLIENT, "client_secret": SECRET})

    def use(self, path, method="GET", body=None, **headers):
        return self.agent.get("/v1/use/" + path, ALICE, method, body, **headers)

    def metrics(self):
        return UnixHTTP(self.agent.admin_socket).get("/v1/metrics").body


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens", numbered=False)
    open_to_others(folder)
    place = Place(folder)
    with contextlib.ExitStack() as stack:
        for part in (place.issuer, place.mutual, place.agent):
            stack.enter_context(part)
        yield place


def test_the_agent_gets_a_token_once_and_the_bot_never(place):
    issuer = place.issuer
    for _ in range(3):
        reply = place.use("client/api/x", "POST", b"{}", Authorization="Bearer placeholder")
        assert reply.status == 200, reply.body
        assert issuer.last("/api/x").credential == issuer.issued[-1]
        assert issuer.issued[-1].encode() not in reply.body and b"*" * len(issuer.issued[-1]) in reply.body
    [(_, authorization, form)] = issuer.asked
    assert form == {"grant_type": "client_credentials", "scope": "read write"}
    # Each part is encoded before it is joined (RFC 6749 section 2.3.1).
    assert base64.b64decode(authorization.split()[1]) == b"client%2F1:CANARY-client%3Asecret%2B%2F9d"
    assert place.use("body/api").status == 200, "a server that wants the secret in the body"
    assert issuer.asked[-1][1] is None and issuer.asked[-1][2]["client_secret"] == SECRET


def lets_go_once(issuer, check):
    """A thread that lets the issuer answer once `check()` is truthy."""
    def run():
        with contextlib.suppress(AssertionError):
            eventually(check, seconds=20)
        issuer.go.set()

    issuer.go.clear()
    helper = threading.Thread(target=run)
    helper.start()
    return helper


def test_many_requests_ask_for_one_token(place):
    issuer = place.issuer
    before = len(issuer.asked)
    helper = lets_go_once(issuer, lambda: b'keyhatch_route_open{route="held"} 8' in place.metrics() and len(issuer.asked) > before)

    def act():
        https = [UnixHTTP(place.agent.socket) for _ in range(8)]
        for http in https:
            http.request("GET", "/v1/use/held/api", headers={"Host": "x"})
        return [http.getresponse().status for http in https]

    assert as_user(ALICE, act) == [200] * 8 and len(issuer.since(before)) == 1
    helper.join()


def test_a_token_is_renewed_ahead_of_its_end(place):
    issuer = place.issuer
    issuer.lasts = 2
    try:
        assert place.use("short/api").status == 200
        first = issuer.last("/api").credential
        used = lambda: place.use("short/api").status == 200 and issuer.last("/api").credential
        eventually(lambda: used() != first)
        issuer.lasts = 0
        eventually(lambda: used() != used())
        before = len(issuer.asked)
        assert used() != used() and len(issuer.since(before)) == 2, "one that lasts no time is asked for each time"
    finally:
        issuer.lasts = 3600


def test_a_token_that_the_upstream_refuses_is_replaced_once(place):
    issuer = place.issuer
    assert place.use("client/api").status == 200
    issuer.valid.clear()
    before = len(issuer.asked)
    reply = place.use("client/api", "POST", b"again")
    assert reply.status == 200 and issuer.last("/api").body == b"again" and len(issuer.since(before)) == 1
    records = place.agent.records(event="secret.used")[-2:]
    assert records[0]["request_id"] == records[1]["request_id"] and "once more" in records[0]["note"]
    # An API that always says no gets one new token, and the bot its answer.
    before, seen = len(issuer.asked), len(issuer.seen)
    reply = place.use("client/status?code=401")
    assert reply.status == 401 and reply.headers["keyhatch-route"] == "client"
    assert len(issuer.since(before)) == 1
    assert [r.path for r in issuer.seen[seen:]].count("/status") == 2


def test_a_rotated_client_secret_drops_the_token(place):
    issuer = place.issuer
    assert place.use("client/api").status == 200
    old = issuer.issued[-1]
    issuer.secrets = {NEXT}
    place.agent.put("app/client", place.client(NEXT))
    assert place.use("client/api").status == 200
    assert issuer.last("/api").credential != old and b"CANARY-client-next-77" in base64.b64decode(issuer.asked[-1][1].split()[1])
    issuer.secrets = {SECRET}
    place.agent.put("app/client", place.client(SECRET))


def test_refresh_tokens_that_change_are_kept_over_a_reload_and_belong_to_the_secrets_version(place):
    issuer = place.issuer
    issuer.lasts = 0
    try:
        for number in range(3):
            assert place.use("user/api").status == 200
            if number == 1:
                place.agent.ops("reload")
        sent = [form.get("refresh_token") for _, _, form in issuer.asked[-3:]]
        assert sent[0] == REFRESH and len(set(sent)) == 3, sent
        reply = place.use("user/echo", "POST", issuer.refresh.encode())
        assert issuer.refresh.encode() not in reply.body
        # A new version of the secret brings its own.
        issuer.refresh = "CANARY-refresh-new"
        place.agent.put("app/user", json.dumps({"client_id": CLIENT, "client_secret": SECRET, "refresh_token": issuer.refresh}))
        assert place.use("user/api").status == 200
        assert issuer.asked[-1][2]["refresh_token"] == "CANARY-refresh-new"
    finally:
        issuer.lasts = 3600


@pytest.mark.parametrize("name, detail", [
    ("redirect", "answered 307"), ("error", "invalid_scope"), ("words", "answered 400 with nothing"), ("html", "JSON"),
    ("mac", "token_type"), ("header", "no header can carry"), ("large", "larger"), ("public", "loopback"),
    ("empty", '"client_id"'),
])
def test_no_token_is_a_problem_that_tells_nothing_of_the_secret(place, name, detail):
    before = len(place.issuer.seen)
    reply = place.use(f"{name}/api")
    assert (reply.status, reply.json()["code"]) == (502, "upstream_failed")
    assert detail in reply.json()["detail"] and b"CANARY" not in reply.body
    assert "/api" not in [r.path for r in place.issuer.seen[before:]], "nothing goes out without a token"
    [record] = place.agent.records(event="secret.used", request_id=reply.json()["request_id"])
    assert detail in record["note"] and not record["complete"]


def test_client_certificates_and_their_rotation(place):
    mutual = place.mutual
    for _ in range(3):
        assert place.use("mutual/who", X_Of="mine").body == b"one"
    assert mutual.last("/who").headers["x-of"] == "x", "several at once"
    key = place.one.key.read_text()
    reply = place.use("mutual/echo", "POST", key.encode())
    assert reply.status == 200 and key.splitlines()[1].encode() not in reply.body, "the key counts as a secret"
    connections = mutual.connections
    assert connections == 1, "a connection is kept"
    place.agent.put("app/cert", place.pem(place.two))
    for _ in range(3):
        assert place.use("mutual/who").body == b"two", "no connection of the old certificate is used"
    assert mutual.connections == connections + 1
    assert place.use("both/api").status == 200 and mutual.last("/api").credential == mutual.issued[-1]
    for name, detail in [("bare", "the"), ("mismatched", "do not go together")]:
        reply = place.use(f"{name}/who")
        assert (reply.status, reply.json()["code"]) == (502, "upstream_failed")
        assert detail in reply.json()["detail"]


# The order of the group of P-256.
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def private_forms(issued):
    """A private key as it is written, and as ring computes with it (the scalar times 2^256)."""
    pem = issued.key.read_bytes()
    number = load_pem_private_key(pem, None).private_numbers().private_value
    lines = pem.decode().splitlines()
    return {f"{issued.key.name} {name}": form for name, form in {
        "line": lines[1].encode()[8:], "big": number.to_bytes(32, "big"), "ring": ((number << 256) % ORDER).to_bytes(32, "little"),
    }.items()}


def test_the_daemons_memory_holds_no_copy_a_second_later(place):
    for _ in range(10):
        for path in ("client/api", "user/api", "mutual/who"):
            assert place.use(path).status == 200
    wanted = private_forms(place.one) | private_forms(place.two)
    for value in (SECRET, place.issuer.refresh, *place.issuer.issued[-3:]):
        wanted |= disguises(value)
    holds_no_copy(place.agent.pid, wanted, MARKER)


def test_seal_forgets_tokens_and_ends_a_request_for_one(place):
    issuer = place.issuer
    issuer.lasts = 0
    assert place.use("short/api").status == 200
    before = len(issuer.asked)
    sealed = []

    def seals():
        if len(issuer.asked) > before and b'keyhatch_route_open{route="short"} 4' in place.metrics():
            sealed.append(json.loads(place.agent.ops("seal", "--json").stdout))
        return sealed

    helper = lets_go_once(issuer, seals)

    def act():
        https = [UnixHTTP(place.agent.socket) for _ in range(4)]
        for bot in https:
            bot.request("GET", "/v1/use/short/api", headers={"Host": "x"})
        answered = []
        for bot in https:
            with contextlib.suppress(OSError, http.client.HTTPException):
                answered.append(bot.getresponse().status)
        return answered

    try:
        assert 200 not in as_user(ALICE, act)
        helper.join()
        assert sealed[0]["secret_memory_used"] == 0, "nor does another ask that waited for its turn"
    finally:
        issuer.lasts = 3600
        place.agent.ops("unseal")
    eventually(lambda: place.use("client/api").status == 200)
    assert len(issuer.since(before)) == 2, "the token from before is no more"


def test_no_record_log_or_file_holds_a_secret(place):
    for path, data in place.agent.everything_written():
        assert b"CANARY" not in data, path
        for form in private_forms(place.one).values():
            assert form not in data, path
