"""
What the rollout needs of Faust and Faust does not do by itself. All of it goes when Faust does.
"""

from __future__ import annotations

import logging
from typing import Any

import faust
from faust.auth import Credentials, SASLCredentials, SSLCredentials
from faust.transport.drivers.aiokafka import Consumer
from faust.types.tuples import FutureMessage

from driftline import access


def credentials() -> Credentials | None:
    """How this process connects to Kafka, as Faust takes it."""
    how = access.kafka()
    if how.mechanism is not None:
        return SASLCredentials(username=how.user, password=how.password, ssl_context=how.context, mechanism=how.mechanism)
    return SSLCredentials(how.context) if how.context is not None else None


class FolderlessApp(faust.App):
    """An app whose tables are in memory. Faust makes folders for tables on disk all the same, and who is killed leaves them."""

    def _create_directories(self) -> None:
        """Make none."""


class AckedTable(faust.Table):  # type: ignore[type-arg]
    """A table that lets its writer wait until the changelog has what was written last."""

    logger = logging.getLogger("faust.tables")
    written: FutureMessage | None = None

    def send_changelog(self, *args: Any, **kwargs: Any) -> FutureMessage:
        """As in Faust, and remember the future."""
        self.written = super().send_changelog(*args, **kwargs)
        return self.written


class RewoundConsumer(Consumer):
    """
    A consumer that loses nothing when a table has been recovered and the group has not committed yet.

    Faust (0.15.3) then lets the partitions flow, seeks to the committed offsets, and empties the streams' queues. What it delivered
    before it emptied them is read again only where there was an offset to seek to: a process that was killed before its first commit
    stood still until the next record came.
    """

    async def perform_seek(self) -> None:
        """Stop the flow, which the caller resumes, and go to what is committed, or else to the start."""
        self.stop_flow()
        await super().perform_seek()
        fresh = [tp for tp in self.assignment() if self._committed_offset[tp] is None and not self._is_changelog_tp(tp)]
        if fresh:
            await self.seek_wait(await self.earliest_offsets(*fresh))
