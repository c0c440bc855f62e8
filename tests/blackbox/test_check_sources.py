"""`keyhatchd check` of upstream sources: what is wrong is told with its place, and the daemon refuses the same."""

import os
import subprocess

import pytest

from fetching import source
from harness import ALICE, KEYHATCHD, Agent

TOKEN = "CANARY-token-in-a-file"


@pytest.fixture
def host():
    with Agent(start=False) as agent:
        agent.state.mkdir(mode=0o700)
        for name, text in [("token", TOKEN), ("ca.pem", ""), ("client.pem", ""), ("client.key", ""), ("secret-id", "x")]:
            (agent.dir / name).write_text(text)
            os.chmod(agent.dir / name, 0o600)
        yield agent


def configured(host, **keys):
    """The configuration with one upstream source; a key that is None is left out."""
    good = {
        "kind": "vault", "name": "bao", "prefix": "bao/", "address": "https://127.0.0.1:8200",
        "auth": {"method": "token_file", "path": host.dir / "token"},
    }
    keys = {key: value for key, value in (good | keys).items() if value is not None}
    text = source(keys.pop("kind"), keys.pop("name"), **keys).format()
    host.write_policy(Agent.POLICY + text.replace("DIR", str(host.dir)))


def check(host, *args):
    done = host.verb("check", "--config", host.config, *args, check=False)
    assert done.returncode in (0, 78) and "panicked" not in done.stderr, done.stderr
    return done.returncode, done.stderr.splitlines()


def place(host, key):
    """FILE:LINE of the last line with this key."""
    lines = host.config.read_text().splitlines()
    return f"{host.config}:{max(n for n, line in enumerate(lines, 1) if line.startswith(key))}: "


def approle(**more):
    return {"method": "approle", "role_id": "r", "secret_id": "file:DIR/secret-id"} | more


GOOD = {
    "a token from a file": {},
    "several addresses": {"address": ["https://a.internal:8200", "https://b.internal:8200/"]},
    "an approle": {"auth": approle()},
    "a wrapped one elsewhere": {"auth": approle(mount="machines/bots", wrapped=True)},
    "a JWT": {"auth": {"method": "jwt", "role": "r", "path": "DIR/token"}},
    "a certificate": {"auth": {"method": "cert"}, "client_cert": "DIR/client.pem", "client_key": "file:DIR/client.key"},
    "all there is": {
        "ca_file": "DIR/ca.pem", "namespace": "team/a", "mounts": {"secret": "", "kv2": "other/"},
        "lease": [{"name": "db/ro", "path": "database/creds/ro"}], "prefetch": ["app/**"], "refresh": "30s",
        "timeout": "5s", "max_stale": "1h", "snapshot": False,
    },
    "AWS": {"kind": "aws", "address": None, "auth": None, "region": "eu-west-1", "profile": "p", "ca_file": "DIR/ca.pem",
            "endpoint_url": "http://127.0.0.1:5055"},
    "AWS and nothing else": {"kind": "aws", "address": None, "auth": None},
}


@pytest.mark.parametrize("what", GOOD)
def test_it_is_accepted(host, what):
    configured(host, **GOOD[what])
    assert check(host)[0] == 0, check(host)


WRONG = {
    "no address": ({"address": None}, "[[source]]", "address"),
    "an address without a scheme": ({"address": "vault.internal:8200"}, "address", "https://"),
    "an address with a path": ({"address": "https://vault.internal:8200/v1"}, "address", "https://"),
    "an address with a user": ({"address": "https://u:p@vault.internal"}, "address", "https://"),
    "an empty list of addresses": ({"address": []}, "address", "empty"),
    "no auth": ({"auth": None}, "[[source]]", "auth"),
    "a method that is none": ({"auth": {"method": "aprole"}}, "auth", "did you mean `approle`?"),
    "a token written out": ({"auth": {"method": "token_file", "token": TOKEN}}, "auth", "token"),
    "a token file that is none": ({"auth": {"method": "token_file", "path": "DIR/none"}}, "auth", "DIR/none"),
    "a token file that is not absolute": ({"auth": {"method": "token_file", "path": "token"}}, "auth", "absolute"),
    "an approle without a role id": ({"auth": {"method": "approle", "secret_id": "file:DIR/secret-id"}}, "auth", "role_id"),
    "a secret id written out": ({"auth": approle(secret_id=TOKEN)}, "auth", "never written out"),
    "a secret id that is not there": ({"auth": approle(secret_id="file:DIR/none")}, "auth", "DIR/none"),
    "a key of another method": ({"auth": approle(path="DIR/token")}, "auth", "path"),
    "a JWT without a role": ({"auth": {"method": "jwt", "path": "DIR/token"}}, "auth", "role"),
    "a certificate that is not named": ({"auth": {"method": "cert"}}, "auth", "client_cert"),
    "a certificate without its key": ({"client_cert": "DIR/client.pem"}, "client_cert", "client_key"),
    "a key without its certificate": ({"client_key": "file:DIR/client.key"}, "client_key", "client_cert"),
    "a key written out": ({"client_cert": "DIR/client.pem", "client_key": TOKEN}, "client_key", "never written out"),
    "a typo": ({"adress": "https://x"}, "adress", "did you mean `address`?"),
    "a CA file that is not there": ({"ca_file": "DIR/none"}, "ca_file", "DIR/none"),
    "two mounts at one place": ({"mounts": {"a": "x/", "b": "x/"}}, "mounts", "x/"),
    "a mount's place without a slash": ({"mounts": {"secret": "x"}}, "mounts", "slash"),
    "a mount that is none": ({"mounts": {"a//b": ""}}, "mounts", "a//b"),
    "a lease without a path": ({"lease": [{"name": "db/ro"}]}, "lease", "path"),
    "a lease twice": ({"lease": [{"name": "a", "path": "p"}, {"name": "a", "path": "q"}]}, "lease", "twice"),
    "a lease with a name that is none": ({"lease": [{"name": "a//b", "path": "p"}]}, "lease", "a//b"),
    "a pattern that is none": ({"prefetch": ["a/***"]}, "prefetch", "a/***"),
    "no time": ({"refresh": "30 parsecs"}, "refresh", "30 parsecs"),
    "a time too short": ({"refresh": "10ms"}, "refresh", "second"),
    "a snapshot without a key": ({"snapshot": True}, "snapshot", "snapshot_key"),
    "a snapshot that is no yes or no": ({"snapshot": "yes"}, "snapshot", "true"),
    "a prefix without a slash": ({"prefix": "bao"}, "prefix", "slash"),
    "the prefix of another source": ({"prefix": None}, "[[source]]", "prefix"),
    "the name of another source": ({"name": "local"}, "name", "local"),
    "a key of a store": ({"key": "file:DIR/store.key"}, "key", "key"),
    "AWS with a key of vault's": ({"kind": "aws", "auth": None}, "address", "address"),
    "AWS with an endpoint that is none": (
        {"kind": "aws", "address": None, "auth": None, "endpoint_url": "aws"}, "endpoint_url", "https://"),
}


@pytest.mark.parametrize("what", WRONG)
def test_it_is_refused_with_file_and_line(host, what):
    keys, line, words = WRONG[what]
    configured(host, **keys)
    code, lines = check(host)
    words = words.replace("DIR", str(host.dir))
    assert code == 78 and any(said.startswith(place(host, line)) and words in said for said in lines), lines
    assert TOKEN not in "".join(lines)
    done = subprocess.run([KEYHATCHD, "run", "--config", host.config], capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr.splitlines()) == (78, lines)


@pytest.mark.parametrize("name", ["token", "ca.pem", "client.pem", "client.key", "secret-id"])
def test_a_file_that_others_may_change_or_read_is_found(host, name):
    keys = {"ca_file": "DIR/ca.pem", "client_cert": "DIR/client.pem", "client_key": "file:DIR/client.key"}
    configured(host, **keys | ({"auth": approle()} if name == "secret-id" else {}))
    assert check(host)[0] == 0, check(host)
    os.chmod(host.dir / name, 0o666)
    code, lines = check(host)
    assert code == 78 and any(str(host.dir / name) in said and "chmod" in said for said in lines), lines
    assert check(host, "--content-only")[0] == 0
    os.chmod(host.dir / name, 0o644)
    assert (check(host)[0] == 0) == (name in ("ca.pem", "client.pem")), "who holds a secret is read by nobody else"
    os.chmod(host.dir / name, 0o600)
    os.chown(host.dir / name, ALICE, ALICE)
    assert check(host)[0] == 78


def test_a_loose_snapshot_key_is_found(host):
    key = host.dir / "snapshot.key"
    key.write_bytes(os.urandom(32))
    os.chmod(key, 0o600)
    host.head = host.head.replace("[agent]\n", f'[agent]\nsnapshot_key = "file:{key}"\n')
    configured(host, snapshot=True)
    assert check(host)[0] == 0, check(host)
    os.chmod(key, 0o644)
    assert any(str(key) in line for line in check(host)[1])
    os.chmod(key, 0o600)
    key.write_bytes(os.urandom(31))
    done = subprocess.run([KEYHATCHD, "run", "--config", host.config], capture_output=True, text=True, timeout=20)
    assert done.returncode == 78 and "32" in done.stderr
