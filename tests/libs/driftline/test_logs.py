"""Structured logs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

PROGRAM = """
import logging
from driftline.logs import log, set_up
set_up("info", service="feature")
log.info("moved", offset=3)
logging.getLogger("somebody").warning("else %s", "spoke")
logging.getLogger("aiokafka").info("not heard")
try:
    raise ValueError("wrong")
except ValueError:
    log.exception("failed")
"""


@pytest.fixture(scope="module")
def ran() -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)


def test_every_line_is_one_json_object_on_standard_error(ran: subprocess.CompletedProcess[str]):
    """
    Ours and other libraries' alike; standard output stays free.
    """
    lines = [json.loads(line) for line in ran.stderr.splitlines()]
    assert [line["event"] for line in lines] == ["moved", "else spoke", "failed"]
    assert ran.stdout == ""


def test_a_line_says_what_was_bound_when_the_process_started(ran: subprocess.CompletedProcess[str]):
    """
    The service, beside level and time, so that one search finds everything of one process.
    """
    line = json.loads(ran.stderr.splitlines()[0])
    assert (line["service"], line["level"], line["offset"]) == ("feature", "info", 3)
    assert line["timestamp"].endswith("Z")


def test_an_exception_is_logged_with_its_traceback(ran: subprocess.CompletedProcess[str]):
    """
    In the same object, not on lines of its own.
    """
    assert "ValueError: wrong" in json.loads(ran.stderr.splitlines()[-1])["exception"]
