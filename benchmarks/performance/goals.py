"""
What was promised of speed (P1 to P9), whether it was found, and what would be next where it was not.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

GOALS = {"intake": 3.5, "feature": 7.5, "inference": 5.0}
HOP_OF = {"feature": "feature", "inference": "score"}
FIVE = ("intake", "feature", "inference", "labeler", "drift")
SERVERS = ("broker", "store")
Found = Mapping[str, Any]


@dataclass(frozen=True)
class Told:
    """One goal: what was found, in words, and whether that meets it."""

    number: str
    measure: str
    goal: str
    figure: str
    met: bool


def _hop_goals(found: Found) -> Iterator[Told]:
    ours = {service: median(found, "driftline", service, us_of("client")) for service in GOALS}
    for service, goal in GOALS.items():
        if (us := ours[service]) is not None:
            yield Told("P1", f"{service}, µs an event", f"at most {goal}", f"{us:.1f}", us <= goal)
    for service, hop in HOP_OF.items():
        for peer, goal in (("Faust", 35.0), ("Quix Streams", 3.0), ("Bytewax", 2.3)):
            mine, theirs = ours[service], [median(found, name, hop, us_of("client")) for name in systems(found) if name.startswith(peer)]
            least = min((us for us in theirs if us is not None), default=None)
            if mine and least:
                yield Told("P1", f"{hop} hop below {peer}", f"{goal:g} times", f"{least / mine:.1f} times", least >= goal * mine)


def _loop_goals(found: Found) -> Iterator[Told]:
    if loops := found.get("loops"):
        us = sum(statistics.median(one["us"][name] for one in loops) for name in FIVE)
        rate = statistics.median(one["rate"] for one in loops)
        yield Told("P2", "flights whole, five services, µs an upstream message", "at most 20", f"{us:.1f}", us <= 20)
        yield Told("P2", "upstream messages a second", "at least 15,000", f"{rate:,.0f}", rate >= 15_000)


def _latency_goals(found: Found) -> Iterator[Told]:
    runs = [one for one in found.get("latency", {}).get("runs", ()) if one["half_load"]]
    for which in ("p50_ms", "p99_ms") if runs else ():
        ours, echo = (statistics.median(one[which] for one in runs if (one["chain"] == "driftline") == mine) for mine in (True, False))
        words = f"{ours / echo:.1f} times ({ours:.1f} and {echo:.1f} ms)"
        yield Told("P3", f"event to prediction at half load, {which[:3]}", "1.5 times a raw echo", words, ours <= 1.5 * echo)


def _ledger_goals(found: Found) -> Iterator[Told]:
    if one := found.get("ledger"):
        yield Told("P4", "effectively once against no ledger", "at most 1.15 times", f"{one['ratio']:.2f} times", one["ratio"] <= 1.15)


def _read_goals(found: Found) -> Iterator[Told]:
    if one := found.get("reads"):
        for size, ways in one["reads_us"].items():
            ratio = ways["features"]["p50"] / ways["MGET"]["p50"]
            words = f"{ratio:.2f} times ({ways['features']['p50']:.0f} and {ways['MGET']['p50']:.0f} µs)"
            yield Told("P5", f"online read of {size}, against MGET", "at most 1.3 times", words, ratio <= 1.3)
        yield Told("P5", "bytes a feature, key included", "at most 8", f"{one['bytes_a_feature']:.1f}", one["bytes_a_feature"] <= 8)


def _growth_goals(found: Found) -> Iterator[Told]:
    if one := found.get("growth"):
        usual = [each for each in one["entities"] if each["entities_max"] == one["entities"][0]["entities_max"]]
        costs = [each["us"] for each in usual]
        first, last = usual[0]["cards"], usual[-1]["cards"]
        words = f"{max(costs) / costs[0]:.1f} times"
        yield Told("P6", f"fold of {first:,} to {last:,} entities", "within 1.5 times", words, max(costs) <= 1.5 * costs[0])
        if len(one["workers"]) == 2:
            alone, both = one["workers"]
            rate, cpu = both["rate"] / alone["rate"], both["us"]["client"] / alone["us"]["client"]
            words = f"{rate:.2f} times the rate, {cpu:.2f} times the CPU"
            yield Told("P6", "two worker processes for one", "1.8 times the rate, or CPU within 1.1", words, rate >= 1.8 or cpu <= 1.1)


def _backfill_goals(found: Found) -> Iterator[Told]:
    if one := found.get("backfill"):
        rate = one["rate"]
        yield Told("P7", "backfill over Parquet, events a second, one core", "at least 1,000,000", f"{rate:,.0f}", rate >= 1_000_000)


def _idle_goals(found: Found) -> Iterator[Told]:
    if one := found.get("idle"):
        for state, before in IDLE_BEFORE.items():
            now = one["services"][state]
            words = f"{now:.0f} ms (from {before:.0f})"
            what = "all services idle" if state == "idle" else f"all services at {one['rate']} questions a second"
            yield Told("P8", f"{what}, CPU a second", "halved", words, now <= before / 2)


def _start_goals(found: Found) -> Iterator[Told]:
    if one := found.get("starts"):
        for service in ("feature", "inference"):
            ready = one["medians"][service]["ready_s"]
            yield Told("P9", f"{service} ready, s", "at most 1.5", f"{ready:.2f}", ready <= 1.5)


# What the same benchmark found before anything was done about it, at commit e6f26d3: milliseconds of processor time a second.
IDLE_BEFORE = {"idle": 58.6, "asked": 519.5}

JUDGES = (
    _hop_goals,
    _loop_goals,
    _latency_goals,
    _ledger_goals,
    _read_goals,
    _growth_goals,
    _backfill_goals,
    _idle_goals,
    _start_goals,
)

NEXT = {
    "P1": (
        "half of the score hop is the model itself (ONNX), and Faust is measured at its best, with `take`. What is left is to send less: "
        "predictions and answers carry the same ids and keys."
    ),
    "P2": (
        "the feature service makes two messages of each flight event, one of them for the journal, and labeler and drift decode what it "
        "encoded. Next: decode only the columns that a reader declares."
    ),
    "P3": (
        "three hops, of which each waits for its acks and its commit before it polls again, so that at half load a record waits for the "
        "batch in hand and for its own. The p99 are commits of the feature service to which the store, which syncs its file each second on "
        "the same two cores, takes 30 to 40 ms. Next: poll and decode the next batch while acks of the last one are awaited; the order of "
        "commits stays."
    ),
    "P5": (
        "both ask the store once; of what is more, one entity's is mostly Python around the question and the answer, and a hundred's is "
        "the compiled call that unpacks rows and sums their tiles, a microsecond an entity. Next: sum the tiles of packed rows without "
        "unpacking those that are empty."
    ),
    "P6": (
        "with more cards than a worker keeps, each event loads a row and drops another (loads an event, above), and at any number the "
        "processor's caches are missed more often. Next: ids beside the windows in one row, so that an event loads one row, not two."
    ),
    "P8": (
        "at 200 a second a batch has two records, and a batch costs its requests: fetch, rows, send, commit, each a system call that wakes "
        "another process. It was less where the count began, because intake did not hand on at once what had arrived. Measured, refused: "
        "rounds of 20 ms at intake (a quarter less, and slower than no rest up to half load; decision 0021), a rest at each hop of as long "
        "as the last batch took (a fifth, and twice the latency), uvloop (5 to 7 %). Next: fewer wake-ups a batch (fetch and commit in one "
        "turn)."
    ),
    "P9": "a third of the start is numba, needed only to load what was compiled before. Next: load the object code without it.",
}


def systems(found: Found) -> list[str]:
    return list(dict.fromkeys(one["system"] for one in found.get("hops", ())))


def median(found: Found, system: str, hop: str, of: Callable[[Mapping[str, Any]], float]) -> float | None:
    hops = [one["hops"][hop] for one in found.get("hops", ()) if one["system"] == system and hop in one["hops"]]
    figures = [of(one) for one in hops if "failed" not in one]
    return statistics.median(figures) if figures else None


def us_of(party: str) -> Callable[[Mapping[str, Any]], float]:
    return lambda one: float(one["us"][party])
