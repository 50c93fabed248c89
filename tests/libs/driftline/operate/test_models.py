"""Releases and rollouts as commands show them, and the commands that wait for an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from driftline.clock import SystemClock
from driftline.contracts.messages import Arm, Deployment, Fact, Release, Report, Retrain, Source, Trained, Writer, as_messages, facts
from driftline.contracts.registry import Registry
from driftline.errors import Invalid, Rejected
from driftline.operate.commands import retrain_command, send_to_trainer
from driftline.operate.models import print_list, print_release, read_history
from driftline.operate.status import print_status, read_status
from driftline.stream.batch import Messages
from driftline.stream.kafka import LogReader

DAY = 86_400_000


def messages(topic: str, sent: Sequence[Fact], source: Source) -> Messages:
    numbers = range(len(sent))
    return as_messages(topic, sent[0].message, sent, source=source, offsets=numbers, indexes=[0] * len(sent), to=0)


def release(name: str, digest: str, verdict: str) -> Release:
    return Release(name, digest, verdict, f"{verdict} because", False, 20 * DAY, "quality", "c-1", "trainer", {"auc": 0.77})


def deployment(version: int, move: str, *arms: Arm) -> Deployment:
    return Deployment(version, move, "canary", f"{move} it is", 20 * DAY, arms, (Arm("frozen", "m-0", "f0", 0.0),), "salt", 0.2)


async def fill(place: Any) -> None:
    releases = [release("m-1", "aa11", "accepted"), release("m-2", "aa22", "refused")]
    await place.put(Writer.TRAINER, messages("control", releases, Source.RETRAIN))
    report = Report(19 * DAY, 20 * DAY, (), {"alarms": [{"subject": "quality", "detector": "cusum"}]})
    await place.put(Writer.DRIFT, messages("control", [report], Source.SUMMARIES))
    moves = [deployment(1, "canary", Arm("champion", "m-0", "f0", 0.75), Arm("canary", "m-1", "aa11", 0.25))]
    moves.append(deployment(1, "nothing", *moves[0].arms))
    await place.put(Writer.ROLLOUT, messages("deployments", moves, Source.CONTROL))


async def test_releases_are_listed_with_what_they_do_now(place: Any):
    """
    Verdict, reason and role; moves without the nothings between them; where it stands.
    """
    await fill(place)
    history = await read_history(place.addresses, place.pipeline)
    assert [(one.model, one.verdict, history.role_of(one.digest)) for one in history.releases] == [
        ("m-1", "accepted", "canary 25%"),
        ("m-2", "refused", ""),
    ]
    assert [move.move for move in history.moves] == ["canary"]
    shown = StringIO()
    print_list(history, Console(file=shown, width=200))
    assert "refused because" in shown.getvalue()
    assert "now: version 1, canary: nothing it is" in shown.getvalue()


async def test_a_release_is_found_by_name_or_by_the_beginning_of_its_digest(place: Any):
    """
    What fits none, or more than one, is refused in words.
    """
    await fill(place)
    history = await read_history(place.addresses, place.pipeline)
    assert history.release("m-2").digest == history.release("aa2").digest == "aa22"
    for name, words in (("aa", "2 releases"), ("m-3", "no release")):
        with pytest.raises(Invalid, match=words):
            history.release(name)
    shown = StringIO()
    print_release(history.release("m-1"), history, Console(file=shown, width=200))
    assert '"auc": 0.77' in shown.getvalue()


async def test_status_names_what_is_not_running_and_shows_model_and_alarms(place: Any):
    """
    No process was started here, so nothing is healthy, and the model is known all the same.
    """
    await fill(place)
    status = await read_status(place.addresses, place.pipeline)
    assert {name: state.split(" (")[0] for name, state in status.services.items()}["feature"] == "not started here"
    assert len(status.troubles) == len(status.services)
    shown = StringIO()
    print_status(status, Console(file=shown, width=200))
    assert "m-0 (champion 75%), m-1 (canary 25%)" in shown.getvalue()
    assert "quality: the control chart is beyond its limit" in shown.getvalue()


async def test_a_retrain_command_waits_for_its_own_outcome(place: Any):
    """
    It carries the pipeline's clock; outcomes of other commands are passed over.
    """
    await fill(place)
    clock = SystemClock()
    command = retrain_command(place.pipeline, clock, "operator", "because")

    async def trainer() -> Retrain:
        reader = LogReader(place.addresses.kafka, place.topics.retrain, Registry(place.addresses.registry))
        await reader.start()
        while not (batches := await reader.next(0.2)):
            pass
        await reader.stop()
        (taken,) = facts(batches[0].tables["retrain"])
        outcomes = [Trained(name, "operator", "cooldown", "3 days left", taken.time, 9, "", "") for name in ("another", taken.id)]
        await place.put(Writer.TRAINER, messages("summaries", outcomes, Source.RETRAIN))
        return taken

    taking = asyncio.create_task(trainer())
    outcome = await send_to_trainer(place.addresses, place.pipeline, clock, command, 30.0)
    assert (outcome.id, outcome.outcome) == (command.id, "cooldown")
    assert (await taking).time == 20 * DAY


async def test_a_command_that_nobody_answers_stays_on_the_log(place: Any):
    """
    The error says so, so that nobody sends it again.
    """
    command = retrain_command(place.pipeline, SystemClock(), "operator", "because")
    with pytest.raises(Rejected, match="will be answered"):
        await send_to_trainer(place.addresses, place.pipeline, SystemClock(), command, 0.5)
