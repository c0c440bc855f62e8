"""The drop-in surfaces as they are on the socket: what each answers, to whom, and what is recorded of it."""

import base64
import json

import pytest

from harness import ALICE, BOB, CANARY, Agent

POLICY = """
[[bot]]
name = "alice"
match = { uid = 20001 }
roles = ["reader"]

[[bot]]
name = "tester"
match = { uid = 0 }
roles = ["reader", "rotator"]

[role.reader]
grants = [
  { secrets = ["app/**"] },
  { secrets = ["quiet/*"], actions = ["read"] },
  { secrets = ["seen/*"], actions = ["list"] },
]
deny = [{ secrets = ["app/secret"] }]

[role.rotator]
grants = [{ secrets = ["app/key"], actions = ["rotate"] }]
"""
ODD = 'CANARY "quoted" \\ line\nbreak \u00e9 \x01'
BINARY = b"CANARY\xff\x00\xfe"
OBJECT = '{"user": "bot", "password": "CANARY-\\"p\\"", "port": 5432}'
SECRETS = {
    "app/key": "CANARY-first", "app/odd": ODD, "app/bin": BINARY, "app/db": OBJECT, "app/empty": "",
    "app/secret": "CANARY-denied", "quiet/a": "CANARY-quiet", "seen/a": "CANARY-seen", "other/a": "CANARY-other",
}


@pytest.fixture(scope="module")
def shared():
    with Agent(policy=POLICY, secrets=SECRETS) as agent:
        agent.put("app/key", CANARY)
        yield agent


@pytest.fixture
def own():
    with Agent(policy=POLICY, secrets=SECRETS) as agent:
        yield agent


def native(agent, name, **query):
    query = "&".join(f"{key}={value}" for key, value in query.items())
    return agent.read(f"{name}?{query}").json()


def aws_agent(agent, secret_id, uid=None, more="", **headers):
    return agent.get(f"/secretsmanager/get?secretId={secret_id}{more}", uid, **headers)


def aws(agent, operation, request, uid=None, **headers):
    body = request if isinstance(request, bytes) else json.dumps(request).encode()
    target = f"secretsmanager.{operation}"
    return agent.get("/", uid, "POST", body, X_Amz_Target=target, **headers)


def vault(agent, path, uid=None, method="GET", **headers):
    return agent.get(f"/v1/{path}", uid, method, **headers)


def exception(reply):
    """The type of an exception of AWS's; the header and the body agree, and the id leads to the record."""
    kind = reply.json()["__type"]
    assert reply.headers["x-amzn-errortype"] == kind and reply.headers["x-amzn-requestid"]
    assert set(reply.json()) == {"__type", "message"}
    return kind


# Values.


@pytest.mark.parametrize("name", ["app/key", "app/odd", "app/bin", "app/db", "app/empty"])
def test_every_surface_gives_the_same_bytes(shared, name):
    value = SECRETS[name] if name != "app/key" else CANARY
    for reply in [aws_agent(shared, name), aws(shared, "GetSecretValue", {"SecretId": name})]:
        assert reply.status == 200
        if isinstance(value, bytes):
            assert base64.b64decode(reply.json()["SecretBinary"]) == value and "SecretString" not in reply.json()
        else:
            assert reply.json()["SecretString"] == value and "SecretBinary" not in reply.json()
    data = vault(shared, f"secret/data/{name}").json()["data"]["data"]
    if name == "app/db":
        assert data == json.loads(OBJECT)
    elif isinstance(value, bytes):
        assert data == {"value_base64": base64.b64encode(value).decode()}
    else:
        assert data == {"value": value}


def test_an_object_is_lent_to_vaults_clients_byte_for_byte(shared):
    assert OBJECT.encode() in vault(shared, "secret/data/app/db").body


def test_a_value_tells_its_version_stage_and_time(shared):
    now, before = native(shared, "app/key"), native(shared, "app/key", version="previous")
    for reply in [aws_agent(shared, "app/key"), aws(shared, "GetSecretValue", {"SecretId": "app/key"})]:
        got = reply.json()
        assert got["ARN"] == "arn:aws:secretsmanager:keyhatch:000000000000:secret:app/key-KeyHat"
        assert (got["Name"], got["VersionStages"]) == ("app/key", ["AWSCURRENT"])
        assert got["VersionId"] == now["version"].rjust(32, "0")
        assert reply.headers["cache-control"] == "no-store"
    assert isinstance(aws_agent(shared, "app/key").json()["CreatedDate"], str), "as AWS's agent has it"
    assert isinstance(got["CreatedDate"], float) or isinstance(got["CreatedDate"], int), "as AWS has it"
    metadata = vault(shared, "secret/data/app/key").json()["data"]["metadata"]
    assert metadata == {"created_time": now["updated_at"], "custom_metadata": None, "deletion_time": "",
                        "destroyed": False, "version": 2}
    first = vault(shared, "secret/data/app/key?version=1").json()["data"]
    assert first["data"] == {"value": "CANARY-first"}
    assert first["metadata"]["created_time"] == before["updated_at"]


def test_versions_are_found_by_either_id_and_by_stage(shared):
    before = native(shared, "app/key", version="previous")["version"]
    padded = before.rjust(32, "0")
    for more in ["versionStage=AWSPREVIOUS", f"versionId={before}", f"versionId={padded}",
                 f"versionId={padded}&versionStage=AWSPREVIOUS"]:
        got = aws_agent(shared, "app/key", more="&" + more).json()
        assert (got["SecretString"], got["VersionStages"]) == ("CANARY-first", ["AWSPREVIOUS"]), more
    for request in [{"VersionStage": "AWSPREVIOUS"}, {"VersionId": padded}]:
        got = aws(shared, "GetSecretValue", {"SecretId": "app/key", **request}).json()
        assert got["SecretString"] == "CANARY-first"
    for request in [{"VersionStage": "AWSPENDING"}, {"VersionId": "0" * 36},
                    {"VersionId": padded, "VersionStage": "AWSCURRENT"}]:
        reply = aws(shared, "GetSecretValue", {"SecretId": "app/key", **request})
        assert (reply.status, exception(reply)) == (400, "ResourceNotFoundException"), request
        assert "secret value for" in reply.json()["message"]
    missing = aws_agent(shared, "app/odd", more="&versionStage=AWSPREVIOUS")
    assert exception(missing) == "ResourceNotFoundException"
    assert vault(shared, "secret/data/app/key?version=3").status == 404
    assert vault(shared, "secret/data/app/odd?version=0").json()["data"]["metadata"]["version"] == 1


@pytest.mark.parametrize("secret_id", [
    "app/key", "/app/key", "app%2Fkey", "arn:aws:secretsmanager:keyhatch:000000000000:secret:app/key-KeyHat",
    "arn:aws:secretsmanager:eu-west-1:123456789012:secret:app/key-a1B2c3",
    "arn:aws-cn:secretsmanager:cn-north-1:1:secret:app/key",
])
def test_an_id_is_a_name_or_an_arn(shared, secret_id):
    assert aws_agent(shared, secret_id).json()["Name"] == "app/key"


# Who gets what.


def test_absent_and_denied_are_told_apart_only_to_who_may_see_the_name(shared):
    def without_ids(reply):
        kept = {k: v for k, v in reply.headers.items() if k not in ("date", "x-amzn-requestid", "keyhatch-request-id")}
        return reply.status, kept, reply.body

    hidden = ["other/a", "other/none"]
    # A bot without the grant, and one that the policy denies a name it could else read.
    for absent, denied, uid in [*[(hidden[1], hidden[0], uid) for uid in (ALICE, BOB)], ("other/none", "app/secret", ALICE)]:
        for ask in [
            lambda name: aws_agent(shared, name, uid),
            lambda name: aws(shared, "GetSecretValue", {"SecretId": name}, uid),
            lambda name: aws(shared, "DescribeSecret", {"SecretId": name}, uid),
            lambda name: aws(shared, "RotateSecret", {"SecretId": name}, uid),
        ]:
            assert without_ids(ask(absent)) == without_ids(ask(denied))
            assert (ask(denied).status, exception(ask(denied))) == (400, "AccessDeniedException")
        for kind in ["data", "metadata"]:
            ask = lambda name: vault(shared, f"secret/{kind}/{name}", uid)
            assert without_ids(ask(absent)) == without_ids(ask(denied))
            assert (ask(denied).status, ask(denied).json()) == (403, {"errors": ["permission denied"]})
    for reply in [aws_agent(shared, "app/none", ALICE), aws(shared, "GetSecretValue", {"SecretId": "app/none"}, ALICE),
                  aws(shared, "DescribeSecret", {"SecretId": "app/none"}, ALICE)]:
        assert (reply.status, exception(reply)) == (400, "ResourceNotFoundException")
        assert reply.json()["message"] == "Secrets Manager can't find the specified secret."
    for kind in ["data", "metadata"]:
        reply = vault(shared, f"secret/{kind}/app/none", ALICE)
        assert (reply.status, reply.json()) == (404, {"errors": []})


def test_what_is_known_of_a_secret_is_told_to_who_may_list_or_read_it(shared):
    for name, readable in [("quiet/a", True), ("seen/a", False), ("app/key", True)]:
        assert aws(shared, "DescribeSecret", {"SecretId": name}, ALICE).status == 200
        assert vault(shared, f"secret/metadata/{name}", ALICE).status == 200
        assert (aws_agent(shared, name, ALICE).status == 200) == readable
        assert (vault(shared, f"secret/data/{name}", ALICE).status == 200) == readable
    about = aws(shared, "DescribeSecret", {"SecretId": "app/key"}).json()
    now, before = native(shared, "app/key"), native(shared, "app/key", version="previous")
    assert about["VersionIdsToStages"] == {
        now["version"].rjust(32, "0"): ["AWSCURRENT"], before["version"].rjust(32, "0"): ["AWSPREVIOUS"],
    }
    known = vault(shared, "secret/metadata/app/key").json()["data"]
    assert (known["current_version"], known["oldest_version"], sorted(known["versions"])) == (2, 1, ["1", "2"])


def test_lists_show_what_the_peer_may_list(shared):
    names = [entry["Name"] for entry in aws(shared, "ListSecrets", {}, ALICE).json()["SecretList"]]
    assert names == ["app/bin", "app/db", "app/empty", "app/key", "app/odd", "seen/a"]
    keys = lambda path, **more: vault(shared, path, ALICE, **more).json()["data"]["keys"]
    assert keys("secret/metadata/?list=true") == keys("secret/metadata", method="LIST") == ["app/", "seen/"]
    assert keys("secret/metadata/app", method="LIST") == ["bin", "db", "empty", "key", "odd"]
    for empty in ["secret/metadata/quiet", "secret/metadata/other", "secret/metadata/none", "secret/metadata/app/key"]:
        reply = vault(shared, empty, ALICE, "LIST")
        assert (reply.status, reply.json()) == (404, {"errors": []}), empty
    assert exception(aws(shared, "ListSecrets", {}, BOB)) == "AccessDeniedException"
    assert vault(shared, "secret/metadata", BOB, "LIST").status == 403


def test_pages_and_filters_of_a_list(shared):
    seen, token = [], {}
    while True:
        page = aws(shared, "ListSecrets", {"MaxResults": 4, **token}).json()
        seen += [entry["Name"] for entry in page["SecretList"]]
        if "NextToken" not in page:
            break
        token = {"NextToken": page["NextToken"]}
    assert seen == ["app/bin", "app/db", "app/empty", "app/key", "app/odd", "seen/a"]
    found = lambda key, *values: [entry["Name"] for entry in aws(
        shared, "ListSecrets", {"Filters": [{"Key": key, "Values": values}]}).json()["SecretList"]]
    assert found("name", "app/k", "seen") == ["app/key", "seen/a"]
    assert found("name", "!app/") == ["seen/a"]
    assert found("tag-key", "app") == []
    for wrong, kind in [({"MaxResults": 101}, "InvalidParameterException"), ({"NextToken": "a b"}, "InvalidNextTokenException")]:
        assert exception(aws(shared, "ListSecrets", wrong)) == kind


def test_a_batch_says_of_each_what_a_read_of_it_would_say(shared):
    ids = ["app/odd", "other/a", "app/none", "app/bin", "no name", "app/key"]
    got = aws(shared, "BatchGetSecretValue", {"SecretIdList": ids}, ALICE).json()
    assert [value["Name"] for value in got["SecretValues"]] == ["app/odd", "app/bin", "app/key"]
    single = aws(shared, "GetSecretValue", {"SecretId": "app/odd"}, ALICE).json()
    assert got["SecretValues"][0] == single
    assert [(error["SecretId"], error["ErrorCode"]) for error in got["Errors"]] == [
        ("other/a", "AccessDeniedException"), ("app/none", "ResourceNotFoundException"),
        ("no name", "InvalidParameterException"),
    ]
    found = aws(shared, "BatchGetSecretValue", {"Filters": [{"Key": "name", "Values": ["app/", "seen/"]}], "MaxResults": 5})
    assert [value["Name"] for value in found.json()["SecretValues"]] == ["app/bin", "app/db", "app/empty", "app/key", "app/odd"]
    rest = aws(shared, "BatchGetSecretValue", {
        "Filters": [{"Key": "name", "Values": ["app/", "seen/"]}], "NextToken": found.json()["NextToken"],
    }).json()
    assert rest["SecretValues"] == [] and rest["Errors"][0]["ErrorCode"] == "AccessDeniedException"
    for wrong in [{}, {"SecretIdList": []}, {"SecretIdList": ["a"] * 21},
                  {"SecretIdList": ["a"], "Filters": [{"Key": "name", "Values": ["a"]}]}]:
        assert exception(aws(shared, "BatchGetSecretValue", wrong)) == "InvalidParameterException"


def test_a_rotation_needs_its_own_grant_and_is_recorded(own):
    assert exception(aws(own, "RotateSecret", {"SecretId": "app/key"}, ALICE)) == "AccessDeniedException"
    granted = aws(own, "RotateSecret", {"SecretId": "app/key"})
    assert exception(granted) == "InvalidRequestException"
    records = own.records(event="secret.rotate")
    assert [(r["bot"], r["decision"], r["reason"], r["surface"]) for r in records] == [
        ("alice", "deny", "no_grant", "aws"), ("tester", "allow", "granted", "aws"),
    ]
    assert "nothing was done" in records[1]["message"]
    assert records[1]["request_id"] == granted.headers["x-amzn-requestid"]


# Records.


def test_each_surface_is_in_the_record_and_they_do_not_mix_on_one_connection(own):
    connection = own.connect()
    asks = {
        "native": lambda: connection.get("/v1/secrets/app/key"),
        "aws-agent": lambda: connection.get("/secretsmanager/get?secretId=app/key"),
        "aws": lambda: connection.ask("POST", "/", {"X-Amz-Target": "secretsmanager.GetSecretValue"},
                                      b'{"SecretId":"app/key"}'),
        "vault": lambda: connection.get("/v1/secret/data/app/key"),
    }
    order = ["native", "native", "aws", "vault", "vault", "native", "aws-agent", "aws", "aws", "aws-agent", "native"]
    for surface in order:
        assert asks[surface]().status == 200
    records = own.records(event="secret.read")
    assert [record["surface"] for record in records] == order
    assert {(r["bot"], r["decision"], r["secret"], r["version"]) for r in records} == {
        ("tester", "allow", "app/key", native(own, "app/key")["version"]),
    }


def test_the_request_id_of_an_answer_leads_to_its_record(own):
    replies = {
        aws_agent(own, "app/none").headers["x-amzn-requestid"]: "not_found",
        aws(own, "GetSecretValue", {"SecretId": "other/a"}).headers["x-amzn-requestid"]: "no_grant",
        vault(own, "secret/data/app/secret").headers["keyhatch-request-id"]: "deny_rule",
        vault(own, "secret/data/app/key").json()["request_id"]: "granted",
        aws(own, "DescribeSecret", {"SecretId": "app/key"}).headers["x-amzn-requestid"]: "granted",
    }
    records = {record["request_id"]: record["reason"] for record in own.records() if record["request_id"]}
    assert records.items() >= replies.items()


def test_sealed_nothing_is_given_and_each_client_is_told_in_its_words(own):
    own.ops("seal")
    for reply in [aws_agent(own, "app/key"), aws(own, "GetSecretValue", {"SecretId": "app/key"})]:
        assert (reply.status, exception(reply)) == (503, "InternalServiceError")
    for path in ["data/app/key", "metadata/app/key", "metadata/?list=true"]:
        reply = vault(own, f"secret/{path}")
        assert (reply.status, reply.json()) == (503, {"errors": ["Vault is sealed"]})
    assert vault(own, "sys/seal-status").json()["sealed"] is True
    assert vault(own, "sys/health").status == 503
    assert vault(own, "sys/health?sealedcode=299").status == 299
    own.ops("unseal")


# What is refused.


def test_the_agents_own_rules_of_http(shared):
    token = {"X_Aws_Parameters_Secrets_Token": "any"}
    assert (shared.get("/ping").status, shared.get("/ping", BOB).body) == (200, b"healthy")
    assert aws_agent(shared, "app/key", **token).status == 200
    forwarded = aws_agent(shared, "app/key", X_Forwarded_For="10.0.0.1", **token)
    assert (forwarded.status, forwarded.body) == (400, b"Forwarded")
    for path, why in [
        ("/secretsmanager/get", b"missing parameter secretId"),
        ("/secretsmanager/get?secretId=app/key&x=1", b"unknown parameter: x"),
        ("/secretsmanager/get?secretId=app/key&refreshNow=perhaps", b"invalid refreshNow value"),
    ]:
        reply = shared.get(path)
        assert (reply.status, reply.body) == (400, why)
    assert shared.get("/secretsmanager/get?secretId=app/key", method="POST", body=b"").status == 405
    assert aws_agent(shared, "app/key", more="&refreshNow=true").status == 200, "a store has nothing to ask again"


def test_requests_that_aws_would_not_take(shared):
    signed = {"Authorization": "AWS4-HMAC-SHA256 Credential=a/20260101/r/secretsmanager/aws4_request, Signature=no"}
    assert aws(shared, "GetSecretValue", {"SecretId": "app/key"}, **signed).status == 200
    for body in [b"{", b"[]", b'{"SecretId":5}', b"\xff"]:
        assert exception(aws(shared, "GetSecretValue", body)) == "SerializationException"
    for request in [{}, {"SecretId": "a b"}, {"SecretId": "../app/key"}, {"SecretId": "rds!x"}]:
        assert exception(aws(shared, "GetSecretValue", request)) == "InvalidParameterException"
    for operation in ["CreateSecret", "PutSecretValue", "getsecretvalue", ""]:
        assert exception(aws(shared, operation, {"SecretId": "app/key"})) == "UnknownOperationException"
    assert exception(shared.get("/", method="POST", body=b"{}")) == "UnknownOperationException"
    assert aws(shared, "GetSecretValue", b'{"SecretId":"' + b"a" * 70000 + b'"}').status == 413
    chunked = {"Transfer-Encoding": "chunked", "X-Amz-Target": "secretsmanager.GetSecretValue"}
    connection = shared.connect()
    connection.request("POST", "/", iter([b'{"Secret', b'Id":"app/key"}']), chunked, encode_chunked=True)
    assert json.loads(connection.getresponse().read())["SecretString"] == CANARY


def test_requests_that_vault_would_not_take(shared):
    for method in ["PUT", "POST", "PATCH", "DELETE"]:
        for path in ["secret/data/app/key", "secret/metadata/app/key", "secret/destroy/app/key"]:
            reply = vault(shared, path, method=method, body=b'{"data":{"a":"b"}}')
            assert (reply.status, reply.json()["errors"]) == (405, ["1 error occurred:\n\t* unsupported operation\n\n"])
    assert vault(shared, "secret/data/app/key").json()["data"]["data"] == {"value": CANARY}
    for path in ["secret/data/../app/key", "secret/data/%2e%2e/app/key", "secret/data/app//key", "secret/data/a%00",
                 "secret/data/app/key?version=x"]:
        assert vault(shared, path).status == 400, path
    assert vault(shared, "nomount/data/app/key", X_Vault_Request="true").status == 404
    assert vault(shared, "nomount/data/app/key").json()["code"] == "bad_request", "no client of Vault's"
    assert vault(shared, "sys/raw/x").status == 404
    assert vault(shared, "auth/token/create", method="POST", body=b"{}").status == 405
    headers = {"X_Vault_Token": "any", "X_Vault_Wrap_TTL": "60s", "X_Vault_Namespace": "team/", "X_Vault_Request": "true"}
    assert vault(shared, "secret/data/app/key", **headers).status == 200


def test_headers_and_tokens_make_nobody_someone_else(shared):
    headers = {"X_Vault_Token": "root", "X_Aws_Parameters_Secrets_Token": "root", "Authorization": "AWS4-HMAC-SHA256 x"}
    assert vault(shared, "secret/data/app/key", BOB, **headers).status == 403
    assert exception(aws_agent(shared, "app/key", BOB, **headers)) == "AccessDeniedException"
    assert vault(shared, "auth/token/lookup-self", BOB, **headers).status == 403
    about = vault(shared, "auth/token/lookup-self", ALICE, **headers).json()["data"]
    assert (about["display_name"], about["policies"]) == ("alice", ["reader"])
    assert "root" not in str(about)


# Names.


def test_a_value_that_was_answered_before_is_told_as_it_stands_now(own):
    """Its answer is kept: a rotation and another prefix change what is around the value."""
    target = {"X_Amz_Target": "secretsmanager.GetSecretValue"}
    ask = lambda body: own.get("/", method="POST", body=json.dumps(body).encode(), **target).json()
    for _ in range(2):
        first = ask({"SecretId": "app/key"})
        assert (first["SecretString"], first["VersionStages"]) == ("CANARY-first", ["AWSCURRENT"])
        assert isinstance(first["CreatedDate"], (int, float))
        assert isinstance(aws_agent(own, "app/key").json()["CreatedDate"], str)
    own.put("app/key", CANARY)
    old = ask({"SecretId": "app/key", "VersionStage": "AWSPREVIOUS"})
    assert old == {**first, "VersionStages": ["AWSPREVIOUS"]}
    assert ask({"SecretId": "app/key"})["SecretString"] == CANARY
    own.write_policy(DROPIN + POLICY)
    own.ops("reload")
    short = ask({"SecretId": "key"})
    assert (short["Name"], short["SecretString"]) == ("key", CANARY) and short["ARN"].endswith(":secret:key-KeyHat")


DROPIN = '\n[dropin]\naws_prefix = "app/"\nvault_mounts = { kv = "app/", "team/kv" = "quiet/" }\n'


def test_names_are_mapped_as_configured_and_a_reload_maps_them_anew(own):
    own.write_policy(POLICY + DROPIN)
    own.ops("reload")
    got = aws_agent(own, "key").json()
    assert (got["Name"], got["SecretString"]) == ("key", "CANARY-first")
    names = [entry["Name"] for entry in aws(own, "ListSecrets", {}).json()["SecretList"]]
    assert names == ["bin", "db", "empty", "key", "odd"]
    assert vault(own, "kv/data/key").json()["data"]["data"] == {"value": "CANARY-first"}
    assert vault(own, "team/kv/data/a").json()["data"]["data"] == {"value": "CANARY-quiet"}
    assert vault(own, "secret/data/app/key", X_Vault_Request="true").status == 404
    assert vault(own, "kv/metadata/", method="LIST").json()["data"]["keys"] == ["bin", "db", "empty", "key", "odd"]
    assert vault(own, "sys/internal/ui/mounts/team/kv/a").json()["data"]["path"] == "team/kv/"
    assert sorted(vault(own, "sys/internal/ui/mounts").json()["data"]["secret"]) == ["kv/", "team/kv/"]
    assert exception(aws_agent(own, "../quiet/a")) == "InvalidParameterException"


@pytest.mark.parametrize("mount", [
    "secrets", "batch", "watch", "rotate", "whoami", "health", "use", "sys", "auth", "secrets/kv",
])
def test_a_mount_named_like_a_native_path_is_an_error_with_its_line(own, mount):
    text = f'\n[dropin.vault_mounts]\n"{mount}" = ""\n'
    own.write_policy(POLICY + text)
    refused = own.verb("check", "--config", own.config, check=False)
    line = own.config.read_text().splitlines().index(f'"{mount}" = ""') + 1
    assert refused.returncode == 78 and f"{own.config}:{line}: mount " in refused.stderr + refused.stdout
