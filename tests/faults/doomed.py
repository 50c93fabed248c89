"""
A service that can be told where to die: `python doomed.py run SERVICE ...` is `driftline run SERVICE ...` with named steps.

Nothing of this is in the product. Before a service starts, its calls at the border (poll, core, send, acks, commit) are wrapped, and at
each of them it looks for the file `die-SERVICE` in the run dir. When the file names the step that is reached, the process says when, by
renaming the file to `died-SERVICE`, and kills itself with SIGKILL.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

STEPS = ("after_poll", "after_core", "after_send", "after_ack", "inside_commit", "after_commit")


class Death:
    """One process's order to die, if there is one."""

    def __init__(self, place: Path) -> None:
        self._place = place

    def at(self, step: str) -> None:
        """Die if the order names this step."""
        try:
            wanted, _, whole = self._place.read_text().partition(" ")
        except FileNotFoundError:
            return
        if wanted != step:
            return
        told = self._place.with_name(self._place.name.replace("die-", "died-"))
        part = told.with_suffix(".part")
        part.write_text(f"{time.monotonic()} {os.getpid()}")  # the same clock in every process of a machine
        part.replace(told)
        self._place.unlink(missing_ok=True)
        if whole:
            os.killpg(os.getpgid(0), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)


def after(owner: Any, name: str, step: Callable[[Any], None]) -> None:
    """`step` is called with what the coroutine `owner.name` returned."""
    wrapped: Callable[..., Awaitable[Any]] = getattr(owner, name)

    @functools.wraps(wrapped)
    async def call(*args: Any, **named: Any) -> Any:
        result = await wrapped(*args, **named)
        step(result)
        return result

    setattr(owner, name, call)


def after_plain(owner: Any, name: str, step: Callable[[], None]) -> None:
    """`step` is called when the function `owner.name` has returned."""
    wrapped: Callable[..., Any] = getattr(owner, name)

    @functools.wraps(wrapped)
    def call(*args: Any, **named: Any) -> Any:
        result = wrapped(*args, **named)
        step()
        return result

    setattr(owner, name, call)


def arm(service: str, death: Death) -> None:
    """Put the steps of one service in its way."""
    from aiokafka import AIOKafkaConsumer, AIOKafkaProducer  # late: a process pays for what it runs

    from driftline.stream.dead_letters import DeadLetters
    from driftline.stream.kafka import LogReader, Sink, Source
    from driftline.stream.ledger import RedisLedger
    from driftline.stream.store import _Wire

    after(Source, "poll", lambda polled: death.at("after_poll") if polled is not None else None)
    after(AIOKafkaProducer, "send_batch", lambda _: death.at("after_send"))
    after(Sink, "send", lambda sent: death.at("after_ack") if sent else None)
    if service == "trainer":
        from services.trainer import core

        after(LogReader, "next", lambda batches: death.at("after_poll") if batches else None)
        after_plain(core, "train_model", lambda: death.at("after_core"))
    elif service == "rollout":
        import services.rollout.app as rollout

        after_plain(rollout.Folding, "step", lambda: death.at("after_core"))
        after_plain(rollout.AckedTable, "send_changelog", lambda: death.at("inside_commit"))
    elif service == "intake":
        import services.intake.core as intake

        after_plain(intake.Intake, "emit", lambda: death.at("after_core"))
    else:
        after_plain(DeadLetters, "of", lambda: death.at("after_core"))  # what a worker calls first when its core has stepped
    if service in ("intake", "inference", "rollout"):
        commit_of(AIOKafkaConsumer, death)
    else:
        sent_before_answered(_Wire, death)
        after(RedisLedger, "commit", lambda _: death.at("after_commit"))


def commit_of(consumer: Any, death: Death) -> None:
    """An operator without state commits an offset: inside is when the request is on its way."""
    import asyncio

    wrapped = consumer.commit

    async def commit(self: Any, *args: Any, **named: Any) -> None:
        going = asyncio.ensure_future(wrapped(self, *args, **named))
        await asyncio.sleep(0)
        death.at("inside_commit")
        await going
        death.at("after_commit")

    consumer.commit = commit


def sent_before_answered(wire: Any, death: Death) -> None:
    """A ledger commits by MULTI and EXEC: inside is when they are sent and no answer was read."""
    wrapped = wire.send

    def send(self: Any, commands: Any) -> Any:
        answered = wrapped(self, commands)
        if (b"EXEC",) in commands:
            death.at("inside_commit")
        return answered

    wire.send = send


def main(arguments: list[str]) -> None:
    """As the command `driftline`."""
    service = arguments[1] if arguments[:1] == ["run"] else ""
    if service:
        arm(service, Death(Path(os.environ["DRIFTLINE_RUN_DIR"]) / f"die-{service}"))
    from driftline.cli import main as driftline

    driftline()


if __name__ == "__main__":
    main(sys.argv[1:])
