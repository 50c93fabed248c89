"""
The final report of a play: what went in and out, was it right, did it learn, what did it cost. Each answer is computed from the
pipeline's own topics and compared with what is true about the data; each promise is kept or broken, never nearly kept.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl

from driftline.contracts.messages import Release
from driftline.judge import quality
from driftline.local.child import Usage
from driftline.local.drills import BadModel, Kill, bad_model_fate
from driftline.local.evidence import Logs, Rows
from driftline.local.progress import Sample, day_text, total

SCORE_DIGITS = 6
EVENT = ("partition", "event_offset")
MEBIBYTE = 1 << 20
HOUR_MS = 3_600_000
OUTSIDE = ("kafka", "valkey")  # told apart from our own processes
WIDTH = 96


@dataclass(slots=True)
class Run:
    """What the demo knows of its run and no topic tells. `played` is the player's own report."""

    pipeline: str
    label_topic: str
    question_topic: str
    started_ms: int
    wall_s: float
    partitions: int
    seed: int
    played: Mapping[str, Any]
    truth: pl.DataFrame  # id, label (0, 1), arrived (null where silence is the truth)
    kills: Sequence[Kill] = ()
    bad_model: BadModel | None = None
    metrics: Mapping[str, Sequence[Sample]] = field(default_factory=dict)
    usage: Mapping[str, Usage] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Promise:
    """Something that must hold, whether it did, and what was found."""

    name: str
    held: bool
    detail: str


def findings(run: Run, logs: Logs) -> dict[str, Any]:
    """Everything that the report says, as plain values for JSON."""
    found = {
        "pipeline": run.pipeline,
        "seed": run.seed,
        "partitions": run.partitions,
        "days": run.played["days"],
        "messages": run.played["messages"],
        "published": run.played["published"],
        "duplicates": sum(run.played["duplicates"].values()),
        "broken": len(run.played["broken"]),
        "broken_by_kind": run.played["broken_by_kind"],
        "left_out": run.played["left_out"],
        "waited_s": run.played["waited_s"],
        "waited_longest_s": run.played["waited_longest_s"],
        **answered(run.truth, logs.predictions),
        "copies_dropped": logs.copies,
        "once": counted_once(run, logs),
        "dead_letters": refused(run.played["broken"], logs.dead_letters),
        "labels": labelled(run.truth, logs.examples),
        **learned(logs),
        "retrains": retrains(logs),
        "moves": moves(logs),
        "rows_digest": rows_digest(logs.answers, logs.rows),
        "trainings": trainings(logs),
        "bad_model": fate(run.bad_model, logs),
        "drills": [kill.to_dict() for kill in run.kills],
        "sums": sums(run.metrics),
        **costs(run),
    }
    kept = promises(found)
    return {**found, "promises": [asdict(one) for one in kept], "held": all(one.held for one in kept)}


# What came out


def answered(truth: pl.DataFrame, predictions: pl.DataFrame) -> dict[str, int]:
    """Questions against predictions, by id: how many were asked, answered, lost, and answered more than once by first copies."""
    times = predictions.group_by("id").len()
    matched = truth.select("id").join(times, on="id", how="left")
    return {
        "asked": truth.height,
        "answered": matched.filter(pl.col("len") >= 1).height,
        "lost": matched["len"].null_count(),
        "repeated": int((times["len"] - 1).sum()) if times.height else 0,
        "unknown": times.join(truth.select("id"), on="id", how="anti").height,
    }


def counted_once(run: Run, logs: Logs) -> dict[str, int]:
    """Whether second copies of upstream messages left a trace: answers and outcomes on the journal, and how many of them are distinct."""
    real = run.played["real"]
    return {
        "questions": real.get(run.question_topic, 0),
        "answers": logs.answers.height,
        "answers_distinct": logs.answers["id"].n_unique(),
        "label_messages": real.get(run.label_topic, 0),
        "outcomes": logs.outcomes.height,
        "outcomes_distinct": logs.outcomes["id"].n_unique(),
    }


def refused(broken: Sequence[Mapping[str, Any]], dead_letters: pl.DataFrame) -> dict[str, Any]:
    """Dead letters against what was broken on purpose, record by record."""
    wanted = Counter((one["topic"], one["partition"], one["offset"], one["reason"]) for one in broken)
    came = Counter(dead_letters.select("topic", "partition", "offset", "reason").iter_rows())
    return {
        "count": dead_letters.height,
        "by_reason": dict(sorted(Counter(dead_letters["reason"].to_list()).items())),
        "missing": [list(place) for place in sorted((wanted - came).elements())],
        "unexpected": [list(place) for place in sorted((came - wanted).elements())],
    }


def labelled(truth: pl.DataFrame, examples: pl.DataFrame) -> dict[str, int]:
    """Labels of served answers, newest revision, against the truth of the data."""
    served = newest(examples).filter(pl.col("answer_index") == 0)
    both = truth.join(served.select("id", "silent", given="label"), on="id", how="left")
    return {
        "expected": truth.height,
        "labelled": served.height,
        "missing": both["given"].null_count(),
        "repeated": served.height - served["id"].n_unique(),
        "wrong": both.filter(pl.col("given") != pl.col("label")).height,
        "told": served.filter(~pl.col("silent") & (pl.col("label") >= 0)).height,
        "silent": served.filter(pl.col("silent")).height,
        "excluded": served.filter(pl.col("label") < 0).height,
        "revised": served.filter(pl.col("revision") > 0).height,
        "positives": served.filter(pl.col("label") == 1).height,
    }


def newest(examples: pl.DataFrame) -> pl.DataFrame:
    """The newest revision of each example."""
    return examples.sort("revision", maintain_order=True).unique([*EVENT, "answer_index"], keep="last", maintain_order=True)


# Did it learn


def learned(logs: Logs) -> dict[str, Any]:
    """
    Quality of what was served and of the first champion, which scored along to the end, on the same answers: those that both
    scored, from the first champion's first answer on.
    """
    first = next((one.arms[0] for one in logs.deployments if one.move == "champion" and one.arms), None)
    pairs = paired(newest(logs.examples), first.digest) if first else None
    if first is None or pairs is None or not pairs.height:
        return {"auc_loop": None, "auc_frozen": None, "log_loss_loop": None, "log_loss_frozen": None, "learning": None}
    whole = _both(pairs)
    by_month = [{"month": month, **_both(part)} for (month,), part in pairs.group_by("month", maintain_order=True)]
    return {**whole, "learning": {"frozen": first.model, "from": int(pairs["asked"].min()), "rows": pairs.height, "months": by_month}}  # type: ignore[arg-type]  # times are integers


def paired(examples: pl.DataFrame, frozen: str) -> pl.DataFrame:
    """Served answers with a label, beside the score that model `frozen` gave to the same row in whatever role; by time of asking."""
    labelled_ones = examples.filter((pl.col("label") >= 0) & pl.col("score").is_not_nan())
    along = labelled_ones.filter(pl.col("digest") == frozen).unique(EVENT, keep="first", maintain_order=True)
    served = labelled_ones.filter(pl.col("answer_index") == 0).select(*EVENT, "asked", "label", "score")
    month = pl.from_epoch("asked", time_unit="ms").dt.strftime("%B %Y")
    return served.join(along.select(*EVENT, frozen="score"), on=EVENT).sort("asked", *EVENT).with_columns(month=month)


def _both(pairs: pl.DataFrame) -> dict[str, Any]:
    labels = pairs["label"].to_numpy()
    measured: dict[str, Any] = {"rows": pairs.height}
    for name, column in (("loop", "score"), ("frozen", "frozen")):
        scores = pairs[column].to_numpy()
        measured[f"auc_{name}"] = _rounded(quality.auc(labels, scores))
        measured[f"log_loss_{name}"] = _rounded(quality.log_loss(labels, scores))
    return measured


def _rounded(value: float) -> float | None:
    return round(value, SCORE_DIGITS) if np.isfinite(value) else None


def retrains(logs: Logs) -> list[dict[str, Any]]:
    """Every retrain command with how it ended; the outcome is None when it was never answered."""
    ended = {one.id: one for one in logs.trained}
    return [
        {
            "id": command.id,
            "trigger": command.trigger,
            "time": command.time,
            "outcome": ended[command.id].outcome if command.id in ended else None,
            "reason": ended[command.id].reason if command.id in ended else None,
            "model": ended[command.id].model if command.id in ended else "",
            "rows": ended[command.id].rows if command.id in ended else 0,
            "evidence": command.evidence,
        }
        for command in logs.retrains
    ]


def moves(logs: Logs) -> list[dict[str, Any]]:
    """Every move of the rollout."""
    return [
        {"time": one.time, "version": one.version, "move": one.move, "reason": one.reason, "state": one.state}
        for one in logs.deployments
        if one.move != "nothing"
    ]


def fate(bad: BadModel | None, logs: Logs) -> dict[str, Any] | None:
    """What became of the bad model; None when there was none."""
    return None if bad is None else bad_model_fate(bad, [asdict(one) for one in logs.deployments])


# The rows


def rows_digest(answers: pl.DataFrame, rows: Rows) -> str:
    """
    SHA-256 over id and row of every served answer, in order of the ids: the same for two runs exactly when every row is the
    same, byte for byte. `answers` and `rows` are in one order.
    """
    content = hashlib.sha256()
    ids = answers["id"].to_list()
    packed = np.ascontiguousarray(rows.packed, "<f4")
    for at in np.argsort(np.array(ids, "S"), kind="stable").tolist() if ids else ():
        content.update(ids[at].encode())
        content.update(packed[at].tobytes())
    return content.hexdigest()


def trainings(logs: Logs) -> list[dict[str, Any]]:
    """
    Every dataset that the trainer says it used, put together again from the rows on the journal and the labels on examples:
    its digest as released and as rebuilt, and up to when its labels were known, which must be the time of the command.
    """
    found = []
    for one in logs.releases:
        if (told := one.evidence.get("dataset")) is not None:
            digest, rows = dataset_digest(one, logs.examples, logs.rows)
            times = {"time": one.time, "labels_until": told["split"]["until"]}
            found.append(
                {"model": one.model, **times, "rows": told["rows"], "dataset": told["digest"], "rebuilt": digest, "rows_rebuilt": rows}
            )
    return found


def dataset_digest(release: Release, examples: pl.DataFrame, rows: Rows) -> tuple[str, int]:
    """SHA-256 over rows, labels and times of asking in order of (asked, partition, event offset), and how many rows there are."""
    split = release.evidence["dataset"]["split"]
    known = examples.filter((pl.col("answer_index") == 0) & (pl.col("known") <= split["until"]))
    wanted = newest(known).filter((pl.col("label") >= 0) & (pl.col("asked") <= split["train_until"]))
    places = pl.DataFrame({"partition": rows.partition, "event_offset": rows.event_offset}).with_row_index("at").unique(EVENT, keep="first")
    joined = wanted.join(places, on=EVENT).sort("asked", *EVENT)
    content = hashlib.sha256(np.ascontiguousarray(rows.packed[joined["at"].to_numpy()], "<f4").tobytes())
    content.update(joined["label"].to_numpy().astype(np.int8).tobytes())
    content.update(joined["asked"].to_numpy().astype("<i8").tobytes())
    return content.hexdigest(), joined.height


# What it cost, and whether the sums add up


def sums(metrics: Mapping[str, Sequence[Sample]]) -> list[dict[str, Any]]:
    """The conservation sum of each service and topic, as /metrics tells it: read, and what became of it."""
    found = []
    for samples in metrics.values():
        topics = sorted({(one.labels["service"], one.labels["topic"]) for one in samples if one.name == "driftline_messages_read_total"})
        for service, topic in topics:
            labels = {"service": service, "topic": topic}
            read, became = (int(total(samples, name, **labels)) for name in ("driftline_messages_read_total", "driftline_messages_total"))
            found.append({"service": service, "topic": topic, "read": read, "accounted": became})
    return found


def costs(run: Run) -> dict[str, Any]:
    """CPU by upstream message and peak memory of each process, and the wall time."""
    messages = max(1, run.played["messages"])
    return {
        "wall_s": round(run.wall_s, 2),
        "cpu_us_per_message": {name: round(one.cpu_s / messages * 1e6, 2) for name, one in run.usage.items()},
        "cpu_s": {name: round(one.cpu_s, 2) for name, one in run.usage.items()},
        "memory_peak_mb": {name: round(one.memory_peak_bytes / MEBIBYTE, 1) for name, one in run.usage.items()},
    }


# The promises


def promises(found: Mapping[str, Any]) -> list[Promise]:
    """Every promise of the demo, checked against the findings."""
    return [
        _answered_once(found),
        _no_second_effect(found["once"], found["duplicates"]),
        _broken_set_aside(found),
        _labels_true(found["labels"]),
        _sums_add_up(found["sums"]),
        _commands_answered(found["retrains"]),
        *_served_is_trained(found["trainings"]),
        *_kills_survived(found),
        *_bad_model_out(found["bad_model"]),
    ]


def _answered_once(found: Mapping[str, Any]) -> Promise:
    counts = {name: found[name] for name in ("lost", "repeated", "unknown")}
    held = found["asked"] > 0 and not any(counts.values())
    return Promise("every question is answered once, by first copy", held, _named(counts))


def _no_second_effect(once: Mapping[str, int], duplicates: int) -> Promise:
    held = once["questions"] == once["answers"] == once["answers_distinct"]
    held = held and once["label_messages"] == once["outcomes"] == once["outcomes_distinct"]
    return Promise(
        "messages sent twice have no effect", held, f"{duplicates:,} sent twice; {once['answers']:,} answers, {once['outcomes']:,} outcomes"
    )


def _broken_set_aside(found: Mapping[str, Any]) -> Promise:
    letters = found["dead_letters"]
    missing, unexpected = len(letters["missing"]), len(letters["unexpected"])
    detail = f"{letters['count']} dead letters for {found['broken']} broken, {missing} missing, {unexpected} unexpected"
    return Promise("broken messages are kept with their reason, and nothing else is", not missing and not unexpected, detail)


def _labels_true(labels: Mapping[str, int]) -> Promise:
    wrong = {name: labels[name] for name in ("missing", "repeated", "wrong", "excluded")}
    return Promise("every answer gets its true label", labels["labelled"] == labels["expected"] and not any(wrong.values()), _named(wrong))


def _sums_add_up(told: Sequence[Mapping[str, Any]]) -> Promise:
    wrong = [
        f"{one['service']} of {one['topic']}: {one['read']} read, {one['accounted']} accounted for"
        for one in told
        if one["read"] != one["accounted"]
    ]
    detail = "; ".join(wrong) or f"{len(told)} sums"
    return Promise("what each service reads is accounted for", bool(told) and not wrong, detail)


def _commands_answered(commands: Sequence[Mapping[str, Any]]) -> Promise:
    silent = [one["id"] for one in commands if one["outcome"] is None]
    return Promise("every retrain command is answered", not silent, ", ".join(silent) or f"{len(commands)} commands")


def _served_is_trained(told: Sequence[Mapping[str, Any]]) -> Iterator[Promise]:
    if told:
        other = [f"{one['model']}: {one['rows_rebuilt']:,} rows for {one['rows']:,}" for one in told if one["dataset"] != one["rebuilt"]]
        detail = "; ".join(other) or f"{len(told)} datasets rebuilt"
        yield Promise("rows trained on are the rows served, byte for byte", not other, detail)
        early = [
            f"{one['model']}: {(one['time'] - one['labels_until']) / HOUR_MS:.1f} h early"
            for one in told
            if one["labels_until"] != one["time"]
        ]
        detail = "; ".join(early) or f"{len(told)} trainings"
        yield Promise("each training sees every label known at the time of its command, so that a run repeats", not early, detail)


def _kills_survived(found: Mapping[str, Any]) -> Iterator[Promise]:
    if found["drills"]:
        silent = [one["name"] for one in found["drills"] if one["silence_s"] is None]
        yield Promise("what is killed comes back by itself", not silent, ", ".join(silent) or f"{len(found['drills'])} kill -9")


def _bad_model_out(bad: Mapping[str, Any] | None) -> Iterator[Promise]:
    if bad is not None:
        yield Promise(
            "a bad model never becomes champion",
            not bad["champion"],
            "it did" if bad["champion"] else "caught" if bad["caught"] else "still on trial",
        )


def _named(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{value:,} {name}" for name, value in counts.items())


# In words


def as_text(found: Mapping[str, Any]) -> str:
    """The report for people."""
    blocks = [
        _went_in(found),
        _came_out(found),
        _right(found),
        _learnt(found),
        _commands(found),
        _rollout(found),
        _cost(found),
        _promised(found),
    ]
    return "\n".join([f"─ report: {found['pipeline']} ".ljust(WIDTH, "─"), *("\n".join(block) + "\n" for block in blocks)]).rstrip("\n")


def _block(title: str, lines: Sequence[str]) -> list[str]:
    return [f"  {title if at == 0 else '':<17} {line}" for at, line in enumerate(lines)]


def _went_in(found: Mapping[str, Any]) -> list[str]:
    by_topic = ", ".join(f"{count:,} {topic}" for topic, count in found["published"].items())
    kinds = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in sorted(found["broken_by_kind"].items()))
    lines = [
        f"{found['messages']:,} messages in {found['days']} days: {by_topic}",
        f"{found['duplicates']:,} of them sent twice, {found['broken']} broken, on purpose{': ' + kinds if kinds else ''}",
    ]
    if found["left_out"]:
        lines.append(
            f"{found['left_out']:,} flights have no tail number: all of them were cancelled, so the gap is the outcome; not played"
        )
    return _block("What went in", lines)


def _came_out(found: Mapping[str, Any]) -> list[str]:
    letters, labels = found["dead_letters"], found["labels"]
    reasons = ", ".join(f"{count} {reason}" for reason, count in letters["by_reason"].items())
    copies = sum(found["copies_dropped"].values())
    return _block(
        "What came out",
        [
            f"{found['asked']:,} asked, {found['answered']:,} answered, {found['lost']} lost, {found['repeated']} answered twice",
            f"{copies:,} copies after a crash, known as copies by their coordinates",
            f"{letters['count']} refused, kept in {found['pipeline']}-dead-letters{': ' + reasons if reasons else ''}",
            f"{labels['told']:,} outcomes joined, {labels['silent']:,} answers labelled by silence, {labels['revised']:,} revised",
        ],
    )


def _right(found: Mapping[str, Any]) -> list[str]:
    labels, told = found["labels"], found["trainings"]
    right = labels["expected"] - labels["missing"] - labels["wrong"]
    lines = [f"labels equal to the truth of the data          {right:,} of {labels['expected']:,}"]
    if told:
        same = sum(one["dataset"] == one["rebuilt"] for one in told)
        lines.append(
            f"rows trained on equal to the rows served       {same} of {len(told)} datasets, the last of {told[-1]['rows']:,} rows"
        )
    lines.append(f"digest of all rows by id, for comparing runs   {found['rows_digest'][:24]}")
    lines += [_kill_line(one) for one in found["drills"]]
    return _block("Was it right?", lines)


def _kill_line(one: Mapping[str, Any]) -> str:
    came = "no output in a minute" if one["silence_s"] is None else f"next output on {one['topic']} after {one['silence_s']:.1f} s"
    return f"kill -9 {one['name']:<10} day {one['day']:<4} {came}"


def _learnt(found: Mapping[str, Any]) -> list[str]:
    learning = found["learning"]
    if learning is None:
        return _block("Did it learn?", ["no model answered long enough to say"])
    since = f"{learning['rows']:,} answers since {day_text(learning['from'])}"
    lines = [f"{since:<44} {learning['frozen']}, frozen      the loop", _quality_line("all of them", found)]
    lines += [_quality_line(one["month"], one) for one in learning["months"]]
    return _block("Did it learn?", lines)


def _quality_line(name: str, one: Mapping[str, Any]) -> str:
    frozen, loop = (f"AUC {_shown(one[f'auc_{who}'])}  loss {_shown(one[f'log_loss_{who}'])}" for who in ("frozen", "loop"))
    return f"  {name:<28} {frozen}    {loop}"


def _shown(value: float | None) -> str:
    return "  -  " if value is None else f"{value:.3f}"


def _commands(found: Mapping[str, Any]) -> list[str]:
    ended = Counter(one["outcome"] or "never answered" for one in found["retrains"])
    lines = [f"{len(found['retrains'])} retrain commands: {', '.join(f'{count} {name}' for name, count in ended.items()) or 'none'}"]
    lines += [
        f"  {_day(one['time'])}  {one['trigger']:<10} {one['outcome'] or 'never answered'}: {one['reason'] or ''}"
        for one in found["retrains"]
    ]
    return _block("", lines)


def _rollout(found: Mapping[str, Any]) -> list[str]:
    lines = [f"{len(found['moves'])} moves of the rollout"]
    lines += [f"  {_day(one['time'])}  {one['move']:<12} {one['reason']}" for one in found["moves"]]
    return _block("", [*lines, *_bad_model_lines(found["bad_model"])])


def _bad_model_lines(bad: Mapping[str, Any] | None) -> list[str]:
    if bad is None:
        return []
    offered = f"bad model {bad['model']}, offered past the gate on purpose on {day_text(bad['offered_at'])}:"
    if not bad["caught"]:
        return [offered, f"  not caught by the end of the play (it reached: {bad['stage'] or 'the queue'})"]
    served = "it had answered questions" if bad["served"] else "it never answered a question"
    return [
        offered,
        f"  {bad['move']} in {bad['stage']} after {bad['days_scored']:g} d of the pipeline's time; {served}",
        f"  {bad['guardrail']}",
    ]


def _cost(found: Mapping[str, Any]) -> list[str]:
    cpu, memory = found["cpu_us_per_message"], found["memory_peak_mb"]
    waited = found["waited_s"]
    lines = [
        f"{found['wall_s']:.0f} s in all; the player waited {waited['report_s']:.0f} s for reports, "
        f"{waited['trainer_s']:.0f} s for trainings, {waited['rollout_s']:.0f} s for the rollout",
        f"CPU a message    {sum(value for name, value in cpu.items() if name not in OUTSIDE):,.0f} µs in our own processes, "
        + ", ".join(f"{name} {cpu[name]:,.0f} µs" for name in OUTSIDE if name in cpu),
    ]
    lines += [f"  {name:<12} {value:>8,.1f} µs   {memory.get(name, 0):>7,.0f} MB at most" for name, value in cpu.items()]
    return _block("What did it cost?", lines)


def _promised(found: Mapping[str, Any]) -> list[str]:
    kept = found["promises"]
    lines = [f"{'held  ' if one['held'] else 'BROKEN'} {one['name']} ({one['detail']})" for one in kept]
    broken = sum(not one["held"] for one in kept)
    verdict = f"all {len(kept)} promises held" if not broken else f"{broken} of {len(kept)} promises BROKEN"
    return [*_block("Promises", lines), "", verdict]


def _day(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d")
