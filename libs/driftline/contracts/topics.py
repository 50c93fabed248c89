"""
Which topics a pipeline has. Names, keys and retention are in schemas/topics, one file for each kind, and nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import yaml

from driftline.contracts.messages import MESSAGES, schema_folder
from driftline.errors import Invalid

DAY_MS = 86_400_000
FOREVER = -1
LOOP = ("intake", "feature", "inference", "labeler", "drift", "trainer", "rollout")
SERVICES = (*LOOP, "gateway")  # the gateway is a door to the loop, which goes without it
PARTIES = (*SERVICES, "operators", "player", "applications")


class Retained(Protocol):
    """What topics need of a pipeline."""

    @property
    def name(self) -> str: ...

    @property
    def retention_ms(self) -> int: ...


@dataclass(frozen=True, slots=True)
class TopicKind:
    """One file of schemas/topics: what holds for the topics of this kind, in every pipeline."""

    kind: str
    purpose: str
    writers: tuple[str, ...]
    readers: tuple[str, ...]
    key: str
    partitions: int | None  # None: as many as the data topics of the pipeline have
    retention: str  # "forever", "pipeline", or days as in "30d"
    messages: tuple[str, ...]
    dead_letters: bool

    def retention_ms(self, pipeline_ms: int) -> int:
        """How long records stay, where the pipeline keeps its events for `pipeline_ms`; -1 is for ever."""
        if self.retention == "forever":
            return FOREVER
        return pipeline_ms if self.retention == "pipeline" else int(self.retention.removesuffix("d")) * DAY_MS


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic of one pipeline. `dead_letters`: what cannot be taken from it goes to the pipeline's dead letters."""

    name: str
    kind: str
    messages: tuple[str, ...]
    partitioned: bool
    retention_ms: int
    dead_letters: bool
    writers: tuple[str, ...]
    readers: tuple[str, ...]
    key: str


@dataclass(frozen=True, slots=True)
class Topics:
    """All topics of one pipeline, by attribute or, as in `topics["dead-letters"]`, by kind."""

    events: Topic
    features: Topic
    predictions: Topic
    journal: Topic
    examples: Topic
    summaries: Topic
    retrain: Topic
    control: Topic
    deployments: Topic
    clock: Topic
    dead_letters: Topic

    @classmethod
    def of(cls, pipeline: Retained) -> Topics:
        """The topics of `pipeline`. Raises Invalid when a file in schemas/topics is missing or wrong."""
        return cls(**{_attribute(kind.kind): _topic(pipeline, kind) for kind in load_kinds().values()})

    def by_kind(self) -> dict[str, Topic]:
        """Every topic by its kind."""
        topics: list[Topic] = [getattr(self, name) for name in self.__slots__]
        return {topic.kind: topic for topic in topics}

    def __getitem__(self, kind: str) -> Topic:
        topics = self.by_kind()
        if kind not in topics:
            raise Invalid(f"there is no topic of the kind {kind!r}; there are {', '.join(topics)}")
        return topics[kind]


def _attribute(kind: str) -> str:
    return kind.replace("-", "_")


def _topic(pipeline: Retained, kind: TopicKind) -> Topic:
    return Topic(
        name=f"{pipeline.name}-{kind.kind}",
        kind=kind.kind,
        messages=kind.messages,
        partitioned=kind.partitions is None,
        retention_ms=kind.retention_ms(pipeline.retention_ms),
        dead_letters=kind.dead_letters,
        writers=kind.writers,
        readers=kind.readers,
        key=kind.key,
    )


@cache
def load_kinds(folder: Path | None = None) -> Mapping[str, TopicKind]:
    """
    The kinds of topic in `folder` (schemas/topics), by name, in the order of `Topics`.

    Raises Invalid naming the file and what is wrong with it, and when a kind is missing or is one that `Topics` does not know.
    """
    folder = folder or schema_folder() / "topics"
    kinds = {path.stem: parse_kind(path.stem, path.read_text()) for path in sorted(folder.glob("*.yaml"))}
    if differing := {_attribute(kind) for kind in kinds} ^ set(Topics.__slots__):
        raise Invalid(f"{folder}: the kinds of topic and `Topics` differ by {', '.join(sorted(differing))}")
    order = list(Topics.__slots__)
    return MappingProxyType(dict(sorted(kinds.items(), key=lambda item: order.index(_attribute(item[0])))))


LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # a tenth of the time, where libyaml is there
CHECKS: Mapping[str, tuple[str, Any]] = {
    "kind": ("lower-case words joined by hyphens", lambda value: isinstance(value, str) and re.fullmatch(r"[a-z]+(-[a-z]+)*", value)),
    "writers": (f"a list of {', '.join(PARTIES)}", lambda value: _some_of(value, PARTIES)),
    "readers": (f"a list of {', '.join(PARTIES)}", lambda value: _some_of(value, PARTIES)),
    "key": ("words", lambda value: isinstance(value, str) and value),
    "partitions": ('"data" or a number above 0', lambda value: value == "data" or (type(value) is int and value > 0)),
    "retention": ("forever, pipeline, or days as 30d", lambda value: re.fullmatch(r"forever|pipeline|[1-9][0-9]*d", str(value))),
    "messages": ("a list of names of files in schemas/messages", lambda value: _some_of(value, MESSAGES)),
    "dead_letters": ("true or false", lambda value: isinstance(value, bool)),
}


def parse_kind(name: str, text: str) -> TopicKind:
    """The kind of topic that the file `name`.yaml with `text` declares. Raises Invalid naming what is wrong with it."""
    where = f"schemas/topics/{name}.yaml"
    try:
        declared = _load(text)
    except yaml.YAMLError as error:
        raise Invalid(f"{where}: {error}") from error
    if not isinstance(declared, dict) or set(declared) != set(CHECKS):
        differing = set(CHECKS) ^ set(declared if isinstance(declared, dict) else ())
        raise Invalid(f"{where}: must have exactly the keys {', '.join(CHECKS)}; differs by {', '.join(sorted(map(str, differing)))}")
    for key, (wanted, is_right) in CHECKS.items():
        if not is_right(declared[key]):
            raise Invalid(f"{where}: {key} must be {wanted}, not {declared[key]!r}")
    if declared["kind"] != name:
        raise Invalid(f"{where}: the file is named {name}, its kind is {declared['kind']}")
    return TopicKind(
        kind=name,
        purpose=_purpose(text),
        writers=tuple(declared["writers"]),
        readers=tuple(declared["readers"]),
        key=declared["key"],
        partitions=None if declared["partitions"] == "data" else declared["partitions"],
        retention=declared["retention"],
        messages=tuple(declared["messages"]),
        dead_letters=declared["dead_letters"],
    )


def _load(text: str) -> Any:
    """YAML's safe subset, in which no key may come twice: the first would be overwritten in silence."""
    node = yaml.compose(text, Loader=LOADER)
    keys = [key.value for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []
    if len(set(keys)) < len(keys):
        raise yaml.YAMLError(f"a key comes twice among {', '.join(map(str, keys))}")
    return yaml.load(text, Loader=LOADER)


def _some_of(value: Any, known: tuple[str, ...]) -> bool:
    return isinstance(value, list) and bool(value) and all(one in known for one in value) and len(set(value)) == len(value)


def _purpose(text: str) -> str:
    """The comment at the head of the file: what the topic is for."""
    lines = [line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#")]
    return " ".join(lines)
