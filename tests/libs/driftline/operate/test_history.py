"""
Records of files are in the order in which intake puts those of topics on the log.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftline.contracts.registry import MemoryRegistry
from driftline.errors import Rejected
from driftline.features.upstream import Contract
from driftline.operate import history, parquet
from driftline.operate.history import Order, Refusals, merged, sources_of
from driftline.operate.parquet import ParquetFiles
from driftline.pipeline import Pipeline, load_pipeline
from driftline.stream.parse import Parser
from driftline.stream.records import Polled
from services.intake.core import Intake

DECLARATION = """
from driftline import Pipeline, Stream, View, f

first = Stream("record.avsc", topic="first", id="id", key="card", time="at")
second = Stream("record.avsc", topic="second", id="id", key="card", time="at")
card = View(of=[first, second], by="card", count_1m=f.count(first, "1m"))
pipeline = Pipeline("pairs", owner="somebody@example.org", question=first, inputs=[card], tick="10ms", window="1d")
"""
TIME = {"type": "long", "logicalType": "timestamp-millis"}
SCHEMA = {
    "type": "record",
    "name": "Record",
    "fields": [{"name": "id", "type": "string"}, {"name": "card", "type": "string"}, {"name": "at", "type": TIME}],
}
START_MS = 1_700_000_000_000
Arrivals = dict[tuple[int, int], list[int]]  # visible times of each source's records, in the order of their arrival


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    folder = tmp_path_factory.mktemp("pipelines")
    (folder / "pairs").mkdir()
    (folder / "pairs" / "record.avsc").write_text(json.dumps(SCHEMA))
    (folder / "pairs" / "pipeline.py").write_text(DECLARATION)
    return load_pipeline("pairs", folder)


def records(origin: tuple[int, int], times: Sequence[int]) -> list[dict[str, Any]]:
    return [{"id": f"{origin[0]}-{origin[1]}-{n}", "card": f"card-{n % 3}", "at": START_MS + time} for n, time in enumerate(times)]


def by_intake(pipeline: Pipeline, arrivals: Arrivals) -> list[bytes]:
    """The ids in the order of the log, all of them being there at once."""
    intake = Intake(pipeline, 1, list(arrivals), None, {})
    for origin, times in arrivals.items():
        if times:
            values = [json.dumps(one).encode() for one in records(origin, times)]
            polled = Polled.of(range(len(values)), [None] * len(values), values, [0] * len(values))
            parsed, refused = Parser(pipeline.streams[origin[0]], MemoryRegistry(), b"").parse(polled, START_MS + 1_000)
            assert refused == []
            intake.add(origin, parsed)
    emitted = intake.emit(2**62, None, 0, 10_000)
    return [key for one in emitted.messages if one.message == "event" for key in one.columns["id"].tolist()]  # type: ignore[union-attr]


def by_files(pipeline: Pipeline, arrivals: Arrivals, folder: Path, order: Order) -> list[bytes]:
    """The same from files, block by block."""
    sources = []
    for origin, times in arrivals.items():
        file = folder / f"{origin[0]}-{origin[1]}.parquet"
        pl.DataFrame(records(origin, times), {"id": pl.String, "card": pl.String, "at": pl.Int64}).write_parquet(file)
        stream = pipeline.streams[origin[0]]
        files, contract = ParquetFiles(str(file), stream), Contract(stream, b"")
        sources += sources_of(stream, origin[1], files, contract, order, Refusals(), folder)
    ids: list[bytes] = []
    for stretch in merged(sources, pipeline.question):
        ids += stretch.table["id"].tolist()
        asked = [one for one in stretch.table["id"].texts() if one.startswith("0-")]
        assert stretch.asked.ids.to_list() == asked
        assert [f"0-{partition}-{n}" for partition, n in zip(stretch.asked.partitions, stretch.asked.positions, strict=True)] == asked
    return ids


times = st.lists(st.integers(0, 40), max_size=30)
arrivals_of_two = st.fixed_dictionaries({(stream, partition): times for stream in (0, 1) for partition in (0, 1)})


@given(arrivals=arrivals_of_two, rows=st.integers(1, 12))
def test_records_come_in_the_order_in_which_intake_would_have_sent_them(
    pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory, arrivals: Arrivals, rows: int
):
    """
    By visible time, ties by stream, partition and position; what is out of order goes as if it were as new as the newest before it. However
    the files are cut into blocks.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(history, "BLOCK_ROWS", rows)
        patch.setattr(history, "SOURCE_ROWS_MIN", rows)
        assert by_files(pipeline, arrivals, tmp_path_factory.mktemp("files"), Order.ARRIVED) == by_intake(pipeline, arrivals)


@given(arrivals=arrivals_of_two, rows=st.integers(1, 12))
def test_sorted_records_come_as_if_each_source_had_been_sorted_whole(
    pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory, arrivals: Arrivals, rows: int
):
    """
    In however many stretches that was done; ties keep their order.
    """
    every = [(time, *origin, n) for origin, of_source in arrivals.items() for n, time in enumerate(of_source)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "RUN_ROWS", rows)
        patch.setattr(history, "SOURCE_ROWS_MIN", 4)
        found = by_files(pipeline, arrivals, tmp_path_factory.mktemp("files"), Order.SORT)
    assert found == [f"{stream}-{partition}-{n}".encode() for _, stream, partition, n in sorted(every)]


def test_records_out_of_order_are_refused_with_what_can_be_done(pipeline: Pipeline, tmp_path: Path):
    """
    Unless somebody says what their order means.
    """
    words = r"record 2 is visible at .*13:23\.000\+00:00, and one before it at .*13:25\.000\+00:00\.\n  --sort .*\n  --as-arrived "
    with pytest.raises(Rejected, match=words):
        by_files(pipeline, {(0, 0): [1_000, 5_000, 3_000], (1, 0): []}, tmp_path, Order.REFUSE)
