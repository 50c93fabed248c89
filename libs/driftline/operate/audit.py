"""
Who did what, when and why, and the proof that control still holds it as it was: the audit chain, computed again from the topics.

A link is over the one before it (`contracts.chain`), and every link is published, so each record can be tried against each place on its
own. That is how one that was altered is told from one that was removed or put in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from driftline.contracts.chain import START, link, seal
from driftline.contracts.messages import Deployment, Fact, Operator, Release, Retrain, Writer, facts
from driftline.contracts.registry import Registry
from driftline.contracts.topics import Topics
from driftline.operate.addresses import Addresses
from driftline.operate.commands import everything, facts_in
from driftline.operate.models import day
from driftline.pipeline import Pipeline
from driftline.stream.batch import Batch
from driftline.stream.records import Decoder, Polled, schema_ids
from driftline.stream.whole import as_written

LOOK_AHEAD = 200  # places on either side among which a record or an answer that does not fit is looked for
BY_ITSELF = ("drift", "trainer")  # who is no person


@dataclass(frozen=True, slots=True)
class Record:
    """A record of control as it is on the log."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None


@dataclass(frozen=True, slots=True)
class Answer:
    """The rollout's answer to the record of control at `cause`; `at` is its own offset."""

    at: int
    cause: int
    deployment: Deployment


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with the records of control from `first` to `last`."""

    what: str
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Command:
    """What somebody asked for, and what came of it."""

    when_ms: int
    who: str
    what: str
    why: str
    outcome: str
    place: str


@dataclass(frozen=True, slots=True)
class Seal:
    """What a release says of the commands to the trainer: the digest of all that were there from offset `first` to its own, `last`."""

    first: int
    last: int
    digest: str


@dataclass
class Audit:
    """What control and its answers say. The chain is whole when there are no `findings`."""

    control: str
    start: int = 0  # control's first offset: Kafka has deleted what was below
    records: int = 0
    answers: int = 0
    unanswered: int = 0
    before: int = 0  # answers of before there was a chain
    head: str = START
    head_at: int = -1
    links: set[str] = field(default_factory=set)
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # on the trainer's commands
    commands: list[Command] = field(default_factory=list)


async def read_audit(addresses: Addresses, pipeline: Pipeline) -> Audit:
    """Read control, its answers and the trainer's, and prove the chain. Raises Recoverable when Kafka does not answer."""
    topics, registry = Topics.of(pipeline), Registry(addresses.registry)
    _, deployed = await as_written(addresses.kafka, topics.deployments.name)  # first, or what comes meanwhile had an answer and no record
    start, control = await as_written(addresses.kafka, topics.control.name)
    decoder = Decoder(topics.deployments, registry, pipeline)
    answers = [one for part in _by_version(deployed) for one in _answers(decoder, part)]
    audit = prove(topics.control.name, start, list(_records(control)), answers)
    unread = len(deployed) - len(answers)
    if unread:
        audit.findings.append(Finding(f"{unread} records of {topics.deployments.name} are no answers of the rollout", -1, -1))
    given = {one.cause: one.deployment for one in reversed(answers)}
    decoder = Decoder(topics.control, registry, pipeline)
    batches = [decoder.decode(0, part)[0] for part in _by_version(control)]
    stamped = dict(zip(control.offsets.tolist(), control.timestamps.tolist(), strict=True)) if len(control) else {}
    audit.commands += [one for batch in batches for one in _commands(batch, given, stamped, topics.control.name)]
    start, retrain = await as_written(addresses.kafka, topics.retrain.name)
    prove_commands(audit, topics.retrain.name, start, list(_records(retrain)), [one for batch in batches for one in _seals(batch)])
    audit.commands += await _retrains(addresses, topics, retrain, Decoder(topics.retrain, registry, pipeline))
    audit.commands.sort(key=lambda one: one.when_ms)
    return audit


def prove(control: str, start: int, records: Sequence[Record], answers: Sequence[Answer]) -> Audit:
    """Whether `records`, all that control holds from offset `start` on, are those that were answered, in their order."""
    audit = Audit(control, start, len(records))
    firsts = _first_copies(answers, audit)
    audit.before = sum(not one.deployment.chain for one in firsts)
    chained = [one for one in firsts if one.deployment.chain]
    audit.answers = len(firsts)
    audit.findings += _unlinked(firsts)
    if chained:
        began = audit.before > 0 or chained[0].cause in (0, start)
        if not began:
            audit.findings.append(Finding("has lost its answer", start, chained[0].cause - 1))
        audit.head_at, audit.head = chained[-1].cause, chained[-1].deployment.chain
        audit.links = {one.deployment.chain for one in chained}
        mine = [one for one in records if one.offset >= chained[0].cause]
        audit.unanswered = _walk(_Place(mine, chained, began), start, audit)
    audit.findings = _merged(audit.findings)
    return audit


def prove_commands(audit: Audit, topic: str, start: int, records: Sequence[Record], seals: Sequence[Seal]) -> None:
    """
    Whether the trainer's commands, all that their topic holds from offset `start` on, are those that releases have sealed: adds a finding
    for the first that are not, and says up to where they are proved. The releases themselves are on control, and so in the chain.
    """
    proved = start - 1
    for one in sorted(seals, key=lambda one: one.last):
        if one.first < start:
            continue  # deleted from the log's start by Kafka: the next seal begins later
        mine = [(each.offset, each.timestamp, each.key, each.value) for each in records if one.first <= each.offset <= one.last]
        if seal(mine) != one.digest:
            words = f"{topic}@{proved + 1} to @{one.last}: a command was altered, removed or put in since the release of @{one.last}"
            audit.findings.append(Finding(words, -1, -1))
            break
        proved = one.last
    left = sum(one.offset > proved for one in records)
    audit.notes.append(f"{topic}: {len(records):,} commands, {len(records) - left:,} sealed by a release, {left:,} not sealed")
    if start:
        audit.notes.append(f"  below @{start} Kafka has deleted the log")


def _first_copies(answers: Sequence[Answer], audit: Audit) -> list[Answer]:
    """By cause. A copy, as after a crash, is the same again; one that is not says that the rollout folded control to another end."""
    firsts: dict[int, Answer] = {}
    for one in answers:
        if firsts.setdefault(one.cause, one).deployment != one.deployment:
            audit.findings.append(Finding("was answered twice, and not the same", one.cause, one.cause))
    return [firsts[cause] for cause in sorted(firsts)]


def _unlinked(answers: Sequence[Answer]) -> Iterator[Finding]:
    """Answers that have lost their link, or that are not there: the link after them cannot be proved."""
    for former, one in pairwise(answers):
        if former.deployment.chain and not one.deployment.chain:
            yield Finding("has an answer without a link", one.cause, one.cause)
        if one.cause > former.cause + 1:
            yield Finding("has lost its answer", former.cause + 1, one.cause - 1)


def _walk(place: _Place, start: int, audit: Audit) -> int:
    """Go along both, adding what does not fit to the findings. Returns how many records wait for their answer at the end."""
    records, answers = place.records, place.answers
    shift = 0  # of the offsets that records have in a copy of the topic, against those that they were answered at
    while place.record < len(records) and place.answer < len(answers):
        record, cause = records[place.record], answers[place.answer].cause
        if cause < start:
            place.answer += 1  # deleted from the log's start by Kafka: told, and no break
        elif not place.provable(place.answer):
            place.answer += record.offset >= cause
            place.record += record.offset <= cause
        elif place.fits(place.record, place.answer):
            shift = record.offset - cause
            place.record, place.answer = place.record + 1, place.answer + 1
        elif (later := place.next_fit()) is not None:
            audit.findings += [Finding("was put in", one.offset, one.offset) for one in records[place.record : later.record]]
            audit.findings += [Finding("was removed", one.cause, one.cause) for one in answers[place.answer : later.answer]]
            place = later
        else:
            in_place = record.offset - shift == cause
            audit.findings.append(Finding("or its answer was altered" if in_place else "was removed", cause, cause))
            place.record += record.offset - shift <= cause
            place.answer += 1
    audit.findings += [Finding("was removed", one.cause, one.cause) for one in answers[place.answer :] if one.cause >= start]
    return len(records) - place.record


@dataclass
class _Place:
    """How far records and answers were gone along."""

    records: Sequence[Record]
    answers: Sequence[Answer]
    began: bool  # the first answer is that of the chain's first link
    record: int = 0
    answer: int = 0

    def provable(self, number: int) -> bool:
        """Whether the link before this answer is known."""
        return self.answers[number - 1].cause == self.answers[number].cause - 1 if number else self.began

    def fits(self, record: int, answer: int) -> bool:
        """Whether this record was the one that got this answer."""
        before = self.answers[answer - 1].deployment.chain if answer else START
        mine, one = self.records[record], self.answers[answer]
        return link(before, one.cause, mine.timestamp, mine.key, mine.value, one.deployment) == one.deployment.chain

    def next_fit(self) -> _Place | None:
        """The nearest place at which the record that is here finds its answer, or the answer that is here its record."""
        for further in range(1, LOOK_AHEAD):
            record, answer = self.record + further, self.answer + further
            if record < len(self.records) and self.fits(record, self.answer):
                return replace(self, record=record)
            if answer < len(self.answers) and self.provable(answer) and self.fits(self.record, answer):
                return replace(self, answer=answer)
        return None


def _merged(findings: Sequence[Finding]) -> list[Finding]:
    """Neighbours of which the same is said as one."""
    merged: list[Finding] = []
    for one in sorted(findings, key=lambda one: (one.first, one.what)):
        last = merged[-1] if merged else None
        if last is not None and last.what == one.what and last.last + 1 >= one.first >= 0:
            merged[-1] = Finding(last.what, last.first, max(last.last, one.last))
        else:
            merged.append(one)
    return merged


def _records(polled: Polled) -> Iterator[Record]:
    for at in range(len(polled)):
        yield Record(int(polled.offsets[at]), int(polled.timestamps[at]), polled.keys.get(at), polled.values.get(at))


def _by_version(polled: Polled) -> list[Polled]:
    """Runs of records of one schema: in a batch of several versions only the fields that all have are kept."""
    cuts = [0, *(np.flatnonzero(np.diff(schema_ids(polled.values))) + 1).tolist(), len(polled)]
    return [polled.part(first, last) for first, last in pairwise(cuts) if first < last]


def _answers(decoder: Decoder, polled: Polled) -> list[Answer]:
    table = decoder.decode(0, polled)[0]["deployment"]
    if table is None:
        return []
    return [Answer(at, cause, one) for at, cause, one in zip(table.offsets.tolist(), table["offset"].tolist(), facts(table), strict=True)]


def _commands(batch: Batch, given: Mapping[int, Deployment], stamped: Mapping[int, int], topic: str) -> Iterator[Command]:
    """The commands of people in a batch of control, a release that somebody offered among them."""
    for message in ("operator", "release"):
        table = batch[message]
        for offset, one in () if table is None else zip(table.offsets.tolist(), facts(table), strict=True):
            if isinstance(one, Operator) or one.who not in BY_ITSELF:  # a person may have such a name
                answer = given.get(offset)
                outcome = "not answered yet" if answer is None else f"{answer.move}: {answer.reason}"
                yield Command(stamped[offset], one.who, _what(one), one.reason, outcome, f"{topic}@{offset}")


def _seals(batch: Batch) -> Iterator[Seal]:
    """What the trainer's releases in a batch of control say of its commands; those of before there were seals say nothing."""
    table = batch["release"]
    for last, writer, one in () if table is None else zip(table["offset"].tolist(), table["writer"].tolist(), facts(table), strict=True):
        told = one.evidence.get("commands")
        if writer == Writer.TRAINER and isinstance(told, dict) and isinstance(first := told.get("from"), int):
            yield Seal(first, last, str(told.get("sha256")))


def _what(fact: Fact) -> str:
    if isinstance(fact, Operator):
        return f"{fact.action} {fact.model}".strip()
    return f"offer {fact.model}" if isinstance(fact, Release) else "command"


async def _retrains(addresses: Addresses, topics: Topics, polled: Polled, decoder: Decoder) -> list[Command]:
    """The retrain commands of people, with how they ended."""
    outcomes = {one.id: one for batch in await everything(addresses, topics.summaries) for one in facts_in(batch, "trained")}
    stamped = dict(zip(polled.offsets.tolist(), polled.timestamps.tolist(), strict=True)) if len(polled) else {}
    found: list[Command] = []
    for part in _by_version(polled):
        table = decoder.decode(0, part)[0]["retrain"]
        asked: list[tuple[int, Retrain]] = [] if table is None else list(zip(table.offsets.tolist(), facts(table), strict=True))
        for offset, one in asked:
            if one.who not in BY_ITSELF:
                ended = outcomes.get(one.id)
                outcome = "not answered yet" if ended is None else f"{ended.outcome}: {ended.reason}"
                why = str(one.evidence.get("because", ""))
                found.append(Command(stamped[offset], one.who, f"retrain ({one.trigger})", why, outcome, f"{topics.retrain.name}@{offset}"))
    return found


def expected(audit: Audit, head: str) -> Audit:
    """The same, with a finding when the chain does not go through `head`: then both topics were written anew."""
    if head and head not in audit.links:
        audit.findings.append(Finding(f"no answer has the link {head}: these are not the topics that it was noted from", -1, -1))
    return audit


def print_audit(audit: Audit, console: Console) -> None:
    """The commands of people, oldest first; then whether the chain is whole, its head, and what breaks it."""
    grid = Grid("when", "who", "what", "why", "what came of it", "where", box=None, pad_edge=False)
    for one in audit.commands:
        grid.add_row(day(one.when_ms), *(Text(words) for words in (one.who, one.what, one.why, one.outcome, one.place)))
    console.print(grid if audit.commands else "nobody has given a command")
    console.print()
    for line in told(audit):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def told(audit: Audit) -> list[str]:
    """The state of the chain in lines."""
    lines = [f"{audit.control}: {audit.records:,} records, {audit.answers:,} answers, {audit.unanswered:,} not answered yet"]
    if audit.start:
        lines.append(f"  below @{audit.start} Kafka has deleted the log; their answers, and the links in them, are still there")
    if audit.before:
        lines.append(f"  {audit.before:,} answers are of before there was a chain: they prove nothing")
    lines += [f"  BROKEN: {_worded(audit.control, one)}" for one in audit.findings]
    if audit.head:
        lines.append(f"  head: @{audit.head_at} {audit.head}")
    lines += audit.notes
    return [*lines, "the chain is broken" if audit.findings else "the chain is whole" if audit.head else "there is no chain yet"]


def _worded(control: str, finding: Finding) -> str:
    if finding.first < 0:
        return finding.what
    last = "" if finding.first == finding.last else f" to @{finding.last}"
    return f"{control}@{finding.first}{last} {finding.what}"
