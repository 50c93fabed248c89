"""A gateway for the tests of the console alone: they move the rollout, and count what is on the logs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="session")
def ground(makers: Any, kafka: str, redis_url: str, registry_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A pipeline of its own."""
    make, _ = makers
    with make(kafka, redis_url, registry_url, tmp_path_factory.mktemp("console")) as ground:
        yield ground


@pytest.fixture(scope="session")
def running(ground: Any) -> Iterator[Any]:
    """A gateway in front of it."""
    with ground.gateway() as running:
        yield running


@pytest.fixture(scope="session")
def rollout(makers: Any, ground: Any, running: Any) -> Iterator[dict[str, str]]:
    """The real rollout behind it, as `rolled_out` has it."""
    _, roll_out = makers
    with roll_out(ground, running) as digests:
        yield digests
