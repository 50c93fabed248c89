"""
One entity, record by record, through the kernel itself: edges of windows, rings, sums and memories.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from driftline.features import tiles
from driftline.features.entities import Entities
from driftline.features.plan import Plan
from driftline.pipeline import load_pipeline

FILE = """
from driftline import Pipeline, Stream, View, f

asks = Stream("ask.avsc", topic="asks", id="id", key="card", time="at", lateness="30ms", duplicates=("100ms", 3))
card = View(of=asks, by="card", x=FEATURE)
pipeline = Pipeline("one", owner="o", question=asks, inputs=[card])
"""
TIME = {"type": "long", "logicalType": "timestamp-millis"}
SCHEMA = {
    "type": "record",
    "name": "Ask",
    "fields": [
        {"name": "id", "type": "string"},
        {"name": "card", "type": "string"},
        {"name": "at", "type": TIME},
        {"name": "amount", "type": ["null", "double"]},
    ],
}
START = 12_000


class Entity:
    """One entity of a view with one feature."""

    def __init__(self, root: Path, feature: str) -> None:
        folder = root / "one"
        folder.mkdir(exist_ok=True)
        (folder / "pipeline.py").write_text(FILE.replace("FEATURE", feature))
        (folder / "ask.avsc").write_text(json.dumps(SCHEMA))
        self._plan = Plan.of(load_pipeline("one", root))
        self._entities = Entities([b"card:", b"ids:"], self._plan.layouts)
        self._entities.add([(0, b"a")], [None])
        self._entities.add([(1, b"a")], [None])
        self._ids = 0

    def take(self, visible: int, amount: float = math.nan, ask: bool = False, code: int = 0) -> tuple[int, np.ndarray]:
        """What became of a record, and the row that it asked for."""
        plan, entities = self._plan, self._entities
        self._ids += 1
        values = np.full((1, plan.columns), amount)
        rows, became = np.full((1, plan.width), np.nan, np.float32), np.zeros(1, np.int64)
        tiles.step(
            entities.words,
            entities.numbers,
            entities.base,
            plan.aggregates,
            plan.runs,
            plan.first_runs,
            plan.features,
            plan.terms,
            plan.streams,
            plan.ages,
            np.zeros(1, np.int64),
            np.array([visible]),
            np.array([code or self._ids]),
            np.array([[0, 1]]),
            values,
            values.view(np.int64),
            np.array([0 if ask else tiles.NONE]),
            rows,
            became,
            np.zeros(2, np.int64),
        )
        return int(became[0]), rows[0]

    def fold(self, *records: tuple[int, float]) -> Entity:
        """Several records."""
        for visible, amount in records:
            self.take(visible, amount)
        return self

    def says(self, asked: int) -> float:
        """The feature as of `asked`; the question itself says nothing that the feature reads."""
        return float(self.take(asked, ask=True)[1][0])


Make = Callable[[str], Entity]


@pytest.fixture
def entity(tmp_path: Path) -> Make:
    """Makes an entity for a feature as it is written in a pipeline file."""
    return lambda feature: Entity(tmp_path, feature)


@pytest.mark.parametrize(
    ("feature", "value"),
    [
        ('f.sum("amount", "120ms")', 10.0),
        ('f.mean("amount", "120ms")', 2.5),
        ('f.min("amount", "120ms")', 1.0),
        ('f.max("amount", "120ms")', 4.0),
        ('f.std("amount", "120ms")', math.sqrt(1.25)),
        ('f.count(asks.amount > 2, "120ms")', 2.0),
        ('f.rate(asks.amount > 2, "120ms")', 0.0),
        ('f.last("amount", within="120ms")', 4.0),
        ('f.count("120ms")', 4.0),
        ('f.count("120ms") + f.count("120ms")', 8.0),
        ('f.count("120ms") - f.count("120ms")', 0.0),
    ],
)
def test_a_function_over_four_records(entity: Make, feature: str, value: float) -> None:
    """
    Each function says what it is named for, over records in four tiles.
    """
    records = [(START + 11 * n, float(n + 1)) for n in range(4)]
    one = entity(feature)
    if "rate" in feature or "asks.amount > 2" in feature:
        records = [(visible, float(amount > 2)) for visible, amount in records]  # the kernel is given what the condition says
        value = 0.5 if "rate" in feature else value
    assert one.fold(*records).says(START + 40) == pytest.approx(value)


def test_null_has_no_part_in_a_function_but_counts_as_a_record(entity: Make) -> None:
    """
    A record whose field is null changes no mean, and is still a record.
    """
    records = [(START, 3.0), (START + 1, math.nan)]
    assert entity('f.mean("amount", "120ms")').fold(*records).says(START + 2) == 3.0
    assert entity('f.last("amount", within="120ms")').fold(*records).says(START + 2) == 3.0
    assert entity('f.count("120ms")').fold(*records).says(START + 2) == 2.0


def test_a_record_leaves_the_window_with_its_tile(entity: Make) -> None:
    """
    The window is never shorter than its length and at most a hop longer.
    """
    for age, seen in ((1, 1.0), (120, 1.0), (129, 1.0), (130, 0.0)):
        assert entity('f.sum("amount", "120ms")').fold((START, 1.0)).says(START + age) == seen
    for age, seen in ((120, 1.0), (121, 0.0)):
        assert entity('f.sum("amount", "120ms")').fold((START + 9, 1.0)).says(START + 9 + age) == seen


def test_old_tiles_are_emptied_however_long_nothing_came(entity: Make) -> None:
    """
    After a gap of many windows the ring holds nothing of what was before.
    """
    one = entity('f.sum("amount", "120ms")').fold((START, 1.0), (START + 50, 2.0), (START + 100_000, 4.0))
    assert one.says(START + 100_001) == 4.0


def test_what_is_exact_ends_to_the_millisecond(entity: Make) -> None:
    """
    `last` and `seconds_since` know no tiles.
    """
    assert entity('f.last("amount", within="120ms")').fold((START, 5.0)).says(START + 120) == 5.0
    assert math.isnan(entity('f.last("amount", within="120ms")').fold((START, 5.0)).says(START + 121))
    assert entity('f.seconds_since(asks, within="120ms")').fold((START, 5.0)).says(START + 120) == pytest.approx(0.12)


def test_of_equal_times_the_later_on_the_log_wins(entity: Make) -> None:
    """
    The last value is that of the last record on the log among the newest.
    """
    assert entity('f.last("amount", within="120ms")').fold((START, 5.0), (START, 6.0)).says(START + 1) == 6.0


def test_a_question_as_late_as_records_may_be_finds_its_whole_window(entity: Make) -> None:
    """
    Tiles are kept for as long as a late question can ask for them; only the tile that it falls into is left out.
    """
    records = [(START, 1.0), (START + 60, 2.0), (START + 115, 4.0), (START + 150, 8.0)]
    assert entity('f.sum("amount", "120ms")').fold(*records).says(START + 120) == 7.0
    assert entity('f.sum("amount", "120ms")').fold(*records).says(START + 119) == 3.0


def test_a_tile_that_the_newest_time_shares_is_seen_as_it_was_before(entity: Make) -> None:
    """
    A question at the newest time sees the older records of that tile, those that came late included.
    """
    one = entity('f.sum("amount", "120ms")').fold((START, 1.0), (START + 5, 2.0), (START + 5, 4.0), (START + 3, 8.0))
    assert one.says(START + 5) == 9.0
    one = entity('f.sum("amount", "120ms")').fold((START, 1.0), (START + 5, 2.0), (START + 5, 4.0), (START + 3, 8.0))
    assert one.says(START + 6) == 15.0


def test_the_age_of_a_view_is_that_of_its_newest_record_before_the_question(entity: Make) -> None:
    """
    The last number of the row is seconds since anything was folded, strictly before; missing when nothing was.
    """
    one = entity('f.count("120ms")')
    ages = [float(one.take(START + at, ask=True)[1][-1]) for at in (0, 0, 500, 500)]
    assert [math.isnan(age) for age in ages] == [True, True, False, False]
    assert ages[2:] == [0.5, 0.5]


def test_an_id_is_a_copy_while_it_is_remembered(entity: Make) -> None:
    """
    Within the horizon and among the last three: a copy. Older than the horizon: not even remembered.
    """
    one = entity('f.count("120ms")')
    became = [one.take(START + at, code=code)[0] for at, code in ((0, 1), (10, 1), (20, 2), (100, 1), (121, 1), (122, 1))]
    assert became == [tiles.APPLIED, tiles.DUPLICATE, tiles.APPLIED, tiles.DUPLICATE, tiles.APPLIED, tiles.DUPLICATE]


def test_a_deviation_needs_one_value(entity: Make) -> None:
    """
    A standard deviation of one value is 0, of none missing.
    """
    assert math.isnan(entity('f.std("amount", "120ms")').says(START))
    assert entity('f.std("amount", "120ms")').fold((START, 3.0)).says(START + 1) == 0.0
