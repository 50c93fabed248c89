"""
Writes the figures of one demo run into the README, between the markers: `python benchmarks/readme_figures.py .driftline/demo.json`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- figures: made by benchmarks/readme_figures.py -->", "<!-- end of figures -->"


def main(arguments: list[str]) -> int:
    """Exit status 0 when the README holds the figures, 1 with words on standard error otherwise."""
    if not arguments or len(arguments) > 2:
        print(__doc__, file=sys.stderr)
        return 1
    found = json.loads(Path(arguments[0]).read_text())
    place = Path(arguments[1] if len(arguments) > 1 else "README.md")
    try:
        place.write_text(with_figures(place.read_text(), figures(found)))
    except ValueError as error:
        print(f"{place}: {error}", file=sys.stderr)
        return 1
    return 0


def with_figures(page: str, block: str) -> str:
    """`page` with `block` between its markers. Raises ValueError unless each marker is there once."""
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        raise ValueError(f"the markers {BEGIN} and {END} must be there, once each, in this order")
    head, rest = page.split(BEGIN)
    return f"{head}{BEGIN}\n{block}\n{END}{rest.split(END)[1]}"


def figures(found: Mapping[str, Any]) -> str:
    """The block: what one run of the demo showed."""
    held = sum(one["held"] for one in found["promises"])
    rows = [
        ("played", f"{found['days']} days, {found['messages']:,} messages, {found['partitions']} partitions, {found['wall_s']:.0f} s"),
        ("asked / answered / lost / repeated", f"{found['asked']:,} / {found['answered']:,} / {found['lost']} / {found['repeated']}"),
        ("on purpose", f"{found['duplicates']:,} messages sent twice, {found['broken']} broken, {len(found['drills'])} kill -9"),
        ("the first model, frozen", f"AUC {_digits(found['auc_frozen'])}, log loss {_digits(found['log_loss_frozen'])}"),
        ("the loop", f"AUC {_digits(found['auc_loop'])}, log loss {_digits(found['log_loss_loop'])}"),
        ("retrain commands", _outcomes(found)),
        ("the bad model", _bad_model(found["bad_model"])),
        ("CPU an upstream message", ", ".join(f"{name} {value:,.0f} µs" for name, value in found["cpu_us_per_message"].items())),
        ("promises", f"{held} of {len(found['promises'])} held"),
    ]
    return "\n".join(["| one run of `make demo` | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _digits(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def _outcomes(found: Mapping[str, Any]) -> str:
    ended = [one["outcome"] or "never answered" for one in found["retrains"]]
    return f"{len(ended)}: " + ", ".join(f"{ended.count(name)} {name}" for name in sorted(set(ended)))


def _bad_model(bad: Mapping[str, Any] | None) -> str:
    if bad is None:
        return "not offered"
    return f"{bad['move']} in {bad['stage']} after {bad['days_scored']:g} days of the pipeline's time" if bad["caught"] else "not caught"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
