"""The labeler says of every answer what became of it, once it can be known, whatever order the journal was written in."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from driftline.contracts.avro import Codec, pack_strings
from driftline.contracts.messages import Source, Writer, schema
from driftline.errors import Invalid
from driftline.stream.batch import Batch, Effects, Table, Varlen
from services.labeler.core import Labeler
from services.labeler.joining import ANSWER
from services.labeler.waiting import META, SEGMENT

TICK_MS = 10
HORIZON_MS = 100
REVISIONS_MS = 100
START_MS = 1_000
TEXTS = {"id", "key", "arm", "model", "digest", "origin", "slices", "row"}
FLOATS = {"score": np.float32, "share": np.float32}

Record = tuple[str, dict[str, Any]]


def declared(if_silent: str = "positive", **changes: Any) -> Any:
    """As much of a pipeline as the labeler reads."""
    label = {"horizon_ms": HORIZON_MS, "revisions_ms": REVISIONS_MS, "waiting_max": 1_000_000, "if_silent": if_silent} | changes
    return SimpleNamespace(name="flights", label=SimpleNamespace(**label))


def answer(id: str, asked: int, event_offset: int = 0, index: int = 0, **fields: Any) -> Record:
    """What inference writes of one row and arm."""
    given = {"id": id, "key": "N1", "visible": asked, "event_offset": event_offset, "index": index, "score": 0.25, "flags": 0}
    arm = {"deployment": 1, "arm": "champion", "share": 1.0, "shadow": index > 0, "model": "flights-1", "digest": "d1"}
    return "answer", given | arm | {"slices": pack_strings(["EWR", "UA"]), "row": b"\0\0", "writer": Writer.INFERENCE, **fields}


def outcome(id: str, visible: int, label: int = 0) -> Record:
    """What the feature service writes of an outcome."""
    return "outcome", {"id": id, "visible": visible, "label": label, "origin": "arrivals", "writer": Writer.FEATURE}


def tick(writer: Writer, time: int, deployment: int = 1) -> Record:
    """A writer's tick."""
    return "tick", {"source": 0, "offset": time // TICK_MS, "time": time, "deployment": deployment, "writer": writer}


def both(time: int) -> list[Record]:
    """The tick of both writers."""
    return [tick(Writer.FEATURE, time), tick(Writer.INFERENCE, time)]


def until(first: int, last: int) -> list[Record]:
    """All ticks of both writers from `first` to `last`."""
    return [record for time in range(first, last + 1, TICK_MS) for record in both(time)]


def batch_of(journal: Sequence[Record], first: int, end: int) -> Batch:
    """The records at offsets `first` to `end`, by column."""
    tables = {}
    for message in ("answer", "outcome", "tick"):
        mine = [(offset, journal[offset][1]) for offset in range(first, end) if journal[offset][0] == message]
        if mine:
            columns = {name: column_of(name, [fields[name] for _, fields in mine]) for name in mine[0][1]}
            tables[message] = Table(message, np.array([offset for offset, _ in mine], np.int64), columns)
    return Batch(0, first, end, tables)


def column_of(name: str, values: list[Any]) -> Any:
    if name == "traceparent":
        return Varlen.optional(values)
    if name in TEXTS:
        return Varlen.of(values)
    return np.array(values, np.bool_ if name == "shadow" else FLOATS.get(name, np.int64))


class Run:
    """A labeler over a journal, cut into batches; with `reload` a new one for each batch, from the stored rows alone."""

    def __init__(self, journal: Sequence[Record], cuts: Iterable[int] = (), reload: bool = False, pipeline: Any = None) -> None:
        self.rows: dict[bytes, bytes] = {}
        self.sent: list[dict[str, Any]] = []
        self.counts: dict[str, int] = {}
        self._pipeline = pipeline or declared()
        self.labeler = Labeler(self._pipeline, 0)
        for first, end in pairwise([0, *sorted({*cuts} - {0, len(journal)}), len(journal)]):
            if reload:
                self.labeler = Labeler(self._pipeline, 0)
            self.step(batch_of(journal, first, end))

    def step(self, batch: Batch) -> None:
        while keys := self.labeler.needs(batch):
            self.labeler.load({key: self.rows.get(key) for key in keys})
        bound = self.labeler.touches(batch)
        effects = self.labeler.step(batch)
        assert len(effects.state) <= bound
        assert sum(effects.counts.values()) == len(batch)
        for key, row in effects.state.items():
            if row is None:
                self.rows.pop(key, None)
            else:
                self.rows[key] = row
        self.counts = {name: self.counts.get(name, 0) + count for name, count in effects.counts.items()}
        self.sent += in_order(effects)

    @property
    def examples(self) -> list[dict[str, Any]]:
        return [one for one in self.sent if one["message"] == "example"]

    @property
    def labels(self) -> list[tuple[str, int, int]]:
        """Id, revision and label of each example, as sent."""
        return [(one["id"], one["revision"], one["label"]) for one in self.examples]


def in_order(effects: Effects) -> list[dict[str, Any]]:
    """All messages for examples as the loop sends them: by order, ties as listed."""
    found = []
    for messages in effects.messages:
        assert messages.topic == "examples"
        records = Table(messages.message, messages.order, messages.columns).records()
        found += [(order, record | {"message": messages.message}) for order, record in zip(messages.order.tolist(), records, strict=True)]
    return [record for _, record in sorted(found, key=lambda one: one[0])]


def content(sent: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages without where on the journal they were caused, which depends on how its writers interleaved."""
    return [{name: value for name, value in one.items() if one["message"] == "tick" or name != "offset"} for one in sent]


def test_outcome_labels_the_answer_once_the_horizon_has_passed() -> None:
    """
    The example comes with the first tick after asked plus horizon, and carries what the answer said.
    """
    run = Run([*both(1_000), answer("a", 1_005, 7, score=0.75), outcome("a", 1_050, label=1), *until(1_010, 1_110)])
    assert run.labels == [("a", 0, 1)]
    example = run.examples[0]
    assert (example["asked"], example["known"], example["event_offset"], example["answer_index"]) == (1_005, 1_110, 7, 0)
    assert (example["score"], example["arm"], example["digest"], example["origin"]) == (0.75, "champion", "d1", "arrivals")
    assert example["slices"].encode() == pack_strings(["EWR", "UA"])
    assert (example["source"], example["index"]) == (Source.JOURNAL, 0)


TRACE = f"00-{'a' * 32}-{'b' * 16}-01"


@pytest.mark.parametrize("reload", [False, True])
def test_the_trace_context_of_an_answer_goes_to_its_example(reload: bool) -> None:
    """
    In memory and through the store, to revisions too; an example of an answer without has none.
    """
    journal = [*both(1_000), answer("a", 1_005, 7, traceparent=TRACE), answer("b", 1_005, 8, traceparent=None), *until(1_010, 1_110)]
    journal += [outcome("a", 1_111, 0), *until(1_120, 1_130)]
    run = Run(journal, range(len(journal)), reload)
    assert [(one["id"], one["revision"], one["traceparent"]) for one in run.examples] == [("a", 0, TRACE), ("b", 0, None), ("a", 1, TRACE)]


def test_rows_from_before_there_were_trace_contexts_are_read_as_without_any() -> None:
    """
    Where there is none, a row is to the last bit what it was, in the format of then: flags of four bytes.
    """
    then = [(name, "i4" if name == "flags" else kind) for name, kind in ANSWER.descr if name != "traceparent_bytes"]
    run = Run([*both(1_000), *(answer(f"a{at}", 1_005, at, flags=at % 8) for at in range(20)), *both(1_010)])
    (row,) = [row for name, row in run.rows.items() if name.startswith(b"w:")]
    records = np.frombuffer(msgspec.msgpack.decode(row)[1], then)
    assert records["flags"].tolist() == [at % 8 for at in range(20)]
    for name in records.dtype.names or ():
        assert np.array_equal(records[name], run.labeler._answers.records[name]), name


def test_nothing_is_settled_before_its_horizon() -> None:
    """
    An outcome that is known early waits: quality is judged on matured answers alone.
    """
    run = Run([*both(1_000), answer("a", 1_005), outcome("a", 1_006), *until(1_010, 1_100)])
    assert run.examples == []
    assert run.labeler.waiting == 1


def test_outcome_at_the_very_end_of_the_horizon_counts() -> None:
    """
    The tick at the deadline comes before what is visible at it, so the answer is settled by the next one.
    """
    journal = [*both(1_000), answer("a", 1_000), *until(1_010, 1_100), outcome("a", 1_100), *both(1_110)]
    assert Run(journal).labels == [("a", 0, 0)]


def test_outcome_may_come_before_its_answer() -> None:
    """
    The journal's writers are not in step: an outcome is held until its answer is settled.
    """
    run = Run([*both(1_000), outcome("a", 1_001, label=0), answer("a", 1_005), *until(1_010, 1_110)])
    assert run.labels == [("a", 0, 0)]


@pytest.mark.parametrize(
    ("if_silent", "label", "total"), [("positive", 1, "expired"), ("negative", 0, "expired"), ("excluded", -1, "excluded")]
)
def test_silence_means_what_the_pipeline_declares(if_silent: str, label: int, total: str) -> None:
    """
    An answer that nobody told anything of gets the declared label, from silence.
    """
    run = Run([*both(1_000), answer("a", 1_005), *until(1_010, 1_110)], pipeline=declared(if_silent))
    assert run.labels == [("a", 0, label)]
    assert run.examples[0]["origin"] == "silence"
    assert run.labeler.totals == {total: 1}


def test_newest_of_two_outcomes_wins_by_visible_time() -> None:
    """
    Order of arrival decides only between equal visible times.
    """
    journal = [*both(1_000), answer("a", 1_005), outcome("a", 1_060, 1), outcome("a", 1_050, 0), *until(1_010, 1_110)]
    assert Run(journal).labels == [("a", 0, 1)]
    journal = [*both(1_000), answer("a", 1_005), outcome("a", 1_060, 1), outcome("a", 1_060, 0), *until(1_010, 1_110)]
    assert Run(journal).labels == [("a", 0, 0)]


def test_late_outcome_revises_the_label() -> None:
    """
    Truth that comes after the horizon supersedes silence, with the next revision, by the next tick.
    """
    run = Run([*both(1_000), answer("a", 1_005), *until(1_010, 1_120), outcome("a", 1_125, 0), *both(1_130)])
    assert run.labels == [("a", 0, 1), ("a", 1, 0)]
    assert [one["known"] for one in run.examples] == [1_110, 1_130]


def test_late_outcome_that_agrees_revises_nothing() -> None:
    """
    A revision is sent only where the label changes.
    """
    assert Run([*both(1_000), answer("a", 1_005), *until(1_010, 1_120), outcome("a", 1_125, 1), *both(1_130)]).labels == [("a", 0, 1)]


def test_older_outcome_never_revises_a_newer_one() -> None:
    """
    What was visible earlier than the outcome that gave the label is not news.
    """
    late = [*until(1_010, 1_120), outcome("a", 1_040, 0), *both(1_130)]
    assert Run([*both(1_000), answer("a", 1_005), outcome("a", 1_050, 1), *late]).labels == [("a", 0, 1)]


def test_outcome_after_the_time_for_revisions_changes_nothing() -> None:
    """
    Beyond horizon and revisions the answer is closed.
    """
    run = Run([*both(1_000), answer("a", 1_005), *until(1_010, 1_200), outcome("a", 1_206, 0), *until(1_210, 1_400)])
    assert run.labels == [("a", 0, 1)]


def test_outcome_between_deadline_and_settling_is_a_revision() -> None:
    """
    The first label never depends on where the ticks fall: what was visible after the horizon is not in it.
    """
    run = Run([*both(1_000), answer("a", 1_005), *until(1_010, 1_100), outcome("a", 1_107, 0), *both(1_110)])
    assert run.labels == [("a", 0, 1), ("a", 1, 0)]


def test_excluded_answer_is_labelled_when_its_outcome_comes_late() -> None:
    """
    Silence that means nothing gives way to a late truth.
    """
    journal = [*both(1_000), answer("a", 1_005), *until(1_010, 1_120), outcome("a", 1_125, 1), *both(1_130)]
    assert Run(journal, pipeline=declared("excluded")).labels == [("a", 0, -1), ("a", 1, 1)]


def test_every_arm_and_shadow_gets_its_example() -> None:
    """
    The arm that was served comes first, then the shadows, in order of their index.
    """
    shadows = [
        answer("a", 1_005, 3, index, arm=arm, digest=arm, score=score)
        for index, arm, score in ((1, "frozen", 0.5), (2, "candidate", 0.125))
    ]
    run = Run([*both(1_000), answer("a", 1_005, 3), *shadows, outcome("a", 1_020, 1), *until(1_010, 1_110)])
    assert [(one["answer_index"], one["arm"], one["score"]) for one in run.examples] == [
        (0, "champion", 0.25),
        (1, "frozen", 0.5),
        (2, "candidate", 0.125),
    ]
    assert [one["index"] for one in run.examples] == [0, 1, 2]


def test_answers_of_one_tick_are_settled_by_time_of_asking() -> None:
    """
    Then by event offset, then by index, whatever order they lie in on the journal.
    """
    journal = [*both(1_000), answer("c", 1_007, 1), answer("b", 1_006, 2), answer("a", 1_006, 0), *until(1_010, 1_110)]
    assert [id for id, _, _ in Run(journal).labels] == ["a", "b", "c"]


def test_outcome_without_answer_is_dropped_and_counted_after_the_horizon() -> None:
    """
    An orphan is held for one horizon, no longer.
    """
    run = Run([*both(1_000), outcome("x", 1_005), *until(1_010, 1_100)])
    assert (run.labeler.outcomes_held, run.labeler.orphans) == (1, 0)
    run = Run([*both(1_000), outcome("x", 1_005), *until(1_010, 1_110)])
    assert (run.labeler.outcomes_held, run.labeler.orphans) == (0, 1)


def test_joined_outcome_is_no_orphan() -> None:
    """
    Being forgotten after use is not counted.
    """
    run = Run([*both(1_000), answer("a", 1_005), outcome("a", 1_009), *until(1_010, 1_400)])
    assert (run.labeler.outcomes_held, run.labeler.orphans) == (0, 0)
    assert run.labeler.coverage == 1.0


def test_ticks_are_passed_on_once_with_the_slower_writer() -> None:
    """
    Examples tick when both writers have, by number, naming the deployment in force.
    """
    ahead = [tick(Writer.FEATURE, 1_000, 4), tick(Writer.FEATURE, 1_010, 5), tick(Writer.FEATURE, 1_020, 5)]
    run = Run([*ahead, tick(Writer.INFERENCE, 1_000, 4), tick(Writer.INFERENCE, 1_010, 5)])
    assert [(one["source"], one["partition"], one["offset"], one["time"], one["deployment"]) for one in run.sent] == [
        (Source.TICK, 0, 100, 1_000, 4),
        (Source.TICK, 0, 101, 1_010, 5),
    ]


def test_examples_come_before_the_tick_that_settled_them() -> None:
    """
    Who reads examples up to a tick has every label that was settled by then.
    """
    run = Run([*both(1_000), answer("a", 1_005), *until(1_010, 1_120)])
    at = [one["message"] for one in run.sent].index("example")
    assert [run.sent[at + 1]["message"], run.sent[at + 1]["time"]] == ["tick", 1_110]


def test_what_is_sent_fits_its_schema() -> None:
    """
    Every message encodes, once the loop has filled in its header, and decodes to what was sent.
    """
    labeler = Labeler(declared(), 0)
    labeler.load({META: None})
    journal = [*both(1_000), answer("a", 1_005, score=float("nan")), *until(1_010, 1_110)]
    messages = labeler.step(batch_of(journal, 0, len(journal))).messages
    assert [one.message for one in messages] == ["example", "tick"]
    for one in messages:
        codec, ones = Codec(schema(one.message)), np.ones(len(one), np.int64)
        values = codec.encode({"writer": ones * Writer.LABELER, "partition": ones * 0, **one.columns})
        columns, bad = codec.decode(values)
        assert not bad.any()
        assert Table(one.message, one.order, columns)["event_offset"].tolist() == one.columns["event_offset"].tolist()  # type: ignore[union-attr]


def test_a_row_tells_nothing_of_arms_whose_answers_are_gone() -> None:
    """
    Between two answers of one segment the first is forgotten. Whether a batch ended there must not show in the row: it once did.
    """
    journal = [*both(1_000), answer("a", 1_005), *until(1_010, 1_400), answer("b", 1_405, deployment=2, model="flights-2", digest="d2")]
    one, two = Run(journal), Run(journal, cuts=[len(journal) - 1])
    assert one.rows == two.rows
    assert one.labeler.waiting == 1


@pytest.mark.parametrize("broken", [b"", b"\x93\x90\xc4\x00\xc4\x00", b"\x93\x90\xc4\x01a\xc4\x00"])
def test_a_row_whose_parts_do_not_fit_is_refused(broken: bytes) -> None:
    """
    Cut short, empty, or with records of another size; so is one whose texts were cut short.
    """
    run = Run([*both(1_000), answer("a", 1_005)])
    named, key = run.rows[META], next(key for key in run.rows if key != META)
    for row in (broken, msgspec.msgpack.encode([*msgspec.msgpack.decode(run.rows[key])[:2], b""])):
        labeler = Labeler(declared(), 0)
        labeler.load({META: named})
        with pytest.raises((Invalid, msgspec.MsgspecError)):
            labeler.load({key: row})


def test_nothing_is_left_when_all_is_over() -> None:
    """
    State returns to its one small row.
    """
    run = Run([*both(1_000), answer("a", 1_005), outcome("a", 1_009), outcome("x", 1_009), *until(1_010, 1_400)])
    assert set(run.rows) == {META}
    assert run.labeler.waiting == 0


def test_oldest_answers_are_given_up_at_the_limit() -> None:
    """
    With more answers than may wait, the oldest is settled at once, excluded, and counted; memory never grows.
    """
    answers = [answer(f"a{number}", 1_001 + number, number) for number in range(5)]
    run = Run([*both(1_000), *answers, *until(1_010, 1_110)], pipeline=declared(waiting_max=3))
    assert run.labels[:2] == [("a0", 0, -1), ("a1", 0, -1)]
    assert {one["origin"] for one in run.examples[:2]} == {"limit"}
    assert [one["offset"] for one in run.examples[:2]] == [5, 6]
    assert [id for id, _, label in run.labels if label == 1] == ["a2", "a3", "a4"]
    assert run.labeler.totals["limit"] == 2


def test_outcomes_are_forgotten_at_the_limit() -> None:
    """
    Outcomes that nobody asked about cannot fill the memory either.
    """
    run = Run([*both(1_000), *[outcome(f"x{number}", 1_001) for number in range(9)]], pipeline=declared(waiting_max=3))
    assert run.labeler.outcomes_held == 3
    assert run.labeler.totals["orphan_limit"] == 6


def test_pipeline_without_a_label_is_refused() -> None:
    """
    There is nothing to join.
    """
    with pytest.raises(Invalid, match="flights"):
        Labeler(SimpleNamespace(name="flights", label=None), 0)  # type: ignore[arg-type]


def test_lost_row_is_refused_by_name() -> None:
    """
    A row that the first one names but the store has not is told, with the command that helps.
    """
    run = Run([*both(1_000), answer("a", 1_005)])
    labeler = Labeler(declared(), 0)
    labeler.load({META: run.rows[META]})
    with pytest.raises(Invalid, match="rebuild"):
        labeler.load({key: None for key in labeler.needs(batch_of([], 0, 0))})


def drawn_lanes(draw: random.Random) -> tuple[list[Record], list[Record]]:
    """What inference and the feature service write, each in its own order, with everything that may happen."""
    ids = [f"q{number}" for number in range(draw.randint(1, 40))]
    last = START_MS + 500
    inference: list[tuple[int, Record]] = []
    feature: list[tuple[int, Record]] = []
    for number, id in enumerate(ids):
        asked = draw.randrange(START_MS, START_MS + 200)
        inference += [(asked, answer(id, asked, number, index)) for index in range(draw.randint(0, 3))]
        for _ in range(draw.choice([0, 1, 1, 2, 3])):
            visible = asked + draw.randrange(-20, 230)
            arrives = visible + draw.choice([0, 0, 0, 30, 120])  # out of order by less or more than a tick
            feature.append((max(arrives, START_MS), outcome(id, visible, draw.randint(0, 1))))
    return laid(inference, Writer.INFERENCE, last), laid(feature, Writer.FEATURE, last)


def laid(records: list[tuple[int, Record]], writer: Writer, last: int) -> list[Record]:
    """Records by time of arrival, the writer's ticks among them."""
    ticks = [((time, 0), tick(writer, time)) for time in range(START_MS, last + 1, TICK_MS)]
    found = [((time, 1), record) for time, record in records]
    return [record for _, record in sorted([*ticks, *found], key=lambda one: one[0])]


def interleaved(draw: random.Random, one: list[Record], other: list[Record]) -> list[Record]:
    """One journal of two lanes, each in its own order."""
    lanes = [list(one), list(other)]
    return [lane.pop(0) for lane in iter(lambda: draw.choice([lane for lane in lanes if lane] or [None]), None)]  # type: ignore[arg-type]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32))
def test_same_examples_in_the_same_order_however_the_writers_interleave(seed: int) -> None:
    """
    Whichever writer is ahead, and by how much, the topic of examples reads the same.
    """
    draw = random.Random(seed)
    inference, feature = drawn_lanes(draw)
    first = content(Run([*inference, *feature]).sent)
    assert content(Run([*feature, *inference]).sent) == first
    assert content(Run(interleaved(draw, inference, feature)).sent) == first


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32))
def test_same_examples_and_same_state_wherever_the_journal_is_cut(seed: int) -> None:
    """
    Batches cut anywhere, each worked on by a new labeler that knows the stored rows alone, leave the same messages and bytes.
    """
    draw = random.Random(seed)
    journal = interleaved(draw, *drawn_lanes(draw))
    pipeline = declared(waiting_max=draw.choice([5, 1_000]))
    whole = Run(journal, pipeline=pipeline)
    cuts = draw.sample(range(len(journal)), k=min(len(journal), draw.randint(0, 12)))
    parts = Run(journal, cuts, reload=True, pipeline=pipeline)
    assert parts.sent == whole.sent
    assert parts.rows == whole.rows
    assert parts.labeler.totals == whole.labeler.totals


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32))
def test_labels_are_those_of_the_definition(seed: int) -> None:
    """
    Against a few lines that know nothing of ticks: newest outcome visible within the horizon, else silence.
    """
    draw = random.Random(seed)
    inference, feature = drawn_lanes(draw)
    # Outcomes that arrive after their answer was settled make revisions: left out here.
    timely = [record for record in feature if record[0] == "tick" or arrived_in_time(feature, record, inference)]
    first = {
        (one["id"], one["answer_index"]): one["label"] for one in Run(interleaved(draw, inference, timely)).examples if one["revision"] == 0
    }
    expected = {}
    for message, one in inference:
        if message == "answer":
            told = [
                (other["visible"], at, other["label"])
                for at, (kind, other) in enumerate(timely)
                if kind == "outcome" and other["id"] == one["id"] and other["visible"] <= one["visible"] + HORIZON_MS
            ]
            expected[one["id"], one["index"]] = max(told)[2] if told else 1
    assert first == expected


def arrived_in_time(lane: list[Record], record: Record, answers: list[Record]) -> bool:
    """Whether an outcome lies before the first of its writer's ticks that settles an answer to its question."""
    before = [fields["time"] for message, fields in lane[: lane.index(record)] if message == "tick"][-1]
    asked = [fields["visible"] for message, fields in answers if message == "answer" and fields["id"] == record[1]["id"]]
    return all(before <= time + HORIZON_MS for time in asked)


def test_state_is_bounded_by_what_waits() -> None:
    """
    After ten horizons of steady load the rows are no more than the answers and outcomes that may still matter.
    """
    journal: list[Record] = []
    for number, time in enumerate(range(START_MS, START_MS + 10 * HORIZON_MS, TICK_MS)):
        journal += both(time)
        for more in range(20):
            journal += [answer(f"q{number}-{more}", time + 1, number * 20 + more), outcome(f"q{number}-{more}", time + 5)]
    run = Run(journal, cuts=range(0, len(journal), 97))
    held = 20 * (HORIZON_MS + REVISIONS_MS + 2 * TICK_MS) // TICK_MS
    assert run.labeler.waiting <= held
    assert len(run.rows) <= 2 * (held // SEGMENT + 2) + 1


def test_an_outcome_with_a_label_that_is_none_is_told_apart() -> None:
    """
    Before coordinates are compared, so that it does not stand in the way of the true one.
    """
    journal = [outcome("a", 1_000, 2), outcome("b", 1_000, 1), outcome("c", 1_000, -1), outcome("d", 1_000, 0)]
    found = Labeler(declared(), 0).unfit(batch_of(journal, 0, 4))
    assert [(one.offset, one.reason) for one in found] == [(0, "contract"), (2, "contract")]
