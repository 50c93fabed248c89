"""Spans: one a sampled batch, linked and bounded; none without the setting; and no fault of theirs is the data plane's."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from driftline.errors import Fatal
from driftline.imports import hidden
from driftline.stream.batch import Batch, Table, Varlen
from driftline.stream.tracing import ENDPOINT, LINKS_MAX, Tracing, tracing_of

SILENT = (
    "import sys; from driftline.stream.tracing import tracing_of; tracing_of('intake', 'flights'); print('opentelemetry' in sys.modules)"
)


def traceparent(number: int, flags: str = "01") -> str:
    return f"00-{number:032x}-{number:016x}-{flags}"


def batch_of(traces: Sequence[str | None]) -> Batch:
    offsets = np.arange(40, 40 + len(traces))
    return Batch(3, 40, 40 + len(traces), {"row": Table("row", offsets, {"traceparent": Varlen.optional(traces)})})


class Kept:
    """An exporter that keeps what it is given, or fails."""

    def __init__(self, fails: bool = False) -> None:
        self.spans: list[Any] = []
        self._fails = fails

    def export(self, spans: Sequence[Any]) -> None:
        if self._fails:
            raise OSError("no such collector")
        self.spans += spans

    def shutdown(self) -> None:
        return

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return True


@pytest.fixture
def kept() -> Kept:
    return Kept()


def test_a_batch_has_one_span_with_links_to_the_sampled_traces_in_it(kept: Kept) -> None:
    """
    Where it lay, how many records it had, and how long it took; each trace once, and none that its sender did not record.
    """
    tracing = Tracing("inference", "flights", kept)  # type: ignore[arg-type]  # an exporter in all but name
    tracing.batch("flights-features", batch_of([traceparent(1), None, traceparent(2, "00"), traceparent(3), traceparent(1)]), 0.25, 10_000)
    tracing.close()
    (span,) = kept.spans
    assert [(link.context.trace_id, link.context.span_id, link.context.is_remote) for link in span.links] == [(1, 1, True), (3, 3, True)]
    assert (span.name, span.parent, span.start_time, span.end_time) == ("process flights-features", None, 9_750_000_000, 10_000_000_000)
    assert span.attributes == {
        "driftline.pipeline": "flights",
        "driftline.offset.first": 40,
        "driftline.offset.last": 44,
        "driftline.links_left_out": 0,
        "messaging.system": "kafka",
        "messaging.operation.type": "process",
        "messaging.destination.name": "flights-features",
        "messaging.destination.partition.id": "3",
        "messaging.batch.message_count": 5,
    }
    assert span.resource.attributes["service.name"] == "driftline-inference"


def test_a_batch_without_a_sampled_trace_has_no_span(kept: Kept) -> None:
    """
    Nor does one without any, and then nothing is begun.
    """
    tracing = Tracing("inference", "flights", kept)  # type: ignore[arg-type]  # an exporter in all but name
    tracing.batch("flights-features", batch_of([None, traceparent(2, "00")]), 0.25, 10_000)
    tracing.batch("flights-features", Batch(0, 5, 6, {"tick": Table("tick", np.array([5]), {"time": np.array([1])})}), 0.25, 10_000)
    tracing.close()
    assert kept.spans == []


def test_a_span_has_so_many_links_and_says_how_many_are_left_out(kept: Kept) -> None:
    """
    Its cost does not grow with the batch.
    """
    tracing = Tracing("inference", "flights", kept)  # type: ignore[arg-type]  # an exporter in all but name
    tracing.batch("flights-features", batch_of([traceparent(number) for number in range(1, 101)]), 0.25, 10_000)
    tracing.close()
    (span,) = kept.spans
    assert (len(span.links), span.attributes["driftline.links_left_out"]) == (LINKS_MAX, 100 - LINKS_MAX)


def test_an_exporter_that_fails_disturbs_nobody(kept: Kept) -> None:
    """
    Its spans are lost.
    """
    tracing = Tracing("inference", "flights", Kept(fails=True))  # type: ignore[arg-type]  # an exporter in all but name
    tracing.batch("flights-features", batch_of([traceparent(1)]), 0.25, 10_000)
    tracing.close()


def test_a_collector_that_is_not_there_disturbs_nobody(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    By the exporter that services use: spans are lost, and whoever drains does not wait for long.
    """
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:9")
    tracing = tracing_of("inference", "flights")
    assert tracing is not None
    for _ in range(10):
        tracing.batch("flights-features", batch_of([traceparent(1)]), 0.25, 10_000)
    tracing.close()


def test_a_library_that_fails_is_not_asked_again(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The batch was applied all the same.
    """
    asked = []

    def fails(*_: Any) -> None:
        asked.append(1)
        raise RuntimeError("a fault of the library")

    tracing = Tracing("inference", "flights", kept)  # type: ignore[arg-type]  # an exporter in all but name
    monkeypatch.setattr(tracing, "_begin", fails)
    for _ in range(3):
        tracing.batch("flights-features", batch_of([traceparent(1)]), 0.25, 10_000)
    tracing.close()
    assert asked == [1]


def test_without_a_collector_nothing_of_opentelemetry_is_imported() -> None:
    """
    In a process of its own; an empty variable names none.
    """
    environment = {name: value for name, value in os.environ.items() if name != ENDPOINT}
    for named in ({}, {ENDPOINT: ""}):
        done = subprocess.run([sys.executable, "-c", SILENT], env=environment | named, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "False"


def test_a_collector_without_the_extra_is_refused_at_the_start() -> None:
    """
    The variable and the extra are named.
    """
    names = [name for name in sys.modules if name.partition(".")[0] == "opentelemetry"]
    loaded = {name: sys.modules.pop(name) for name in names}
    try:
        with hidden("opentelemetry"), pytest.raises(Fatal, match=r"OTEL_EXPORTER_OTLP_ENDPOINT is set.*driftline\[otel\]"):
            tracing_of("intake", "flights", {ENDPOINT: "http://127.0.0.1:4318"})
    finally:
        sys.modules.update(loaded)


def test_a_header_that_is_malformed_is_not_told(kept: Kept, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """
    It may be a secret.
    """
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization Bearer the-secret")
    assert tracing_of("intake", "flights", {ENDPOINT: "http://127.0.0.1:4318"}) is not None
    assert "the-secret" not in caplog.text
