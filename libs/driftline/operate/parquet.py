"""
Parquet to columns as the fold reads them, and rows to Parquet, through polars and without a Python object a value.
"""

from __future__ import annotations

import difflib
import glob
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from driftline.errors import Invalid, Rejected
from driftline.features.row import Matrix
from driftline.pipeline import Stream
from driftline.stream.batch import Column, Ints, Varlen

Bools = npt.NDArray[np.bool_]

PART_ROWS = 1 << 19  # of a file that is written
RUN_ROWS = 1 << 20  # that are sorted at once
POSITION = "driftline position"  # column of a file that was sorted: the place that each record had before
TYPES_TAKEN: Mapping[str, str] = {
    "string": "String, Categorical or Enum",
    "boolean": "Boolean",
    "int": "a whole number",
    "long": "a whole number",
    "float": "a number",
    "double": "a number",
    "timestamp-millis": "Datetime with a time zone, or milliseconds UTC as a whole number",
}
INT_MAX, LONG_MAX = 2**31 - 1, 2**63 - 1
MICROS = {"us": 1_000, "ns": 1_000_000}  # of a millisecond


# ---- reading --------------------------------------------------------------------------------------------------------------


class ParquetFiles:
    """
    The records of one source: the files of a folder by name, those that a pattern fits, or one file; one after the other.

    Raises Invalid, naming the file and what to do, when a column is missing or of a type that says something else.
    """

    def __init__(self, path: str, stream: Stream, known_as: str = "") -> None:
        self.path = known_as or path
        self._stream = stream
        self._files = _files(path)
        for file in self._files:
            _refuse_unfit(file, stream)
        self._heights = [_height(file) for file in self._files]

    @property
    def rows(self) -> int:
        """How many records there are."""
        return sum(self._heights)

    def blocks(self, rows_max: int) -> Iterator[tuple[Ints, pl.DataFrame]]:
        """The records in order, at most so many at a time: their positions and their fields."""
        first = 0
        for file, height in zip(self._files, self._heights, strict=True):
            whole = pl.scan_parquet(file, glob=False)
            names = [name for name in pl.read_parquet_schema(file) if name in self._stream.types or name == POSITION]
            for at in range(0, height, rows_max):
                frame = whole.select(names).slice(at, rows_max).collect()
                positions = frame[POSITION].to_numpy() if POSITION in names else np.arange(first + at, first + at + frame.height)
                yield positions.astype(np.int64), frame
            first += height


def _files(path: str) -> list[Path]:
    place = Path(path)
    found = sorted(place.glob("*.parquet")) if place.is_dir() else [Path(one) for one in sorted(glob.glob(path))]
    if not found:
        raise Invalid(f"{path}: there is no such file, folder of .parquet files, or pattern that fits any")
    return found


def _height(file: Path) -> int:
    return int(pl.scan_parquet(file, glob=False).select(pl.len()).collect().item())


def _refuse_unfit(file: Path, stream: Stream) -> None:
    try:
        schema = pl.read_parquet_schema(file)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise Invalid(f"{file} is no Parquet file that can be read: {error}") from error
    for name, kind in stream.types.items():
        if name not in schema:
            if kind.endswith("?"):
                continue
            near = difflib.get_close_matches(name, schema, 1)
            has = f'Did you mean "{near[0]}"? Rename it to "{name}".' if near else f"It has {', '.join(schema)}."
            raise Invalid(f'{file} has no column "{name}" ({kind}), which {stream.schema["name"]} asks for. {has}')
        if not _fits(schema[name], kind.rstrip("?")):
            raise Invalid(_words_of_type(file, name, schema[name], kind, str(stream.schema["name"])))


def _words_of_type(file: Path, name: str, found: pl.DataType, kind: str, record: str) -> str:
    words = f'{file}: "{name}" is {found}; {record} says {kind}, which is {TYPES_TAKEN[kind.rstrip("?")]} here.'
    if isinstance(found, pl.Datetime):
        return f'{words} Say whose clock it is, as in pl.col("{name}").dt.replace_time_zone("UTC"), and write the file again.'
    return f'{words} Cast it, as in pl.col("{name}").cast(...), and write the file again.'


def _fits(found: pl.DataType, kind: str) -> bool:
    if found == pl.Null:
        return True
    if kind == "string":
        return found in (pl.String, pl.Categorical, pl.Enum)
    if kind == "boolean":
        return found == pl.Boolean
    if kind == "timestamp-millis":
        return found.is_integer() or (isinstance(found, pl.Datetime) and found.time_zone is not None)
    return found.is_integer() if kind in ("int", "long") else found.is_numeric() and not found.is_decimal()


def faults(frame: pl.DataFrame, stream: Stream) -> Iterator[tuple[Bools, str]]:
    """Records of `frame` that have no value where one has to be, or one that their type does not hold, and the words for it."""
    record = stream.schema["name"]
    for name, kind in stream.types.items():
        if name not in frame.columns:
            continue
        column = frame[name]
        if not kind.endswith("?") and column.null_count():
            yield column.is_null().to_numpy(), f'"{name}" is null; {record} says {kind}'
        most = INT_MAX if kind.rstrip("?") == "int" else LONG_MAX
        if column.dtype.is_integer() and kind.rstrip("?") in ("int", "long") and column.dtype not in _holding(most):
            beyond = ((column < -most - 1) | (column > most)).fill_null(value=False)
            yield beyond.to_numpy(), f'"{name}" is of more bits than {kind.rstrip("?")} has'


def _holding(most: int) -> set[type[pl.DataType]]:
    """Types of whole numbers of which none is beyond `most`."""
    small: set[type[pl.DataType]] = {pl.Int8, pl.Int16, pl.Int32, pl.UInt8, pl.UInt16}
    return small if most == INT_MAX else {*small, pl.Int64, pl.UInt32}


def columns_of(frame: pl.DataFrame, stream: Stream) -> dict[str, Column]:
    """All fields of the stream's schema as Avro would give them (see `contracts.avro.Codec`); a column that is not there is null."""
    nulls = pl.Series("", [None] * frame.height, pl.Null)
    return {name: _column(frame[name] if name in frame.columns else nulls, kind) for name, kind in stream.types.items()}


def _column(series: pl.Series, kind: str) -> Column:
    plain = kind.rstrip("?")
    if plain == "string":
        return varlen(series.cast(pl.String))
    if isinstance(series.dtype, pl.Datetime):
        series = _milliseconds(series)
    if plain in ("float", "double"):
        return _numbers(series.cast(pl.Float32 if plain == "float" else pl.Float64))
    if kind.endswith("?"):
        return _numbers(series.cast(pl.Float64))
    return _numbers(series if plain == "boolean" else series.cast(pl.Int64))


def _numbers(series: pl.Series) -> npt.NDArray[Any]:
    """As an array of its own, which a loop may take for one that is written to; null is NaN."""
    values: npt.NDArray[Any] = series.to_numpy(writable=True)
    return values


def _milliseconds(series: pl.Series) -> pl.Series:
    """To the nearest one."""
    unit = getattr(series.dtype, "time_unit", "ms")
    whole = series.cast(pl.Int64)
    return whole if unit == "ms" else (whole + MICROS[unit] // 2) // MICROS[unit]


def varlen(texts: pl.Series) -> Varlen:
    """A column of text in one buffer."""
    lengths = texts.str.len_bytes()
    sizes = lengths.fill_null(0).to_numpy().astype(np.int64)
    ends = np.cumsum(sizes)
    data = np.frombuffer(str(texts.str.join("").item()).encode(), np.uint8)
    starts = ends - sizes
    if texts.null_count():
        absent = texts.is_null().to_numpy()
        starts, ends = np.where(absent, -1, starts), np.where(absent, 0, ends)
    return Varlen(data, starts, ends)


def texts_of(series: pl.Series, text: Varlen, *, tokens: bool) -> pl.Series:
    """What is written of ids or keys that the fold takes as `text`: the file's own, unless they became something else."""
    if not tokens and (series.dtype.is_integer() or series.dtype in (pl.String, pl.Categorical, pl.Enum)):
        return series.cast(pl.String)
    return pl.Series(series.name, text.texts(), pl.String)


def sorted_runs(files: ParquetFiles, stream: Stream, folder: Path) -> list[ParquetFiles]:
    """The records of a source by visible time, in as many files as it takes to have each in memory whole; ties keep their order."""
    folder.mkdir(parents=True)
    runs = []
    for number, (positions, frame) in enumerate(files.blocks(RUN_ROWS)):
        visible = frame[stream.visible]
        times = _milliseconds(visible) if isinstance(visible.dtype, pl.Datetime) else visible
        order = np.argsort(times.fill_null(0).to_numpy(), kind="stable")
        file = folder / f"run-{number:05}.parquet"
        write([frame[order].with_columns(pl.Series(POSITION, positions[order]))], file)
        runs.append(ParquetFiles(str(file), stream, files.path))
    return runs


# ---- writing --------------------------------------------------------------------------------------------------------------


def packed(rows: Matrix) -> pl.Series:
    """Rows (n, F + V) as bytes, as `RowLayout.pack_whole` lays them."""
    octets = np.ascontiguousarray(rows, "<f4").view(np.uint8)
    return pl.Series("row", octets).arr.to_list().cast(pl.Binary)


def instants(name: str, times_ms: Ints) -> pl.Series:
    """Milliseconds UTC as times."""
    return pl.Series(name, times_ms).cast(pl.Datetime("ms", "UTC"))


class Folder:
    """
    Frames on their way into a folder of Parquet files, which is there when all of them are, or not at all.

    Raises Rejected when something is there already.
    """

    def __init__(self, out: Path) -> None:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise Rejected(f"{out} is not empty: choose another folder, or remove it")
        self.out = out
        self.partial = out.with_name(f".{out.name}.partial")
        self.files = 0
        self._frames: list[pl.DataFrame] = []
        self._held = 0

    def __enter__(self) -> Folder:
        self.clear()
        self.partial.mkdir(parents=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def clear(self) -> None:
        """Remove what was written, unless it is in its place."""
        shutil.rmtree(self.partial, ignore_errors=True)

    def add(self, frame: pl.DataFrame) -> None:
        """The next rows."""
        self._frames.append(frame)
        self._held += frame.height
        if self._held >= PART_ROWS:
            self._write()

    def finish(self) -> None:
        """Everything is there: put the folder in its place."""
        if self._held or not self.files:
            self._write()
        if self.out.exists():
            self.out.rmdir()
        self.partial.rename(self.out)

    def _write(self) -> None:
        if self._frames:
            write(self._frames, self.partial / f"rows-{self.files:05}.parquet")
            self.files += 1
        self._frames, self._held = [], 0


def write(frames: Sequence[pl.DataFrame], file: Path) -> None:
    """Frames as one file. lz4 costs 0.05 us a row more than nothing, and zstd three times that."""
    pl.concat(frames).write_parquet(file, compression="lz4", statistics=False)
