"""
The feature process says of its rows what is written of them.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from driftline.pipeline import load_pipeline
from services.feature.app import Settings, wirings

STORE = Path(__file__).parents[3] / "schemas" / "stores" / "entities.yaml"


def test_the_format_of_the_rows_is_the_one_that_is_described() -> None:
    """
    A state of another format is refused, so who raises the number has to describe the new one.
    """
    (feature,) = wirings(Settings(pipeline="flights", registry=""), load_pipeline("flights"))
    assert feature.row_format == yaml.safe_load(STORE.read_text())["row_format"] == 2


def test_a_memory_without_room_is_refused() -> None:
    """
    It would be emptied before every batch.
    """
    with pytest.raises(ValueError, match="DRIFTLINE_ENTITIES_MAX is 0"):
        Settings(pipeline="flights", registry="", entities_max=0)
