"""
The page of the loop: its picture, drawn twice, wide and for a phone, and each promise with a sentence that says whether it holds.

Values in, values out: what is drawn is a function of what was found.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from driftline.contracts.topics import Topics
from driftline.operate.board import Commanded, Refusals
from driftline.operate.pulse import STILL_S, UNBALANCED_S, Hop, Place
from driftline.operate.status import Status
from driftline.pipeline import Pipeline

from . import words

LINE = 15  # between two lines of a label


@dataclass(frozen=True, slots=True)
class Way:
    """One arrow: from whom to whom, on which topics, read by whom (as metrics and consumer groups name it), and what travels there."""

    id: str
    giver: str
    taker: str
    topics: tuple[str, ...]
    reader: str
    carries: str


@dataclass(frozen=True, slots=True)
class Traffic:
    """What is known of one arrow. None where nobody here can tell."""

    way: Way
    rate: float | None
    behind: int | None
    age_s: float | None
    refused: float | None
    note: str
    broken: tuple[str, ...]  # the promises that do not hold on it, in words

    @property
    def title(self) -> str:
        """The topic, or how many there are."""
        return self.way.topics[0] if len(self.way.topics) == 1 else f"{len(self.way.topics)} topics"


@dataclass(frozen=True, slots=True)
class Promise:
    """Something that always holds: whether it does now, None where nobody here can tell, and what to do."""

    title: str
    held: bool | None
    told: str
    means: str


@dataclass(frozen=True, slots=True)
class Text:
    """A line of a label, where it stands."""

    x: float
    y: float
    anchor: str
    words: str
    kind: str


@dataclass(frozen=True, slots=True)
class Node:
    """A service, or who is outside."""

    name: str
    x: float
    y: float
    state: str  # ready, wrong, outside or unknown
    told: str


@dataclass(frozen=True, slots=True)
class Arrow:
    """An arrow with its label."""

    path: str
    broken: bool
    told: str
    texts: tuple[Text, ...]


@dataclass(frozen=True, slots=True)
class Drawing:
    """The picture in one shape."""

    kind: str
    width: int
    height: int
    node_width: int
    node_height: int
    nodes: tuple[Node, ...]
    arrows: tuple[Arrow, ...]


@dataclass(frozen=True, slots=True)
class Shape:
    """Where everything stands. `labels` are a place, an anchor, and how many lines stand above it; `bends` the middle of a curve."""

    kind: str
    width: int
    height: int
    node_width: int
    node_height: int
    nodes: Mapping[str, tuple[float, float]]
    labels: Mapping[str, tuple[float, float, str, int]]
    bends: Mapping[str, tuple[float, float]]


WIDE = Shape(
    "wide",
    1120,
    460,
    128,
    52,
    {
        "applications": (72, 78),
        "intake": (316, 78),
        "feature": (560, 78),
        "inference": (804, 78),
        "consumers": (1048, 78),
        "rollout": (316, 336),
        "trainer": (560, 336),
        "drift": (804, 336),
        "labeler": (1048, 336),
    },
    {
        "upstream": (194, 78, "middle", 2),
        "events": (438, 78, "middle", 2),
        "features": (682, 78, "middle", 2),
        "predictions": (926, 78, "middle", 2),
        "journal": (962, 190, "start", 1),
        "answers": (794, 190, "end", 1),
        "examples": (926, 336, "middle", 2),
        "retrain": (682, 336, "middle", 2),
        "releases": (438, 336, "middle", 2),
        "reports": (560, 412, "middle", 1),
        "deployments": (326, 200, "start", 1),
    },
    {"reports": (560, 424)},
)
TALL = Shape(
    "tall",
    380,
    740,
    108,
    46,
    {
        "applications": (62, 30),
        "intake": (62, 190),
        "feature": (62, 350),
        "inference": (62, 510),
        "consumers": (62, 700),
        "rollout": (288, 190),
        "trainer": (288, 350),
        "drift": (288, 510),
        "labeler": (288, 700),
    },
    {
        "upstream": (72, 91, "start", 1),
        "events": (72, 251, "start", 1),
        "features": (72, 411, "start", 1),
        "predictions": (72, 640, "start", 1),
        "journal": (184, 580, "start", 1),
        "answers": (175, 510, "middle", 2),
        "examples": (298, 588, "start", 1),
        "retrain": (278, 425, "end", 1),
        "releases": (278, 251, "end", 1),
        "deployments": (175, 190, "middle", 2),
    },
    {"reports": (396, 350)},
)


def ways(pipeline: Pipeline) -> tuple[Way, ...]:
    """The arrows of a pipeline's loop."""
    topics, upstream = Topics.of(pipeline), tuple(stream.topic for stream in pipeline.streams)
    return (
        Way("upstream", "applications", "intake", upstream, "intake", "what applications publish"),
        Way("events", "intake", "feature", (topics.events.name,), "feature", "everything in one order, with ticks of time"),
        Way("features", "feature", "inference", (topics.features.name,), "inference", "one row of features a question"),
        Way("predictions", "inference", "consumers", (topics.predictions.name,), "", "one answer a question, for whoever reads the topic"),
        Way("journal", "inference", "labeler", (topics.journal.name,), "labeler", "answers with their rows, and outcomes from feature"),
        Way("answers", "inference", "drift", (topics.journal.name,), "drift-journal", "the same, to compare inputs with training"),
        Way("examples", "labeler", "drift", (topics.examples.name,), "drift-examples", "answers with the labels that became known"),
        Way("retrain", "drift", "trainer", (topics.retrain.name,), "", "commands to train a challenger"),
        Way("releases", "trainer", "rollout", (topics.control.name,), "rollout", "trained models with the verdict of the gate"),
        Way("reports", "drift", "rollout", (topics.control.name,), "rollout", "one report a window; operators' commands lie here too"),
        Way("deployments", "rollout", "intake", (topics.deployments.name,), "", "which model serves which share of the keys"),
    )


@dataclass(frozen=True, slots=True)
class Seen:
    """All that was found. `hops` is empty where it is not known where the services are."""

    status: Status
    hops: Mapping[Place, Hop]
    refusals: Sequence[Refusals]
    retrains: Sequence[Commanded]


def traffic(pipeline: Pipeline, seen: Seen) -> tuple[Traffic, ...]:
    """Each arrow with what is known of it."""
    return tuple(_traffic(pipeline, way, seen) for way in ways(pipeline))


def _traffic(pipeline: Pipeline, way: Way, seen: Seen) -> Traffic:
    hops = [hop for topic in way.topics if (hop := seen.hops.get((way.reader, topic))) is not None]
    lags = [one.messages for one in seen.status.lags if one.group == f"{pipeline.name}-{way.reader}" and one.topic in way.topics]
    rates, ages = [hop.rate for hop in hops if hop.rate is not None], [hop.age_s for hop in hops if hop.age_s is not None]
    return Traffic(
        way,
        sum(rates) if rates else None,
        sum(lags) if lags else None,
        max(ages) if ages else None,
        sum(hop.refused for hop in hops) if hops else None,
        _note(way, seen),
        tuple(_broken(way, hops)),
    )


def _note(way: Way, seen: Seen) -> str:
    """What there is to say of an arrow that nobody measures."""
    if way.id == "retrain":
        return f"{len(seen.retrains):,} so far"
    if way.id == "deployments":
        return f"version {seen.status.deployment.version:,}"
    return "yours to read" if way.id == "predictions" else ""


def _broken(way: Way, hops: Sequence[Hop]) -> Iterator[str]:
    if any(hop.is_unbalanced for hop in hops):
        differing = sum(hop.read - hop.settled for hop in hops)
        yield f"{way.reader} read {words.signed(differing, 0)} records more than it accounts for"
    if still := [hop.still_s for hop in hops if hop.is_still]:
        yield f"{way.reader} is behind and has not moved for {words.span(max(still))}"


def promises(arrows: Sequence[Traffic], seen: Seen) -> tuple[Promise, ...]:
    """What always holds, with whether it does."""
    return (_running(seen), _accounted(arrows, seen), _moving(arrows, seen), _nothing_refused(seen), _in_time(arrows))


def _running(seen: Seen) -> Promise:
    troubles = seen.status.troubles
    ready = len(seen.status.services) - len(troubles)
    return Promise(
        "Every service is ready",
        not troubles,
        "; ".join(troubles) or f"{ready} of {len(seen.status.services)} are.",
        "A service that is not ready reads nothing, and what it reads waits on the log. Its keeper starts it again; "
        "its log says why, if it does not come back.",
    )


def _accounted(arrows: Sequence[Traffic], seen: Seen) -> Promise:
    broken = sorted({words_ for one in arrows for words_ in one.broken if "accounts for" in words_})
    counted = sum(hop.read for hop in seen.hops.values())
    return Promise(
        "Every record is accounted for",
        not broken if seen.hops else None,
        "; ".join(broken) or (f"{words.number(counted)} records read, as many accounted for." if seen.hops else _elsewhere()),
        "What a service reads is applied, a duplicate, late, a tick, a copy for all, or refused: both sums are equal, but for what is in "
        f"hand. When they differ for {UNBALANCED_S:.0f} s a record was lost or counted twice: stop the service and run driftline rebuild.",
    )


def _moving(arrows: Sequence[Traffic], seen: Seen) -> Promise:
    broken = sorted({words_ for one in arrows for words_ in one.broken if "not moved" in words_})
    return Promise(
        "Whoever is behind moves",
        not broken if seen.hops else None,
        "; ".join(broken) or ("Everybody does, or is not behind." if seen.hops else _elsewhere()),
        f"A partition that has records to read and does not move for {STILL_S:.0f} s is stuck: its service's log names the refusal, "
        "and the command that mends it.",
    )


def _nothing_refused(seen: Seen) -> Promise:
    count = sum(one.count for one in seen.refusals)
    reasons = sorted({one.reason for one in seen.refusals})
    return Promise(
        "Nothing was refused",
        not count,
        f"{words.plural(count, 'record')} refused: {', '.join(reasons)}." if count else "No dead letter.",
        "A refused record stops no other and is kept as it came. See Refused for why; mend its sender, then replay it.",
    )


def _in_time(arrows: Sequence[Traffic]) -> Promise:
    measured = [one for one in arrows if one.behind is not None]
    worst = max(measured, key=lambda one: one.behind or 0, default=None)
    told = "Nobody has read anything yet." if worst is None else "Nobody is behind."
    if worst is not None and worst.behind:
        age = f", the oldest for {words.span(worst.age_s)}" if worst.age_s is not None else ""
        told = f"{worst.way.reader} has {words.plural(worst.behind, 'record')} of {worst.title} to read{age}."
    return Promise(
        "How far behind",
        None if worst is None or worst.behind else True,
        told,
        "Behind is no fault while it shrinks: nothing is lost, predictions come later. If it grows, give the service more processes, up to "
        "as many as the topic has partitions.",
    )


def _elsewhere() -> str:
    return "Not known here: the services run on other machines, and DRIFTLINE_OPS does not say where. The dashboards know."


def drawings(arrows: Sequence[Traffic], status: Status) -> tuple[Drawing, ...]:
    """The picture, wide and tall."""
    return tuple(_drawn(shape, arrows, status) for shape in (WIDE, TALL))


def _drawn(shape: Shape, arrows: Sequence[Traffic], status: Status) -> Drawing:
    nodes = tuple(Node(name, x, y, *_state(name, status)) for name, (x, y) in shape.nodes.items())
    drawn = tuple(_arrow(shape, one) for one in arrows)
    return Drawing(shape.kind, shape.width, shape.height, shape.node_width, shape.node_height, nodes, drawn)


def _state(name: str, status: Status) -> tuple[str, str]:
    if name in ("applications", "consumers"):
        return "outside", "yours"
    told = [state for process, state in status.services.items() if process.partition(" (")[0] == name]
    if not told:
        return "unknown", "not asked"
    ready = told.count("ready")
    if len(told) > 1:
        return ("ready", f"{ready} ready") if ready == len(told) else ("wrong", f"{ready} of {len(told)} ready")
    return ("ready", "ready") if ready else ("wrong", "not ready")


def _arrow(shape: Shape, one: Traffic) -> Arrow:
    way = one.way
    start, end = shape.nodes[way.giver], shape.nodes[way.taker]
    told = f"{way.giver} to {way.taker}: {way.carries}. {'; '.join(one.broken)}"
    return Arrow(_path(shape, way.id, start, end), bool(one.broken), told, tuple(_texts(shape, one)))


def _path(shape: Shape, id: str, start: tuple[float, float], end: tuple[float, float]) -> str:
    if id in shape.bends:
        bend = shape.bends[id]
        if shape.kind == "wide":
            edge = shape.node_height / 2
            return f"M{start[0]} {start[1] + edge} Q{bend[0]} {bend[1]} {end[0]} {end[1] + edge + 6}"
        edge = shape.node_width / 2
        return f"M{start[0] + edge} {start[1]} Q{bend[0]} {bend[1]} {end[0] + edge + 6} {end[1]}"
    (x1, y1), (x2, y2) = _clipped(shape, start, end, 0), _clipped(shape, end, start, 6)
    return f"M{x1:g} {y1:g} L{x2:g} {y2:g}"


def _clipped(shape: Shape, at: tuple[float, float], to: tuple[float, float], gap: float) -> tuple[float, float]:
    """Where the line from the middle of a node to another leaves its box, `gap` outside."""
    dx, dy = to[0] - at[0], to[1] - at[1]
    across = (shape.node_width / 2 + gap) / abs(dx) if dx else float("inf")
    down = (shape.node_height / 2 + gap) / abs(dy) if dy else float("inf")
    part = min(across, down)
    return round(at[0] + part * dx, 1), round(at[1] + part * dy, 1)


def _texts(shape: Shape, one: Traffic) -> Iterator[Text]:
    """The label: topic and rate, then how far behind; those for a horizontal arrow stand above and below it."""
    if one.way.id not in shape.labels:
        return
    x, y, anchor, above = shape.labels[one.way.id]
    short = one.title.split("-", 1)[-1] if len(one.way.topics) == 1 else one.title
    lines = [(short, "name")]
    if one.rate is not None:
        lines.append((words.rate(one.rate), "rate"))
    if one.note:
        lines.append((one.note, "rate"))
    if one.behind is not None:
        lines.append((f"{words.number(one.behind)} behind", "late" if one.behind else "calm"))
    if one.age_s:
        lines.append((f"{words.span(one.age_s)} old", "late"))
    if one.refused:
        lines.append((f"{words.number(one.refused)} refused", "broken"))
    for place, (text, kind) in enumerate(lines):
        yield Text(x, y + (LINE * place if above == 1 else LINE * place - 23 if place < 2 else LINE * place - 12), anchor, text, kind)
