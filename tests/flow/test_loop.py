"""
The whole loop, as a user runs it: five weeks of real flights, three processes killed, a bad model offered. What it left on the
topics is checked by programs that share no code with driftline.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import pytest

ROOT = Path(__file__).parents[2]
DAYS = "35"
PATIENCE_S = 280


@dataclass(frozen=True)
class Played:
    """A play that is over; with `--keep` its stack is still up."""

    folder: Path
    report: dict[str, Any]
    process: subprocess.Popen[str]

    def driftline(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command of ours against the stack that is still up, in the environment that the demo wrote for it."""
        told = [
            line.removeprefix("export ").split("=", 1) for line in (self.folder / "environment.sh").read_text().splitlines() if "=" in line
        ]
        environment = os.environ | {name: value.strip("'\"") for name, value in told}
        return run([sys.executable, "-m", "driftline", *arguments], environment)

    def checked(self, script: str, *arguments: str) -> dict[str, Any]:
        """The figures of an independent checker. Fails when it found a violation."""
        command = [sys.executable, str(ROOT / "benchmarks" / script), "--stack", str(self.folder / "stack.json"), *arguments]
        done = run(command, dict(os.environ))
        assert done.returncode == 0, done.stdout + done.stderr
        figures: dict[str, Any] = json.loads(done.stdout)
        return figures


def run(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def play(folder: Path, *options: str) -> Played:
    """Run the demo until its report is written."""
    command = [sys.executable, "-m", "driftline", "demo", "--days", DAYS, "--folder", str(folder), *options]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DRIFTLINE_")}
    with (folder.parent / f"{folder.name}.txt").open("w") as output:
        process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=output, stderr=output, text=True)
    deadline = time.monotonic() + PATIENCE_S
    report = folder / "demo.json"
    while not report.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    if not report.exists():
        process.send_signal(signal.SIGINT)
        pytest.fail((folder.parent / f"{folder.name}.txt").read_text()[-4_000:])
    return Played(folder, json.loads(report.read_text()), process)


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    """Two partitions, three kills, and the stack left up."""
    found = play(tmp_path_factory.mktemp("two") / "run", "--keep")
    yield found
    found.process.send_signal(signal.SIGINT)
    found.process.wait(60)


def test_every_promise_holds_through_three_kills_and_a_bad_model(played: Played):
    """
    The report's own verdict, and that what it speaks of did happen.
    """
    assert [one for one in played.report["promises"] if not one["held"]] == []
    assert len(played.report["drills"]) == 3
    assert played.report["lost"] == played.report["repeated"] == 0
    assert played.report["asked"] == played.report["answered"] > 25_000


def test_an_independent_program_finds_each_answer_once_and_each_label_true(played: Played):
    """
    With confluent-kafka, fastavro and polars, from the topics and the public data alone.
    """
    figures = played.checked("check_answers.py")
    assert figures["asked"] == figures["predicted_once"] == figures["examples_equal_to_truth"] > 25_000


def test_an_independent_program_recomputes_every_row_byte_for_byte(played: Played):
    """
    The tile rule written again, after the kills.
    """
    figures = played.checked("check_rows.py")
    assert figures["compared"] == figures["equal"] > 25_000


def test_the_loop_and_the_frozen_model_are_measured_from_the_topics_alone(played: Played):
    """
    Whatever the gain of five weeks is, the report and the independent program agree on it.
    """
    figures = played.checked("check_quality.py", "--gain-min", "-1")
    assert figures["auc_loop"] == pytest.approx(played.report["auc_loop"], abs=1e-3)
    assert figures["log_loss_frozen"] == pytest.approx(played.report["log_loss_frozen"], abs=1e-3)


def test_a_model_is_trained_again_to_the_same_digest(played: Played):
    """
    From the topics, by the command that a user has.
    """
    manifests = sorted((played.folder / "models").glob("*/manifest.json"))
    digest = next(place.parent.name for place in manifests if json.loads(place.read_text())["model"] == "flights-1")
    done = played.driftline("reproduce", digest)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the same" in done.stdout


def test_a_models_scores_are_made_again_to_the_last_bit(played: Played, tmp_path: Path):
    """
    From the log, by the command that a user has, and compared with what the model said on the journal; and by its own file of rows.
    """
    done = played.driftline("score", "flights", "--model", "flights-1", "--out", str(tmp_path / "scores"), "--wide", "--verify")
    assert done.returncode == 0, done.stdout + done.stderr
    served, differing = (
        int(number.replace(",", "")) for number in re.findall(r"([\d,]+) scores are equal .*, ([\d,]+) differ;", done.stdout)[0]
    )
    assert served > 5_000
    assert differing == 0
    scores = pl.read_parquet(tmp_path / "scores")
    assert scores.height == played.report["asked"]
    assert scores["decision"].is_in(["pass", "alert"]).all()


def test_what_the_loop_said_is_exported(played: Played, tmp_path: Path):
    """
    Every event once, whatever was killed: predictions, answers with their features, examples; and a range by its offsets.
    """
    for kind, options in (("predictions", []), ("answers", ["--wide"]), ("examples", []), ("rows", [])):
        done = played.driftline("export", kind, "-p", "flights", "--out", str(tmp_path / kind), *options)
        assert done.returncode == 0, done.stdout + done.stderr
    predictions, answers, rows = (pl.read_parquet(tmp_path / kind) for kind in ("predictions", "answers", "rows"))
    assert predictions["id"].n_unique() == predictions.height == played.report["asked"]
    assert answers.filter(~pl.col("shadow"))["id"].sort().equals(predictions["id"].sort())
    assert rows["id"].sort().equals(predictions["id"].sort())
    told = answers.filter(~pl.col("shadow")).join(rows.select("id", other="row"), on="id")
    assert (told["row"] == told["other"]).all()
    assert answers.filter(pl.col("shadow"))["minute_of_day"].is_null().all()
    some = played.driftline(
        *("export", "rows", "-p", "flights", "--partition", "1", "--from-offset", "10", "--to-offset", "500"),
        "--out",
        str(tmp_path / "some"),
    )
    assert some.returncode == 0, some.stdout + some.stderr
    wanted = rows.filter((pl.col("topic_partition") == 1) & pl.col("topic_offset").is_between(10, 499))
    assert pl.read_parquet(tmp_path / "some").equals(wanted)


def test_status_finds_every_service_ready(played: Played):
    """
    From another shell, while the stack is up.
    """
    done = played.driftline("status", "flights")
    assert done.returncode == 0, done.stdout + done.stderr


def test_rows_are_the_same_with_four_partitions_and_without_kills(played: Played, tmp_path: Path):
    """
    A row is a function of its event, not of partitions, batches, speed or crashes.
    """
    other = play(tmp_path / "four", "--partitions", "4", "--no-kills")
    assert other.process.wait(60) == 0
    assert other.report["rows_digest"] == played.report["rows_digest"]
    assert [one for one in psutil.process_iter(["cmdline"]) if str(other.folder) in " ".join(one.info["cmdline"] or ())] == []


def test_a_play_that_was_kept_can_be_looked_at(played: Played) -> None:
    """
    Every page of the console shows what was played, and says that the loop is well.
    """
    url = json.loads((played.folder / "run" / "gateway.json").read_text())["http"]
    wanted = {
        "": ["8 of 8 are.", "as many accounted for."],
        "flights/model": ["<strong>100 %</strong> of the keys", "What the gate said"],
        "flights/quality": ["Control chart of quality", "Reliability in numbers"],
        "flights/events": ["Answered last", 'href="/flights/events/'],
        "flights/dead-letters": ["driftline dead-letters flights replay --topic"],
        "flights/features": ["mean of departure_delay_min", "% at training"],
    }
    for path, told in wanted.items():
        with urllib.request.urlopen(f"{url}/{path}") as answer:
            page = answer.read().decode()
        assert [words for words in told if words not in page] == [], path
    deadline = time.monotonic() + PATIENCE_S
    while f"console: {url}/" not in (said := (played.folder.parent / "run.txt").read_text()):
        assert time.monotonic() < deadline, said
        time.sleep(0.2)
