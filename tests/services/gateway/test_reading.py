"""What the gateway tells of a pipeline, and operators' commands, with the real rollout behind it."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import numpy as np
import pytest

from driftline.contracts.messages import Report, Retrain, Source, Trained, Writer
from driftline.operate.commands import facts_in
from driftline.stream.batch import Messages, Refused, Varlen
from driftline.stream.dead_letters import DeadLetters
from driftline.stream.kafka import LogReader
from driftline.stream.records import Polled
from tests.processes import until

DAY = 86_400_000


def test_releases_are_told_with_their_roles_and_each_with_its_evidence(running: Any, rollout: dict[str, str]) -> None:
    """
    Refused ones too; by name or by the beginning of a digest.
    """
    viewer = running.client("viewer")
    told = viewer.get(running.path("models")).json()["releases"]
    verdicts = {one["model"]: one["verdict"] for one in told}
    assert verdicts == {"m-1": "accepted", "m-2": "accepted", "m-3": "refused"}
    assert all(one["evidence"] is None for one in told)
    assert viewer.get(running.path("models/m-1")).json()["evidence"] == {"base_rate": 0.2}
    assert viewer.get(running.path(f"models/{rollout['m-2'][:8]}")).json()["model"] == "m-2"
    assert viewer.get(running.path("models/m-9")).status_code == 404


def test_the_pipeline_is_described(running: Any, rollout: dict[str, str]) -> None:
    """
    Its question, its features, its champion; another pipeline is not here.
    """
    viewer = running.client("viewer")
    (card,) = viewer.get("/v1/pipelines").json()
    assert (card["name"], card["model"], card["features"]) == (running.pipeline.name, "m-1", ["asked_1h", "amount_1h", "amount"])
    assert viewer.get("/v1/another/status").status_code == 404


def test_reports_and_retrains_come_as_they_are_published(running: Any) -> None:
    """
    The newest first; a command with its outcome once there is one.
    """
    viewer = running.client("viewer")
    reports = [Report(day * DAY, (day + 1) * DAY, (), {"alarms": [], "day": day}) for day in (1, 2)]
    running.put(Writer.DRIFT, "control", *reports, source=Source.SUMMARIES)

    def days() -> list[int]:
        told = viewer.get(running.path("reports")).json()["reports"]
        return [one["body"]["day"] for one in told if "day" in one["body"]]

    assert until(days, lambda found: len(found) == 2) == [2, 1]
    assert viewer.get(running.path("status")).json()["reported"] > 0
    running.put(Writer.DRIFT, "retrain", Retrain("c-7", "quality", DAY, "drift", {"z": 4}), source=Source.SUMMARIES)
    running.put(Writer.TRAINER, "summaries", Trained("c-7", "quality", "cooldown", "3 days left", DAY, 9, "", ""), source=Source.RETRAIN)
    path = running.path("retrains")
    found = until(lambda: viewer.get(path).json()["retrains"], lambda told: any(one["id"] == "c-7" and one["outcome"] for one in told))
    (one,) = [one for one in found if one["id"] == "c-7"]
    assert (one["evidence"], one["outcome"]["outcome"]) == ({"z": 4}, "cooldown")


def test_a_command_is_published_with_who_and_why_and_answered_by_the_rollout(running: Any, rollout: dict[str, str]) -> None:
    """
    One that cannot be is answered too, with the reason; the deployment changes when one can.
    """
    approver, operator = running.client("approver"), running.client("operator")
    wrong = approver.post(running.path("models/approve"), json={"reason": "it is Monday", "model": "m-1"}).json()
    assert (wrong["moved"], wrong["deployment"]["move"]) == (False, "nothing")
    approved = approver.post(running.path("models/approve"), json={"reason": "looked at the slices", "model": "m-2"}).json()
    assert (approved["moved"], approved["deployment"]["state"]) == (True, "shadow")
    paused = operator.post(running.path("models/pause"), json={"reason": "a holiday"}).json()
    assert "paused" in paused["deployment"]["state"]
    assert operator.post(running.path("models/rollback"), json={"reason": "not today"}).json()["moved"] is True
    now = running.client("viewer").get(running.path("deployments")).json()
    assert [one["move"] for one in now["moves"]][:3] == ["refused", "paused", "shadow"]
    published = operators(running)
    assert ("approve", "m-2", "the-approver", "looked at the slices") in published
    assert ("rollback", "", "the-operator", "not today") in published


def operators(running: Any) -> list[tuple[str, str, str, str]]:
    """All operators' commands on control."""

    async def read() -> list[tuple[str, str, str, str]]:
        reader = LogReader(running.kafka, running.topics.control, running.registry)
        await reader.start()
        try:
            batches = (await reader.read_to()).values()
        finally:
            await reader.stop()
        return [(one.action, one.model, one.who, one.reason) for batch in batches for one in facts_in(batch, "operator")]

    return asyncio.run(read())


def test_a_retrain_that_is_not_answered_in_time_is_on_the_log(running: Any) -> None:
    """
    202, for there is no trainer here; the command is among the retrains, with who and why.
    """
    sent = running.client("operator").post(running.path("retrain"), params={"wait_s": 0}, json={"reason": "a new timetable"})
    assert (sent.status_code, sent.json()["topic"]) == (202, running.topics.retrain.name)
    viewer, path, id = running.client("viewer"), running.path("retrains"), sent.json()["command"]
    found = until(lambda: viewer.get(path).json()["retrains"], lambda told: any(one["id"] == id for one in told))
    (one,) = [one for one in found if one["id"] == id]
    assert (one["who"], one["evidence"], one["outcome"]) == ("the-operator", {"because": "a new timetable"}, None)


@pytest.mark.parametrize(
    "body", [{}, {"reason": ""}, {"reason": "   "}, {"reason": "because", "who": "somebody else"}, {"reason": "x" * 501}]
)
def test_a_command_without_a_reason_is_refused(running: Any, body: dict[str, str]) -> None:
    """
    And one that says who sends it: that is the token's to say.
    """
    refused = running.client("operator").post(running.path("retrain"), json=body)
    assert (refused.status_code, refused.headers["content-type"]) == (422, "application/problem+json")
    assert refused.json()["errors"][0]["at"].startswith("body.")


def test_status_tells_lags_and_what_is_not_running(running: Any, rollout: dict[str, str]) -> None:
    """
    The rollout is the only service here.
    """
    viewer, path, group = running.client("viewer"), running.path("status"), f"{running.pipeline.name}-rollout"
    told = until(lambda: viewer.get(path).json(), lambda found: any(lag["group"] == group for lag in found["lags"]))
    assert told["services"]["rollout"] == "ready"
    assert not told["well"] and any(trouble.startswith("intake: not started here") for trouble in told["troubles"])


def test_refused_records_are_told_by_reason_without_what_they_held(running: Any) -> None:
    """
    How many, the newest with place and words; the payload stays where it is.
    """
    letters = DeadLetters(running.pipeline.name, "intake", Source.UPSTREAM, 100)
    polled = Polled.of([7, 8], [b"k", b"k"], [b"the-payload", b"the-payload"], [1, 2])
    made = letters.of("somewhere", 0, polled, [Refused(at, "contract", '"amount" is missing') for at in (7, 8)])
    running.send(Writer.INTAKE, *made)
    path, viewer = running.path("dead-letters"), running.client("viewer")
    answer = until(lambda: viewer.get(path), lambda told: told.json()["refusals"])
    (group,) = answer.json()["refusals"]
    assert (group["topic"], group["reason"], group["count"]) == ("somewhere", "contract", 2)
    assert [one["place"] for one in group["newest"]] == ["somewhere[0]@8", "somewhere[0]@7"]
    assert "the-payload" not in answer.text


def test_one_event_is_traced_by_its_id(running: Any) -> None:
    """
    From the log, as the command line does it; an id that nobody has is not found.
    """
    columns = {name: np.array([value], np.int64) for name, value in {"source": 16, "offset": 1, "index": 0, "event_offset": -1}.items()}
    columns |= {name: np.array([DAY], np.int64) for name in ("time", "visible")} | {"home": np.array([True])}
    trace = f"00-{'a' * 32}-{'b' * 16}-00"
    texts = {name: Varlen.of([value]) for name, value in {"id": "e-1", "key": "a-1", "body": "the-body", "traceparent": trace}.items()}
    running.send(Writer.INTAKE, Messages("events", "event", None, columns | texts, np.array([1]), to=1))
    viewer = running.client("viewer")
    found = viewer.get(running.path("events/e-1"))
    assert found.status_code == 200, found.text
    assert [(one["topic"], one["partition"], one["offset"]) for one in found.json()["messages"]] == [(running.topics.events.name, 1, 0)]
    assert "the-body" not in found.text
    assert found.json()["trace_id"] == "a" * 32
    assert viewer.get(running.path("events/nobody")).status_code == 404


def test_an_entity_is_told_as_a_question_would_find_it_now(running: Any, kept_ms: int) -> None:
    """
    From what the feature service keeps: features and age as of a moment, or now; an unknown entity has none.
    """
    viewer, path = running.client("viewer"), running.path("features/recent/a-9")
    told = viewer.get(path, params={"at": kept_ms}).json()
    assert (told["entity"], told["features"], told["age_s"]) == ({"account": "a-9"}, {"asked_1h": 2.0, "amount_1h": 7.0}, 1.0)
    assert viewer.get(path).json()["features"]["asked_1h"] == 0.0
    assert viewer.get(running.path("features/recent/nobody"), params={"at": kept_ms}).json()["age_s"] is None
    assert viewer.get(running.path("features/none/a")).status_code == 404


def test_features_are_unavailable_before_the_service_has_kept_anything(disorder: Any) -> None:
    """
    503, and when to come again.
    """
    told = disorder.client("viewer").get(disorder.path("features/recent/a-9"))
    assert (told.status_code, told.headers["Retry-After"]) == (503, "1")


def test_what_happens_is_streamed(running: Any) -> None:
    """
    The status at once, a report when it comes, and the stream ends when it was asked to.
    """
    with running.client("viewer").stream("GET", running.path("live"), params={"for_s": 8}) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        told: list[tuple[str, Any]] = []
        for line in stream.iter_lines():
            if line.startswith("event: "):
                told.append((line.removeprefix("event: "), None))
            if line.startswith("data: "):
                told[-1] = (told[-1][0], json.loads(line.removeprefix("data: ")))
            if told and told[-1][0] == "status" and told[-1][1] and len(told) == 1 and line == "":
                end = 1_000 * DAY + int(time.time())
                running.put(Writer.DRIFT, "control", Report(0, end, (), {"alarms": []}), source=Source.SUMMARIES)
            if told and told[-1][0] == "report" and told[-1][1]:
                break
    assert told[0][0] == "status" and "lags" in told[0][1]
    assert told[-1][1]["end"] == end
