"""The generated page is what the schemas say now."""

from __future__ import annotations

from driftline.contracts.flow import flow, page
from driftline.contracts.messages import MESSAGES
from driftline.contracts.topics import load_kinds


def test_the_page_is_true():
    """
    `python -m driftline.contracts.flow` would change nothing.
    """
    assert flow() == page().read_text()


def test_the_page_has_every_topic_and_message():
    """
    Eleven kinds of topic, sixteen messages, each in its table.
    """
    text = flow()
    kinds = load_kinds()
    assert (len(kinds), len(MESSAGES)) == (11, 16)
    assert all(f"\n| `<p>-{kind}` |" in text for kind in kinds)
    assert all(f"\n| {message} v" in text for message in MESSAGES)
