"""
What a program costs while it works: processor time of its processes against the growth of the topic that it writes.

Start-up is left out, for everybody alike: the slope is taken between the first sample with a tenth of the outputs and the last one.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import psutil
from aiokafka import AIOKafkaConsumer, TopicPartition

from driftline.errors import DriftlineError

SAMPLE_S = 0.05
WARM = 0.1
US = 1e6


class TooSlow(DriftlineError):
    """The outputs did not come in time."""


def cpu_s(pid: int) -> float:
    """User and system time of a process and of all its children, the ended ones included; 0 when it is gone."""
    total = 0.0
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        times = process.cpu_times()
        total = times.user + times.system + times.children_user + times.children_system
        for child in process.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                own = child.cpu_times()
                total += own.user + own.system
    return total


@dataclass(frozen=True)
class Sample:
    """How many outputs there were, when, and what each party had used by then."""

    at_s: float
    outputs: int
    cpu_s: Mapping[str, float]


@dataclass(frozen=True)
class Cost:
    """Between the first tenth of the outputs and the last: outputs, seconds, and processor time of each party per output."""

    outputs: int
    seconds: float
    us: Mapping[str, float]

    @property
    def rate(self) -> float:
        """Outputs a second."""
        return self.outputs / self.seconds


class Meter:
    """Watches a topic grow. `parties` are process ids by name."""

    def __init__(self, kafka: str, topic: str, partitions: int, parties: Mapping[str, int]) -> None:
        self._kafka = kafka
        self._at = [TopicPartition(topic, number) for number in range(partitions)]
        self._parties = parties

    async def until(self, outputs: int, patience_s: float) -> Cost:
        """Wait for so many outputs more than there were before. Raises TooSlow."""
        consumer = AIOKafkaConsumer(bootstrap_servers=self._kafka)
        await consumer.start()
        try:
            return slope(await self._samples(consumer, outputs, patience_s), outputs)
        finally:
            await consumer.stop()

    async def _samples(self, consumer: AIOKafkaConsumer, outputs: int, patience_s: float) -> list[Sample]:
        samples: list[Sample] = []
        until = time.monotonic() + patience_s
        while not samples or samples[-1].outputs < outputs:
            if time.monotonic() > until:
                raise TooSlow(f"{samples[-1].outputs if samples else 0} of {outputs} outputs in {patience_s:.0f} s")
            ends = await consumer.end_offsets(self._at)
            used = {name: cpu_s(pid) for name, pid in self._parties.items()}
            samples.append(Sample(time.monotonic(), sum(ends.values()), used))
            await asyncio.sleep(SAMPLE_S)
        return samples


def slope(samples: Sequence[Sample], outputs: int) -> Cost:
    """What a unit cost between the first tenth and the end."""
    first = next(one for one in samples if one.outputs >= WARM * outputs)
    last = samples[-1]
    n = last.outputs - first.outputs
    if n <= 0:
        raise TooSlow("all outputs came between two samples: take more events")
    return Cost(n, last.at_s - first.at_s, {name: US * (last.cpu_s[name] - first.cpu_s[name]) / n for name in last.cpu_s})
