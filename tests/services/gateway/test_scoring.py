"""Questions over HTTP, on a real broker: answered, late, repeated, refused, too many."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest

from driftline.features.murmur2 import partitions_of
from driftline.stream.batch import Varlen


def test_an_event_is_answered_with_its_prediction(running: Any) -> None:
    """
    Published as it came, placed where a Java client would, and answered from the topic of predictions.
    """
    event = running.event(account="k-7", extra="kept as it is")
    answered = running.client("scorer").post(running.path("score"), json=event)
    assert answered.status_code == 200, answered.text
    assert {name: answered.json()[name] for name in ("id", "key", "score", "model", "flags")} == {
        "id": event["id"],
        "key": "k-7",
        "score": 0.25,
        "model": "m-1",
        "flags": [],
    }
    assert running.answerer.seen[-1] == event
    assert running.answerer.places[-1] == (b"k-7", int(partitions_of(Varlen.of(["k-7"]), 3)[0]))


TRACE = f"00-{'a' * 32}-{'b' * 16}-01"


@pytest.mark.parametrize(
    ("given", "published"),
    [
        ([], []),
        ([("traceparent", TRACE)], [("traceparent", TRACE.encode())]),
        ([("Traceparent", f"cc-{TRACE[3:]}-more")], [("traceparent", TRACE.encode())]),
        ([("traceparent", TRACE.upper())], []),
        ([("traceparent", TRACE), ("traceparent", TRACE)], []),
    ],
)
def test_the_trace_context_of_a_request_goes_on_to_the_record(running: Any, given: list[Any], published: list[Any]) -> None:
    """
    Of one event as of each of a batch; one that is not valid, or not the only one, is ignored, and the event is answered all the same.
    """
    scorer, events = running.client("scorer"), [running.event() for _ in range(3)]
    assert scorer.post(running.path("score"), json=events[0], headers=given).status_code == 200
    assert scorer.post(running.path("score/batch"), json=events[1:], headers=given).status_code == 200
    told = [headers for question, headers in zip(running.answerer.seen, running.answerer.headers, strict=True) if question in events]
    assert told == [published] * 3


def test_the_same_id_again_gets_the_same_answer_and_is_published_once(running: Any) -> None:
    """
    Also in one batch, also by another request, and also when it is only asked for.
    """
    event, scorer = running.event(), running.client("scorer")
    first = scorer.post(running.path("score/batch"), json=[event, event]).json()["results"]
    again = scorer.post(running.path("score"), json=event | {"amount": 9})
    asked = running.client("viewer").get(running.path(f"predictions/{event['id']}"))
    assert [one["prediction"] for one in first] == [again.json(), again.json()] == [asked.json(), asked.json()]
    assert running.answerer.times(event["id"]) == 1


def test_another_gateway_knows_what_was_answered_before_it_started(ground: Any, running: Any) -> None:
    """
    The topic of predictions is its memory: no second publish after a restart.
    """
    event = running.event()
    first = running.client("scorer").post(running.path("score"), json=event)
    with ground.gateway() as other:
        again = other.client("scorer").post(other.path("score"), json=event)
    assert (again.status_code, again.json()) == (200, first.json())
    assert running.answerer.times(event["id"]) == 1


def test_an_answer_that_is_late_is_at_its_location(running: Any) -> None:
    """
    202 with the location, there 202 until it is answered, then the prediction.
    """
    event, scorer = running.event("late/one?" + uuid4().hex), running.client("scorer")
    running.answerer.silent.set()
    try:
        late = scorer.post(running.path("score"), params={"timeout_s": 0.05}, json=event)
        assert (late.status_code, late.json()["id"]) == (202, event["id"])
        assert late.headers["Location"] == late.json()["location"]
        waiting = scorer.get(late.headers["Location"])
        assert waiting.status_code == 202
        with ThreadPoolExecutor(1) as pool:
            again = pool.submit(scorer.post, running.path("score"), params={"timeout_s": 20}, json=event)
            running.answerer.silent.clear()
            assert again.result().status_code == 200
    finally:
        running.answerer.silent.clear()
    assert scorer.get(late.headers["Location"]).json()["id"] == event["id"]
    assert running.answerer.times(event["id"]) == 1


def test_a_batch_has_a_result_for_each_and_one_refusal_stops_no_other(running: Any) -> None:
    """
    In the order of the list.
    """
    good, bad = running.event(), running.event(amount="five")
    results = running.client("scorer").post(running.path("score/batch"), json=[bad, good, 7]).json()["results"]
    assert [one["status"] for one in results] == [422, 200, 422]
    assert results[1]["prediction"]["id"] == good["id"]
    assert results[0]["problem"]["reason"] == "contract"
    assert '"amount" is text' in results[0]["problem"]["detail"]


@pytest.mark.parametrize(
    ("changed", "status", "reason"),
    [
        ({"id": None}, 422, "contract"),
        ({"id": ""}, 422, "missing_id"),
        ({"account": ""}, 422, "contract"),
        ({"at": 2**55}, 422, "bad_time"),
        ({"at": 4_000_000_000_000}, 422, "future"),
        ({"amount": 1.5}, 422, "contract"),
        ({"account": "x" * 2_000}, 413, "too_large"),
    ],
)
def test_an_event_that_intake_would_refuse_is_refused_at_the_door(running: Any, changed: dict[str, Any], status: int, reason: str) -> None:
    """
    With the reasons of the dead letters, as problem details, and nothing is published.
    """
    before = len(running.answerer.seen)
    event = {name: value for name, value in (running.event() | changed).items() if value is not None or name == "id"}
    refused = running.client("scorer").post(running.path("score"), json=event)
    assert (refused.status_code, refused.json()["reason"]) == (status, reason)
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.json()["status"] == status
    assert len(running.answerer.seen) == before


@pytest.mark.parametrize("body", [b"", b"not json", b"[1", b'"text"', b"\x00\x00\x00\x00\x01abc", b"{", b'{"id": "\xff"}'])
def test_what_is_no_json_object_is_malformed(running: Any, body: bytes) -> None:
    """
    Avro's frame among it: what comes in here is JSON.
    """
    refused = running.client("scorer").post(running.path("score"), content=body)
    assert (refused.status_code, refused.headers["content-type"]) == (400, "application/problem+json")


def test_a_body_that_is_too_large_is_turned_away(running: Any) -> None:
    """
    By its announced length, and, where it has none, by what arrives.
    """
    scorer, large = running.client("scorer"), b" " * (2 << 20)
    assert scorer.post(running.path("score"), content=large).status_code == 413
    streamed = scorer.post(running.path("score"), content=iter([large[: 1 << 20], large[: 1 << 20]]))
    assert (streamed.status_code, streamed.headers["content-type"]) == (413, "application/problem+json")
    assert scorer.post(running.path("score/batch"), json=[running.event()] * 501).status_code in (413, 422)


def test_too_many_waiting_questions_are_asked_to_come_again(ground: Any) -> None:
    """
    429 with Retry-After for those that there is no room for; those that wait are answered.
    """
    with ground.gateway(waiting_max=3) as small, ThreadPoolExecutor(3) as pool:
        scorer, path, answerer = small.client("scorer"), small.path("score"), small.answerer
        answerer.silent.set()
        try:
            events = [small.event() for _ in range(3)]
            waiting = [pool.submit(scorer.post, path, params={"timeout_s": 20}, json=event) for event in events]
            while any(answerer.times(event["id"]) == 0 for event in events):
                threading.Event().wait(0.02)
            turned_away = scorer.post(path, json=small.event())
        finally:
            answerer.silent.clear()
        assert [one.result().status_code for one in waiting] == [200, 200, 200]
    assert (turned_away.status_code, turned_away.headers["Retry-After"]) == (429, "1")


def test_a_token_that_asks_too_often_is_told_when_to_come_again(ground: Any) -> None:
    """
    A batch costs as many as it has.
    """
    with ground.gateway(rate_per_s=5.0) as slow:
        scorer = slow.client("scorer")
        told = [scorer.post(slow.path("score/batch"), json=[slow.event() for _ in range(4)]).status_code for _ in range(4)]
        assert told[0] == 200
        assert 429 in told[1:]
        assert slow.client("viewer").get(slow.path("models")).status_code == 200


def test_those_who_ask_at_once_are_published_together(running: Any) -> None:
    """
    Sixty-four at once are all answered, each with its own.
    """
    events = [running.event(account=f"a-{at}") for at in range(64)]
    client = running.client("scorer")
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda event: client.post(running.path("score"), json=event).json(), events))
    assert [one["id"] for one in found] == [event["id"] for event in events]
    assert [one["key"] for one in found] == [event["account"] for event in events]
