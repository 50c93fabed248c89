"""The merge: order, ticks, restarts. Driven without a broker."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from driftline.features.murmur2 import partitions_of
from driftline.stream.batch import Varlen
from driftline.stream.parse import Arrived
from services.intake.core import FIRST_TICKS_MAX, FOREVER, Intake

TICK_MS = 100


def pipeline(*broadcast: bool) -> Any:
    """As much of a pipeline as the merge looks at."""
    streams = tuple(SimpleNamespace(number=n, topic=f"t{n}", broadcast=everywhere) for n, everywhere in enumerate(broadcast))
    return SimpleNamespace(streams=streams, tick_ms=TICK_MS)


def arrived(first_offset: int, visible: list[int], key: str = "k") -> Arrived:
    n = len(visible)
    times = np.array(visible, np.int64)
    names = Varlen.of(f"{first_offset + i}" for i in range(n))
    return Arrived(np.arange(first_offset, first_offset + n), times, times, names, Varlen.of([key] * n), Varlen.of([b"body"] * n))


def sequence(emitted: Any, to: int = 0) -> list[tuple[Any, ...]]:
    """What one partition got, in order: ('tick', number) or (source, partition, offset)."""
    found = []
    for messages in emitted.messages:
        if messages.to != to:
            continue
        columns = messages.columns
        for at in range(len(messages)):
            name = ("tick", int(columns["offset"][at]))
            record = (int(columns["source"][at]) - 16, int(columns["partition"][at]), int(columns["offset"][at]))
            found.append((int(messages.order[at]), name if messages.message == "tick" else record))
    return [what for _, what in sorted(found, key=lambda one: one[0])]


def everything(intake: Intake, until: int, limit: int = 1_000) -> list[tuple[Any, ...]]:
    """Emit until nothing is left, all sources complete."""
    out = []
    while len(emitted := intake.emit(intake.bound(lambda _: True, until), until, 0, limit)):
        out += sequence(emitted)
    return out


def test_a_trace_context_goes_with_its_record():
    """
    Past records of another source that have none, to every partition that the record goes to; and is told by source, each once.
    """
    intake = Intake(pipeline(False, True), 2, [(0, 0), (1, 0)], None, {})
    intake.add((0, 0), arrived(0, [110, 130]))
    intake.add((1, 0), replace(arrived(5, [120, 140]), traces=Varlen.optional([None, "a-trace"])))
    emitted = intake.emit(200, 200, 0, 100)
    found: dict[int, list[str | None]] = {}
    for one in emitted.messages:
        if one.message == "event":
            found[one.to] = one.columns["traceparent"].optional_texts()
    home = int(partitions_of(Varlen.of(["k"]), 2)[0])
    assert found == {home: [None, None, None, "a-trace"], 1 - home: [None, "a-trace"]}
    offsets, traces = emitted.traces((1, 0))
    assert (offsets.tolist(), [one.optional_texts() for one in traces if len(one)]) == ([5, 6], [[None, "a-trace"]])


def test_records_of_two_topics_come_in_visible_order_with_ticks_between():
    """
    A tick goes before everything at or after its time, and after everything earlier.
    """
    intake = Intake(pipeline(False, False), 1, [(0, 0), (1, 0)], tick=9, newest={})
    intake.add((0, 0), arrived(5, [1_010, 1_250]))
    intake.add((1, 0), arrived(0, [1_000, 1_100]))
    expected = [("tick", 10), (1, 0, 0), (0, 0, 5), ("tick", 11), (1, 0, 1), ("tick", 12), (0, 0, 6), ("tick", 13)]
    assert expected == everything(intake, 1_300)


def test_ties_go_by_declared_stream_then_partition_then_offset():
    """
    Records of one visible time have one order, whatever arrived first.
    """
    intake = Intake(pipeline(False, False), 1, [(0, 0), (0, 1), (1, 0)], tick=10, newest={})
    intake.add((1, 0), arrived(0, [1_050]))
    intake.add((0, 1), arrived(0, [1_050]))
    intake.add((0, 0), arrived(0, [1_050, 1_050]))
    assert everything(intake, 1_099) == [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)]


def test_records_are_merged_by_when_they_were_visible_not_by_when_they_happened():
    """
    What happened first and was told last comes last, for nobody could know it before.
    """
    intake = Intake(pipeline(False, False), 1, [(0, 0), (1, 0)], tick=10, newest={})
    told_late = arrived(0, [1_060])
    intake.add((0, 0), replace(told_late, times=told_late.times - 1_000))
    intake.add((1, 0), arrived(0, [1_050]))
    assert everything(intake, 1_099) == [(1, 0, 0), (0, 0, 0)]


def test_nothing_goes_beyond_the_time_that_a_replay_is_at():
    """
    Not even what was read already; and ticks follow the last record up to there.
    """
    intake = Intake(pipeline(False), 1, [(0, 0)], tick=9, newest={})
    intake.add((0, 0), arrived(0, [1_010, 1_250]))
    assert everything(intake, 1_200) == [("tick", 10), (0, 0, 0), ("tick", 11), ("tick", 12)]
    assert everything(intake, 1_300) == [(0, 0, 1), ("tick", 13)]


def test_a_record_out_of_order_in_its_partition_stays_behind_its_predecessor():
    """
    The order of a source partition is never changed, for consumers tell copies by it.
    """
    intake = Intake(pipeline(False, False), 1, [(0, 0), (1, 0)], tick=10, newest={})
    intake.add((0, 0), arrived(0, [1_080, 1_020]))
    intake.add((1, 0), arrived(0, [1_050]))
    assert everything(intake, 1_099) == [(1, 0, 0), (0, 0, 0), (0, 0, 1)]


def test_the_log_stops_before_what_arrived_when_the_ends_had_been_asked_for():
    """
    Live, a record that nobody had read then may be newer than what another source holds by now: it waits, and ticks after it too.
    """
    intake = Intake(pipeline(False, False), 1, [(0, 0), (1, 0)], tick=9, newest={})
    intake.add((0, 0), arrived(0, [1_010, 1_120]))
    intake.add((1, 0), arrived(0, [1_120, 1_130]))
    known = {(0, 0): 2, (1, 0): 0}
    emitted = intake.emit(FOREVER, 1_300, 0, 100, known=known)
    assert sequence(emitted) == [("tick", 10), (0, 0, 0), ("tick", 11), (0, 0, 1)]
    emitted = intake.emit(FOREVER, 1_300, 0, 100, known={(0, 0): 2, (1, 0): 2})
    assert sequence(emitted) == [(1, 0, 0), (1, 0, 1), ("tick", 12), ("tick", 13)]


def test_a_source_with_a_backlog_is_waited_for():
    """
    Nothing goes beyond what an incomplete source has shown.
    """
    intake = Intake(pipeline(False, False), 1, [(0, 0), (1, 0)], tick=10, newest={})
    intake.add((0, 0), arrived(0, [1_010, 1_090]))
    assert intake.bound(lambda origin: origin == (0, 0), FOREVER) == 0
    intake.add((1, 0), arrived(0, [1_050]))
    bound = intake.bound(lambda origin: origin == (0, 0), FOREVER)
    assert sequence(intake.emit(bound, None, 0, 100)) == [(0, 0, 0)]


def test_a_broadcast_record_goes_to_every_partition_and_is_at_home_in_one():
    """
    The home copy is in the key's own murmur2 partition.
    """
    intake = Intake(pipeline(True), 4, [(0, 0)], tick=10, newest={})
    intake.add((0, 0), arrived(0, [1_010], key="N14228"))
    emitted = intake.emit(FOREVER, None, 0, 100)
    homes = {one.to: bool(one.columns["home"][0]) for one in emitted.messages if one.message == "event"}
    home = int(partitions_of(Varlen.of(["N14228"]), 4)[0])
    assert {to: to == home for to in range(4)} == homes


def test_a_record_that_is_not_broadcast_goes_to_its_own_partition_alone():
    """
    Ticks go everywhere, other records home.
    """
    intake = Intake(pipeline(False), 4, [(0, 0)], tick=9, newest={})
    intake.add((0, 0), arrived(0, [1_010], key="N14228"))
    emitted = intake.emit(FOREVER, None, 7, 100)
    assert [int(partitions_of(Varlen.of(["N14228"]), 4)[0])] == [one.to for one in emitted.messages if one.message == "event" and len(one)]
    assert [one.columns["offset"].tolist() for one in emitted.messages if one.message == "tick"] == [[10]] * 4
    assert all((one.columns["deployment"] == 7).all() for one in emitted.messages if one.message == "tick")


def test_every_record_is_placed_by_its_key():
    """
    Records of one key lie in one partition, whatever their ids.
    """
    keys = [f"N{number}" for number in range(12)]
    intake = Intake(pipeline(False), 4, [(0, 0)], tick=10, newest={})
    for at, key in enumerate(2 * keys):
        intake.add((0, 0), arrived(at, [1_010], key=key))
    emitted = intake.emit(FOREVER, None, 0, 100)
    placed = {one.to: one.columns["key"].texts() for one in emitted.messages if one.message == "event"}
    homes = partitions_of(Varlen.of(keys), 4).tolist()
    assert placed == {to: 2 * [key for key, home in zip(keys, homes, strict=True) if home == to] for to in range(4)}


def test_late_records_are_counted_and_sent():
    """
    A record behind a tick that should have followed it is late, and goes on all the same.
    """
    intake = Intake(pipeline(False), 1, [(0, 0)], tick=12, newest={})
    intake.add((0, 0), arrived(0, [1_150, 1_250]))
    emitted = intake.emit(FOREVER, None, 0, 100)
    assert (emitted.late, sum(emitted.taken.values())) == (1, 2)


histories = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1), st.integers(1_000, 1_400)), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(histories, st.integers(1, 7))
def test_the_log_does_not_depend_on_the_length_of_a_stretch(history: list[tuple[int, int, int]], limit: int):
    """
    Any limit gives the same records and ticks in the same order.
    """
    assert everything(loaded(history), 1_500) == everything(loaded(history), 1_500, limit)


@settings(max_examples=60, deadline=None)
@given(histories, st.integers(0, 45))
def test_a_restart_goes_on_where_the_committed_offsets_stand(history: list[tuple[int, int, int]], stretches: int):
    """
    What a restarted intake sends is what is left of the one log.
    """
    whole = everything(loaded(history), 1_500)
    first = loaded(history)
    sent: list[tuple[Any, ...]] = []
    for _ in range(stretches):
        sent += sequence(first.emit(FOREVER, 1_500, 0, 1))
    standing = {origin: first.standing(origin, len(visible)) for origin, visible in by_origin(history).items()}
    again = Intake(pipeline(False, False), 1, list(standing), first.tick, {origin: newest for origin, (_, newest) in standing.items()})
    for origin, visible in by_origin(history).items():
        offset = standing[origin][0]
        again.add(origin, arrived(offset, visible[offset:]))
    assert whole == sent + everything(again, 1_500)


def by_origin(history: list[tuple[int, int, int]]) -> dict[tuple[int, int], list[int]]:
    found: dict[tuple[int, int], list[int]] = {(stream, partition): [] for stream in (0, 1) for partition in (0, 1)}
    for stream, partition, visible in history:
        found[(stream, partition)].append(visible)
    return found


def loaded(history: list[tuple[int, int, int]]) -> Intake:
    queues = by_origin(history)
    intake = Intake(pipeline(False, False), 1, list(queues), tick=None, newest={})
    for origin, visible in queues.items():
        intake.add(origin, arrived(0, visible))
    return intake


@pytest.mark.parametrize("first", [1_000, 1_098])
def test_the_first_tick_of_a_pipeline_is_the_last_before_its_first_record(first: int):
    """
    A pipeline's time begins with its first record, not in 1970.
    """
    intake = Intake(pipeline(False), 1, [(0, 0)], tick=None, newest={})
    intake.add((0, 0), arrived(0, [first]))
    assert everything(intake, 1_099) == [("tick", 10), (0, 0, 0)]


def test_no_tick_is_ahead_of_the_clock_though_a_record_may_be():
    """
    A sender whose clock is fast is heard at once; the pipeline's time does not follow it, not even while sources are being read.
    """
    intake = Intake(pipeline(False), 1, [(0, 0)], tick=9, newest={})
    intake.add((0, 0), arrived(0, [1_010, 1_950]))
    assert sequence(intake.emit(FOREVER, None, 0, 100, clock_ms=1_130)) == [("tick", 10), (0, 0, 0), ("tick", 11), (0, 0, 1)]
    assert sequence(intake.emit(FOREVER, 1_210, 0, 100, clock_ms=1_210)) == [("tick", 12)]


def test_a_long_silence_is_ticked_through_in_stretches():
    """
    The ticks of a year do not lie in memory all at once, and the record at its end still comes after them.
    """
    intake = Intake(pipeline(False), 1, [(0, 0)], tick=9, newest={})
    intake.add((0, 0), arrived(0, [1_010, 3_000_000_000_000]))
    first = intake.emit(FOREVER, None, 0, 5)
    assert sequence(first) == [("tick", 10), (0, 0, 0), ("tick", 11), ("tick", 12), ("tick", 13), ("tick", 14)]
    assert sequence(intake.emit(FOREVER, None, 0, 2)) == [("tick", 15), ("tick", 16)]


def test_a_source_that_holds_the_log_lets_its_own_records_of_that_time_go():
    """
    And those of the sources before it, for ties go by source; those of the sources behind it wait.
    """
    intake = Intake(pipeline(False, False, False), 1, [(0, 0), (1, 0), (2, 0)], tick=10, newest={})
    for number in range(3):
        intake.add((number, 0), arrived(0, [1_050, 1_050]))
    reading = (1, 0)
    bound, holder = intake.bound(lambda origin: origin != reading, FOREVER), intake.holder(lambda origin: origin != reading, FOREVER)
    assert (bound, holder) == (1_050, reading)
    assert sequence(intake.emit(bound, None, 0, 100, holder=holder)) == [(0, 0, 0), (0, 0, 1), (1, 0, 0), (1, 0, 1)]
    assert sequence(intake.emit(FOREVER, None, 0, 100)) == [(2, 0, 0), (2, 0, 1)]


def test_a_first_record_of_long_ago_does_not_flood_the_log_with_ticks():
    """
    Time begins a million ticks before the clock at the earliest; the record goes before it.
    """
    intake = Intake(pipeline(False), 1, [(0, 0)], tick=None, newest={})
    clock = (FIRST_TICKS_MAX + 50) * TICK_MS
    intake.add((0, 0), arrived(0, [3 * TICK_MS, clock - 45 * TICK_MS]))
    first = sequence(intake.emit(clock, clock, 0, 1_000_000, clock_ms=clock))
    assert first[:2] == [(0, 0, 0), ("tick", 50)]
    assert intake.tick is not None
