"""The servers of the tests: one stack for the whole session, started by the first test that asks for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from driftline.local.stack import Stack

settings.register_profile("driftline", deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no failure
settings.load_profile("driftline")


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A real Kafka, Valkey and schema registry, or those that DRIFTLINE_KAFKA and its kin name."""
    stack = Stack(tmp_path_factory.mktemp("stack"))
    stack.start()
    yield stack
    stack.stop()


@pytest.fixture(scope="session")
def kafka(stack: Stack) -> str:
    """host:port of the broker. Its topics are shared by the session: make your own names."""
    return stack.environment()["DRIFTLINE_KAFKA"]


@pytest.fixture(scope="session")
def redis_url(stack: Stack) -> str:
    """Shared by the session: make your own keys."""
    return stack.environment()["DRIFTLINE_REDIS"]


@pytest.fixture(scope="session")
def registry_url(stack: Stack) -> str:
    """Shared by the session: make your own subjects."""
    return stack.environment()["DRIFTLINE_REGISTRY"]
