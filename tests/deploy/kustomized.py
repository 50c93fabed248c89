"""
What `kubectl kustomize` makes of a folder, for exactly what the files in k8s/ use: resources, namespace, labels, images and strategic-merge
patches, by name or by kind. Anything else is refused, so that a file cannot say more than is tested.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

KNOWN = {"apiVersion", "kind", "resources", "namespace", "labels", "images", "patches"}
MERGE_KEYS = {"containers": "name", "env": "name", "volumes": "name", "volumeMounts": "mountPath", "ports": "containerPort"}
CLUSTER_WIDE = {"Namespace"}
TEMPLATED = {"Deployment", "StatefulSet", "Job"}


def built(folder: Path) -> list[dict[str, Any]]:
    """The objects of a folder with a kustomization.yaml. Raises ValueError for what is not known here."""
    declared = yaml.safe_load((folder / "kustomization.yaml").read_text())
    if unknown := set(declared) - KNOWN:
        raise ValueError(f"{folder}: {', '.join(sorted(unknown))} is not known here")
    objects = [one for name in declared["resources"] for one in _resource(folder / name)]
    for patch in declared.get("patches", []):
        _patch(objects, folder, patch)
    for one in objects:
        if "namespace" in declared and one["kind"] not in CLUSTER_WIDE:
            one["metadata"]["namespace"] = declared["namespace"]
        for labels in declared.get("labels", []):
            _label(one, labels["pairs"])
        for image in declared.get("images", []):
            _rename(one, image)
    return objects


def merged(base: Any, patch: Any, key: str = "") -> Any:
    """A strategic merge: objects by field, known lists by their merge key, everything else replaced; null or `$patch: delete` removes."""
    if isinstance(base, dict) and isinstance(patch, dict):
        both = {name: merged(base.get(name), value, name) for name, value in patch.items() if value is not None}
        return {name: value for name, value in base.items() if name not in patch} | both
    if isinstance(base, list) and isinstance(patch, list) and key in MERGE_KEYS:
        by = MERGE_KEYS[key]
        found = {one[by]: one for one in base}
        for one in patch:
            if one.get("$patch") == "delete":
                del found[one[by]]
            else:
                found[one[by]] = merged(found.get(one[by], {}), one)
        return list(found.values())
    return patch


def _resource(place: Path) -> list[dict[str, Any]]:
    return built(place) if place.is_dir() else [one for one in yaml.safe_load_all(place.read_text()) if one]


def _patch(objects: list[dict[str, Any]], folder: Path, patch: dict[str, Any]) -> None:
    for part in yaml.safe_load_all((folder / patch["path"]).read_text()):
        kind, name = (patch["target"]["kind"], None) if "target" in patch else (part["kind"], part["metadata"]["name"])
        hit = [one for one in objects if one["kind"] == kind and name in (None, one["metadata"]["name"])]
        if not hit:
            raise ValueError(f"{folder / patch['path']}: there is no {kind} {name or ''}".rstrip())
        body = {field: value for field, value in part.items() if field not in ("apiVersion", "kind", "metadata")}
        for one in hit:
            changed = merged(copy.deepcopy(one), copy.deepcopy(body))
            one.clear()
            one.update(changed)


def _label(one: dict[str, Any], pairs: dict[str, str]) -> None:
    places = [one["metadata"]]
    if one["kind"] in TEMPLATED:
        places.append(one["spec"]["template"].setdefault("metadata", {}))
    for place in places:
        place["labels"] = {**place.get("labels", {}), **pairs}


def _rename(one: dict[str, Any], image: dict[str, str]) -> None:
    if one["kind"] in TEMPLATED:
        for container in one["spec"]["template"]["spec"]["containers"]:
            if container["image"] == image["name"]:
                container["image"] = f"{image.get('newName', image['name'])}:{image['newTag']}"
