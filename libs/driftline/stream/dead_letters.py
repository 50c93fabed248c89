"""
Records that could not be taken go, as they came, to the dead-letter topic with their reason; up to a limit, past which the
fault is ours and the service stops.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from driftline.contracts import traceparent
from driftline.errors import Fatal, Invalid
from driftline.logs import log
from driftline.metrics import metric
from driftline.stream.batch import Column, Messages, Refused, Varlen
from driftline.stream.records import Polled

REASONS = ("undecodable", "contract", "missing_id", "bad_time", "future", "too_large", "schema", "poison", "late")
NONCE_BYTES = 12
TOLD_MAX = 10  # letters of one batch that the log tells singly; the topic has all
KEY_KEPT_MAX, VALUE_KEPT_MAX = 64 << 10, 768 << 10  # bytes of a record that a letter keeps, for it must fit into one message


class DeadLetters:
    """
    Makes dead letters for one process. `sealed` names the topics whose records hold personal fields: theirs are encrypted.
    """

    def __init__(self, pipeline: str, service: str, source: int, limit: int, *, key: bytes = b"", sealed: Collection[str] = ()) -> None:
        self._pipeline = pipeline
        self._service = service
        self._source = source
        self._limit = limit
        self._key = key
        self._sealed = frozenset(sealed)
        self._count = 0

    def begin(self, lately: int) -> None:
        """
        Count from what the pipeline has had lately: a process that stops at the limit and is started again, time after time, must not
        fill a disk a limit at a time.
        """
        self._count = max(self._count, lately)

    def of(self, topic: str, partition: int, polled: Polled, refused: Sequence[Refused], source: int | None = None) -> list[Messages]:
        """
        The letters for `refused`, raw as in `polled`. Raises Fatal when there would be more than the limit.
        """
        if not refused:
            return []
        if self._count + len(refused) > self._limit:
            raise Fatal(
                f"{self._service}: more than {self._limit} dead letters within a day, last: {topic}[{partition}]@{refused[-1].offset}: "
                f"{refused[-1].reason}: {refused[-1].detail}. Look at them (driftline dead-letters {self._pipeline}), mend the "
                "sender, and start again with a larger DRIFTLINE_DEAD_LETTERS_MAX; a restart alone does not begin to count anew"
            )
        return [self._messages(topic, partition, polled, refused, self._source if source is None else source)]

    def sent(self, topic: str, partition: int, refused: Sequence[Refused], traces: Mapping[int, str] | None = None) -> None:
        """Count and tell them, once they are acked and will not be made again. `traces` has the ids of their traces, by offset."""
        self._count += len(refused)
        for one in refused:
            metric("driftline_dead_letters_total").labels(pipeline=self._pipeline, topic=topic, reason=one.reason).inc()
        for one in refused[:TOLD_MAX]:
            about = {"topic": topic, "partition": partition, "offset": one.offset, "reason": one.reason}
            traced = {"trace_id": traces[one.offset]} if traces and one.offset in traces else {}
            log.warning("dead letter", **about, **traced, because=one.detail)

    def _messages(self, topic: str, partition: int, polled: Polled, refused: Sequence[Refused], source: int) -> Messages:
        n = len(refused)
        sealed = topic in self._sealed
        offsets = np.array([one.offset for one in refused], np.int64)
        at = np.searchsorted(polled.offsets, offsets)
        columns: dict[str, Column] = {
            "source": np.full(n, source, np.int64),
            "partition": np.full(n, partition, np.int64),
            "offset": offsets,
            "index": np.zeros(n, np.int64),
            "event_offset": np.full(n, -1, np.int64),
            "topic": Varlen.repeat(topic, n),
            "service": Varlen.repeat(self._service, n),
            "reason": Varlen.of(one.reason for one in refused),
            "detail": Varlen.of(one.detail for one in refused),
            "timestamp": polled.timestamps[at],
            "sealed": np.full(n, sealed, np.bool_),
            "key": Varlen.optional([self._kept(polled.keys.get(i), KEY_KEPT_MAX, sealed) for i in at.tolist()]),
            "value": Varlen.optional([self._kept(polled.values.get(i), VALUE_KEPT_MAX, sealed) for i in at.tolist()]),
            traceparent.NAME: Varlen.nulls(n) if polled.traces is None else polled.traces.take(at),
        }
        return Messages("dead-letters", "dead_letter", None, columns, offsets, to=0)

    def _kept(self, value: bytes | None, most: int, sealed: bool) -> bytes | None:
        """As it came; of what is too large, the beginning: it would be refused again anyway."""
        kept = None if value is None else value[:most]
        return seal(kept, self._key) if sealed and kept is not None else kept


def seal(value: bytes, key: bytes) -> bytes:
    """Encrypt with AES-GCM; the nonce goes in front. `key` has 16, 24 or 32 bytes."""
    nonce = os.urandom(NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, value, None)


def unseal(sealed: bytes, key: bytes) -> bytes:
    """The inverse of `seal`. Raises Invalid when the key is another."""
    try:
        return AESGCM(key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], None)
    except InvalidTag as error:
        raise Invalid("the record was sealed with another key: set DRIFTLINE_PII_KEY to the one that intake used") from error
