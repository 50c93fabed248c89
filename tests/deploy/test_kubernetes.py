"""The manifests of k8s/ against Kubernetes' own schema, and against what is asked of them here."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

import jsonschema_rs
import pytest
import yaml
from described import IMAGE, ROOT, settings_of, templates
from kustomized import built, merged

from driftline.cli import SERVICES
from driftline.operate.rebuild import STATEFUL
from driftline.stream.operators import WorkerSettings

FOLDERS = ("base", "overlays/laptop", "overlays/production", "jobs/topics", "jobs/rebuild")
SCHEMA = json.loads((ROOT / "tests/deploy/schemas/kubernetes-1.34.json").read_text())["$defs"]
KINDS = {
    ("/".join(filter(None, (kind["group"], kind["version"]))), kind["kind"]): name
    for name, schema in SCHEMA.items()
    for kind in schema.get("x-kubernetes-group-version-kind", [])
}
PORTS = {"kafka": 9092, "redis": 6379, "registry": 8081}
ALONE = {"intake", "drift", "trainer"}
Objects = Sequence[Mapping[str, Any]]


def misfits(one: Mapping[str, Any]) -> list[str]:
    """Where an object differs from the schema of its kind."""
    name = KINDS.get((one["apiVersion"], one["kind"]))
    if name is None:
        return [f"{one['apiVersion']} {one['kind']} is not known"]
    validator = jsonschema_rs.validator_for({"$ref": f"#/$defs/{name}", "$defs": SCHEMA})
    return [f"{list(error.instance_path)}: {error.message}" for error in validator.iter_errors(one)]


def unrestricted(pod: Mapping[str, Any]) -> list[str]:
    """What the restricted profile forbids, and what we ask beyond it, of a pod's spec."""
    found = []
    context = pod.get("securityContext", {})
    if context.get("runAsNonRoot") is not True or context.get("seccompProfile") != {"type": "RuntimeDefault"}:
        found.append("runs as it likes")
    if pod.get("automountServiceAccountToken") is not False:
        found.append("has a token of the cluster")
    for container in pod["containers"]:
        own = container.get("securityContext", {})
        if own.get("allowPrivilegeEscalation") is not False or own.get("capabilities") != {"drop": ["ALL"]}:
            found.append("has more rights than it needs")
        if own.get("readOnlyRootFilesystem") is not True and not container["image"].startswith("apache/kafka:"):
            found.append("may write to its image")
        if "memory" not in container["resources"]["limits"] or set(container["resources"]["requests"]) != {"cpu", "memory"}:
            found.append("has no limit")
        if ":" not in container["image"].rsplit("/", 1)[-1]:
            found.append("names no version")
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        mounts = {mount["name"] for mount in container.get("volumeMounts", [])}
        if volumes - mounts:
            found.append(f"{', '.join(sorted(volumes - mounts))} is mounted nowhere")
    return found


def shares(one: Mapping[str, Any]) -> list[str]:
    """Whether a workload's replicas share its partitions as the code does: by number and count, or not at all."""
    name, replicas = one["metadata"]["name"], one["spec"].get("replicas")
    if name not in SERVICES:
        return []
    told = {variable["name"]: variable for variable in one["spec"]["template"]["spec"]["containers"][0].get("env", [])}
    if name in ALONE and (replicas != 1 or one["spec"]["strategy"]["type"] != "Recreate"):
        return [f"{name} runs more than once"]
    owns = issubclass(settings_of(name), WorkerSettings) and name not in ALONE
    if not owns:
        return [f"{name} owns no partitions"] if "DRIFTLINE_REPLICA" in told else []
    number = told.get("DRIFTLINE_REPLICA", {}).get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
    if one["kind"] != "StatefulSet" or number != "metadata.labels['apps.kubernetes.io/pod-index']":
        return [f"{name} does not know which partitions are its own"]
    count = told.get("DRIFTLINE_REPLICAS", {}).get("value")
    return [] if count == str(replicas) else [f"{name} has {replicas} replicas and is told of {count}"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_object_is_what_kubernetes_allows(folder: str) -> None:
    """
    By the strict schema: a misspelt field is an error.
    """
    objects = built(ROOT / "k8s" / folder)
    assert objects
    assert [f"{one['kind']} {one['metadata']['name']}: {words}" for one in objects for words in misfits(one)] == []


@pytest.mark.parametrize("folder", [folder for folder in FOLDERS if folder != "base"])
def test_every_pod_is_restricted_and_every_service_shares_its_partitions_rightly(folder: str) -> None:
    """
    No root, no rights, no token, nothing written to the image; limits; replicas as the code shares partitions.
    """
    pods = templates(built(ROOT / "k8s" / folder))
    assert pods
    assert [f"{one['metadata']['name']}: {words}" for one, pod in pods for words in unrestricted(pod["spec"]) + shares(one)] == []


def workload(name: str, folder: str = "overlays/production") -> dict[str, Any]:
    (found,) = (one for one, _ in templates(built(ROOT / "k8s" / folder)) if one["metadata"]["name"] == name)
    return copy.deepcopy(found)


def test_a_manifest_that_breaks_a_rule_is_told() -> None:
    """
    Each check is fed one bad manifest.
    """
    assert misfits(workload("feature") | {"kind": "DaemonSet"}) == ["apps/v1 DaemonSet is not known"]
    assert "replica" in misfits(merged(workload("feature"), {"spec": {"replica": 3}}))[0]
    pod = workload("feature")["spec"]["template"]["spec"]
    container = {"containers": [{"name": "driftline", "securityContext": {"readOnlyRootFilesystem": False}}]}
    assert unrestricted(merged(pod, container)) == ["may write to its image"]
    assert unrestricted(merged(pod, {"securityContext": {"runAsNonRoot": False}})) == ["runs as it likes"]
    assert unrestricted(merged(pod, {"automountServiceAccountToken": None})) == ["has a token of the cluster"]
    assert unrestricted(merged(pod, {"containers": [{"name": "driftline", "image": "driftline-serve"}]})) == ["names no version"]
    assert unrestricted(merged(pod, {"containers": [{"name": "driftline", "resources": {"limits": {"memory": None}}}]})) == ["has no limit"]
    assert unrestricted(merged(pod, {"volumes": [{"name": "cache", "emptyDir": {}}]})) == ["cache is mounted nowhere"]
    assert shares(merged(workload("feature"), {"spec": {"replicas": 4}})) == ["feature has 4 replicas and is told of 3"]
    assert shares(workload("feature") | {"kind": "Deployment"}) == ["feature does not know which partitions are its own"]
    assert shares(merged(workload("intake"), {"spec": {"replicas": 2}})) == ["intake runs more than once"]


@pytest.mark.parametrize("name", SERVICES)
def test_probes_and_volumes_are_those_of_the_process(name: str) -> None:
    """
    Startup and liveness ask whether it answers, readiness whether it works; on the port that the image sets.
    """
    pod = workload(name)["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    asked = {probe: container[f"{probe}Probe"]["httpGet"] for probe in ("startup", "liveness", "readiness")}
    assert asked == {probe: {"path": path, "port": "ops"} for probe, path in zip(asked, ("/healthz", "/healthz", "/readyz"), strict=True)}
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    told = {variable["name"]: variable.get("value") for variable in container.get("env", [])}
    assert ports.pop("ops") == int(IMAGE.environment["DRIFTLINE_OPS_PORT"])
    assert ports == ({"http": int(told["DRIFTLINE_HTTP_PORT"] or 0)} if name == "gateway" else {})
    assert {volume["name"] for volume in pod["volumes"]} == {mount["name"] for mount in container["volumeMounts"]}
    writers = [mount for mount in container["volumeMounts"] if mount["name"] == "models" and not mount.get("readOnly")]
    assert bool(writers) == (name == "trainer")


def needs(name: str) -> set[str]:
    """The servers that a service's code connects to: who keeps state has a ledger in Redis, the gateway reads rows there."""
    kind = settings_of(name)
    own = "redis" in kind.__struct_fields__ and not issubclass(kind, WorkerSettings)
    return {"kafka", "registry"} | ({"redis"} if name in STATEFUL or own else set())


def test_the_network_lets_each_reach_what_its_code_needs_and_nothing_else() -> None:
    """
    Nothing by default; servers by label, on their ports; in, only the scrape, and the gateway's door.
    """
    objects = built(ROOT / "k8s/base")
    policies = {one["metadata"]["name"]: one["spec"] for one in objects if one["kind"] == "NetworkPolicy"}
    deny = policies.pop("driftline-deny")
    assert (deny["podSelector"]["matchLabels"], deny["policyTypes"], "ingress" in deny) == (
        {"app.kubernetes.io/part-of": "driftline"},
        ["Ingress", "Egress"],
        False,
    )
    for server, port in PORTS.items():
        spec = policies.pop(f"driftline-{server}")
        assert spec["podSelector"]["matchLabels"] == {f"driftline/{server}": "needed"}
        assert spec["policyTypes"] == ["Egress"]
        assert [one["ports"] for one in spec["egress"]] == [[{"protocol": "TCP", "port": port}]]
    incoming = {name: [port["port"] for rule in spec["ingress"] for port in rule["ports"]] for name, spec in policies.items()}
    assert incoming == {"driftline-scrape": [9100], "driftline-gateway": [8080]}
    for one, pod in templates(objects):
        labels = pod["metadata"]["labels"]
        assert {server for server in PORTS if labels.get(f"driftline/{server}")} == needs(one["metadata"]["name"])
        assert labels["app.kubernetes.io/part-of"] == "driftline"


def test_who_may_be_interrupted_has_a_budget_and_who_is_alone_has_none() -> None:
    """
    A budget over a single pod would only hold up whoever drains its node.
    """
    objects = built(ROOT / "k8s/overlays/production")
    budgets = {one["metadata"]["name"]: one["spec"] for one in objects if one["kind"] == "PodDisruptionBudget"}
    assert set(budgets) == set(SERVICES) - ALONE
    for name, spec in budgets.items():
        assert spec == {"maxUnavailable": 1, "selector": {"matchLabels": {"app.kubernetes.io/name": name}}}


def ordered(value: Any) -> Any:
    """The same whatever the order of named things is."""
    if isinstance(value, dict):
        return {key: ordered(value[key]) for key in sorted(value)}
    return sorted((ordered(one) for one in value), key=str) if isinstance(value, list) else value


# kubectl is a program of its own, of 60 MB and of no package registry that `make test` uses. Where it is missing, `built` alone knows what
# the folders make, and the next test sees to it that they say nothing that `built` does not know.
@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed: a program of no package registry that we use")
@pytest.mark.parametrize("folder", FOLDERS)
def test_what_is_tested_is_what_kustomize_makes(folder: str) -> None:
    """
    The few things that are known here come to the same as the real program's.
    """
    made = subprocess.run(["kubectl", "kustomize", str(ROOT / "k8s" / folder)], check=True, capture_output=True, text=True, timeout=60)
    assert ordered(list(yaml.safe_load_all(made.stdout))) == ordered(built(ROOT / "k8s" / folder))


def test_what_is_not_known_here_is_refused(tmp_path: Any) -> None:
    """
    A file cannot say more than is tested.
    """
    (tmp_path / "kustomization.yaml").write_text("resources: []\nnamePrefix: a\n")
    with pytest.raises(ValueError, match="namePrefix is not known here"):
        built(tmp_path)
