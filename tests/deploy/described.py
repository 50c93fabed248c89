"""
What the files of deployment say, read into the same few values: images from the Dockerfile, processes from docker-compose.yml and k8s/.
`troubles` compares a process with the code that it starts.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import typer
import yaml
from kustomized import built
from typer.main import get_command

from driftline import cli
from driftline.errors import DriftlineError
from driftline.local import player, registry
from driftline.operate.addresses import pipeline_names
from driftline.settings import PREFIX, SECRETS, read

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").exists())
TARGETS = ("serve", "train", "gateway", "tools")
MODULES = {"driftline.local.registry": registry.parse_arguments, "driftline.local.player": player.parse_arguments}
OF_THE_PROCESS = {"PIPELINES", "SCHEMAS"}  # read where they are needed, by every process
USAGE = typer.BadParameter.__mro__[1]  # what any wrong command line raises; typer has it from a click of its own
PLACES = ("/run/", "/etc/driftline", "/var/lib/")  # where a path in a variable has to be a mount, or made by the image


@dataclass(frozen=True, slots=True)
class Image:
    """What the Dockerfile says of all its targets together."""

    targets: tuple[str, ...]
    copied: tuple[str, ...]
    environment: Mapping[str, str]
    made: tuple[str, ...]
    instructions: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Started:
    """One process of a file: a value of None is known only where it runs (a Secret, a pod's own number)."""

    where: str
    image: str
    command: tuple[str, ...]
    environment: Mapping[str, str | None] = field(default_factory=dict)
    mounts: tuple[str, ...] = ()

    @property
    def service(self) -> str:
        """The service that it runs; empty for another command."""
        return self.command[2] if self.command[:2] == ("driftline", "run") else ""


def image_of(text: str) -> Image:
    """Raises ValueError for a line that is no instruction."""
    lines = re.sub(r"\\\n\s*", " ", re.sub(r"(?m)^\s*#.*\n?", "", text)).splitlines()
    instructions = [(word.upper(), rest.strip()) for word, _, rest in (line.partition(" ") for line in lines if line)]
    if odd := [word for word, _ in instructions if not re.fullmatch("[A-Z]+", word)]:
        raise ValueError(f"no instructions: {odd}")
    stages = [rest.split(" AS ")[1] for word, rest in instructions if word == "FROM"]
    copied = [one for word, rest in instructions if word == "COPY" and not rest.startswith("--from") for one in rest.split()[:-1]]
    environment = dict(one.split("=", 1) for word, rest in instructions if word == "ENV" for one in shlex.split(rest))
    made = [
        one for word, rest in instructions if word == "RUN" and "install -d" in rest for one in shlex.split(rest) if one.startswith("/")
    ]
    return Image(tuple(stages), tuple(copied), environment, tuple(made), tuple(instructions))


IMAGE = image_of((ROOT / "Dockerfile").read_text())


def composed(declared: Mapping[str, Any]) -> list[Started]:
    """The processes of a docker-compose.yml that run an image of ours."""
    return [
        Started(
            where=f"docker-compose.yml {name}",
            image=told["build"]["target"],
            command=tuple(map(_defaulted, told["command"])),
            environment={key: _defaulted(value) for key, value in told.get("environment", {}).items()},
            mounts=(
                *(volume.split(":")[1] for volume in told.get("volumes", [])),
                *(place.split(":")[0] for place in told.get("tmpfs", [])),
                *(f"/run/secrets/{secret}" for secret in told.get("secrets", [])),
            ),
        )
        for name, told in declared["services"].items()
        if "build" in told
    ]


def _defaulted(word: str) -> str:
    """With ${NAME:-default} as it is where nobody sets NAME."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", word)


def compose() -> dict[str, Any]:
    """docker-compose.yml, its anchors resolved."""
    declared: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return declared


def templates(objects: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Each workload with its pod."""
    return [(one, one["spec"]["template"]) for one in objects if "template" in one.get("spec", {})]


def scheduled(folder: str) -> list[Started]:
    """The processes of a folder in k8s/ that run an image of ours. A Job's are told of with the base's ConfigMap."""
    objects = built(ROOT / "k8s" / folder)
    shared = next(one for one in [*objects, *built(ROOT / "k8s" / "base")] if one["kind"] == "ConfigMap")
    return [
        Started(
            where=f"k8s/{folder} {one['metadata']['name']}",
            image=_target(container["image"]),
            command=tuple(container["args"]),
            environment=(shared["data"] if container.get("envFrom") else {})
            | {variable["name"]: variable.get("value") for variable in container.get("env", [])},
            mounts=tuple(mount["mountPath"] for mount in container.get("volumeMounts", [])),
        )
        for one, pod in templates(objects)
        for container in pod["spec"]["containers"]
        if "driftline-" in container["image"]
    ]


def _target(image: str) -> str:
    return image.rsplit("/", 1)[-1].split(":", maxsplit=1)[0].removeprefix("driftline-")


def settings_of(service: str) -> type[msgspec.Struct]:
    """The type that a service reads its variables into."""
    kind: type[msgspec.Struct] = importlib.import_module(f"services.{service}.app").Settings
    return kind


def names_of(services: Sequence[str]) -> set[str]:
    """The variables that these services know, without DRIFTLINE_."""
    names = {one.name.upper() for service in services for one in msgspec.structs.fields(settings_of(service))}
    return names | {f"{secret.upper()}_FILE" for secret in SECRETS if secret.upper() in names} | OF_THE_PROCESS


def troubles(started: Started) -> list[str]:
    """Everything in which a process does not fit the code; each with where it is said."""
    found = [*_wrong_image(started), *_wrong_command(started), *_wrong_variables(started), *_wrong_places(started)]
    return [f"{started.where}: {one}" for one in found]


def _wrong_image(started: Started) -> list[str]:
    return [] if started.image in IMAGE.targets else [f"the Dockerfile has no target {started.image}"]


def _wrong_command(started: Started) -> list[str]:
    program, *words = started.command
    try:
        if program == "python":
            MODULES[words[1]](words[2:])
            return [] if words[0] == "-m" and importlib.util.find_spec(words[1]) else [f"{words[1]} cannot be run"]
        group = get_command(cli.app)
        with group.make_context(program, list(words)) as context:  # type: ignore[attr-defined]  # a command is a group or has none under it
            name, command, rest = group.resolve_command(context, [*context._protected_args, *context.args])  # type: ignore[attr-defined]
            given = command.make_context(name, rest, parent=context).params
    except (USAGE, KeyError, SystemExit) as error:
        return [f"{shlex.join(started.command)}: {type(error).__name__}: {error}"]
    wrong = [f"there is no program {program}"] if program != "driftline" else []
    if name == "run" and given["service"] not in cli.SERVICES:
        wrong.append(f"there is no service {given['service']}")
    pipeline = given.get("pipeline") or given.get("name")
    return wrong + ([] if pipeline in pipeline_names() else [f"there is no pipeline {pipeline}"])


def _wrong_variables(started: Started) -> list[str]:
    own = {name.removeprefix(PREFIX): value for name, value in started.environment.items()}
    known = names_of([started.service] if started.service in cli.SERVICES else cli.SERVICES)
    wrong = [f"{PREFIX}{name} is not read by it" for name in sorted(set(own) - known)]
    if started.service not in cli.SERVICES:
        return wrong
    given = {**IMAGE.environment, **started.environment, f"{PREFIX}PIPELINE": "flights"}
    values = {name: "0" if value is None else value for name, value in given.items() if not name.endswith("_KEY_FILE")}
    try:
        read(settings_of(started.service), values)
    except DriftlineError as error:
        wrong.append(str(error))
    return wrong


def _wrong_places(started: Started) -> list[str]:
    """A path that nothing is mounted on, and a mount that nothing leads to."""
    values = {**IMAGE.environment, **{name: value or "" for name, value in started.environment.items()}}
    named = {value for name, value in values.items() if value.startswith("/") and name != "PATH"}
    there = (*started.mounts, *IMAGE.made)
    wrong = [
        f"nothing is mounted for {place}"
        for place in sorted(named)
        if place.startswith(PLACES) and not any(_under(place, mount) for mount in there)
    ]
    return wrong + [f"nothing uses {mount}" for mount in started.mounts if not any(_under(place, mount) for place in named)]


def _under(place: str, mount: str) -> bool:
    return place == mount or place.startswith(mount + "/")
