"""A small dose of the fault battery, with real processes, a real broker and a real Valkey; the whole of it is `make faults`."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from battery import play
from parts import SMALL
from report import wrong


@pytest.mark.timeout(290)
def test_nothing_is_lost_or_counted_twice_through_ten_mixed_faults(tmp_path: Path):
    """
    Kills at steps, a zombie that wakes up, a store that has forgotten its end, replies that never come, and upstream out of order: an
    independent program finds everything on the topics as the upstream topics make it.
    """
    result = asyncio.run(play(SMALL, 1, 1.0, tmp_path / "play"))
    assert wrong(result) == []
    assert len(result["trials"]) == 10
    figures = result["checks"]["check_log.py"]
    assert figures["asked"] == figures["predicted_once"] > 1_000
    assert figures["examples"] == figures["answers"]
    assert figures["repeated"]["predictions"] + figures["repeated"]["features"] > 0
