"""A small log as it is, whole: for whoever proves that nothing on it was changed."""

from __future__ import annotations

from driftline.errors import Recoverable
from driftline.stream.kafka import Source
from driftline.stream.records import Polled

PATIENCE_MS = 10_000
AT_ONCE = 20_000


async def as_written(kafka: str, topic: str, below: int | None = None) -> tuple[int, Polled]:
    """
    A topic of one partition up to the offset `below`, or to its end: the first offset that it has, and its records. Raises Recoverable.
    """
    source = Source(kafka, topic, 0, wait_ms=100)
    await source.start()
    try:
        start, end = await source.bounds()
        end = end if below is None else min(end, below)
        source.seek(start)
        parts = []
        while await source.position() < end:
            polled = await source.poll(AT_ONCE, PATIENCE_MS)
            if polled is None and await source.position() < end:
                raise Recoverable(f"{topic} holds more than was read, and nothing arrives")
            parts += [] if polled is None else [polled.part(0, polled.below(end))]
        return start, Polled.concat(parts) if parts else Polled.of([], [], [], [])
    finally:
        await source.stop()
