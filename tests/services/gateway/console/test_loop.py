"""The page of the loop: what is red, and in which words."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from driftline.contracts.messages import Deployment
from driftline.operate.board import Refusals
from driftline.operate.pulse import Hop
from driftline.operate.status import Lag, Status
from driftline.pipeline import Pipeline, load_pipeline
from services.gateway.console import loop

SERVICES = ("intake", "feature", "inference", "labeler", "drift", "trainer", "rollout")
WELL = Status(dict.fromkeys(SERVICES, "ready"), [Lag("flights-feature", "flights-events", 9, 0)], Deployment.none())
HOPS = {("feature", "flights-events"): Hop(read=10, settled=10, age_s=0.0, rate=2.5)}
SEEN = loop.Seen(WELL, HOPS, (), ())


@pytest.fixture(scope="module")
def flights() -> Pipeline:
    """The pipeline of the demo."""
    return load_pipeline("flights", Path(__file__).parents[4] / "pipelines")


def held(pipeline: Pipeline, seen: loop.Seen) -> dict[str, bool | None]:
    """Each promise with whether it holds."""
    return {one.title: one.held for one in loop.promises(loop.traffic(pipeline, seen), seen)}


def test_a_loop_that_is_well_has_nothing_red(flights: Pipeline) -> None:
    """
    Every promise holds, with the numbers on the arrows.
    """
    assert set(held(flights, SEEN).values()) == {True}
    arrows = loop.traffic(flights, SEEN)
    events = next(one for one in arrows if one.way.id == "events")
    assert (events.rate, events.behind, events.age_s, events.broken) == (2.5, 0, 0.0, ())
    wide, tall = loop.drawings(arrows, WELL)
    assert not any(arrow.broken for drawing in (wide, tall) for arrow in drawing.arrows)
    assert {node.state for node in wide.nodes} == {"ready", "outside"}


@pytest.mark.parametrize(
    ("hop", "title", "words"),
    [
        (Hop(read=12, settled=10, unbalanced_s=61), "Every record is accounted for", "feature read +2 records more than it accounts for"),
        (Hop(read=10, settled=10, still_s=31), "Whoever is behind moves", "feature is behind and has not moved for 31 s"),
    ],
)
def test_a_broken_promise_is_red_with_a_sentence(flights: Pipeline, hop: Hop, title: str, words: str) -> None:
    """
    On its arrow, in the table, and among the promises; the others still hold.
    """
    seen = replace(SEEN, hops={("feature", "flights-events"): hop})
    arrows = loop.traffic(flights, seen)
    assert [one.way.id for one in arrows if one.broken] == ["events"]
    assert [arrow.broken for arrow in loop.drawings(arrows, WELL)[0].arrows].count(True) == 1
    (broken,) = [one for one in loop.promises(arrows, seen) if not one.held]
    assert (broken.title, broken.told) == (title, words)


def test_a_batch_in_hand_breaks_nothing(flights: Pipeline) -> None:
    """
    The two sums may differ for a moment.
    """
    seen = replace(SEEN, hops={("feature", "flights-events"): Hop(read=12, settled=10, unbalanced_s=3, still_s=3)})
    assert set(held(flights, seen).values()) == {True}


def test_what_was_refused_and_who_is_not_ready_is_told(flights: Pipeline) -> None:
    """
    By reason, and by name.
    """
    status = replace(WELL, services={**WELL.services, "drift": "does not answer"})
    seen = loop.Seen(status, HOPS, (Refusals("weather", "intake", "schema", 3, ()),), ())
    told = {one.title: (one.held, one.told) for one in loop.promises(loop.traffic(flights, seen), seen)}
    assert told["Nothing was refused"] == (False, "3 records refused: schema.")
    assert told["Every service is ready"] == (False, "drift: does not answer")
    states = {node.name: node.state for node in loop.drawings(loop.traffic(flights, seen), status)[0].nodes}
    assert (states["drift"], states["intake"]) == ("wrong", "ready")


def test_a_service_of_several_processes_is_shown_with_how_many_are_ready(flights: Pipeline) -> None:
    """
    One picture of it, whatever it is made of.
    """
    several = {"intake": "ready", "feature (10.0.0.1:9100)": "ready", "feature (10.0.0.2:9100)": "ready"}
    several |= {"inference (10.0.0.3:9100)": "ready", "inference (10.0.0.4:9100)": "part 0 is not ready"}
    nodes = loop.drawings(loop.traffic(flights, SEEN), replace(WELL, services=several))[0].nodes
    told = {node.name: (node.state, node.told) for node in nodes if node.name in ("intake", "feature", "inference", "drift")}
    assert told == {
        "intake": ("ready", "ready"),
        "feature": ("ready", "2 ready"),
        "inference": ("wrong", "1 of 2 ready"),
        "drift": ("unknown", "not asked"),
    }


def test_where_services_run_elsewhere_it_says_so_and_claims_nothing(flights: Pipeline) -> None:
    """
    Lags are known from Kafka; sums and progress are not known here.
    """
    found = held(flights, replace(SEEN, hops={}))
    assert (found["Every record is accounted for"], found["Whoever is behind moves"], found["How far behind"]) == (None, None, True)


def test_whoever_is_behind_is_named(flights: Pipeline) -> None:
    """
    With how many records, and how old the oldest is.
    """
    status = replace(WELL, lags=[Lag("flights-feature", "flights-events", 9, 1_200)])
    seen = loop.Seen(status, {("feature", "flights-events"): Hop(read=9, settled=9, age_s=4.0)}, (), ())
    told = next(one for one in loop.promises(loop.traffic(flights, seen), seen) if one.title == "How far behind")
    assert (told.held, told.told) == (None, "feature has 1,200 records of flights-events to read, the oldest for 4.0 s.")


def test_every_arrow_ends_at_two_boxes_inside_the_picture(flights: Pipeline) -> None:
    """
    In either shape: no coordinate is outside, and each label stands in it.
    """
    for drawing in loop.drawings(loop.traffic(flights, SEEN), WELL):
        assert len(drawing.arrows) == len(loop.ways(flights)) == 11
        places = [tuple(map(float, re.findall(r"[\d.]+", arrow.path)[:2])) for arrow in drawing.arrows]
        places += [(text.x, text.y) for arrow in drawing.arrows for text in arrow.texts]
        assert [place for place in places if not (0 <= place[0] <= drawing.width and 0 <= place[1] <= drawing.height)] == []
