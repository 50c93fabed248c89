"""
How fast what moves through the loop, told from what the services show of themselves: the rate at which each reads each topic, how old
what waits is, and since when a promise has not held.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from driftline.local.progress import Sample

Place = tuple[str, str]  # service and topic
RATE_S = 10.0  # a rate is of so many seconds
LOOKS_MAX = 64
UNBALANCED_S = 60.0  # while a batch is under way the two sums may differ
STILL_S = 30.0


@dataclass(frozen=True, slots=True)
class Hop:
    """What one service has made of one topic so far. Ages are seconds; None where the service does not tell."""

    read: float = 0.0
    settled: float = 0.0  # all outcomes together: when nothing is in hand, as many as were read
    refused: float = 0.0
    age_s: float | None = None  # of the oldest record that is not applied
    still_s: float = 0.0  # for how long a partition with a backlog has not moved
    rate: float | None = None  # records a second, None before there were two looks
    unbalanced_s: float = 0.0  # for how long the sums have differed
    processes: int = 0  # that told what they have read of it

    @property
    def is_unbalanced(self) -> bool:
        """Whether records went missing, or were counted twice: the sums differ for longer than any batch takes."""
        return self.unbalanced_s > UNBALANCED_S

    @property
    def is_still(self) -> bool:
        """Whether the service is behind and does not move."""
        return self.still_s > STILL_S


def hops_in(processes: Iterable[Iterable[Sample]], now_s: float) -> dict[Place, Hop]:
    """The hops that the metrics of these processes tell of. `now_s` is the wall's time."""
    hops: dict[Place, Hop] = {}
    behind: dict[tuple[str, ...], float] = {}
    moved: dict[tuple[str, ...], float] = {}
    for name, labels, value in (sample for process in processes for sample in process):
        place = labels.get("service", ""), labels.get("topic", "")
        hop = hops.get(place, Hop())
        if name == "driftline_messages_read_total":
            hops[place] = replace(hop, read=hop.read + value, processes=hop.processes + 1)
        elif name == "driftline_messages_total":
            refused = value if labels.get("outcome") == "dead_lettered" else 0.0
            hops[place] = replace(hop, settled=hop.settled + value, refused=hop.refused + refused)
        elif name == "driftline_lag_seconds":
            hops[place] = replace(hop, age_s=max(hop.age_s or 0.0, value))
        elif name == "driftline_lag_messages":
            behind[(*place, labels["partition"])] = value
        elif name == "driftline_progress_timestamp_seconds":
            moved[(*place, labels["partition"])] = value
    for (service, topic, partition), lag in behind.items():
        since_s = moved.get((service, topic, partition))
        if lag > 0 and since_s is not None:
            hop = hops.get((service, topic), Hop())
            hops[service, topic] = replace(hop, still_s=max(hop.still_s, now_s - since_s))
    return hops


@dataclass(frozen=True, slots=True)
class _Look:
    at_s: float
    hops: Mapping[Place, Hop]


class Pulse:
    """The hops as they were seen lately. `at_s` never goes back; a service that started again counts from nothing again."""

    def __init__(self) -> None:
        self._looks: deque[_Look] = deque(maxlen=LOOKS_MAX)
        self._unbalanced: dict[Place, float] = {}

    def take(self, hops: Mapping[Place, Hop], at_s: float) -> None:
        """One look."""
        self._looks.append(_Look(at_s, hops))
        while len(self._looks) > 2 and self._looks[0].at_s < at_s - RATE_S:
            self._looks.popleft()
        differing = {place for place, hop in hops.items() if hop.read != hop.settled}
        self._unbalanced = {place: self._unbalanced.get(place, at_s) for place in differing}

    def hops(self) -> dict[Place, Hop]:
        """
        The hops of the last look, with rates since the first one that is not too old, or else the one before, where as many processes told
        of it then; and for how long the sums have differed.
        """
        if not self._looks:
            return {}
        last = self._looks[-1]
        lately = [look for look in self._looks if look.at_s >= last.at_s - RATE_S]
        first = lately[0] if len(lately) > 1 else self._looks[0]
        found = {}
        for place, hop in last.hops.items():
            before = first.hops.get(place)
            spent_s = last.at_s - first.at_s
            same = before is not None and hop.processes == before.processes and hop.read >= before.read
            rate = (hop.read - before.read) / spent_s if before is not None and same and spent_s > 0 else None
            found[place] = replace(hop, rate=rate, unbalanced_s=last.at_s - self._unbalanced.get(place, last.at_s))
        return found
