"""
The ML Test Score of a pipeline: the 28 tests of Breck, Cai, Nielsen, Salib and Sculley, "The ML Test Score: A Rubric for ML Production
Readiness and Technical Debt Reduction" (IEEE Big Data 2017), each judged by evidence that was gathered now.

A test scores 1 when something does it by itself, again and again; 0.5 when it was done, or is only half of what is asked; 0 otherwise. A
section's score is the sum, the final score the lowest of the four sections. Nothing scores by a constant: without evidence each is 0.
What people test by hand and write into `manual-tests.md` of the pipeline's folder, below the test's title, scores 0.5.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table as Grid

from driftline.operate.ml_test_evidence import DOCUMENTED, Evidence, counted

AUTOMATED, PARTLY, NONE = 1.0, 0.5, 0.0
SECTIONS = ("data", "model", "infrastructure", "monitoring")
MODELS_TO_CORRELATE = 3
SHOWN_MAX = 2
DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Found:
    """What the evidence of one test is worth, what it is, and what would earn the rest."""

    score: float
    evidence: str
    missing: str = ""


@dataclass(frozen=True, slots=True)
class Test:
    """One test of the rubric, and who judges it."""

    section: str
    number: int
    title: str
    judge: Callable[[Evidence], Found]


@dataclass(frozen=True, slots=True)
class Judged:
    """One test with its score."""

    section: str
    number: int
    title: str
    score: float
    evidence: str
    missing: str


@dataclass(frozen=True, slots=True)
class Scorecard:
    """All tests, the sum of each section, and the lowest of these."""

    pipeline: str
    tests: Sequence[Judged]

    @property
    def sections(self) -> dict[str, float]:
        """The score of each section, at most 7."""
        return {name: sum(one.score for one in self.tests if one.section == name) for name in SECTIONS}

    @property
    def final(self) -> float:
        """The ML Test Score."""
        return min(self.sections.values())

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"pipeline": self.pipeline, "score": self.final, "sections": self.sections, "tests": [asdict(one) for one in self.tests]}


def scorecard(evidence: Evidence) -> Scorecard:
    """Judge all 28."""
    return Scorecard(evidence.pipeline.name, [_judged(test, evidence) for test in TESTS])


def _judged(test: Test, evidence: Evidence) -> Judged:
    found = test.judge(evidence)
    told = evidence.documented.get(test.title.lower())
    if told and found.score < PARTLY:
        found = Found(PARTLY, f"done by hand, as {DOCUMENTED} says: {told[:80]}", found.missing)
    return Judged(test.section, test.number, test.title, found.score, found.evidence, found.missing if found.score < AUTOMATED else "")


def _by_steps(steps: Sequence[tuple[bool, str, str]], nothing: str) -> Found:
    """
    Several things that make a test whole, each as (there, what was seen, what is missing): all of them 1, some 0.5, none 0.
    """
    seen = "; ".join(text for there, text, _ in steps if there)
    missing = "; ".join(text for there, _, text in steps if not there)
    if not seen:
        return Found(NONE, nothing, missing)
    return Found(PARTLY if missing else AUTOMATED, seen, missing)


def _tests(evidence: Evidence, pattern: str, about: str) -> tuple[bool, str, str]:
    """The step that tests with such names are there."""
    if evidence.tests is None:
        return False, "", f"the source tree, for the tests of {about}"
    found = evidence.tested(pattern)
    return (
        bool(found),
        ", ".join(test.rpartition("/")[2] for test in found[:SHOWN_MAX]) + (" and more" if len(found) > SHOWN_MAX else ""),
        f"a test of {about}",
    )


# ---- data -----------------------------------------------------------------------------------------------------------------


def _schema(evidence: Evidence) -> Found:
    read = evidence.total("driftline_messages_read_total", service="intake")
    refused = evidence.total("driftline_messages_total", service="intake", outcome="dead_lettered")
    streams = [stream.name for stream in evidence.pipeline.streams if stream.types]
    told = f"intake checked {read or 0:,.0f} records by contract and refused {refused or 0:,.0f}"
    bounds = bool(evidence.trained and evidence.trained.evidence.get("dataset"))
    return _by_steps(
        [
            (
                len(streams) == len(evidence.pipeline.streams) and bool(read),
                f"{counted(streams, 'stream')} with a schema; {told}",
                "intake at work",
            ),
            (bounds, "what was trained on is kept as the reference of each input", "a trained model, whose inputs are the reference"),
        ],
        "no record was checked",
    )


def _beneficial(_: Evidence) -> Found:
    return Found(
        NONE, "nothing tells what a feature is worth", f"training without each view in turn, by the trainer or written into {DOCUMENTED}"
    )


def _cost(evidence: Evidence) -> Found:
    spent = evidence.total("driftline_step_duration_seconds_sum", service="feature", stage="step")
    made = evidence.total("driftline_messages_total", service="feature", outcome="applied")
    limit = "by-feature cost with a limit that fails a release"
    if not spent or not made:
        return Found(NONE, "no feature service tells what it spends", f"feature at work; then {limit}")
    inputs = len(evidence.pipeline.layout.names)
    return Found(PARTLY, f"{spent / made * 1e6:.1f} µs a record for all {inputs} inputs, told all the time", limit)


def _meta_level(evidence: Evidence) -> Found:
    if evidence.problems or evidence.problems is None:
        told = evidence.problems[0] if evidence.problems else "was not asked"
        return Found(NONE, f"driftline check: {told}", "a declaration without problems")
    sound = (True, "driftline check finds no input that the label decides, and no window that the log cannot rebuild", "")
    return _by_steps([sound, _tests(evidence, r"test_check\.py::.*(label_decides|cannot_rebuild)", "what the check refuses")], "")


def _privacy(evidence: Evidence) -> Found:
    personal = [f"{stream.name}.{name}" for stream in evidence.pipeline.streams for name in stream.pii]
    read = evidence.total("driftline_messages_read_total", service="intake")
    told = (
        f"tokenised in {read or 0:,.0f} records: {', '.join(personal)}"
        if personal
        else f"no field of {read or 0:,.0f} records is declared personal"
    )
    return _by_steps(
        [
            (bool(read), told, "intake at work"),
            _tests(evidence, r"test_parse\.py::.*personal_fields", "tokens in place of personal fields"),
        ],
        "nothing was read",
    )


def _quickly(evidence: Evidence) -> Found:
    page = "docs/how-to/add-a-feature.md"
    return _by_steps(
        [
            (page in evidence.files, f"{page}: one line of the declaration", "a page that says how"),
            _tests(evidence, r"test_backfill\.py::.*byte_for_byte", "rows of the past made with a new declaration"),
        ],
        "neither page nor backfill is here",
    )


def _feature_code(evidence: Evidence) -> Found:
    name = evidence.pipeline.name
    return _by_steps(
        [
            _tests(evidence, r"^tests/libs/driftline/features/", "the functions that features are made of"),
            _tests(evidence, rf"^tests/pipelines/{name}/", f"the inputs of {name}"),
        ],
        "no test of features is here",
    )


# ---- model ----------------------------------------------------------------------------------------------------------------


def _reviewed(evidence: Evidence) -> Found:
    two = evidence.pipeline.rollout.approvals >= 2
    approved = [move for move in evidence.moves if move.move == "awaiting_approval"]
    return _by_steps(
        [
            (bool(evidence.committed), f"the declaration is in version control, commit {evidence.committed}", "the declaration committed"),
            (
                two and bool(approved),
                f"{counted(approved, 'candidate')} waited for two people",
                "Rollout(approvals=2), and a candidate that was approved",
            ),
        ],
        "the declaration is in no history",
    )


def _offline_and_online(evidence: Evidence) -> Found:
    pairs = _offline_online_pairs(evidence)
    told = ", ".join(f"{model} {offline:.3f} / {online:.3f}" for model, (offline, online) in pairs.items())
    if not pairs:
        return Found(NONE, "no model has both", "a release that served until its labels matured")
    if len(pairs) < MODELS_TO_CORRELATE:
        return Found(PARTLY, f"log loss offline / online: {told}", f"{MODELS_TO_CORRELATE} models with both, to correlate")
    r = _correlation(list(pairs.values()))
    return Found(
        AUTOMATED if r > 0 else PARTLY,
        f"log loss offline / online: {told}; correlation {r:+.2f}",
        "offline figures that foretell those online",
    )


def _offline_online_pairs(evidence: Evidence) -> dict[str, tuple[float, float]]:
    """By model: log loss when it was proved, and the mean over the rows that it answered since."""
    pairs = {}
    for release in evidence.releases:
        metrics = release.evidence.get("metrics", {})
        offline = next((metrics[name].get("log_loss") for name in ("challenger", "model") if name in metrics), None)
        rows = [
            (one["n"], one["log_loss"]) for one in evidence.cohorts() if one["digest"] == release.digest and one.get("log_loss") is not None
        ]
        if offline is not None and sum(n for n, _ in rows):
            pairs[release.model] = (offline, sum(n * loss for n, loss in rows) / sum(n for n, _ in rows))
    return pairs


def _correlation(pairs: Sequence[tuple[float, float]]) -> float:
    """Pearson's; 0 where one of the two does not vary."""
    ones, others = zip(*pairs, strict=True)
    a, b = sum(ones) / len(ones), sum(others) / len(others)
    spread = math.sqrt(sum((x - a) ** 2 for x in ones) * sum((y - b) ** 2 for y in others))
    return sum((x - a) * (y - b) for x, y in pairs) / spread if spread else 0.0


def _tuned(_: Evidence) -> Found:
    return Found(NONE, "nothing tells how the hyperparameters were found", f"a search, by the trainer or written into {DOCUMENTED}")


def _staleness(evidence: Evidence) -> Found:
    losses = {
        role: [one["log_loss"] for one in evidence.cohorts() if one["role"] == role and one.get("log_loss") is not None]
        for role in ("champion", "frozen")
    }
    if losses["champion"] and losses["frozen"]:
        means = {role: sum(found) / len(found) for role, found in losses.items()}
        return Found(
            AUTOMATED,
            f"mean log loss of {counted(losses['frozen'], 'cohort')}: the first model, never trained again, {means['frozen']:.3f}; "
            f"champions {means['champion']:.3f}",
        )
    if evidence.pipeline.rollout.frozen_shadow:
        return Found(PARTLY, "declared: the first champion scores along for ever", "labels for what it said, told in reports")
    return Found(NONE, "no old model scores along", "Rollout(frozen_shadow=True)")


def _simpler(evidence: Evidence) -> Found:
    release = evidence.champion
    metrics = release.evidence.get("metrics", {}) if release else {}
    ours = next((metrics[name]["log_loss"] for name in ("challenger", "model") if name in metrics), None)
    if release is None or ours is None or "logistic" not in metrics:
        return Found(NONE, "no champion that was compared with a simpler model", "a training, which fits a logistic regression beside")
    simple = metrics["logistic"]["log_loss"]
    told = f"{release.model}: log loss {ours:.3f}, logistic regression {simple:.3f} on the same rows"
    return Found(AUTOMATED, told) if ours < simple else Found(NONE, told, "use the simpler model, or better features")


def _slices(evidence: Evidence) -> Found:
    release = evidence.champion
    found = _check(release.evidence, "slices") if release else {}
    if release is None or not found:
        return Found(
            NONE, "no champion that was judged by slice", "slices= in the declaration, and a champion that had one before it to beat"
        )
    told = f"{release.model}: {found['detail'].rstrip(': ')}"
    return Found(AUTOMATED, told) if found["passed"] else Found(PARTLY, told, "a model that is no worse on any slice")


def _check(evidence: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return next((one for one in evidence.get("checks", ()) if one["name"] == name), {})


def _inclusion(evidence: Evidence) -> Found:
    fields = [name for name in evidence.pipeline.slices if any(name in stream.pii for stream in evidence.pipeline.streams)]
    if fields and _slices(evidence).score == AUTOMATED:
        return Found(AUTOMATED, f"quality is judged by {', '.join(fields)}, which the pipeline marks as personal")
    return Found(NONE, "no slice is about people", "slices= by groups of people, where the question is about any; or " + DOCUMENTED)


# ---- infrastructure -------------------------------------------------------------------------------------------------------


def _reproducible(evidence: Evidence) -> Found:
    named = [one for one in evidence.releases if one.evidence.get("dataset", {}).get("digest")]
    return _by_steps(
        [
            (
                bool(named),
                f"{counted(named, 'release')} with the digest and the offsets of what it was trained on",
                "a release with its data named",
            ),
            _tests(evidence, r"test_app\.py::test_a_model_can_be_trained_again_from_the_logs_alone", "training again to the same digest"),
        ],
        "no release, no test",
    )


def _unit_tested(evidence: Evidence) -> Found:
    return _by_steps(
        [
            _tests(evidence, r"^tests/services/trainer/", "training"),
            _tests(evidence, r"^tests/libs/driftline/models/.*(recipe|batch|onnx)", "models and their graphs"),
        ],
        "no test of models is here",
    )


def _integration(evidence: Evidence) -> Found:
    battery = evidence.results("docs/reliability.json") or []
    clean = [part for part in battery if not part["checks"].get("check_log.py", {}).get("violations", [True])]
    return _by_steps(
        [
            _tests(evidence, r"^tests/flow/", "the whole loop"),
            (
                bool(clean) and len(clean) == len(battery),
                f"docs/reliability.json: {counted(clean, 'part')} of the battery, no violation",
                "a battery without violation",
            ),
        ],
        "neither a test of the whole loop nor a result is here",
    )


def _validated(evidence: Evidence) -> Found:
    by_digest = {one.digest: one for one in evidence.releases}
    served = {arm.digest: arm.model for move in evidence.moves for arm in move.arms}
    proved = [digest for digest in served if (one := by_digest.get(digest)) and one.verdict == "accepted" and one.evidence.get("checks")]
    if not served:
        return Found(NONE, "no model has served", "a first model")
    told = f"{len(proved)} of {counted(served, 'model')} that served passed the gate, with its checks on the log"
    return Found(AUTOMATED, told) if len(proved) == len(served) else Found(PARTLY if proved else NONE, told, "no model past the gate")


def _debuggable(evidence: Evidence) -> Found:
    answered = evidence.total("driftline_predictions_total")
    told = f"each of {answered or 0:,.0f} answers has its row, model and offsets on the log: driftline trace ID"
    return _by_steps(
        [(bool(answered), told, "answers"), _tests(evidence, r"test_trace\.py::", "following one event")], "nothing was answered"
    )


def _canaried(evidence: Evidence) -> Found:
    seen = [move.move for move in evidence.moves]
    if "shadow" in seen and "canary" in seen:
        return Found(
            AUTOMATED, f"{seen.count('shadow')} candidates in shadow, {seen.count('canary')} steps of a canary, on the deployments"
        )
    shares = evidence.pipeline.rollout.shares
    if len(shares) > 1 and seen:
        return Found(PARTLY, f"declared: shares {', '.join(f'{share:.0%}' for share in shares)}", "a candidate that went through them")
    return Found(NONE, "no candidate was canaried", "a second model")


def _rolled_back(evidence: Evidence) -> Found:
    back = [move for move in evidence.moves if move.move in ("rolled_back", "refused")]
    taken = (
        bool(back),
        f"{counted(back, 'candidate')} taken back: {back[-1].reason[:90] if back else ''}",
        "a rollback, at best a drill with driftline models rollback",
    )
    return _by_steps([taken, _tests(evidence, r"rollout/test_core\.py::.*roll_back", "rolling back")], "nothing was ever taken back")


# ---- monitoring -----------------------------------------------------------------------------------------------------------


def _alert(evidence: Evidence, name: str, about: str) -> tuple[bool, str, str]:
    there = f"alert: {name}" in evidence.files.get("monitoring/prometheus/alerts.yml", "")
    return there, f"alert {name}", f"an alert on {about} in monitoring/prometheus/alerts.yml"


def _dependencies(evidence: Evidence) -> Found:
    if evidence.total("driftline_messages_total", service="intake") is None:
        return Found(NONE, "nobody watches upstream", "intake at work")
    told = f"intake holds {counted(evidence.pipeline.streams, 'upstream topic')} to its contract and counts what breaks it"
    return _by_steps([(True, told, ""), _alert(evidence, "DriftlineDeadLetters", "refused records")], "")


def _invariants(evidence: Evidence) -> Found:
    compared = [one for one in evidence.reports if any(told.get("psi") is not None for told in one.body.get("inputs", {}).values())]
    if not compared:
        return Found(NONE, "no report compares inputs with training", "a report of a window in which a model answered")
    inputs = compared[-1].body["inputs"]
    return Found(
        AUTOMATED, f"{counted(compared, 'report')} compare inputs with training, the last one {len(inputs)}: PSI, missing, out of range"
    )


def _skew(evidence: Evidence) -> Found:
    same, different = (evidence.total("driftline_skew_rows_total", result=result) for result in ("same", "different"))
    if same:
        return Found(
            PARTLY if different else AUTOMATED, f"{same:,.0f} rows made again the same, {different or 0:,.0f} different", "0 different"
        )
    trained = evidence.trained
    dataset = trained.evidence["dataset"] if trained else {}
    served = dataset.get("served", 0)
    if served:
        told = f"{served:,} of {dataset['rows']:,} rows that {trained.model if trained else ''} learnt from are those that were served"
        return Found(PARTLY, told, "the skew meter at work all the time; by hand: driftline backfill --verify")
    return Found(NONE, "nothing compares the two", "a model trained on rows that were served")


def _too_stale(evidence: Evidence) -> Found:
    champion = evidence.champion
    if champion is None or not evidence.reports:
        return Found(NONE, "there is no champion whose age could be told", "a champion, and a report")
    plan, age_ms = evidence.pipeline.retrain, evidence.reports[-1].end - champion.time
    told = f"{champion.model} is {age_ms / DAY_MS:.0f} days old by the last report, {plan.every_ms / DAY_MS:.0f} are declared"
    fresh = age_ms <= plan.every_ms + plan.cooldown_ms
    return Found(AUTOMATED, told) if fresh else Found(PARTLY, told, "a retrain whose model is accepted")


def _stable(evidence: Evidence) -> Found:
    told = [one for report in evidence.reports for one in report.body.get("models", {}).values() if "nan" in one]
    if not told:
        return Found(NONE, "no report counts what is no number", "a report of a window in which a model answered")
    rows, bad = sum(one["n"] for one in told), sum(one["nan"] for one in told)
    text = f"{bad:,} of {rows:,} scores in the reports are no number"
    parity = _check(evidence.trained.evidence, "parity") if evidence.trained else {}
    text += f"; {parity['detail']}" if parity else ""
    return (
        Found(AUTOMATED, text)
        if not bad and parity.get("passed")
        else Found(PARTLY, text, "0 of them, and a graph equal to what was trained")
    )


def _performance(evidence: Evidence) -> Found:
    spent = evidence.total("driftline_step_duration_seconds_count")
    if not spent:
        return Found(NONE, "nobody measures", "services at work")
    lag, told, missing = _alert(evidence, "DriftlineLag", "lag")
    if not lag:
        return Found(NONE, f"{spent:,.0f} steps of batches timed, and nobody is told", missing)
    return Found(
        PARTLY, f"{spent:,.0f} steps of batches timed; {told}", "a benchmark that is compared from commit to commit, and fails one"
    )


def _quality(evidence: Evidence) -> Found:
    charts = [one.body["chart"] for one in evidence.reports if one.body.get("chart", {}).get("blocks")]
    if not charts:
        return Found(NONE, "no quality is told", "a champion with matured labels")
    last = charts[-1]
    told = f"control chart of {last['model']}, {last['blocks']} cohorts: {max(last['high'], last['low']):.2f} of {last['limit']:.2f}"
    return _by_steps([(True, told, ""), _alert(evidence, "DriftlineQualityAlarm", "quality")], "")


TESTS = tuple(
    Test(section, number, title, judge)
    for section, tests in zip(
        SECTIONS,
        (
            (
                ("Feature expectations are captured in a schema", _schema),
                ("All features are beneficial", _beneficial),
                ("No feature's cost is too much", _cost),
                ("Features adhere to meta-level requirements", _meta_level),
                ("The data pipeline has appropriate privacy controls", _privacy),
                ("New features can be added quickly", _quickly),
                ("All input feature code is tested", _feature_code),
            ),
            (
                ("Model specs are reviewed and submitted", _reviewed),
                ("Offline and online metrics correlate", _offline_and_online),
                ("All hyperparameters have been tuned", _tuned),
                ("The impact of model staleness is known", _staleness),
                ("A simpler model is not better", _simpler),
                ("Model quality is sufficient on important data slices", _slices),
                ("The model is tested for considerations of inclusion", _inclusion),
            ),
            (
                ("Training is reproducible", _reproducible),
                ("Model specs are unit tested", _unit_tested),
                ("The ML pipeline is integration tested", _integration),
                ("Model quality is validated before serving", _validated),
                ("The model is debuggable", _debuggable),
                ("Models are canaried before serving", _canaried),
                ("Serving models can be rolled back", _rolled_back),
            ),
            (
                ("Dependency changes result in notification", _dependencies),
                ("Data invariants hold for inputs", _invariants),
                ("Training and serving are not skewed", _skew),
                ("Models are not too stale", _too_stale),
                ("Models are numerically stable", _stable),
                ("Computing performance has not regressed", _performance),
                ("Prediction quality has not regressed", _quality),
            ),
        ),
        strict=True,
    )
    for number, (title, judge) in enumerate(tests, 1)
)


def print_scorecard(card: Scorecard, console: Console) -> None:
    """A table a section, with the evidence, and below what would earn the rest."""
    for section, score in card.sections.items():
        grid = Grid("", "score", "test", "evidence", box=None, pad_edge=False, title=f"{section}: {score:g} of 7", title_justify="left")
        for one in card.tests:
            if one.section == section:
                missing = f"\nmissing: {one.missing}" if one.missing else ""
                grid.add_row(str(one.number), f"{one.score:g}", one.title, f"{one.evidence}{missing}")
        console.print(grid, highlight=False, markup=False)
        console.print()
    lowest = ", ".join(name for name, score in card.sections.items() if score == card.final)
    console.print(f"ML Test Score of {card.pipeline}: {card.final:g} of 7, as {lowest} has", highlight=False, markup=False)
