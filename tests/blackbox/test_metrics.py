"""Metrics: valid OpenMetrics on a TCP address or a Unix socket, counts that move, and nothing that names anybody."""

import http.client
import os
import re
import socket
import subprocess

import pytest

from harness import ALICE, BOB, CANARY, KEYHATCHD, Agent, UnixHTTP, as_user, eventually

KIND = "application/openmetrics-text; version=1.0.0; charset=utf-8"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def tcp():
    with Agent(agent=f'metrics = "127.0.0.1:{free_port()}"') as agent:
        yield agent


def ask(agent, method="GET", path="/metrics", body=None):
    """One request to the metrics address."""
    where = re.search(r'metrics = "(.*)"', agent.head)[1]
    if where.startswith("/"):
        return UnixHTTP(where).ask(method, path, body=body)
    connection = http.client.HTTPConnection(where, timeout=10)
    connection.request(method, path, body)
    reply = connection.getresponse()
    reply.body = reply.read()
    return reply


def scrape(agent):
    reply = ask(agent)
    assert reply.status == 200
    return parse(reply.body.decode())


def parse(text):
    """OpenMetrics 1.0 as far as counters and gauges go, strictly: {sample with labels: value}."""
    samples, kinds, current = {}, {}, None
    lines = text.split("\n")
    assert lines[-2:] == ["# EOF", ""] and "" not in lines[:-1]
    for line in lines[:-2]:
        if declared := re.fullmatch(r"# (TYPE|HELP) ([a-z_:][a-z0-9_:]*) (.+)", line):
            what, name, rest = declared.groups()
            if what == "TYPE":
                assert name not in kinds and rest in ("counter", "gauge"), line
                kinds[name], current = rest, name
            else:
                assert name == current and not any(sample.startswith(name + "{") for sample in samples), line
            continue
        sample = re.fullmatch(r'([a-z_:][a-z0-9_:]*)(\{[a-z_]+="[^"\\\n]*"(?:,[a-z_]+="[^"\\\n]*")*\})? (\d+(?:\.\d+)?)', line)
        assert sample, line
        name, labels, value = sample.groups()
        assert name == current + ("_total" if kinds[current] == "counter" else ""), line
        assert name + (labels or "") not in samples, line
        samples[name + (labels or "")] = float(value)
    assert kinds
    return samples


def test_it_is_valid_openmetrics_and_says_so(tcp):
    reply = ask(tcp)
    assert reply.getheader("content-type") == KIND and reply.getheader("cache-control") == "no-store"
    samples = parse(reply.body.decode())
    assert samples["keyhatch_ready"] == 1 and samples["keyhatch_sealed"] == 0
    assert samples['keyhatch_source_healthy{source="local"}'] == 1


def test_a_parser_of_the_field_takes_it(tcp):
    parser = pytest.importorskip("prometheus_client.openmetrics.parser", reason="prometheus_client is not installed")
    families = {family.name: family for family in parser.text_string_to_metric_families(ask(tcp).body.decode())}
    assert families["keyhatch_decisions"].type == "counter"
    assert all(family.documentation and family.samples for family in families.values())
    assert all(family.type != "unknown" for family in families.values())


def test_the_admin_socket_serves_the_same(tcp):
    reply = UnixHTTP(tcp.admin_socket).get("/v1/metrics")
    assert reply.status == 200 and reply.headers["content-type"] == KIND
    assert parse(reply.body.decode()).keys() == scrape(tcp).keys()


def test_counts_move():
    with Agent(agent=f'metrics = "127.0.0.1:{free_port()}"') as agent:
        before = scrape(agent)
        for _ in range(3):
            agent.read("app/key", ALICE)
        for _ in range(2):
            agent.read("app/key", BOB)
        agent.get("/v1/secrets/a//b", ALICE)
        kept = agent.connect()
        kept.get("/v1/health")
        after = scrape(agent)
        moved = {name: after[name] - before[name] for name in after if name.endswith("_total") or "{decision" in name}
        assert moved['keyhatch_decisions_total{decision="allow"}'] == 3
        assert moved['keyhatch_decisions_total{decision="deny"}'] == 2
        assert moved["keyhatch_requests_bad_total"] == 1
        assert moved["keyhatch_audit_records_total"] >= 5
        assert after["keyhatch_connections"] >= 1
        assert after["keyhatch_secret_memory_used_bytes"] > 0
        kept.close()
        agent.put("app/second", "CANARY-2")
        eventually(lambda: scrape(agent)['keyhatch_source_secrets{source="local"}'] == 2)
        agent.ops("seal")
        sealed = scrape(agent)
        assert (sealed["keyhatch_sealed"], sealed["keyhatch_ready"], sealed["keyhatch_secret_memory_used_bytes"]) == (1, 0, 0)
        agent.ops("unseal")
        assert scrape(agent)["keyhatch_ready"] == 1
        (agent.store_dir / "store.khs").write_bytes(b"not a store")
        eventually(lambda: scrape(agent)['keyhatch_source_healthy{source="local"}'] == 0)


def test_no_secret_no_peer_and_no_bot_is_named(tcp):
    tcp.read("app/key", ALICE)
    tcp.read("app/guess-me", BOB)
    text = ask(tcp).body.decode()
    for word in ["app/", "guess-me", CANARY, "alice", "reader", str(ALICE), str(BOB), "python", str(tcp.dir)]:
        assert word not in text, word


@pytest.mark.parametrize("method, path", [
    ("POST", "/metrics"), ("PUT", "/metrics"), ("DELETE", "/metrics"), ("GET", "/"), ("GET", "/metrics/"),
    ("GET", "/v1/status"), ("POST", "/v1/seal"), ("POST", "/v1/reload"), ("GET", "/v1/secrets/app/key"), ("GET", "/v1/health"),
])
def test_it_is_read_only_and_nothing_else_is_there(tcp, method, path):
    reply = ask(tcp, method, path)
    assert reply.status in (404, 405) and reply.body == b""
    assert tcp.status()["sealed"] is False


def test_it_is_off_unless_asked_for():
    with Agent() as agent:
        listening = subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True).stdout
        assert f"pid={agent.pid}," not in listening


def test_a_unix_socket_that_any_user_may_read_and_that_goes_with_the_daemon():
    with Agent(start=False) as agent:
        path = agent.dir / "run" / "metrics.sock"
        agent.head = agent.head.replace("state_dir", f'metrics = "{path}"\nstate_dir', 1)
        agent.write_policy(Agent.POLICY)
        agent.start()
        assert scrape(agent)["keyhatch_ready"] == 1
        assert as_user(BOB, lambda: UnixHTTP(path).get("/metrics").status) == 200
        agent.stop(9)
        assert path.is_socket(), "a killed daemon leaves it"
        agent.start()
        assert scrape(agent)["keyhatch_ready"] == 1, "a dead socket is replaced"
        agent.stop()
        assert not path.exists()


def test_neither_a_file_nor_a_live_socket_at_its_path_is_taken_away():
    with Agent(start=False) as agent:
        path = agent.dir / "run" / "metrics.sock"
        agent.head = agent.head.replace("state_dir", f'metrics = "{path}"\nstate_dir', 1)
        agent.write_policy(Agent.POLICY)
        path.write_text("mine")
        assert refused(agent, path) and path.read_text() == "mine"
        path.unlink()
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(path))
            other.listen()
            assert refused(agent, path)
            assert path.is_socket()
            socket.socket(socket.AF_UNIX).connect(str(path))


def refused(agent, path):
    done = subprocess.run([KEYHATCHD, "run", "--config", str(agent.config)], capture_output=True, text=True, timeout=20)
    assert done.returncode == 1, done
    return str(path) in done.stderr


def test_an_address_in_use_is_named():
    with socket.socket() as taken, Agent(start=False) as agent:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        agent.head = agent.head.replace("state_dir", f'metrics = "{address}"\nstate_dir', 1)
        agent.write_policy(Agent.POLICY)
        assert refused(agent, address)


def test_a_slow_or_broken_reader_harms_nobody(tcp):
    host, port = re.search(r'metrics = "(.*):(\d+)"', tcp.head).groups()
    with socket.create_connection((host, int(port))) as slow, socket.create_connection((host, int(port))) as odd:
        slow.sendall(b"GET /metr")
        odd.sendall(os.urandom(1000) + b"\r\n\r\n")
        assert scrape(tcp)["keyhatch_ready"] == 1
        assert tcp.read("app/key", ALICE).status == 200
