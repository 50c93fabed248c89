"""
The plots of docs/performance.md, as SVG, from the figures that `make bench` left. Run by the peers' Python, which has matplotlib: it needs
nothing of driftline.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt

OURS, OTHERS, FLOOR = "#0b6e4f", "#8a94a6", "#c9a227"
PARTS = {
    "poll": "#16425b",
    "decode": "#3a7ca5",
    "think": "#0b6e4f",
    "ONNX": "#73a580",
    "store": "#c1666b",
    "encode": "#d4b483",
    "send": "#e4dfda",
    "the loop": "#4a4e69",
}
HOPS = {"echo": "echo hop", "feature": "feature hop", "score": "score hop"}
OUR_HOP = {"feature": "feature", "inference": "score"}
STYLE = {
    "svg.hashsalt": "driftline",  # the same figures give the same file
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def save(figure: Any, to: Path) -> None:
    """One SVG, without the time at which it was made."""
    figure.tight_layout()
    figure.savefig(to, metadata={"Date": None, "Creator": None})
    plt.close(figure)


def medians(found: Mapping[str, Any], hop: str) -> dict[str, float]:
    """Client microseconds an event of each system at one hop, cheapest first."""
    costs: dict[str, list[float]] = {}
    for one in found["hops"]:
        for name, cost in one["hops"].items():
            if (OUR_HOP.get(name) if one["system"] == "driftline" else name) == hop and "failed" not in cost:
                costs.setdefault(one["system"], []).append(cost["us"]["client"])
    return dict(sorted(((system, statistics.median(each)) for system, each in costs.items()), key=lambda pair: pair[1]))


def hops(found: Mapping[str, Any], to: Path) -> None:
    """What an event costs, by hop and system, on a logarithmic axis."""
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.4))
    for axis, (hop, title) in zip(axes, HOPS.items(), strict=True):
        costs = medians(found, hop)
        names = list(costs)[::-1]
        colours = [OURS if name == "driftline" else FLOOR if "whole batches" in name or "confluent" in name else OTHERS for name in names]
        bars = axis.barh(names, [costs[name] for name in names], color=colours)
        axis.bar_label(bars, [f"{costs[name]:.1f}" for name in names], padding=2)
        axis.set(title=title, xscale="log", xlabel="client CPU, µs an event", xlim=(0.7, 1_000))
    save(figure, to / "hops.svg")


def parts(found: Mapping[str, Any], to: Path) -> None:
    """Each part of each service alone, one upon the other, beside the whole."""
    figure, axis = plt.subplots(figsize=(8, 3))
    told = found["parts"]
    for row, (service, one) in enumerate(told.items()):
        left = 0.0
        together = {**one["parts"], "the loop": max(0.0, one["whole"] - sum(one["parts"].values()))}
        for part, cost in together.items():
            axis.barh(row, cost, left=left, color=PARTS[part], label=part if service == "inference" or part == "store" else None)
            left += cost
        axis.text(max(left, one["whole"]) + 0.05, row, f"{one['whole']:.1f}", va="center")
    axis.set(yticks=range(len(told)), yticklabels=list(told), xlabel="client CPU, µs an event")
    axis.invert_yaxis()
    axis.legend(*_ordered(axis), ncols=len(PARTS), frameon=False, loc="upper center", bbox_to_anchor=(0.45, -0.2), columnspacing=1)
    save(figure, to / "parts.svg")


def _ordered(axis: Any) -> tuple[Sequence[Any], Sequence[str]]:
    handles, labels = axis.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda at: list(PARTS).index(labels[at]))
    return [handles[at] for at in order], [labels[at] for at in order]


def latency(found: Mapping[str, Any], to: Path) -> None:
    """Latency by offered rate, beside the echo's; and how many records a batch had."""
    figure, (times, sizes) = plt.subplots(1, 2, figsize=(9, 3.2))
    runs = found["latency"]["runs"]
    rates = sorted({run["rate"] for run in runs})
    for chain, colour in (("driftline", OURS), ("echo", FLOOR)):
        for which, style in (("p50_ms", "-"), ("p99_ms", "--")):
            told = [statistics.median(run[which] for run in runs if run["rate"] == rate and run["chain"] == chain) for rate in rates]
            times.plot(rates, told, style, color=colour, marker="o", markersize=3, label=f"{chain}, {which[:3]}")
    times.set(xscale="log", yscale="log", xlabel="events a second", ylabel="ms", title="event to prediction")
    times.legend(frameon=False)
    ours = [run for run in runs if run["chain"] == "driftline"]
    for name, colour in zip(ours[0]["batch"], (OURS, PARTS["decode"], PARTS["store"], OTHERS), strict=False):
        told = [statistics.median(run["batch"][name] for run in ours if run["rate"] == rate) for rate in rates]
        sizes.plot(rates, told, color=colour, marker="o", markersize=3, label=name)
    sizes.set(xscale="log", yscale="log", xlabel="events a second", ylabel="records of a batch", title="what has arrived is a batch")
    sizes.legend(frameon=False)
    save(figure, to / "latency.svg")


def growth(found: Mapping[str, Any], to: Path) -> None:
    """Processor time of an event by the number of entities, and the worker's memory."""
    figure, axis = plt.subplots(figsize=(6, 3))
    told = [one for one in found["growth"]["entities"] if one["entities_max"] == found["growth"]["entities"][0]["entities_max"]]
    cards = [one["cards"] for one in told]
    axis.plot(cards, [one["us"] for one in told], color=OURS, marker="o", label="worker, µs an event")
    axis.plot(cards, [one["store_us"] for one in told], color=FLOOR, marker="o", label="store, µs an event")
    axis.set(xscale="log", xlabel="entities", ylabel="µs an event")
    axis.set_ylim(bottom=0)
    memory = axis.twinx()
    memory.spines.right.set_visible(True)
    memory.plot(cards, [one["memory_mib"] for one in told], color=OTHERS, linestyle="--", marker="o", label="worker, MiB")
    memory.set_ylabel("MiB")
    memory.set_ylim(bottom=0)
    lines = [*axis.get_lines(), *memory.get_lines()]
    axis.legend(lines, [line.get_label() for line in lines], frameon=False, loc="upper left")
    save(figure, to / "growth.svg")


PLOTS = {"hops": hops, "parts": parts, "latency": latency, "growth": growth}


def main() -> None:
    """`plots.py RESULTS FOLDER`: a plot for each kind of figures that is there."""
    results, folder = Path(sys.argv[1]), Path(sys.argv[2])
    found = json.loads(results.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    with plt.rc_context(STYLE):
        for kind, plot in PLOTS.items():
            if found.get(kind):
                plot(found, folder)


if __name__ == "__main__":
    main()
