"""Routes that sign: AWS's Signature Version 4 as botocore itself checks it, and webhooks as those check them who get them."""

import contextlib
import hashlib
import hmac
import http.client
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.parse

import boto3
import pytest
from botocore.auth import S3SigV4Auth, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials

from harness import ALICE, KEYHATCH, Agent, UnixHTTP, as_user, eventually
from hostile import Hostile
from inside import disguises, holds_no_copy
from upstreams import REGION, Moto

ID, SECRET = "CANARYAKIDOFAWS00001", "CANARY-aws/secret+key-77c1f0a9"
SESSION = "CANARY-session-token/0b7e=="
HOOK = "CANARY-webhook-secret-4f2a"
MARKER = "bot-marker-91ab"
UNSIGNED, TRAILER = "UNSIGNED-PAYLOAD", "STREAMING-UNSIGNED-PAYLOAD-TRAILER"

POLICY = f"""
[[bot]]
name = "{MARKER}"
match = {{ uid = {ALICE} }}
roles = ["caller"]
[[bot]]
name = "sdk"
match = {{ uid = 0 }}
roles = ["caller"]
[role.caller]
grants = [{{ routes = ["*"], actions = ["use"] }}]
"""


def route(name, upstream, inject, secret):
    return f"""
[[route]]
name = "{name}"
upstream = "{upstream}"
inject = {inject}
secret = "{secret}"
allow = ["* /**"]
allow_private = true
"""


class Checking:
    """In front of moto: lets in what is signed with the real key, whatever moto would think of it."""

    def __init__(self, moto):
        self.moto, self.seen, self.refused = moto, [], []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_any(self):
                outer.answer(self)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_any

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def answer(self, handler):
        length = int(handler.headers.get("content-length", 0))
        body = handler.rfile.read(length)
        if "chunked" in handler.headers.get("transfer-encoding", ""):
            while size := int(handler.rfile.readline(), 16):
                body += handler.rfile.read(size)
                handler.rfile.readline()
            handler.rfile.readline()
        headers = {name.lower(): value for name, value in handler.headers.items()}
        self.seen.append((handler.command, handler.path, headers, body))
        why = self.wrong(handler, headers, body)
        if why:
            self.refused.append((why, handler.path, headers))
            # As S3 does, with what was sent in it.
            status, kind = 403, "application/xml"
            data = f"<Error><Code>{why}</Code><A>{headers.get('authorization')}</A></Error>".encode()
        else:
            headers.pop("transfer-encoding", None)
            moto = http.client.HTTPConnection("127.0.0.1", self.moto.port, timeout=30)
            moto.request(handler.command, handler.path, body, headers | {"content-length": str(len(body))})
            reply = moto.getresponse()
            status, kind, data = reply.status, reply.headers.get("content-type", ""), reply.read()
            length = reply.headers.get("content-length")
            moto.close()
        handler.send_response(status)
        handler.send_header("content-type", kind)
        with contextlib.suppress(NameError):
            handler.send_header("etag", reply.headers.get("etag", '""'))
        head = handler.command == "HEAD"
        handler.send_header("content-length", length if head else str(len(data)))
        handler.end_headers()
        if not head:
            handler.wfile.write(data)

    def wrong(self, handler, headers, body):
        """What AWS would find wrong with a request."""
        scheme, _, parts = headers.get("authorization", "").partition(" ")
        said = dict(part.strip().split("=", 1) for part in parts.split(",") if "=" in part)
        key, _, region, service, _ = said.get("Credential", "////").split("/")
        if (scheme, key, region) != ("AWS4-HMAC-SHA256", ID, REGION):
            return "InvalidAccessKeyId"
        if headers.get("x-amz-security-token") not in (None, SESSION):
            return "InvalidToken"
        signed = said["SignedHeaders"].split(";")
        if any(name.startswith("x-amz-") and name not in signed for name in headers):
            return "AccessDenied: an x-amz- header is not signed"
        claimed = headers.get("x-amz-content-sha256")
        if claimed not in (None, UNSIGNED, TRAILER) and claimed != hashlib.sha256(body).hexdigest():
            return "XAmzContentSHA256Mismatch"
        if service == "s3" and claimed is None:
            return "MissingSecurityHeader"
        auth = (S3SigV4Auth if service == "s3" else SigV4Auth)(Credentials(ID, SECRET), service, region)
        request = AWSRequest(handler.command, f"http://{headers['host']}{handler.path}", data=body,
                             headers={name: headers[name] for name in signed})
        request.context["timestamp"] = headers["x-amz-date"]
        text = auth.string_to_sign(request, auth.canonical_request(request))
        return None if auth.signature(text, request) == said["Signature"] else "SignatureDoesNotMatch"


class Place:
    def __init__(self, moto):
        self.aws, self.hooks = Checking(moto), Hostile()
        sign = lambda service: f'{{ sigv4 = {{ region = "{REGION}", service = "{service}" }} }}'
        hook = lambda header, template, more="": \
            f'{{ hmac = {{ header = "{header}", algorithm = "sha256", template = "{template}"{more} }} }}'
        self.agent = Agent(policy=POLICY + "".join([
            route("s3", self.aws.address, sign("s3"), "app/aws"),
            route("dynamodb", self.aws.address, sign("dynamodb"), "app/aws"),
            route("sqs", self.aws.address, sign("sqs"), "app/temporary"),
            route("stripe", self.hooks.address, hook("stripe-signature", "t={timestamp},v1={hex:{timestamp}.{body}}"), "app/hook"),
            route("github", self.hooks.address, hook("x-hub-signature-256", "sha256={hex:{body}}"), "app/hook"),
            route("slack", self.hooks.address,
                  "[" + hook("x-slack-signature", "v0={hex:v0:{timestamp}:{body}}", ', timestamp = "x-slack-request-timestamp"')
                  + ', { query = "key", value = "{secret}" }]', "app/hook"),
            route("incomplete", self.aws.address, sign("s3"), "app/hook"),
        ]), secrets={
            "app/aws": json.dumps({"access_key_id": ID, "secret_access_key": SECRET}),
            "app/temporary": json.dumps({"access_key_id": ID, "secret_access_key": SECRET, "session_token": SESSION}),
            "app/hook": HOOK,
        })

    def use(self, path, method="GET", body=None, **headers):
        return self.agent.get("/v1/use/" + path, ALICE, method, body, **headers)

    def announce(self, path, size):
        """The answer to the head of a request alone: who is refused at once sends no body."""
        def act():
            http = UnixHTTP(self.agent.socket)
            http.putrequest("POST", "/v1/use/" + path, skip_host=True)
            http.putheader("Host", "x")
            http.putheader("Content-Length", str(size))
            http.endheaders()
            reply = http.getresponse()
            return reply.status, json.loads(reply.read())

        return as_user(ALICE, act)


@pytest.fixture(scope="module")
def place():
    with Moto() as moto, contextlib.ExitStack() as stack:
        place = Place(moto)
        for part in (place.aws, place.hooks, place.agent):
            stack.enter_context(part)
        yield place


BOTO = """
import io, os, boto3
from botocore.exceptions import ClientError

s3 = boto3.client("s3")
s3.create_bucket(Bucket="things", CreateBucketConfiguration={"LocationConstraint": os.environ["AWS_DEFAULT_REGION"]})
key = "a b/\\u00fc=+(1)~*',&$@:!.txt"
s3.put_object(Bucket="things", Key=key, Body=b"hello", Metadata={"kind": "a  b"}, ContentType="text/plain")
assert s3.get_object(Bucket="things", Key=key)["Body"].read() == b"hello"
large = os.urandom(9 << 20)
s3.upload_fileobj(io.BytesIO(large), "things", "large")
assert s3.get_object(Bucket="things", Key="large")["Body"].read() == large
assert [o["Key"] for o in s3.list_objects_v2(Bucket="things", Prefix="a b/", Delimiter="/")["Contents"]] == [key]
s3.delete_object(Bucket="things", Key=key)
try:
    s3.head_object(Bucket="things", Key=key)
except ClientError as error:
    assert error.response["Error"]["Code"] == "404"

db = boto3.client("dynamodb")
db.create_table(TableName="t", BillingMode="PAY_PER_REQUEST", KeySchema=[{"AttributeName": "k", "KeyType": "HASH"}],
                AttributeDefinitions=[{"AttributeName": "k", "AttributeType": "S"}])
db.put_item(TableName="t", Item={"k": {"S": "a"}, "v": {"S": "x" * 100000}})
assert db.scan(TableName="t")["Count"] == 1

queue = boto3.client("sqs").create_queue(QueueName="q")["QueueUrl"]
assert queue.endswith("/q")
assert "CANARY" not in str(dict(os.environ))
print("done")
"""


def test_boto3_with_placeholder_keys_reaches_aws_as_somebody_else(place):
    done = subprocess.run(
        [KEYHATCH, "--socket", place.agent.socket, "run", "--route", "AWS_ENDPOINT_URL_S3=s3", "--route",
         "AWS_ENDPOINT_URL_DYNAMODB=dynamodb", "--route", "AWS_ENDPOINT_URL_SQS=sqs", "--", sys.executable, "-c", BOTO],
        capture_output=True, text=True, timeout=120,
        env={"PATH": os.environ["PATH"], "AWS_DEFAULT_REGION": REGION},
    )
    assert (done.stdout, done.returncode) == ("done\n", 0), done.stderr + str(place.aws.refused)
    assert place.aws.refused == []
    services = {headers["authorization"].split("/")[3] for _, _, headers, _ in place.aws.seen}
    assert services == {"s3", "dynamodb", "sqs"}
    for _, _, headers, _ in place.aws.seen:
        assert "EXAMPLE/" not in str(headers), "the placeholder"
        is_temporary = "/sqs/" in headers["authorization"]
        assert headers.get("x-amz-security-token") == (SESSION if is_temporary else None)


def test_what_the_bots_own_signature_says_is_left_out(place):
    # Presigned for another host, with the bot's own key, and an Authorization besides.
    for version in ("s3v4", "s3"):
        other = boto3.client("s3", region_name="us-east-1", aws_access_key_id="AKIDOFTHEBOT", aws_secret_access_key="x",
                             aws_session_token="of-the-bot", config=Config(signature_version=version))
        url = other.generate_presigned_url("list_objects_v2", Params={"Bucket": "none", "Prefix": "a/b c"})
        reply = place.use("s3/none?" + urllib.parse.urlsplit(url).query, Authorization="AWS4-HMAC-SHA256 Credential=AKIDOFTHEBOT",
                          X_Amz_Date="20200101T000000Z", X_Amz_Security_Token="of-the-bot", X_Amz_Content_Sha256=UNSIGNED)
        assert (reply.status, b"NoSuchBucket" in reply.body) == (404, True), reply
        _, path, headers, _ = place.aws.seen[-1]
        assert path.startswith("/none?list-type=2&prefix=a%2Fb%20c&encoding-type=url")
        assert "of-the-bot" not in path + str(headers) and "AKIDOFTHEBOT" not in path + str(headers)
        assert "ignature" not in path and "credential" not in path.lower()
        assert headers["x-amz-date"] != "20200101T000000Z" and headers["x-amz-content-sha256"] == UNSIGNED


def test_bodies_stream_where_aws_takes_them_so_and_are_bounded_elsewhere(place):
    where = f"<CreateBucketConfiguration><LocationConstraint>{REGION}</LocationConstraint></CreateBucketConfiguration>"
    assert place.use("s3/bucket", "PUT", where.encode()).status == 200
    large = b"0123456789abcdef" * (9 << 16)
    for said in ({}, {"X_Amz_Content_Sha256": UNSIGNED}, {"X_Amz_Content_Sha256": hashlib.sha256(large).hexdigest()}):
        assert place.use("s3/bucket/large", "PUT", large, **said).status == 200, place.aws.refused
        assert place.aws.seen[-1][2]["x-amz-content-sha256"] == said.get("X_Amz_Content_Sha256", UNSIGNED)
    # What is small is signed even where it need not be.
    place.use("s3/bucket/small", "PUT", b"small")
    assert place.aws.seen[-1][2]["x-amz-content-sha256"] == hashlib.sha256(b"small").hexdigest()
    chunks = b"5\r\nhello\r\n0\r\nx-amz-checksum-crc32:NhCmhg==\r\n\r\n"
    place.use("s3/bucket/chunks", "PUT", chunks, X_Amz_Content_Sha256=TRAILER, Content_Encoding="aws-chunked",
              X_Amz_Trailer="x-amz-checksum-crc32", X_Amz_Decoded_Content_Length="5")
    seen = place.aws.seen[-1]
    assert (seen[3], seen[2]["x-amz-content-sha256"], place.aws.refused) == (chunks, TRAILER, [])
    before = len(place.aws.seen)
    reply = place.use("s3/bucket/x", "PUT", b"", X_Amz_Content_Sha256="STREAMING-AWS4-HMAC-SHA256-PAYLOAD")
    assert (reply.status, reply.json()["code"]) == (400, "bad_request") and "chunk" in reply.json()["detail"]
    status, problem = place.announce("dynamodb/", len(large))
    assert (status, problem["code"]) == (413, "too_large") and "8 MiB" in problem["detail"]
    assert len(place.aws.seen) == before, "nothing of it left"
    # With its hash it need not be read first.
    assert place.use("dynamodb/", "POST", large, X_Amz_Content_Sha256=hashlib.sha256(large).hexdigest()).status != 413
    assert place.aws.seen[-1][3] == large and place.aws.refused == []
    # A path is escaped once more for all but S3.
    place.use("dynamodb/2015-03-31/functions/arn:aws:lambda%20(x)=1*/invoke", "POST", b"{}")
    assert place.aws.seen[-1][1] == "/2015-03-31/functions/arn%3Aaws%3Alambda%20%28x%29%3D1%2A/invoke"
    assert place.aws.refused == []
    # A hash of something else is AWS's to refuse. What it says of the signature is masked.
    reply = place.use("s3/bucket/x", "PUT", b"abc", X_Amz_Content_Sha256="0" * 64)
    assert reply.status == 403 and b"XAmzContentSHA256Mismatch" in reply.body
    assert b"Signature=" + b"*" * 64 in reply.body and ID.encode() not in reply.body
    place.aws.refused.clear()


def test_a_secret_without_the_fields_says_which(place):
    reply = place.use("incomplete/x")
    assert (reply.status, reply.json()["code"]) == (502, "upstream_failed")
    assert '"access_key_id"' in reply.json()["detail"]


def stripe_says(header, payload, tolerance=300):
    """As Stripe's libraries check an event."""
    parts = dict(part.split("=", 1) for part in header.split(","))
    expected = hmac.new(HOOK.encode(), f"{parts['t']}.".encode() + payload, hashlib.sha256).hexdigest()
    return hmac.compare_digest(expected, parts["v1"]) and abs(time.time() - int(parts["t"])) < tolerance


def test_webhooks_are_signed_as_their_receivers_check_them(place):
    event = b'{"type": "payout"}'
    large = b"x" * (1 << 20)
    for body in (event, large, b""):
        place.use("stripe/hook", "POST", body, Stripe_Signature="t=1,v1=mine")
        seen = place.hooks.last()
        assert seen.body == body and stripe_says(seen.headers["stripe-signature"], body)
        place.use("github/hook", "POST", body, X_Hub_Signature_256="mine", x_hub_signature_256="mine")
        seen = place.hooks.last()
        expected = "sha256=" + hmac.new(HOOK.encode(), body, hashlib.sha256).hexdigest()
        assert [v for k, v in seen.pairs if k.lower().replace("_", "-") == "x-hub-signature-256"] == [expected]
    reply = place.use("slack/echo", "POST", event, X_Slack_Request_Timestamp="1")
    seen = place.hooks.last()
    at = seen.headers["x-slack-request-timestamp"]
    tag = hmac.new(HOOK.encode(), f"v0:{at}:".encode() + event, hashlib.sha256).hexdigest()
    assert seen.headers["x-slack-signature"] == "v0=" + tag and abs(time.time() - int(at)) < 60
    assert seen.query == {"key": HOOK}
    assert tag.encode() not in reply.body and HOOK.encode() not in reply.body, "neither comes back"
    before = len(place.hooks.seen)
    assert place.announce("github/hook", (8 << 20) + 1)[0] == 413
    assert len(place.hooks.seen) == before


def test_bodies_that_are_read_first_take_a_bounded_share_of_memory(place):
    head = b"POST /v1/use/github/hook HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"

    def begins(size):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(20)
        sock.connect(str(place.agent.socket))
        sock.sendall(head % size)
        return sock, sock.recv(4096)

    def act():
        held = [begins(8 << 20) for _ in range(4)]
        over = begins(1 << 20)
        held.pop()[0].close()
        again = lambda: (reply := begins(1 << 20))[1].startswith(b"HTTP/1.1 100") and reply
        return [said for _, said in held], over[1], eventually(again)[1]

    held, over, again = as_user(ALICE, act)
    assert all(said.startswith(b"HTTP/1.1 100 Continue") for said in held)
    assert over.startswith(b"HTTP/1.1 429") and b"retry-after: 1" in over and b"32 MiB" in over
    assert again.startswith(b"HTTP/1.1 100 Continue"), "what is given up is free again"


def test_the_daemons_memory_holds_no_copy_a_second_later(place):
    for _ in range(20):
        for path in ("s3/bucket", "sqs/", "github/echo", "slack/echo"):
            place.use(path)
    wanted = {}
    for value in (SECRET, "AWS4" + SECRET, ID, SESSION, HOOK):
        wanted |= disguises(value)
    wanted["aws4"] = b"AWS4" + SECRET.encode()
    holds_no_copy(place.agent.pid, wanted, MARKER)


def test_no_record_log_or_file_holds_a_key(place):
    for path, data in place.agent.everything_written():
        for needle in (SECRET, ID, SESSION, HOOK):
            assert needle.encode() not in data, path
