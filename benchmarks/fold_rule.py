"""
The feature rule for flights, written again: one record of the log after another, plain lists, one question at a time. Slow and simple; out
of order too. Nothing of driftline.
"""

from __future__ import annotations

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from math import nan
from typing import Any
from zoneinfo import ZoneInfo

HOUR_MS, DAY_MS = 3_600_000, 86_400_000
LATENESS_MS = HOUR_MS
TILES, EXTRA_TILES_MAX = 12, 12
COPIES_MS, COPIES_MAX = 2 * DAY_MS, 64
LATE_MIN = 15
NEVER = -(2**62)
NEW_YORK = ZoneInfo("America/New_York")
FLIGHTS, DEPARTURES, ARRIVALS, WEATHER = range(4)
APPLIED, DUPLICATE, LATE = "applied", "duplicate", "late"
PACK = struct.Struct("<28f").pack


@dataclass
class Window:
    """
    All that was folded into one window, in the order of visible time; what the question sees is cut out of it.

    Of tiles only those of the window, its offset and the lateness are kept behind the newest record: what is older is not folded, and a
    question that is later than that does not find it.
    """

    length_ms: int
    ending_ms: int = 0
    newest: int = NEVER
    times: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def kept_from(self) -> int:
        """The start of the oldest tile that is kept."""
        hop = self.length_ms // TILES
        kept = TILES + 1 - (-self.ending_ms // hop) + min(-(-LATENESS_MS // hop), EXTRA_TILES_MAX)
        return (self.newest // hop - kept + 1) * hop

    def add(self, visible: int, x: float = 1.0) -> None:
        if visible >= self.newest:
            self.times.append(visible)
            self.values.append(x)
            self.newest = visible
            if len(self.times) > 4_000:  # what no question can reach any more
                old = bisect_left(self.times, visible - 2 * (self.length_ms + self.ending_ms) - DAY_MS)
                del self.times[:old], self.values[:old]
        elif visible >= self.kept_from():
            at = bisect_right(self.times, visible)
            self.times.insert(at, visible)
            self.values.insert(at, x)

    def seen(self, asked: int) -> tuple[int, int]:
        """From the tile of the old end on; up to the question, but whole tiles only with an offset, or for a question out of order."""
        hop, end = self.length_ms // TILES, asked - self.ending_ms
        first = (end - self.length_ms) // hop * hop
        last = end // hop * hop if self.ending_ms or asked < self.newest else asked
        return bisect_left(self.times, max(first, self.kept_from())), bisect_left(self.times, last)

    def count(self, asked: int) -> float:
        first, last = self.seen(asked)
        return float(max(0, last - first))

    def mean(self, asked: int) -> float:
        first, last = self.seen(asked)
        return sum(self.values[first:last]) / (last - first) if last > first else nan


@dataclass
class Newest:
    """The newest record, and the newest that is strictly older."""

    newest: int = NEVER
    previous: int = NEVER
    value: float = nan
    previous_value: float = nan

    def add(self, visible: int, x: float = 1.0) -> None:
        if visible > self.newest:
            self.previous, self.previous_value = self.newest, self.value
            self.newest, self.value = visible, x
        elif visible == self.newest:
            self.value = x
        elif visible >= self.previous:
            self.previous, self.previous_value = visible, x

    def before(self, asked: int) -> tuple[int, float]:
        if self.newest < asked:
            return self.newest, self.value
        return (self.previous, self.previous_value) if self.previous < asked else (NEVER, nan)

    def age_s(self, asked: int, within_ms: int = 2**61) -> float:
        seen, _ = self.before(asked)
        return nan if seen == NEVER or seen < asked - within_ms else (asked - seen) / 1000

    def last(self, asked: int, within_ms: int) -> float:
        seen, value = self.before(asked)
        return nan if seen == NEVER or seen < asked - within_ms else value


class Entity:
    """What one view keeps of one entity: the times of its records, and its aggregates by name."""

    def __init__(self, aggregates: Mapping[str, Any]) -> None:
        self.times = Newest()
        self.of = {name: Newest() if told is None else Window(*told) for name, told in aggregates.items()}

    def takes(self, visible: int) -> bool:
        """False for what is too late to be folded."""
        if self.times.newest != NEVER and visible < self.times.newest - LATENESS_MS:
            return False
        self.times.add(visible)
        return True


AGGREGATES: dict[str, dict[str, Any]] = {
    "aircraft": {"left": None, "landed": None, "delay": None, "left_12h": (12 * HOUR_MS,), "delay_7d": (7 * DAY_MS,)},
    "airport": {
        "left_1h": (HOUR_MS,),
        "delay_1h": (HOUR_MS,),
        "late_4h": (4 * HOUR_MS,),
        "asked_3h": (3 * HOUR_MS, HOUR_MS),
        "left_3h": (3 * HOUR_MS,),
    },
    "carrier": {"delay_6h": (6 * HOUR_MS,), "late_24h": (24 * HOUR_MS,)},
    "destination": {"delay_3h": (3 * HOUR_MS,), "delay_24h": (24 * HOUR_MS,), "late_7d": (7 * DAY_MS,)},
    "line": {"delay_28d": (28 * DAY_MS,)},
    "sky": {"visibility_mi": None, "precipitation_in": None, "wind_mph": None, "humidity_pct": None},
}


class Fold:
    """The log so far. `take` gives what became of a record, and the row when it asks for one."""

    def __init__(self) -> None:
        self._entities: dict[tuple[Any, ...], Entity] = {}
        self._ids: dict[tuple[int, str], list[tuple[str, int]]] = {}
        self._newest_id: dict[tuple[int, str], int] = {}

    def take(self, stream: int, key: str, id: str, visible: int, fields: Mapping[str, Any]) -> tuple[str, bytes | None]:
        if self._is_copy(stream, key, id, visible):
            return DUPLICATE, None
        row = self._row(visible, fields) if stream == FLIGHTS else None
        late = [not self._fold(name, stream, visible, fields) for name in self._views(stream)]
        return LATE if any(late) else APPLIED, row

    def _is_copy(self, stream: int, key: str, id: str, visible: int) -> bool:
        place = (stream, key)
        newest = max(self._newest_id.get(place, 0), visible)
        kept = [one for one in self._ids.get(place, ()) if one[1] >= newest - COPIES_MS]
        if any(known == id for known, _ in kept):
            return True
        if visible >= newest - COPIES_MS:
            self._ids[place] = [*kept, (id, visible)][-COPIES_MAX:]
            self._newest_id[place] = newest
        return False

    def _views(self, stream: int) -> tuple[str, ...]:
        return (("airport",), ("aircraft", "airport", "carrier"), ("aircraft", "carrier", "destination", "line"), ("sky",))[stream]

    def _entity(self, view: str, fields: Mapping[str, Any]) -> Entity:
        by = {
            "aircraft": ("tail",),
            "airport": ("origin",),
            "carrier": ("carrier",),
            "destination": ("destination",),
            "line": ("carrier", "origin", "destination", "scheduled_departure"),
            "sky": ("origin",),
        }[view]
        name = (view, *(fields[one] for one in by))
        if name not in self._entities:
            self._entities[name] = Entity(AGGREGATES[view])
        return self._entities[name]

    def _fold(self, view: str, stream: int, at: int, fields: Mapping[str, Any]) -> bool:
        entity = self._entity(view, fields)
        if not entity.takes(at):
            return False
        of = entity.of
        if stream == FLIGHTS:
            of["asked_3h"].add(at)
        elif stream == DEPARTURES:
            delay = fields["departure_delay_min"]
            self._departed(view, of, at, float(min(max(delay, -15), 240)), float(delay >= LATE_MIN))
        elif stream == ARRIVALS:
            delay = fields["arrival_delay_min"]
            self._arrived(view, of, at, float(min(max(delay, -30), 240)), float(delay >= LATE_MIN))
        else:
            for name, measure in of.items():
                if fields[name] is not None:
                    measure.add(at, fields[name])
        return True

    def _departed(self, view: str, of: Mapping[str, Any], at: int, delay: float, late: float) -> None:
        if view == "aircraft":
            of["left"].add(at)
            of["left_12h"].add(at)
        elif view == "airport":
            of["left_1h"].add(at)
            of["delay_1h"].add(at, delay)
            of["late_4h"].add(at, late)
            of["left_3h"].add(at)
        else:
            of["delay_6h"].add(at, delay)

    def _arrived(self, view: str, of: Mapping[str, Any], at: int, delay: float, late: float) -> None:
        if view == "aircraft":
            of["landed"].add(at)
            of["delay"].add(at, delay)
            of["delay_7d"].add(at, delay)
        elif view == "carrier":
            of["late_24h"].add(at, late)
        elif view == "destination":
            of["delay_3h"].add(at, delay)
            of["delay_24h"].add(at, delay)
            of["late_7d"].add(at, late)
        else:
            of["delay_28d"].add(at, delay)

    def _row(self, at: int, fields: Mapping[str, Any]) -> bytes:
        aircraft, airport, carrier, destination, line, sky = (self._entity(view, fields) for view in AGGREGATES)
        departs = datetime.fromtimestamp(fields["departs_at"] / 1000, NEW_YORK)
        return PACK(
            aircraft.of["left"].age_s(at, 7 * DAY_MS),
            aircraft.of["landed"].age_s(at, 7 * DAY_MS),
            aircraft.of["delay"].last(at, 7 * DAY_MS),
            aircraft.of["left_12h"].count(at),
            aircraft.of["delay_7d"].mean(at),
            airport.of["left_1h"].count(at),
            airport.of["delay_1h"].mean(at),
            airport.of["late_4h"].mean(at),
            airport.of["asked_3h"].count(at) - airport.of["left_3h"].count(at),
            carrier.of["delay_6h"].mean(at),
            carrier.of["late_24h"].mean(at),
            destination.of["delay_3h"].mean(at),
            destination.of["delay_24h"].mean(at),
            destination.of["late_7d"].mean(at),
            line.of["delay_28d"].mean(at),
            *(sky.of[name].last(at, 6 * HOUR_MS) for name in AGGREGATES["sky"]),
            departs.hour * 60 + departs.minute,
            departs.weekday(),
            fields["duration_min"],
            *(entity.times.age_s(at) for entity in (aircraft, airport, carrier, destination, line, sky)),
        )
