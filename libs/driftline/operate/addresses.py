"""
Where the servers are, for commands: from DRIFTLINE_* variables, or from the stack that `driftline demo --keep` or
`driftline up --local` left running.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from driftline.errors import Fatal, Invalid
from driftline.pipeline import pipelines_folder

FOLDER = Path(".driftline")
KEPT = {"MODEL_STORE": "models", "MODEL_PUBLIC_KEY": "keys/model-public.pem", "MODEL_PRIVATE_KEY": "keys/model-private.pem"}


@dataclass(frozen=True, slots=True)
class Addresses:
    """Servers, and the folder into which running services write where their own ports are; or where they are, when somebody names them."""

    kafka: str
    redis: str
    registry: str
    run_dir: Path
    ops: tuple[str, ...] = ()


def find_addresses(environment: Mapping[str, str] = os.environ, folder: Path = FOLDER) -> Addresses:
    """
    DRIFTLINE_KAFKA, DRIFTLINE_REDIS, DRIFTLINE_REGISTRY and DRIFTLINE_RUN_DIR; what is not set comes from the stack that runs
    in `folder`. DRIFTLINE_OPS names services that run elsewhere.

    Raises Fatal naming the variables when there is neither, Invalid for a wrong DRIFTLINE_OPS.
    """
    stack = _stack(folder / "stack.json")
    run_dir = Path(environment.get("DRIFTLINE_RUN_DIR") or folder / "run")
    found = {name: environment.get(f"DRIFTLINE_{name.upper()}") or stack.get(name, "") for name in ("kafka", "redis", "registry")}
    missing = [f"DRIFTLINE_{name.upper()}" for name, address in found.items() if not address]
    if missing:
        raise Fatal(f"{', '.join(missing)} not set, and no stack runs in {folder}. Start one: driftline up --local, or demo --keep")
    return Addresses(found["kafka"], found["redis"], found["registry"], run_dir, ops_of(environment.get("DRIFTLINE_OPS", "").split(",")))


def ops_of(named: Iterable[str]) -> tuple[str, ...]:
    """Where services answer /readyz, as somebody wrote it. Raises Invalid for what is no address."""
    found = tuple(one.strip().rstrip("/") for one in named if one.strip())
    if wrong := [one for one in found if not _is_address(one)]:
        raise Invalid(f"{wrong[0]} is no address of a service; name it in DRIFTLINE_OPS, or by --ops, as in http://intake:9100")
    return found


def _is_address(ops: str) -> bool:
    try:
        parts = urlsplit(ops)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of a port that is no number
        return False


def kafka_of(environment: Mapping[str, str] = os.environ, folder: Path = FOLDER) -> str:
    """DRIFTLINE_KAFKA alone, for who needs nothing else. Raises Fatal when neither it nor a stack is there."""
    found = environment.get("DRIFTLINE_KAFKA") or _stack(folder / "stack.json").get("kafka", "")
    if not found:
        raise Fatal(f"DRIFTLINE_KAFKA is not set, and no stack runs in {folder}")
    return found


def environment_of(
    addresses: Addresses, pipeline: str, environment: Mapping[str, str] = os.environ, folder: Path = FOLDER
) -> dict[str, str]:
    """The variables that a service's settings are read from, for a command that does a service's work."""
    servers = {"KAFKA": addresses.kafka, "REDIS": addresses.redis, "REGISTRY": addresses.registry, "PIPELINE": pipeline}
    return {f"DRIFTLINE_{name}": value for name, value in servers.items()} | models_of(environment, folder)


def models_of(environment: Mapping[str, str] = os.environ, folder: Path = FOLDER) -> dict[str, str]:
    """The environment, and where models and keys are, for a command that needs no server."""
    return {f"DRIFTLINE_{name}": str(folder / place) for name, place in KEPT.items() if (folder / place).exists()} | dict(environment)


def _stack(place: Path) -> dict[str, str]:
    try:
        stack = json.loads(place.read_text())
    except (OSError, ValueError):
        return {}
    return {name: address for name, address in stack.items() if isinstance(address, str)}


def pipeline_names() -> list[str]:
    """The folders that hold a pipeline.py, by name."""
    return sorted(place.parent.name for place in pipelines_folder().glob("*/pipeline.py"))


def one_pipeline(name: str | None) -> str:
    """`name`, or the only pipeline that there is. Raises Invalid when there are several, or none."""
    if name:
        return name
    names = pipeline_names()
    if len(names) != 1:
        raise Invalid(f"which pipeline? {pipelines_folder()} holds {', '.join(names) or 'none'}; name one, as in: driftline status NAME")
    return names[0]
