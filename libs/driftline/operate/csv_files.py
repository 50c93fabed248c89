"""
CSV as Parquet: the fields of a stream by the names in the first line, of the types that its schema says.
"""

from __future__ import annotations

import glob
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from driftline.errors import Invalid
from driftline.pipeline import Stream

SUFFIX = ".csv"
TYPES: Mapping[str, pl.DataType] = {
    "string": pl.String(),
    "boolean": pl.Boolean(),
    "int": pl.Int64(),
    "long": pl.Int64(),
    "float": pl.Float64(),
    "double": pl.Float64(),
    "timestamp-millis": pl.String(),
}
WHOLE = r"^-?[0-9]+$"


def as_parquet(path: str, stream: Stream, folder: Path) -> str:
    """
    Where the records of `path` are as Parquet: there, or, of a CSV file, a folder or a pattern of CSV files, in `folder`, which is made.

    A time is ISO 8601 with its offset from UTC, or milliseconds; nothing between two commas is null. Raises Invalid, naming the file.
    """
    files = _csv_files(path)
    if not files:
        return path
    folder.mkdir(parents=True)
    for number, file in enumerate(files):
        _convert(file, stream, folder / f"{number:05}.parquet")
    return str(folder)


def _csv_files(path: str) -> list[Path]:
    place = Path(path)
    if place.is_dir():
        return [] if any(place.glob("*.parquet")) else sorted(place.glob(f"*{SUFFIX}"))
    return [Path(one) for one in sorted(glob.glob(path)) if one.endswith(SUFFIX)]


def _convert(file: Path, stream: Stream, to: Path) -> None:
    try:
        names = [name for name in pl.scan_csv(file, infer_schema=False).collect_schema() if name in stream.types]
        kinds = {name: stream.types[name].rstrip("?") for name in names}
        frame = pl.scan_csv(file, schema_overrides={name: TYPES[kind] for name, kind in kinds.items()}).select(names)
        times = [_time(name) for name, kind in kinds.items() if kind == "timestamp-millis"]
        frame.with_columns(times).sink_parquet(to, compression="lz4")
    except (pl.exceptions.PolarsError, OSError) as error:
        told = str(error).splitlines()[0]
        raise Invalid(
            f"{file} cannot be read as CSV of {stream.schema['name']}: {told}. Times are ISO 8601 with an offset, as in "
            "2013-01-01T05:15:00Z, or milliseconds UTC"
        ) from error


def _time(name: str) -> pl.Expr:
    text = pl.col(name)
    whole = text.str.contains(WHOLE)
    written = pl.when(whole).then(None).otherwise(text).str.to_datetime("%+", time_unit="ms", time_zone="UTC")
    numbers = pl.when(whole).then(text).otherwise(None).cast(pl.Int64)
    return pl.when(whole).then(numbers).otherwise(written.cast(pl.Int64)).alias(name)
