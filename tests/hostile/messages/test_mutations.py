"""A dose of the million mutants of `make hostile-messages`: what is wrong is classified, what is good is not touched."""

from __future__ import annotations

import asyncio
import random
import sys
from pathlib import Path

import numpy as np
import pytest

from driftline.contracts.messages import Source, Writer
from driftline.stream.batch import Messages
from driftline.stream.records import Encoder

sys.path.insert(0, str(Path(__file__).parent))

from harness import Found, tried
from mutations import Mutations, Record
from page import WHY_VALID, written
from stages import Stage
from world import START_MS, World, polled_of

MUTANTS = 20_000


@pytest.fixture(scope="module")
def found() -> Found:
    """A run of some seconds. What it compares, poll by poll, it asserts by itself."""
    return asyncio.run(tried(MUTANTS, seed=11, days=3))


@pytest.fixture(scope="module")
def world() -> World:
    """Three days of a pipeline."""
    made = World(3)
    asyncio.run(made.play())
    return made


def test_every_mutant_is_refused_with_a_reason_or_is_still_valid(found: Found):
    """
    Over every topic and every consumer; and all that was read is accounted for.
    """
    assert found.mutants == MUTANTS
    assert found.refused.total() > MUTANTS / 2
    assert len(found.good) == 26
    assert min(found.good.values()) > 0
    assert found.read == found.accounted > 0


def test_what_can_never_be_valid_never_is(found: Found):
    """
    Of these kinds each mutant is in the dead letters.
    """
    never = {"tombstone", "empty value", "no frame"}
    assert {kind: n for (_, kind), n in found.valid.items() if kind in never} == {}
    assert {kind for _, kind, _ in found.refused} >= never


def test_the_page_tells_every_kind_that_can_be_valid_and_why(found: Found):
    """
    A kind that is found valid and has no reason on the page would be an unexplained hole.
    """
    assert sorted({kind for _, kind in found.valid if not WHY_VALID.get(kind)}) == []
    assert f"| {found.mutants:,} |" in written(found, "this", 1, 1.0, "3")


def test_mutants_depend_on_the_seed_alone(world: World):
    """
    A run that found something can be run again.
    """
    good = world.logs["events"][5]
    one, same, other = (Mutations(random.Random(seed), world.messages) for seed in (3, 3, 4))
    made = [[mutations.of(good) for _ in range(50)] for mutations in (one, same, other)]
    assert made[0] == made[1] != made[2]


async def test_a_refused_record_does_not_take_the_coordinate_of_the_true_one(world: World):
    """
    The mutant comes first, with the coordinate of a good one and a body that is none: the good one is applied all the same.
    """
    weather = 2 * (16 + 3)  # as Avro writes its source; its last field is a double, which may be any bytes
    records = [record for record in world.logs["events"][:80] if (record.value or b"")[5] != weather]
    bad = [Record(record.key, (record.value or b"")[:-3] + b"\xff\xff\xff") for record in records]
    mixed = polled_of([one for pair in zip(bad, records, strict=True) for one in pair], 0)
    stage, alone = Stage(world.subject("feature")), Stage(world.subject("feature"))
    sent, letters = await stage.feed(mixed)
    expected, _ = await alone.feed(mixed.take(slice(1, None, 2)))
    await asyncio.gather(stage.stop(), alone.stop())
    assert sent == expected
    assert sorted(letters) == [*range(0, len(mixed), 2)]


async def test_a_tick_of_a_time_to_come_matures_nothing(world: World):
    """
    A stranger's tick of a year later is refused by its time, though its number fits; the labeler goes on from the true ones.
    """
    tick_ms = world.pipeline.tick_ms
    number = (START_MS + 365 * 86_400_000) // tick_ms
    one = np.ones(1, np.int64)
    columns = {"source": one * int(Source.TICK), "offset": one * number, "index": one * 0, "event_offset": -one}
    columns |= {"time": one * number * tick_ms, "deployment": one}
    ticks = Messages("journal", "tick", None, columns, one)
    stage = Stage(world.subject("labeler"))
    forged = [
        Record(None, Encoder({"journal": world.topics.journal}, world.registry, writer).values(ticks, 0)[0])
        for writer in (Writer.FEATURE, Writer.INFERENCE)
    ]
    sent, letters = await stage.feed(polled_of([*world.logs["journal"][:200], *forged], 0))
    await stage.stop()
    assert letters == {200: "bad_time", 201: "bad_time"}
    assert not [one for one in sent if b"silence" in one[2]]
