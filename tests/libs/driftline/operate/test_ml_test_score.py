"""Each of the 28 tests of the ML Test Score is judged by evidence: with it, it scores; without, it does not."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from driftline.contracts.messages import Arm, Deployment, Release, Report
from driftline.local.progress import Sample, samples
from driftline.operate.addresses import Addresses
from driftline.operate.ml_test_evidence import Evidence, collected_in, commit_of, documented_in, files_of
from driftline.operate.ml_test_score import DAY_MS, SECTIONS, TESTS, print_scorecard, scorecard
from driftline.operate.processes import all_metrics

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").exists())
OURS = collected_in(ROOT) or frozenset()
TITLES = [test.title for test in TESTS]
BY_HAND = {"All features are beneficial", "All hyperparameters have been tuned"}  # nothing of ours tests them
# told all the time, but nothing fails by it
PARTLY = {"No feature's cost is too much", "Computing performance has not regressed"}
WORDS = "Ann compared with and without on 3 May, nothing was better"


def pipeline() -> Any:
    """As much of a declaration as is asked."""
    stream = SimpleNamespace(name="payments", types={"card": "string"}, pii=("card",))
    return SimpleNamespace(
        name="fraud",
        streams=[stream],
        slices=("card",),
        layout=SimpleNamespace(names=("amount", "count_1h")),
        rollout=SimpleNamespace(approvals=2, shares=(0.25, 1.0), frozen_shadow=True),
        retrain=SimpleNamespace(every_ms=28 * DAY_MS, cooldown_ms=7 * DAY_MS),
    )


def release(number: int) -> Release:
    evidence = {
        "dataset": {"digest": "a1", "rows": 900, "served": 800},
        "checks": [
            {"name": "slices", "passed": True, "detail": "0 of 4 slices are worse"},
            {"name": "parity", "passed": True, "detail": "the graph differs by 1e-07"},
        ],
        "metrics": {"challenger": {"log_loss": 0.4 + number / 100}, "logistic": {"log_loss": 0.6}},
    }
    return Release(
        f"fraud-{number}", f"d{number}", "accepted", "better", number == 1, number * DAY_MS, "schedule", "c", "trainer", evidence
    )


def deployment(version: int, move: str, model: int) -> Deployment:
    arms = (Arm("champion", f"fraud-{model}", f"d{model}", 1.0),)
    return Deployment(version, move, "idle", f"it is {move}", version * DAY_MS, arms, (), "salt", 0.5)


def report() -> Report:
    quality = [
        {"digest": f"d{number}", "role": role, "n": 100, "log_loss": 0.5 + number / 100}
        for number, role in ((1, "frozen"), (2, "champion"), (3, "champion"))
    ]
    body = {
        "inputs": {"amount": {"psi": 0.1, "missing": 0.0}},
        "models": {"d3": {"n": 100, "nan": 0}},
        "quality": quality,
        "chart": {"model": "fraud-3", "blocks": 5, "high": 1.0, "low": 0.5, "limit": 6.0},
    }
    return Report(9 * DAY_MS, 10 * DAY_MS, (), body)


def sample(name: str, value: float, **labels: str) -> Sample:
    return Sample(name, {"pipeline": "fraud", **labels}, value)


def whole() -> Evidence:
    """Everything that can be known, all of it good."""
    return Evidence(
        pipeline=pipeline(),
        problems=[],
        releases=[release(1), release(2), release(3)],
        moves=[
            deployment(version, move, model)
            for version, (move, model) in enumerate(
                [("champion", 1), ("awaiting_approval", 1), ("shadow", 1), ("canary", 1), ("champion", 2), ("rolled_back", 3)], 1
            )
        ],
        now=deployment(7, "champion", 3),
        reports=[report()],
        samples=[
            sample("driftline_messages_read_total", 500, service="intake"),
            sample("driftline_messages_total", 500, service="intake", outcome="applied"),
            sample("driftline_messages_total", 400, service="feature", outcome="applied"),
            sample("driftline_step_duration_seconds_sum", 0.2, service="feature", stage="step"),
            sample("driftline_step_duration_seconds_count", 90, service="feature", stage="step"),
            sample("driftline_predictions_total", 300, arm="champion", flag="none"),
            sample("driftline_skew_rows_total", 300, view="card", result="same"),
        ],
        tests=OURS | {"tests/pipelines/fraud/test_rows.py::test_rows_are_right"},
        files={
            "docs/how-to/add-a-feature.md": "# Add a feature",
            "docs/reliability.json": json.dumps([{"checks": {"check_log.py": {"violations": []}}}]),
            "monitoring/prometheus/alerts.yml": (ROOT / "monitoring/prometheus/alerts.yml").read_text(),
        },
        documented={title.lower(): WORDS for title in BY_HAND},
        committed="a1b2c3",
    )


def scores(evidence: Evidence) -> dict[str, float]:
    return {one.title: one.score for one in scorecard(evidence).tests}


def without_tests(pattern: str) -> Callable[[Evidence], Evidence]:
    return lambda evidence: replace(evidence, tests=(evidence.tests or frozenset()) - set(evidence.tested(pattern)))


def without_samples(name: str) -> Callable[[Evidence], Evidence]:
    return lambda evidence: replace(evidence, samples=[one for one in evidence.samples if one.name != name])


def without_file(path: str) -> Callable[[Evidence], Evidence]:
    return lambda evidence: replace(evidence, files={name: text for name, text in evidence.files.items() if name != path})


def without_moves(*moves: str) -> Callable[[Evidence], Evidence]:
    return lambda evidence: replace(evidence, moves=[one for one in evidence.moves if one.move not in moves])


def telling(change: Callable[[dict[str, Any]], None]) -> Callable[[Evidence], Evidence]:
    """The report with another body."""

    def changed(evidence: Evidence) -> Evidence:
        body = json.loads(json.dumps(evidence.reports[0].body))
        change(body)
        return replace(evidence, reports=[Report(9 * DAY_MS, 10 * DAY_MS, (), body)])

    return changed


def releasing(change: Callable[[dict[str, Any]], None]) -> Callable[[Evidence], Evidence]:
    """The releases with other evidence."""

    def changed(evidence: Evidence) -> Evidence:
        def one(release: Release) -> Release:
            told = json.loads(json.dumps(release.evidence))
            change(told)
            fields = (release.model, release.digest, release.verdict, release.reason, release.first, release.time, release.trigger)
            return Release(*fields, release.command, release.who, told)

        return replace(evidence, releases=[one(release) for release in evidence.releases])

    return changed


def undocumented(evidence: Evidence) -> Evidence:
    return replace(evidence, documented={})


def skewed(evidence: Evidence) -> Evidence:
    return replace(evidence, samples=[*evidence.samples, sample("driftline_skew_rows_total", 1, view="card", result="different")])


def nobody_in_slices(evidence: Evidence) -> Evidence:
    stream = SimpleNamespace(name="payments", types={"card": "string"}, pii=())
    return replace(evidence, pipeline=SimpleNamespace(**{**vars(evidence.pipeline), "streams": [stream]}))


BROKEN: Mapping[str, list[Callable[[Evidence], Evidence]]] = {
    "Feature expectations are captured in a schema": [
        without_samples("driftline_messages_read_total"),
        releasing(lambda told: told.pop("dataset")),
    ],
    "All features are beneficial": [undocumented],
    "No feature's cost is too much": [
        without_samples("driftline_step_duration_seconds_sum"),
        without_samples("driftline_messages_total"),
    ],
    "Features adhere to meta-level requirements": [
        lambda evidence: replace(evidence, problems=["the input late is decided by the label"]),
        lambda evidence: replace(evidence, problems=None),
        without_tests("test_check"),
    ],
    "The data pipeline has appropriate privacy controls": [
        without_tests("personal_fields"),
        without_samples("driftline_messages_read_total"),
    ],
    "New features can be added quickly": [without_file("docs/how-to/add-a-feature.md"), without_tests("test_backfill")],
    "All input feature code is tested": [without_tests("^tests/pipelines/fraud"), without_tests("^tests/libs/driftline/features")],
    "Model specs are reviewed and submitted": [
        lambda evidence: replace(evidence, committed=""),
        without_moves("awaiting_approval"),
    ],
    "Offline and online metrics correlate": [
        telling(lambda body: body["quality"].pop()),
        telling(lambda body: body["quality"][2].update(log_loss=0.1)),
        releasing(lambda told: told.pop("metrics")),
    ],
    "All hyperparameters have been tuned": [undocumented],
    "The impact of model staleness is known": [telling(lambda body: body["quality"].pop(0))],
    "A simpler model is not better": [
        releasing(lambda told: told["metrics"].pop("logistic")),
        releasing(lambda told: told["metrics"]["logistic"].update(log_loss=0.2)),
    ],
    "Model quality is sufficient on important data slices": [
        releasing(lambda told: told["checks"].pop(0)),
        releasing(lambda told: told["checks"][0].update(passed=False)),
    ],
    "The model is tested for considerations of inclusion": [nobody_in_slices, releasing(lambda told: told["checks"].pop(0))],
    "Training is reproducible": [
        releasing(lambda told: told["dataset"].pop("digest")),
        without_tests("trained_again_from_the_logs"),
    ],
    "Model specs are unit tested": [without_tests("^tests/services/trainer"), without_tests("^tests/libs/driftline/models")],
    "The ML pipeline is integration tested": [
        without_tests("^tests/flow"),
        without_file("docs/reliability.json"),
        lambda evidence: replace(evidence, files={"docs/reliability.json": '[{"checks": {"check_log.py": {"violations": ["lost"]}}}]'}),
    ],
    "Model quality is validated before serving": [
        lambda evidence: replace(evidence, releases=evidence.releases[1:]),
        releasing(lambda told: told.pop("checks")),
    ],
    "The model is debuggable": [without_tests("test_trace"), without_samples("driftline_predictions_total")],
    "Models are canaried before serving": [without_moves("canary"), without_moves("shadow")],
    "Serving models can be rolled back": [without_moves("rolled_back"), without_tests("roll_back")],
    "Dependency changes result in notification": [
        without_file("monitoring/prometheus/alerts.yml"),
        without_samples("driftline_messages_total"),
    ],
    "Data invariants hold for inputs": [telling(lambda body: body["inputs"]["amount"].update(psi=None))],
    "Training and serving are not skewed": [skewed, without_samples("driftline_skew_rows_total")],
    "Models are not too stale": [
        lambda evidence: replace(evidence, reports=[Report(0, 60 * DAY_MS, (), {})]),
        lambda evidence: replace(evidence, now=Deployment.none()),
    ],
    "Models are numerically stable": [
        telling(lambda body: body["models"]["d3"].update(nan=1)),
        releasing(lambda told: told["checks"][1].update(passed=False)),
        telling(lambda body: body.pop("models")),
    ],
    "Computing performance has not regressed": [
        without_file("monitoring/prometheus/alerts.yml"),
        without_samples("driftline_step_duration_seconds_count"),
    ],
    "Prediction quality has not regressed": [
        telling(lambda body: body["chart"].update(blocks=0)),
        without_file("monitoring/prometheus/alerts.yml"),
    ],
}


def test_the_rubric_has_seven_tests_in_each_of_four_sections():
    """
    Each with a title of its own.
    """
    assert [(test.section, test.number) for test in TESTS] == [(section, number) for section in SECTIONS for number in range(1, 8)]
    assert len(set(TITLES)) == 28


def test_with_all_evidence_each_scores_as_high_as_it_can():
    """
    Half a point where people test, or where nothing fails by what is told.
    """
    assert scores(whole()) == {title: 0.5 if title in BY_HAND | PARTLY else 1.0 for title in TITLES}


def test_without_any_evidence_none_scores():
    """
    So nothing scores by a constant.
    """
    declared = SimpleNamespace(**{**vars(pipeline()), "rollout": SimpleNamespace(approvals=0, shares=(1.0,), frozen_shadow=False)})
    assert set(scores(Evidence(pipeline=declared)).values()) == {0.0}


@pytest.mark.parametrize(("title", "number"), [(title, number) for title in TITLES for number in range(len(BROKEN[title]))])
def test_each_scores_less_when_its_evidence_breaks(title: str, number: int):
    """
    And says what is missing.
    """
    broken = BROKEN[title][number](whole())
    assert scores(broken)[title] < scores(whole())[title]
    assert next(one.missing for one in scorecard(broken).tests if one.title == title)


def test_what_people_test_scores_a_half_and_never_lowers_what_is_automated():
    """
    Whichever test it is.
    """
    everything = {title.lower(): WORDS for title in TITLES}
    declared = SimpleNamespace(**{**vars(pipeline()), "rollout": SimpleNamespace(approvals=0, shares=(1.0,), frozen_shadow=False)})
    assert set(scores(Evidence(pipeline=declared, documented=everything)).values()) == {0.5}
    assert scores(replace(whole(), documented=everything)) == scores(whole())


def test_the_final_score_is_the_lowest_section():
    """
    Each section is the sum of its seven.
    """
    card = scorecard(whole())
    assert card.sections == {"data": 6.0, "model": 6.5, "infrastructure": 7.0, "monitoring": 6.5}
    assert card.final == 6.0
    assert card.plain()["score"] == 6.0


def test_without_a_source_tree_that_is_said():
    """
    Where only the package is installed, tests cannot be seen.
    """
    told = {one.title: one for one in scorecard(replace(whole(), tests=None)).tests}
    assert "the source tree" in told["Model specs are unit tested"].missing
    assert told["Model specs are unit tested"].score == 0.0


def test_it_is_printed_with_evidence_and_with_what_is_missing():
    """
    A table a section, and the final score.
    """
    out = StringIO()
    print_scorecard(scorecard(skewed(whole())), Console(file=out, width=200))
    text = out.getvalue()
    assert "monitoring: 6 of 7" in text
    assert "missing: 0 different" in text
    assert "ML Test Score of fraud: 6 of 7, as data, monitoring has" in text


# ---- the evidence ---------------------------------------------------------------------------------------------------------


def test_a_counter_is_summed_over_processes_and_only_over_this_pipeline():
    """
    None where no process tells it: that is not 0.
    """
    told = list(
        samples('a_total{pipeline="fraud",arm="x"} 2\na_total{pipeline="fraud",arm="y"} 3\na_total{pipeline="flights",arm="x"} 5\n')
    )
    evidence = Evidence(pipeline=pipeline(), samples=told)
    assert (evidence.total("a_total"), evidence.total("a_total", arm="y"), evidence.total("b_total")) == (5.0, 3.0, None)


def test_a_process_that_does_not_answer_tells_nothing(tmp_path: Path):
    """
    And stops nobody.
    """
    (tmp_path / "feature.json").write_text(json.dumps({"ops": "http://127.0.0.1:1"}))
    (tmp_path / "intake.json").write_text("{")
    assert all_metrics(Addresses("", "", "", tmp_path)) == [[]]


def test_tests_are_found_by_name_in_a_source_tree_and_nowhere_else(tmp_path: Path):
    """
    Those that pytest collects; without a tree there is no answer rather than none.
    """
    assert collected_in(tmp_path) is None
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "tests" / "flow").mkdir(parents=True)
    (tmp_path / "tests" / "flow" / "test_loop.py").write_text(
        "def test_it_runs(): pass\ndef helps(): pass\nasync def test_it_ends(): pass\n"
    )
    (tmp_path / "tests" / "flow" / "parts.py").write_text("def test_of_nothing(): pass\n")
    assert collected_in(tmp_path) == {"tests/flow/test_loop.py::test_it_runs", "tests/flow/test_loop.py::test_it_ends"}


def test_pages_results_and_alerts_are_read(tmp_path: Path):
    """
    By their path in the tree.
    """
    (tmp_path / "docs" / "how-to").mkdir(parents=True)
    (tmp_path / "docs" / "how-to" / "add-a-feature.md").write_text("one line")
    (tmp_path / "docs" / "reliability.json").write_text("[]")
    assert files_of(tmp_path) == {"docs/how-to/add-a-feature.md": "one line", "docs/reliability.json": "[]"}
    assert Evidence(pipeline=pipeline(), files={"docs/broken.json": "{"}).results("docs/broken.json") is None


def test_a_heading_alone_documents_nothing(tmp_path: Path):
    """
    It takes words below it.
    """
    place = tmp_path / "manual-tests.md"
    assert documented_in(place) == {}
    place.write_text(f"Tests\n\n## All features are beneficial\n\n{WORDS}\n\n## The model is debuggable\n\nto do\n")
    assert documented_in(place) == {"all features are beneficial": WORDS}


def test_a_declaration_that_was_changed_since_is_not_committed():
    """
    Nor is one without a history.
    """
    answers = {"status": "", "log": "a1b2c3"}
    assert commit_of(Path(), lambda words: answers[words[0]]) == "a1b2c3"
    assert commit_of(Path(), lambda words: {"status": " M pipeline.py", "log": "a1b2c3"}[words[0]]) == ""
    assert commit_of(Path("/")) == ""
