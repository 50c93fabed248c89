"""
Programs that know nothing of driftline: kcat reads predictions, where it is installed, and a client that a public generator made of the
OpenAPI document scores.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

PATIENCE_S = 120
GENERATOR = Path(__file__).parents[3] / ".venv-generator" / "bin" / "openapi-python-client"  # apart: it wants a typer older than ours
# What is written by somebody who has the generated package and its documentation alone.
SCRIPT = """
import sys
from the_client import AuthenticatedClient
from the_client.api.scoring import score
from the_client.models import {event}

client = AuthenticatedClient(base_url=sys.argv[1], token=sys.argv[2])
found = score.sync(pipeline=sys.argv[3], client=client, body={event}.from_dict(__import__("json").loads(sys.argv[4])))
print(found.id, found.score, found.model)
"""


def ran(*command: str | Path, folder: Path | None = None) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=PATIENCE_S, cwd=folder, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_kcat_reads_predictions(running: Any) -> None:
    """
    JSON a line, with the key of the event as the key of the record.
    """
    # A program of the system, of no package registry that `make test` uses. Where it is missing, the consumer of librdkafka, of which it
    # is a thin shell, reads the same topic in benchmarks/check_log.py.
    kcat, event = shutil.which("kcat"), running.event(account="k-kcat")
    if kcat is None:
        pytest.skip("kcat is not installed: a program of no package registry that we use")
    assert running.client("scorer").post(running.path("score"), json=event).status_code == 200
    lines = ran(kcat, "-C", "-b", running.kafka, "-t", running.topics.predictions.name, "-o", "beginning", "-e", "-q", "-f", "%k %s\\n")
    found = [json.loads(value) for key, value in (line.split(" ", 1) for line in lines.splitlines()) if key == "k-kcat"]
    assert [(one["id"], one["score"]) for one in found] == [(event["id"], 0.25)]


def test_a_generated_client_scores(running: Any, tmp_path: Path) -> None:
    """
    By openapi-python-client, of the document as it is served.
    """
    assert GENERATOR.exists(), "`make test` sets it up"
    document = running.client("viewer").get("/openapi.json").json()
    (tmp_path / "openapi.json").write_text(json.dumps(document))
    (tmp_path / "config.yml").write_text("package_name_override: the_client\nproject_name_override: the-client\n")
    ran(GENERATOR, "generate", "--path", "openapi.json", "--config", "config.yml", "--meta", "setup", folder=tmp_path)
    reference = document["paths"]["/v1/{pipeline}/score"]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    (tmp_path / "the-client" / "ask.py").write_text(SCRIPT.format(event=reference.rsplit("/", 1)[1]))
    event = running.event()
    python = GENERATOR.with_name("python")
    told = ran(
        python, "ask.py", running.url, running.tokens["scorer"], running.pipeline.name, json.dumps(event), folder=tmp_path / "the-client"
    )
    assert told.split() == [event["id"], "0.25", "m-1"]
