"""
The upstream applications of the battery: real flights in slices of some ticks, at a pace that may change, without waiting for the loop.

It is the player of the demo but for its rhythm: after each slice comes a clock record, and the next slice follows whatever the loop does.
What happens to the loop meanwhile is the business of the battery, which steers by files in `feed/` of the run dir:

    pace       messages a second (0: hold)
    midnight   hold before the slice that ends a day; `at-midnight` says that it holds
    enough     the day that is being played is the last on which anything is asked
    flood      go on however far behind the loop is; without it the feeder is at most LEAD_DAYS ahead of drift's last report
    fed.json   written by the feeder: how far it is
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from driftline.clock import Clock, SystemClock
from driftline.errors import DriftlineError, Recoverable
from driftline.local.faults import AVRO_FAULTS, JSON_FAULTS, Declared, Mix, Outgoing, placed
from driftline.local.player import DAY_MS, Day, Lot, Play, Player, Script, Settings, day_name, drain_days, load_applications, write_json
from driftline.logs import log, set_up
from driftline.pipeline import Pipeline, load_pipeline
from driftline.settings import read

SLICE_S = 0.05  # how much of a second's messages go out at once
SLICE_MIN = 10
HOLD_POLL_S = 0.01
AGAIN_S = 0.3
LEAD_DAYS = 3
BEHIND_MAX_S = 1.0  # a feeder that was held up does not make up for more than that
Timed = tuple[int, str, int, Outgoing]  # when it is sent, topic, partition, message


class Story(Script):
    """The script of a play by the minute: every message with the time at which its application sends it."""

    def __init__(self, *args: object, mix: Mix) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self._mix = mix

    def timed(self, day: int) -> list[Timed]:
        """The messages of one day in the order in which they are sent."""
        found: list[Timed] = []
        for stream in self._streams:
            end_ms = self.day_end_ms(day)
            first, end = np.searchsorted(self._visible[stream.topic], (end_ms - DAY_MS, end_ms))
            visible = self._visible[stream.topic][first:end]
            records = self._applications.topics[stream.topic].slice(first, end - first)
            values = self._applications.encode(stream.topic, records, stream.schema, self._schema_ids.get(stream.topic, 0))
            keys, ids = self._applications.keys(stream.topic, records), records[stream.id].to_list()
            messages = [Outgoing(*one) for one in zip(keys, values, ids, strict=True)]
            chance = np.random.default_rng([self._play.seed, day, stream.number])
            kinds = [kind for topic, kind in self._faults.get(day, ()) if topic == stream.topic]
            declared = Declared(stream.schema, stream.id, stream.visible)
            mix = self._mix if self._applications.is_json(stream.topic) else self._mix._replace(ahead=0.0)
            kinds += kinds_of(self._applications.is_json(stream.topic)) if self._mix.ahead else []
            order = placed(messages, kinds, declared, end_ms, chance, mix, visible)
            found += [
                (int(visible[min(int(place), len(visible) - 1)]), stream.topic, self._partition(stream.topic, message.key), message)
                for place, message in order
            ]
        return sorted(found, key=lambda one: one[0])

    def _partition(self, topic: str, key: bytes | None) -> int:
        if key is None:
            self._turn[topic] += 1
        place = self._turn[topic] if key is None else zlib.crc32(key)
        return place % self._play.partitions


def kinds_of(is_json: bool) -> list[str]:
    """One broken message of each kind that a topic can have."""
    return list(JSON_FAULTS if is_json else AVRO_FAULTS)


def slices(timed: Sequence[Timed], start_ms: int, tick_ms: int, least: int) -> Iterator[tuple[int, Sequence[Timed]]]:
    """A day in slices of whole ticks with at least so many messages each (the last may have fewer): when it ends, and what is in it."""
    first = at = 0
    ends = range(start_ms + tick_ms, start_ms + DAY_MS + 1, tick_ms)
    for end in ends:
        while at < len(timed) and timed[at][0] < end:
            at += 1
        if at - first >= least or end == ends[-1]:
            yield end, timed[first:at]
            first = at


class Feeder(Player):
    """Plays until it is told that it is enough, or the days are over; then until everything has matured and is answered."""

    def __init__(self, settings: Settings, pipeline: Pipeline, play: Play, mix: Mix, clock: Clock) -> None:
        super().__init__(settings, pipeline, load_applications(pipeline.folder, play.days, play.start), play, clock)
        self._mix = mix
        self._folder = Path(settings.run_dir) / "feed"
        self._due_s = 0.0
        self._sent = 0
        self._start_ms = 0
        self._fed = False
        self._asking_until: int | None = None  # after that day nothing is asked any more

    async def _days(self, script: Script) -> None:
        story = Story(self._pipeline.streams, self._applications, self._play, self._register(), mix=self._mix)
        following = asyncio.create_task(self._keep_following())
        try:
            self._start_ms = story.day_end_ms(-1)
            last = None
            day = 0
            while last is None or day <= last:
                if last is None and (day == self._play.days - 1 or (self._folder / "enough").exists()):
                    last, self._asking_until = day + drain_days(self._pipeline), day
                await self._day(story, day, final=day == last)
                day += 1
        finally:
            self._fed = True
            await following
        await self._barrier(story.day_end_ms(day - 1), self.story.days[-1])

    async def _day(self, story: Story, day: int, *, final: bool) -> None:
        end_ms = story.day_end_ms(day)
        timed = await asyncio.to_thread(story.timed, day)
        if self._asking_until is not None and day > self._asking_until:
            timed = [one for one in timed if one[1] != self._pipeline.question.topic]
        self.story.days.append(Day(day_name(end_ms), len(timed), self._loop.version))
        least = max(SLICE_MIN, int(self._pace() * SLICE_S))
        for until_ms, part in slices(timed, end_ms - DAY_MS, self._pipeline.tick_ms, least):
            await self._not_too_far_ahead(until_ms)
            if until_ms == end_ms:
                await self._midnight()
            await self._rhythm(len(part))
            await self._until_acked(self._lots(part))
            await self._until_told(until_ms, last=final and until_ms == end_ms)
            write_json(self._folder / "fed.json", {"day": day, "until": until_ms, "messages": self._sent})

    def _lots(self, part: Sequence[Timed]) -> list[Lot]:
        lots: dict[tuple[str, int], Lot] = {}
        for _, topic, partition, message in part:
            lots.setdefault((topic, partition), Lot(topic, partition)).messages.append(message)
        return list(lots.values())

    def _pace(self) -> float:
        try:
            return float((self._folder / "pace").read_text() or 0)
        except FileNotFoundError:
            return 1e9

    async def _rhythm(self, messages: int) -> None:
        """Wait until so many messages more may go."""
        while (pace := self._pace()) <= 0:
            await asyncio.sleep(HOLD_POLL_S)
        now = self._clock.monotonic_s()
        self._due_s = max(self._due_s + messages / pace, now - BEHIND_MAX_S)
        if self._due_s > now:
            await asyncio.sleep(self._due_s - now)

    async def _not_too_far_ahead(self, until_ms: int) -> None:
        while until_ms - max(self._loop.retrains, default=self._start_ms) > LEAD_DAYS * DAY_MS and not (self._folder / "flood").exists():
            await asyncio.sleep(HOLD_POLL_S)

    async def _midnight(self) -> None:
        told = self._folder / "at-midnight"
        while (self._folder / "midnight").exists():
            told.touch()
            await asyncio.sleep(HOLD_POLL_S)
        told.unlink(missing_ok=True)

    async def _until_acked(self, lots: Sequence[Lot]) -> None:
        """Whatever the broker does. What was sent and not acked is sent again: for the loop these are second copies."""
        while True:
            try:
                await self._publish(lots)
            except (KafkaError, OSError) as error:
                log.warning("sending again", because=repr(error))
                await asyncio.sleep(AGAIN_S)
                await self._new_producer()
            else:
                self._sent += sum(len(lot.messages) for lot in lots)
                return

    async def _new_producer(self) -> None:
        with contextlib.suppress(Exception):  # it is thrown away, whatever it says
            await asyncio.wait_for(self._producer.stop(), 5)
        while True:
            self._producer = AIOKafkaProducer(
                bootstrap_servers=self._settings.kafka, enable_idempotence=True, acks="all", linger_ms=0, max_batch_size=1 << 20
            )
            try:
                await asyncio.wait_for(self._producer.start(), 10)
            except (KafkaError, OSError, TimeoutError):
                await asyncio.sleep(AGAIN_S)
            else:
                return

    async def _until_told(self, until_ms: int, *, last: bool) -> None:
        while True:
            try:
                await self._tell_time(until_ms, last)
            except Recoverable as error:
                log.warning("telling the time again", because=str(error))
                await asyncio.sleep(AGAIN_S)
            else:
                return

    async def _keep_following(self) -> None:
        """Who serves is named by the next clock record."""
        while not self._fed:
            try:
                await self._loop.follow()
            except (KafkaError, Recoverable, OSError) as error:
                log.warning("following again", because=repr(error))
                await asyncio.sleep(AGAIN_S)


async def feed(settings: Settings, play: Play, mix: Mix) -> None:
    """Play the flights; an end by force leaves a player.json that says `finished: false`."""
    clock = SystemClock()
    await Feeder(settings, load_pipeline("flights"), play, mix, clock).run()


def main(arguments: Sequence[str]) -> int:
    """Exit status 0 when all was played and answered."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--days", type=int, default=365)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--partitions", type=int, default=2)
    parser.add_argument("--mix", default="{}", help="JSON: duplicates, disorder, late")
    chosen = parser.parse_args(arguments)
    set_up(service="feeder", pipeline="flights")
    settings = read(Settings, os.environ)
    (Path(settings.run_dir) / "feed").mkdir(exist_ok=True)
    try:
        asyncio.run(feed(settings, Play(chosen.days, chosen.seed, chosen.partitions), Mix(**json.loads(chosen.mix))))
    except DriftlineError as error:
        print(f"feeder: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
