"""AWS's SDK for JavaScript and node-vault, unmodified, started by `keyhatch bridge`, and beside moto and OpenBao."""

import base64
import json

import pytest

from dropin import SECRETS, VALUES, compared, fill_bao, fill_moto, filled, shape
from npm import beside, through_bridge


@pytest.fixture(scope="module")
def shared():
    with filled() as agent:
        yield agent


@pytest.fixture(scope="module")
def ours(shared):
    with through_bridge(shared) as client:
        yield client


def aws(client, call, **input):
    return client.ask({"op": "aws", "call": call, "input": input})


def vault(client, path, call="read"):
    return client.ask({"op": "vault", "call": call, "path": path})


# AWS's SDK for JavaScript, version 3.


def test_the_javascript_sdk_of_aws_reads_lists_and_throws_its_own_errors(ours):
    got = aws(ours, "GetSecretValue", SecretId="app/db")["output"]
    assert json.loads(got["SecretString"]) == VALUES
    old = aws(ours, "GetSecretValue", SecretId="app/db", VersionStage="AWSPREVIOUS")["output"]
    assert json.loads(old["SecretString"]) == {"old": "CANARY"}
    assert aws(ours, "GetSecretValue", SecretId=old["ARN"], VersionId=old["VersionId"])["output"] == old
    binary = aws(ours, "GetSecretValue", SecretId="app/bin")["output"]["SecretBinary"]
    assert base64.b64decode(binary["bytes"]) == SECRETS["app/bin"]
    pages = ours.ask({"op": "aws_pages", "size": 3, "input": {}})["pages"]
    assert [[secret["Name"] for secret in page] for page in pages] == [["app/bin", "app/db", "app/deep/er"], ["app/text"]]
    many = aws(ours, "BatchGetSecretValue", SecretIdList=["app/db", "app/none", "other/a"])["output"]
    assert [value["SecretString"] for value in many["SecretValues"]] == [SECRETS["app/db"]]
    assert [error["ErrorCode"] for error in many["Errors"]] == ["ResourceNotFoundException", "AccessDeniedException"]
    absent = aws(ours, "GetSecretValue", SecretId="app/none")
    assert (absent["error"], absent["status"]) == ("ResourceNotFoundException", 400)
    assert "SecretsManagerServiceException" in absent["kinds"]
    for denied in [aws(ours, "GetSecretValue", SecretId=name) for name in ["other/a", "other/none"]]:
        assert (denied["name"], denied["status"]) == ("AccessDeniedException", 400)
        assert "SecretsManagerServiceException" in denied["kinds"] and denied["request_id"]


def test_the_javascript_sdk_of_aws_is_answered_as_by_moto(ours, moto):
    fill_moto(moto)
    with beside(moto.dir, AWS_ENDPOINT_URL_SECRETS_MANAGER=moto.address) as theirs:
        for call, ask in [
            ("GetSecretValue", {"SecretId": "app/db"}),
            ("GetSecretValue", {"SecretId": "app/bin"}),
            ("GetSecretValue", {"SecretId": "app/db", "VersionStage": "AWSPREVIOUS"}),
            ("GetSecretValue", {"SecretId": "app/none"}),
            ("DescribeSecret", {"SecretId": "app/db"}),
            ("DescribeSecret", {"SecretId": "app/none"}),
            ("ListSecrets", {}),
            ("BatchGetSecretValue", {"SecretIdList": ["app/db", "app/none"]}),
            ("RotateSecret", {"SecretId": "app/none"}),
        ]:
            mine, real = aws(ours, call, **ask), aws(theirs, call, **ask)
            # Where AWS and moto differ we answer as AWS: moto says 404 of what is not found.
            assert mine.pop("status") == (real.pop("status") if "output" in real else 400), (call, ask)
            if "output" in mine:
                compared(mine["output"], real["output"])
            else:
                assert (mine["error"], mine["kinds"]) == (real["error"], real["kinds"])
                assert mine["kinds"]


# node-vault.


def test_node_vault_reads_lists_and_throws_its_own_errors(ours):
    got = vault(ours, "secret/data/app/db")["output"]["data"]
    assert (got["data"], got["metadata"]["version"]) == (VALUES, 2)
    assert vault(ours, "secret/data/app/db?version=1")["output"]["data"]["data"] == {"old": "CANARY"}
    assert vault(ours, "secret/metadata/app", "list")["output"]["data"]["keys"] == ["bin", "db", "deep/", "text"]
    for path, call, status, body in [
        ("secret/data/app/none", "read", 404, {"errors": []}),
        ("secret/metadata/app/none", "list", 404, {"errors": []}),
        ("secret/data/other/a", "read", 403, {"errors": ["permission denied"]}),
        ("secret/data/other/none", "read", 403, {"errors": ["permission denied"]}),
        ("secret/data/app/db", "delete", 405, {"errors": ["1 error occurred:\n\t* unsupported operation\n\n"]}),
    ]:
        told = vault(ours, path, call)
        assert (told["error"], told["status"], told["body"]) == ("ApiResponseError", status, body)


def test_node_vault_is_answered_as_by_openbao(ours, bao):
    fill_bao(bao)
    more = {"VAULT_ADDR": bao.address, "VAULT_TOKEN": bao.token, "NODE_EXTRA_CA_CERTS": str(bao.authority.file)}
    with beside(bao.dir, **more) as theirs:
        for call, path in [
            ("read", "secret/data/app/db"), ("read", "secret/data/app/db?version=1"), ("read", "secret/data/app/db?version=9"),
            ("read", "secret/data/app/text"), ("read", "secret/data/app/none"), ("read", "secret/metadata/app/db"),
            ("list", "secret/metadata/app"), ("list", "secret/metadata/app/none"), ("read", "sys/seal-status"),
        ]:
            mine, real = vault(ours, path, call), vault(theirs, path, call)
            if call == "list" and "output" in real:
                mine["output"]["data"]["keys"] = real["output"]["data"]["keys"]
            if path == "sys/seal-status":
                # What only an OpenBao says that unseals itself.
                real["output"].pop("recovery_seal_type")
            assert shape(mine) == shape(real), path
            if path.startswith("secret/data/") and "output" in real:
                assert mine["output"]["data"]["data"] == real["output"]["data"]["data"]
            assert mine.get("message") == real.get("message")
