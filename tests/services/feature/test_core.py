"""
Rows are a function of the log: whatever the batches, the partitions and the restarts were, and equal to a plain reading of the rules.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from driftline.contracts.avro import Codec, column, unpack_strings
from driftline.errors import Invalid
from driftline.features.murmur2 import partitions_of
from driftline.pipeline import Pipeline, load_pipeline
from driftline.stream.batch import Batch, Effects, Table, Varlen
from services.feature.core import META, Feature

DECLARATION = """
from driftline import Label, Pipeline, Stream, View, f

asks = Stream("ask.avsc", topic="asks", id="ask_id", key="card", time="at", lateness="40ms", duplicates=("100ms", 3))
facts = Stream("fact.avsc", topic="facts", id="fact_id", key="card", time="at", visible="seen_at", lateness="40ms", duplicates=("100ms", 3))

amount = f.clip("amount", -50, 50)
card = View(
    of=[asks, facts],
    by="card",
    asked_120=f.count(asks, "120ms"),
    sum_120=f.sum(amount, "120ms"),
    mean_60=f.mean(amount, "60ms"),
    std_120=f.std("amount", "120ms"),
    last_amount=f.last("amount", within="90ms"),
    since_fact=f.seconds_since(facts, within="200ms"),
    kinds_120=f.distinct("kind", "120ms", most=8),
)
shop = View(
    of=facts,
    by=["shop", "aisle"],
    broadcast=True,
    shop_count=f.count("120ms"),
    shop_max=f.max("amount", "120ms"),
    shop_min=f.min("amount", "240ms"),
    shop_rate=f.rate(facts.amount >= 10, "120ms"),
    shop_refunds=f.count(facts.kind == "refund", "120ms"),
    shop_since_refund=f.seconds_since(facts.kind == "refund", within="500ms"),
    shop_before=f.count(facts, "120ms", ending="60ms ago") - f.count(facts, "60ms"),
    shop_ready=f.count("120ms", ready_after="100ms"),
    shop_ewma=f.ewma("amount", "80ms"),
)
pipeline = Pipeline(
    "shops",
    owner="somebody@example.org",
    question=asks,
    inputs=[card, f.value("price"), shop],
    label=Label("good", of=facts, when=facts.amount > 0, horizon="1d"),
    slices=["shop", "aisle"],
    tick="10ms",
    window="1d",
)
"""
TIME = {"type": "long", "logicalType": "timestamp-millis"}
SCHEMAS = {
    "ask": {"ask_id": "string", "at": TIME, "card": "string", "shop": "string", "aisle": "int", "price": ["null", "double"]},
    "fact": {
        "fact_id": "string",
        "ask_id": "string",
        "at": TIME,
        "seen_at": TIME,
        "card": "string",
        "shop": "string",
        "aisle": "int",
        "amount": ["null", "double"],
        "kind": ["null", "string"],
    },
}
LATENESS = 40
WINDOWS = {"asked_120": 120, "sum_120": 120, "mean_60": 60, "std_120": 120, "shop_max": 120, "shop_min": 240}
START = 1_000_000


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """A pipeline with every function, in the partition and broadcast."""
    root = tmp_path_factory.mktemp("pipelines")
    return declared(root, DECLARATION)


def declared(root: Path, text: str) -> Pipeline:
    (root / "shops").mkdir(exist_ok=True)
    (root / "shops" / "pipeline.py").write_text(text)
    for name, fields in SCHEMAS.items():
        schema = {"type": "record", "name": name.title(), "fields": [{"name": key, "type": kind} for key, kind in fields.items()]}
        (root / "shops" / f"{name}.avsc").write_text(json.dumps(schema))
    return load_pipeline("shops", root)


@dataclass(frozen=True)
class Ask:
    """A question."""

    visible: int
    card: str = "c1"
    shop: str = "s1"
    aisle: int = 1
    price: float | None = 2.5
    id: str = ""


@dataclass(frozen=True)
class Fact:
    """A record of the other stream, which is also an outcome."""

    visible: int
    amount: float | None = 1.0
    kind: str | None = "sale"
    card: str = "c1"
    shop: str = "s1"
    aisle: int = 1
    id: str = ""
    ask_id: str = "a1"


@dataclass(frozen=True)
class Tick:
    """A tick, with the deployment in force from there on."""

    time: int
    deployment: int = 0


Record = Ask | Fact | Tick


def bodies(pipeline: Pipeline, events: Sequence[tuple[int, Ask | Fact]]) -> Varlen:
    """The records in Avro, each by the schema of its stream."""
    found: dict[int, bytes] = {}
    for stream, kind in zip(pipeline.streams, (Ask, Fact), strict=True):
        mine = [(offset, record) for offset, record in events if isinstance(record, kind)]
        columns = [own_fields(record, offset) for offset, record in mine]
        schema = dict(stream.schema)
        by_name = {one["name"]: column(one["type"], [fields[one["name"]] for fields in columns]) for one in schema["fields"]}
        found |= dict(
            zip([offset for offset, _ in mine], CODECS.setdefault(stream.topic, Codec(schema)).encode(by_name).tolist(), strict=True)
        )
    return Varlen.of(found[offset] for offset, _ in events)


CODECS: dict[str, Codec] = {}


def own_fields(record: Ask | Fact, offset: int) -> dict[str, Any]:
    shared = {"card": record.card, "shop": record.shop, "aisle": record.aisle}
    if isinstance(record, Ask):
        return {**shared, "ask_id": record.id or f"a{offset}", "at": record.visible, "price": record.price}
    own = {"fact_id": record.id or f"f{offset}", "ask_id": record.ask_id, "at": record.visible - 5, "seen_at": record.visible}
    return {**shared, **own, "amount": record.amount, "kind": record.kind}


def batch_of(pipeline: Pipeline, log: Sequence[tuple[int, Record]], partition: int = 0, partitions: int = 1) -> Batch:
    """The batch that a stretch of the log is in one partition: pairs of offset and record."""
    events = [(offset, record) for offset, record in log if not isinstance(record, Tick)]
    ticks = [(offset, record) for offset, record in log if isinstance(record, Tick)]
    tables = {}
    if events:
        keys = Varlen.of(record.card for _, record in events)
        n = len(events)
        offsets = np.array([offset for offset, _ in events], np.int64)
        visible = np.array([record.visible for _, record in events], np.int64)
        columns: dict[str, Any] = {
            "source": np.array([16 + isinstance(record, Fact) for _, record in events], np.int64),
            "partition": np.zeros(n, np.int64),
            "offset": offsets,
            "index": np.zeros(n, np.int64),
            "event_offset": np.full(n, -1, np.int64),
            "id": Varlen.of(record.id or f"{'f' if isinstance(record, Fact) else 'a'}{offset}" for offset, record in events),
            "key": keys,
            "time": visible - np.array([5 * isinstance(record, Fact) for _, record in events]),
            "visible": visible,
            "home": partitions_of(keys, partitions) == partition,
            "body": bodies(pipeline, events),
        }
        tables["event"] = Table("event", offsets, columns)
    if ticks:
        offsets = np.array([offset for offset, _ in ticks], np.int64)
        times = np.array([tick.time for _, tick in ticks], np.int64)
        header = {"source": 0 * times, "partition": 0 * times, "offset": times // 10, "index": 0 * times, "event_offset": 0 * times - 1}
        deployments = np.array([tick.deployment for _, tick in ticks], np.int64)
        tables["tick"] = Table("tick", offsets, {**header, "time": times, "deployment": deployments})
    return Batch(partition, log[0][0], log[-1][0] + 1, tables)


@dataclass
class Result:
    """What a run left: rows and outcomes by offset, messages as they came, what became of the input, and the store."""

    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    outcomes: dict[int, dict[str, Any]] = field(default_factory=dict)
    effects: list[Effects] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    store: dict[bytes, bytes] = field(default_factory=dict)


def play(
    pipeline: Pipeline,
    records: Sequence[Record],
    cuts: Sequence[int] = (),
    reload: bool = False,
    partition: int = 0,
    partitions: int = 1,
    entities_max: int = 1_000_000,
) -> Result:
    """Take `records` in batches cut at `cuts`; with `reload` by a new core for each batch, from the store alone."""
    log = list(enumerate(records))
    bounds = sorted({0, *(cut for cut in cuts if 0 < cut < len(log)), len(log)})
    result = Result()
    core = Feature(pipeline, partition, entities_max)
    for first, end in pairwise(bounds):
        core = Feature(pipeline, partition, entities_max) if reload else core
        batch = batch_of(pipeline, log[first:end], partition, partitions)
        most = core.touches(batch)
        while needed := core.needs(batch):
            core.load({key: result.store.get(key) for key in needed})
        most = core.touches(batch)
        effects = core.step(batch)
        assert len(effects.state) <= most
        assert sum(effects.counts.values()) + len(effects.refused) == len(batch)
        result.effects.append(effects)
        result.store |= {key: row for key, row in effects.state.items() if row is not None}
        for name, n in effects.counts.items():
            result.counts[name] = result.counts.get(name, 0) + n
        for message in effects.messages:
            kept = {"row": result.rows, "outcome": result.outcomes}.get(message.message, {})
            table = Table(message.message, message.order, message.columns)
            kept.update(zip(message.order.tolist(), table_records(table), strict=True))
    return result


def table_records(table: Table) -> Iterator[dict[str, Any]]:
    columns = {name: column.tolist() if isinstance(column, Varlen | np.ndarray) else list(column) for name, column in table.columns.items()}
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))


def features(pipeline: Pipeline, row: Mapping[str, Any]) -> dict[str, float]:
    """A row by name, the ages of the views as `age:<view>`."""
    layout = pipeline.layout
    names = [*layout.names, *(f"age:{view}" for view in layout.views)]
    return dict(zip(names, np.frombuffer(row["row"], "<f4").tolist(), strict=True))


def last_row(pipeline: Pipeline, records: Sequence[Record], **options: Any) -> dict[str, float]:
    rows = play(pipeline, records, **options).rows
    return features(pipeline, rows[max(rows)])


# ---- the rules once more, record by record ---------------------------------------------------------------------------------


class Naive:
    """One entity of one view, as the list of its folded records."""

    def __init__(self) -> None:
        self.folded: list[tuple[int, Record]] = []

    def fold(self, record: Ask | Fact) -> bool:
        newest = max((visible for visible, _ in self.folded), default=-math.inf)
        if record.visible < newest - LATENESS:
            return False
        self.folded.append((record.visible, record))
        return True

    def seen(self, asked: int, kind: type, values: Any, window: int, ending: int = 0) -> list[float]:
        """The values that a window shows, in the order of the log."""
        hop = window // 12
        entered = [(visible, values(record)) for visible, record in self.folded if isinstance(record, kind) and values(record) is not None]
        newest = max((visible for visible, _ in entered), default=-math.inf)
        first = (asked - ending - window) // hop
        if ending:
            return [x for visible, x in entered if first <= visible // hop <= (asked - ending) // hop - 1]
        if asked < newest:  # a late question leaves out the tile that it falls into
            return [x for visible, x in entered if first <= visible // hop < asked // hop]
        return [x for visible, x in entered if visible < asked and first <= visible // hop]

    def exact(self, asked: int, kind: type, values: Any, within: int) -> tuple[float, float]:
        """The newest value and its age in seconds."""
        folded = [(visible, at, values(record)) for at, (visible, record) in enumerate(self.folded) if isinstance(record, kind)]
        entered = [one for one in folded if one[2] is not None]
        kept = sorted({visible for visible, _, _ in entered})[-2:]  # a late question may find both too new
        before = [one for one in entered if one[0] in kept and one[0] < asked]
        if not before or max(before)[0] < asked - within:
            return math.nan, math.nan
        return max(before)[2], (asked - max(before)[0]) / 1000

    def age(self, asked: int) -> float:
        before = [visible for visible in sorted({visible for visible, _ in self.folded})[-2:] if visible < asked]
        return (asked - max(before)) / 1000 if before else math.nan


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def clipped(fact: Fact) -> float | None:
    return None if fact.amount is None else min(50.0, max(-50.0, fact.amount))


def amount(fact: Fact) -> float | None:
    return fact.amount


def refund(fact: Fact) -> float | None:
    return 1.0 if fact.kind == "refund" else None


def deviation(values: Sequence[float]) -> float:
    return math.sqrt(mean([(x - mean(values)) ** 2 for x in values])) if values else math.nan


def expected(card: Naive, shop: Naive, ask: Ask) -> dict[str, float]:
    """All features of a question but the exponential mean."""
    at = ask.visible
    first = min((visible for visible, _ in shop.folded), default=math.inf)
    counted = shop.seen(at, Fact, lambda _: 1.0, 120)
    return {
        "asked_120": len(card.seen(at, Ask, lambda _: 1.0, 120)),
        "sum_120": sum(card.seen(at, Fact, clipped, 120)),
        "mean_60": mean(card.seen(at, Fact, clipped, 60)),
        "std_120": deviation(card.seen(at, Fact, amount, 120)),
        "last_amount": card.exact(at, Fact, amount, 90)[0],
        "since_fact": card.exact(at, Fact, lambda _: 1.0, 200)[1],
        "price": math.nan if ask.price is None else ask.price,
        "shop_count": len(counted),
        "shop_max": max(shop.seen(at, Fact, amount, 120), default=math.nan),
        "shop_min": min(shop.seen(at, Fact, amount, 240), default=math.nan),
        "shop_rate": mean(shop.seen(at, Fact, lambda fact: None if fact.amount is None else float(fact.amount >= 10), 120)),
        "shop_refunds": len(shop.seen(at, Fact, refund, 120)),
        "shop_since_refund": shop.exact(at, Fact, refund, 500)[1],
        "shop_before": len(shop.seen(at, Fact, lambda _: 1.0, 120, 60)) - len(shop.seen(at, Fact, lambda _: 1.0, 60)),
        "shop_ready": len(counted) if at - first >= 100 else math.nan,
        "age:card": card.age(at),
        "age:shop": shop.age(at),
    }


def naive_rows(records: Sequence[Record]) -> dict[int, dict[str, float]]:
    """The rows of questions that are not later than records may be."""
    cards: dict[str, Naive] = {}
    shops: dict[tuple[str, int], Naive] = {}
    rows = {}
    for offset, record in enumerate(records):
        if isinstance(record, Tick):
            continue
        card, shop = cards.setdefault(record.card, Naive()), shops.setdefault((record.shop, record.aisle), Naive())
        if isinstance(record, Ask):
            if all(record.visible >= visible - LATENESS for visible, _ in card.folded + shop.folded):
                rows[offset] = expected(card, shop, record)
            card.fold(record)
        else:
            card.fold(record)
            shop.fold(record)
    return rows


AMOUNTS = st.one_of(st.none(), st.integers(-400, 400).map(lambda n: n / 4))
STEPS = st.sampled_from([0, 0, 0, 1, 3, 7, 10, 25, 130, -1, -5, -20, -39])


@st.composite
def logs(draw: st.DrawFn, steps: st.SearchStrategy[int] = STEPS, copies: bool = False) -> list[Record]:
    """Records of few entities at times close to one another, some of them out of order."""
    now, records = START, list[Record]()
    for _ in range(draw(st.integers(1, 40))):
        step = draw(steps)
        now = max(now, now + step)
        at = now + min(step, 0)
        card, shop, aisle = draw(st.sampled_from(["c1", "c2", "c3"])), draw(st.sampled_from(["s1", "s2"])), draw(st.integers(1, 2))
        name = draw(st.sampled_from(["", "", "x", "y"])) if copies else ""
        if draw(st.booleans()):
            records.append(Ask(at, card, shop, aisle, draw(AMOUNTS), name))
        else:
            records.append(Fact(at, draw(AMOUNTS), draw(st.sampled_from([None, "sale", "refund"])), card, shop, aisle, name))
    return records


@settings(max_examples=80, deadline=None)
@given(records=logs())
def test_rows_are_what_the_rules_say_read_record_by_record(pipeline: Pipeline, records: list[Record]) -> None:
    """
    The tiles give the same as a list of all records and the rules in plain Python, out-of-order records and questions included.
    """
    rows = play(pipeline, records).rows
    for offset, wanted in naive_rows(records).items():
        found = features(pipeline, rows[offset])
        exact = {name: value for name, value in wanted.items() if name != "std_120"}
        assert {name: np.float32(value).item() for name, value in exact.items()} == pytest.approx(
            {name: found[name] for name in exact}, rel=0, abs=0, nan_ok=True
        )
        assert wanted["std_120"] == pytest.approx(found["std_120"], rel=1e-5, abs=1e-5, nan_ok=True)


@settings(max_examples=30, deadline=None)
@given(records=logs(copies=True), cuts=st.lists(st.integers(1, 40), max_size=6))
def test_rows_and_state_are_the_same_wherever_the_log_is_cut_into_batches(
    pipeline: Pipeline, records: list[Record], cuts: list[int]
) -> None:
    """
    Cutting a batch anywhere, between records of one time too, changes no byte of a row or of the state.
    """
    whole, cut = play(pipeline, records), play(pipeline, records, cuts)
    assert whole.rows == cut.rows
    assert whole.outcomes == cut.outcomes
    assert whole.store == cut.store


@settings(max_examples=30, deadline=None)
@given(records=logs(copies=True), cuts=st.lists(st.integers(1, 40), max_size=6))
def test_state_that_was_saved_and_loaded_goes_on_as_if_nothing_had_happened(
    pipeline: Pipeline, records: list[Record], cuts: list[int]
) -> None:
    """
    A new core for each batch, with the store alone, gives the same rows and the same state as one that never stopped.
    """
    kept, restarted = play(pipeline, records, cuts), play(pipeline, records, cuts, reload=True)
    assert kept.rows == restarted.rows
    assert kept.store == restarted.store


@settings(max_examples=15, deadline=None)
@given(records=logs(copies=True), cuts=st.lists(st.integers(1, 40), max_size=4))
def test_dropping_what_is_in_memory_changes_nothing(pipeline: Pipeline, records: list[Record], cuts: list[int]) -> None:
    """
    With room for almost no entity, all are asked for again, batch by batch, and the rows stay the same.
    """
    roomy, cramped = play(pipeline, records, cuts), play(pipeline, records, cuts, entities_max=1)
    assert roomy.rows == cramped.rows
    assert roomy.store == cramped.store


def test_the_trace_context_of_a_question_goes_to_its_row(pipeline: Pipeline) -> None:
    """
    That of an outcome goes nowhere: an example is about the question.
    """
    batch = batch_of(pipeline, [(0, Ask(START)), (1, Fact(START)), (2, Ask(START))])
    table = batch.tables["event"]
    traced = Table("event", table.offsets, {**table.columns, "traceparent": Varlen.optional([None, "b-trace", "c-trace"])})
    feature, batch = Feature(pipeline, 0), Batch(0, 0, 3, {"event": traced})
    feature.unfit(batch)
    while names := feature.needs(batch):
        feature.load(dict.fromkeys(names))
    told = {one.message: one for one in feature.step(batch).messages}
    assert told["row"].columns["traceparent"].optional_texts() == [None, "c-trace"]  # type: ignore[union-attr]  # a column of texts
    assert "traceparent" not in told["outcome"].columns


def test_no_more_entities_stay_in_memory_than_there_is_room_for(pipeline: Pipeline) -> None:
    """
    A batch that begins with too many drops them, and asks for its own again.
    """
    core = Feature(pipeline, 0, entities_max=10)
    most = 0
    for at in range(40):
        batch = batch_of(pipeline, [(at, Ask(START + at, card=f"c{at}"))], 0, 1)
        while needed := core.needs(batch):
            core.load(dict.fromkeys(needed))
        core.step(batch)
        most = max(most, core.entities)
    assert most < 10 + 2 * (len(pipeline.views) + 1)


@settings(max_examples=20, deadline=None)
@given(records=logs(steps=st.sampled_from([0, 0, 1, 3, 10, 25])))
def test_rows_are_the_same_with_one_partition_and_with_four(pipeline: Pipeline, records: list[Record]) -> None:
    """
    Each partition folds its own keys and a copy of everything for the broadcast views, and the rows are the same bytes.
    """
    alone = {offset: row["row"] for offset, row in play(pipeline, records).rows.items()}
    spread: dict[int, bytes] = {}
    outcomes = 0
    for partition in range(4):
        mine = [
            (offset, record)
            for offset, record in enumerate(records)
            if isinstance(record, Fact) or int(partitions_of(Varlen.of([record.card]), 4)[0]) == partition
        ]
        result = play(pipeline, [record for _, record in mine], partition=partition, partitions=4)
        spread |= {mine[place][0]: row["row"] for place, row in result.rows.items()}
        outcomes += len(result.outcomes)
    assert alone == spread
    assert sum(isinstance(record, Fact) and record.amount is not None for record in records) == outcomes


# ---- the rules one by one --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [0, 1, 2, 3])
def test_a_question_does_not_see_records_of_its_own_time(pipeline: Pipeline, cut: int) -> None:
    """
    As-of is strict: what became visible with the question is not seen, wherever the batch is cut; a moment later it is.
    """
    records = [Fact(START, 4.0), Fact(START + 20, 8.0), Ask(START + 20), Ask(START + 21)]
    rows = play(pipeline, records, [cut]).rows
    assert features(pipeline, rows[2])["sum_120"] == 4.0
    assert features(pipeline, rows[2])["last_amount"] == 4.0
    assert features(pipeline, rows[3])["sum_120"] == 12.0
    assert features(pipeline, rows[3])["last_amount"] == 8.0


def test_a_question_is_folded_after_it_was_answered(pipeline: Pipeline) -> None:
    """
    A view on the stream of the questions counts those before, never the one that is asked.
    """
    rows = play(pipeline, [Ask(START), Ask(START), Ask(START + 1)]).rows
    assert [features(pipeline, rows[offset])["asked_120"] for offset in range(3)] == [0.0, 0.0, 2.0]


def test_the_old_end_of_a_window_is_rounded_down_to_a_tile(pipeline: Pipeline) -> None:
    """
    The tile that a window begins in is seen whole, the one before it is not.
    """
    facts = [Fact(START - 1), Fact(START), Fact(START + 9)]  # tiles of 10 ms begin at START
    assert last_row(pipeline, [*facts, Ask(START + 129)])["shop_count"] == 2
    assert last_row(pipeline, [*facts, Ask(START + 130)])["shop_count"] == 0


def test_ending_moves_both_ends_of_a_window(pipeline: Pipeline) -> None:
    """
    A window that ended 60 ms ago counts what lies in whole tiles before, and is not disturbed by what is newer.
    """
    before, after = Fact(START), Fact(START + 100)
    assert last_row(pipeline, [before, after, Ask(START + 130)])["shop_before"] == 1 - 1
    assert last_row(pipeline, [before, Ask(START + 70)])["shop_before"] == 1 - 0
    assert last_row(pipeline, [before, Ask(START + 69)])["shop_before"] == 0 - 0
    assert last_row(pipeline, [before, Ask(START + 59)])["shop_before"] == 0 - 1


def test_a_feature_is_missing_until_its_window_may_have_filled(pipeline: Pipeline) -> None:
    """
    `ready_after` counts from the entity's first record.
    """
    assert math.isnan(last_row(pipeline, [Fact(START), Ask(START + 99)])["shop_ready"])
    assert last_row(pipeline, [Fact(START), Ask(START + 100)])["shop_ready"] == 1


def test_what_nothing_is_known_of_is_missing_and_counts_are_zero(pipeline: Pipeline) -> None:
    """
    For an unknown entity counts and sums are 0, everything else and the ages are missing.
    """
    row = last_row(pipeline, [Ask(START, price=None)])
    zero = {"asked_120", "sum_120", "kinds_120", "shop_count", "shop_refunds", "shop_before"}
    assert zero == {name for name, value in row.items() if value == 0}
    assert set(row) - zero == {name for name, value in row.items() if math.isnan(value)}


def test_distinct_values_are_counted_once(pipeline: Pipeline) -> None:
    """
    Of five records two kinds are told apart; null is none.
    """
    facts = [Fact(START + n, kind=kind) for n, kind in enumerate(["sale", "refund", None, "sale", "refund"])]
    assert last_row(pipeline, [*facts, Ask(START + 10)])["kinds_120"] == 2
    assert last_row(pipeline, [*facts, Ask(START + 4)])["kinds_120"] == 2
    assert last_row(pipeline, [*facts, Ask(START + 1)])["kinds_120"] == 1


def test_the_exponential_mean_halves_a_value_with_each_half_life(pipeline: Pipeline) -> None:
    """
    Two values a half-life apart weigh 1 and 2, whichever came first; a question at the newer one's time sees the older alone.
    """
    pair = [Fact(START, 3.0), Fact(START + 80, 9.0)]
    assert last_row(pipeline, [*pair, Ask(START + 200)])["shop_ewma"] == pytest.approx((3.0 + 2 * 9.0) / 3)
    assert last_row(pipeline, [*pair, Ask(START + 80)])["shop_ewma"] == 3.0
    late = [Fact(START + 80, 9.0), Fact(START + 40, 3.0), Ask(START + 200)]
    assert last_row(pipeline, late)["shop_ewma"] == pytest.approx((9.0 + 3.0 * 2**-0.5) / (1 + 2**-0.5))


def test_a_record_within_the_lateness_lands_in_its_own_tile(pipeline: Pipeline) -> None:
    """
    Out of order within the lateness, a record is folded where it belongs, and does not become the last one.
    """
    row = last_row(pipeline, [Fact(START + 40, 8.0), Fact(START, 4.0), Ask(START + 41)])
    assert (row["sum_120"], row["last_amount"]) == (12.0, 8.0)


def test_a_record_that_is_too_late_is_counted_and_not_folded(pipeline: Pipeline) -> None:
    """
    Later than its stream allows, a record changes no entity; it is counted as late, and as an outcome it still goes on.
    """
    result = play(pipeline, [Fact(START + 41, 8.0), Fact(START, 4.0), Ask(START + 42)])
    assert features(pipeline, result.rows[2])["sum_120"] == 8.0
    assert result.counts == {"applied": 2, "late": 1}
    assert sorted(result.outcomes) == [0, 1]


@settings(max_examples=40, deadline=None)
@given(records=logs(), late=st.integers(0, 60), other=st.integers(-400, 400))
def test_a_late_question_never_sees_its_future(pipeline: Pipeline, records: list[Record], late: int, other: int) -> None:
    """
    However late a question is, its row is the same with any other amounts in the records at and after its time.
    """
    newest = max(record.visible for record in records if not isinstance(record, Tick))
    ask = Ask(newest - late)
    changed = [
        replace(one, amount=other / 4) if isinstance(one, Fact) and one.amount is not None and one.visible >= ask.visible else one
        for one in records
    ]
    rows = [play(pipeline, [*log, ask]).rows[len(records)]["row"] for log in (records, changed)]
    assert rows[0] == rows[1]


def test_an_id_that_was_seen_has_no_effect_at_all(pipeline: Pipeline) -> None:
    """
    A copy within the horizon makes no row and no outcome, and leaves the state as it was.
    """
    once = [Fact(START, 4.0, id="f"), Ask(START + 1, id="a"), Ask(START + 30)]
    twice = [once[0], once[0], once[1], once[1], Fact(START + 20, 4.0, id="f"), once[2]]
    single, doubled = play(pipeline, once), play(pipeline, twice)
    assert [row["row"] for row in single.rows.values()] == [row["row"] for row in doubled.rows.values()]
    assert doubled.counts == {"applied": 3, "duplicate": 3}
    assert len(doubled.outcomes) == 1
    assert single.store.keys() == doubled.store.keys()


def test_an_id_is_forgotten_after_its_horizon_or_behind_enough_others(pipeline: Pipeline) -> None:
    """
    The memory has an end in time and in number: beyond either, the same id is a new record.
    """
    assert play(pipeline, [Fact(START, id="f"), Fact(START + 100, id="f")]).counts == {"applied": 1, "duplicate": 1}
    assert play(pipeline, [Fact(START, id="f"), Fact(START + 101, id="f")]).counts == {"applied": 2}
    others = [Fact(START + n, id=f"f{n}") for n in range(3)]
    assert play(pipeline, [Fact(START, id="f"), *others[:2], Fact(START, id="f")]).counts == {"applied": 3, "duplicate": 1}
    assert play(pipeline, [Fact(START, id="f"), *others, Fact(START, id="f")]).counts == {"applied": 5}


def test_the_same_id_under_another_key_or_stream_is_another_record(pipeline: Pipeline) -> None:
    """
    Ids are remembered for each stream and key apart.
    """
    records = [Fact(START, id="x"), Fact(START, id="x", card="c2"), Ask(START, id="x")]
    assert play(pipeline, records).counts == {"applied": 3}


def test_only_the_copy_at_home_makes_rows_and_outcomes(pipeline: Pipeline) -> None:
    """
    A copy that was broadcast is folded into broadcast views alone, and counted as what it is.
    """
    home = int(partitions_of(Varlen.of(["c1"]), 2)[0])
    away = play(pipeline, [Fact(START)], partition=1 - home, partitions=2)
    assert (away.rows, away.outcomes, away.counts) == ({}, {}, {"broadcast": 1})
    assert {b"shop:s1\x1f1", b"ids:facts:c1"} == set(away.store)


def test_a_row_carries_its_coordinate_and_the_deployment_of_the_last_tick(pipeline: Pipeline) -> None:
    """
    A row is about its event, by offset; the deployment is that of the last tick before it, across batches and restarts.
    """
    records = [Ask(START), Tick(START + 10, 3), Ask(START + 11), Tick(START + 20, 4), Ask(START + 25)]
    for reload in (False, True):
        rows = play(pipeline, records, cuts=[2, 4], reload=reload).rows
        assert [row["deployment"] for row in rows.values()] == [0, 3, 4]
        assert [(1, offset, 0, offset) for offset in rows] == [
            (row["source"], row["offset"], row["index"], row["event_offset"]) for row in rows.values()
        ]
    assert tuple(rows[4][name] for name in ("id", "key", "time", "visible")) == (b"a4", b"c1", START + 25, START + 25)
    assert pipeline.digest.encode() == rows[4]["layout"]
    assert unpack_strings(rows[4]["slices"]) == ("s1", "1")


def test_a_row_before_a_tick_in_its_batch_names_the_deployment_before_it(pipeline: Pipeline) -> None:
    """
    However the log is cut, a deployment is in force from its tick on.
    """
    records = [Tick(START, 3), Ask(START + 1), Tick(START + 10, 4), Ask(START + 11), Tick(START + 20, 5)]
    assert [row["deployment"] for row in play(pipeline, records).rows.values()] == [3, 4]


def test_ticks_are_passed_on_to_both_topics_in_place(pipeline: Pipeline) -> None:
    """
    A tick goes to features and journal, under its own coordinate and in the order of the log.
    """
    result = play(pipeline, [Tick(START), Ask(START), Tick(START + 10, 2)])
    passed = [message for message in result.effects[0].messages if message.message == "tick"]
    assert [message.topic for message in passed] == ["features", "journal"]
    for message in passed:
        assert message.order.tolist() == [0, 2]
        assert np.asarray(message.columns["offset"]).tolist() == [START // 10, START // 10 + 1]
        assert np.asarray(message.columns["source"]).tolist() == [0, 0]
    assert result.counts == {"applied": 1, "tick": 2}
    assert META in result.store


def test_an_outcome_names_the_question_and_says_what_became_of_it(pipeline: Pipeline) -> None:
    """
    The label is the condition's truth; a record in which its field is null tells nothing.
    """
    records = [Fact(START, 3.0, ask_id="q1"), Fact(START + 1, -3.0, ask_id="q2"), Fact(START + 2, None, ask_id="q3")]
    outcomes = play(pipeline, records).outcomes
    assert [(outcome["id"], outcome["label"]) for outcome in outcomes.values()] == [(b"q1", 1), (b"q2", 0)]
    assert [tuple(outcomes[0][name] for name in ("origin", "time", "visible"))] == [(b"facts", START - 5, START)]


def test_a_record_that_does_not_decode_is_refused_and_its_neighbours_go_on(pipeline: Pipeline) -> None:
    """
    Broken bytes and an unknown stream are named with reason and offset, and leave no trace in rows or state.
    """
    good = [Fact(START, 4.0), Ask(START + 1)]
    batch = batch_of(pipeline, list(enumerate([good[0], Fact(START), Ask(START), good[1]])))
    table = batch.tables["event"]
    raw = table["body"].tolist()
    source = table["source"].copy()
    source[2] = 99
    columns = {**table.columns, "body": Varlen.of([raw[0], raw[1][:-1], raw[2], raw[3]]), "source": source}
    core = Feature(pipeline, 0)
    broken = Batch(0, 0, 4, {"event": Table("event", table.offsets, columns)})
    while needed := core.needs(broken):
        core.load(dict.fromkeys(needed))
    effects = core.step(broken)
    assert [(one.offset, one.reason) for one in effects.refused] == [(1, "undecodable"), (2, "contract")]
    assert effects.counts == {"applied": 2}
    (rows,) = (message for message in effects.messages if message.message == "row")
    assert play(pipeline, good).rows[1]["row"] == rows.columns["row"][0]


def test_part_of_a_batch_is_taken_as_the_loop_cuts_it(pipeline: Pipeline) -> None:
    """
    Asked about a whole poll and then given its parts, or what is left of them without copies, the core does as if they had come alone.
    """
    records = [Fact(START + n, float(n)) if n % 3 else Ask(START + n) for n in range(12)]
    whole = batch_of(pipeline, list(enumerate(records)))
    core, rows, rest = Feature(pipeline, 0), {}, whole
    for size in (5, 4, 3):
        core.touches(rest)
        part = rest.head(size)
        rest = rest.tail(part.next_offset)
        while needed := core.needs(part):
            core.load(dict.fromkeys(needed))
        for message in core.step(part).messages:
            if message.message == "row":
                rows |= dict(zip(message.order.tolist(), message.columns["row"], strict=True))
    assert {offset: row["row"] for offset, row in play(pipeline, records).rows.items()} == rows


def test_a_batch_is_not_folded_before_its_entities_are_loaded(pipeline: Pipeline) -> None:
    """
    Without its rows a batch would be folded into nothing, so it is refused.
    """
    batch = batch_of(pipeline, [(0, Fact(START))])
    core = Feature(pipeline, 0)
    with pytest.raises(Invalid, match="not loaded"):
        core.step(batch)
    core.load({META: None})
    with pytest.raises(Invalid, match="before the entities"):
        core.step(batch)


def test_a_row_of_another_definition_is_not_taken(pipeline: Pipeline) -> None:
    """
    A stored row of another length cannot belong to this view, and is named.
    """
    batch = batch_of(pipeline, [(0, Fact(START))])
    core = Feature(pipeline, 0)
    with pytest.raises(Invalid, match="another definition"):
        core.load(dict.fromkeys(core.needs(batch), bytes(16)))
