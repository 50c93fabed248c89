"""
The one place that reads state, for JSON routes and pages alike: what the logs say, from memory where it is followed, and from the
servers, within limits, where it is not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from driftline.clock import Clock
from driftline.contracts.messages import Deployment, Report
from driftline.errors import Rejected
from driftline.judge.summaries import Inputs
from driftline.operate.addresses import Addresses
from driftline.operate.board import Board, Commanded, Refusals
from driftline.operate.models import History
from driftline.operate.predictions import Prediction
from driftline.operate.processes import all_metrics, read_services
from driftline.operate.pulse import Hop, Pulse, hops_in
from driftline.operate.status import Lag, Status, read_lags
from driftline.operate.trace import Place, Trace, read_times, read_trace
from driftline.operate.windows import Group
from driftline.pipeline import Pipeline
from driftline.stream.online import SEPARATOR, OnlineReader

from .core import Book

STATUS_KEPT_S = 2.0
TRACES_MAX = 2  # at once: each reads partitions of topics


@dataclass(frozen=True, slots=True)
class Entity:
    """What a view says of an entity at a moment: its features by name, and how long ago it last heard of it, in seconds; NaN is missing."""

    at_ms: int
    features: dict[str, float | None]
    age_s: float


class State:
    """Everything that is known of one pipeline. What it gives are values."""

    def __init__(
        self, pipeline: Pipeline, addresses: Addresses, board: Board, book: Book[Prediction], online: OnlineReader, clock: Clock
    ) -> None:
        self.pipeline = pipeline
        self._online = online
        self._addresses = addresses
        self._board = board
        self._book = book
        self._clock = clock
        self._asking = asyncio.Lock()
        self._traces = 0
        self._services: dict[str, str] = {}
        self._lags: list[Lag] = []
        self._asked_s = float("-inf")
        self._feeling = asyncio.Lock()
        self._pulse = Pulse()
        self._felt_s = float("-inf")

    def history(self) -> History:
        """Releases, moves, and the deployment in force."""
        return self._board.history()

    def deployment(self) -> Deployment:
        """The deployment in force."""
        return self._board.history().now

    def reports(self) -> list[Report]:
        """The newest reports, oldest first."""
        return self._board.reports()

    def retrains(self) -> list[Commanded]:
        """The newest retrain commands with their outcomes, oldest first."""
        return self._board.retrains()

    def refusals(self) -> list[Refusals]:
        """Refused records by topic, service and reason, without what they held."""
        return self._board.refusals()

    def prediction(self, id: str) -> Prediction | None:
        """The answer to a question, while it is among the newest."""
        return self._book.answer(id)

    def newest_predictions(self, n: int) -> list[Prediction]:
        """The newest answers that were given, the newest first."""
        return self._book.newest(n)

    def inputs(self, digest: str, newest: int) -> Inputs:
        """The rows that a model was served, counted by bin, in the newest windows in which it was served any."""
        return self._board.inputs(digest, newest)

    def reliability(self, role: str, digest: str, newest: int) -> list[Group]:
        """Matured answers of a model in a role, of the newest windows, grouped by score."""
        return self._board.reliability(role, digest, newest)

    def is_waiting(self, id: str) -> bool:
        """Whether the question was published here, and its answer is not there yet."""
        return self._book.is_waiting(id)

    async def status(self) -> Status:
        """Processes and lags, as they were a moment ago at most; the model and the alarms. Raises Fatal when Kafka does not answer."""
        async with self._asking:
            if self._clock.monotonic_s() - self._asked_s > STATUS_KEPT_S:
                self._services = await asyncio.to_thread(read_services, self._addresses)
                self._lags = await read_lags(self._addresses.kafka, self.pipeline.name)
                self._asked_s = self._clock.monotonic_s()
        reports = self._board.reports()
        return Status(dict(self._services), list(self._lags), self.deployment(), reports[-1] if reports else None)

    async def hops(self) -> dict[tuple[str, str], Hop]:
        """
        What each service reads of each topic, how fast and how old, by service and topic, as it was a moment ago at most. Empty where it
        is not known where the services are.
        """
        async with self._feeling:
            if self._clock.monotonic_s() - self._felt_s > STATUS_KEPT_S:
                told = await asyncio.to_thread(all_metrics, self._addresses)
                self._felt_s = self._clock.monotonic_s()
                self._pulse.take(hops_in(told, self._clock.now_ms() / 1000), self._felt_s)
        return self._pulse.hops()

    def answer_to(self, command: str) -> Deployment | None:
        """The rollout's answer to an operator's command, once there is one."""
        return self._board.answer_to(command)

    async def trace(self, id: str) -> Trace:
        """
        One event through the loop. Raises Invalid when no event has this id, Rejected while others are being looked for.

        Where its prediction is among the newest, one record of the events is read; otherwise the whole of that topic is searched.
        """
        if self._traces >= TRACES_MAX:
            raise Rejected(f"{TRACES_MAX} events are being traced already")
        self._traces += 1
        try:
            known = self._book.answer(id)
            place = None if known is None or known.partition < 0 else Place(known.partition, known.event_offset)
            return await read_trace(self._addresses, self.pipeline, id, place)
        finally:
            self._traces -= 1

    async def times(self, trace: Trace) -> dict[tuple[str, int, int], int]:
        """When each message of a trace was written, in ms, by topic, partition and offset."""
        return await read_times(self._addresses, trace)

    async def features(self, view: str, parts: Sequence[str], at_ms: int | None) -> Entity:
        """
        What a view says of an entity at `at_ms`, or now, by the function that answers questions. Raises Invalid when there is no such view,
        Rejected while the feature service has kept nothing that can be read, Recoverable.
        """
        at_ms = self._clock.now_ms() if at_ms is None else at_ms
        answers = await self._online.read({view: [SEPARATOR.join(part.encode() for part in parts)]}, at_ms)
        layout = self.pipeline.layout
        kind, values = layout.views.index(view), answers.features[0].tolist()
        named = zip(layout.names, values, layout.view_of, strict=True)
        mine: dict[str, float | None] = {name: value for name, value, of in named if of == kind}
        return Entity(at_ms, mine, float(answers.ages[0, kind]))

    async def changed(self, timeout_s: float) -> None:
        """Until the board has news, or until `timeout_s` have passed."""
        await self._board.changed.wait(timeout_s)
