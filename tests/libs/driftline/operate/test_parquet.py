"""
A file's records are what the same records would be on a topic, and what is no such record is told in words that help.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from driftline.contracts.avro import Codec
from driftline.contracts.registry import MemoryRegistry
from driftline.errors import Invalid, Rejected
from driftline.features.row import RowLayout
from driftline.features.upstream import Contract
from driftline.operate import parquet
from driftline.operate.history import Order, Refusals, Source
from driftline.operate.parquet import Folder, ParquetFiles, columns_of, packed
from driftline.pipeline import Stream, load_pipeline
from driftline.stream.parse import Parser
from driftline.stream.records import Polled

TIME = {"type": "long", "logicalType": "timestamp-millis"}
FIELDS: dict[str, Any] = {
    "id": "string",
    "card": "long",
    "at": TIME,
    "seen_at": ["null", TIME],
    "shop": ["null", "string"],
    "items": "int",
    "points": ["null", "long"],
    "price": "double",
    "weight": ["null", "float"],
    "open": "boolean",
    "paid": ["null", "boolean"],
}
DECLARATION = """
from driftline import Pipeline, Stream, View, f

asks = Stream("ask.avsc", topic="asks", id="id", key="card", time="at")
card = View(of=asks, by="card", count_1m=f.count("1m"))
pipeline = Pipeline("kinds", owner="somebody@example.org", question=asks, inputs=[card], tick="10s", window="1d")
"""
AT = datetime(2024, 5, 1, 12, 0, 0, 250_000, UTC)
RECORD: dict[str, Any] = {
    "id": "a-ä",
    "card": 7,
    "at": AT,
    "seen_at": AT,
    "shop": "s1",
    "items": -3,
    "points": 12,
    "price": 0.1,
    "weight": 0.1,
    "open": True,
    "paid": False,
}
NULLS: dict[str, Any] = RECORD | {"id": "b", "seen_at": None, "shop": None, "points": None, "weight": None, "paid": None, "open": False}
TYPES: dict[str, Any] = {
    "id": pl.String,
    "card": pl.Int32,
    "at": pl.Datetime("us", "UTC"),
    "seen_at": pl.Datetime("ms", "America/New_York"),
    "shop": pl.Categorical,
    "items": pl.Int64,
    "points": pl.UInt16,
    "price": pl.Float64,
    "weight": pl.Float64,
    "open": pl.Boolean,
    "paid": pl.Boolean,
}


def stream(folder: Path, *, pii: str = "") -> Stream:
    (folder / "kinds").mkdir(exist_ok=True)
    fields = [{"name": name, "type": kind} | ({"pii": True} if name == pii else {}) for name, kind in FIELDS.items()]
    schema = {"type": "record", "name": "Ask", "fields": fields}
    (folder / "kinds" / "ask.avsc").write_text(json.dumps(schema))
    (folder / "kinds" / "pipeline.py").write_text(DECLARATION)
    return load_pipeline("kinds", folder).question


def written(folder: Path, *records: Mapping[str, Any], types: Mapping[str, Any] = TYPES) -> Path:
    file = folder / "asks.parquet"
    pl.DataFrame({name: pl.Series([record[name] for record in records], dtype=kind) for name, kind in types.items()}).write_parquet(file)
    return file


def bodies_by_intake(asks: Stream, *records: Mapping[str, Any]) -> list[bytes]:
    """What intake puts on the log of the same records in JSON."""
    values = [json.dumps(record, default=lambda time: time.isoformat()).encode() for record in records]
    polled = Polled.of(range(len(values)), [None] * len(values), values, [0] * len(values))
    return Parser(asks, MemoryRegistry(), b"key" * 16).parse(polled, int(AT.timestamp() * 1000))[0].bodies.tolist()


def read(asks: Stream, file: Path) -> tuple[Source, Refusals]:
    """A source of which the first block is held."""
    refusals = Refusals()
    source = Source(asks, (0, 0, 0), ParquetFiles(str(file), asks), Contract(asks, b"key" * 16), Order.REFUSE, refusals)
    source.open(100)
    source.load()
    return source, refusals


@pytest.mark.parametrize("pii", ["", "shop", "id"])
def test_columns_of_a_file_are_those_of_the_same_records_on_a_topic(tmp_path: Path, pii: str):
    """
    Whatever types the file has for them: encoded again they are the bytes that intake writes, tokens of personal fields included.
    """
    asks = stream(tmp_path, pii=pii)
    records = [RECORD, NULLS] if pii != "shop" else [RECORD]
    source, refusals = read(asks, written(tmp_path, *records))
    assert len(refusals) == 0
    assert source.held is not None
    assert Codec(asks.schema).encode(source.held.columns).tolist() == bodies_by_intake(asks, *records)
    assert source.held.ids.to_list() == source.held.about["id"].texts()
    assert source.held.keys.to_list() == source.held.about["key"].texts() == ["7"] * len(records)


def test_whole_milliseconds_and_missing_columns_are_as_good(tmp_path: Path):
    """
    A time may be a whole number; a column that may be null may be missing.
    """
    asks = stream(tmp_path)
    types = {name: kind for name, kind in TYPES.items() if name not in ("shop", "paid")} | {"at": pl.Int64}
    record = RECORD | {"at": int(AT.timestamp() * 1000)}
    frame = pl.read_parquet(written(tmp_path, record, types=types))
    lean = RECORD | {"shop": None, "paid": None}
    assert Codec(asks.schema).encode(columns_of(frame, asks)).tolist() == bodies_by_intake(asks, lean)


@pytest.mark.parametrize(
    ("changed", "types", "words"),
    [
        ({"card": None}, {}, '(contract): "card" is null; Ask says long'),
        ({"items": 2**31}, {}, '(contract): "items" is of more bits than int has'),
        ({"price": float("inf")}, {}, '(contract): "price" is no finite number'),
        ({"id": ""}, {}, '(missing_id): "id" is empty'),
        ({"at": -5}, {"at": pl.Int64}, '(bad_time): "at" or "at" is not between 1970 and 2100'),
        ({"points": 2**60}, {"points": pl.Int64}, '(contract): "points" is beyond 2**53'),
    ],
)
def test_what_intake_would_refuse_is_refused_and_the_others_go_on(
    tmp_path: Path, changed: dict[str, Any], types: dict[str, Any], words: str
):
    """
    With the reason, and the place of the first.
    """
    asks = stream(tmp_path)
    plain = {name: int(AT.timestamp() * 1000) for name in types if name == "at"}
    source, refusals = read(asks, written(tmp_path, RECORD | plain, RECORD | plain | changed, NULLS | plain, types=TYPES | types))
    assert source.held is not None
    assert source.held.about.offsets.tolist() == [0, 2]
    assert source.held.ids.to_list() == ["a-ä", "b"]
    (line,) = refusals.lines()
    assert f"1 refused {words}" in line
    assert line.endswith("the first is record 1")


@pytest.mark.parametrize(
    ("changed", "types", "words"),
    [
        (
            {"price": "0.1"},
            {"price": pl.String},
            r'"price" is String; Ask says double, which is a number here\. Cast it, as in pl\.col\("price"\)',
        ),
        ({"at": AT.replace(tzinfo=None)}, {"at": pl.Datetime("us")}, r'"at" is Datetime.* timestamp-millis.*replace_time_zone\("UTC"\)'),
        ({"open": 1}, {"open": pl.Int8}, r'"open" is Int8; Ask says boolean'),
    ],
)
def test_a_column_of_another_type_is_told_with_what_to_do(tmp_path: Path, changed: dict[str, Any], types: dict[str, Any], words: str):
    """
    Before anything is read.
    """
    file = written(tmp_path, RECORD | changed, types=TYPES | types)
    with pytest.raises(Invalid, match=words):
        ParquetFiles(str(file), stream(tmp_path))


def test_a_missing_column_is_told_with_the_one_that_may_be_meant(tmp_path: Path):
    """
    Or with all that there are.
    """
    asks = stream(tmp_path)
    file = written(tmp_path, RECORD)
    pl.read_parquet(file).rename({"price": "prize"}).write_parquet(file)
    with pytest.raises(Invalid, match=r'has no column "price" \(double\), which Ask asks for\. Did you mean "prize"\?'):
        ParquetFiles(str(file), asks)
    pl.read_parquet(file).drop("prize").write_parquet(file)
    with pytest.raises(Invalid, match=r"asks for\. It has id, card"):
        ParquetFiles(str(file), asks)


def test_a_file_that_is_none_is_told(tmp_path: Path):
    """
    One that is not there, and one that is something else.
    """
    asks = stream(tmp_path)
    with pytest.raises(Invalid, match=r"nothing\.parquet: there is no such file, folder of \.parquet files, or pattern that fits any"):
        ParquetFiles(str(tmp_path / "nothing.parquet"), asks)
    (tmp_path / "text.parquet").write_text("id,card")
    with pytest.raises(Invalid, match=r"text\.parquet is no Parquet file that can be read"):
        ParquetFiles(str(tmp_path / "text.parquet"), asks)


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_a_source_may_be_a_file_a_folder_or_a_pattern(tmp_path: Path, rows: int):
    """
    Files come by name, one after the other, in blocks of any size; positions go on over them.
    """
    asks = stream(tmp_path)
    folder = tmp_path / "days"
    folder.mkdir()
    for day, n in (("2", 4), ("1", 5)):
        records = [RECORD | {"id": f"{day}-{number}"} for number in range(n)]
        written(folder, *records).rename(folder / f"{day}.parquet")
    for place in (folder, folder / "*.parquet"):
        files = ParquetFiles(str(place), asks)
        blocks = list(files.blocks(rows))
        assert files.rows == 9
        assert np.concatenate([positions for positions, _ in blocks]).tolist() == list(range(9))
        ids = [one for _, frame in blocks for one in frame["id"]]
        assert ids == [f"1-{number}" for number in range(5)] + [f"2-{number}" for number in range(4)]
        assert max(frame.height for _, frame in blocks) <= rows


def test_rows_are_packed_as_everywhere(tmp_path: Path):
    """
    Little-endian, missing ones as they are.
    """
    numbers = np.array([[1.5, np.nan, -2.25], [0.0, -0.0, 3e38]], np.float32)
    layout = RowLayout("v1", ("a", "b"), ("view",), (0, 0))
    assert packed(numbers).to_list() == layout.pack_whole(numbers).tolist()


def test_a_folder_is_there_when_all_of_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """
    In files of some size, whose rows keep their order; after a failure nothing is left.
    """
    monkeypatch.setattr(parquet, "PART_ROWS", 10)
    out = tmp_path / "deep" / "rows"
    with pytest.raises(RuntimeError), Folder(out) as folder:
        folder.add(pl.DataFrame({"n": range(25)}))
        raise RuntimeError
    assert list(out.parent.iterdir()) == []
    with Folder(out) as folder:
        for at in range(0, 42, 6):
            folder.add(pl.DataFrame({"n": range(at, at + 6)}))
        assert not out.exists()
        folder.finish()
    assert pl.scan_parquet(out).collect()["n"].to_list() == list(range(42))
    assert len(list(out.iterdir())) == folder.files == 4
    with pytest.raises(Rejected, match="is not empty: choose another folder, or remove it"):
        Folder(out)
