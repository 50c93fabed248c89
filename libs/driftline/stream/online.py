"""
The features of entities as they are now, read from the store: one MGET for each partition, ledger and rows in one command, and one call
of the fold's own evaluation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from driftline.contracts.topics import Topics
from driftline.errors import Invalid, Rejected
from driftline.features.murmur2 import partitions_of
from driftline.features.online import Answers, Evaluation
from driftline.features.texts import UNIT_SEPARATOR
from driftline.features.tiles import ROW_FORMAT
from driftline.pipeline import Pipeline
from driftline.stream.batch import Ints, Varlen, distinct
from driftline.stream.ledger import LEDGER, prefix_of
from driftline.stream.store import Command, Store


class Made(msgspec.Struct, frozen=True):
    """What a reader needs of the ledger's entry: by what the rows were made, and how many partitions there are."""

    digest: str
    row_format: int
    partitions: dict[str, int]


SEPARATOR = bytes([UNIT_SEPARATOR])
DECODE = msgspec.msgpack.Decoder(Made).decode


@dataclass(frozen=True, slots=True, eq=False)
class _Wanted:
    """What is asked of one partition: the command, and of each row the number of its question and the kind of its view."""

    command: Command
    asks: Ints
    kinds: Ints


class OnlineReader:
    """
    Reads what the feature service of `group` keeps. Several tasks may share one: they take turns.

    A question is read in the partition of its key, which the entities of its views contain; in the first one where it names entities of
    broadcast views alone, for every partition has those.
    """

    def __init__(self, store: Store, pipeline: Pipeline, group: str) -> None:
        self._store = store
        self._group = group
        self._digest = pipeline.digest
        self._events = Topics.of(pipeline).events.name
        self._evaluation = Evaluation(pipeline)
        self._key = pipeline.question.key
        self._homely = {view.name: view.by for view in pipeline.views if not view.broadcast}
        self._prefixes: list[bytes] = []  # of the rows, by partition
        self._turn = asyncio.Lock()

    async def read(self, entities: Mapping[str, Sequence[bytes]], asked_ms: int) -> Answers:
        """
        What n questions at `asked_ms` (as of then, strictly) would find: for each view that is asked, the n keys of its entities, those of
        one question at the same place; a composite key has 0x1f between its parts.

        Raises Invalid when there is no such view, or a row is damaged; Rejected while the service has kept nothing, or keeps it by another
        definition; Recoverable.
        """
        async with self._turn:
            if not self._prefixes:
                await self._open()
            n = len(next(iter(entities.values()), ()))
            wanted = self._wanted(entities, n)
            replies = await self._store.ask(*[one.command for one in wanted])
            for reply in replies:
                self._verify(reply)
        if len(wanted) == 1:
            return self._evaluation.answers(replies[0][1:], wanted[0].asks, wanted[0].kinds, n, asked_ms)
        rows = [row for reply in replies for row in reply[1:]]
        asks, kinds = (np.concatenate([getattr(one, name) for one in wanted]) for name in ("asks", "kinds"))
        return self._evaluation.answers(rows, asks, kinds, n, asked_ms)

    async def _open(self) -> None:
        """How many partitions there are says the ledger of the first."""
        (entry,) = await self._store.ask(("GET", prefix_of(self._group, 0) + LEDGER))
        if entry is None:
            raise Rejected(f"{self._group} has kept nothing yet in partition 0")
        self._prefixes = [prefix_of(self._group, partition) for partition in range(self._made(entry).partitions[self._events])]

    def _made(self, ledger: bytes) -> Made:
        try:
            return DECODE(ledger)
        except msgspec.MsgspecError as error:
            raise Invalid(f"the ledger of {self._group} cannot be read ({error})") from error

    def _wanted(self, entities: Mapping[str, Sequence[bytes]], n: int) -> list[_Wanted]:
        """What to ask of each partition. Raises Invalid."""
        if any(len(keys) != n for keys in entities.values()):
            raise Invalid("each view is asked for one entity a question")
        if len(self._prefixes) == 1:
            return [self._of_partition(0, entities, np.arange(n))]
        homes = self._homes(entities, n)
        wanted = []
        for partition in distinct(homes):
            mine = np.flatnonzero(homes == partition)
            some = {name: [keys[at] for at in mine.tolist()] for name, keys in entities.items()}
            wanted.append(self._of_partition(partition, some, mine))
        return wanted

    def _of_partition(self, partition: int, entities: Mapping[str, Sequence[bytes]], asks: Ints) -> _Wanted:
        prefix, of_kinds = self._prefixes[partition], [self._evaluation.kind(name) for name in entities]
        words: list[bytes] = [b"MGET", prefix + LEDGER]
        for name, keys in entities.items():
            begins = b"%b%b:" % (prefix, name.encode())
            words += [begins + key for key in keys]
        return _Wanted(words, np.concatenate([asks] * len(entities)), np.repeat(np.array(of_kinds, np.int64), len(asks)))

    def _homes(self, entities: Mapping[str, Sequence[bytes]], n: int) -> Ints:
        """The partition of each question: that of its key, which is in its entities. Raises Invalid where they do not agree."""
        homes: Ints | None = None
        for name, keys in entities.items():
            if name in self._homely:
                placed = partitions_of(Varlen.of(self._key_in(name, key) for key in keys), len(self._prefixes))
                if homes is not None and (placed != homes).any():
                    raise Invalid("the entities of one question have one key, that of the question")
                homes = placed
        return np.zeros(n, np.int64) if homes is None else homes

    def _key_in(self, view: str, entity: bytes) -> bytes:
        """The part of an entity that is the key of its records. Raises Invalid where it has not as many parts as there are fields."""
        by = self._homely[view]
        parts = entity.split(SEPARATOR) if len(by) > 1 else [entity]
        if len(parts) != len(by):
            raise Invalid(f"an entity of the view {view} is of {len(by)} parts, {', '.join(by)}, not of {len(parts)}")
        return parts[by.index(self._key)]

    def _verify(self, reply: Sequence[bytes | None]) -> None:
        """Raises Rejected for rows that are not to be answered from: those behind the ledger in a reply."""
        ledger = reply[0]
        if ledger is None:
            if any(row is not None for row in reply):
                raise Rejected(f"{self._group} has no ledger beside its rows: they are being rebuilt, or the service refuses them")
            return
        made = self._made(ledger)
        if (made.digest, made.row_format) != (self._digest, ROW_FORMAT):
            raise Rejected(f"{self._group} keeps rows of another definition or format; start it, and do what it says")
        if made.partitions[self._events] != len(self._prefixes):
            self._prefixes = []
            raise Rejected(f"{self._group} has been given another number of partitions meanwhile")
