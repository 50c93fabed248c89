"""The page of refused records: by reason, with what it means and how to send them again."""

from __future__ import annotations

from pathlib import Path

from driftline.operate.board import Refusals
from driftline.operate.dead_letters import Letter
from driftline.pipeline import load_pipeline
from driftline.stream.dead_letters import REASONS
from services.gateway.console import refused

LETTER = Letter(3, "weather", 1, 1497, "intake", "schema", "schema id 9 is not known", 1, False, None, None)


def test_every_reason_is_told_with_what_to_do() -> None:
    """
    All that services may give, and no other.
    """
    assert set(refused.MEANS) == set(REASONS)


def test_the_most_frequent_comes_first_with_a_sample_and_a_command() -> None:
    """
    What cannot be sent again has no command that sends it: records of our own topics, and what may be kept in part.
    """
    flights = load_pipeline("flights", Path(__file__).parents[4] / "pipelines")
    found = refused.groups(
        flights,
        [
            Refusals("weather", "intake", "schema", 1, (LETTER,)),
            Refusals("weather", "intake", "too_large", 3, ()),
            Refusals("flights-events", "feature", "contract", 2, ()),
        ],
    )
    assert [one.reason for one in found] == ["too_large", "contract", "schema"]
    assert [one.replay for one in found] == ["", "", "driftline dead-letters flights replay --topic weather --reason schema"]
    assert found[2].show == "driftline dead-letters flights show 'weather[1]@1497'"
    assert found[2].sample == LETTER
