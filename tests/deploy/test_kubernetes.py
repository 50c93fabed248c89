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
from described import IMAGE, ROOT, scheduled, settings_of, templates
from kustomized import built, merged

from driftline.cli import SERVICES
from driftline.contracts.topics import Topics
from driftline.operate.rebuild import STATEFUL
from driftline.pipeline import load_pipeline
from driftline.stream.operators import WorkerSettings

FOLDERS = ("base", "overlays/laptop", "overlays/production", "jobs/topics", "jobs/rebuild")
SCHEMA = json.loads((ROOT / "tests/deploy/schemas/kubernetes-1.34.json").read_text())["$defs"]
SCHEMA["ScaledObject"] = json.loads((ROOT / "tests/deploy/schemas/keda-2.17.json").read_text())
KINDS = {
    ("/".join(filter(None, (kind["group"], kind["version"]))), kind["kind"]): name
    for name, schema in SCHEMA.items()
    for kind in schema.get("x-kubernetes-group-version-kind", [])
} | {("keda.sh/v1alpha1", "ScaledObject"): "ScaledObject"}
PORTS = {"kafka": 9092, "redis": 6379, "registry": 8081}
ALONE = {"intake", "drift", "trainer"}
READS = {"feature": "events", "inference": "features", "labeler": "journal"}  # of those that may run more than once, by kind of topic
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
    """Whether a workload's replicas share its partitions as the code does: by number and count, by a group, or not at all."""
    name, replicas = one["metadata"]["name"], one["spec"].get("replicas")
    if name not in SERVICES:
        return []
    told = {variable["name"]: variable for variable in one["spec"]["template"]["spec"]["containers"][0].get("env", [])}
    if name in ALONE and (replicas != 1 or one["spec"]["strategy"]["type"] != "Recreate"):
        return [f"{name} runs more than once"]
    owns = issubclass(settings_of(name), WorkerSettings) and name not in ALONE
    if not owns:
        return [f"{name} owns no partitions"] if {"DRIFTLINE_REPLICA", "DRIFTLINE_MEMBERSHIP"} & set(told) else []
    if told.get("DRIFTLINE_MEMBERSHIP", {}).get("value") == "group":
        return [f"{name} is told twice whose its partitions are"] if {"DRIFTLINE_REPLICA", "DRIFTLINE_REPLICAS"} & set(told) else []
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


def unscaled(scaled: Mapping[str, Any], objects: Objects) -> list[str]:
    """What of a ScaledObject does not fit: the workload that it scales, the group and the topic of the code, or the count of partitions."""
    name, spec = scaled["metadata"]["name"], scaled["spec"]
    of = spec["scaleTargetRef"]
    kind = of.get("kind", "Deployment")
    target = next((one for one in objects if (one["kind"], one["metadata"]["name"]) == (kind, of["name"])), None)
    if target is None:
        return [f"there is no {kind} {of['name']}"]
    told = {one["name"]: one.get("value") for one in target["spec"]["template"]["spec"]["containers"][0].get("env", [])}
    pipeline = load_pipeline("flights")
    (asked,) = (trigger["metadata"] for trigger in spec["triggers"])
    kafka = next(one["data"]["DRIFTLINE_KAFKA"] for one in objects if one["kind"] == "ConfigMap")
    topic = getattr(Topics.of(pipeline), READS[of["name"]]).name
    expected = {"consumerGroup": f"{pipeline.name}-{of['name']}", "topic": topic, "bootstrapServers": kafka}
    expected |= {"offsetResetPolicy": "earliest", "allowIdleConsumers": "false"}
    found = [f"{name} asks for {field} {asked.get(field)}, not {value}" for field, value in expected.items() if asked.get(field) != value]
    if "replicas" in target["spec"]:
        found.append(f"{name} has its count from two places")
    if told.get("DRIFTLINE_MEMBERSHIP") != "group":
        found.append(f"{name} scales processes that do not share out partitions")
    if spec["maxReplicaCount"] != partitions():
        found.append(f"{name} goes up to {spec['maxReplicaCount']}, and there are {partitions()} partitions")
    return found


def partitions() -> int:
    """How many partitions the topics are made with."""
    (started,) = scheduled("jobs/topics")
    return int(started.command[started.command.index("--partitions") + 1])


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
    ordinal = workload("feature", "overlays/laptop")
    assert shares(merged(ordinal, {"spec": {"replicas": 4}})) == ["feature has 4 replicas and is told of 1"]
    assert shares(ordinal | {"kind": "Deployment"}) == ["feature does not know which partitions are its own"]
    group = {"containers": [{"name": "driftline", "env": [{"name": "DRIFTLINE_MEMBERSHIP", "value": "group"}]}]}
    twice = merged(ordinal, {"spec": {"template": {"spec": group}}})
    assert shares(twice) == ["feature is told twice whose its partitions are"]
    assert shares(merged(workload("gateway"), {"spec": {"template": {"spec": group}}})) == ["gateway owns no partitions"]
    assert shares(merged(workload("intake"), {"spec": {"replicas": 2}})) == ["intake runs more than once"]


def test_who_may_run_more_than_once_scales_on_lag_up_to_the_count_of_partitions() -> None:
    """
    In production: each by the group that holds its offsets, and only because it shares out partitions by another.
    """
    objects = built(ROOT / "k8s/overlays/production")
    scaled = {one["metadata"]["name"]: one for one in objects if one["kind"] == "ScaledObject"}
    assert set(scaled) == set(READS)
    assert [words for one in scaled.values() for words in unscaled(one, objects)] == []
    assert [one for one in built(ROOT / "k8s/overlays/laptop") if one["kind"] == "ScaledObject"] == []


def test_a_scaled_object_that_does_not_fit_is_told() -> None:
    """
    Each check is fed what it must refuse: a field that KEDA does not know, a value that is no string, another group, too many processes.
    """
    objects = built(ROOT / "k8s/overlays/production")
    (scaled,) = (one for one in objects if (one["kind"], one["metadata"]["name"]) == ("ScaledObject", "feature"))
    assert "cooldown" in misfits(merged(scaled, {"spec": {"cooldown": 300}}))[0]
    (trigger,) = scaled["spec"]["triggers"]
    unquoted = {"triggers": [trigger | {"metadata": trigger["metadata"] | {"allowIdleConsumers": False}}]}
    assert "allowIdleConsumers" in misfits(merged(scaled, {"spec": unquoted}))[0]
    members = {"triggers": [trigger | {"metadata": trigger["metadata"] | {"consumerGroup": "flights-feature-members"}}]}
    assert unscaled(merged(scaled, {"spec": members}), objects) == [
        "feature asks for consumerGroup flights-feature-members, not flights-feature"
    ]
    assert unscaled(merged(scaled, {"spec": {"maxReplicaCount": 13}}), objects) == ["feature goes up to 13, and there are 12 partitions"]
    assert unscaled(merged(scaled, {"spec": {"scaleTargetRef": {"kind": "Deployment"}}}), objects) == ["there is no Deployment feature"]
    counted = [merged(one, {"spec": {"replicas": 3}}) if one["kind"] == "StatefulSet" else one for one in objects]
    assert unscaled(scaled, counted) == ["feature has its count from two places"]
    by_ordinal = [workload("feature", "overlays/laptop"), *(one for one in objects if one["kind"] == "ConfigMap")]
    assert "feature scales processes that do not share out partitions" in unscaled(scaled, by_ordinal)


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
    Nothing by default; servers by label, on their ports; in, only the scrape, and the gateway's door. The gateway alone asks the others.
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
    gateway = {"podSelector": {"matchLabels": {"app.kubernetes.io/name": "gateway"}}}
    asking = policies.pop("driftline-ask")
    (asked,) = asking["egress"]
    assert {"podSelector": asking["podSelector"]} == gateway
    assert asked == {"to": [{"podSelector": {"matchLabels": {"driftline/ops": "answered"}}}], "ports": [{"protocol": "TCP", "port": 9100}]}
    incoming = {name: [port["port"] for rule in spec["ingress"] for port in rule["ports"]] for name, spec in policies.items()}
    assert incoming == {"driftline-scrape": [9100], "driftline-gateway": [8080]}
    spaces = {space: {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": space}}} for space in ("monitoring", "ingress")}
    assert [rule["from"] for rule in policies["driftline-scrape"]["ingress"]] == [[spaces["monitoring"], gateway]]
    assert [rule["from"] for rule in policies["driftline-gateway"]["ingress"]] == [[spaces["ingress"]]]
    assert {"podSelector": policies["driftline-gateway"]["podSelector"]} == gateway
    for one, pod in templates(objects):
        labels = pod["metadata"]["labels"]
        assert {server for server in PORTS if labels.get(f"driftline/{server}")} == needs(one["metadata"]["name"])
        assert labels["app.kubernetes.io/part-of"] == "driftline"


def test_the_gateway_finds_every_process_by_one_name() -> None:
    """
    A headless Service of all pods that serve ops, ready or not: what is not ready is what the console has to show.
    """
    objects = built(ROOT / "k8s/base")
    (container,) = workload("gateway")["spec"]["template"]["spec"]["containers"]
    (name,) = [variable["value"] for variable in container["env"] if variable["name"] == "DRIFTLINE_OPS"]
    (service,) = [one["spec"] for one in objects if one["kind"] == "Service" and name == f"http://{one['metadata']['name']}:9100"]
    assert (service["clusterIP"], service["publishNotReadyAddresses"]) == ("None", True)
    assert [port["port"] for port in service["ports"]] == [int(IMAGE.environment["DRIFTLINE_OPS_PORT"])]
    assert {pod["metadata"]["labels"]["driftline/ops"] for _, pod in templates(objects)} == set(service["selector"].values())


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
