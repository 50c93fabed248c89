"""
`driftline up`: every service of one pipeline as processes of this machine, until Ctrl-C.

It supervises nothing: a service that ends by itself ends all, with the end of its log. A supervisor calls `driftline run`.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

from driftline.contracts.topics import SERVICES
from driftline.errors import Fatal
from driftline.local.door import open_door, read_http
from driftline.local.stack import Stack
from driftline.models.bundle import generate_keys
from driftline.operate.addresses import KEPT, find_addresses
from driftline.operate.creation import make_topics
from driftline.pipeline import Pipeline, load_pipeline, pipelines_folder

LOOK_EVERY_S = 0.5


def run_all(name: str, *, local: bool, partitions: int, folder: Path) -> int:
    """
    Start the servers (`local`) or use those that the environment names, create the topics, start the services, wait for a signal.

    Returns the exit status. Raises Fatal when a service ends by itself.
    """
    pipeline = load_pipeline(name)
    if not local:
        find_addresses()
    told = _told()
    stack = Stack(folder)
    try:
        stack.start(lambda what, address, seconds: print(f"{what:<9} {address}  up in {seconds:.1f} s", flush=True))
        asyncio.run(make_topics(stack.environment()["DRIFTLINE_KAFKA"], pipeline, partitions, upstream=local))
        _start(stack, pipeline, _environment(folder.resolve(), pipeline))
        print(f"{name}: {len(SERVICES)} services; logs in {stack.logs}. driftline status {name}. Ctrl-C stops everything", flush=True)
        said = False
        while not told.wait(LOOK_EVERY_S):
            _refuse_ended(stack)
            if not said and (url := read_http(stack.run_dir)):
                print(f"console   {url}/\ngateway   {url}/openapi.json  (curl {url}/v1/pipelines)", flush=True)
                said = True
        return 0
    finally:
        stack.stop()


def _told() -> threading.Event:
    """Set by the first SIGINT or SIGTERM."""
    told = threading.Event()

    def tell(_number: int, _frame: FrameType | None) -> None:
        told.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, tell)
    return told


def _environment(folder: Path, pipeline: Pipeline) -> dict[str, str]:
    """What the services need besides the servers. Keys that nobody named are made, and kept for the next time."""
    made = {f"DRIFTLINE_{name}": str(folder / place) for name, place in KEPT.items()}
    if not (folder / KEPT["MODEL_PRIVATE_KEY"]).exists():
        generate_keys(folder / "keys")
    if any(stream.pii for stream in pipeline.streams):
        made["DRIFTLINE_PII_KEY"] = _pii_key(folder / "keys" / "pii.hex")
    made["DRIFTLINE_PIPELINES"] = str(pipelines_folder().resolve())
    made |= open_door(os.environ)
    return made | {name: os.environ[name] for name in made if os.environ.get(name)}


def _pii_key(place: Path) -> str:
    if not place.exists():
        place.touch(mode=0o600)
        place.write_text(secrets.token_hex(32))
    return place.read_text()


def _start(stack: Stack, pipeline: Pipeline, environment: Mapping[str, str]) -> None:
    for service in SERVICES:
        stack.spawn(service, [sys.executable, "-m", "driftline", "run", service, "--pipeline", pipeline.name], environment)


def _refuse_ended(stack: Stack) -> None:
    for name, child in stack.children.items():
        if not child.alive:
            raise Fatal(f"{name} ended by itself (status {child.exit_code}); the end of {child.log}:\n{child.log_tail()}")
