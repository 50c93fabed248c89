"""docker-compose.yml against the specification's own schema, and against what is asked of it here."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any

import jsonschema_rs
from described import ROOT, compose

SCHEMA = jsonschema_rs.validator_for(json.loads((ROOT / "tests/deploy/schemas/compose-spec.json").read_text()))
WRITES_ITS_CONFIGURATION = {"kafka"}


def faults(declared: Mapping[str, Any]) -> list[str]:
    """Where a file differs from the schema, or breaks a rule of ours."""
    found = [f"{list(error.instance_path)}: {error.message}" for error in SCHEMA.iter_errors(declared)]
    if found:
        return found
    for name, service in declared["services"].items():
        if not service.get("read_only") and name not in WRITES_ITS_CONFIGURATION:
            found.append(f"{name} may write to its image")
        if service.get("cap_drop") != ["ALL"] or "no-new-privileges:true" not in service.get("security_opt", []):
            found.append(f"{name} has more rights than it needs")
        if not service.get("mem_limit") or not service.get("pids_limit"):
            found.append(f"{name} has no limit")
        if "build" not in service and ":" not in service["image"]:
            found.append(f"{name} names no version")
        found += [f"{name} waits for {other}, which has no health check" for other in _unhealthy(declared, service)]
        found += [f"{name}: {port} is open to other machines" for port in service.get("ports", []) if not port.startswith("127.0.0.1:")]
    return found + _unused(declared)


def _unhealthy(declared: Mapping[str, Any], service: Mapping[str, Any]) -> list[str]:
    """Those that a service waits for until they are healthy, and that never say so."""
    waited = [other for other, how in service.get("depends_on", {}).items() if how["condition"] == "service_healthy"]
    return [other for other in waited if "healthcheck" not in declared["services"].get(other, {})]


def _unused(declared: Mapping[str, Any]) -> list[str]:
    services = declared["services"].values()
    mounted = {volume.split(":")[0] for service in services for volume in service.get("volumes", [])}
    named = {volume for volume in mounted if not volume.startswith("./")}
    given = {secret for service in services for secret in service.get("secrets", [])}
    missing = [volume for volume in mounted if volume.startswith("./") and not (ROOT / volume).is_dir()]
    return [
        f"{one} is declared, or used, alone" for one in sorted((named ^ set(declared["volumes"])) | (given ^ set(declared["secrets"])))
    ] + [f"{volume} is not there" for volume in missing]


def test_the_file_is_what_the_specification_allows_and_keeps_our_rules() -> None:
    """
    Schema, rights, limits, versions, health, volumes, secrets.
    """
    assert faults(compose()) == []


def test_a_file_that_breaks_a_rule_is_told() -> None:
    """
    Each check is fed one bad file.
    """

    def broken(**changed: Any) -> list[str]:
        declared = copy.deepcopy(compose())
        declared["services"]["feature"] |= changed
        return faults(declared)

    assert "'memory' was unexpected" in broken(memory="1g")[0]
    assert broken(read_only=False) == ["feature may write to its image"]
    assert broken(cap_drop=[]) == broken(security_opt=[]) == ["feature has more rights than it needs"]
    assert broken(mem_limit=0) == ["feature has no limit"]
    assert broken(ports=["9100:9100"]) == ["feature: 9100:9100 is open to other machines"]
    assert broken(depends_on={"trainers": {"condition": "service_healthy"}}) == ["feature waits for trainers, which has no health check"]
    assert broken(volumes=["runs:/run/driftline"]) == ["runs is declared, or used, alone"]
    assert broken(secrets=["pii"]) == ["pii is declared, or used, alone"]
    assert broken(volumes=["./nowhere:/srv:ro"]) == ["./nowhere is not there"]


def test_servers_are_the_ones_that_the_tests_run_on() -> None:
    """
    The same Kafka as on a machine of one's own; a store that evicts nothing and writes what it knows.
    """
    from driftline.local.broker import KAFKA_VERSION

    services = compose()["services"]
    assert services["kafka"]["image"] == f"apache/kafka:{KAFKA_VERSION}"
    assert services["valkey"]["command"][1:7:2] == ["--appendonly", "--appendfsync", "--save"]
    assert services["valkey"]["command"][services["valkey"]["command"].index("--maxmemory-policy") + 1] == "noeviction"


def test_only_who_trains_has_the_private_key_and_writes_models() -> None:
    """
    Everybody else reads them.
    """
    services = compose()["services"]
    assert [name for name, service in services.items() if "model_private_key" in service.get("secrets", [])] == ["trainer"]
    assert [name for name, service in services.items() if "models:/var/lib/driftline/models" in service.get("volumes", [])] == ["trainer"]
