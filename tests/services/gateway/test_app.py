"""The gateway as a supervisor runs it: a process that starts, answers, and drains."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2

PATIENCE_S = 30.0


def address(run_dir: Path) -> dict[str, Any]:
    """What the process wrote of itself, once it is ready."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            told: dict[str, Any] = json.loads((run_dir / "gateway.json").read_text())
            if "http" in told and httpx2.get(f"{told['ops']}/readyz", trust_env=False).status_code == 200:
                return told
        except (OSError, ValueError, httpx2.HTTPError):
            pass
        time.sleep(0.05)
    raise AssertionError("the gateway did not get ready")


def test_a_process_that_is_told_to_stop_answers_what_it_has_in_hand(ground: Any, tmp_path: Path) -> None:
    """
    On SIGTERM it takes no more; who waits for a late answer gets 202 and a location; the exit status is 0. Its metrics count requests.
    """
    environment = {
        **os.environ,
        "DRIFTLINE_KAFKA": ground.kafka,
        "DRIFTLINE_REGISTRY": ground.registry,
        "DRIFTLINE_PIPELINES": str(ground.folder),
        "DRIFTLINE_TOKENS_FILE": str(ground.tokens_file),
        "DRIFTLINE_HTTP_PORT": "0",
        "DRIFTLINE_RUN_DIR": str(tmp_path),
    }
    command = [sys.executable, "-m", "driftline", "run", "gateway", "--pipeline", ground.pipeline.name]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stderr=log)
    try:
        told = address(tmp_path)
        client = httpx2.Client(
            base_url=told["http"], headers={"Authorization": f"Bearer {ground.tokens['scorer']}"}, timeout=PATIENCE_S, trust_env=False
        )
        path = f"/v1/{ground.pipeline.name}/score"
        event = {"id": f"drain-{time.time_ns()}", "account": "a-1", "at": time.time_ns() // 1_000_000, "amount": 5}
        ground.answerer.silent.set()
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(client.post, path, params={"timeout_s": 25}, json=event)
            while not ground.answerer.times(event["id"]):
                time.sleep(0.02)
            metrics = httpx2.get(f"{told['ops']}/metrics", trust_env=False).text
            process.send_signal(signal.SIGTERM)
            answered = waiting.result()
        assert (answered.status_code, answered.json()["id"]) == (202, event["id"])
        assert process.wait(PATIENCE_S) == 0
        assert f'driftline_gateway_waiting{{pipeline="{ground.pipeline.name}"}} 1.0' in metrics
        assert ground.tokens["scorer"] not in (tmp_path / "log").read_text()
    finally:
        ground.answerer.silent.clear()
        process.kill()
        process.wait()


def test_a_process_without_tokens_says_what_to_do(ground: Any) -> None:
    """
    And ends with status 1.
    """
    environment = {**os.environ, "DRIFTLINE_REGISTRY": ground.registry, "DRIFTLINE_PIPELINES": str(ground.folder)}
    command = [sys.executable, "-m", "driftline", "run", "gateway", "--pipeline", ground.pipeline.name]
    refused = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert refused.returncode == 1
    assert "driftline tokens new" in refused.stderr
    assert "Traceback" not in refused.stderr
