"""What the labeler tells the metrics."""

from __future__ import annotations

import numpy as np

from driftline.metrics import DAY_S, distribution
from driftline.stream.batch import Messages, Varlen
from services.labeler.app import tell_delays


def examples(*told: tuple[str, int, int, int]) -> Messages:
    """Examples by origin, revision, index of the answer, and days that the outcome took."""
    origins = Varlen.of(["arrivals", "cancellations", "silence", "limit"])
    codes = {name: code for code, name in enumerate(origins.texts())}
    columns = {
        "origin": origins.take(np.array([codes[origin] for origin, *_ in told])),
        "revision": np.array([revision for _, revision, *_ in told]),
        "answer_index": np.array([index for _, _, index, _ in told]),
        "asked": np.full(len(told), 1_000),
        "known": np.array([1_000 + int(days * DAY_S * 1000) for *_, days in told]),
    }
    return Messages("examples", "example", None, columns, np.arange(len(told)))


def test_the_delay_of_a_label_is_that_of_the_first_outcome_that_was_told():
    """
    Neither silence nor the limit is an outcome; a revision is not the first; a shadow's answer has no outcome of its own.
    """
    tell_delays("delays", examples(("arrivals", 0, 0, 2), ("silence", 0, 0, 5), ("limit", 0, 0, 5), ("cancellations", 0, 0, 3)))
    tell_delays("delays", examples(("arrivals", 1, 0, 7), ("arrivals", 0, 1, 7)))
    found = distribution("driftline_label_delay_seconds").labels(pipeline="delays")
    assert found.counts.sum() == 2
    assert found.sum == 5 * DAY_S
