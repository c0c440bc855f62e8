"""`audit query --format ecs|ocsf`: every kind of record, checked against the schemas as their makers publish them."""

import json
import os
import subprocess

import pytest

from audit_log import POLICY, nasty_read
from harness import ALICE, BOB, CANARY, ROOT, Agent, eventually
from load import raw_records

# Where tests/run installs what tests/node asks for.
MODULES = ROOT / "target" / "node" / "node_modules"
SECRETS = {"app/key": CANARY, "app/trap": CANARY}
TRAP = '\n[[honeytoken]]\nsecret = "app/trap"\n'


@pytest.fixture(scope="module")
def agent():
    with Agent(POLICY + Agent.SEES_PROGRAMS + TRAP, secrets=SECRETS) as agent:
        agent.verb("audit", "keygen", "--config", agent.config)
        nasty_read(agent)
        agent.read("app/key", BOB)
        agent.get("/v1/secrets", ALICE)
        agent.read("app/trap", ALICE)
        agent.put("app/key", "CANARY-second")
        eventually(lambda: agent.records(event="secret.rotated") and agent.records(event="audit.checkpoint"))
        agent.ops("seal")
        agent.ops("unseal")
        agent.stop()
        yield agent


def exported(agent, name):
    """Each record and its event, one for one."""
    out = agent.verb("audit", "query", "--dir", agent.audit_dir, "--format", name).stdout
    events, records = [json.loads(line) for line in out.splitlines()], raw_records(agent.audit_dir)
    assert len(events) == len(records) and "CANARY" not in out
    kinds = {r["event"] for r in records}
    assert {"secret.read", "secret.rotated", "alert.honeytoken", "agent.started", "admin.sealed", "audit.checkpoint"} <= kinds
    tail = agent.verb("audit", "tail", "-n", "1", "--dir", agent.audit_dir, "--format", name).stdout
    assert json.loads(tail) == events[-1]
    return list(zip(records, events))


def fields(event, prefix=""):
    for key, value in event.items():
        if isinstance(value, dict):
            yield from fields(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


JS = "console.log(JSON.stringify(require('@elastic/ecs').EcsFlat, (key, v) => key === 'description' ? undefined : v))"
TYPES = {"keyword": str, "match_only_text": str, "date": str, "long": int, "wildcard": str}


def test_ecs_has_only_fields_and_values_of_elastics_own_list(agent):
    if not (MODULES / "@elastic" / "ecs").exists():
        pytest.skip("ECS is NOT checked: tests/run installs @elastic/ecs")
    said = subprocess.run(["node", "-e", JS], env={**os.environ, "NODE_PATH": str(MODULES)}, capture_output=True, check=True)
    schema = json.loads(said.stdout)
    for record, event in exported(agent, "ecs"):
        kinds = event["event"]["type"]
        for name, value in fields(event):
            if name.startswith("keyhatch."):
                continue
            field, values = schema[name], value if isinstance(value, list) else [value]
            assert isinstance(value, list) == ("array" in field.get("normalize", [])), name
            assert all(type(one) is TYPES[field["type"]] for one in values), (name, value)
            allowed = {one["name"]: one for one in field.get("allowed_values", [])}
            assert not allowed or set(values) <= set(allowed), (name, value)
            if name == "event.category":
                assert set(kinds) <= set(allowed[values[0]]["expected_event_types"]), (record["event"], kinds)
        assert event["@timestamp"] == record["time"] and event["event"]["sequence"] == record["seq"]
        assert event["event"]["outcome"] == {"allow": "success", "deny": "failure"}.get(record["decision"], "unknown")
        assert event["event"]["kind"] == ("alert" if record["event"].startswith("alert.") else "event")
        if record["peer"]:
            assert event["user"]["id"] == str(record["peer"]["uid"])
            assert event["process"]["executable"] == record["peer"]["exe"]
        assert event["keyhatch"].get("secret") == record["secret"]


def unknown(model, value, path=""):
    """Attributes that the schema's class does not have; `unmapped` may hold anything."""
    for name, inner in value.items():
        known = type(model).model_fields
        if name not in known:
            yield f"{path}{name}"
            continue
        parsed = getattr(model, name)
        for one, raw in zip(parsed, inner) if isinstance(inner, list) else [(parsed, inner)]:
            if isinstance(raw, dict) and name != "unmapped":
                yield from unknown(one, raw, f"{path}{name}.")


def test_ocsf_validates_by_the_schemas_classes_and_has_no_attribute_of_its_own(agent):
    models = pytest.importorskip("ocsf_emitter._models", reason="OCSF is NOT checked: tests/run installs ocsf-emitter")
    classes = {6003: models.ApiActivity, 6002: models.ApplicationLifecycle, 2004: models.DetectionFinding}
    for record, event in exported(agent, "ocsf"):
        model = classes[event["class_uid"]].model_validate(event)
        assert not list(unknown(model, event)), event
        assert event["type_uid"] == event["class_uid"] * 100 + event["activity_id"]
        assert event["metadata"]["sequence"] == record["seq"] and event["metadata"]["uid"] == record["hash"]
        assert (event["class_uid"] == 2004) == record["event"].startswith("alert.")
        if event["class_uid"] == 6003:
            assert event.get("status_id") == {"allow": 1, "deny": 2}.get(record["decision"])
            assert [one["name"] for one in event.get("resources", [])] == [record["secret"]] * bool(record["secret"])
            if record["peer"]:
                assert event["actor"]["process"]["pid"] == record["peer"]["pid"]
    with pytest.raises(ValueError):
        classes[6003].model_validate({**event, "class_uid": 6003, "time": "now"})
