"""
What the logs are fed with: events as intake would write them, journals as their two writers would, upstream records as applications do.

Everything that a restarted writer may do is done to them: stretches are written again, between and behind what is new.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from random import Random
from typing import Any

from .cluster import Log
from .messages import Fields, body, encoded
from .oracle import EVENTS, FEATURE, INFERENCE, TICK, UPSTREAM
from .virtual_time import START_MS
from .world import World

CARDS, SHOPS = ("c1", "c2", "c3"), ("s1", "s2")
TICK_MS = 50
FIELDS = {"asks": ("ask_id", "at", "card", "amount"), "facts": ("fact_id", "ask_id", "at", "seen_at", "card", "shop", "amount")}
GARBAGE = (b"not framed at all", b"\x00\x00\x00\x0f\xff\x02\x02", b"")


def murmur2(data: bytes) -> int:
    """Kafka's hash of a key."""
    seed, m, mask = 0x9747B28C, 0x5BD1E995, 0xFFFFFFFF
    h = seed ^ len(data)
    for at in range(0, len(data) - len(data) % 4, 4):
        k = int.from_bytes(data[at : at + 4], "little") * m & mask
        k = (k ^ (k >> 24)) * m & mask
        h = (h * m & mask) ^ k
    rest = data[len(data) - len(data) % 4 :]
    if rest:
        h = (h ^ int.from_bytes(rest, "little")) * m & mask
    h = (h ^ (h >> 13)) * m & mask
    return h ^ (h >> 15)


def home(key: str, partitions: int) -> int:
    """The partition of a key."""
    return (murmur2(key.encode()) & 0x7FFFFFFF) % partitions


class Happenings:
    """Asks and facts as they become visible, drawn one by one."""

    def __init__(self, random: Random, pipeline: str) -> None:
        self._random = random
        self._pipeline = pipeline
        self.now = START_MS + 1_000 + random.randrange(20) * 5
        self._pace = random.choice((1, 1, 3))
        self._number = 0
        self._asked: list[Fields] = []
        self._recent: list[tuple[str, Fields]] = []

    def next(self) -> tuple[str, Fields]:
        """The next record: its stream, and its fields with `visible` among them."""
        random = self._random
        self.now += self._pace * random.choice((0, 0, 5, 5, 10, 10, 20, 40))
        if self._recent and random.random() < 0.08:  # the application sends it again
            stream, record = random.choice(self._recent[-4:])
            return stream, {**record, "visible": max(record["visible"], self.now - 40)} | self._times(
                stream, max(record["visible"], self.now - 40)
            )
        if self._pipeline != "one" and self._asked and random.random() < 0.45:
            stream, record = "facts", self._fact()
        else:
            stream, record = "asks", self._ask()
        self._recent.append((stream, record))
        return stream, record

    def _visible(self, most: Sequence[int], share: float = 0.15) -> int:
        return self.now - (self._random.choice(most) if self._random.random() < share else 0)

    @staticmethod
    def _times(stream: str, visible: int) -> Fields:
        return {"at": visible} if stream == "asks" else {"at": visible - 5, "seen_at": visible}

    def _amount(self) -> float | None:
        return None if self._random.random() < 0.1 else self._random.randrange(0, 33) / 2

    def _ask(self) -> Fields:
        self._number += 1
        visible = self._visible((5, 20, 40))
        ask = {
            "ask_id": f"a{self._number}",
            "card": self._random.choice(CARDS),
            "shop": self._random.choice(SHOPS),
            "amount": self._amount(),
            "visible": visible,
            **self._times("asks", visible),
        }
        self._asked.append(ask)
        return ask

    def _fact(self) -> Fields:
        self._number += 1
        visible = self._visible((5, 20, 40, 60, 150), 0.3)
        ask = self._random.choice(self._asked[-10:])
        return {
            "fact_id": f"f{self._number}",
            "ask_id": ask["ask_id"],
            "card": ask["card"],
            "shop": ask["shop"],
            "amount": self._amount(),
            "visible": max(visible, ask["visible"] - 20),
            **self._times("facts", max(visible, ask["visible"] - 20)),
        }


def events(world: World, pipeline: str, n: int, partitions: int, bad: float) -> list[Fields]:
    """`n` events with ticks between them, in the one order in which intake merges them; `to` says on which partitions each goes."""
    random, happenings = world.random, Happenings(world.random, pipeline)
    merged: list[Fields] = []
    offsets: dict[tuple[str, int], int] = {}
    tick = happenings.now // TICK_MS - 1
    deployment = 0
    for _ in range(n):
        stream, record = happenings.next()
        while (tick + 1) * TICK_MS <= happenings.now:
            tick += 1
            deployment = min(3, deployment + (random.random() < 0.25))
            merged.append(tick_fields(1, tick, deployment) | {"to": range(partitions)})
        place = (stream, random.randrange(2))
        offsets[place] = offsets.get(place, -1) + 1 + (random.random() < 0.1)
        data = body(pipeline, stream, record)
        number = ("asks", "facts").index(stream)
        broadcast = stream == "facts"
        merged.append(
            {
                "message": "event",
                "source": UPSTREAM + (9 if random.random() < bad / 3 else number),
                "partition": place[1],
                "offset": offsets[place],
                "index": 0,
                "event_offset": -1,
                "writer": 1,
                "id": record["ask_id" if stream == "asks" else "fact_id"],
                "key": record["card"],
                "time": record["at"],
                "visible": record["visible"],
                "body": data[:1] if random.random() < bad else data,
                "to": range(partitions) if broadcast else (home(record["card"], partitions),),
            }
        )
    for _ in range(random.randrange(1, 10)):
        tick += 1
        merged.append(tick_fields(1, tick, deployment) | {"to": range(partitions)})
    return merged


def tick_fields(writer: int, number: int, deployment: int, tick_ms: int = TICK_MS) -> Fields:
    """A tick."""
    return {
        "message": "tick",
        "source": TICK,
        "partition": 0,
        "offset": number,
        "index": 0,
        "event_offset": -1,
        "writer": writer,
        "time": number * tick_ms,
        "deployment": deployment,
    }


def bytes_of(fields: Fields) -> bytes:
    """A message as it lies on a log."""
    return encoded(fields["message"], {name: value for name, value in fields.items() if name not in ("message", "to")})


class Writing:
    """One writer of one log: each time a few new messages, sometimes some old ones again, sometimes rubbish."""

    def __init__(self, world: World, log: Log, values: Sequence[bytes], bad: float, again: float) -> None:
        self._world = world
        self._log = log
        self._values = values
        self._bad = bad
        self._again = again
        self.written = 0

    def some(self, most: int) -> None:
        """Write at most so many new ones."""
        random = self._world.random
        if self.written and random.random() < self._again:  # by a writer that was started again, or had been taken for dead
            first = max(0, self.written - random.randrange(1, 9))
            self._append(self._values[first : random.randrange(first, self.written) + 1])
        n = random.randrange(1, most + 1)
        self._append(self._values[self.written : self.written + n])
        self.written = min(len(self._values), self.written + n)
        if random.random() < self._bad:
            self._append([random.choice(GARBAGE)])

    def _append(self, values: Sequence[bytes]) -> None:
        clock = self._world.clock
        self._log.append([(None, value, clock.now_ms()) for value in values], self._world.loop.now_s)

    @property
    def done(self) -> bool:
        return self.written >= len(self._values)


async def write_all(world: World, writers: Sequence[Writing], over_s: float) -> None:
    """Let the writers write, mixed at random, until all is written."""
    random = world.random
    left = [writer for writer in writers if not writer.done]
    rounds = max(1, len(left) * 4)
    at_once = random.random() < 0.3
    while left:
        writer = random.choice(left)
        writer.some(12 if at_once else 6)
        left = [writer for writer in left if not writer.done]
        if left and not at_once:
            await asyncio.sleep(2 * over_s / rounds * random.random())


def journal(world: World, n: int) -> tuple[list[Fields], list[Fields]]:
    """What feature and inference write about `n` questions, each in its own order: outcomes with ticks, answers with ticks."""
    random, happenings = world.random, Happenings(world.random, "shops")
    outcomes: list[Fields] = []
    answers: list[Fields] = []
    tick = happenings.now // TICK_MS - 1
    for offset in range(n):
        stream, record = happenings.next()
        while (tick + 1) * TICK_MS <= happenings.now:
            tick += 1
            outcomes.append(tick_fields(FEATURE, tick, 1))
            answers.append(tick_fields(INFERENCE, tick, 1))
        about = {
            "source": EVENTS,
            "partition": 0,
            "offset": offset,
            "index": 0,
            "event_offset": offset,
            "key": record["card"],
            "time": record["at"],
            "visible": record["visible"],
        }
        if stream == "facts":
            label = int((record["amount"] or 0) > 5)
            outcomes.append(
                {"message": "outcome", **about, "writer": FEATURE, "id": record["ask_id"], "label": label, "origin": "shops-facts"}
            )
            continue
        for index in range(1 + random.randrange(3)):
            arm = ("champion", "candidate", "frozen")[index]
            answers.append(
                {
                    "message": "answer",
                    **about,
                    "index": index,
                    "writer": INFERENCE,
                    "id": record["ask_id"],
                    "deployment": 1,
                    "arm": arm,
                    "share": 0.0 if index else 1.0,
                    "shadow": index > 0,
                    "model": f"m{index}",
                    "digest": "d" * 64,
                    "score": index / 4,
                    "alert": False,
                    "flags": 0,
                    "layout": "x",
                    "slices": [record["shop"]],
                    "row": b"" if index else b"\x00" * 28,
                }
            )
    for _ in range(random.randrange(1, 10)):
        tick += 1
        outcomes.append(tick_fields(FEATURE, tick, 1))
        answers.append(tick_fields(INFERENCE, tick, 1))
    return outcomes, answers


def upstream_value(pipeline: str, stream: str, record: Fields) -> bytes:
    """A record as an application publishes it."""
    names = (*FIELDS[stream], "shop") if pipeline != "one" and stream == "asks" else FIELDS[stream]
    return json.dumps({name: record[name] for name in names}).encode()


def deployments() -> dict[int, Fields]:
    """By version: nothing, one model, two with a shadow, one that inference refuses."""

    def of(version: int, arms: list[Any], shadows: list[Any], salt: str = "") -> Fields:
        return {
            "source": 6,
            "partition": 0,
            "offset": version,
            "index": 0,
            "event_offset": -1,
            "writer": 9,
            "version": version,
            "move": "start",
            "state": "champion",
            "reason": "",
            "time": 0,
            "arms": arms,
            "shadows": shadows,
            "salt": salt,
            "fallback_score": 0.5,
        }

    def arm(role: str, letter: str, share: float) -> Fields:
        return {"role": role, "model": f"m{letter}", "digest": letter * 64, "share": share}

    return {
        0: of(0, [], []),
        1: of(1, [arm("champion", "d", 1.0)], []),
        2: of(2, [arm("champion", "d", 0.75), arm("canary", "e", 0.25)], [arm("candidate", "e", 0.0), arm("frozen", "f", 0.0)], "salt"),
        3: of(3, [arm("champion", "f", 1.0)], [arm("candidate", "d", 0.0)]),
    }
