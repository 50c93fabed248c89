"""
What the command makes of what stands on its line, without a broker: files of payments, small enough to be read by eye.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner, Result

from driftline.cli import app
from driftline.errors import DriftlineError, Invalid
from driftline.operate.backfill import places_of
from driftline.pipeline import load_pipeline

ROOT = Path(__file__).parents[4]
START_MS = 1_700_006_400_000
HOUR_MS = 3_600_000


@pytest.fixture(autouse=True)
def pipelines(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmarks' payments: count and sum of a card's last day, and the amount."""
    monkeypatch.setenv("DRIFTLINE_PIPELINES", str(ROOT / "benchmarks" / "pipelines"))


def payments(folder: Path, *records: tuple[str, str | None, float, float]) -> Path:
    """Id, card, hours after the start, amount."""
    ids, cards, hours, amounts = zip(*records, strict=True)
    at = pl.Series([round(START_MS + hour * HOUR_MS) for hour in hours]).cast(pl.Datetime("ms", "UTC"))
    file = folder / "payments.parquet"
    pl.DataFrame({"payment_id": ids, "card": cards, "at": at, "amount": amounts}).write_parquet(file)
    return file


def backfill(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["backfill", "payments", *map(str, arguments)])


def said(*arguments: str | Path) -> str:
    """The words of the error that the command ends with."""
    found = backfill(*arguments).exception
    assert isinstance(found, DriftlineError)
    return str(found)


THREE = (("a", "x", 0, 1.0), ("b", "x", 1, 2.0), ("c", "y", 2, 4.0))


def test_a_row_holds_what_was_known_before_it(tmp_path: Path):
    """
    With --wide in columns by the names of the declaration, which say the same as the packed row.
    """
    done = backfill("--file", payments(tmp_path, *THREE), "--out", tmp_path / "rows", "--wide")
    assert done.exit_code == 0, done.output
    rows = pl.read_parquet(tmp_path / "rows")
    assert rows.select("partition", "offset", "id", "key").rows() == [(0, 0, "a", "x"), (0, 1, "b", "x"), (0, 2, "c", "y")]
    assert rows.select("count_24h", "sum_24h", "amount").rows() == [(0, 0, 1), (1, 1, 2), (0, 0, 4)]
    layout = load_pipeline("payments").layout
    wide = rows.select(layout.names).to_numpy()
    assert np.array_equal(np.frombuffer(b"".join(rows["row"]), "<f4").reshape(3, -1)[:, :3], wide)
    assert rows["layout"].unique().to_list() == [layout.version]
    assert "payments: 3 events (0 duplicate, 0 late, 0 refused), 3 rows in " in done.output


def test_what_became_of_the_others_is_told(tmp_path: Path):
    """
    An id that came before makes no row, a late record makes one and is not folded, a record without a key is refused.
    """
    file = payments(tmp_path, *THREE, ("c", "y", 2, 4.0), ("d", None, 3, 1.0), ("e", "x", 5, 8.0), ("f", "x", 2, 16.0), ("g", "x", 6, 1.0))
    done = backfill("--file", f"payments-upstream={file}", "--out", tmp_path / "rows", "--as-arrived", "--wide")
    assert done.exit_code == 0, done.output
    assert f'{file}: 1 refused (contract): "card" is null; Payment says string; the first is record 4' in done.output
    assert "8 events (1 duplicate, 1 late, 1 refused), 6 rows" in done.output
    assert pl.read_parquet(tmp_path / "rows").select("id", "sum_24h").rows()[3:] == [("e", 3), ("f", 3), ("g", 11)]


def test_files_out_of_order_are_sorted_on_request(tmp_path: Path):
    """
    Then their rows are those of the sorted file, each at its own position; without a word about it nothing is made.
    """
    file = payments(tmp_path, *THREE[::-1])
    assert "record 1 is visible at " in said("--file", file, "--out", tmp_path / "rows")
    assert not (tmp_path / "rows").exists()
    done = backfill("--file", file, "--out", tmp_path / "rows", "--sort", "--wide")
    assert done.exit_code == 0, done.output
    assert pl.read_parquet(tmp_path / "rows").select("offset", "id", "sum_24h").rows() == [(2, "a", 0), (1, "b", 1), (0, "c", 0)]
    assert sorted(one.suffix for one in (tmp_path / "rows").iterdir()) == [".parquet"]


def test_rows_of_a_stretch_of_time_know_what_came_before_it(tmp_path: Path):
    """
    The end is exclusive.
    """
    file = payments(tmp_path, *THREE)
    first, end = "2023-11-15T01:00:00", "2023-11-15T02:00:00"
    done = backfill("--file", file, "--out", tmp_path / "rows", "--from", first, "--to", end, "--wide")
    assert done.exit_code == 0, done.output
    assert pl.read_parquet(tmp_path / "rows").select("id", "sum_24h").rows() == [("b", 1)]
    assert "3 events" in done.output


def test_nothing_that_is_wanted_makes_an_empty_table(tmp_path: Path):
    """
    Which has its columns.
    """
    done = backfill("--file", payments(tmp_path, *THREE), "--out", tmp_path / "rows", "--to", "2020-01-01")
    assert done.exit_code == 0, done.output
    assert pl.read_parquet(tmp_path / "rows").shape == (0, 8)


def test_personal_fields_leave_as_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """
    By the key that intake has, and not at all without it.
    """
    folder = tmp_path / "pipelines" / "payments"
    shutil.copytree(ROOT / "benchmarks" / "pipelines" / "payments", folder)
    schema = json.loads((folder / "payment.v1.avsc").read_text())
    next(field for field in schema["fields"] if field["name"] == "card")["pii"] = True
    (folder / "payment.v1.avsc").write_text(json.dumps(schema))
    monkeypatch.setenv("DRIFTLINE_PIPELINES", str(folder.parent))
    file = payments(tmp_path, *THREE)
    assert "DRIFTLINE_PII_KEY is not set" in said("--file", file, "--out", tmp_path / "rows")
    monkeypatch.setenv("DRIFTLINE_PII_KEY", "ab" * 32)
    done = backfill("--file", file, "--out", tmp_path / "rows", "--wide")
    assert done.exit_code == 0, done.output
    tokens = [hmac.new(b"ab" * 32, card, hashlib.sha256).hexdigest()[:32] for card in (b"x", b"x", b"y")]
    assert pl.read_parquet(tmp_path / "rows").select("key", "count_24h").rows() == list(zip(tokens, (0, 1, 0), strict=True))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--sort", "--as-arrived", "--file", "x"], "choose one"),
        (["--file", "x", "--partition", "0"], "with files choose rows with --from and --to"),
        (["--sort"], "leave them out, or name files"),
        (["--from", "2024-01-02", "--to", "2024-01-01"], "end before they begin"),
        (["--from-offset", "7", "--to-offset", "7"], "end before they begin"),
        (["--from", "yesterday"], "--from yesterday: say how long ago"),
        (["--file", "x.parquet"], "x.parquet: there is no such file"),
    ],
)
def test_what_does_not_go_together_is_told_with_what_to_do(tmp_path: Path, arguments: list[str], words: str):
    """
    Before anything is read or written.
    """
    assert words in said("--out", tmp_path / "rows", *arguments)
    assert list(tmp_path.iterdir()) == []


def test_every_stream_has_its_files():
    """
    By its topic or its own name, several being partitions; one that has none is named.
    """
    flights = load_pipeline("flights", ROOT / "pipelines")
    words = ["flights=a", "departures=b", "departures=c=d", "arrivals=e", "weather=f"]
    found = {stream.topic: paths for stream, paths in places_of(flights, words).items()}
    assert found == {"flights": ["a"], "departures": ["b", "c=d"], "arrivals": ["e"], "weather": ["f"]}
    with pytest.raises(Invalid, match=r"weather has no files, .*: add --file weather=PATH"):
        places_of(flights, words[:-1])
    with pytest.raises(Invalid, match="--file g=h: whose records are these"):
        places_of(flights, [*words, "g=h"])


def csv(folder: Path, text: str, name: str = "payments.csv") -> Path:
    file = folder / name
    file.write_text(text)
    return file


def test_csv_files_are_read_by_the_types_of_the_schema(tmp_path: Path):
    """
    A key that looks like a number stays as it is written; times are milliseconds or ISO 8601, whatever the offset; no value is null.
    """
    text = (
        "amount,card,at,payment_id,remark\n"
        f"1.5,007,{START_MS},a,\n"
        '2,007,2023-11-15T01:30:00+01:00,b,"more, later"\n'
        "4,,2023-11-15T01:00:00.250Z,c,x\n"
        "8,007,2023-11-15T02:00:00Z,d,x\n"
    )
    done = backfill("--file", csv(tmp_path, text), "--out", tmp_path / "rows", "--wide")
    assert done.exit_code == 0, done.output
    assert '"card" is null' in done.output
    rows = pl.read_parquet(tmp_path / "rows").select("offset", "id", "key", "sum_24h")
    assert rows.rows() == [(0, "a", "007", 0), (1, "b", "007", 1.5), (3, "d", "007", 3.5)]
    columns = pl.read_parquet(tmp_path / "rows")
    assert columns["visible"].to_list()[1] == datetime(2023, 11, 15, 0, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "payments.csv cannot be read as CSV of Payment"),
        (f"payment_id,card,at\na,x,{START_MS}\n", 'has no column "amount"'),
        (f"payment_id,card,at,amount\na,x,{START_MS},much\n", "payments.csv cannot be read as CSV of Payment"),
        ("payment_id,card,at,amount\na,x,2023-11-15 01:00,1\n", "Times are ISO 8601 with an offset"),
        ("payment_id,card,at,amount\na,x,99999999999999999999,1\n", "Times are ISO 8601 with an offset"),
    ],
)
def test_csv_that_says_something_else_is_refused_by_name(tmp_path: Path, text: str, words: str):
    """
    Nothing is guessed and nothing is written.
    """
    assert words in said("--file", csv(tmp_path, text), "--out", tmp_path / "rows")
    assert not (tmp_path / "rows").exists()


def test_a_folder_of_csv_files_is_one_after_the_other(tmp_path: Path):
    """
    By name, as of Parquet files.
    """
    folder = tmp_path / "in"
    folder.mkdir()
    for number, line in enumerate((f"a,x,{START_MS},1", f"b,x,{START_MS + HOUR_MS},2")):
        csv(folder, f"payment_id,card,at,amount\n{line}\n", f"{number}.csv")
    done = backfill("--file", folder, "--out", tmp_path / "rows", "--wide")
    assert done.exit_code == 0, done.output
    assert pl.read_parquet(tmp_path / "rows").select("offset", "id", "sum_24h").rows() == [(0, "a", 0), (1, "b", 1)]
